"""The manager: lifecycle, shutdown in bounded time, and brokers of one's own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from conftest import Serve, until

from openapi_ws import LocalBroker, Publish, SocketsManager, Subscribe, WsPathMixin, channels


class Stream(WsPathMixin, Subscribe, Publish, web.View):
    async def ws_rpc_wait(self) -> None:
        await asyncio.Event().wait()

    async def ws_rpc_nap(self) -> None:
        await asyncio.sleep(0.2)

    async def ws_rpc_swallow(self) -> None:
        for _ in range(2):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()


class Traced(SocketsManager):
    def __init__(self, trace: list[str] | None = None) -> None:
        self.trace = [] if trace is None else trace

    async def start(self) -> None:
        self.trace.append("start")

    async def stop(self) -> None:
        self.trace.append(f"stop with {len(self.sockets)} sockets, {len(self.channels)} channels")


async def test_for_app_starts_and_stops_with_the_application(serve: Serve) -> None:
    """Options reach the class; at the end no socket and no channel is left."""
    trace: list[str] = []
    app = web.Application()
    served = await serve(Stream, Traced.for_app(app, trace=trace), app)
    assert trace == ["start"]
    client = await served.connect()
    await client.call("subscribe", {"channel": "c"})
    closing = asyncio.create_task(served.server.close())
    assert await client.closed() == 1012
    await closing
    assert trace == ["start", "stop with 0 sockets, 0 channels"]


async def test_shutdown_ends_in_its_time_whatever_clients_do(serve: Serve) -> None:
    """Idle, in a call, and one that never reads: all are closed, 1012, and the application ends."""
    served = await serve(Stream)
    served.manager.drain_timeout = 0.1
    idle, busy = [await served.connect() for _ in range(2)]
    await busy.send({"id": 1, "method": "wait"})
    stalled = await served.connect_raw()
    stalled.frame(b'{"id":1,"method":"subscribe","payload":{"channel":"c"}}')
    await stalled.read()
    stalled.reader._transport.pause_reading()  # type: ignore[attr-defined]  # a peer that never reads again
    for _ in range(40):
        await served.manager.publish("c", "e", "x" * 100_000)
        await asyncio.sleep(0)
    async with asyncio.timeout(8):
        closing = asyncio.create_task(served.server.close())
        assert await idle.closed() == await busy.closed() == 1012
        await closing
    assert not served.manager.sockets
    await until(lambda: len(asyncio.all_tasks()) == 1)


class Leaving(WsPathMixin, web.View):
    """A view that takes leave slowly."""

    may_end: asyncio.Event
    told: list[str]

    async def disconnected(self, code: int) -> None:
        self.told.append("begun")
        await self.may_end.wait()
        self.told.append("ended")


async def test_a_cleanup_that_is_cancelled_leaves_no_hook_half_run() -> None:
    """Also if it is cancelled twice: `disconnected` ends first, and `stop` is called."""
    trace: list[str] = []
    Leaving.may_end, Leaving.told = asyncio.Event(), trace
    app = web.Application()
    app["web_sockets"] = manager = Traced.for_app(app, trace=trace)
    app.router.add_view("/stream", Leaving)
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(f"http://127.0.0.1:{runner.addresses[0][1]}/stream"):
            pass
        await until(lambda: "begun" in trace)
        cleaning = asyncio.create_task(app.cleanup())
        for _ in range(2):
            for _ in range(5):
                await asyncio.sleep(0)
            cleaning.cancel()
        await until(lambda: cleaning.cancelling() == 2)
        Leaving.may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(cleaning, 10)
    assert trace == ["start", "begun", "ended", "stop with 0 sockets, 0 channels"]
    await runner.cleanup()
    assert not manager.sockets


async def test_a_broker_that_hangs_does_not_keep_the_application(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its time to unsubscribe, and no more."""
    monkeypatch.setattr(channels, "CLEAR_TIMEOUT", 0.01)

    class Hanging(SocketsManager):
        async def unsubscribe(self, channel: str) -> None:
            await asyncio.Event().wait()

    served = await serve(Stream, Hanging)
    client = await served.connect()
    await client.call("subscribe", {"channel": "c"})
    closing = asyncio.create_task(served.server.close())
    assert await client.closed() == 1012
    async with asyncio.timeout(8):
        await closing
    await until(lambda: len(asyncio.all_tasks()) == 1)


class Whose(WsPathMixin, web.View):
    """A view whose clients say who they are."""

    def identity(self) -> str | None:
        return self.request.query.get("user")


@pytest.mark.parametrize(
    ("limit", "status"),
    [("max_sockets", 503), ("max_sockets_per_address", 429), ("max_sockets_per_identity", 429)],
)
async def test_connections_are_limited_before_the_upgrade(serve: Serve, limit: str, status: int) -> None:
    """The one too many is told when to come back; one that leaves makes room; another identity has its own."""
    served = await serve(Whose)
    setattr(served.manager, limit, 2)
    clients = [await served.connect("/stream?user=ada") for _ in range(2)]
    for _ in range(3):
        assert await served.refused("/stream?user=ada") == (status, "5")
    if limit == "max_sockets_per_identity":
        await served.connect("/stream?user=bob")
        await served.connect("/stream")
    await clients[0].ws.close()
    await until(lambda: len(served.manager.sockets) < (4 if limit == "max_sockets_per_identity" else 2))
    await until(lambda: served.manager._admitted["address", "127.0.0.1"] < len(clients) + 2)
    await served.connect("/stream?user=ada")
    assert served.manager.server_info()["refused"] == {limit.rpartition("_")[2]: 3}


async def test_draining_sees_clients_off_one_by_one(serve: Serve) -> None:
    """Each is told its own moment, calls in flight may finish, new handshakes are refused, then 1012."""
    served = await serve(Stream)
    clients = [await served.connect() for _ in range(20)]
    await clients[0].send({"id": "nap", "method": "nap"})
    await until(lambda: served.manager.metrics.opened == 20)
    draining = asyncio.create_task(served.manager.drain(5))
    notices = [await client.receive() for client in clients]
    assert {notice["notice"] for notice in notices} == {"drain"}
    moments = [notice["data"]["reconnect_in"] for notice in notices]
    assert len(set(moments)) > 10
    assert max(moments) <= 20 / 500
    assert {notice["data"]["deadline"] for notice in notices} == {5}
    assert not served.manager.ready
    assert await served.refused() == (503, "1")
    assert (await clients[0].receive())["id"] == "nap"
    assert {await client.closed() for client in clients} == {1012}
    await draining
    await served.at_rest()


async def test_calls_that_do_not_end_in_time_are_answered(serve: Serve) -> None:
    """-32014, and their methods are cancelled; one that swallows it does not keep the socket."""
    served = await serve(Stream)
    client = await served.connect()
    for method in ("wait", "swallow"):
        await client.send({"id": method, "method": method})
    await until(lambda: len(next(iter(served.manager.sockets)).calls or ()) == 2)
    async with asyncio.timeout(4):
        draining = asyncio.create_task(served.manager.drain(0.1))
        assert (await client.receive())["notice"] == "drain"
        assert (await client.receive())["error"] == {"message": "Server is draining", "code": -32014}
        assert await client.closed() == 1012
        await draining
        await served.at_rest()
        await until(lambda: len(asyncio.all_tasks()) <= 3)


async def test_a_second_signal_skips_the_wait(tmp_path: Path) -> None:
    """SIGTERM drains, for as long as a call runs; SIGTERM again ends the process at once, with its clean-up done."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", program, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        port = int(await asyncio.wait_for(process.stdout.readline(), 10))
        async with aiohttp.ClientSession() as session, session.ws_connect(f"http://127.0.0.1:{port}/stream") as ws:
            await ws.send_json({"id": 1, "method": "wait"})
            await ws.send_json({"id": 2, "method": "echo"})
            await asyncio.wait_for(ws.receive(), 10)
            process.terminate()
            assert (await asyncio.wait_for(ws.receive_json(), 10))["notice"] == "drain"
            process.terminate()
            assert (await asyncio.wait_for(ws.receive(), 10)).data == 1012
        assert await asyncio.wait_for(process.stdout.readline(), 10) == b"cleaned up\n"
        assert await asyncio.wait_for(process.wait(), 10) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


PROGRAM = """
import asyncio
from aiohttp import web
from openapi_ws import SocketsManager, WsPathMixin

class Stream(WsPathMixin, web.View):
    async def ws_rpc_wait(self):
        await asyncio.sleep(60)
    async def ws_rpc_echo(self):
        pass

async def clean_up(app):
    yield
    print("cleaned up", flush=True)

app = web.Application()
app["web_sockets"] = SocketsManager.for_app(app)
app["web_sockets"].drain_timeout = 60
app.cleanup_ctx.append(clean_up)
app.router.add_view("/stream", Stream)
web.run_app(app, host="127.0.0.1", port=0, print=lambda text: print(text.split(":")[2].split(" ")[0], flush=True))
"""


async def test_a_new_client_is_refused_while_shutting_down(serve: Serve) -> None:
    """503, with when to come back."""
    served = await serve(Stream)
    await served.manager.close_sockets()
    assert await served.refused() == (503, "1")


async def test_a_bare_manager_works_and_says_once_what_is_missing(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """Local brokering included; the line to write is in one warning, at the first connection."""
    served = await serve(Stream, SocketsManager())
    assert not caplog.records
    for _ in range(3):
        client = await served.connect()
        await client.call("subscribe", {"channel": "c"})
        await client.call("publish", {"channel": "c", "event": "e"})
        assert (await client.message())["event"] == "e"
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert 'app["web_sockets"] = SocketsManager.for_app(app)' in record.getMessage()
    await served.manager.close_sockets()


async def test_server_info_counts(serve: Serve) -> None:
    """Connections, and listeners by channel and event."""
    served = await serve(Stream)
    clients = [await served.connect() for _ in range(3)]
    for client in clients[:2]:
        await client.call("subscribe", {"channel": "c", "event": "e"})
    info = served.manager.server_info()
    assert (info["connections"], info["channels"]) == (3, {"c": {"e": 2}})
    assert {str(ws) for ws in served.manager.sockets} == {ws.socket_id for ws in served.manager.sockets}


async def test_add_and_remove_are_hooks(serve: Serve) -> None:
    """A subclass sees each client come and go once."""
    seen: list[str] = []

    class Counting(SocketsManager):
        def add(self, ws: Any) -> None:
            super().add(ws)
            seen.append("add")

        def remove(self, ws: Any) -> None:
            super().remove(ws)
            seen.append("remove")

    served = await serve(Stream, Counting)
    client = await served.connect()
    await client.ws.close()
    await served.at_rest()
    assert seen == ["add", "remove"]


async def test_a_local_broker_takes_its_time_and_keeps_the_order() -> None:
    """With a latency, publish returns after delivery, and messages of one publisher stay in order."""
    broker = LocalBroker(latency=0.001)
    heard: list[int] = []

    async def hear(channel: str, event: str, data: Any) -> None:
        heard.append(data)

    await broker.channels.register("c", "*", hear)
    await asyncio.gather(*(broker.publish("c", "e", number) for number in range(50)))
    assert heard == list(range(50))
    await broker.channels.clear()
