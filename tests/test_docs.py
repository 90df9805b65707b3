"""README and docs are programs: what they show is run, what they say of the wire is sent and received.

A page is read from top to bottom. Its fenced blocks mean:

``python``
    One block after another makes one module. A block that calls ``web.run_app`` is a program of its own: it begins a
    new module, and the application goes to a server of the test instead. A block whose first line is ``# name.py``,
    or for ``ini`` ``# name.cfg``, is a file, written to an empty folder.
``pycon``
    A doctest in the page's module; ``...`` stands for anything.
``console``
    ``$ python name.py``, ``$ python -m module`` and ``$ pytest`` run for real in that folder, and print what is shown;
    ``…`` stands for anything. A program that serves goes on until the page ends or is started anew.
``text``
    Frames, between clients and what the page has built last: a running program, an application, or a view, which is
    then put under ``/stream``. ``→`` is sent and ``←`` received, as text frames; a word before the arrow names one
    client of several; an indented line continues the line above; ``# …`` is a comment. In what is sent, ``(3 × ab)``
    is ``ababab``. In what is received, the value ``"…"`` is any value, ``"… name"`` one that is the same wherever it
    stands in the block, also in what is sent, and a batch is in any order. In brackets stands what is no text frame,
    see `Scene`. When a block ends, no client has got more than it says.

Blocks of other languages are only read. ``redis://localhost`` is a Redis of the tests.
"""

from __future__ import annotations

import ast
import asyncio
import doctest
import importlib
import inspect
import json
import os
import pkgutil
import re
import shlex
import socket
import sys
import types
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType, WSServerHandshakeError, web

import openapi_ws
from openapi_ws import RpcError, SocketsManager, WsPathMixin
from openapi_ws.prometheus import Collector

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("docs/guides/*.md"))]
INDEX, PROTOCOL, REFERENCE = (ROOT / "docs" / name for name in ("index.md", "protocol.md", "reference.md"))
DEPLOYING, METRICS = (ROOT / "docs" / "guides" / name for name in ("deploying.md", "metrics.md"))
TEXTS = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
DIRECTIVES = {"{eval-rst}", "{toctree}", "{include}"}
LANGUAGES = {"python", "pycon", "console", "text", "sh", "ini", "nginx", "yaml", "js", *DIRECTIVES}
TIMEOUT = 10
"""Seconds after which a program or a frame that does not come is given up; it measures nothing."""
REDIS = "redis://localhost"
"""What pages say, and what stands for a real server there."""

DESCRIBED = (types.FunctionType, property, cached_property, classmethod, staticmethod)

Serve = Callable[[web.Application], Any]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# -- reading a page -------------------------------------------------------------------------------------------


@dataclass
class Block:
    page: Path
    line: int
    """Where its first line stands."""
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    lines = enumerate(page.read_text("utf-8").splitlines(), 1)
    for number, line in lines:
        if line.startswith("```"):
            body = []
            for _, inner in lines:
                if inner == "```":
                    break
                body.append(inner)
            yield Block(page, number + 1, line.removeprefix("```").split(" ")[0], "\n".join(body) + "\n")


# -- running it -----------------------------------------------------------------------------------------------


class Stage:
    """What the blocks of one page have built so far."""

    def __init__(
        self, page: Path, folder: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch, redis: str = REDIS
    ) -> None:
        self.page, self.folder, self.serve, self.monkeypatch = page, folder, serve, monkeypatch
        self.module = self.new_module()
        self.subject: web.Application | type[WsPathMixin] | None = None
        self.url = ""
        """Where the subject is served, once it is."""
        self.port = free_port()
        """Stands for 8080 in files."""
        self.redis = redis
        """Stands for `REDIS` wherever it is."""
        self.process: asyncio.subprocess.Process | None = None
        monkeypatch.setattr(web, "run_app", self.run_app)

    async def run(self, block: Block) -> None:
        block = replace(block, text=block.text.replace(REDIS, self.redis))
        if block.language in ("python", "ini") and (name := re.match(r"# (\w+\.\w+)\n", block.text)):
            (self.folder / name[1]).write_text(block.text.replace("8080", str(self.port)), "utf-8")
        elif block.language == "python":
            self.execute(block)
        elif block.language == "pycon":
            self.check(block)
        elif block.language == "console":
            await self.command(block)
        elif block.language == "text":
            await self.play(block)

    # -- modules

    def new_module(self) -> types.ModuleType:
        module = types.ModuleType("page_" + re.sub(r"\W", "_", name_of(self.page)))
        self.monkeypatch.setitem(sys.modules, module.__name__, module)
        return module

    def execute(self, block: Block) -> None:
        if "web.run_app(" in block.text:
            self.module = self.new_module()
        names = vars(self.module)
        before = dict(names)
        source = "\n" * (block.line - 1) + block.text
        exec(compile(source, str(self.page), "exec", dont_inherit=True), names)
        made = [value for name, value in names.items() if before.get(name) is not value]
        views = [v for v in made if isinstance(v, type) and issubclass(v, WsPathMixin) and issubclass(v, web.View)]
        for subject in views[-1:] + [value for value in made if isinstance(value, web.Application)][-1:]:
            self.subject, self.url = subject, ""

    def run_app(self, app: web.Application, **options: Any) -> None:
        """In place of `web.run_app`: takes what that takes, and leaves the serving to the scene that follows."""
        assert options.keys() <= RUN_APP.keys(), options
        self.subject, self.url = app, ""

    def check(self, block: Block) -> None:
        said: list[str] = []
        test = doctest.DocTestParser().get_doctest(block.text, vars(self.module), block.where, None, 0)
        runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
        runner.run(test, out=said.append, clear_globs=False)
        assert test.examples, f"{block.where}: no >>>"
        assert not said, f"{block.where}\n{''.join(said)}"

    # -- files and programs

    async def command(self, block: Block) -> None:
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            line, _, shown = part.partition("\n")
            program, *arguments = shlex.split(line)
            assert program in ("python", "pytest"), f"{block.where}: {line!r} is not run; call the block sh"
            if program == "pytest":
                arguments = ["-m", "pytest", "-p", "no:cacheprovider", *arguments]
            elif arguments[0] != "-m" and "web.run_app(" in (self.folder / arguments[0]).read_text("utf-8"):
                await self.stop()
                self.process, self.url = await self.start(arguments), f"http://127.0.0.1:{self.port}"
                await expect_lines(self.process, shown.replace("8080", str(self.port)), block.where)
                continue
            process = await self.start(arguments)
            output = (await asyncio.wait_for(process.communicate(), 6 * TIMEOUT))[0].decode()
            assert process.returncode == 0, f"{block.where}: {line}\n{output}"
            assert re.fullmatch(pattern_of(shown), output), f"{block.where}: {line}\n{output}"

    async def start(self, arguments: list[str]) -> asyncio.subprocess.Process:
        plain = {"PYTHONUNBUFFERED": "1", "COLUMNS": "80", "PY_COLORS": "0", "PYTEST_ADDOPTS": ""}
        return await asyncio.create_subprocess_exec(
            sys.executable, *arguments, cwd=self.folder, env={**os.environ, **plain},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip

    async def stop(self) -> None:
        """End the program that serves; it has a second for each client."""
        if self.process is not None:
            self.process.terminate()
            await asyncio.wait_for(self.process.communicate(), TIMEOUT)
            self.process = None

    # -- frames

    async def play(self, block: Block) -> None:
        if not self.url:
            self.url = await self.serve(application_of(self.subject))
        async with ClientSession() as session:
            scene = Scene(session, self.url)
            for line in lines_of(block):
                try:
                    await scene.play(line)
                except (AssertionError, TimeoutError) as error:
                    raise AssertionError(f"{block.where}: {line}\n{type(error).__name__}: {error}") from None
            try:
                await scene.end()
            except (AssertionError, TimeoutError) as error:
                raise AssertionError(f"{block.where}: at the end\n{type(error).__name__}: {error}") from None


RUN_APP = inspect.signature(web.run_app).parameters


def application_of(subject: web.Application | type[WsPathMixin] | None) -> web.Application:
    assert subject is not None, "frames need a program, an application or a view above them"
    if isinstance(subject, web.Application):
        return subject
    app = web.Application()
    app["web_sockets"] = SocketsManager.for_app(app)
    app.router.add_view("/stream", subject)  # type: ignore[arg-type]
    return app


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def pattern_of(shown: str) -> str:
    return ".*".join(map(re.escape, shown.split("…")))


async def expect_lines(process: asyncio.subprocess.Process, shown: str, where: str) -> None:
    assert process.stdout is not None
    said = ""
    for line in shown.splitlines():
        while not re.search(f"^{pattern_of(line)}$", said, re.MULTILINE):
            more = await asyncio.wait_for(process.stdout.readline(), TIMEOUT)
            assert more, f"{where}: {line!r} was not printed\n{said}"
            said += more.decode()


# -- frames ---------------------------------------------------------------------------------------------------


@dataclass
class Line:
    who: str
    arrow: str
    what: str

    def __str__(self) -> str:
        return f"{self.who} {self.arrow} {self.what}".strip()


LINE = re.compile(r"(?:(\w+) +)?([→←]) (.+)")
EVENT = re.compile(r"\((connect|connected|close|binary|ping|pong|pause|resume|GET|POST|status)\b *(.*?)\)(?: (.*))?")
NAMED = re.compile(r'"… \w+"')
REPEAT = re.compile(r"\((\d+) × (.+?)\)")
CONNECT = re.compile(r"(\S+)(?: as (.+?))?(?: from (\S+))?(?: with (\S+): (\S+))?")


def lines_of(block: Block) -> list[Line]:
    lines: list[Line] = []
    for text in block.text.splitlines():
        if text.startswith(" ") and text.strip():
            lines[-1].what += " " + text.strip()
        elif text and not text.startswith("# "):
            parts = LINE.fullmatch(text)
            assert parts, f"{block.where}: not a frame: {text!r}"
            lines.append(Line(parts[1] or "", parts[2], parts[3]))
    return lines


class Scene:
    """The clients of one block. They connect to ``/stream`` with their first frame, unless they say how.

    ====================================================  ==========================================================
    ``→ (connect /path as name, name from origin)``       how to connect: *as* sub-protocols, *from* an Origin
    ``→ (connect /path with Name: value)``                and *with* a header
    ``← (connected as name)``                             the sub-protocol that was chosen
    ``→ (GET /path)``, ``→ (POST /path {…})``             a plain HTTP request, sent while the scene goes on
    ``← (status 400) {…}``                                the answer to it, or to a handshake that was refused
    ``← (status 503 Retry-After: 5) {…}``                 the same, with a header
    ``→ (binary) {…}``                                    a binary frame
    ``→ (ping tea)``, ``← (pong tea)``, and back          a control frame with this payload
    ``→ (pause)``, ``→ (resume)``                         the client does not read any more, and reads again
    ``→ (close 1000)``, ``← (close 1009)``                a close frame of this code
    ====================================================  ==========================================================
    """

    def __init__(self, session: ClientSession, url: str) -> None:
        self.session, self.url = session, url
        self.sockets: dict[str, ClientWebSocketResponse] = {}
        self.requests: dict[str, asyncio.Task[tuple[int, Mapping[str, str], str]]] = {}
        self.values: dict[str, Any] = {}
        """What ``"… name"`` stands for."""

    async def play(self, line: Line) -> None:
        if event := EVENT.fullmatch(line.what):
            await getattr(self, f"{'on' if line.arrow == '←' else 'do'}_{event[1]}")(line.who, event[2], event[3])
        elif line.arrow == "→":
            text = NAMED.sub(lambda it: json.dumps(self.values[it[0].strip('"')]), line.what)
            await (await self.socket(line.who)).send_str(REPEAT.sub(lambda it: int(it[1]) * it[2], text))
        else:
            message = await (await self.socket(line.who)).receive(TIMEOUT)
            assert message.type is WSMsgType.TEXT, message
            if not agrees(json.loads(line.what), json.loads(message.data), self.values):
                raise AssertionError(f"got {message.data:.1000}")

    async def socket(self, who: str) -> ClientWebSocketResponse:
        if who not in self.sockets:
            await self.do_connect(who, "/stream", None)
        return self.sockets[who]

    async def do_connect(self, who: str, how: str, _: str | None) -> None:
        parts = CONNECT.fullmatch(how)
        assert parts, how
        protocols = parts[2].split(", ") if parts[2] else []
        headers = {parts[4]: parts[5]} if parts[4] else None
        try:
            self.sockets[who] = await self.session.ws_connect(
                self.url + parts[1], protocols=protocols, origin=parts[3], headers=headers, autoping=False
            )
        except WSServerHandshakeError as error:
            # The client drops the body of a refusal, so the same handshake is sent once more as a plain request.
            self.request(who, "GET", parts[1], headers=error.request_info.headers)

    async def on_connected(self, who: str, how: str, _: str | None) -> None:
        assert self.sockets[who].protocol == how.removeprefix("as ")

    async def do_close(self, who: str, code: str, _: str | None) -> None:
        await (await self.socket(who)).close(code=int(code))

    async def on_close(self, who: str, code: str, _: str | None) -> None:
        message = await self.sockets[who].receive(TIMEOUT)
        assert message.type is WSMsgType.CLOSE, message
        assert message.data == int(code), message

    async def do_ping(self, who: str, payload: str, _: str | None) -> None:
        await (await self.socket(who)).ping(payload.encode())

    async def do_pong(self, who: str, payload: str, _: str | None) -> None:
        await (await self.socket(who)).pong(payload.encode())

    async def on_ping(self, who: str, payload: str, _: str | None) -> None:
        message = await self.sockets[who].receive(TIMEOUT)
        assert (message.type, bytes(message.data)) == (WSMsgType.PING, payload.encode()), message

    async def on_pong(self, who: str, payload: str, _: str | None) -> None:
        message = await self.sockets[who].receive(TIMEOUT)
        assert (message.type, bytes(message.data)) == (WSMsgType.PONG, payload.encode()), message

    async def do_pause(self, who: str, _: str, __: str | None) -> None:
        self.transport(who).pause_reading()

    async def do_resume(self, who: str, _: str, __: str | None) -> None:
        self.transport(who).resume_reading()

    def transport(self, who: str) -> asyncio.Transport:
        connection = self.sockets[who]._response.connection
        assert connection is not None
        assert isinstance(connection.transport, asyncio.Transport)
        return connection.transport

    async def do_binary(self, who: str, _: str, text: str) -> None:
        await (await self.socket(who)).send_bytes(text.encode())

    async def do_GET(self, who: str, path: str, _: str | None) -> None:
        self.request(who, "GET", path)

    async def do_POST(self, who: str, what: str, _: str | None) -> None:
        path, _, body = what.partition(" ")
        self.request(who, "POST", path, json=json.loads(body or "null"))

    def request(self, who: str, method: str, path: str, **options: Any) -> None:
        async def send() -> tuple[int, Mapping[str, str], str]:
            async with self.session.request(method, self.url + path, **options) as response:
                return response.status, response.headers, await response.text()

        self.requests[who] = asyncio.create_task(send())

    async def on_status(self, who: str, said: str, body: str | None) -> None:
        status, headers, text = await asyncio.wait_for(self.requests.pop(who), TIMEOUT)
        number, _, header = said.partition(" ")
        assert status == int(number), (status, text)
        if header:
            name, _, value = header.partition(": ")
            assert headers.get(name) == value, headers
        assert body is None or agrees(json.loads(body), json.loads(text)), text

    async def end(self) -> None:
        """See that the next that comes is the answer to a last call, so that nothing was left unsaid."""
        assert not self.requests, f"an answer is not shown: {self.requests}"
        for ws in self.sockets.values():
            if not ws.closed:
                call = {"id": "end", "method": "end"}
                await ws.send_json({"jsonrpc": "2.0", **call} if ws.protocol == "jsonrpc-2.0" else call)
                answer = (await ws.receive(TIMEOUT)).data
                assert '"id":"end"' in str(answer), f"a frame is not shown: {answer!s:.1000}"
                await ws.close()


def agrees(said: Any, got: Any, values: dict[str, Any] | None = None) -> bool:
    """*got* is what the page says, member by member; 1, 1.0 and true differ. *values* are those that have names."""
    values = {} if values is None else values
    if isinstance(said, list) and any(isinstance(entry, dict) and "jsonrpc" in entry for entry in said):
        left = list(got) if isinstance(got, list) else []
        for entry in said:
            if (found := next((other for other in left if agrees(entry, other, values)), None)) is None:
                return False
            left.remove(found)
        return not left
    if isinstance(said, dict) and isinstance(got, dict):
        return said.keys() == got.keys() and all(agrees(said[key], got[key], values) for key in said)
    if isinstance(said, list) and isinstance(got, list):
        return len(said) == len(got) and all(agrees(*pair, values) for pair in zip(said, got, strict=True))
    if isinstance(said, str) and said.startswith("… "):
        return agrees(values.setdefault(said, got), got)
    return said == "…" or (type(said) is type(got) and said == got)


@pytest.fixture
async def launch() -> AsyncIterator[Serve]:
    """Serve applications on loopback, as `web.run_app` does, to the end of the test."""
    runners: list[web.AppRunner] = []

    async def start(app: web.Application) -> str:
        runner = web.AppRunner(app, access_log=None)
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
async def test_a_page_does_what_it_shows(
    page: Path, tmp_path: Path, launch: Serve, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Each snippet runs, each command prints what is shown, each frame is answered as shown."""
    needs_redis = any(REDIS in block.text for block in blocks_of(page) if block.language != "text")
    redis = request.getfixturevalue("redis_server").url if needs_redis else REDIS
    stage = Stage(page, tmp_path, launch, monkeypatch, redis)
    try:
        for block in blocks_of(page):
            await stage.run(block)
    finally:
        await stage.stop()


# -- what the pages must have ---------------------------------------------------------------------------------


def test_the_readme_names_two_commands_that_do_all_the_set_up() -> None:
    """One installs and runs the example, one installs and runs the tests; both stand alone in a block."""
    commands = [block.text for block in blocks_of(ROOT / "README.md") if block.language == "sh"]
    assert commands == ["pip install -e . && python -m example\n", "pip install -e '.[test]' && pytest\n"]


def test_the_readme_and_the_first_page_show_the_same_code() -> None:
    """What a newcomer reads first is one example, wherever it is read."""
    first = [next(b.text for b in blocks_of(page) if b.language == "python") for page in (PAGES[0], INDEX)]
    assert first[0] == first[1]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_block_says_its_language(page: Path) -> None:
    """A block without one, or of one that nobody knows, would escape the tests."""
    unknown = [block.where for block in blocks_of(page) if block.language not in LANGUAGES]
    assert not unknown, unknown
    assert page.read_text("utf-8").count("```") == 2 * len(list(blocks_of(page))), "a fence stands within a line"


def test_the_protocol_shows_a_frame_of_every_error_that_the_library_has() -> None:
    """In both dialects; and the table of codes names it, as not reserved."""
    frames = [
        json.loads(line.what)
        for block in blocks_of(PROTOCOL)
        if block.language == "text"
        for line in lines_of(block)
        if line.arrow == "←" and not EVENT.fullmatch(line.what)
    ]
    calls = [entry for frame in frames for entry in (frame if isinstance(frame, list) else [frame])]
    shown = {("jsonrpc" in frame, frame["error"]["code"]) for frame in calls if "error" in frame}
    codes = {code_of(error) for error in descendants(RpcError) if error.__module__ == RpcError.__module__}
    assert codes
    assert {(dialect, code) for dialect in (False, True) for code in codes} <= shown
    table = set(re.findall(r"^\| (−\d+) \|", PROTOCOL.read_text("utf-8"), re.MULTILINE))
    assert table == {str(code).replace("-", "−") for code in codes}


def code_of(error: type[RpcError]) -> int:
    needed = [each for each in inspect.signature(error).parameters.values() if each.default is each.empty]
    return error(*["x"] * len(needed)).code


def descendants(error: type[Any]) -> set[type[Any]]:
    return {found for child in error.__subclasses__() for found in ({child} | descendants(child))}


def test_the_tables_of_limits_are_those_of_the_classes() -> None:
    """Each limit that a class has stands in the protocol and in the guide, with its default."""
    limits = {
        f"{cls.__name__}.{name}": value for cls in (WsPathMixin, SocketsManager) for name, value in numbers_of(cls)
    }
    protocol = re.findall(r"^\| .+? \| (\S+) \| `(\w+\.\w+)`", PROTOCOL.read_text("utf-8"), re.MULTILINE)
    assert {name: number_of(shown) for shown, name in protocol} == {
        name: value
        for name, value in limits.items()
        if name not in ("SocketsManager.tick", "WsPathMixin.send_buffer_bytes")
    }
    guide = DEPLOYING.read_text("utf-8")
    for heading, rows in re.findall(r"^\| of `(\w+)` .*\n\|---.*\n((?:\|.*\n)+)", guide, re.MULTILINE):
        for name, shown in re.findall(r"^\| `(\w+)` \| ([\w,]+)", rows, re.MULTILINE):
            assert limits.pop(f"{heading}.{name}") == number_of(shown), name
    assert sorted(limits) == ["SocketsManager.drain_timeout", "SocketsManager.tick"]


def numbers_of(cls: type) -> Iterator[tuple[str, float | None]]:
    for name, value in vars(cls).items():
        if not name.startswith("_") and (value is None or type(value) in (int, float)):
            yield name, value


def number_of(shown: str) -> float | None:
    return None if shown == "none" else float(shown.replace(",", ""))


def test_the_figures_are_all_explained() -> None:
    """Those of `server_info`, and those for Prometheus, each in its table."""
    text, manager = METRICS.read_text("utf-8"), SocketsManager()
    figures, metrics = (
        re.findall(rf"^\| `({prefix}\w+)` \|", text, re.MULTILINE) for prefix in ("(?!openapi_ws_)", "openapi_ws_")
    )
    assert sorted(figures) == sorted(manager.server_info())
    families = Collector(manager).collect()
    assert sorted(metrics) == sorted(f"{each.name}_total" if each.type == "counter" else each.name for each in families)


# -- the reference --------------------------------------------------------------------------------------------


def modules() -> dict[str, types.ModuleType]:
    """The public modules of the package that have code of their own."""
    names = [module.name for module in pkgutil.walk_packages(openapi_ws.__path__, "openapi_ws.")]
    found = {name: importlib.import_module(name) for name in names if "._" not in name}
    return {name: module for name, module in found.items() if len(ast.parse(inspect.getsource(module)).body) > 1}


def test_a_module_says_what_is_public() -> None:
    """By ``__all__``, each name of which it has."""
    for name, module in modules().items():
        assert isinstance(getattr(module, "__all__", None), list), name
        assert [each for each in module.__all__ if not hasattr(module, each)] == [], name


def test_the_package_exports_public_names_of_its_modules() -> None:
    """``openapi_ws.__all__`` is what its file imports, and each import is in its module's ``__all__``."""
    tree = ast.parse(inspect.getsource(openapi_ws))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert sorted(name.name for node in imports for name in node.names) == sorted(openapi_ws.__all__)
    for node in imports:
        public = importlib.import_module(f"openapi_ws.{node.module}").__all__
        assert [name.name for name in node.names if name.name not in public] == []


def test_the_reference_lists_the_names_of_the_package() -> None:
    """Each of ``openapi_ws.__all__`` once, and linked to where it is described."""
    table = [line for line in REFERENCE.read_text("utf-8").splitlines() if line.startswith("| ") and "`" in line]
    listed = [name for line in table for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert sorted(listed) == sorted(openapi_ws.__all__)
    for name, target in re.findall(r"\[`(\w+)`\]\(#([\w.]+)\)", "\n".join(table)):
        module, _, attribute = target.rpartition(".")
        assert attribute == name
        assert name in importlib.import_module(module).__all__


def test_the_reference_describes_every_module() -> None:
    """All public names of all modules, from their docstrings."""
    described = re.findall(r"^\.\. automodule:: ([\w.]+)\n +:members:(.*)$", REFERENCE.read_text("utf-8"), re.MULTILINE)
    assert sorted(name for name, _ in described) == sorted(modules())
    for name, members in described:
        if members:
            assert members.strip().split(", ") == importlib.import_module(name).__all__


def test_what_is_public_has_a_docstring() -> None:
    """Classes, functions, and their public methods and properties: the reference is made of them."""
    bare = []
    for name, module in modules().items():
        for each in module.__all__:
            thing = getattr(module, each)
            if getattr(thing, "__module__", "").startswith("openapi_ws") and callable(thing):
                members = vars(thing) if isinstance(thing, type) else {}
                own = {key: value for key, value in members.items() if not key.startswith("_")}
                described = {each: thing, **{f"{each}.{k}": v for k, v in own.items() if isinstance(v, DESCRIBED)}}
                bare += [f"{name}.{key}" for key, value in described.items() if not inspect.getdoc(value)]
    assert not bare, bare


# -- the text -------------------------------------------------------------------------------------------------


def anchor_of(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def prose_of(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """Files and headings that a link or a picture names exist."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        path, _, anchor = target.partition("#")
        if target.startswith("https://") or anchor.startswith("openapi_ws."):
            continue
        file = (page.parent / path).resolve() if path else page
        headings = re.findall(r"^#+ (.+)$", prose_of(file), re.MULTILINE) if file.suffix == ".md" and anchor else []
        if not file.is_file() or (anchor and anchor not in map(anchor_of, headings)):
            broken.append(target)
    assert not broken, broken


def test_no_text_speaks_of_one_machine() -> None:
    """No absolute path of somebody's machine, no registry's host: a clone works anywhere."""
    machine = re.compile(r"(?<![\w.~$}-])/(?:root|home|Users|work|tmp|mnt)/")
    registry = re.compile(r"https?://[^\s/\"']*(?:registry|pypi|pythonhosted|npmjs|artifactory|proxy)", re.IGNORECASE)
    found = [
        f"{name_of(file)}:{number}: {line.strip()}"
        for file in source_files()
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1)
        if file != Path(__file__) and (machine.search(line) or registry.search(line))
    ]
    assert not found, found


def source_files() -> Iterator[Path]:
    """Text of the repository, without what tools leave in it."""
    for top in ROOT.iterdir():
        if top.is_file():
            inside = [top]
        elif top.name in ("openapi_ws", "example", "tests", "docs", ".ci"):
            inside = [file for file in top.rglob("*") if file.is_file()]
        else:
            continue
        for file in inside:
            is_ours = (
                not {"node_modules", "__pycache__", "_build"} & set(file.parts) and "/.venv" not in file.as_posix()
            )
            if is_ours and b"\0" not in file.read_bytes():
                yield file
