"""aio-openapi 3.2.1's own `ApiPath` views, served by this library; run by ``tox -e ancestor``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web
from conftest import Serve
from openapi.spec import ApiPath

from openapi_ws import Publish, Subscribe, WsPathMixin, ws_rpc


@dataclass
class Echo:
    message: str


class Methods:
    @ws_rpc(body_schema=Echo, response_schema=Echo)
    async def ws_rpc_echo(self, payload: Any) -> Any:
        return payload

    async def post(self) -> web.Response:
        return web.json_response({"posted": True})


class PathFirst(ApiPath, Methods, WsPathMixin, Subscribe, Publish):
    pass


class MixinFirst(WsPathMixin, Publish, Subscribe, Methods, ApiPath):
    pass


@pytest.mark.parametrize("view", [PathFirst, MixinFirst])
async def test_an_api_path_serves_its_socket_in_both_base_orders(serve: Serve, view: type[Any]) -> None:
    """Calls, pub/sub, the view's HTTP methods beside it, and the ancestor's answer to what is no handshake."""
    served = await serve(view)
    client = await served.connect()
    assert await client.call("echo", {"message": "hello"}) == {"message": "hello"}
    assert (await client.error("echo", {}))["errors"] == {"message": "required"}
    assert await client.call("subscribe", {"channel": "c"}) == {"subscribed": {"c": ["*"]}}
    await client.call("publish", {"channel": "c", "event": "e", "data": 1})
    assert await client.message() == {"channel": "c", "event": "e", "data": 1}
    async with served.session.post(served.server.make_url("/stream")) as response:
        assert await response.json() == {"posted": True}
    async with served.session.get(served.server.make_url("/stream")) as response:
        assert response.status == 400
        assert await response.json() == {"message": "Unable to open websocket connection"}
