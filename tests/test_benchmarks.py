"""The benchmarks: every answer is right, and a wrong one would be seen. How fast anything is, is not tested here."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from benchmarks.entries import ENTRIES
from benchmarks.figures import figure
from benchmarks.workloads import WORKLOADS

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="epoll and /proc"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="the load generator wants a C compiler"),
]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("load") / "wsload"
    source = ROOT / "benchmarks" / "wsload.c"
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", path, source], check=True)
    return path


async def measure(load: Path, port: int, mode: str, **options: Any) -> dict[str, Any]:
    """Run the load generator for a moment."""
    words = {"port": port, "conns": 2, "window": 4, "warm": 0, "seconds": 0.2, "drain": 0.2, "expect": "!"} | options
    process = await asyncio.create_subprocess_exec(
        load, mode, *(f"{key}={value}" for key, value in words.items()), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(30):
        figures: dict[str, Any] = json.loads((await process.communicate())[0])
    return figures


class Echo:
    """A server of calls and of one channel, whose *fault* happens to the tenth answer or message."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.count = 0
        self.subscribers: list[web.WebSocketResponse] = []

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        async for message in ws:
            if message.data == "subscribe":
                self.subscribers.append(ws)
                await ws.send_str("subscribed")
                continue
            await self.answer(ws, f"{message.data}!")
        return ws

    async def answer(self, ws: web.WebSocketResponse, text: str) -> None:
        for receiver in [receiver for receiver in self.subscribers if not receiver.closed] or [ws]:
            self.count += 1
            fault = self.fault if self.count == 10 else ""
            if fault == "closes":
                await receiver.close()
            elif fault == "answers another call":
                await receiver.send_str("99999999!")
            elif fault == "says something else":
                await receiver.send_str(text.replace("!", "?"))
            elif fault != "is silent":
                await receiver.send_str(text)
            if fault == "answers twice":
                await receiver.send_str(text)


@pytest.mark.parametrize("mode", ["echo", "rate", "fanout"])
@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ("", {}),
        ("is silent", {"missing"}),
        ("answers twice", {"bad"}),
        ("answers another call", {"bad"}),
        ("says something else", {"bad"}),
        ("closes", {"dead"}),
    ],
)
async def test_a_wrong_answer_is_seen(aiohttp_server: Any, load: Path, mode: str, fault: str, seen: set[str]) -> None:
    """Of a server that does one thing wrong the load generator says so, and of one that does none it says nothing."""
    app = web.Application()
    app.router.add_get("/", Echo(fault).serve)
    server = await aiohttp_server(app)
    options = {"hello": "subscribe", "answered": 0} if mode == "fanout" else {}
    figures = await measure(load, server.port, mode, **options)
    assert figures["replies"] > 0
    found = {name for name in ("bad", "missing", "dead") if figures[name]}
    assert found >= seen if seen else not found, figures


def test_a_ratio_is_the_median_of_pairs_within_a_round() -> None:
    """A machine that was slow for one round was slow for both; a cell that is missing in a round has no pair there."""
    rates = [(10, 20), (1, 2), (100, 300), (5, None)]
    rounds = [{"raw": {"rate": a}} | ({"ours": {"rate": b}} if b else {}) for a, b in rates]
    found = figure(rounds, "ours", "raw", "rate_ratio")
    assert found is not None
    assert (found.median, found.least, found.greatest) == (2, 2, 3)


def test_every_cell_has_its_yardstick() -> None:
    """Each workload compares each of its cells with one that it measures."""
    for workload in WORKLOADS.values():
        cells = workload.cells(ENTRIES)
        assert cells
        assert {cell.yardstick for cell in cells} <= {cell.label for cell in cells}, workload.name


async def test_the_short_form_finds_every_answer_right() -> None:
    """``python -m benchmarks --quick`` measures with nothing but the test environment, and ends well."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks",
        "--quick",
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(300):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    print(output.decode())
    assert process.returncode == 0
    assert "WRONG" not in output.decode()
