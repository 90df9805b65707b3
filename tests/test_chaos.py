"""Two servers, a Redis and their clients while all that can break does: what a checker finds in the logs afterwards.

``SEED=7`` repeats a run; ``MESSAGES=2000`` shortens it, the default is what the project promises.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from chaos.ledger import Id, Record, live_faults, log_faults
from redis_server import RedisServer, binary, free_port

from openapi_ws.history import Position

HERE = Path(__file__).parent
MESSAGES = int(os.environ.get("MESSAGES", "10000"))
SEED = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
ROOMS, SUBSCRIBERS, PUBLISHERS = 2, 20, 4
WAIT = 30.0
"""Seconds that bound a hang; they measure nothing."""
TRY_AGAIN = 0.05
"""Seconds until a client that was turned away comes back, at most."""
BROKER_UNAVAILABLE = -32012
LOST = (aiohttp.ClientError, OSError, TimeoutError)


class Node:
    """A server in a process of its own, on one port for its whole life."""

    def __init__(self, url: str, log: Path) -> None:
        self.port, self._url, self.log = free_port(), url, log
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, str(HERE / "chaos" / "node.py"), str(self.port), self._url,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
                env={**os.environ, "PYTHONPATH": str(HERE.parent)},
            )  # fmt: skip
        assert self._process.stdout is not None
        assert await asyncio.wait_for(self._process.stdout.readline(), WAIT), self.log.read_text()

    async def kill(self) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


class Stage:
    """All that takes part, and what happens to it."""

    def __init__(self, redis: RedisServer, folder: Path, seed: int) -> None:
        self.redis, self.chance = redis, random.Random(seed)
        self.nodes = [Node(redis.url, folder / f"node{number}.log") for number in range(2)]
        self.session = aiohttp.ClientSession()
        self.acknowledged: list[dict[Id, Position]] = [{} for _ in range(ROOMS)]
        self.heard_live: list[list[Id]] = [[] for _ in range(ROOMS)]
        self.failures = 0
        self.ended = 0
        """How many faults are over."""
        self.is_calm = False
        """Nobody goes away any more without need."""
        self.told: list[str] = []
        self._news = asyncio.Event()
        faults = [self.kill_redis, self.freeze_redis, self.cut_subscriptions, self.cut_commands, self.kill_node]
        self.schedule = [*faults, *faults, self.cut_subscriptions, self.cut_subscriptions]
        self.chance.shuffle(self.schedule)

    def tell(self) -> None:
        """Something has changed that somebody may wait for."""
        self._news.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(WAIT):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def connect(self, number: int) -> Any:
        """A connection to one of the nodes: who comes back comes to the other one."""
        url = f"http://127.0.0.1:{self.nodes[number % 2].port}/stream"
        return self.session.ws_connect(url, max_msg_size=0, timeout=aiohttp.ClientWSTimeout(ws_close=1.0))

    @property
    def count(self) -> int:
        return sum(map(len, self.acknowledged))

    async def go(self) -> None:
        """Break one thing after the other, each when so much was published."""
        for number, fault in enumerate(self.schedule, 1):
            due = self._due(number)
            await self.until(lambda due=due: self.count >= due)
            self.told.append(f"at {self.count}: {fault.__name__}")
            await fault()
            self.ended = number
            self.tell()

    def _due(self, number: int) -> float:
        """How much is published when the fault of this *number* begins."""
        return MESSAGES * number / (len(self.schedule) + 1)

    async def has_room(self) -> None:
        """Return when something may be published: without this, all would be out before the last things break."""
        await self.until(lambda: self.count < self._due(self.ended + 2) or self.ended == len(self.schedule))

    async def _failure(self) -> None:
        before = self.failures
        await self.until(lambda: self.failures > before)

    async def kill_redis(self) -> None:
        self.redis.kill()
        await self._failure()
        await self.redis.start()

    async def freeze_redis(self) -> None:
        self.redis.freeze()
        await self._failure()
        self.redis.thaw()

    async def cut_subscriptions(self) -> None:
        await asyncio.to_thread(self.redis.ask, "CLIENT", "KILL", "TYPE", "pubsub")

    async def cut_commands(self) -> None:
        await asyncio.to_thread(self.redis.ask, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    async def kill_node(self) -> None:
        node = self.chance.choice(self.nodes)
        await node.kill()
        await node.start()

    async def at_rest(self) -> None:
        """Return when both nodes say that they are well."""
        async with asyncio.timeout(WAIT):
            for node in self.nodes:
                status = 0
                while status != 200:
                    async with self.session.get(f"http://127.0.0.1:{node.port}/ready") as response:
                        status = response.status


class Subscriber:
    """Listens to a channel with history and to one without; it comes back with its position."""

    def __init__(self, stage: Stage, number: int) -> None:
        self.stage, self.number, self.room = stage, number, number % ROOMS
        self.log: list[Record] = []
        self.live: list[Record] = []
        self.position: str | None = None
        self.waits = {"log", "live"}
        """What it has not subscribed to yet on this connection."""

    async def run(self) -> None:
        for turn in range(self.number, sys.maxsize):
            with contextlib.suppress(*LOST):
                async with self.stage.connect(turn) as ws:
                    await self._listen(ws)
            self.waits = {"log", "live"}
            await asyncio.sleep(self.stage.chance.uniform(0, TRY_AGAIN))

    async def _listen(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        for kind in ("log", "live"):
            await self._subscribe(ws, kind)
        left = self.stage.chance.randrange(100, 2000)
        async for frame in ws:
            message = json.loads(frame.data)
            if "method" in message:
                await self._take_answer(ws, message)
            elif "notice" in message:
                kind = message["data"]["channel"].partition(":")[0]
                self._tell(kind, Record("flag", reason=message["data"].get("reason", "missed")))
            else:
                self._take(message)
            left -= 1
            if left < 0 and not self.stage.is_calm:
                return

    async def _subscribe(self, ws: aiohttp.ClientWebSocketResponse, kind: str) -> None:
        payload = {"channel": f"{kind}:{self.room}"}
        if kind == "log" and self.position is not None:
            payload["position"] = self.position
        await ws.send_str(json.dumps({"id": kind, "method": "subscribe", "payload": payload}))

    async def _take_answer(self, ws: aiohttp.ClientWebSocketResponse, answer: dict[str, Any]) -> None:
        kind = answer["id"]
        if "error" in answer:
            assert answer["error"]["code"] == BROKER_UNAVAILABLE, answer
            await self._subscribe(ws, kind)
            return
        response = answer["response"]
        place = Position.parse(response["position"]) if kind == "log" else None
        if self.position is None or kind == "live":
            self._tell(kind, Record("start", place))
        elif not response["recovered"]:
            self._tell(kind, Record("flag", reason=response["reason"]))
        for message in response.get("messages", ()):
            self._take(message)
        if kind == "log":
            self.position = response["position"]
        self.waits.discard(kind)
        self.stage.tell()

    def _take(self, message: dict[str, Any]) -> None:
        kind, id_ = message["channel"].partition(":")[0], (message["data"][0], message["data"][1])
        place = None
        if kind == "log":
            self.position = message["position"]
            place = Position.parse(message["position"])
        self._tell(kind, Record("message", place, id_))

    def _tell(self, kind: str, record: Record) -> None:
        (self.log if kind == "log" else self.live).append(record)
        if self.stage.is_calm:
            self.stage.tell()


class Publisher:
    """Publishes one message after the other, each until it is acknowledged, under one key; some that nobody keeps."""

    def __init__(self, stage: Stage, number: int) -> None:
        self.stage, self.name, self.room, self.turn = stage, f"p{number}", number % ROOMS, number
        self._ws: aiohttp.ClientWebSocketResponse | None = None

    async def run(self, numbers: range) -> None:
        for number in numbers:
            await self.stage.has_room()
            while (position := await self._ask("log", number, key=f"{self.name} {number}")) is None:
                self.stage.failures += 1
                self.stage.tell()
            self.stage.acknowledged[self.room][self.name, number] = position
            if number % 4 == 0 and await self._ask("live", number) is not None:
                self.stage.heard_live[self.room].append((self.name, number))
            self.stage.tell()

    async def _ask(self, kind: str, number: int, **members: str) -> Position | None:
        """Where the message is, or None: nobody knows what became of it."""
        payload = {"channel": f"{kind}:{self.room}", "event": "e", "data": [self.name, number], **members}
        try:
            if self._ws is None or self._ws.closed:
                self._ws = await self.stage.connect(self.turn)
            await self._ws.send_str(json.dumps({"id": number, "method": "publish", "payload": payload}))
            frame = await self._ws.receive(WAIT)
        except LOST:
            frame = None
        if frame is None or frame.type is not aiohttp.WSMsgType.TEXT:
            self._ws, self.turn = None, self.turn + 1
            await asyncio.sleep(self.stage.chance.uniform(0, TRY_AGAIN))
            return None
        answer = json.loads(frame.data)
        if "error" in answer:
            assert answer["error"]["code"] == BROKER_UNAVAILABLE, answer
            return None
        return Position.parse(answer["response"].get("position", "0.0."))


def at(offset: int, epoch: str = "e") -> Position:
    return Position(epoch, offset, f"n{offset}")


def came(*offsets: int) -> list[Record]:
    return [Record("message", at(offset), ("p", offset)) for offset in offsets]


START, FLAG = Record("start", at(0)), Record("flag", reason="fork")


@pytest.mark.parametrize(
    ("records", "fault"),
    [
        ([START, *came(1, 2, 3)], ""),
        ([START, *came(1), FLAG, *came(3)], ""),
        ([START, FLAG, *came(1, 3)], ""),  # a notice may overtake messages that are older
        ([Record("start", at(2)), *came(3)], ""),
        ([], "never subscribed"),
        ([START, *came(1, 3)], "no flag between"),
        ([START, *came(1), FLAG, *came(3, 5)], "no flag between"),
        ([START, *came(1, 2, 2, 3)], "came twice"),
        ([START, *came(1), FLAG, *came(1, 2, 3)], "came twice"),
        ([START, FLAG, *came(2, 1, 3)], "came after"),
        ([START, *came(1, 2)], "('p', 3) was acknowledged at e.3.n3, and neither came nor was flagged"),
        ([START, *came(1, 2), FLAG], "neither came nor was flagged"),
        ([START, *came(1, 2), Record("message", at(3), ("p", 4))], "('p', 3) was acknowledged"),
        ([START, *came(1), Record("message", at(2), ("p", 3)), Record("message", at(3), ("p", 2))], "came after"),
    ],
)
def test_the_checker_sees_what_a_channel_with_history_promises(records: list[Record], fault: str) -> None:
    """Each kind of fault is found, and what is right is not."""
    found = list(log_faults(records, {("p", offset): at(offset) for offset in (1, 2, 3)}))
    assert any(fault in each for each in found) if fault else not found


@pytest.mark.parametrize(
    ("records", "fault"),
    [
        ([START, *came(1, 2, 3)], ""),
        ([START, *came(1), FLAG, *came(3)], ""),
        ([START, *came(1), START, *came(3)], ""),
        ([START, *came(2)], ""),
        ([START, *came(1, 3)], "[2] were acknowledged"),
        ([START, *came(1), FLAG, *came(2, 4)], "[3] were acknowledged"),
        ([START, *came(1, 1)], "came after"),
        ([START, *came(2), FLAG, *came(1)], "came after"),
    ],
)
def test_the_checker_sees_what_other_channels_promise(records: list[Record], fault: str) -> None:
    """At most once, in order, and a notice where something may be missing."""
    found = list(live_faults(records, [("p", number) for number in (1, 2, 3)]))
    assert any(fault in each for each in found) if fault else not found


def _is_at_end(stage: Stage, subscriber: Subscriber) -> bool:
    """It has what was published last, of each publisher."""
    log, live = stage.acknowledged[subscriber.room], stage.heard_live[subscriber.room]
    last = max(log.values(), key=lambda place: place.offset)
    recent = {record.id for record in subscriber.live[-20:]}
    return subscriber.position == str(last) and recent.issuperset(dict(live).items())


def _faults(stage: Stage, subscriber: Subscriber) -> Iterator[str]:
    who = f"subscriber {subscriber.number}: "
    for fault in log_faults(subscriber.log, stage.acknowledged[subscriber.room]):
        yield who + fault
    for fault in live_faults(subscriber.live, stage.heard_live[subscriber.room]):
        yield who + fault


@pytest.fixture
def durable_redis() -> Iterator[RedisServer]:
    """A server that acknowledges nothing before it is written."""
    if binary() is None:
        pytest.skip("no redis-server")
    server = RedisServer(appendonly="yes", appendfsync="always")
    try:
        server.launch()
        yield server
    finally:
        server.stop()


async def test_nothing_acknowledged_is_lost_in_silence(durable_redis: RedisServer, tmp_path: Path) -> None:
    """Two servers, 20 subscribers who come back with their position, 4 publishers, 10,000 messages.

    Meanwhile Redis is killed and frozen, its connections are cut, servers are killed, and clients go of themselves. No
    message comes twice or out of order, and what was acknowledged came or was flagged; on channels without history at
    most once, in order, with a notice where something may be missing.
    """
    stage = Stage(durable_redis, tmp_path, SEED)
    subscribers = [Subscriber(stage, number) for number in range(SUBSCRIBERS)]
    publishers = [Publisher(stage, number) for number in range(PUBLISHERS)]
    tasks: list[asyncio.Task[None]] = []
    each = MESSAGES // PUBLISHERS
    try:
        await asyncio.gather(*(node.start() for node in stage.nodes))
        tasks += [asyncio.create_task(subscriber.run()) for subscriber in subscribers]
        await stage.until(lambda: not any(subscriber.waits for subscriber in subscribers))
        async with asyncio.TaskGroup() as group:
            group.create_task(stage.go())
            for publisher in publishers:
                group.create_task(publisher.run(range(each)))
        stage.is_calm = True
        await stage.at_rest()
        await stage.until(lambda: not any(subscriber.waits for subscriber in subscribers))
        await asyncio.gather(*(publisher.run(range(each, each + 5)) for publisher in publishers))
        await stage.until(lambda: all(_is_at_end(stage, subscriber) for subscriber in subscribers))
    except BaseException as error:
        died = [task.exception() for task in tasks if task.done() and not task.cancelled()]
        logs = [node.log.read_text()[-2000:] for node in stage.nodes]
        raise AssertionError(f"SEED={SEED}, {stage.told}: {error!r}, {died}, {logs}") from error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(node.kill() for node in stage.nodes))
        await stage.session.close()
    flags = Counter(record.reason for subscriber in subscribers for record in subscriber.log if record.what == "flag")
    print(f"SEED={SEED}, {stage.told}, {flags} on {sum(len(subscriber.log) for subscriber in subscribers)} records")
    found = [fault for subscriber in subscribers for fault in _faults(stage, subscriber)]
    if found:
        pytest.fail(f"SEED={SEED}, {stage.told}: {len(found)} faults, the first: {found[0]}", pytrace=False)


async def test_the_clients_of_a_killed_server_leave(redis_server: RedisServer, tmp_path: Path) -> None:
    """Nobody says goodbye for them: the other server finds that their time is up, and tells those who are left."""
    nodes = [Node(redis_server.url, tmp_path / f"node{number}.log") for number in range(2)]
    subscribe = {"id": 1, "method": "subscribe", "payload": {"channel": "lobby"}}
    async with aiohttp.ClientSession() as session:
        try:
            await asyncio.gather(*(node.start() for node in nodes))
            stays, goes = [await session.ws_connect(f"http://127.0.0.1:{node.port}/stream") for node in nodes]
            told: list[tuple[str, int]] = []

            async def until_told(what: str) -> None:
                """Until *stays* is told of one who joins or leaves, beside itself."""
                async with asyncio.timeout(WAIT):
                    while (what, 1) not in told:
                        frame = await stays.receive_json()
                        if frame.get("notice") in ("join", "leave"):
                            told.append((frame["notice"], len(frame["data"]["members"])))

            await stays.send_json(subscribe)
            await until_told("join")
            told.clear()
            await goes.send_json(subscribe)
            await until_told("join")
            await nodes[1].kill()
            await until_told("leave")
        finally:
            await asyncio.gather(*(node.kill() for node in nodes))
