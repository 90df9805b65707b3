"""The servers of the benchmarks, one file each, run as ``python -m benchmarks.peers.NAME FD [uvloop]``."""

from __future__ import annotations

import asyncio
import socket
import sys

HOST = "127.0.0.1"


def listener() -> socket.socket:
    """The socket to serve: it listens already, so that no client can come too early."""
    return socket.socket(fileno=int(sys.argv[1]))


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop of the kind that the command line asks for."""
    if "uvloop" not in sys.argv[2:]:
        return asyncio.new_event_loop()
    import uvloop

    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
