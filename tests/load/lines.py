"""How a test and the programs that it runs speak: lines of JSON through their pipes, and nothing of HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import resource
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent
WAIT = 60.0
"""Seconds that bound a hang; they measure nothing."""
PATIENCE = 0.01
"""Seconds between two looks at what tells no other way that it has changed."""


async def until(condition: Callable[[], object], timeout: float = WAIT) -> float:
    """Wait for *condition*; the seconds that it took."""
    start = time.monotonic()
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(PATIENCE)
    return time.monotonic() - start


# -- in the program -------------------------------------------------------------------------------------------


def say(**event: Any) -> None:
    """Tell the test something."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def prepare() -> dict[str, Any]:
    """The program's options; it may open as many files as there can be, and go before others if it is *urgent*."""
    options: dict[str, Any] = json.loads(sys.argv[1])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.pop("urgent", False):
        with contextlib.suppress(PermissionError):
            os.nice(-10)
    return options


async def obey(commands: object) -> None:
    """Run each ``{"id", "do", …}`` that comes as the method *do* of *commands*, all at once, until the test is gone."""
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader(limit=1024 * 1024)
    pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        async with asyncio.TaskGroup() as tasks:
            async for line in reader:
                tasks.create_task(_run(commands, **json.loads(line)))
    finally:
        pipe.close()


async def _run(commands: object, *, id: int, do: str, **arguments: Any) -> None:
    try:
        say(id=id, result=await getattr(commands, do)(**arguments))
    except Exception as error:
        say(id=id, error=repr(error))


# -- in the test ----------------------------------------------------------------------------------------------


class Program:
    """A program of this folder as a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.complaints = ""
        """What it wrote to its standard error; complete when it has ended."""
        self._ids = itertools.count()
        self._answers: dict[object, asyncio.Future[dict[str, Any]]] = {}
        self._tasks = [asyncio.create_task(coroutine) for coroutine in (self._listen(), self._complain())]

    @classmethod
    async def start(cls, name: str, *prefix: str, **options: Any) -> Self:
        """Run ``<name>.py`` with *options*; *prefix* is a command that runs others."""
        # Warnings are errors; DESIGN keeps app["web_sockets"], for which aiohttp would rather have an AppKey.
        flags = ("-W", "error", "-W", "ignore:It is recommended")
        env = {variable: value for variable, value in os.environ.items() if variable != "PYTHONWARNINGS"}
        process = await asyncio.create_subprocess_exec(
            *prefix, sys.executable, *flags, str(HERE / f"{name}.py"), json.dumps(options),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            limit=1024 * 1024, env=env,
        )  # fmt: skip
        return cls(process)

    @property
    def pid(self) -> int:
        return self.process.pid

    async def ask(self, do: str, **arguments: Any) -> Any:
        """The result of one command."""
        id_ = next(self._ids)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"id": id_, "do": do, **arguments}).encode() + b"\n")
        answer = await self._answer(id_)
        if "error" in answer:
            raise RuntimeError(f"{do}: {answer['error']}")
        return answer["result"]

    async def event(self, name: str) -> dict[str, Any]:
        """What the program says of its own accord."""
        return await self._answer(name)

    async def ended(self) -> int:
        """Wait for its end; its exit status."""
        status = await asyncio.wait_for(self.process.wait(), WAIT)
        await asyncio.gather(*self._tasks)
        return status

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.ended()
        assert self.process.stdin is not None
        self.process.stdin.close()

    async def _answer(self, key: object) -> dict[str, Any]:
        # Whoever comes first, the question or the answer, makes the future.
        answer = self._answers.setdefault(key, asyncio.get_running_loop().create_future())
        try:
            return await asyncio.wait_for(answer, WAIT)
        except TimeoutError:
            raise AssertionError(f"no answer {key!r}; the program complains: {self.complaints}") from None

    async def _listen(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            answer = json.loads(line)
            key = answer["id"] if "id" in answer else answer["event"]
            future = self._answers.setdefault(key, asyncio.get_running_loop().create_future())
            if not future.done():
                future.set_result(answer)

    async def _complain(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.complaints += line.decode()


@contextlib.asynccontextmanager
async def running(name: str, *prefix: str, **options: Any) -> AsyncIterator[Program]:
    """A program that ends with the test, and has nothing to complain of."""
    program = await Program.start(name, *prefix, **options)
    try:
        yield program
    finally:
        await program.kill()
    assert not program.complaints, f"{name}: {program.complaints}"


# -- what the kernel says of a process ------------------------------------------------------------------------


def resident(pid: int | str = "self") -> int:
    """Bytes of memory that the process has."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)


def descriptors(pid: int | str = "self") -> list[str]:
    """What the process has open, e.g. ``socket:[4711]``."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(str(entry.readlink()))
    return found
