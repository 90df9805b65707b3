"""Floor 5, tools: what every broker promises, as tests."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence
from typing import Any

from .nodes import JSON, Client, Contract, publish, until, written

__all__ = ["LiveContract"]

# How a test sees that something does not come: something that must come after it does. Messages of one publisher on
# one channel are in order, so a later one that is heard says that the one before it is not going to be.


class LiveContract(Contract):
    """What every broker promises: messages of now, to all nodes.

    It holds for brokers which know nothing of topics, too, such as one that hands what comes to ``channels``.
    """

    kinds: Sequence[str] = ("live:",)
    """What names of channels begin with; each test is done for each."""
    refused: str | None = None
    """A channel that the broker refuses, or None: it refuses none."""

    async def test_all_who_listen_on_both_nodes_hear_it_once(self) -> None:
        """Whichever node it is published on, clients and server code get channel, event and data."""
        for kind in self.kinds:
            async with self.nodes() as (one, two):
                listeners = [await node.listen(f"{kind}a") for node in (one, two, one, two)]
                heard: asyncio.Queue[tuple[str, str, Any]] = asyncio.Queue()

                async def hear(*message: Any, heard: asyncio.Queue[tuple[str, str, Any]] = heard) -> None:
                    await heard.put(message)

                for node in {one, two}:
                    await node.sockets.channels.register(f"{kind}a", "b*", hear)
                for node, event in ((one, "b1"), (two, "b2")):
                    await node.sockets.publish(f"{kind}a", event, [event])
                    for client in listeners:
                        message = await client.message()
                        message.pop("position", None)
                        assert message == {"channel": f"{kind}a", "event": event, "data": [event]}
                    async with asyncio.timeout(10):
                        for _ in {one, two}:
                            assert await heard.get() == (f"{kind}a", event, [event])
                assert heard.empty()

    async def test_messages_of_one_publisher_come_in_order(self) -> None:
        """Each once, on both nodes, whether or not it waits for one before the next, though another publishes, too."""
        for kind in self.kinds:
            async with self.nodes() as (one, two):
                listeners = [await node.listen(f"{kind}a") for node in (one, two)]
                await asyncio.gather(
                    *(two.sockets.publish(f"{kind}a", "at once", n) for n in range(100)),
                    *(publish(node, f"{kind}a", event, 100) for node, event in ((one, "one"), (two, "two"))),
                )
                for client in listeners:
                    messages = [await client.message() for _ in range(300)]
                    for event in ("at once", "one", "two"):
                        assert [m["data"] for m in messages if m["event"] == event] == list(range(100))

    async def test_what_is_published_after_the_answer_arrives(self) -> None:
        """Who is told "subscribed" gets the first message that the other node publishes then."""
        for kind in self.kinds:
            async with self.nodes() as (one, two):
                clients = [await one.connect(), await two.connect()]
                for trial in range(50):
                    client, other = clients[trial % 2], (two, one)[trial % 2]
                    # Channels that are new to the node, and such that were left a moment ago.
                    channel = f"{kind}{trial if trial % 3 else 0}"
                    await client.call("subscribe", channel=channel)
                    await other.sockets.publish(channel, "first", trial)
                    assert await client.data(1) == [trial]
                    await client.call("unsubscribe", channel=channel)

    async def test_who_has_left_hears_nothing_until_it_comes_back(self) -> None:
        """And those who stay hear everything."""
        for kind in self.kinds:
            async with self.nodes() as (one, two):
                stays, leaves = await one.listen(f"{kind}a"), await one.listen(f"{kind}a")
                await two.sockets.publish(f"{kind}a", "n", 1)
                assert await leaves.data(1) == [1]
                await leaves.call("unsubscribe", channel=f"{kind}a")
                await two.sockets.publish(f"{kind}a", "n", 2)
                assert await stays.data(2) == [1, 2]
                await leaves.call("subscribe", channel=f"{kind}a")
                await two.sockets.publish(f"{kind}a", "n", 3)
                assert await leaves.data(1) == await stays.data(1) == [3]

    async def test_any_order_of_comings_and_goings_ends_as_a_dict_of_sets_says(self) -> None:
        """Six clients come and go at once, while both nodes publish; then each hears what it is on, and no more."""
        for kind in self.kinds:
            async with self.nodes() as (one, two):
                names, dice = [f"{kind}{letter}" for letter in "abc"], random.Random(1)
                clients = [await node.connect() for node in (one, two) * 3]
                async with asyncio.TaskGroup() as group:
                    wander = (self._wander(client, names, random.Random(dice.random())) for client in clients)
                    wandering = [group.create_task(work) for work in wander]
                    for node, name in itertools.product((one, two), names):
                        group.create_task(publish(node, name, "x", 30))
                for client in clients:
                    for name in names:
                        await client.call("subscribe", channel=name, event="end")
                for name in names:
                    for event in ("x", "y", "end"):
                        await two.sockets.publish(name, event, "last")
                for client, task in zip(clients, wandering, strict=True):
                    told = task.result() | {(name, "end") for name in names}
                    assert await self._heard_last(client, len(names)) == told

    async def _wander(self, client: Client, names: list[str], dice: random.Random) -> set[tuple[str, str]]:
        """Subscribe and unsubscribe by chance; on what *client* is in the end."""
        on: set[tuple[str, str]] = set()
        for _ in range(30):
            name, event = dice.choice(names), dice.choice(["x", "y"])
            if (name, event) in on:
                on.discard((name, event))
                left = await client.call("unsubscribe", channel=name, event=event)
            else:
                on.add((name, event))
                left = await client.call("subscribe", channel=name, event=event)
            assert {(channel, each) for channel, events in left["subscribed"].items() for each in events} == on
        return on

    async def _heard_last(self, client: Client, ends: int) -> set[tuple[str, str]]:
        heard: list[tuple[str, str]] = []
        while ends:
            message = await client.message()
            if message["data"] == "last":
                heard.append((message["channel"], message["event"]))
                ends -= message["event"] == "end"
        assert len(heard) == len(set(heard)), heard
        return set(heard)

    async def test_a_channel_that_is_refused_leaves_nothing(self) -> None:
        """The client is told, is on nothing, and may go on."""
        if self.refused is None:
            return
        async with self.nodes() as (one, two):
            client = await one.connect()
            for _ in range(2):
                assert (await client.error("subscribe", channel=self.refused))["errors"]["channel"] == "Invalid channel"
                assert list(one.sockets.channels) == []
            answer = await client.call("subscribe", channel=f"{self.kinds[0]}a")
            assert list(answer["subscribed"]) == [f"{self.kinds[0]}a"]
            await two.sockets.publish(f"{self.kinds[0]}a", "n", 1)
            assert await client.data(1) == [1]

    async def test_json_arrives_as_it_was_sent(self) -> None:
        """Numbers, texts and depth are not changed, whether client or server code publishes."""
        for kind in self.kinds:
            async with self.nodes() as (one, two):
                listener, speaker = await one.listen(f"{kind}a"), await two.connect()
                for value in JSON:
                    await speaker.call("publish", channel=f"{kind}a", event="é", data=value)
                    await two.sockets.publish(f"{kind}a", "é", value)
                    for _ in range(2):
                        message = await listener.message()
                        assert (message["event"], written(message["data"])) == ("é", written(value))

    async def test_at_rest_nothing_is_left(self) -> None:
        """No socket, no channel, no `leftovers`, and after the stop no task, also of clients that left in a hurry."""
        before = asyncio.all_tasks()
        async with self.nodes() as (one, two):
            for kind in self.kinds:
                clients = [await node.listen(f"{kind}{n}") for node in (one, two) for n in range(5)]
                await asyncio.gather(*(publish(node, f"{kind}{n}", "n", 3) for node in (one, two) for n in range(5)))
                hasty = [await node.connect() for node in (one, two)]
                for client in hasty:
                    await client.send("subscribe", channel=f"{kind}hasty")
                for client in clients + hasty:
                    await client.leave()
            await until(one.is_at_rest)
            await until(two.is_at_rest)
            await until(self.is_empty)

        async def is_done() -> bool:
            return not asyncio.all_tasks() - before

        await until(is_done)
