"""What is kept of a channel, and what a follower makes of it, alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from openapi_ws.history import (
    IDEMPOTENCY_TTL,
    KEY_LIMIT,
    MAX_KEPT,
    MAX_KEPT_SIZE,
    MAX_KEYS,
    META_TTL,
    RECENT,
    Entry,
    Follower,
    Healed,
    History,
    Log,
    Page,
    Position,
)

NOWHERE = Position("other", 1, "n1")


def filled(count: int, *, size: int = 100, ttl: float = 600.0, epoch: str = "e") -> Log:
    """A log whose message n, published at second n, has the nonce nN and the data N."""
    log = Log(History(size, ttl), epoch)
    for n in range(1, count + 1):
        log.publish(b"%d" % n, f"n{n}", now=n)
    return log


def at(offset: int, nonce: str | None = None) -> Position:
    return Position("e", offset, (f"n{offset}" if offset else "") if nonce is None else nonce)


def offsets(page: Page | Healed) -> list[int]:
    return [entry.position.offset for entry in page.entries]


# -- positions ------------------------------------------------------------------------------------------------

words = st.text("abcXYZ019", min_size=1, max_size=40)
positions = st.builds(Position, words, st.integers(1, 2**53), words) | st.builds(
    Position, words, st.just(0), st.just("")
)


@given(positions)
def test_a_position_is_read_as_it_was_written(position: Position) -> None:
    """``parse(str(x)) == x``."""
    assert Position.parse(str(position)) == position


@given(st.text() | st.text("a.019-_ \n٣", max_size=20))
def test_any_text_is_a_position_or_none(text: str) -> None:
    """No text raises, and what is taken for a position has this text and no other."""
    position = Position.parse(text)
    assert position is None or str(position) == text


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "e.1", "e.1.", "e.0.n", ".1.n", "e.01.n", "e.-1.n", "e.+1.n", "e.1.n.p", "e.1_0.n", "e.٣.n",
     "é.1.n", "e.1.n\n", " e.1.n", "e.1.*", f"e.{2**53 + 1}.n", f"e.{'9' * 100}.n", f"{'e' * 125}.1.n"],
)  # fmt: skip
def test_what_is_no_position(text: str) -> None:
    """A message has a nonce, the beginning has none, numbers have one spelling, and the text is short."""
    assert Position.parse(text) is None


# -- how much is kept -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"size": 0}, "size"),
        ({"size": -1}, "size"),
        ({"size": True}, "size"),
        ({"size": 1.5}, "size"),
        ({"size": 100_001}, "size"),
        ({"ttl": 0}, "ttl"),
        ({"ttl": -1.0}, "ttl"),
        ({"ttl": float("nan")}, "ttl"),
        ({"ttl": float("inf")}, "ttl"),
        ({"ttl": META_TTL + 1}, "ttl"),
        ({"ttl": "1h"}, "ttl"),
    ],
)
def test_a_history_refuses_what_is_out_of_range(fields: dict[str, Any], named: str) -> None:
    """The error names the field."""
    with pytest.raises(ValueError, match=f"History.{named}"):
        History(**fields)


def test_no_more_than_size_is_kept() -> None:
    """The oldest go first."""
    log = filled(7, size=3)
    assert offsets(log.read(limit=10, now=7)) == [5, 6, 7]


def test_all_is_forgotten_ttl_after_the_last_publish() -> None:
    """As a Redis stream that expires: each publish keeps all of it for as long again, and nothing else does."""
    log = filled(2, ttl=10.0)
    assert offsets(log.read(limit=10, now=11.9)) == [1, 2]
    assert offsets(log.read(limit=10, now=12)) == []
    assert log.top == at(2)
    log.publish(b"3", "n3", now=13)
    assert offsets(log.read(limit=10, now=13)) == [3]


def test_a_log_is_spent_when_nothing_is_kept_and_nobody_asks() -> None:
    """Not before its messages and keys are gone, nor while somebody publishes or reads."""
    log = Log(History(ttl=10), "e")
    assert log.is_spent(now=0)
    log.publish(b"", "n1", now=0, key="k")
    assert not log.is_spent(now=20, after=5)  # the key
    assert log.is_spent(now=IDEMPOTENCY_TTL, after=5)
    log.recover(None, 1, now=1000)
    assert not log.is_spent(now=1000 + META_TTL - 1)
    assert log.is_spent(now=1000 + META_TTL)


# -- publishing -----------------------------------------------------------------------------------------------


def test_a_publish_is_chained_to_the_one_before() -> None:
    """Offsets count from 1, and each entry has the nonce of the one before it."""
    log = filled(3)
    assert [(e.position.offset, e.previous, e.data) for e in log.read(limit=9, now=3).entries] == [
        (1, "", b"1"), (2, "n1", b"2"), (3, "n2", b"3"),
    ]  # fmt: skip


def test_a_key_publishes_once() -> None:
    """For its time, the second publish gets the first's position, and nothing is appended."""
    log = Log(History(), "e")
    assert log.publish(b"a", "n1", 0, key="k") == (at(1), True)
    assert log.publish(b"b", "n2", IDEMPOTENCY_TTL - 1, key="k") == (at(1), False)
    assert log.publish(b"c", "n3", IDEMPOTENCY_TTL - 1, key="other") == (at(2, "n3"), True)
    assert log.publish(b"d", "n4", IDEMPOTENCY_TTL, key="k") == (at(3, "n4"), True)
    assert [entry.data for entry in log.read(limit=9, now=IDEMPOTENCY_TTL).entries] == [b"a", b"c", b"d"]


def test_keys_are_bounded() -> None:
    """With one too many, the oldest goes before its time; no key is longer than the limit, or empty."""
    log = Log(History(size=1), "e")
    for n in range(MAX_KEYS + 1):
        log.publish(b"", f"n{n + 1}", 0, key=str(n))
    assert not log.publish(b"", "again", 0, key="1")[1]
    assert log.publish(b"", "again", 0, key="0")[1]
    for key in ("", "k" * (KEY_LIMIT + 1)):
        with pytest.raises(ValueError, match="key"):
            log.publish(b"", "n", 0, key=key)


def test_a_retry_finds_the_first_attempt() -> None:
    """By its nonce, though others published since; an attempt that never arrived is made now."""
    log = filled(5)
    assert log.publish(b"3", "n3", 6, retry=True) == (at(3), False)
    assert log.publish(b"6", "n6", 6, retry=True) == (at(6), True)
    assert log.publish(b"6", "n6", 7) == (at(7, "n6"), True)  # no retry, no look


# -- recovery -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "since", "limit", "partial", "status", "given"),
    [
        (0, None, 10, False, "top", []),
        (7, None, 10, False, "top", []),
        (0, at(0), 10, False, "ok", []),
        (3, at(0), 10, False, "ok", [1, 2, 3]),
        (7, at(7), 10, False, "ok", []),
        (7, at(6), 10, False, "ok", [7]),
        (7, at(2), 10, False, "ok", [3, 4, 5, 6, 7]),  # the oldest kept minus one: its nonce proves it
        (7, at(1), 10, False, "trimmed", []),
        (7, at(0), 10, False, "trimmed", []),
        (7, NOWHERE, 10, False, "epoch", []),
        (0, NOWHERE, 10, False, "epoch", []),
        (7, at(8), 10, False, "fork", []),  # the store went back
        (7, at(7, "x"), 10, False, "fork", []),
        (7, at(6, "x"), 10, False, "fork", []),
        (7, at(2, "x"), 10, False, "fork", []),
        (7, at(2), 5, False, "ok", [3, 4, 5, 6, 7]),
        (7, at(2), 4, False, "limit", []),
        (7, at(2), 4, True, "more", [3, 4, 5, 6]),
        (7, at(2), 5, True, "ok", [3, 4, 5, 6, 7]),
        (7, at(2, "x"), 4, True, "fork", []),
        (7, at(1), 4, True, "trimmed", []),
    ],
)
def test_what_a_reader_is_told(
    count: int, since: Position | None, limit: int, partial: bool, status: str, given: list[int]
) -> None:
    """All that it missed, or the reason why not, and where the channel is now: of 5 kept messages."""
    page = filled(count, size=5).recover(since, limit, now=count, partial=partial)
    assert (page.status, offsets(page), page.top) == (status, given, at(count))


def test_a_reader_of_an_expired_history() -> None:
    """Who has seen all has missed nothing; everybody else has."""
    log = filled(3, ttl=10)
    assert log.recover(at(3), 10, now=100).status == "ok"
    assert log.recover(at(2), 10, now=100).status == "trimmed"


def test_a_reader_of_no_messages_is_refused() -> None:
    """Redis would answer such a call as if all were trimmed."""
    for limit in (0, -1):
        with pytest.raises(ValueError, match="limit"):
            filled(1).recover(None, limit, now=1)
        with pytest.raises(ValueError, match="limit"):
            filled(1).read(limit=limit, now=1, reverse=True)


@pytest.mark.parametrize(
    ("since", "reverse", "limit", "status", "given"),
    [
        (None, False, 10, "ok", [3, 4, 5, 6, 7]),
        (None, False, 2, "more", [3, 4]),
        (at(4), False, 2, "more", [5, 6]),
        (at(5), False, 2, "ok", [6, 7]),
        (at(1), False, 2, "trimmed", []),
        (None, True, 2, "more", [7, 6]),
        (None, True, 5, "ok", [7, 6, 5, 4, 3]),
        (at(6), True, 2, "more", [5, 4]),
        (at(5), True, 2, "ok", [4, 3]),
        (at(3), True, 2, "ok", []),
        (at(1), True, 2, "ok", []),  # nothing older is kept: that is the end, not a loss
        (at(0), True, 2, "ok", []),
        (at(6, "x"), True, 2, "fork", []),
        (at(8), True, 2, "fork", []),
        (NOWHERE, True, 2, "epoch", []),
    ],
)
def test_history_is_read_in_both_directions(
    since: Position | None, reverse: bool, limit: int, status: str, given: list[int]
) -> None:
    """From an end, or from a position on; "more" leads to the next page."""
    page = filled(7, size=5).read(limit=limit, now=7, since=since, reverse=reverse)
    assert (page.status, offsets(page)) == (status, given)


@given(st.integers(0, 12), st.integers(1, 12), st.integers(1, 5), st.booleans())
def test_pages_of_a_history_join(count: int, size: int, limit: int, reverse: bool) -> None:
    """Page after page, each from the last entry of the one before: all that is kept, once, in order."""
    log = filled(count, size=size)
    page = log.read(limit=limit, now=count, reverse=reverse)
    got = offsets(page)
    while page.status == "more":
        page = log.read(limit=limit, now=count, since=page.entries[-1].position, reverse=reverse)
        got += offsets(page)
    assert got == sorted(range(max(1, count - size + 1), count + 1), reverse=reverse)


steps = st.one_of(
    st.tuples(st.just("publish"), st.none() | st.sampled_from("kl"), st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from([1.0, 9.0, 10.0, 290.0]), st.none()),
    st.tuples(st.just("recover"), st.integers(0, 6), st.booleans()),
    st.tuples(st.just("back up"), st.none(), st.none()),
    st.tuples(st.just("fail over"), st.none(), st.none()),
)


@given(st.integers(1, 6), st.lists(steps, max_size=60))
def test_a_log_agrees_with_a_list(size: int, todo: list[tuple[str, Any, Any]]) -> None:
    """Any run of publish, trim, expire, fail-over and recovery: either all that was published since, once and in order,
    or a reason that is true.
    """
    log, published, keys, expiry, floor, now = Log(History(size, 10.0), "e"), [""], {}, 0.0, 0, 0.0
    backup = copy.deepcopy((log, published, keys, expiry, floor))
    nonces = iter(range(1, 1000))
    seen = [at(0)]
    for step, what, flag in todo:
        top = len(published) - 1
        kept = range(max(floor, top - size) + 1, top + 1) if now < expiry else range(0)
        if step == "wait":
            now += what
        elif step == "publish":
            nonce = published[-1] if flag and top else f"n{next(nonces)}"
            again = keys[what][1] if what in keys and now < keys[what][0] else None
            if again is None and flag:
                again = next((at(n, nonce) for n in kept[::-1] if published[n] == nonce), None)
            position, is_new = log.publish(nonce.encode(), nonce, now, key=what, retry=flag)
            assert (position, is_new) == (again or at(top + 1, nonce), again is None)
            seen.append(position)
            if is_new:
                published.append(nonce)
                expiry, floor = now + 10, floor if now < expiry else top
                if what:
                    keys[what] = now + IDEMPOTENCY_TTL, position
        elif step == "back up":
            backup = copy.deepcopy((log, published, keys, expiry, floor))
        elif step == "fail over":
            log, published, keys, expiry, floor = copy.deepcopy(backup)
        else:
            since = seen[-1 - what % len(seen)]
            page = log.recover(since, 3, now, partial=flag)
            missed = list(range(since.offset + 1, top + 1))
            assert page.top == at(top, published[top])
            if page.status in ("ok", "more"):
                assert published[since.offset] == since.nonce
                assert offsets(page) == (missed if page.status == "ok" else missed[:3])
                assert [entry.data.decode() for entry in page.entries] == [published[n] for n in offsets(page)]
            elif page.status == "limit":
                assert len(missed) > 3
                assert not flag
            elif page.status == "fork":
                assert since.offset > top or published[since.offset] != since.nonce
            else:
                assert page.status == "trimmed"
                assert missed[0] not in kept


# -- the follower ---------------------------------------------------------------------------------------------


def pushes(log: Log, *wanted: int) -> list[Entry]:
    """What was pushed for these offsets of *log*."""
    entries = {entry.position.offset: entry for entry in log.read(limit=1000, now=0).entries}
    return [entries[offset] for offset in wanted]


def following(log: Log, since: Position | None = None) -> Follower:
    """A follower that is up to date with *log*."""
    follower = Follower(since or log.top)
    follower.heal(log.recover(follower.position, 1000, now=0))
    assert not follower.is_healing
    return follower


def test_the_next_is_delivered_and_the_known_is_not() -> None:
    """The push that follows advances the position, once."""
    log = filled(3)
    follower = following(filled(1))
    two, three = pushes(log, 2, 3)
    assert [follower.take(push) for push in (two, two, three, two)] == ["deliver", "duplicate", "deliver", "duplicate"]
    assert follower.position == log.top


@pytest.mark.parametrize(
    "stray",
    [
        Entry(at(5), "n4", b""),  # a hole
        Entry(at(4), "x", b""),  # the next, after another third
        Entry(at(3, "x"), "n2", b""),  # a known offset with another nonce
        Entry(Position("f", 4, "n4"), "n3", b""),  # another epoch
        Entry(Position("f", 1, "n1"), "", b""),
    ],
)
def test_what_does_not_follow_asks_for_a_page(stray: Entry) -> None:
    """Nothing is delivered until it is read; the stray one leaves no trace if the page knows nothing of it."""
    log = filled(3)
    follower = following(log)
    assert follower.take(stray) == "heal"
    assert follower.is_healing
    assert follower.heal(log.recover(follower.position, 10, now=3)) == Healed(())
    while follower.is_healing:
        assert follower.heal(log.recover(follower.position, 10, now=3)) == Healed(())
    assert follower.position == log.top


def test_pushes_wait_for_the_page() -> None:
    """Those that the page has are not delivered twice, those after it follow without another read."""
    log = filled(6)
    follower = following(filled(1))
    for push in pushes(log, 3, 4, 5, 6):
        assert follower.take(push) == "heal"
    assert offsets(follower.heal(filled(4).recover(follower.position, 10, now=4))) == [2, 3, 4, 5, 6]
    assert not follower.is_healing


def test_a_new_follower_starts_at_the_top() -> None:
    """What was pushed before it is not its own, what came since is."""
    log = filled(5)
    follower = Follower()
    for push in pushes(log, 3, 4, 5):
        assert follower.take(push) == "heal"
    assert offsets(follower.heal(filled(3).recover(None, 10, now=3))) == [4, 5]
    assert not follower.is_healing


def test_a_follower_pages() -> None:
    """It reads on while there are more, and delivers each page at once."""
    log = filled(7)
    follower = Follower(at(0))
    got = []
    while follower.is_healing:
        got.append(offsets(follower.heal(log.recover(follower.position, 3, now=7, partial=True))))
    assert got == [[1, 2, 3], [4, 5, 6], [7]]


@pytest.mark.parametrize(
    ("since", "reason"), [(at(1), "trimmed"), (at(8), "fork"), (at(6, "x"), "fork"), (NOWHERE, "epoch")]
)
def test_a_follower_that_cannot_heal_says_why_first(since: Position, reason: str) -> None:
    """It goes on from the top, and what comes with the reason is newer than it."""
    log = filled(7, size=3)
    follower = Follower(since)
    newer = Entry(at(8), "n7", b"8")
    follower.take(newer)
    assert follower.heal(log.recover(since, 10, now=7, partial=True)) == Healed((newer,), reason)  # type: ignore[arg-type]
    assert follower.position == at(8)


def test_a_top_does_not_hide_what_was_missed() -> None:
    """A follower that has a position is not healed by the top alone."""
    follower = Follower(at(1))
    with pytest.raises(ValueError, match="since"):
        follower.heal(Page("top", at(5)))
    assert follower.position == at(1)


@pytest.mark.parametrize("broken", [[2, 4], [3, 4], [2, 3], [2, 2, 3, 4], []])
def test_a_broken_page_is_a_fork(broken: list[int]) -> None:
    """A store that answers "ok" and leaves something out is not believed."""
    log = filled(4)
    page = Page("ok", log.top, tuple(pushes(log, *broken)))
    assert Follower(at(1)).heal(page) == Healed((), "fork")


@pytest.mark.parametrize("size", [1, MAX_KEPT_SIZE // 10])
def test_what_a_follower_keeps_is_bounded(size: int) -> None:
    """Pushes beyond the bound are dropped, and read as a page instead."""
    log = Log(History(size=1000), "e")
    follower = following(log)
    follower.suspect()
    for n in range(1, 2 * MAX_KEPT + 1):
        log.publish(b"x" * size, f"n{n}", now=0)
    for push in pushes(log, *range(1, 2 * MAX_KEPT + 1)):
        follower.take(push)
    assert len(follower._kept) == min(MAX_KEPT, MAX_KEPT_SIZE // size)
    got = offsets(follower.heal(Page("ok", at(0))))
    assert follower.is_healing
    got += offsets(follower.heal(log.recover(follower.position, 1000, now=0)))
    assert got == list(range(1, 2 * MAX_KEPT + 1))
    assert not follower.is_healing
    assert len(follower._recent) <= RECENT


def test_a_loss_while_a_page_is_on_its_way_needs_another_page() -> None:
    """What was lost may be newer than that page."""
    log = filled(3)
    follower = following(log)
    follower.suspect()
    page = log.recover(follower.position, 10, now=3)
    log.publish(b"4", "n4", now=4)
    follower.suspect()
    assert follower.heal(page) == Healed(())
    assert follower.is_healing
    assert offsets(follower.heal(log.recover(follower.position, 10, now=4))) == [4]
    assert not follower.is_healing


class Delivery(RuleBasedStateMachine):
    """A store that trims, expires, forgets and fails over, a network that loses, doubles and reorders."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.nonces = iter(range(1, 1_000_000))
        self.log = Log(History(size=8, ttl=50.0), "e0")
        self.chain = [("e0", 0, "")]  # the oracle: what was published in this life of the store, in order
        self.parents: dict[str, tuple[str, int, str]] = {}
        self.backup = self.saved()
        self.wire: list[Entry] = []
        self.page: Page | None = None
        self.seen: tuple[str, int, str] | None = None  # what the reader saw last

    @initialize(known=st.booleans())
    def follow(self, known: bool) -> None:
        self.follower = Follower(self.log.top if known else None)
        self.seen = self.chain[-1] if known else None

    @rule(count=st.integers(1, 3) | st.integers(1, 300))
    def publish(self, count: int) -> None:
        for _ in range(count):
            nonce = f"n{next(self.nonces)}"
            position, _ = self.log.publish(b"x", nonce, self.now)
            self.parents[nonce] = self.chain[-1]
            self.chain.append((position.epoch, position.offset, nonce))
            self.wire.append(self.log.read(limit=1, now=self.now, reverse=True).entries[0])

    @precondition(lambda self: self.wire)
    @rule(data=st.data(), fate=st.sampled_from(["arrive", "arrive", "arrive", "late", "twice", "lost"]))
    def push(self, data: st.DataObject, fate: str) -> None:
        at = data.draw(st.integers(0, min(3, len(self.wire) - 1))) if fate == "late" else 0
        entry = self.wire[at] if fate == "twice" else self.wire.pop(at)
        if fate != "lost":
            self.receive(entry)

    @rule()
    def push_all(self) -> None:
        while self.wire:
            self.receive(self.wire.pop(0))

    @rule()
    def cut(self) -> None:
        self.wire.clear()
        self.follower.suspect()

    @rule(seconds=st.sampled_from([1.0, 50.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def back_up(self) -> None:
        self.backup = self.saved()

    @rule()
    def fail_over(self) -> None:
        self.log, self.chain = copy.deepcopy(self.backup)

    @rule()
    def flush(self) -> None:
        epoch = f"e{next(self.nonces)}"
        self.log = Log(History(size=8, ttl=50.0), epoch)
        self.chain = [(epoch, 0, "")]

    @precondition(lambda self: self.follower.is_healing and self.page is None)
    @rule(limit=st.integers(1, 10))
    def ask(self, limit: int) -> None:
        self.page = self.log.recover(self.follower.position, limit, self.now, partial=True)

    @precondition(lambda self: self.page)
    @rule()
    def answer(self) -> None:
        page, self.page = self.page, None
        assert page is not None
        entries, reason = self.follower.heal(page)
        if reason or self.seen is None:
            # The reader is told before it sees anything newer, and reloads what is there at the top.
            assert not entries or entries[0].follows(page.top)
            self.seen = (page.top.epoch, page.top.offset, page.top.nonce)
        for entry in entries:
            self.deliver(entry)

    def receive(self, entry: Entry) -> None:
        healing = self.follower.is_healing
        verdict = self.follower.take(entry)
        assert verdict == "heal" or not healing
        if verdict == "deliver":
            self.deliver(entry)

    def deliver(self, entry: Entry) -> None:
        """The reader sees each message right after the one that was published right before it."""
        assert self.seen == self.parents[entry.position.nonce]
        self.seen = (entry.position.epoch, entry.position.offset, entry.position.nonce)

    def saved(self) -> tuple[Log, list[tuple[str, int, str]]]:
        return copy.deepcopy((self.log, self.chain))

    def teardown(self) -> None:
        """Once all is quiet and the position is checked, the reader has seen the last message, or was told."""
        self.push_all()
        if self.page:
            self.answer()
        for _ in range(2):  # the first is for what it kept, which the store may have lost since
            self.follower.suspect()
            for _ in range(20):
                if self.follower.is_healing:
                    self.ask(10)
                    self.answer()
            assert not self.follower.is_healing
        assert self.seen == self.chain[-1]


TestDelivery = Delivery.TestCase
TestDelivery.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
