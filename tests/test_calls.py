"""Calls of one socket: in flight together, in order where asked for, answered once each."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

import pytest
from aiohttp import web
from conftest import Serve, until

from openapi_ws import RpcError, Subscribe, WsPathMixin, ws_rpc
from openapi_ws.protocol import Call


class Gate:
    """What methods wait at until the test opens it."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.waiting = 0
        self.trace: list[Any] = []

    async def wait(self) -> None:
        self.waiting += 1
        try:
            await self.open.wait()
        finally:
            self.waiting -= 1


GATE: Gate


@pytest.fixture(autouse=True)
async def _gate() -> None:
    global GATE
    GATE = Gate()


class Stream(WsPathMixin, web.View):
    """Methods that wait, fail, run in order, or will not be stopped."""

    max_calls = 4

    async def ws_rpc_echo(self, payload: Any) -> Any:
        return payload

    async def ws_rpc_wait(self, payload: Any) -> Any:
        await GATE.wait()
        return payload

    @ws_rpc(ordered=True)
    async def ws_rpc_first(self, payload: int) -> int:
        GATE.trace.append(("begin", payload))
        await (GATE.wait() if payload == 0 else asyncio.sleep(0))
        GATE.trace.append(("end", payload))
        return payload

    @ws_rpc(ordered=True)
    async def ws_rpc_second(self, payload: int) -> int:
        GATE.trace.append(("begin", payload))
        GATE.trace.append(("end", payload))
        return payload

    async def ws_rpc_refuse(self, payload: dict[str, Any]) -> None:
        raise RpcError(7, "No more seats", errors={"seat": "taken"}, retry_after=1.5, **payload)

    async def ws_rpc_unsayable(self) -> None:
        raise RpcError(7, "No", hint=object())

    async def ws_rpc_stubborn(self) -> str:
        try:
            await GATE.wait()
        except asyncio.CancelledError:
            return "finished all the same"
        return "never"

    async def ws_rpc_bad_error(self) -> None:
        raise RpcError("seven", "No")  # type: ignore[arg-type]  # on purpose


class Wide(Stream):
    max_calls = 2000

    async def ws_rpc_random(self, payload: int) -> int:
        for _ in range(random.randrange(20)):
            await asyncio.sleep(0)
        return payload


async def test_a_thousand_calls_at_once_are_answered_once_each(serve: Serve) -> None:
    """Whatever order the methods end in, each id is answered once and with its own result."""
    client = await (await serve(Wide)).connect()
    for number in range(1000):
        await client.send({"id": str(number), "method": "random", "payload": number})
    answers = [await client.receive() for _ in range(1000)]
    assert {answer["id"]: answer["response"] for answer in answers} == {str(n): n for n in range(1000)}
    assert await client.call("echo", "the next frame") == "the next frame"


async def test_the_limit_is_an_attribute_of_the_class(serve: Serve) -> None:
    """The fifth call is refused; one that ends makes room for another."""
    client = await (await serve(Stream)).connect()
    for number in range(4):
        await client.send({"id": number, "method": "wait"})
    error = await client.error("echo", 1)
    assert (error["code"], error["message"]) == (-32005, "At most 4 calls in flight")
    GATE.open.set()
    for _ in range(4):
        await client.receive()
    assert await client.call("echo", 1) == 1


async def test_an_id_may_be_used_again_once_it_is_answered(serve: Serve) -> None:
    """While in flight it is a conflict, and the first call is answered all the same."""
    client = await (await serve(Stream)).connect()
    await client.send({"id": "x", "method": "wait", "payload": 1})
    assert (await client.ask("wait", 2, id="x"))["error"]["code"] == -32009
    GATE.open.set()
    assert await client.receive() == {"id": "x", "method": "wait", "response": 1}
    assert (await client.ask("wait", 3, id="x"))["response"] == 3


async def test_ordered_methods_run_one_after_another_as_they_arrived(serve: Serve) -> None:
    """Across methods, while others overtake them."""
    client = await (await serve(Stream)).connect()
    for number, method in enumerate(("first", "second", "first")):
        await client.send({"id": number, "method": method, "payload": number})
    assert await client.call("echo", "overtakes") == "overtakes"
    assert GATE.trace == [("begin", 0)]
    GATE.open.set()
    assert [(await client.receive())["id"] for _ in range(3)] == [0, 1, 2]
    assert GATE.trace == [(what, n) for n in range(3) for what in ("begin", "end")]


async def test_an_rpc_error_is_answered_word_for_word(serve: Serve) -> None:
    """Code, message, errors and further members, in both dialects; it is no fault of ours."""
    client = await (await serve(Stream)).connect()
    error = await client.error("refuse", {"left": 0})
    expected = {"errors": {"seat": "taken"}, "retry_after": 1.5, "left": 0}
    assert error == {"message": "No more seats", "code": 7, **expected}
    await client.send({"jsonrpc": "2.0", "id": 1, "method": "refuse", "params": {"left": 0}})
    assert (await client.receive())["error"] == {"message": "No more seats", "code": 7, "data": expected}


@pytest.mark.parametrize("method", ["unsayable", "bad_error"])
async def test_an_rpc_error_that_cannot_be_said_is_our_fault(serve: Serve, method: str) -> None:
    """It is answered, with an error_id, and the socket lives."""
    client = await (await serve(Stream)).connect()
    error = await client.error(method)
    assert error["code"] == -32603
    assert error["error_id"]
    assert await client.call("echo", 1) == 1


async def test_a_call_can_be_taken_back(serve: Serve) -> None:
    """It is answered -32013 once, its method is cancelled, and the canceller learns whether there was one."""
    client = await (await serve(Stream)).connect()
    await client.send({"id": "slow", "method": "wait"})
    await until(lambda: GATE.waiting)
    await client.send({"id": "c", "method": "rpc.cancel", "payload": {"id": "slow"}})
    answers = {answer["id"]: answer for answer in [await client.receive() for _ in range(2)]}
    assert answers["slow"]["error"] == {"message": "Call cancelled", "code": -32013}
    assert answers["c"]["response"] == {"cancelled": True}
    assert not GATE.waiting
    for payload in ({"id": "slow"}, {"id": None}, {"id": []}, {}, None, 1):
        assert await client.call("rpc.cancel", payload) == {"cancelled": False}


async def test_a_call_taken_back_before_it_began_is_answered(serve: Serve) -> None:
    """Call and cancel in one read: one answer each, and the method never runs."""
    served = await serve(Stream)
    client = await served.connect_raw()
    client.frame(b'{"id":"a","method":"wait"}')
    client.frame(b'{"id":"b","method":"rpc.cancel","payload":{"id":"a"}}')
    answers = [(await client.read())[1] for _ in range(2)]
    assert sorted(b"-32013" in answer for answer in answers) == [False, True]
    assert not GATE.waiting


async def test_a_method_that_finishes_though_cancelled_is_answered_with_its_result(serve: Serve) -> None:
    """Cancelling asks; the method decides, and the answer is the truth."""
    client = await (await serve(Stream)).connect()
    await client.send({"id": "s", "method": "stubborn"})
    await until(lambda: GATE.waiting)
    await client.send({"id": "c", "method": "rpc.cancel", "payload": {"id": "s"}})
    answers = {answer["id"]: answer for answer in [await client.receive() for _ in range(2)]}
    assert answers["s"]["response"] == "finished all the same"


async def test_a_waiting_ordered_call_can_be_taken_back(serve: Serve) -> None:
    """The one that runs and the one behind are not touched."""
    client = await (await serve(Stream)).connect()
    for number in range(3):
        await client.send({"id": number, "method": "first", "payload": number})
    await until(lambda: GATE.waiting)
    await client.send({"id": "c", "method": "rpc.cancel", "payload": {"id": 1}})
    assert {(await client.receive())["id"] for _ in range(2)} == {"c", 1}
    GATE.open.set()
    assert [(await client.receive())["response"] for _ in range(2)] == [0, 2]


class Faulty(WsPathMixin, web.View):
    """A view whose hook tells what it was told, or fails."""

    told: list[tuple[str, str]]

    async def ws_rpc_fail(self) -> None:
        raise KeyError("SECRET")

    async def ws_rpc_refuse(self) -> None:
        raise RpcError(1, "No")

    async def on_error(self, call: Call, exc: Exception) -> None:
        self.told.append((call.method, repr(exc)))
        if len(self.told) > 1:
            raise ValueError("the hook itself")


async def test_on_error_is_told_once_of_each_fault(serve: Serve) -> None:
    """Not of an RpcError, which is an answer; a hook that fails costs the socket, with 1011."""
    Faulty.told = []
    client = await (await serve(Faulty)).connect()
    await client.error("refuse")
    await client.error("fail")
    assert Faulty.told == [("fail", "KeyError('SECRET')")]
    await client.send({"id": 1, "method": "fail"})
    assert await client.closed() == 1011
    assert len(Faulty.told) == 2


class Panic(BaseException):
    """What Rust's panics are in Python, among others."""


class Forgetful(RpcError):
    def __init__(self) -> None:
        Exception.__init__(self, "without code and message")


class Panicking(WsPathMixin, Subscribe, web.View):
    """Methods that raise what is no `Exception`, or no whole one; *is_calm* is whether the hook does not."""

    is_calm = True

    async def ws_rpc_panic(self) -> None:
        raise Panic

    async def ws_rpc_group(self) -> None:
        raise BaseExceptionGroup("several", [asyncio.CancelledError(), KeyError()])

    async def ws_rpc_forgetful(self) -> None:
        raise Forgetful

    def on_error(self, call: Call, exc: Exception) -> None:
        if not self.is_calm:
            raise Panic


class Hysterical(Panicking):
    is_calm = False


@pytest.mark.parametrize("method", ["panic", "group", "forgetful"])
async def test_whatever_a_method_raises_it_is_answered(serve: Serve, method: str) -> None:
    """With -32603, also in a batch, whose other answers and messages do not wait for ever."""
    served = await serve(Panicking)
    client = await served.connect()
    assert (await client.error(method))["code"] == -32603
    entries = {"subscribe": {"channel": "c"}, method: {}}
    await client.send([{"jsonrpc": "2.0", "id": name, "method": name, "params": entries[name]} for name in entries])
    codes = {answer["id"]: answer.get("error", {}).get("code") for answer in await client.receive()}
    assert codes == {"subscribe": None, method: -32603}
    await served.manager.publish("c", "e", 1)
    assert (await client.receive())["method"] == "rpc.message"


async def test_a_call_that_cannot_be_answered_closes_its_socket(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """1011, if the hook panics as well; both are logged."""
    client = await (await serve(Hysterical)).connect()
    await client.send({"id": 1, "method": "panic"})
    assert await client.closed() == 1011
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


class Timed(WsPathMixin, web.View):
    """Methods with the view's time, their own, and none."""

    call_timeout = 0.1

    async def ws_rpc_long(self) -> None:
        await GATE.wait()

    @ws_rpc(timeout=0.3)
    async def ws_rpc_longer(self) -> None:
        await GATE.wait()

    @ws_rpc(timeout=None)
    async def ws_rpc_endless(self) -> str:
        await GATE.wait()
        return "at last"


async def test_a_call_has_its_time(serve: Serve) -> None:
    """The view's, or the method's own, or none; then it is cancelled and answered -32008, and the socket lives."""
    served = await serve(Timed)
    served.manager.tick = 0.02
    client = await served.connect()
    for method in ("endless", "longer", "long"):
        await client.send({"id": method, "method": method})
    await until(lambda: GATE.waiting == 3)
    for method in ("long", "longer"):
        answer = await client.receive()
        assert (answer["id"], answer["error"]) == (method, {"message": "Call timed out", "code": -32008})
    assert GATE.waiting == 1
    GATE.open.set()
    assert (await client.receive())["response"] == "at last"


async def test_calls_are_counted_by_method_and_outcome(serve: Serve) -> None:
    """Each once; names that callers make up count as one, and what nobody was told is counted as dropped."""
    served = await serve(Stream)
    client = await served.connect()
    await client.call("echo", 1)
    await client.error("refuse", {})
    await client.error("unsayable")
    await client.error("made up")
    await client.error("also made up")
    await client.send({"jsonrpc": "2.0", "method": "refuse", "params": {}})
    await client.send({"id": "w", "method": "wait"})
    await until(lambda: GATE.waiting)
    await client.ws.close()
    await served.at_rest()
    await until(lambda: served.manager.metrics.calls["wait", "gone"])
    info = served.manager.server_info()
    assert info["calls"] == {
        "echo": {"ok": 1},
        "refuse": {"7": 2},
        "unsayable": {"-32603": 1},
        "_OTHER": {"-32601": 2},
        "wait": {"gone": 1},
    }
    assert info["dropped"] == {"notification": 1}


async def test_every_rpc_error_is_logged_at_debug(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """Also those of limits and names, which no method raised; nothing is logged above."""
    client = await (await serve(Stream)).connect()
    with caplog.at_level(logging.DEBUG, "openapi_ws"):
        await client.error("refuse", {})
        await client.error("wtf")
        for number in range(5):
            await client.send({"id": number, "method": "wait"})
        assert (await client.receive())["error"]["code"] == -32005
    said = [record.getMessage().partition(" ")[2] for record in caplog.records if record.name == "openapi_ws.failures"]
    assert said == [
        "'refuse': No more seats (7)",
        "'wtf': Invalid RPC parameters (-32601)",
        "'wait': At most 4 calls in flight (-32005)",
    ]
    assert {record.levelname for record in caplog.records} == {"DEBUG"}


async def test_a_stubborn_method_does_not_keep_a_gone_client(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """A method that swallows its cancellation ends in peace, unanswered."""
    served = await serve(Stream)
    client = await served.connect()
    await client.send({"id": "s", "method": "stubborn"})
    await until(lambda: GATE.waiting)
    await client.ws.close()
    await served.at_rest()
    await until(lambda: not GATE.waiting)
    assert not caplog.records


class Tidy(WsPathMixin, Subscribe, web.View):
    """Methods that clean up slowly, and one that answers before its messages."""

    async def ws_rpc_tidy(self) -> None:
        GATE.trace.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            await GATE.wait()
            GATE.trace.append("tidied up")

    @ws_rpc(reply_first=True)
    async def ws_rpc_hold(self) -> None:
        await GATE.wait()

    async def ws_rpc_wait(self) -> None:
        await GATE.wait()


@pytest.mark.parametrize("is_taken_back", [False, True])
async def test_a_method_cleans_up_undisturbed_though_its_client_is_gone(serve: Serve, is_taken_back: bool) -> None:
    """It is cancelled once, then it has a second; also if it was cancelled before its client went."""
    served = await serve(Tidy)
    client = await served.connect()
    await client.send({"id": "t", "method": "tidy"})
    await until(lambda: GATE.trace)
    if is_taken_back:
        await client.call("rpc.cancel", {"id": "t"})
        await until(lambda: GATE.waiting)
    await client.ws.close()
    await until(lambda: served.manager._departures)
    for _ in range(10):
        await asyncio.sleep(0)
    GATE.open.set()
    await served.manager.departed()
    assert GATE.trace == ["begun", "tidied up"]


async def test_taking_a_call_back_twice_does_not_disturb_its_cleaning_up(serve: Serve) -> None:
    """The first cancel reaches the method; it may await in its finally, whatever the caller repeats."""
    client = await (await serve(Tidy)).connect()
    await client.send({"id": "t", "method": "tidy"})
    await until(lambda: GATE.trace)
    await client.call("rpc.cancel", {"id": "t"})
    await until(lambda: GATE.waiting)
    await client.call("rpc.cancel", {"id": "t"})
    GATE.open.set()
    assert (await client.receive())["error"]["code"] == -32013
    assert GATE.trace == ["begun", "tidied up"]


@pytest.mark.parametrize("id_", [True, 1.5, "1", [1], None])
async def test_only_the_id_itself_takes_a_call_back(serve: Serve, id_: object) -> None:
    """In JSON true is not 1, whatever Python thinks."""
    client = await (await serve(Stream)).connect()
    await client.send({"id": 1, "method": "wait"})
    assert await client.call("rpc.cancel", {"id": id_}) == {"cancelled": False}
    assert (await client.ask("rpc.cancel", {"id": 1}, id=1))["error"]["code"] == -32009
    await client.send({"jsonrpc": "2.0", "id": 2, "method": "rpc.cancel", "params": [1]})
    assert {(await client.receive())["id"] for _ in range(2)} == {1, 2}


async def test_what_is_held_for_an_answer_is_bounded(serve: Serve) -> None:
    """A method that holds the messages of its socket for long does not hold memory without end."""
    served = await serve(Tidy)
    client = await served.connect()
    await client.call("subscribe", {"channel": "c"})
    await client.send([{"jsonrpc": "2.0", "id": 1, "method": "hold"}])
    await until(lambda: GATE.waiting)
    for _ in range(30):
        await served.manager.publish("c", "e", "x" * 50_000)
    assert await client.closed() == 4008


async def test_a_slow_call_in_a_batch_does_not_hold_messages(serve: Serve) -> None:
    """Only methods that answer first keep messages back."""
    served = await serve(Tidy)
    client = await served.connect()
    await client.call("subscribe", {"channel": "c"})
    await client.send([{"jsonrpc": "2.0", "id": 1, "method": "wait"}])
    await until(lambda: GATE.waiting)
    await served.manager.publish("c", "e", 1)
    assert (await client.message())["data"] == 1


class Opening(WsPathMixin, web.View):
    """A view that opens when the test says so; its hook is cancelled from within."""

    order: list[int]

    async def connected(self) -> None:
        await GATE.wait()

    @ws_rpc(ordered=True)
    async def ws_rpc_note(self, payload: int) -> int:
        self.order.append(payload)
        return payload

    async def ws_rpc_fail(self) -> None:
        raise KeyError

    async def ws_rpc_within(self) -> None:
        raise asyncio.CancelledError

    def on_error(self, call: Call, exc: Exception) -> None:
        if call.method == "fail":
            raise asyncio.CancelledError


async def test_ordered_calls_keep_their_order_while_the_socket_opens(serve: Serve) -> None:
    """One that comes as `connected` ends does not overtake those that waited for it."""
    Opening.order = []
    served = await serve(Opening)
    client = await served.connect_raw()
    await until(lambda: GATE.waiting)
    client.frame(b'{"id":0,"method":"note","payload":0}')
    await until(lambda: len(next(iter(served.manager.sockets)).calls or ()) == 1)
    GATE.open.set()
    for number in range(1, 5):
        client.frame(b'{"id":%d,"method":"note","payload":%d}' % (number, number))
        await asyncio.sleep(0)
    for _ in range(5):
        await client.read()
    assert Opening.order == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("batch", [False, True])
async def test_a_hook_that_is_cancelled_from_within_does_not_cost_the_answer(serve: Serve, batch: bool) -> None:
    """Or, where the socket closes with 1011 first, the socket: never neither."""
    GATE.open.set()
    client = await (await serve(Opening)).connect()
    call = {"jsonrpc": "2.0", "id": 1, "method": "fail"}
    await client.send([call] if batch else call)
    assert await client.closed() == 1011


async def test_what_was_cancelled_from_within_can_be_found(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """The log names the line of the method that met the cancellation."""
    GATE.open.set()
    client = await (await serve(Opening)).connect()
    assert (await client.error("within"))["code"] == -32603
    assert "ws_rpc_within" in caplog.text
