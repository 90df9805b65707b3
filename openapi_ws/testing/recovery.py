"""Floor 5, tools: what a broker promises that keeps messages, as tests."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from openapi_ws.history import History, Position
from openapi_ws.pubsub import PAGE_LIMIT
from openapi_ws.topics import Topic

from .live import LiveContract
from .nodes import JSON, QUEUE, Contract, Node, publish, until, written

__all__ = ["BrokerContract", "HistoryContract"]


async def load(name: str) -> dict[str, str]:
    """The state of ``state:{name}``."""
    return {"name": name}


LIVE = Topic("live:{name}", publish=True)
KEPT = Topic("kept:{name}", history=History(size=1000, ttl=60), publish=True)
FEW = Topic("few:{name}", history=History(size=5, ttl=60))
BRIEF = Topic("brief:{name}", history=History(size=5, ttl=0.2))
STATE = Topic("state:{name}", history=History(), snapshot=load)
TEXT = "x" * 4000
"""500 times that is more than a client that does not read can take."""


class HistoryContract(Contract):
    """What a broker promises that keeps messages: each once and in order, or the truth before anything newer."""

    topics = (LIVE, KEPT, FEW, BRIEF, STATE)

    async def test_a_message_has_one_position_everywhere(self) -> None:
        """Publisher, listeners on both nodes, history and who comes back see the same; all see the same order."""
        async with self.nodes() as (one, two):
            listeners = [await one.listen("kept:a"), await two.listen("kept:a")]
            start = (await listeners[0].call("history", channel="kept:a"))["position"]
            given = await asyncio.gather(publish(one, "kept:a", "one", 20), publish(two, "kept:a", "two", 20))
            seen = [[await client.message() for _ in range(40)] for client in listeners]
            answer = await two.sockets.read("kept:a", KEPT.history or History(), limit=50)
            assert [str(entry.position) for entry in answer.entries] == [message["position"] for message in seen[0]]
            assert seen[0] == seen[1] == await missed(two, "kept:a", start)
            for event, positions in zip(("one", "two"), given, strict=True):
                assert positions == [message["position"] for message in seen[0] if message["event"] == event]

    async def test_who_comes_back_gets_what_it_missed_and_then_what_comes(self) -> None:
        """No hole and no double at the seam, while both nodes publish, on whichever node it comes back."""
        async with self.nodes() as (one, two):
            start = str(await one.sockets.publish("kept:a", "start", None))
            total = 2 * 100
            followers = [self._follow((one, two)[n % 2 :] + (one, two)[: n % 2], start, total, n) for n in range(4)]
            publishers = [publish(node, "kept:a", event, 100) for node, event in ((one, "one"), (two, "two"))]
            *seen, _, _ = await asyncio.gather(*followers, *publishers)
            kept = [message["position"] for message in await missed(one, "kept:a", start)]
            assert len(set(kept)) == total
            for positions in seen:
                assert positions == kept

    async def _follow(self, nodes: Sequence[Node], position: str, total: int, seed: int) -> list[str]:
        """Come back again and again, with the last position each time; the positions of all messages."""
        dice, seen = random.Random(seed), list[str]()
        while len(seen) < total:
            nodes = (*nodes[1:], nodes[0])
            client = await nodes[0].connect()
            answer = await client.call("subscribe", channel="kept:a", position=position)
            assert answer["recovered"], answer
            seen += [message["position"] for message in answer["messages"]]
            for _ in range(min(dice.randrange(20), total - len(seen))):
                seen.append((await client.message())["position"])
            position = seen[-1] if seen else position
            await client.leave()
        return seen

    async def test_what_cannot_be_given_is_said_before_anything_newer(self) -> None:
        """Too long ago, too much, of another life of the channel, of none, or of a channel that keeps nothing."""
        async with self.nodes() as (one, two):
            first, *_, last = await publish(one, "few:a", "n", 7)
            begin, *_, end = await publish(one, "kept:a", "n", PAGE_LIMIT + 2)
            place = placed(last)
            for channel, position, reason, top in [
                ("few:a", first, "trimmed", last),
                ("few:a", replace(place, epoch=f"0{place.epoch}"), "epoch", last),
                ("few:a", replace(place, offset=99), "fork", last),
                ("few:a", replace(place, nonce=f"0{place.nonce}"), "fork", last),
                ("kept:a", begin, "limit", end),
            ]:
                client = await two.connect()
                answer = await client.call("subscribe", channel=channel, position=str(position))
                assert answer["recovered"] is False
                assert (answer["reason"], answer["messages"], answer["position"]) == (reason, [], top)
                await one.sockets.publish("live:a", "n", None)
            client = await two.connect()
            answer = await client.call("subscribe", channel="live:a", position=last)
            assert (answer["recovered"], answer["reason"]) == (False, "none")
            assert (await client.error("subscribe", channel="few:a", position="nonsense"))["code"] == -32602
            newer = await one.sockets.publish("few:a", "n", "newer")
            answer = await client.call("subscribe", channel="few:a", position=last)
            assert (answer["recovered"], answer["position"]) == (True, newer)
            assert [message["data"] for message in answer["messages"]] == ["newer"]

    async def test_only_the_events_subscribed_to_are_recovered(self) -> None:
        """And a second pattern of the same socket costs the first one nothing."""
        async with self.nodes() as (one, two):
            position = str(await two.sockets.publish("kept:a", "a.1", 1))
            client = await one.listen("kept:a", "a.*")
            for event in ("a.2", "b.2"):
                await two.sockets.publish("kept:a", event, 2)
            answer = await client.call("subscribe", channel="kept:a", event="b.*", position=position)
            assert [message["event"] for message in answer["messages"]] == ["b.2"]
            await two.sockets.publish("kept:a", "b.3", 3)
            assert [(await client.message())["event"] for _ in range(2)] == ["a.2", "b.3"]

    async def test_history_is_read_in_pages_both_ways(self) -> None:
        """Each page says whether there are more; positions lead from one to the next, on either node."""
        async with self.nodes() as (one, two):
            positions = await publish(one, "kept:a", "n", 5)
            for node in (one, two):
                client = await node.connect()
                for reverse, kept in ((False, positions), (True, positions[::-1])):
                    read, page, more = list[str](), dict[str, Any](), True
                    while more:
                        since = {"since": read[-1]} if read else {}
                        page = await client.call("history", channel="kept:a", limit=2, reverse=reverse, **since)
                        read += [message["position"] for message in page["messages"]]
                        more = page["more"]
                        assert page["position"] == positions[-1]
                        assert len(page["messages"]) == 2 or not more
                    assert read == kept

    async def test_a_key_publishes_once(self) -> None:
        """Whichever node it is used on again: that gives the first position, and nobody gets it twice."""
        async with self.nodes() as (one, two):
            listeners = [await one.listen("kept:a"), await two.listen("kept:a")]
            given = [await node.sockets.publish("kept:a", "n", "key", key="k") for node in (one, two, one)]
            at_once = await asyncio.gather(
                *(node.sockets.publish("kept:a", "n", "other", key="l") for node in (one, two) * 5)
            )
            assert (len(set(given)), len(set(at_once))) == (1, 1)
            await one.sockets.publish("kept:b", "n", "another channel", key="k")
            await one.sockets.publish("kept:a", "n", "end")
            for client in listeners:
                assert await client.data(3) == ["key", "other", "end"]

    async def test_history_survives_the_last_listener(self) -> None:
        """Who comes when nobody is left reads what was said before, and what was said while nobody was there."""
        async with self.nodes() as (one, two):
            client = await one.connect()
            position = (await client.call("subscribe", channel="kept:a"))["position"]
            await two.sockets.publish("kept:a", "n", "before")
            assert await client.data(1) == ["before"]
            await client.leave()
            await until(one.is_at_rest)
            await two.sockets.publish("kept:a", "n", "alone")
            for node in (one, two):
                assert [message["data"] for message in await missed(node, "kept:a", position)] == ["before", "alone"]

    async def test_no_more_is_kept_than_was_said(self) -> None:
        """The last *size* messages, until *ttl* seconds after the last one; the counter goes on."""
        async with self.nodes() as (one, two):
            await publish(one, "few:a", "n", 12)
            client = await two.connect()
            page = await client.call("history", channel="few:a")
            assert [message["data"] for message in page["messages"]] == [7, 8, 9, 10, 11]
            *_, before, last = await publish(one, "brief:a", "n", 3)

            async def is_gone() -> bool:
                return not (await client.call("history", channel="brief:a"))["messages"]

            await until(is_gone)
            for position, is_recovered in ((before, False), (last, True)):
                answer = await client.call("subscribe", channel="brief:a", position=position)
                assert (answer["recovered"], answer["position"], answer["messages"]) == (is_recovered, last, [])
            await one.sockets.publish("brief:a", "n", "next")
            assert await client.data(1) == ["next"]

    async def test_a_snapshot_comes_with_the_subscription_unless_all_was_recovered(self) -> None:
        """It is the state from which the messages that follow lead on."""
        async with self.nodes() as (one, two):
            client = await one.connect()
            answer = await client.call("subscribe", channel="state:x")
            assert answer["snapshot"] == {"name": "x"}
            await two.sockets.publish("state:x", "n", 1)
            answer = await client.call("subscribe", channel="state:x", position=answer["position"])
            assert ("snapshot" in answer, answer["recovered"]) == (False, True)
            answer = await client.call("subscribe", channel="state:x", position="0.0.")
            assert (answer["recovered"], answer["snapshot"]) == (False, {"name": "x"})

    async def test_json_is_kept_as_it_was_sent(self) -> None:
        """Numbers, texts and depth are not changed in what is read or recovered."""
        async with self.nodes() as (one, two):
            start = str(await one.sockets.publish("kept:a", "é", None))
            for value in JSON:
                await one.sockets.publish("kept:a", "é", value)
            page = await (await two.connect()).call("history", channel="kept:a", since=start)
            for messages in (page["messages"], await missed(two, "kept:a", start)):
                assert [written(message["data"]) for message in messages] == [written(value) for value in JSON]

    async def test_a_slow_client_reads_on_where_it_was(self) -> None:
        """It gets each message once and in order, while little waits for it, and is not closed."""
        async with self.nodes() as (one, two):
            client = await one.connect("/small")
            await client.call("subscribe", channel="kept:a")
            (websocket,) = one.sockets.sockets
            for n in range(500):
                position = await two.sockets.publish("kept:a", "n", [n, TEXT])
                assert websocket.queued_bytes < QUEUE
            await until(lambda: is_at(one, "kept:a", position))
            assert one.sockets.metrics.lagged
            assert websocket.queued_bytes < QUEUE
            assert [n for n, _ in await client.data(500)] == list(range(500))
            await two.sockets.publish("kept:a", "n", [500, ""])
            assert await client.data(1) == [[500, ""]]
            assert websocket.close_code is None

    async def test_a_slow_client_that_falls_out_of_the_history_is_told(self) -> None:
        """A gap notice comes before what is newer."""
        async with self.nodes() as (one, two):
            client = await one.connect("/small")
            await client.call("subscribe", channel="few:a")
            for n in range(500):
                position = await two.sockets.publish("few:a", "n", [n, TEXT])
            await until(lambda: is_at(one, "few:a", position))
            last, holes, gaps = -1, 0, 0
            while last < 499 + gaps:
                pushed = await client.push()
                if "notice" in pushed:
                    assert pushed["data"] == {"channel": "few:a", "reason": "trimmed"}
                    gaps += 1
                    await two.sockets.publish("few:a", "n", [499 + gaps, ""])
                    continue
                number = pushed["data"][0]
                holes += number != last + 1
                assert number > last
                assert holes <= gaps
                last = number
            assert gaps


class BrokerContract(LiveContract, HistoryContract):
    """All that the brokers of this package promise: the live part, on channels that keep messages, too, and history."""

    kinds = ("live:", "kept:")
    refused = "undeclared"

    async def test_one_client_can_be_left_out(self) -> None:
        """Others get the message, on both nodes; and it gets the next."""
        for kind in self.kinds:
            async with self.nodes() as (one, two):
                left_out = await one.listen(f"{kind}a")
                (websocket,) = one.sockets.sockets
                others = [await one.listen(f"{kind}a"), await two.listen(f"{kind}a")]
                await one.sockets.publish(f"{kind}a", "n", 1, exclude=websocket)
                await one.sockets.publish(f"{kind}a", "n", 2)
                assert await left_out.data(1) == [2]
                for client in others:
                    assert await client.data(2) == [1, 2]


async def missed(node: Node, channel: str, position: str) -> list[dict[str, Any]]:
    """What a client gets that comes to *node* with *position*."""
    client = await node.connect()
    answer = await client.call("subscribe", channel=channel, position=position)
    await client.leave()
    assert answer["recovered"], answer
    messages: list[dict[str, Any]] = answer["messages"]
    return messages


def placed(text: str) -> Position:
    """The position of this text."""
    position = Position.parse(text)
    assert position is not None, text
    return position


async def is_at(node: Node, channel: str, position: str | None) -> bool:
    """All up to *position* has been delivered on *node*."""
    history = node.sockets.history_of(channel)
    return history is not None and str(node.sockets.here(channel, history)) == position
