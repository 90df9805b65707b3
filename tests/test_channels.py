"""Who listens to what, alone: `Channels` over a broker whose answers the test gives, one by one, in any order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any

import pytest
from conftest import until
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from openapi_ws import CannotSubscribe, ChannelCallbackError, Channels, EncodeError
from openapi_ws import channels as channels_module
from openapi_ws.channels import CallbackType
from openapi_ws.errors import InvalidParams
from openapi_ws.protocol import Message

CHANNELS = ("a", "b")
EVENTS = ("*", "x", "y?")
CANCELLED = RuntimeError("the broker awaited something that was cancelled")


class Broker:
    """A broker of which nothing ends before the test says so."""

    def __init__(self) -> None:
        self.live: list[str] = []
        self.pending: list[tuple[str, str, asyncio.Future[None]]] = []

    async def subscribe(self, channel: str) -> None:
        await self._wait("subscribe", channel)
        assert channel not in self.live, "subscribed twice"
        self.live.append(channel)

    async def subscribe_to_event(self, channel: str, event: str) -> None:
        await self._wait("event", channel)

    async def unsubscribe(self, channel: str) -> None:
        await self._wait("unsubscribe", channel)
        self.live.remove(channel)

    async def _wait(self, what: str, channel: str) -> None:
        future = asyncio.get_running_loop().create_future()
        self.pending.append((what, channel, future))
        await future

    def answer(self, index: int, error: Exception | None = None) -> None:
        _, _, future = self.pending.pop(index % len(self.pending))
        if future.done():
            return
        if error is CANCELLED:
            future.cancel()
        elif error:
            future.set_exception(error)
        else:
            future.set_result(None)


class Prompt:
    """A broker that does everything at once."""

    async def subscribe(self, channel: str) -> None:
        if channel == "none":
            raise CannotSubscribe

    async def subscribe_to_event(self, channel: str, event: str) -> None:
        pass

    async def unsubscribe(self, channel: str) -> None:
        pass


def listener(heard: list[tuple[str, str, Any]]) -> CallbackType:
    async def hear(channel: str, event: str, data: Any) -> None:
        heard.append((channel, event, data))

    return hear


class AnyInterleaving(RuleBasedStateMachine):
    """Whatever is begun, ended, refused or cut off in whatever order: at rest it is what a dict of sets says."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.broker = Broker()
        self.channels = Channels(self.broker)
        self.model: dict[int, dict[str, set[str]]] = {}
        self.heard: dict[int, list[tuple[str, str, Any]]] = {}
        self.callbacks: dict[int, CallbackType] = {}
        self.busy: set[tuple[int, asyncio.Task[None]]] = set()
        self.left: dict[tuple[int, str, str], list[int]] = {}

    def turn(self) -> None:
        for _ in range(20):
            self.loop.run_until_complete(asyncio.sleep(0))

    def begin(self, number: int, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self.busy.add((number, task))
        task.add_done_callback(lambda _: self.busy.discard((number, task)))
        self.turn()

    @rule(number=st.integers(0, 3), channel=st.sampled_from(CHANNELS), event=st.sampled_from(EVENTS))
    def subscribe(self, number: int, channel: str, event: str) -> None:
        if number not in self.callbacks:
            self.heard[number] = []
            self.callbacks[number] = listener(self.heard[number])
        callback = self.callbacks[number]
        left = self.left.setdefault((number, channel, event), [0])
        before = left[0]

        async def work() -> None:
            try:
                await self.channels.register(channel, event, callback)
            except (CannotSubscribe, ConnectionError, RuntimeError, asyncio.CancelledError):
                return
            # One that has left meanwhile stays away.
            if self.callbacks.get(number) is callback and left[0] == before:
                self.model.setdefault(number, {}).setdefault(channel, set()).add(event)

        self.begin(number, work())

    @rule(number=st.integers(0, 3))
    def cancel(self, number: int) -> None:
        """A call is taken back: its register counts as refused, and no other's."""
        for busy, task in tuple(self.busy):
            if busy == number:
                self.loop.call_soon(task.cancel)
        self.turn()

    @rule(number=st.integers(0, 3), channel=st.sampled_from(CHANNELS), event=st.sampled_from(EVENTS))
    def unsubscribe(self, number: int, channel: str, event: str) -> None:
        callback = self.callbacks.get(number)
        if callback is None:
            return
        self.left.setdefault((number, channel, event), [0])[0] += 1
        events = self.model.get(number, {}).get(channel, set())
        events.discard(event)
        if not events:
            self.model.get(number, {}).pop(channel, None)

        async def work() -> None:
            with contextlib.suppress(InvalidParams):
                await self.channels.unregister(channel, event, callback)

        self.begin(number, work())

    @rule(number=st.integers(0, 3), cancel=st.booleans())
    def disconnect(self, number: int, cancel: bool) -> None:
        if callback := self.callbacks.pop(number, None):
            self.model.pop(number, None)
            self.loop.call_soon(self.channels.remove, callback)
            for busy, task in tuple(self.busy):
                if cancel and busy == number:
                    self.loop.call_soon(task.cancel)
            self.turn()

    @precondition(lambda self: self.broker.pending)
    @rule(
        index=st.integers(0, 5),
        error=st.sampled_from([None, None, CannotSubscribe(), ConnectionError("down"), CANCELLED]),
    )
    def broker_answers(self, index: int, error: Exception | None) -> None:
        self.broker.answer(index, error)
        self.turn()

    def teardown(self) -> None:
        for _ in range(1000):
            if not self.broker.pending and not self.busy and not self.channels._tasks and not self.channels._retries:
                break
            if self.broker.pending:
                self.broker.answer(0)
            self.turn()
        else:
            raise AssertionError("never at rest")
        wanted = {channel for channels in self.model.values() for channel in channels}
        assert sorted(self.broker.live) == sorted(wanted)
        assert set(self.channels.registered) == wanted
        for number, callback in self.callbacks.items():
            subscribed = {name: set(events) for name, events in self.channels.get_subscribed(callback).items()}
            assert subscribed == self.model.get(number, {})
        self.loop.run_until_complete(self.check_delivery())
        self.loop.run_until_complete(self.clear())
        assert not self.channels.registered
        self.loop.close()

    async def check_delivery(self) -> None:
        for channel in CHANNELS:
            await self.channels(channel, {"event": "x", "data": 1})
        for number, heard in self.heard.items():
            events = self.model.get(number, {}) if number in self.callbacks else {}
            expected = [(name, "x", 1) for name in CHANNELS if events.get(name, set()) & {"*", "x"}]
            assert heard == expected

    async def clear(self) -> None:
        clearing = asyncio.ensure_future(self.channels.clear())
        while not clearing.done():
            if self.broker.pending:
                self.broker.answer(0)
            await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def _retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels_module, "RETRY_UNSUBSCRIBE", 0)


@pytest.mark.usefixtures("_retry_at_once")
class TestAnyInterleaving(AnyInterleaving.TestCase):  # type: ignore[name-defined,misc]  # made by hypothesis
    settings = settings(max_examples=300, stateful_step_count=30, deadline=None)


async def test_a_listener_hears_what_matches_once() -> None:
    """Several patterns of one listener match one event: one copy, data as the publisher gave it."""
    channels, heard = Channels(Prompt()), list[tuple[str, str, Any]]()
    hear = listener(heard)
    for pattern in ("*", "o*", "order", None):
        await channels.register("c", pattern, hear)
    await channels("c", {"event": "order", "data": {"n": 1}})
    await channels("c", {"event": None, "data": 2})
    await channels("other", {"event": "order"})
    assert heard == [("c", "order", {"n": 1}), ("c", "", 2)]


async def test_the_names_of_the_ancestor_answer() -> None:
    """`registered`, `info`, `get`, `in`, `len` and iteration, on channels and on one channel."""
    channels = Channels(Prompt())
    hear = listener([])
    channel = await channels.register("c", "a*", hear)
    await channels.register("c", "b", hear)
    assert channels.registered == ("c",)
    assert "c" in channels
    assert len(channels) == 1
    assert channels.info() == {"c": {"a*": 1, "b": 1}}
    assert channels.get("c") is channel
    assert channels.get("d") is None
    assert [found.name for found in channels] == ["c"]
    assert channel.events == tuple(channel) == ("a*", "b")
    assert "b" in channel
    assert len(channel) == 2


async def test_server_code_may_leave_what_it_is_not_on() -> None:
    """It cleans up after a failure or a shutdown that has taken it off; others on the channel stay."""
    channels = Channels(Prompt())
    on, off = listener([]), listener([])
    await channels.register("c", "a", on)
    await channels.unregister("c", "a", off)
    await channels.unregister("c", "never", on)
    assert channels.get_subscribed(on) == {"c": ["a"]}
    await channels.clear()
    await channels.unregister("c", "a", on)
    assert not channels.registered


async def test_a_failing_callback_is_taken_off_and_others_hear(caplog: pytest.LogCaptureFixture) -> None:
    """ChannelCallbackError takes a callback off in silence, any other exception with a log line."""
    channels, heard = Channels(Prompt()), list[tuple[str, str, Any]]()

    async def leaves(*_: Any) -> None:
        raise ChannelCallbackError

    async def fails(*_: Any) -> None:
        raise ValueError("oops")

    for callback in (leaves, fails, listener(heard)):
        await channels.register("c", "*", callback)
    for _ in range(2):
        await channels("c", {"event": "e"})
    assert len(heard) == 2
    assert channels.info() == {"c": {"*": 1}}
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_a_refused_channel_leaves_nothing() -> None:
    """The broker refuses: the error is the caller's, and nothing is registered."""
    channels = Channels(Prompt())
    hear = listener([])
    with pytest.raises(CannotSubscribe):
        await channels.register("none", "*", hear)
    assert not channels.registered
    assert channels.get_subscribed(hear) == {}


async def test_delivering_to_nobody_is_no_error() -> None:
    """A channel without listeners is not made by a message."""
    channels = Channels(Prompt())
    await channels.deliver(Message("c", "e", b"1"))
    assert not channels.registered


async def test_a_message_that_json_cannot_hold_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """What a broker brings is logged and counted, never raised into its worker."""
    channels = Channels(Prompt())
    await channels("c", {"event": "e", "data": {"x": object()}})
    assert channels.dropped == 1
    assert EncodeError.__name__ not in caplog.text
    assert "dropped" in caplog.text


async def test_a_publisher_that_is_cancelled_takes_no_callback_along() -> None:
    """Its wait ends, the callback goes on to its end, and `clear` waits for it."""
    channels = Channels(Prompt())
    may_end, trace = asyncio.Event(), list[str]()

    async def keep_accounts(*_: Any) -> None:
        trace.append("begin")
        await may_end.wait()
        trace.append("end")

    await channels.register("c", "*", keep_accounts)
    publishing = asyncio.create_task(channels("c", {"event": "e"}))
    await until(lambda: trace)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    clearing = asyncio.create_task(channels.clear())
    await asyncio.sleep(0)
    assert not clearing.done()
    may_end.set()
    await clearing
    assert trace == ["begin", "end"]


async def test_a_callback_that_outstays_the_end_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """`clear` has its bound, and leaves no task."""
    monkeypatch.setattr("openapi_ws.channels.CLEAR_TIMEOUT", 0.01)
    channels = Channels(Prompt())
    trace = list[str]()

    async def hang(*_: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            trace.append("cancelled")

    await channels.register("c", "*", hang)
    publishing = asyncio.create_task(channels("c", {"event": "e"}))
    await until(lambda: channels._tasks)
    await channels.clear()
    assert trace == ["cancelled"]
    assert not channels._tasks
    await publishing


async def test_a_callback_may_clear() -> None:
    """It does not wait for itself."""
    channels = Channels(Prompt())

    async def shut_down(*_: Any) -> None:
        await channels.clear()

    await channels.register("c", "*", shut_down)
    async with asyncio.timeout(2):  # less than CLEAR_TIMEOUT
        await channels("c", {"event": "e"})
    assert not channels.registered


async def test_a_callback_that_is_cancelled_from_within_is_taken_off(caplog: pytest.LogCaptureFixture) -> None:
    """It awaited something that was cancelled: whoever publishes goes on, and so does a broker's worker."""
    channels, heard = Channels(Prompt()), list[tuple[str, str, Any]]()

    async def cancelled(*_: Any) -> None:
        raise asyncio.CancelledError

    for callback in (cancelled, listener(heard)):
        await channels.register("c", "*", callback)
    for _ in range(2):
        await channels("c", {"event": "e"})
    assert len(heard) == 2
    assert "is taken off" in caplog.text


@pytest.mark.parametrize("message", [{"event": "\ud800"}, {"event": 5}, {"event": "e", "data": "\ud800"}])
async def test_what_json_cannot_hold_never_reaches_the_fan_out(message: dict[str, Any]) -> None:
    """Names as little as data: dropped and counted where a broker brings it, raised where server code publishes it."""
    channels, heard = Channels(Prompt()), list[tuple[str, str, Any]]()
    await channels.register("c", "*", listener(heard))
    await channels("c", message)
    assert channels.dropped == 1
    with pytest.raises(EncodeError):
        Message.of("c", message["event"], message.get("data"))
    assert not heard


async def test_leaving_a_channel_twice_at_once_is_no_error() -> None:
    """`leave` is for whoever wants to be sure, however often."""
    broker = Broker()
    channels = Channels(broker)
    hear = listener([])
    registering = asyncio.create_task(channels.register("c", "*", hear))
    for _ in range(2):
        await until(lambda: broker.pending)
        broker.answer(0)
    await registering
    leaving = [asyncio.create_task(channels.leave("c", hear)) for _ in range(2)]
    await until(lambda: broker.pending)
    broker.answer(0)
    await asyncio.gather(*leaving)
    assert not channels.registered
