"""The way between clients and server, which can go silent: nothing arrives any more, and nobody is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator

SERVER, CLIENT = "192.0.2.1", "192.0.2.2"
"""Addresses for documentation (RFC 5737): nobody has them, and here they are in namespaces that nobody else sees."""
NOBODY = "02:00:00:00:00:99"


class Proxy:
    """A proxy that goes silent. The kernels on its both sides still see a peer that takes what is sent, up to a point.

    It runs in the test's own process.
    """

    server_host = "127.0.0.1"
    server_prefix: tuple[str, ...] = ()
    client_prefix: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._transports: list[asyncio.Transport] = []
        self._server: asyncio.Server | None = None

    async def open(self, port: int) -> tuple[str, int]:
        """Begin; the address at which clients find the server."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Half(self._transports, port), "127.0.0.1", 0)
        return self._server.sockets[0].getsockname()

    async def silence(self) -> None:
        """Forward nothing any more."""
        for transport in self._transports:
            with contextlib.suppress(RuntimeError):
                transport.pause_reading()

    async def close(self) -> None:
        for transport in self._transports:
            transport.abort()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()


class _Half(asyncio.Protocol):
    """One direction of a connection."""

    transport: asyncio.Transport

    def __init__(self, transports: list[asyncio.Transport], port: int | None = None) -> None:
        self.transports, self.port = transports, port
        self.other: _Half | None = None
        self._early = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.transports.append(transport)
        if self.port is not None:
            self.task = asyncio.get_running_loop().create_task(self._reach(self.port))

    async def _reach(self, port: int) -> None:
        _, other = await asyncio.get_running_loop().create_connection(lambda: _Half(self.transports), "127.0.0.1", port)
        other.other, self.other = self, other
        other.transport.write(self._early)

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self._early += data
        else:
            self.other.transport.write(data)


class Namespaces:
    """Two network namespaces with a wire between them, of which each end can be made to forget where the other is."""

    server_host = SERVER

    def __init__(self) -> None:
        self.server, self.client = f"openapi-ws-{os.getpid()}-s", f"openapi-ws-{os.getpid()}-c"
        self.server_prefix = ("ip", "netns", "exec", self.server)
        self.client_prefix = ("ip", "netns", "exec", self.client)

    async def make(self) -> bool:
        """Make both; whether the machine allows it."""
        if shutil.which("ip") is None:
            return False
        commands = [
            f"netns add {self.server}",
            f"netns add {self.client}",
            f"link add wire netns {self.server} type veth peer name wire netns {self.client}",
            *(
                f"-n {name} {command}"
                for name, address in ((self.server, SERVER), (self.client, CLIENT))
                for command in (f"address add {address}/30 dev wire", "link set wire up", "link set lo up")
            ),
        ]
        for command in commands:
            if await _ip(command):
                await self.close()
                return False
        return True

    async def open(self, port: int) -> tuple[str, int]:
        return SERVER, port

    async def silence(self) -> None:
        """Address all that is sent, on both ends, to an interface that nobody has: the other end drops it."""
        for name, address in ((self.server, CLIENT), (self.client, SERVER)):
            status = await _ip(f"-n {name} neighbour replace {address} lladdr {NOBODY} nud permanent dev wire")
            assert status == 0, f"ip has failed with {status}"

    async def close(self) -> None:
        """Remove both; with them goes the wire."""
        for name in (self.server, self.client):
            await _ip(f"netns delete {name}")


async def _ip(command: str) -> int:
    process = await asyncio.create_subprocess_exec(
        "ip", *command.split(), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    return await process.wait()


@contextlib.asynccontextmanager
async def link(kind: str) -> AsyncIterator[Proxy | Namespaces]:
    """A link of *kind* ``namespaces``, where the machine allows it, or ``proxy``."""
    namespaces = Namespaces()
    way: Proxy | Namespaces = namespaces if kind == "namespaces" and await namespaces.make() else Proxy()
    try:
        yield way
    finally:
        await way.close()
