"""Floor 1, sockets: what one client stands between: its calls above, the transport and the kernel below."""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

__all__ = ["Activity", "tune", "waiting"]


class Activity(Protocol):
    """What a socket needs of the calls that run for it."""

    def __len__(self) -> int:
        """How many are in flight."""

    def tick(self, now: float) -> None:
        """Look at the clock."""

    def dismiss(self) -> None:
        """End all that are in flight, with an answer."""


def waiting(transport: asyncio.Transport) -> int:
    """Bytes that *transport* has not handed to the kernel; none once it is closed, as nobody counts them any more.

    A transport of TLS cannot be asked then: it has let go of what would know.
    """
    return 0 if transport.is_closing() else transport.get_write_buffer_size()


def tune(transport: asyncio.Transport, *, send_buffer_bytes: int | None, heartbeat: float | None) -> None:
    """Bound what the kernel holds for a client that does not read, in bytes and, on Linux, in time."""
    connection: socket.socket | None = transport.get_extra_info("socket")
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    if send_buffer_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    if heartbeat is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        # Without this, the kernel tries for a quarter of an hour to reach a peer that is gone.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(heartbeat * 1500))
