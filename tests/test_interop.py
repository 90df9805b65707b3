"""Clients that others make for JSON-RPC 2.0 over WebSockets, unmodified and in node, against this server."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from conftest import WAIT, Serve, skip
from pydantic import BaseModel, Field

from openapi_ws import RpcError, Subscribe, WsPathMixin, ws_rpc

HERE = Path(__file__).parent / "interop"
INSTALL = ("install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", "--omit=optional")
INSTALL_TIMEOUT = 300.0


def is_installed() -> bool:
    """Each client is there in the version that package.json names."""
    try:
        wanted = json.loads((HERE / "package.json").read_text())["dependencies"]
        found = {
            name: json.loads((HERE / f"node_modules/{name}/package.json").read_text())["version"] for name in wanted
        }
    except FileNotFoundError:
        return False
    return bool(found == wanted)


@pytest.fixture(scope="session")
def node() -> str:
    """Node, with the clients installed beside the scripts."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        skip("no node or no npm")
    assert node and npm  # skip has raised otherwise
    if not is_installed():
        try:
            subprocess.run([npm, *INSTALL], cwd=HERE, check=True, capture_output=True, timeout=INSTALL_TIMEOUT)
        except subprocess.SubprocessError as error:
            skip(f"npm cannot install the clients: {error}")
    return node


class Visit(BaseModel, str_strip_whitespace=True):
    """Who would like to be in which room."""

    room: str = Field(min_length=1, max_length=30)
    name: str = Field(min_length=1, max_length=30)


class Words(BaseModel):
    """What somebody says."""

    text: str = Field(min_length=1, max_length=500)


class Chat(WsPathMixin, Subscribe, web.View):
    """Rooms to enter and to speak in."""

    names: ClassVar[set[tuple[str, str]]] = set()
    visit: Visit | None = None

    @ws_rpc(ordered=True, reply_first=True)
    async def ws_rpc_enter(self, payload: Visit) -> dict[str, Any]:
        if (payload.room, payload.name) in self.names:
            raise RpcError(1, f"Somebody in {payload.room} is called {payload.name} already")
        self.names.add((payload.room, payload.name))
        await self.ws_rpc_leave()
        self.visit = payload
        await self.join(f"room:{payload.room}")
        await self.sockets.publish(f"room:{payload.room}", "entered", payload.name, exclude=self.websocket)
        present = sorted(name for room, name in self.names if room == payload.room)
        return {"room": payload.room, "name": payload.name, "present": present}

    @ws_rpc(ordered=True)
    async def ws_rpc_say(self, payload: Words) -> None:
        if self.visit is None:
            raise RpcError(2, "Enter a room first")
        said = {"text": payload.text, "name": self.visit.name, "at": datetime.now(UTC)}
        await self.sockets.publish(f"room:{self.visit.room}", "said", said)

    @ws_rpc(ordered=True)
    async def ws_rpc_leave(self) -> None:
        if self.visit is not None:
            visit, self.visit = self.visit, None
            self.names.remove((visit.room, visit.name))
            await self.leave(f"room:{visit.room}")


@pytest.fixture
async def chat(serve: Serve) -> TestServer:
    """The rooms, served on loopback."""
    Chat.names.clear()
    return (await serve(Chat)).server


async def run(node: str, script: str, server: TestServer, path: str) -> list[tuple[str, Any]]:
    """What *script* reports, line by line."""
    url = str(server.make_url(path).with_scheme("ws"))
    process = await asyncio.create_subprocess_exec(
        node, HERE / script, url, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), WAIT)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, err.decode()) == (0, "")
    return [pair for line in out.splitlines() for pair in json.loads(line).items()]


def message(event: str, data: object) -> tuple[str, Any]:
    return "message", {"channel": "room:attic", "event": event, "data": data}


def said(text: str) -> tuple[str, Any]:
    return message("said", {"text": text, "name": "Ada"})


def timeless(reports: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The reports, after taking from what was said when that was."""
    for what, value in reports:
        if what == "message" and value["event"] == "said":
            assert datetime.fromisoformat(value["data"].pop("at"))
    return reports


class Stream(WsPathMixin, web.View):
    """A method that never ends, and one that takes an array."""

    async def connected(self) -> None:
        self.begun, self.cancelled = asyncio.Event(), False

    async def ws_rpc_wait(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled = True

    async def ws_rpc_begun(self) -> None:
        await self.begun.wait()

    async def ws_rpc_cancelled(self) -> bool:
        return self.cancelled

    async def ws_rpc_sum(self, payload: list[int]) -> int:
        return sum(payload)


async def test_rpc_websockets_enters_and_speaks(node: str, chat: TestServer) -> None:
    """It calls by name and by position, notifies, subscribes, learns errors with their codes, and gets messages."""
    assert timeless(await run(node, "rpc-websockets.mjs", chat, "/stream")) == [
        ("result", {"subscribed": {"room:attic": ["*"]}}),
        ("result", {"room": "attic", "name": "Ada", "present": ["Ada"]}),
        message("entered", "Ada"),
        ("result", None),
        said("by position"),
        said("by a notification"),
        ("error", {"code": 1, "message": "Somebody in attic is called Ada already"}),
        ("error", {"code": -32602, "message": "Invalid params"}),
        ("error", {"code": -32601, "message": "Method not found"}),
        ("result", {"subscribed": {}}),
        ("result", None),
    ]


async def test_vscode_ws_jsonrpc_enters_and_speaks(node: str, chat: TestServer) -> None:
    """Its first id is 0, several arguments go by position, and a notification gets no answer that it would log."""
    assert timeless(await run(node, "vscode-ws-jsonrpc.mjs", chat, "/stream")) == [
        ("result", {"room": "attic", "name": "Ada", "present": ["Ada"]}),
        ("first id", 0),
        ("result", {"subscribed": {"room:attic": ["*"], "room:cellar": ["*"]}}),
        ("result", None),
        said("by name"),
        said("by a notification"),
        ("error", {"code": -32602, "message": "Invalid params"}),
        ("error", {"code": -32601, "message": "Method not found"}),
        ("result", None),
        ("error", {"code": 2, "message": "Enter a room first"}),
    ]


async def test_vscode_ws_jsonrpc_takes_a_call_back(node: str, serve: Serve) -> None:
    """Its cancellation token sends ``$/cancelRequest``, a notification; and it wraps an array in an array."""
    served = await serve(Stream)
    assert await run(node, "cancel.mjs", served.server, "/stream") == [
        ("result", None),
        ("error", {"code": -32013, "message": "Call cancelled"}),
        ("cancel", {"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {"id": 0}}),
        ("result", True),
        ("result", 7),
        ("params", [[1, 2, 4]]),
    ]
