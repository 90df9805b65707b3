"""The aiohttp door: any class view, any application, hooks, refusals."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from aiohttp_pydantic import PydanticView
from conftest import Serve, until
from pydantic import BaseModel

from openapi_ws import SetupError, SocketsManager, Subscribe, WsPathMixin

SOCKETS = web.AppKey("sockets", SocketsManager)


class Body(BaseModel):
    n: int


class Methods:
    """What each of the views below serves."""

    request: web.Request

    async def ws_rpc_room(self) -> str:
        return self.request.match_info.get("room", "none")

    async def post(self) -> web.Response:
        return web.Response(text="posted")


class MixinFirst(WsPathMixin, Methods, web.View):
    pass


class ViewFirst(web.View, Methods, WsPathMixin):
    pass


class PydanticLast(WsPathMixin, Methods, PydanticView):
    async def post(self, body: Body) -> web.Response:
        return web.Response(text="posted")


class PydanticFirst(PydanticView, Methods, WsPathMixin):
    async def post(self, body: Body) -> web.Response:
        return web.Response(text="posted")


@pytest.mark.parametrize("view", [MixinFirst, ViewFirst, PydanticLast, PydanticFirst])
@pytest.mark.parametrize("nesting", [0, 2])
async def test_any_class_view_in_any_order_of_bases_at_any_depth(
    serve: Serve, view: type[web.View], nesting: int
) -> None:
    """The socket, its path parameters, and the view's own HTTP method beside it; the manager is the root's."""
    inner, prefix = web.Application(), ""
    inner.router.add_view("/rooms/{room}", view)
    for level in range(nesting):
        outer = web.Application()
        outer.add_subapp(f"/level{level}", inner)
        inner, prefix = outer, f"/level{level}{prefix}"
    served = await serve(MixinFirst, app=inner)
    client = await served.connect(f"{prefix}/rooms/attic")
    assert await client.call("room") == "attic"
    assert len(served.manager.sockets) == 1
    async with served.session.post(served.server.make_url(f"{prefix}/rooms/attic"), json={"n": 1}) as response:
        assert await response.text() == "posted"


async def test_the_manager_may_be_under_an_app_key(serve: Serve) -> None:
    """`SOCKETS_KEY` is a string or an AppKey, e.g. one of the application's own."""

    class Keyed(MixinFirst):
        SOCKETS_KEY = SOCKETS

    app = web.Application()
    app[SOCKETS] = manager = SocketsManager.for_app(app)
    served = await serve(MixinFirst, app=app)
    app.router._frozen = False  # the fixture has started the application; the second view is added all the same
    app.router.add_view("/keyed", Keyed)
    await served.connect("/keyed")
    assert len(manager.sockets) == 1


async def test_an_application_without_manager_says_what_to_write() -> None:
    """The first handshake fails with the line that is missing, in the log; the client gets a 500."""
    app = web.Application()
    app.router.add_view("/stream", MixinFirst)
    server = TestServer(app)
    await server.start_server()
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]  # to have the exception, not its text
    logging.getLogger("aiohttp.server").addHandler(handler)
    async with aiohttp.ClientSession() as session, session.get(server.make_url("/stream")) as response:
        assert response.status == 500
    logging.getLogger("aiohttp.server").removeHandler(handler)
    await server.close()
    assert records[0].exc_info is not None
    assert isinstance(records[0].exc_info[1], SetupError)
    assert 'write app["web_sockets"] = SocketsManager.for_app(app)' in str(records[0].exc_info[1])


async def test_what_is_no_handshake_is_answered_400(serve: Serve) -> None:
    """JSON, with the ancestor's message."""
    served = await serve(MixinFirst)
    async with served.session.get(served.server.make_url("/stream")) as response:
        assert response.status == 400
        assert await response.json() == {"message": "Unable to open websocket connection"}


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([], None),
        (["openapi-ws.v1"], "openapi-ws.v1"),
        (["jsonrpc-2.0"], "jsonrpc-2.0"),
        (["other", "jsonrpc-2.0"], "jsonrpc-2.0"),
        (["jsonrpc-2.0", "openapi-ws.v1"], "jsonrpc-2.0"),
    ],
)
async def test_a_known_sub_protocol_is_chosen(serve: Serve, offered: list[str], chosen: str | None) -> None:
    """The first that the client names and the library knows."""
    client = await (await serve(MixinFirst)).connect(protocols=offered)
    assert client.ws.protocol == chosen


async def test_only_unknown_sub_protocols_are_refused(serve: Serve) -> None:
    """A browser would fail later, without a reason; the answer names what is supported."""
    served = await serve(MixinFirst)
    headers = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Protocol": "graphql-ws, mqtt",
    }
    async with served.session.get(served.server.make_url("/stream"), headers=headers) as response:
        assert response.status == 400
        assert await response.json() == {"message": "Sub-protocols supported: openapi-ws.v1, jsonrpc-2.0"}


async def test_no_exception_leaves_the_handler(serve: Serve) -> None:
    """A middleware that turns exceptions into HTTP answers never sees one: it would write it into the socket."""
    seen: list[Exception] = []

    @web.middleware
    async def errors(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
        try:
            return await handler(request)
        except Exception as error:
            seen.append(error)
            return web.json_response({"error": "oops"}, status=500)

    class Failing(Hooked):
        fail = ("connected", "disconnected", "on_error")

    Failing.told = []
    served = await serve(Failing, app=web.Application(middlewares=[errors]))
    client = await served.connect()
    assert await client.closed() == 1011
    await served.at_rest()
    await until(lambda: "disconnected" in {what for what, _ in Failing.told})
    assert not seen


class Hooked(WsPathMixin, Subscribe, web.View):
    """A view that tells which hooks ran, and fails in those named."""

    told: list[tuple[str, Any]]
    fail: tuple[str, ...] = ()
    gate: asyncio.Event | None = None

    async def connected(self) -> None:
        self.tell("connected", None)
        if self.gate:
            await self.gate.wait()
        self.tell("ready", None)

    async def disconnected(self, code: int) -> None:
        self.tell("disconnected", code)

    def on_error(self, call: Any, exc: Exception) -> None:
        self.tell("on_error", str(exc))

    def tell(self, what: str, detail: Any) -> None:
        self.told.append((what, detail))
        if what in self.fail:
            raise ValueError(what)

    async def ws_rpc_call(self) -> None:
        self.tell("call", None)

    async def ws_rpc_close(self, payload: list[Any]) -> None:
        self.websocket.close_soon(*payload)

    async def ws_rpc_fail(self) -> None:
        raise KeyError


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Hooked.told = []
    Hooked.gate = None


async def ended() -> list[tuple[str, Any]]:
    await until(lambda: any(what == "disconnected" for what, _ in Hooked.told))
    return Hooked.told


@pytest.mark.parametrize(
    ("payload", "code", "reason"),
    [([4503, "kicked"], 4503, "kicked"), ([], 1000, ""), ([4000, "ä" * 100], 4000, "ä" * 61)],
)
async def test_client_and_hook_learn_code_and_reason(serve: Serve, payload: list[Any], code: int, reason: str) -> None:
    """A reason is cut at 123 bytes, between characters (RFC 6455 §5.5: a control frame holds 125)."""
    raw = await (await serve(Hooked)).connect_raw()

    raw.frame(json.dumps({"id": 1, "method": "close", "payload": payload}).encode())
    assert await raw.read() == (8, code.to_bytes(2) + reason.encode())
    raw.frame(code.to_bytes(2), opcode=8)
    assert await ended() == [("connected", None), ("ready", None), ("disconnected", code)]


@pytest.mark.parametrize(
    ("opcode", "payload", "code"),
    [
        (8, (1001).to_bytes(2), 1001),
        (8, (4321).to_bytes(2) + b"mine", 4321),
        (8, b"", 1005),
        (8, b"x", 1002),
        (3, b"reserved opcode", 1002),
        (1, b"x" * 70_000, 1009),
        (None, b"", 1006),
    ],
    ids=["1001", "own code", "no code", "bad close", "bad opcode", "too big", "lost"],
)
async def test_the_hook_learns_why_the_client_is_gone(
    serve: Serve, opcode: int | None, payload: bytes, code: int
) -> None:
    """The client's code, that of its broken frame, or 1006 where the link was lost; once each."""
    served = await serve(Hooked)
    raw = await served.connect_raw()
    if opcode is None:
        raw.writer.transport.abort()
    else:
        raw.frame(payload, opcode=opcode)
        answer = code.to_bytes(2) if code != 1005 else (1000).to_bytes(2)
        assert (await raw.read())[1][:2] == answer
    assert await ended() == [("connected", None), ("ready", None), ("disconnected", code)]
    await served.at_rest()


async def test_no_method_begins_before_connected_has_ended(serve: Serve) -> None:
    """Calls wait, and the socket is read meanwhile."""
    Hooked.gate = asyncio.Event()
    client = await (await serve(Hooked)).connect(autoping=False)
    await client.send({"id": 1, "method": "call"})
    await client.ws.ping()
    assert (await client.ws.receive()).type is aiohttp.WSMsgType.PONG
    assert Hooked.told == [("connected", None)]
    Hooked.gate.set()
    assert (await client.receive())["id"] == 1
    assert Hooked.told == [("connected", None), ("ready", None), ("call", None)]


async def test_a_client_that_goes_while_connected_runs_leaves_nothing(serve: Serve) -> None:
    """The hook is cancelled, and its counterpart runs all the same."""
    Hooked.gate = asyncio.Event()
    served = await serve(Hooked)
    client = await served.connect()
    await client.send({"id": 1, "method": "call"})
    await client.ws.close()
    assert await ended() == [("connected", None), ("disconnected", 1000)]
    await served.at_rest()


async def test_a_hook_that_is_cancelled_from_within_has_failed(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """It awaited something that was cancelled; nobody cancelled the hook: 1011, and `disconnected` runs."""
    served = await serve(Cancelled)
    client = await served.connect()
    await client.send({"id": 1, "method": "call"})
    assert await client.closed() == 1011
    await served.at_rest()
    await until(lambda: caplog.text.count("was cancelled from within") == 2)


class Cancelled(WsPathMixin, web.View):
    async def connected(self) -> None:
        raise asyncio.CancelledError

    async def disconnected(self, code: int) -> None:
        raise asyncio.CancelledError


class Failing(SocketsManager):
    """A manager whose own hooks fail."""

    def add(self, ws: Any) -> None:
        super().add(ws)
        raise OSError("add")

    def remove(self, ws: Any) -> None:
        super().remove(ws)
        raise OSError("remove")


async def test_a_manager_that_fails_costs_the_socket_alone(serve: Serve) -> None:
    """Its `add` and `remove` are others' code, too: 1011, and no exception leaves the handler."""
    seen: list[Exception] = []

    @web.middleware
    async def errors(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
        try:
            return await handler(request)
        except Exception as error:
            seen.append(error)
            raise

    served = await serve(Hooked, Failing, web.Application(middlewares=[errors]))
    client = await served.connect()
    assert await client.closed() == 1011
    await served.at_rest()
    assert not seen


@pytest.mark.parametrize("hook", ["connected", "ready", "on_error", "disconnected"])
async def test_a_hook_that_fails_costs_its_socket_alone(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    """1011, logged, `disconnected` once, and nothing is left; the next client is served."""
    served = await serve(Hooked)
    monkeypatch.setattr(Hooked, "fail", (hook,))
    client = await served.connect()
    await client.send({"id": 0, "method": "subscribe", "payload": {"channel": "c"}})
    await client.send({"id": 1, "method": "fail"})
    if hook == "disconnected":
        await client.ws.close()
    else:
        assert await client.closed() == 1011
    told = [what for what, _ in await ended()]
    assert told.count("disconnected") == told.count("connected") == 1
    await served.at_rest()
    monkeypatch.setattr(Hooked, "fail", ())
    assert await (await served.connect()).call("call") is None


async def test_a_cancelled_handler_leaves_nothing(serve: Serve) -> None:
    """With `handler_cancellation`, aiohttp cancels the handler when the link is lost; all is cleaned up."""
    app = web.Application()
    app["web_sockets"] = manager = SocketsManager.for_app(app)
    app.router.add_view("/stream", Hooked)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with aiohttp.ClientSession() as session:
        for _ in range(5):
            ws = await session.ws_connect(f"http://127.0.0.1:{runner.addresses[0][1]}/stream")
            await ws.send_json({"id": 1, "method": "subscribe", "payload": {"channel": "c"}})
            await ws.receive()
            ws._response.close()
        await until(lambda: [what for what, _ in Hooked.told].count("disconnected") == 5)
        assert not manager.sockets
        await until(lambda: not len(manager.channels))
    await runner.cleanup()


def test_a_class_that_is_no_view_is_told_so() -> None:
    """The mixin alone cannot serve; the error names the line to write."""

    class Alone(WsPathMixin):
        pass

    with pytest.raises(SetupError, match=r"write class Alone\(WsPathMixin, web\.View\)"):
        Alone()


@pytest.mark.parametrize(("size", "is_served"), [(64 * 1024, True), (64 * 1024 + 1, False)])
async def test_a_frame_may_be_as_large_as_the_limit(serve: Serve, size: int, is_served: bool) -> None:
    """`max_frame_size` bytes are read; one more closes the socket with 1009."""
    raw = await (await serve(MixinFirst)).connect_raw()
    raw.frame(b'{"id":1,"method":"room","x":"' + b"x" * (size - 31) + b'"}')
    opcode, payload = await raw.read()
    assert (opcode, payload[:2]) == ((1, b'{"') if is_served else (8, (1009).to_bytes(2)))
