"""RFC 6455 by Autobahn|Testsuite: its fuzzing client, unmodified and in Python 2.7, against an echo on our sockets.

`autobahn/fuzzingclient.json` says which cases run, `autobahn/known.json` which of them are not OK, and why.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import WSMsgType, web
from conftest import Serve, skip

from openapi_ws import WsPathMixin
from openapi_ws.frames import text_frame
from openapi_ws.protocol import Message
from openapi_ws.reader import Reader

HERE = Path(__file__).parent / "autobahn"
CACHE = HERE / ".venv27"
PACKAGE = "autobahntestsuite==25.10.1"
VIRTUALENV = "virtualenv<20.22"
"""The last that makes environments of Python 2.7."""
CASES = 303
"""How many the patterns of fuzzingclient.json select; fewer would be a silent loss."""
INSTALL_TIMEOUT, RUN_TIMEOUT = 300.0, 120.0
BINARY = 0x82
"""First byte of a whole binary frame: FIN and the opcode (RFC 6455 §5.2)."""


class Kinds:
    """A response that remembers of which kind its last message was: with ``decode_text=False`` all data are bytes."""

    def __init__(self, response: web.WebSocketResponse[bool]) -> None:
        self._response = response
        self.last: WSMsgType | None = None

    async def receive(self) -> Any:
        message = await self._response.receive()
        self.last = message.type
        return message

    def __getattr__(self, name: str) -> Any:
        return getattr(self._response, name)


class Echo(WsPathMixin, web.View):
    """Sends each message back; all else is the library's: handshake, reading, control frames, frames, the close."""

    max_frame_size = 16 * 1024 * 1024
    max_queue_bytes = 32 * 1024 * 1024

    def _reader(self, response: Any, calls: Any) -> Reader:
        self.kinds = Kinds(response)
        return super()._reader(self.kinds, self)  # type: ignore[arg-type]  # this view stands in for the calls

    def receive(self, data: bytes) -> None:
        """Echo one message: text as an answer, binary as a frame that is pushed."""
        if self.kinds.last is WSMsgType.BINARY:
            self.websocket.push((bytes([BINARY]) + text_frame(data)[1:], Message("echo", "binary", b"")))
            return
        # aiohttp does not look at the UTF-8 of text, with decode_text=False. RPC answers -32700 to what is none, by
        # design (docs/protocol.md), and the socket lives; an echo has nothing to answer, so it fails as RFC 6455 §8.1.
        try:
            data.decode()
        except UnicodeDecodeError:
            self.websocket.close_soon(1007, "not UTF-8")
        else:
            self.websocket.send(data)


def run(*command: object, cwd: Path = HERE) -> None:
    """Run *command* to its end, out of reach of the variables of this Python."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environ["VIRTUALENV_OVERRIDE_APP_DATA"] = str(CACHE / "data")
    arguments = [str(each) for each in command]
    subprocess.run(arguments, check=True, cwd=cwd, env=environ, capture_output=True, timeout=INSTALL_TIMEOUT)


def python27() -> Path | None:
    """Python 2.7: pyenv's, by its folder, or that of the path."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = shutil.which("python2.7")
    return next(root.glob("versions/2.7.*/bin/python2.7"), Path(found) if found else None)


def install(python: Path) -> None:
    """Make an environment of Python 2.7 with the test suite, in the cache alone."""
    tool, environment = CACHE / "virtualenv", CACHE / "env"
    for leftover in (tool, environment):
        shutil.rmtree(leftover, ignore_errors=True)
    run(sys.executable, "-m", "pip", "install", "--target", tool, VIRTUALENV)
    run(sys.executable, "-m", "virtualenv", "--python", python, environment, cwd=tool)  # -m looks into cwd first
    run(environment / "bin/python", "-m", "pip", "install", PACKAGE)


@pytest.fixture(scope="session")
def wstest() -> list[str]:
    """The command that runs the test suite, installed on first use."""
    python = python27()
    if python is None:
        skip("no Python 2.7")
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "installed").open("a+") as installed:
        fcntl.flock(installed, fcntl.LOCK_EX)  # other environments of tox may run the same at the same time
        installed.seek(0)
        if installed.read() != PACKAGE or not (CACHE / "env/bin/python").exists():
            installed.truncate(0)
            try:
                install(python)
            except subprocess.SubprocessError as error:
                skip(f"Autobahn cannot be installed: {error} {getattr(error, 'stderr', b'')!r}")
            installed.write(PACKAGE)
    return [str(CACHE / "env/bin/python"), str(CACHE / "env/bin/wstest")]


async def fuzz(wstest: list[str], url: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Run the cases against *url*; the result of each."""
    spec = json.loads((HERE / "fuzzingclient.json").read_text("utf-8"))
    spec |= {"outdir": str(folder), "servers": [{"agent": "openapi_ws", "url": url}]}
    (folder / "spec.json").write_text(json.dumps(spec), "utf-8")
    command = [*wstest, "--mode", "fuzzingclient", "--spec", str(folder / "spec.json")]
    with (folder / "output.txt").open("wb") as output:
        process = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output)
        try:
            await asyncio.wait_for(process.wait(), RUN_TIMEOUT)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    index = folder / "index.json"
    assert index.exists(), (folder / "output.txt").read_text("utf-8", errors="replace")[-2000:]
    results: dict[str, dict[str, Any]] = json.loads(index.read_text("utf-8"))["openapi_ws"]
    return results


def verdict(result: dict[str, Any]) -> str:
    """How a case went, and how its close did, where that is not the same."""
    verdicts = [result["behavior"], result["behaviorClose"]]
    return ", ".join(dict.fromkeys(each for each in verdicts if each != "OK")) or "OK"


def report(folder: Path, result: dict[str, Any]) -> str:
    """What the test suite says of one case."""
    case = json.loads((folder / result["reportfile"]).read_text("utf-8"))
    return "\n".join(f"{key}: {case[key]}" for key in ("id", "description", "expectation", "result", "resultClose"))


async def test_the_fuzzing_client_finds_no_fault(
    serve: Serve, wstest: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every case is OK but those that are known, each with its verdict; and afterwards nothing is left of any."""
    served = await serve(Echo)
    results = await fuzz(wstest, str(served.server.make_url("/stream").with_scheme("ws")), tmp_path)
    assert len(results) == CASES
    known = {case: known for case, (known, _) in json.loads((HERE / "known.json").read_text("utf-8")).items()}
    found = {case: verdict(result) for case, result in results.items() if verdict(result) != "OK"}
    reports = [report(tmp_path, results[case]) for case in found if found[case] != known.get(case)]
    assert found == known, "\n\n".join(reports)  # one that has become OK leaves the list
    await served.at_rest()
    assert sum(served.manager.metrics.closes.values()) == served.manager.metrics.opened >= CASES
    assert [record.getMessage() for record in caplog.records] == []
