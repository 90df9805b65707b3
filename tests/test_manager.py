"""The manager: lifecycle, shutdown in bounded time, and brokers of one's own."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from conftest import Serve, until

from openapi_ws import LocalBroker, Publish, SocketsManager, Subscribe, WsPathMixin, channels


class Stream(WsPathMixin, Subscribe, Publish, web.View):
    async def ws_rpc_wait(self) -> None:
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


async def test_shutdown_waits_for_nobody(serve: Serve) -> None:
    """Idle, in a call, and one that never reads: all are closed at once, 1012, and the application ends."""
    served = await serve(Stream)
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


async def test_a_new_client_is_refused_while_shutting_down(serve: Serve) -> None:
    """503, with when to come back."""
    served = await serve(Stream)
    await served.manager.close_sockets()
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await served.connect()
    assert refused.value.status == 503
    assert refused.value.headers is not None
    assert refused.value.headers["Retry-After"] == "1"


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
