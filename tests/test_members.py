"""Who is present in one channel, as a law: it is the dictionary of connections whose time is not up."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from openapi_ws.members import Change, Counts, Diff, Member, Members

ADA, ADA2, BOB = Member("c1", "ada", b"1"), Member("c2", "ada", b"1"), Member("c3", "bob", b"2")
TTL = 60.0


def named(changes: list[Change]) -> list[str]:
    return [f"{change.kind} {change.user}" for change in changes]


def test_connections_of_one_user_are_one() -> None:
    """The first that comes is a join, the last that goes is a leave, with what was said of the user."""
    members = Members()
    assert members.enter(ADA, 0, TTL) == [("join", "ada", b"1")]
    assert members.enter(ADA2, 1, TTL) == []
    assert members.counts() == Counts(connections=2, users=1)
    assert members.leave(ADA, 2) == []
    assert members.leave(ADA, 2) == []
    assert members.leave(ADA2, 3) == [("leave", "ada", b"1")]
    assert len(members) == 0


def test_who_is_not_heard_of_is_gone_when_its_time_is_up() -> None:
    """Whoever enters again in time stays, and nobody is told."""
    members = Members()
    members.enter(ADA, 0, TTL)
    members.enter(BOB, 0, TTL)
    assert members.enter(ADA, 59, TTL, is_news=False) == []
    assert members.sweep(59.9) == []
    assert members.due == 60
    assert named(members.sweep(60)) == ["leave bob"]
    assert named(members.sweep(1000)) == ["leave ada"]
    assert members.due is None


def test_a_lost_connection_that_comes_back_in_time_is_no_news() -> None:
    """A page is loaded anew under another connection: neither leave nor join."""
    members = Members()
    members.enter(ADA, 0)
    assert members.leave(ADA, 10, linger=15) == []
    assert members.enter(ADA2, 12) == []
    assert members.sweep(25) == []
    assert members.counts() == Counts(1, 1)
    members.leave(ADA2, 30, linger=15)
    assert named(members.enter(BOB, 45)) == ["leave ada", "join bob"]


def test_the_last_that_is_said_of_a_user_holds() -> None:
    """Another info is an update for all; who only goes on being present repeats none."""
    members = Members()
    members.enter(ADA, 0, TTL)
    assert members.enter(Member("c2", "ada", b"9"), 1, TTL) == [("update", "ada", b"9")]
    assert members.enter(ADA, 2, TTL, is_news=False) == []
    assert members.page(10) == [("ada", b"9")]
    assert Members().enter(ADA, 0, TTL, is_news=False) == [("join", "ada", b"1")]


def test_pages_lead_from_one_to_the_next() -> None:
    """In the order of names, each user once, also if one leaves in between."""
    members = Members()
    for number in range(5):
        members.enter(Member(f"c{number}", f"user {number}"), 0)
    first = members.page(2)
    assert [user for user, _ in first] == ["user 0", "user 1"]
    members.leave(Member("c1", "user 1"), 1)
    assert [user for user, _ in members.page(10, after=first[-1][0])] == ["user 2", "user 3", "user 4"]


@dataclass
class Model:
    """The same, without a thought for speed."""

    expiry: dict[tuple[str, str], int] = field(default_factory=dict)
    users: set[str] = field(default_factory=set)

    def present(self, now: int, spared: tuple[str, str] | None = None) -> set[str]:
        self.expiry = {name: at for name, at in self.expiry.items() if at > now or name == spared}
        return {user for _, user in self.expiry}


names = st.tuples(st.sampled_from(["c1", "c2", "c3"]), st.sampled_from(["ada", "bob"]))
steps = st.lists(
    st.tuples(st.sampled_from(["enter", "leave", "linger", "sweep"]), names, st.integers(0, 5), st.integers(1, 9))
)


@given(steps)
def test_what_is_told_adds_up_to_who_is_present(steps: list[tuple[str, tuple[str, str], int, int]]) -> None:
    """Whatever happens in whatever order: joins less leaves are the users with a connection whose time is not up."""
    members, model, now, told = Members(), Model(), 0, set[str]()
    for kind, name, passed, seconds in steps:
        now += passed
        member = Member(*name)
        if kind == "enter":
            changes = members.enter(member, now, seconds)
            model.present(now, name)
            model.expiry[name] = now + seconds
        elif kind == "sweep":
            changes = members.sweep(now)
        else:
            changes = members.leave(member, now, seconds if kind == "linger" else 0)
            model.present(now)
            if name in model.expiry:
                model.expiry[name] = now + seconds if kind == "linger" else now
        for change in changes:
            assert change.kind != "update"
            assert (change.user in told) is (change.kind == "leave")
            (told.add if change.kind == "join" else told.discard)(change.user)
        assert told == model.present(now) == {user for user, _ in members.page(10)}
        assert members.counts() == Counts(len(model.expiry), len(told))
        assert members.due == min(model.expiry.values(), default=None)


changes = st.lists(st.tuples(st.booleans(), st.sampled_from(["ada", "bob"]), st.sampled_from([b"1", b"2"])))


@given(st.dictionaries(st.sampled_from(["ada", "bob"]), st.sampled_from([b"1", b"2"])), changes)
def test_a_diff_leads_from_what_was_to_what_is(before: dict[str, bytes], wanted: list[tuple[bool, str, bytes]]) -> None:
    """And it names nobody of whom nothing has changed, but for an update that was taken back."""
    diff, now, has_updates = Diff(), dict(before), False
    for is_here, user, info in wanted:
        if is_here:
            kind = "update" if user in now else "join"
            has_updates |= kind == "update"
            diff.add(Change("update" if user in now else "join", user, info))
            now[user] = info
        elif user in now:
            diff.add(Change("leave", user, now.pop(user)))
    shown = dict(before)
    for user, _ in diff.leaves():
        del shown[user]
    shown.update(diff.joins())
    assert shown == now
    if not has_updates:
        assert {user for user, _ in diff.joins()} == {user for user in now if before.get(user) != now[user]}
