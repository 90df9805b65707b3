"""Clients that others make for JSON-RPC 2.0 over WebSockets, unmodified and in node, against this server."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from conftest import WAIT, Serve, skip

from openapi_ws import WsPathMixin

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


@pytest.fixture
async def example(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TestServer]:
    """The example of this checkout, served on loopback."""
    monkeypatch.syspath_prepend(HERE.parents[1])
    from example.app import create_app

    async with TestServer(create_app()) as server:
        yield server


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
    """What the example has no use for: a method that never ends, and one that takes an array."""

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


async def test_rpc_websockets_talks_to_the_example(node: str, example: TestServer) -> None:
    """It calls by name and by position, notifies, subscribes, learns errors with their codes, and gets messages."""
    assert timeless(await run(node, "rpc-websockets.mjs", example, "/ws")) == [
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


async def test_vscode_ws_jsonrpc_talks_to_the_example(node: str, example: TestServer) -> None:
    """Its first id is 0, several arguments go by position, and a notification gets no answer that it would log."""
    assert timeless(await run(node, "vscode-ws-jsonrpc.mjs", example, "/ws")) == [
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
