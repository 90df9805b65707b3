"""What went wrong in the `openapi.ws` of aio-openapi 3.2.1, each a claim here; A-numbers as in its list of failures."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import WSMsgType, web
from conftest import Serve, until

from openapi_ws import CannotSubscribe, Publish, SocketsManager, Subscribe, WsPathMixin

FAILURES: dict[str, Callable[[], BaseException]] = {
    "key": lambda: KeyError("SECRET"),
    "value": lambda: ValueError("SECRET"),
    "type": lambda: TypeError("SECRET"),
    "runtime": lambda: RuntimeError("SECRET"),
    "timeout": lambda: TimeoutError("SECRET"),
    "recursion": lambda: RecursionError("SECRET"),
    "http": lambda: web.HTTPForbidden(text="SECRET"),
    "reset": lambda: ConnectionResetError("SECRET"),
    "cancelled": lambda: asyncio.CancelledError("SECRET"),
}


class Stream(WsPathMixin, Subscribe, Publish, web.View):
    """The methods that the failures need."""

    cancelled: list[str]
    running = 0

    async def ws_rpc_echo(self, payload: Any) -> Any:
        return payload

    async def ws_rpc_fail(self, payload: str) -> None:
        raise FAILURES[payload]()

    async def ws_rpc_wait(self) -> None:
        type(self).running += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.append(self.socket_id)
            raise
        finally:
            type(self).running -= 1

    async def ws_rpc_unsayable(self) -> None:
        await self.sockets.publish("c", "e", {"x": object()})


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Stream.cancelled = []


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_failing_method_is_answered_and_the_socket_lives(
    serve: Serve, failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A1, A2, A3: one answer, no text of the exception in it, one log record, and the next call works."""
    client = await (await serve(Stream)).connect()
    error = await client.error("fail", failure)
    assert error.keys() == {"message", "code", "error_id"}
    assert (error["message"], error["code"]) == ("Internal error", -32603)
    assert await client.call("echo", 1) == 1
    [record] = [record for record in caplog.records if error["error_id"] in record.getMessage()]
    assert record.levelno == logging.ERROR
    assert record.exc_info


async def test_a_disconnect_cancels_the_methods(serve: Serve) -> None:
    """A4: CancelledError reaches the method and goes on through it."""
    served = await serve(Stream)
    client = await served.connect()
    await client.send({"id": 1, "method": "wait"})
    await until(lambda: Stream.running == 1)
    await client.ws.close()
    await until(lambda: Stream.cancelled)
    await served.at_rest()


@pytest.mark.parametrize(
    "text",
    ["[" * 1500 + "]" * 1500, "[" * 100_000, '{"a":' * 900 + "1" + "}" * 900, "9" * 5000, "1e999", "NaN", '"\\ud800"'],
    ids=["deep", "unclosed", "deep object", "5000 digits", "1e999", "NaN", "lone surrogate"],
)
async def test_json_that_cannot_be_read_is_answered(serve: Serve, text: str) -> None:
    """A5: depth, digits and numbers beyond JSON get an answer, and the socket lives."""
    client = await (await serve(Stream)).connect()
    await client.send(f'{{"id":1,"method":"echo","payload":{text[:65_000]}}}')
    assert (await client.receive())["error"]["code"] == -32700
    assert await client.call("echo", 1) == 1


async def test_a_slow_call_delays_nothing(serve: Serve) -> None:
    """A6: the next call, a PING and the noticing of a close do not wait for a method that runs."""
    served = await serve(Stream)
    client = await served.connect(autoping=False)
    for id_ in range(31):
        await client.send({"id": f"slow {id_}", "method": "wait"})
    assert await client.call("echo", "fast") == "fast"
    await client.ws.ping(b"are you there")
    assert (await asyncio.wait_for(client.ws.receive(), 10)).type is WSMsgType.PONG
    assert Stream.running == 31
    await client.ws.close()
    await until(lambda: len(Stream.cancelled) == 31)
    await served.at_rest()


async def test_calls_in_flight_are_limited(serve: Serve) -> None:
    """A7: the call beyond the limit is answered, and those below it go on."""
    client = await (await serve(Stream)).connect()
    for id_ in range(32):
        await client.send({"id": f"slow {id_}", "method": "wait"})
    assert (await client.error("echo", 1))["code"] == -32005
    assert Stream.running == 32


async def test_disconnects_leave_nothing(serve: Serve, living: Any) -> None:
    """A8: 200 clients that connect, subscribe and go leave no socket, no channel and no view."""
    served = await serve(Stream)
    before = living()
    for number in range(200):
        client = await served.connect()
        await client.call("subscribe", {"channel": f"c{number}", "event": "a*"})
        if number % 2:
            await client.ws.close()
        else:
            client.ws._response.close()  # no close frame: the link is lost
        del client
    await served.at_rest()
    await until(lambda: living() == before)


class Slow(SocketsManager):
    """A broker whose subscribe ends when the test says so."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go = asyncio.Event()
        self.live: dict[str, int] = {}
        self.event_error: Exception | None = None

    async def subscribe(self, channel: str) -> None:
        self.asked.append(channel)
        await self.go.wait()
        self.live[channel] = self.live.get(channel, 0) + 1

    async def subscribe_to_event(self, channel: str, event: str) -> None:
        if self.event_error:
            raise self.event_error

    async def unsubscribe(self, channel: str) -> None:
        await self.go.wait()
        self.live[channel] -= 1


async def test_a_disconnect_while_the_broker_subscribes_leaves_nothing(serve: Serve) -> None:
    """A9: the socket is gone before the broker's subscribe ends; then the broker is unsubscribed again."""
    broker = Slow()
    served = await serve(Stream, broker)
    client = await served.connect()
    await client.send({"id": 1, "method": "subscribe", "payload": {"channel": "c"}})
    await until(lambda: broker.asked)
    await client.ws.close()
    await until(lambda: not broker.sockets)
    broker.go.set()
    await served.at_rest()
    assert broker.live == {"c": 0}


async def test_a_publish_that_cannot_be_encoded_reaches_nobody(serve: Serve) -> None:
    """A12: it fails in the publisher, and no subscriber is closed or hears of it."""
    served = await serve(Stream)
    subscribers = [await served.connect() for _ in range(5)]
    for subscriber in subscribers:
        await subscriber.call("subscribe", {"channel": "c"})
    publisher = await served.connect()
    assert (await publisher.error("unsayable"))["code"] == -32603
    await publisher.call("publish", {"channel": "c", "event": "good"})
    for subscriber in subscribers:
        assert (await subscriber.message())["event"] == "good"


class Queue(SocketsManager):
    """A broker as code for the ancestor has it: a queue of its own, a worker of its own."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[Any, Any]] = asyncio.Queue()
        self.worker: asyncio.Task[None] | None = None

    async def start(self, *_: Any) -> None:
        self.worker = asyncio.create_task(self._work())

    async def stop(self, *_: Any) -> None:
        assert self.worker and not self.worker.done(), "the worker died"
        self.worker.cancel()

    async def publish(self, channel: str, event: str, body: Any) -> None:  # type: ignore[override]  # as the ancestor
        self.queue.put_nowait((channel, {"event": event, "data": body}))

    async def subscribe(self, channel: str) -> None:
        if channel == "none":
            raise CannotSubscribe

    async def _work(self) -> None:
        while True:
            await self.channels(*(await self.queue.get()))


async def test_a_broker_message_that_is_none_is_dropped_and_counted(serve: Serve) -> None:
    """A13: a broken message from the broker ends neither its worker nor anybody's subscription."""
    served = await serve(Stream, Queue)
    client = await served.connect()
    await client.call("subscribe", {"channel": "c"})
    broker = served.manager
    assert isinstance(broker, Queue)
    for message in ({"event": 5}, {"event": ["x"], "data": 1}, {"event": "e", "data": object()}, "text", None, 7):
        broker.queue.put_nowait(("c", message))
    broker.queue.put_nowait((None, {"event": "e"}))
    await client.call("publish", {"channel": "c", "event": "good", "data": 1})
    assert await client.message() == {"channel": "c", "event": "good", "data": 1}
    assert served.manager.server_info()["dropped"] == {"broker": 7}


async def test_every_matching_pattern_counts_and_a_socket_gets_one_copy(serve: Serve) -> None:
    """A14: three subscribers by three patterns get the event; one with all three gets it once."""
    served = await serve(Stream)
    patterns = ["order.*", "*", "order.1"]
    clients = [await served.connect() for _ in range(4)]
    for client, mine in zip(clients, [*([p] for p in patterns), patterns], strict=True):
        for pattern in mine:
            await client.call("subscribe", {"channel": "c", "event": pattern})
    await clients[0].call("publish", {"channel": "c", "event": "order.1"})
    await clients[0].call("publish", {"channel": "c", "event": "order.1", "data": "end"})
    for client in clients:
        assert [(await client.message())["data"] for _ in range(2)] == [None, "end"]


@pytest.mark.parametrize(
    ("pattern", "event", "matches"),
    [
        ("order.1", "orderX1", False),
        ("order.1", "order.1", True),
        ("foo", "foo\n", False),
        ("*", "a\nb", True),
        ("a*", "a\nb", True),
        ("a[", "a[", True),
        ("a[", "a", False),
        ("a\\*", "a*", True),
        ("a\\*", "ab", False),
    ],
)
async def test_patterns_mean_what_they_say(serve: Serve, pattern: str, event: str, matches: bool) -> None:
    """A15, A16: a dot is a dot, a star crosses lines, and no pattern breaks the socket."""
    served = await serve(Stream)
    client = await served.connect()
    await client.call("subscribe", {"channel": "c", "event": pattern})
    await client.call("subscribe", {"channel": "c", "event": "the end"})
    await client.call("publish", {"channel": "c", "event": event})
    await client.call("publish", {"channel": "c", "event": "the end"})
    expected = [event, "the end"] if matches else ["the end"]
    assert [(await client.message())["event"] for _ in expected] == expected


@pytest.mark.parametrize("pattern", ["******b", "(a+)+b", "*a*a*a*a*b", "?*?*?*?*b", "*[a-z]" * 42, "*?" * 127])
async def test_no_pattern_is_slow(serve: Serve, pattern: str) -> None:
    """A17: an event of 100,000 characters is matched in one pass; the ancestor would not have ended."""
    served = await serve(Stream)
    client = await served.connect()
    await client.call("subscribe", {"channel": "c", "event": pattern})
    async with asyncio.timeout(5):
        await served.manager.publish("c", "a" * 100_000)
    assert served.manager.channels.get_subscribed(next(iter(served.manager.sockets))) == {"c": [pattern]}


async def test_two_first_listeners_make_one_channel(serve: Serve) -> None:
    """A18: both wait for one subscribe of the broker, and both hear."""
    broker = Slow()
    served = await serve(Stream, broker)
    clients = [await served.connect() for _ in range(2)]
    for client in clients:
        await client.send({"id": 0, "method": "subscribe", "payload": {"channel": "c"}})
    await until(lambda: broker.asked)
    broker.go.set()
    for client in clients:
        assert (await client.receive())["response"] == {"subscribed": {"c": ["*"]}}
    await broker.publish("c", "e")
    for client in clients:
        assert (await client.message())["event"] == "e"
    assert broker.live == {"c": 1}


async def test_a_listener_that_comes_while_the_last_one_leaves_hears(serve: Serve) -> None:
    """A19: it is on the channel although the broker was being unsubscribed when it came."""
    broker = Slow()
    broker.go.set()
    served = await serve(Stream, broker)
    first, second = [await served.connect() for _ in range(2)]
    await first.call("subscribe", {"channel": "c"})
    broker.go.clear()
    await first.send({"id": "leave", "method": "unsubscribe", "payload": {"channel": "c"}})
    await until(lambda: not broker.channels.get("c"))
    await second.send({"id": "come", "method": "subscribe", "payload": {"channel": "c"}})
    await until(lambda: broker.channels.get("c"))
    broker.go.set()
    assert (await second.receive())["response"] == {"subscribed": {"c": ["*"]}}
    await broker.publish("c", "e")
    assert (await second.message())["event"] == "e"
    assert broker.live == {"c": 1}


async def test_two_may_leave_at_once(serve: Serve) -> None:
    """A20: the last two listeners unsubscribe together, and the broker is told once."""
    broker = Slow()
    broker.go.set()
    served = await serve(Stream, broker)
    clients = [await served.connect() for _ in range(2)]
    for client in clients:
        await client.call("subscribe", {"channel": "c"})
    broker.go.clear()
    for client in clients:
        await client.send({"id": 0, "method": "unsubscribe", "payload": {"channel": "c"}})
    await until(lambda: not broker.channels.get("c"))
    broker.go.set()
    for client in clients:
        assert (await client.receive())["response"] == {"subscribed": {}}
    assert broker.live == {"c": 0}


@pytest.mark.parametrize("error", [CannotSubscribe(), RuntimeError("SECRET")], ids=["refused", "failed"])
async def test_a_refused_event_is_not_subscribed(serve: Serve, error: Exception) -> None:
    """A21: `subscribe_to_event` raises, the client is told, and nothing stays registered."""
    broker = Slow()
    broker.go.set()
    broker.event_error = error
    served = await serve(Stream, broker)
    client = await served.connect()
    answer = await client.error("subscribe", {"channel": "c", "event": "e"})
    if isinstance(error, CannotSubscribe):
        assert (answer["code"], answer["errors"]) == (-32602, {"channel": "Invalid channel"})
    else:
        assert answer["code"] == -32603
    await until(lambda: not len(broker.channels))
    assert broker.live == {"c": 0}


class Odd(WsPathMixin, web.View):
    """Attributes that are near to methods."""

    ws_rpcs = 5

    async def rpc_open(self) -> str:
        return "no"

    async def ws_rpc_open(self) -> str:
        return "yes"


@pytest.mark.parametrize(
    "name", ["rpc_open", "get", "connected", "__init__", "_open", "ws_rpc_open", "s", "", "open\u200b"]
)
async def test_only_methods_are_reachable(serve: Serve, name: str) -> None:
    """A24: no string of a client reaches any attribute that is no method."""
    client = await (await serve(Odd)).connect()
    assert await client.call("open") == "yes"
    assert (await client.error(name))["code"] == -32601


def test_what_is_no_coroutine_is_no_method() -> None:
    """A24: a method that could not be called is refused when the class is made, not at the first call."""
    with pytest.raises(RuntimeError, match=r"Bad\.ws_rpc_five is no coroutine function"):
        type("Bad", (WsPathMixin, web.View), {"ws_rpc_five": 5})
    with pytest.raises(RuntimeError, match="async def ws_rpc_sync"):
        type("Bad", (WsPathMixin, web.View), {"ws_rpc_sync": lambda self, payload: None})


async def test_an_answer_repeats_little_of_a_callers_string(serve: Serve) -> None:
    """A25: an unknown method of 60,000 characters is named by its first 64."""
    client = await (await serve(Stream)).connect()
    answer = await client.ask("x" * 60_000)
    assert answer["method"] == "x" * 64
    assert answer["error"]["errors"] == {"method": "x" * 64 + " method not available"}
    assert len(json.dumps(answer)) < 512


async def test_binary_frames_duplicate_ids_and_extra_members(serve: Serve) -> None:
    """A26: binary JSON is read like text, an id in flight is refused, members beyond the protocol are ignored."""
    client = await (await serve(Stream)).connect()
    await client.ws.send_bytes(b'{"id":1,"method":"echo","payload":"binary"}')
    assert (await client.receive())["response"] == "binary"
    await client.ws.send_bytes(b"\xff\xfe\x00")
    assert (await client.receive())["error"]["code"] == -32700
    await client.send({"id": "same", "method": "wait"})
    assert (await client.ask("echo", 1, id="same"))["error"]["code"] == -32009
    assert await client.ask("echo", 1, id=7, extra=2) == {"id": 7, "method": "echo", "response": 1}


async def test_socket_ids_cannot_be_guessed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A27: 128 bits of the system's randomness, that share nothing between sockets."""
    served = await serve(Stream)
    drawn: list[int] = []
    token_hex = secrets.token_hex
    monkeypatch.setattr(secrets, "token_hex", lambda size: drawn.append(size) or token_hex(size))
    clients = [await served.connect() for _ in range(20)]
    ids = {ws.socket_id for ws in served.manager.sockets}
    assert len(ids) == len(clients)
    assert drawn == [16] * len(clients)
    assert all(len(id_) == 32 and int(id_, 16) >= 0 for id_ in ids)
    assert max(sum(a == b for a, b in zip(x, y, strict=True)) for x in ids for y in ids if x != y) < 16
