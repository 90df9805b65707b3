"""The example, started as a user starts it, and seen through a browser."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
from conftest import WAIT, Client
from playwright.async_api import Browser, Locator, Page, async_playwright, expect
from redis_server import RedisServer, free_port, patiently

ROOT = Path(__file__).parent.parent
PYTHON = os.environ.get("EXAMPLE_PYTHON", sys.executable)
"""What runs the example: in CI an environment with nothing but what the package itself asks for."""
CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

expect.set_options(timeout=WAIT * 1000)


class Example:
    """The example as a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process, self.url = process, url

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def interrupt(self) -> tuple[int | None, str]:
        """Press Ctrl+C; the exit status, and what the process complained of in its life."""
        self.process.send_signal(signal.SIGINT)
        _, complaints = await asyncio.wait_for(self.process.communicate(), WAIT)
        return self.process.returncode, complaints.decode()


Start = Callable[..., Awaitable[Example]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Run ``python -m example``; what a test leaves running ends with it."""
    processes: list[asyncio.subprocess.Process] = []
    # The address must come through a pipe without help from outside.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}

    async def run(port: int = 0, *options: str) -> Example:
        # A newcomer's environment has no redis-py.
        python = sys.executable if "--redis" in options else PYTHON
        process = await asyncio.create_subprocess_exec(
            python, "-m", "example", "--port", str(port), *options, cwd=ROOT, env=env,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        processes.append(process)
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), WAIT)
        address = re.search(r"http://127\.0\.0\.1:[1-9]\d*", line.decode())
        assert address, line
        return Example(process, address[0])

    yield run
    for process in processes:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)  # its workers, too
            await process.communicate()


class Link:
    """A way to a server that can be cut: connections break at once, and none is let through until it is mended."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._is_cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Link:
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        """What stands for the server's own address."""
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self.cut()
        self._server.close()
        await self._server.wait_closed()

    def cut(self) -> None:
        self._is_cut = True
        for writer in self._writers:
            writer.transport.abort()

    def mend(self) -> None:
        self._is_cut = False

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, server_writer}
        await asyncio.gather(copy(reader, server_writer), copy(server_reader, writer))
        self._writers -= {writer, server_writer}


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on all that comes, to the end of either."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


class Tabs:
    """Tabs of one browser, and what went wrong in any of them."""

    def __init__(self, browser: Browser) -> None:
        self.problems: list[str] = []
        self._browser = browser

    async def open(self, url: str) -> Page:
        """A tab that shows *url* and is connected."""

        def stay(address: str) -> None:
            if urlsplit(address).netloc != urlsplit(url).netloc:
                self.problems.append(f"request to {address}")

        page = await self._browser.new_page()
        page.set_default_timeout(WAIT * 1000)
        page.on("request", lambda request: stay(request.url))
        page.on("websocket", lambda websocket: stay(websocket.url))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda message: self.problems.append(message.text))
        await page.goto(url)
        await expect(page.locator("#status")).to_have_text("Connected")
        return page

    def forget_failed_connections(self) -> None:
        """Take off the problems what the browser itself reports of each attempt while there is no server."""
        self.problems[:] = [problem for problem in self.problems if "WebSocket connection to" not in problem]

    async def enter(self, url: str, name: str, room: str = "lobby") -> Page:
        """A tab in which *name* is in *room*."""
        page = await self.open(url)
        await knock(page, name, room)
        await expect(page.get_by_role("heading", name=room)).to_be_visible()
        return page


@pytest.fixture
async def tabs() -> AsyncIterator[Tabs]:
    """A headless Chromium; a test in which a page complains or asks another server for anything fails."""
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        end = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        end(f"no browser: install one of {', '.join(names)}, or set CHROMIUM to the path of one")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGS)
        opened = Tabs(browser)
        yield opened
        await browser.close()
    assert opened.problems == []


async def knock(page: Page, name: str, room: str = "lobby") -> None:
    await page.get_by_label("Room").fill(room)
    await page.get_by_label("Your name").fill(name)
    await page.get_by_role("button", name="Enter").click()


async def say(page: Page, text: str) -> None:
    await page.get_by_role("textbox", name="Message").fill(text)
    await page.get_by_role("button", name="Send").click()


async def tell(page: Page, text: str) -> None:
    """Say *text*, and see it said."""
    await say(page, text)
    # Who has come and gone is told a quarter of a second later: it may be the last line.
    await expect(words(page).last).to_have_text(text)


def lines(page: Page) -> Locator:
    return page.get_by_role("log").locator("li p")


def words(page: Page) -> Locator:
    """What was said, without who came and went."""
    return page.get_by_role("log").locator(".own p, .other p")


def people(page: Page) -> Locator:
    return page.get_by_role("list", name="Who is here").get_by_role("listitem")


# -- without a browser ------------------------------------------------------------------------------------------------


async def test_it_prints_its_address_and_ends_at_an_interrupt_though_a_client_is_connected(start: Start) -> None:
    """Port 0 prints the real port; Ctrl+C closes clients with 1012 and exits with 0, without a complaint."""
    example = await start()
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{example.url}/ws") as ws:
        client = Client(ws)
        await client.call("subscribe", {"channel": "load"})
        leaving = asyncio.create_task(example.interrupt())
        assert await client.closed() == 1012
        assert await leaving == (0, "")


async def test_only_the_page_is_served(start: Start) -> None:
    """Each file of the page comes with a policy that ties it to this server; the code beside it does not come."""
    example = await start()
    async with aiohttp.ClientSession(example.url) as session:
        for path in ("/", "/page.css", "/page.js", "/socket.js", "/chart.js", "/icon.svg"):
            async with session.get(path) as answer:
                assert answer.status == 200, path
                assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'"), path
        for path in ("/app.py", "/__main__.py", "/page.html.py", "/%2e%2e/setup.cfg", "/none.js"):
            async with session.get(path) as answer:
                assert answer.status == 404, path


async def test_who_is_in_no_room_cannot_speak(start: Start) -> None:
    """An error of the application's own has its own code."""
    example = await start()
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{example.url}/ws") as ws:
        assert await Client(ws).error("say", {"text": "Hello"}) == {"message": "Enter a room first", "code": 2}


async def notice(client: Client, name: str) -> list[tuple[str, str | None]]:
    """Users and names of the next notice *name*."""
    while True:
        frame = client.pushed.pop(0) if client.pushed else await client.receive()
        if frame.get("notice") == name:
            return [(member["user"], member["info"]) for member in frame["data"]["members"]]


async def names(client: Client, room: str) -> list[str]:
    """Who is in *room*."""
    members = (await client.call("presence", {"channel": f"chat:{room}"}))["members"]
    return sorted(member["info"] for member in members)


async def test_who_enters_another_room_has_left_the_first(start: Start) -> None:
    """A client is in one room at a time, and those who stay behind are told."""
    url = f"{(await start()).url}/ws"
    async with aiohttp.ClientSession() as session, session.ws_connect(url) as one, session.ws_connect(url) as other:
        ada, grace = Client(one), Client(other)
        await ada.call("enter", {"room": "lobby", "name": "Ada"})
        await grace.call("enter", {"room": "lobby", "name": "Grace"})
        assert await names(grace, "lobby") == ["Ada", "Grace"]
        # Who comes and goes within a quarter of a second is not told of.
        assert "Grace" in [name for _, name in await notice(grace, "join")]
        welcome = await ada.call("enter", {"room": "library", "name": " Ada "})
        assert welcome == {"room": "library", "name": "Ada"}
        assert [name for _, name in await notice(grace, "leave")] == ["Ada"]
        assert await names(grace, "lobby") == ["Grace"]
        assert await names(grace, "library") == ["Ada"]


async def test_a_name_is_taken_by_entering_alone(start: Start) -> None:
    """Who listened first, or says otherwise of itself, gets no name that somebody has."""
    url = f"{(await start()).url}/ws"
    async with aiohttp.ClientSession() as session, session.ws_connect(url) as one, session.ws_connect(url) as other:
        ada, eve = Client(one), Client(other)
        await ada.call("enter", {"room": "lobby", "name": "Ada"})
        await eve.call("enter", {"room": "library", "name": "Ada"})
        await eve.call("subscribe", {"channel": "chat:lobby"})
        members = (await ada.call("presence", {"channel": "chat:lobby"}))["members"]
        assert {member["info"] for member in members} == {"Ada", None}
        assert (await eve.error("presence_update", {"channel": "chat:lobby", "info": "Ada"}))["code"] == 3
        taken = {"message": "Somebody in lobby is called Ada already", "code": 1}
        assert await eve.error("enter", {"room": "lobby", "name": "Ada"}) == taken
        assert await names(ada, "lobby") == ["Ada"]
        await eve.call("subscribe", {"channel": "chat:lobby"})
        await eve.call("enter", {"room": "lobby", "name": "Eve"})
        assert await names(ada, "lobby") == ["Ada", "Eve"]


async def test_a_room_keeps_the_last_two_hundred_words(start: Start) -> None:
    """Who comes later reads them, and no more."""
    url = f"{(await start()).url}/ws"
    async with aiohttp.ClientSession() as session, session.ws_connect(url) as ws:
        ada = Client(ws)
        await ada.call("enter", {"room": "lobby", "name": "Ada"})
        for n in range(205):
            await ada.call("say", {"text": str(n)})
        kept = await ada.call("history", {"channel": "chat:lobby", "limit": 300})
        assert [message["data"]["text"] for message in kept["messages"]] == [str(n) for n in range(5, 205)]


def test_it_stays_small() -> None:
    """It is read in one go: fewer than 150 lines of Python."""
    assert sum(len(file.read_text().splitlines()) for file in (ROOT / "example").rglob("*.py")) < 150


# -- with a browser ---------------------------------------------------------------------------------------------------


async def test_two_in_one_room_talk_and_a_third_elsewhere_does_not_hear_them(start: Start, tabs: Tabs) -> None:
    """All in a room see who is there and what is said, as text, whatever is in it."""
    url = (await start()).url
    ada, grace, alan = await asyncio.gather(
        tabs.enter(url, "Ada"), tabs.enter(url, " Grace "), tabs.enter(url, "Alan", room="library")
    )
    for page in (ada, grace):
        await expect(people(page)).to_have_text(["Ada", "Grace"])
    await expect(people(alan)).to_have_text(["Alan"])

    await say(ada, "Hello Grace")
    await expect(words(grace).last).to_have_text("Hello Grace")
    await say(grace, "<img src=x onerror=alert()> & more")
    for page in (ada, grace):
        await expect(words(page).last).to_have_text("<img src=x onerror=alert()> & more")
        await expect(page.get_by_role("log").locator(".own, .other")).to_have_count(2)
    await expect(ada.locator("li.other")).to_contain_text("Grace, ")

    # What reached Alan did so before his own words came back to him.
    await say(alan, "Anybody?")
    await expect(lines(alan)).to_have_text(["Anybody?"])


async def test_a_closed_tab_and_a_left_room_are_told_to_those_who_stay(start: Start, tabs: Tabs) -> None:
    """Both ways out take the name off the list."""
    url = (await start()).url
    ada, grace, alan = await asyncio.gather(*(tabs.enter(url, name) for name in ("Ada", "Grace", "Alan")))
    await expect(people(ada)).to_have_text(["Ada", "Alan", "Grace"])
    await grace.close()
    await expect(people(ada)).to_have_text(["Ada", "Alan"])
    await expect(lines(ada).last).to_have_text("Grace left")
    await alan.get_by_role("button", name="Leave").click()
    await expect(alan.get_by_role("heading", name="Enter a room")).to_be_visible()
    await expect(people(ada)).to_have_text(["Ada"])
    await expect(lines(ada).last).to_have_text("Alan left")


async def test_a_page_that_is_loaded_anew_does_not_leave(start: Start, tabs: Tabs) -> None:
    """It is in its room again, and the others see nothing of it."""
    url = (await start()).url
    ada, grace = await asyncio.gather(tabs.enter(url, "Ada"), tabs.enter(url, "Grace"))
    await expect(people(grace)).to_have_text(["Ada", "Grace"])
    await ada.goto("about:blank")
    # What is told of Alan comes after what would be told of Ada.
    alan = await tabs.enter(url, "Alan")
    await expect(lines(grace).last).to_have_text("Alan entered")
    await ada.goto(url)
    await expect(people(ada)).to_have_text(["Ada", "Alan", "Grace"])
    await alan.get_by_role("button", name="Leave").click()
    await expect(lines(grace).last).to_have_text("Alan left")
    await expect(lines(grace).filter(has_text="Ada left")).to_have_count(0)


async def test_the_chart_moves(start: Start, tabs: Tabs) -> None:
    """A point is added to the line for each value that the server publishes."""
    page = await tabs.open((await start()).url)
    line = page.locator("#chart polyline")
    for points in (1, 2):
        await expect(line).to_have_attribute("points", re.compile(rf"^(\S+,\S+ ?){{{points},}}$"))
    await expect(page.locator("#load")).to_have_text(re.compile(r"^\d+\.\d\d$"))


async def test_errors_are_shown_where_they_belong(start: Start, tabs: Tabs) -> None:
    """A broken constraint is shown beside its field, any other error below the form; both go when all is well."""
    url = (await start()).url
    await tabs.enter(url, "Ada")
    page = await tabs.open(url)
    name, failure = page.get_by_label("Your name"), page.locator("#door .failure")

    await knock(page, "   ")
    await expect(page.locator("#name-error")).to_have_text("String should have at least 1 character")
    await expect(name).to_have_attribute("aria-invalid", "true")
    await expect(name).to_be_focused()
    await knock(page, "Ada")
    await expect(failure).to_have_text("Somebody in lobby is called Ada already")
    await expect(page.locator("#name-error")).to_be_empty()
    await knock(page, "Grace")
    await expect(page.get_by_role("heading", name="lobby")).to_be_visible()

    await say(page, "a" * 501)
    await expect(page.locator("#text-error")).to_have_text("String should have at most 500 characters")
    await expect(lines(page)).to_have_count(0)
    await say(page, "a" * 500)
    await expect(lines(page)).to_have_text(["a" * 500])
    await expect(page.locator("#text-error")).to_be_empty()


async def test_the_page_says_when_it_is_disconnected_and_comes_back(start: Start, tabs: Tabs) -> None:
    """After a restart of the server the page is in its room again, and the chart moves again."""
    example = await start()
    page = await tabs.enter(example.url, "Ada")
    await tell(page, "Before")
    await example.interrupt()
    await expect(page.locator("#status")).to_have_text("Disconnected, trying again…")
    await say(page, "Hello")
    await expect(page.locator("#speak .failure")).to_have_text("Not connected")

    await start(example.port)
    await expect(page.locator("#status")).to_have_text("Connected")
    await expect(lines(page).last).to_have_text("You are back. Some of what was said meanwhile is missing here.")
    await expect(people(page)).to_have_text(["Ada"])
    await say(page, "Hello")
    await expect(lines(page).last).to_have_text("Hello")
    tabs.forget_failed_connections()


async def test_a_lost_link_makes_no_hole_and_no_double(start: Start, tabs: Tabs) -> None:
    """Words of before, of meanwhile and of afterwards stand in the room once each, and do so after a reload, too."""
    example = await start()
    async with Link(example.port) as link:
        ada, grace = await asyncio.gather(tabs.enter(link.url, "Ada"), tabs.enter(example.url, "Grace"))
        await say(grace, "before")
        await expect(words(ada).last).to_have_text("before")
        link.cut()
        await expect(ada.locator("#status")).to_have_text("Disconnected, trying again…")
        for text in ("meanwhile", "still"):
            await tell(grace, text)
        link.mend()
        await expect(ada.locator("#status")).to_have_text("Connected")
        await say(grace, "afterwards")
        said = ada.get_by_role("log").locator(".other p")
        await expect(said).to_have_text(["before", "meanwhile", "still", "afterwards"])
        await expect(lines(ada).filter(has_text="missing")).to_have_count(0)
        await ada.reload()
        await expect(said).to_have_text(["before", "meanwhile", "still", "afterwards"])
    tabs.forget_failed_connections()


async def test_the_client_of_the_guide_misses_nothing(start: Start, tabs: Tabs) -> None:
    """The JavaScript that the guide shows, run as it stands there, over a link that is cut."""
    guide = (ROOT / "docs" / "guides" / "nothing-lost.md").read_text("utf-8")
    (script,) = re.findall(r"^```js\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    example = await start()
    grace = await tabs.enter(example.url, "Grace")
    async with Link(example.port) as link:
        page = await tabs.open(link.url)
        await page.evaluate(
            script
            + """
            const see = (what) => (document.title = [document.title, what].filter(Boolean).join());
            document.title = "";
            follow(location.origin.replace("http", "ws") + "/ws", "chat:lobby", {
              onMessage: ({ data }) => see(data.text),
              onReset: () => see("reset"),
            });
            """
        )
        seen = "reset"
        await expect(page).to_have_title(seen)
        for n in range(3):
            link.cut()
            for text in (f"meanwhile {n}", f"still {n}"):
                await tell(grace, text)
            link.mend()
            seen += f",meanwhile {n},still {n}"
            await expect(page).to_have_title(seen)
            await tell(grace, f"live {n}")
            seen += f",live {n}"
            await expect(page).to_have_title(seen)
    tabs.forget_failed_connections()


# -- over Redis -------------------------------------------------------------------------------------------------------


async def test_several_workers_without_redis_are_refused() -> None:
    """They would not hear of each other: the command says what is missing."""
    process = await asyncio.create_subprocess_exec(
        PYTHON, "-m", "example", "--workers", "2", cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    _, complaint = await asyncio.wait_for(process.communicate(), WAIT)
    assert process.returncode == 2
    assert b"several workers need --redis" in complaint


def workers(port: int) -> set[str]:
    """Inodes of the sockets that listen on *port*, as Linux tells: of each worker one."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[9] for row in rows if row[1] == f"0100007F:{port:04X}" and row[3] == "0A"}


async def test_workers_share_a_port_and_the_chat_and_end_together(start: Start, redis_server: RedisServer) -> None:
    """Whoever of the workers a client gets, it hears all; Ctrl+C ends all of them, without a complaint."""
    port = free_port()
    example = await start(port, "--redis", redis_server.url, "--workers", "3")
    await asyncio.wait_for(asyncio.to_thread(wait_for_workers, port, 3), WAIT)
    async with aiohttp.ClientSession() as session, contextlib.AsyncExitStack() as stack:
        # That all of them get the same one of three workers happens once in 3 ** 19 times.
        clients = [Client(await stack.enter_async_context(session.ws_connect(f"{example.url}/ws"))) for _ in range(20)]
        for n, client in enumerate(clients):
            await client.call("enter", {"room": "lobby", "name": f"{n:02}"})
            await client.call("subscribe", {"channel": "chat:lobby"})
        assert await names(clients[0], "lobby") == [f"{n:02}" for n in range(20)]
        await clients[0].call("say", {"text": "Hello"})
        for client in clients:
            while "channel" not in (frame := client.pushed.pop(0) if client.pushed else await client.receive()):
                pass
            assert frame["data"]["text"] == "Hello"
        status, complaints = await example.interrupt()
    assert (status, complaints) == (0, "")
    assert workers(port) == set()


def wait_for_workers(port: int, number: int) -> None:
    for _ in patiently(f"{number} workers on port {port}"):
        if len(workers(port)) == number:
            return


async def test_two_processes_are_one_chat_and_redis_may_die(start: Start, tabs: Tabs, own_redis: RedisServer) -> None:
    """Pages of two processes see and hear each other, and go on without a hole when Redis is back."""
    one, other = await asyncio.gather(*(start(0, "--redis", own_redis.url) for _ in range(2)))
    ada, grace = await tabs.enter(one.url, "Ada"), await tabs.enter(other.url, "Grace")
    for page in (ada, grace):
        await expect(people(page)).to_have_text(["Ada", "Grace"])
    await expect(lines(ada).last).to_have_text("Grace entered")
    twin = await tabs.open(other.url)
    await knock(twin, "Ada")
    await expect(twin.locator("#door .failure")).to_have_text("Somebody in lobby is called Ada already")
    await say(grace, "before")
    said = ada.get_by_role("log").locator(".other p")
    await expect(said).to_have_text(["before"])

    own_redis.kill()
    await say(grace, "meanwhile")
    await expect(grace.locator("#speak .failure")).to_have_text("Broker unavailable")
    await own_redis.start()
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{other.url}/ws") as ws:
        async with asyncio.timeout(WAIT):
            while "error" in await Client(ws).ask("enter", {"room": "library", "name": "Alan"}):
                pass
    await tell(grace, "afterwards")
    await expect(said).to_have_text(["before", "afterwards"])
    await expect(lines(ada).filter(has_text="missing")).to_have_count(0)
    for page in (ada, grace):
        await expect(people(page)).to_have_text(["Ada", "Grace"])
    await grace.get_by_role("button", name="Leave").click()
    await expect(people(ada)).to_have_text(["Ada"])
    await expect(lines(ada).last).to_have_text("Grace left")


async def test_workers_that_measure_draw_one_chart(start: Start, redis_server: RedisServer) -> None:
    """Each second has one value, however many processes publish it, and who comes later reads it."""
    one, other = await asyncio.gather(*(start(0, "--redis", redis_server.url) for _ in range(2)))
    del one
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{other.url}/ws") as ws:
        client = Client(ws)
        await client.call("subscribe", {"channel": "load"})
        began = time.time()
        for _ in range(7):
            assert (await client.message())["event"] == "measured"
        assert time.time() - began > 4.5  # seven of different seconds; without the key, two come in each
        assert len((await client.call("history", {"channel": "load"}))["messages"]) >= 7
