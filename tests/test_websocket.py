"""One client: what is sent, in which order, and the one close."""

from __future__ import annotations

import asyncio
import json
import struct
from collections import Counter

import pytest
from aiohttp import web
from conftest import WAIT, Client, RawClient, Serve, Served, until
from hypothesis import given
from hypothesis import strategies as st

from openapi_ws import Subscribe, Websocket, WsPathMixin, conflate, drop_oldest
from openapi_ws.frames import text_frame
from openapi_ws.protocol import HOUSE, JSONRPC, Message, Notice


def push(websocket: Websocket, data: bytes) -> None:
    """Push *data* as the whole text of a frame."""
    websocket.push((text_frame(data), Message("c", "e", data)))


class Stream(WsPathMixin, Subscribe, web.View):
    async def ws_rpc_echo(self, payload: str) -> str:
        return payload


@given(st.integers(0, 70_000))
def test_a_frame_is_that_of_rfc_6455(size: int) -> None:
    """§5.2: FIN and text, then the shortest form of the length, then the payload, unmasked."""
    frame = text_frame(b"x" * size)
    assert frame[0] == 0x81
    if size < 126:
        assert (frame[1], len(frame)) == (size, size + 2)
    elif size < 65_536:
        assert (frame[1], *struct.unpack("!H", frame[2:4]), len(frame)) == (126, size, size + 4)
    else:
        assert (frame[1], *struct.unpack("!Q", frame[2:10]), len(frame)) == (127, size, size + 10)


@pytest.mark.parametrize("size", [0, 100, 125, 126, 127, 60_000])
async def test_answers_of_any_size_arrive(serve: Serve, size: int) -> None:
    """Over each form of the length."""
    client = await (await serve(Stream)).connect()
    assert await client.call("echo", "x" * size) == "x" * size


class Feed(Stream):
    """A view whose clients lag soon."""

    max_queue_bytes = 200_000
    send_buffer_bytes = 4096

    async def ws_rpc_stream(self, payload: int) -> str:
        """Send many messages to the caller, as fast as it reads."""
        for number in range(payload):
            await self.send("c", "e", [number, "x" * 10_000])
            type(self).sent = number
        return "done"

    sent = 0


class Dropping(Feed):
    slow_consumer = drop_oldest


class Latest(Feed):
    slow_consumer = conflate(lambda message: message.event)


class Faulty(Feed):
    slow_consumer = conflate(lambda message: {}[message.event])


async def stalled(served: Served) -> tuple[RawClient, Websocket]:
    """A subscribed client that does not read until it is told to, and its socket."""
    before = set(served.manager.sockets)
    client = await served.connect_raw()
    [socket] = served.manager.sockets - before
    client.frame(b'{"id":1,"method":"subscribe","payload":{"channel":"c"}}')
    await client.read()
    client.reader._transport.pause_reading()  # type: ignore[attr-defined]  # a peer that does not read
    return client, socket


async def flood(served: Served, count: int, good: Client) -> None:
    """Publish *count* messages that *good* reads one by one."""
    for number in range(count):
        await served.manager.publish("c", f"e{number % 3}", [number, "x" * 20_000])
        assert (await good.message())["data"][0] == number


async def test_a_client_that_never_reads_is_disconnected_alone(serve: Serve) -> None:
    """4008 once more waits for it than its bound, and counted; another client gets every message, in order."""
    served = await serve(Feed)
    good = await served.connect()
    await good.call("subscribe", {"channel": "c"})
    _, socket = await stalled(served)
    await flood(served, 300, good)
    await until(lambda: socket not in served.manager.sockets)
    await until(lambda: served.manager.server_info()["closes"] == {"4008": 1})
    assert served.manager.server_info()["dropped"]["closed"] > 0


@pytest.mark.parametrize("view", [Dropping, Latest])
async def test_a_client_that_lags_is_told_what_it_missed(serve: Serve, view: type[Feed]) -> None:
    """Before the next message, by channel; received and missed are all there were, and it stays within its bound."""
    served = await serve(view)
    good = await served.connect()
    await good.call("subscribe", {"channel": "c"})
    client, socket = await stalled(served)
    await flood(served, 400, good)
    assert socket in served.manager.sockets
    assert socket.queued_bytes <= view.max_queue_bytes + 20_100
    client.reader._transport.resume_reading()  # type: ignore[attr-defined]  # it reads again
    numbers, missed, frames = [], 0, []
    while not {397, 398, 399} <= set(numbers):
        frame = json.loads((await client.read())[1])
        frames.append("gap" if frame.get("notice") == "gap" else "message")
        if frame.get("notice") == "gap":
            assert frame["data"]["channel"] == "c"
            missed += frame["data"]["missed"]
        else:
            numbers.append(frame["data"][0])
    if view is Dropping:
        assert numbers == sorted(numbers)
    assert len(numbers) + missed == 400
    assert served.manager.metrics.dropped["slow"] == missed > 0
    first_hole = next(at for at, number in enumerate(numbers) if number != at)
    assert "gap" in frames[: first_hole + 1]


async def test_conflating_keeps_the_latest_of_each_key(serve: Serve) -> None:
    """The last message of each event arrives, whatever was left out before."""
    served = await serve(Latest)
    good = await served.connect()
    await good.call("subscribe", {"channel": "c"})
    client, _ = await stalled(served)
    await flood(served, 90, good)
    client.reader._transport.resume_reading()  # type: ignore[attr-defined]  # it reads again
    latest: dict[str, int] = {}
    while latest != {"e0": 87, "e1": 88, "e2": 89}:
        frame = json.loads((await client.read())[1])
        if "event" in frame:
            assert latest.get(frame["event"], -1) < frame["data"][0]
            latest[frame["event"]] = frame["data"][0]


async def test_a_key_that_fails_costs_its_own_socket_alone(serve: Serve) -> None:
    """1011 for the client that lags; the others get every message."""
    served = await serve(Faulty)
    good = await served.connect()
    await good.call("subscribe", {"channel": "c"})
    _, socket = await stalled(served)
    await flood(served, 100, good)
    await until(lambda: socket not in served.manager.sockets)
    assert socket.close_code == 1011


async def test_a_method_that_streams_is_slowed_by_its_client(serve: Serve) -> None:
    """`send` waits while the client does not read, and goes on when it does; nothing is lost."""
    Feed.sent = 0
    served = await serve(Feed)
    client, socket = await stalled(served)
    client.frame(b'{"id":2,"method":"stream","payload":300}')
    good = await served.connect()
    await until(lambda: Feed.sent > 0)
    for _ in range(20):
        await good.call("echo", "others go on")
    assert Feed.sent < 290
    assert socket.queued_bytes <= Feed.max_queue_bytes
    client.reader._transport.resume_reading()  # type: ignore[attr-defined]  # it reads again
    frames = [json.loads((await client.read())[1]) for _ in range(301)]
    assert [frame["data"][0] for frame in frames[:-1]] == list(range(300))
    assert frames[-1]["response"] == "done"


class Narrow(Feed):
    """A view whose bound is less than what asyncio's transport would hold."""

    max_queue_bytes = 16_384


@pytest.mark.parametrize(("view", "streams"), [(Narrow, 1), (Narrow, 30), (Feed, 30)])
async def test_streams_to_a_client_that_reads_never_close_it(serve: Serve, view: type[Feed], streams: int) -> None:
    """However small the bound, and however many of them there are; all arrives, each stream in order."""
    served = await serve(view)
    client = await served.connect()
    count = 300 // streams
    for number in range(streams):
        await client.send({"id": number, "method": "stream", "payload": count})
    frames = [await client.receive() for _ in range(streams * (count + 1))]
    assert Counter(frame["data"][0] for frame in frames if "data" in frame) == dict.fromkeys(range(count), streams)
    assert sorted(frame["id"] for frame in frames if "id" in frame) == list(range(streams))


async def test_who_waits_for_a_client_that_is_lost_is_told(serve: Serve) -> None:
    """A method whose `send` waits ends with ConnectionResetError, though another that waited was cancelled."""
    served = await serve(Feed)
    client, socket = await stalled(served)
    for number in range(2):
        client.frame(b'{"id":"s%d","method":"stream","payload":300}' % number)
    await until(lambda: socket._pump)
    client.frame(b'{"id":3,"method":"rpc.cancel","payload":{"id":"s0"}}')
    await until(lambda: served.manager.metrics.calls["stream", "-32013"])
    client.writer.transport.abort()
    await until(lambda: served.manager.metrics.calls["stream", "gone"])
    await served.at_rest()


async def test_a_burst_in_one_tick_to_a_client_that_reads_arrives(serve: Serve) -> None:
    """What the transport does not take at once follows, in order, without any policy."""
    served = await serve(Feed)
    client = await served.connect()
    await client.call("subscribe", {"channel": "c"})
    for number in range(15):
        await served.manager.publish("c", "e", [number, "x" * 10_000])
    assert [(await client.message())["data"][0] for _ in range(15)] == list(range(15))


class Beating(Stream):
    heartbeat = 0.2


async def test_a_silent_client_is_pinged_and_one_that_stays_silent_is_closed(serve: Serve) -> None:
    """A ping after the heartbeat, 4012 after 1.5 of it; the reader of a healthy client answers and stays."""
    served = await serve(Beating)
    served.manager.tick = 0.02
    good, silent = await served.connect(), await served.connect_raw()
    reading = asyncio.create_task(good.ws.receive())
    assert (await silent.read())[0] == 9
    assert await silent.read() == (8, (4012).to_bytes(2) + b"no pong")
    await until(lambda: len(served.manager.sockets) == 1)
    await asyncio.wait([reading], timeout=0.6)
    assert len(served.manager.sockets) == 1
    reading.cancel()


async def test_a_busy_client_is_never_killed(serve: Serve) -> None:
    """Whatever it sends is a sign of life, also a pong, also while its calls run."""
    served = await serve(Beating)
    served.manager.tick = 0.02
    client = await served.connect_raw()
    for _ in range(8):
        opcode, _ = await client.read()
        assert opcode == 9
        client.frame(b"", opcode=10)
    assert len(served.manager.sockets) == 1


async def test_pings_are_answered_and_too_many_close_the_socket(serve: Serve) -> None:
    """Each with its payload, while they come at 10 a second or a few at once; a flood is 4013."""
    served = await serve(Stream)
    client = await served.connect_raw()
    for number in range(20):
        client.frame(b"ping %d" % number, opcode=9)
    for number in range(20):
        assert await client.read() == (10, b"ping %d" % number)
    for _ in range(2):
        client.frame(b"", opcode=9)
    assert await client.read() == (8, (4013).to_bytes(2) + b"too many control frames")


class Passing(Stream):
    max_idle = 0.3

    async def ws_rpc_wait(self) -> None:
        await asyncio.sleep(0.5)


class Ageing(Stream):
    max_age = 0.3


@pytest.mark.parametrize(("view", "reason"), [(Passing, "idle"), (Ageing, "age")])
async def test_an_idle_or_old_socket_is_told_and_closed(serve: Serve, view: type[Stream], reason: str) -> None:
    """A notice first, then 4011; pongs do not count as use."""
    served = await serve(view)
    served.manager.tick = 0.02
    client = await served.connect_raw()
    opcode, payload = await client.read()
    notice = json.loads(payload)
    assert (opcode, notice["notice"], notice["data"]["reason"]) == (1, "expiring", reason)
    assert 0 < notice["data"]["in"] <= 0.3
    client.frame(b"", opcode=10)
    assert await client.read() == (8, (4011).to_bytes(2) + reason.encode())


async def test_a_call_in_flight_is_use(serve: Serve) -> None:
    """A socket that waits for its answer is not idle."""
    served = await serve(Passing)
    served.manager.tick = 0.02
    client = await served.connect()
    assert await client.call("wait") is None


async def test_a_socket_can_be_moved_alone(serve: Serve) -> None:
    """It is told when to leave, its calls may end, new ones are refused, and it is closed with 4011."""
    served = await serve(Passing)
    client = await served.connect()
    [websocket] = served.manager.sockets
    await client.send({"id": "w", "method": "wait"})
    moving = asyncio.create_task(websocket.move(within=0.05, grace=5))
    assert await client.receive() == {"notice": "drain", "data": {"reconnect_in": 0.05, "deadline": 5.05}}
    await until(lambda: websocket.is_leaving)
    assert (await client.error("echo", "late"))["code"] == -32014
    assert (await client.receive())["id"] == "w"
    assert await client.closed() == 4011
    await moving


class Restless(Stream):
    async def ws_rpc_move(self) -> None:
        await self.websocket.move(grace=0.05)


async def test_a_method_may_move_its_own_socket(serve: Serve) -> None:
    """It is told to end like any other call, and the socket is closed all the same."""
    client = await (await serve(Restless)).connect()
    await client.send({"id": 1, "method": "move"})
    assert await client.closed() == 4011


async def test_a_message_may_be_larger_than_the_bound(serve: Serve) -> None:
    """One beside it, however large, for a client that reads."""
    served = await serve(Dropping)
    client = await served.connect(max_msg_size=0)
    await client.call("subscribe", {"channel": "c"})
    for size in (1_000_000, 10, 500_000):
        await served.manager.publish("c", "e", "x" * size)
        assert len((await client.message())["data"]) == size


async def test_a_close_ends_though_the_peer_is_silent(serve: Serve) -> None:
    """A peer that neither reads nor answers the close is cut off, though megabytes wait for it."""
    served = await serve(Stream)
    silent = await served.connect_raw()
    silent.reader._transport.pause_reading()  # type: ignore[attr-defined]  # it will not see the close frame
    [websocket] = served.manager.sockets
    push(websocket, b"x" * 60_000_000)
    async with asyncio.timeout(5):
        await websocket.close(4000, "bye")
        await served.at_rest()
    assert websocket.close_code == 4000


async def test_the_first_close_decides_the_code(serve: Serve) -> None:
    """Closing again waits for the same end; sending afterwards is harmless."""
    served = await serve(Stream)
    client = await served.connect()
    [websocket] = served.manager.sockets
    first = asyncio.create_task(websocket.close(4001, "first"))
    await asyncio.sleep(0)
    receiving = asyncio.create_task(client.closed())
    await asyncio.gather(first, websocket.close(4002, "second"))
    assert await receiving == websocket.close_code == 4001
    websocket.send(b"{}")
    websocket.flush()
    assert "closed 4001" in repr(websocket)


async def test_what_was_sent_before_a_close_arrives_before_it(serve: Serve) -> None:
    """Nothing that was handed over is lost to the close."""
    served = await serve(Stream)
    client = await served.connect()
    [websocket] = served.manager.sockets
    websocket.send(b'{"last":"words"}')
    websocket.close_soon(4000)
    assert await client.receive() == {"last": "words"}
    assert await client.closed() == 4000


async def test_answers_of_a_tick_go_first_and_held_messages_wait(serve: Serve) -> None:
    """Messages of a hold follow what was sent in it, in their order."""
    served = await serve(Stream)
    client = await served.connect()
    [websocket] = served.manager.sockets
    push(websocket, b'"message"')
    websocket.send(b'"answer"')
    assert [await client.receive() for _ in range(2)] == ["answer", "message"]
    websocket.hold()
    push(websocket, b'"held 1"')
    push(websocket, b'"held 2"')
    websocket.send(b'"overtakes"')
    assert await client.receive() == "overtakes"
    websocket.release()
    assert [await client.receive() for _ in range(2)] == ["held 1", "held 2"]


async def test_a_notice_is_in_the_dialect_of_the_socket(serve: Serve) -> None:
    """``{"notice", "data"}``, or the notification ``rpc.<notice>``."""
    served = await serve(Stream)
    client = await served.connect()
    [websocket] = served.manager.sockets
    websocket.notify(Notice("gap", b'{"channel":"c"}'))
    assert await client.receive() == {"notice": "gap", "data": {"channel": "c"}}
    websocket.push_dialect = JSONRPC
    websocket.notify(Notice("drain"))
    assert await client.receive() == {"jsonrpc": "2.0", "method": "rpc.drain", "params": {"data": None}}


async def test_a_client_that_reads_slowly_is_alive(serve: Serve) -> None:
    """Its pong is behind megabytes that it reads bit by bit, for much longer than the heartbeat: it stays."""

    class Slow(Feed):
        heartbeat = 0.2
        max_queue_bytes = 50_000_000

    served = await serve(Slow)
    served.manager.tick = 0.02
    client, socket = await stalled(served)
    for number in range(400):
        await served.manager.publish("c", "e", [number, "x" * 20_000])
    transport = client.reader._transport  # type: ignore[attr-defined]  # a peer that reads now and then
    received = 0
    ends = asyncio.get_running_loop().time() + 1.0
    while asyncio.get_running_loop().time() < ends:
        transport.resume_reading()
        received += len(await client.reader.read(65_536))
        transport.pause_reading()
        await asyncio.sleep(0.02)
    assert received < 8_000_000
    assert socket in served.manager.sockets


async def test_no_message_that_waits_comes_after_the_unsubscribe_answer(serve: Serve) -> None:
    """What a lagging client does not want any more is taken out; what it wants still comes."""
    served = await serve(Dropping)
    client, socket = await stalled(served)
    client.frame(b'{"id":2,"method":"subscribe","payload":{"channel":"d"}}')
    await until(lambda: "d" in served.manager.channels)
    for number in range(400):
        await served.manager.publish("c" if number % 2 else "d", "e", [number, "x" * 20_000])
        await asyncio.sleep(0)
    await until(lambda: socket._outbox)
    client.frame(b'{"id":3,"method":"unsubscribe","payload":{"channel":"c"}}')
    await until(lambda: served.manager.channels.get_subscribed(socket) == {"d": ["*"]})
    client.reader._transport.resume_reading()  # type: ignore[attr-defined]  # it reads again
    frames = []
    while not frames or "channel" not in frames[-1] or frames[-1]["data"][0] != 398:
        frames.append(json.loads((await client.read())[1]))
    at = next(index for index, frame in enumerate(frames) if frame.get("id") == 3)
    assert all(frame["channel"] == "d" for frame in frames[at + 1 :] if "channel" in frame)


class Large(Stream):
    async def ws_rpc_large(self, payload: int) -> str:
        return "x" * payload


async def test_an_answer_may_be_larger_than_the_bound(serve: Serve) -> None:
    """A client that reads gets it, and what comes after; the bound is for what gathers."""
    served = await serve(Large)
    client = await served.connect(max_msg_size=0)
    await client.call("subscribe", {"channel": "c"})
    for _ in range(3):
        assert len(await client.call("large", 5_000_000)) == 5_000_000
    await client.send({"id": 1, "method": "large", "payload": 3_000_000})
    await until(lambda: next(iter(served.manager.sockets)).queued_bytes > 1_100_000)
    await served.manager.publish("c", "e", "beside it")
    assert len((await client.receive())["response"]) == 3_000_000
    assert (await client.message())["data"] == "beside it"


async def test_a_publisher_that_never_waits_does_not_overrun_clients_that_read(serve: Serve) -> None:
    """Five megabytes in a loop without a pause: all of it arrives, as the loop turns in between."""
    served = await serve(Large)
    client = await served.connect_raw()
    client.frame(b'{"id":1,"method":"subscribe","payload":{"channel":"c"}}')
    await client.read()

    async def publish() -> None:
        for _ in range(1000):
            await served.manager.publish("c", "e", "x" * 5_000)

    publishing = asyncio.create_task(publish())
    frame = len(text_frame(HOUSE.message(Message.of("c", "e", "x" * 5_000))))
    received = 0
    async with asyncio.timeout(WAIT):
        while received < 1000 * frame:
            received += len(await client.reader.read(65_536))
    await publishing
    assert len(served.manager.sockets) == 1
