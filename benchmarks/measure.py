"""One sample: a fresh server on one core, the load on another."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .entries import Entry
from .workloads import Workload

ROOT = Path(__file__).parent.parent
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
SERVER_CORE, LOAD_CORE = CORES[0], CORES[-1]
START_TIMEOUT = 30
"""Seconds that a server has to answer its first handshake."""
ENOUGH = 0.9
"""Share of its core that a busy server must have owned."""
TRIES = 3
FIRST_ID = "10000000"

Sample = dict[str, Any]


class SampleError(Exception):
    """A server did not start, or a client could not measure it."""


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Let what is started meanwhile run on *core* only."""
    if len(CORES) > 1:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        if len(CORES) > 1:
            os.sched_setaffinity(0, CORES)


@contextlib.contextmanager
def serving(command: list[str], path: str) -> Iterator[tuple[int, int]]:
    """Run a server, which inherits its listening socket; its port and process id, once it answers a handshake."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        os.set_inheritable(listener.fileno(), True)
        port, words = listener.getsockname()[1], [word.replace("FD", str(listener.fileno())) for word in command]
        with pinned(SERVER_CORE):
            process = subprocess.Popen(words, cwd=ROOT, pass_fds=[listener.fileno()], stderr=subprocess.PIPE, text=True)
    try:
        shake_hands(port, path, process)
        yield port, process.pid
    finally:
        process.kill()
        process.communicate()


def shake_hands(port: int, path: str, process: subprocess.Popen[str]) -> None:
    """Return when the server has answered a handshake."""
    request = (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    answer = b""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), START_TIMEOUT) as client:
        client.sendall(request.encode())
        answer = client.recv(4096)
    if not answer.startswith(b"HTTP/1.1 101"):
        process.kill()
        raise SampleError(f"no handshake: {answer[:80]!r} {process.communicate()[1][-500:]}")


def sample(
    load: Path, python: str, entry: Entry, workload: Workload, options: dict[str, int | float], seconds: float
) -> Sample:
    """Measure one cell once, or again while its server did not own its core."""
    best: Sample = {}
    for _ in range(TRIES if workload.is_busy and len(CORES) > 1 else 1):
        figures = _sample(load, python, entry, workload, options, seconds)
        if not best or figures["server_share"] > best["server_share"]:
            best = figures
        if best["server_share"] >= ENOUGH:
            break
    return best


def _sample(
    load: Path, python: str, entry: Entry, workload: Workload, options: dict[str, int | float], seconds: float
) -> Sample:
    command = [python, "-m", f"benchmarks.peers.{entry.module}", "FD", *(["uvloop"] if entry.uvloop else [])]
    if entry.module.endswith(".js"):
        command = ["node", str(ROOT / "benchmarks" / "peers" / entry.module), "FD"]
    path = entry.paths.get(workload.kind, "/")
    with serving(command, path) as (port, pid):
        words = [workload.mode, f"port={port}", f"pid={pid}", f"path={path}", f"seconds={seconds}"]
        words += [f"{key}={value}" for key, value in options.items()] + list(said(entry, workload, options))
        with pinned(LOAD_CORE):
            done = subprocess.run([load, *words], capture_output=True, text=True, timeout=180, check=False)
    if done.returncode:
        raise SampleError(f"{entry.name}, {workload.name}: {done.stderr.strip()}")
    figures: Sample = json.loads(done.stdout)
    return figures


def said(entry: Entry, workload: Workload, options: dict[str, int | float]) -> Iterator[str]:
    """What the clients of a workload say to a server."""
    wire, pad = entry.wire, "x" * (workload.size - len(FIRST_ID))
    acks = wire.acks or 0
    if wire.hello:
        yield f"hello={wire.hello}"
    if workload.kind != "fanout":
        yield f"message={wire.slow if workload.kind == 'slow' else wire.call}"
        yield f"expect={wire.answer}"
        if wire.acks is not None:
            yield f"acks={acks}"
        return
    yield f"hello={wire.subscribe}"
    yield f"extra={wire.other}"
    yield f"message={wire.publish.replace('%PAD', pad)}"
    yield f"expect={wire.message.replace('%PAD', pad)}"
    yield f"answered={int(wire.is_answered)}"
    if wire.hello:
        yield f"publisher={wire.hello}"
    if wire.acks is not None:
        yield f"acks={acks + 1 + int(options.get('extras', 0))}"
        yield f"publisher_acks={acks}"
