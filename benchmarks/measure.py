"""One sample: a fresh server on one core, the load on another."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

from .entries import Wire
from .peers import HOST
from .places import ROOT, Place
from .workloads import Cell, Options, Workload

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
SERVER_CORE, LOAD_CORE = CORES[0], CORES[-1]
START_TIMEOUT = 30
"""Seconds that a server has to answer its first handshake."""
ENOUGH = 0.9
"""Share of its core that a busy server must have owned."""
ID_SIZE = 8
"""Digits of an id."""

Sample = dict[str, Any]
"""What ``wsload.c`` prints."""


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
def serving(command: list[str], path: str, environment: dict[str, str]) -> Iterator[tuple[int, int]]:
    """Run a server, which inherits its listening socket; its port and process id, once it answers a handshake."""
    with tempfile.TemporaryFile("w+") as log, socket.create_server((HOST, 0), backlog=1024) as listener:
        port, number = listener.getsockname()[1], listener.fileno()
        with pinned(SERVER_CORE):
            process = subprocess.Popen(
                [*command[:-1], str(number), command[-1]], cwd=ROOT, env=os.environ | environment,
                pass_fds=[number], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        listener.close()
        try:
            shake_hands(port, path)
            yield port, process.pid
        except SampleError as exc:
            log.seek(0)
            raise SampleError(f"{exc}: {log.read()[-500:].strip()}") from None
        finally:
            process.kill()
            process.wait()


def shake_hands(port: int, path: str) -> None:
    """Return when the server has answered a handshake."""
    request = (
        f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    answer = b""
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), START_TIMEOUT) as client:
        client.sendall(request.encode())
        answer = client.recv(4096)
    if not answer.startswith(b"HTTP/1.1 101"):
        raise SampleError(f"no handshake, but {answer[:80]!r}")


def sample(place: Place, cell: Cell, workload: Workload, *, warm: float, seconds: float, tries: int) -> Sample:
    """Measure a cell once, or up to *tries* times as long as its server did not own its core.

    Raises:
        SampleError: the server did not start, or not all clients could connect.
    """
    best: Sample = {}
    for _ in range(tries if workload.is_busy and len(CORES) > 1 else 1):
        figures = sample_once(place, cell, workload, warm, seconds)
        if not best or figures["server_share"] > best["server_share"]:
            best = figures
        if not best["replies"] or best["bad"] or best["server_share"] >= ENOUGH:
            break
    return best


def sample_once(place: Place, cell: Cell, workload: Workload, warm: float, seconds: float) -> Sample:
    """Measure a cell."""
    entry, path = cell.entry, cell.entry.paths.get(workload.kind, "/")
    command, environment = place.command(entry)
    with serving(command, path, environment) as (port, pid):
        words = [f"port={port}", f"pid={pid}", f"path={path}", f"seconds={seconds}", f"warm={warm}"]
        words += [f"{key}={value}" for key, value in cell.options.items() if key != "own"]
        words += said(entry.wire, workload, cell.options)
        with pinned(LOAD_CORE):
            done = subprocess.run(
                [place.load, workload.mode, *words],
                capture_output=True,
                text=True,
                timeout=120 + 2 * seconds,
                check=False,
            )
        if done.returncode:
            raise SampleError(done.stderr.strip())
    figures: Sample = json.loads(done.stdout)
    return figures


def said(wire: Wire, workload: Workload, options: Options) -> Iterator[str]:
    """What the clients of a workload say, and what they want to hear."""
    pad = "x" * (workload.size - ID_SIZE)
    if wire.hello:
        yield f"hello={wire.hello}"
    if workload.kind != "fanout":
        yield f"message={wire.slow if workload.kind == 'slow' else wire.call}"
        yield f"expect={wire.answer}"
        yield f"acks={wire.acks}"
        return
    yield f"hello={wire.subscribe}"
    yield f"extra={wire.other.replace('%OTHER', 'other-%CONN-%N' if options.get('own') else 'other-%N')}"
    yield f"acks={wire.acks + 1 + options.get('extras', 0)}"
    if wire.hello:
        yield f"publisher={wire.hello}"
    yield f"publisher_acks={wire.acks}"
    yield f"message={wire.publish.replace('%PAD', pad)}"
    yield f"expect={wire.message.replace('%PAD', pad)}"


def faults(figures: Sample) -> str:
    """What was wrong with the answers; nothing if all were right."""
    wrong = [f"{figures[name]} {name}" for name in ("bad", "missing", "dead") if figures[name]]
    return ", ".join(wrong) + (f": {figures['bad_sample']}" if figures["bad_sample"] else "")
