"""Event patterns, alone."""

from __future__ import annotations

import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openapi_ws.patterns import Pattern


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("order", ["order"], ["orders", "Order", "", "order\n"]),
        ("", [""], ["a"]),
        ("*", ["", "a", "a\nb"], []),
        ("price.*", ["price.", "price.btc"], ["price", "volume.btc"]),
        ("a?c", ["abc", "a?c", "a\nc"], ["ac", "abbc"]),
        ("[a-c]x", ["ax", "cx"], ["dx", "-x", "x"]),
        ("[^a-c]x", ["dx"], ["ax", "x"]),
        ("[!ab]", ["c", "!"], ["a", ""]),
        ("[]]", ["]"], ["[", "[]]"]),
        ("[a-]", ["a", "-"], ["b"]),
        ("a[b", ["a[b"], ["ab"]),
        ("[]", ["[]"], [""]),
        (r"\*", ["*"], ["a", r"\*"]),
        ("a\\", ["a\\"], ["a"]),
        ("*a*b*", ["ab", "xaxbx"], ["ba", "a"]),
    ],
)
def test_what_a_pattern_stands_for(pattern: str, yes: list[str], no: list[str]) -> None:
    """Stars, question marks, sets and escapes as in Redis; what is no such sign stands for itself."""
    assert [event for event in yes + no if Pattern(pattern).matches(event)] == yes


def test_a_name_without_signs_is_literal() -> None:
    """Literal patterns can be looked up instead of matched."""
    assert Pattern("order.1").is_literal
    assert not any(Pattern(text).is_literal for text in ("*", "a?", "[a]", "\\a"))


def test_a_match_takes_one_pass() -> None:
    """100,000 characters end at once for patterns at which a backtracking matcher would not end."""
    for pattern in ("******b", "*a" * 100 + "b", "?*" * 50 + "b", "[a-z]*" * 50 + "b"):
        assert not Pattern(pattern).matches("a" * 100_000)


@given(st.text(alphabet="ab*?[]-^!\\.", max_size=12), st.text(alphabet="ab-^!]*?[\\.\n", max_size=12))
def test_a_pattern_matches_what_a_naive_matcher_does(pattern: str, event: str) -> None:
    """The one-pass matcher and one that tries every way agree on every pattern and event."""
    assert Pattern(pattern).matches(event) == naive(pattern, event)


@pytest.mark.parametrize("text", ["*" + "?" * 254, "[a][b]" * 42 + "*", "[^b-xa-c]" * 28 + "*", "*" + "a" * 254])
def test_the_longest_pattern_is_small_and_cheap(text: str) -> None:
    """Its tests are not tried one by one: a look-up per character, however many sets there are."""
    tracemalloc.start()
    pattern = Pattern(text)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 24_000
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    pattern.matches("".join(map(chr, range(200, 455))))
    sys.setprofile(None)
    assert calls < 255 * 20


def naive(pattern: str, event: str) -> bool:
    """Whether *pattern* matches *event*, by trying every length for each star."""
    if not pattern:
        return not event
    if pattern[0] == "*":
        return any(naive(pattern[1:], event[n:]) for n in range(len(event) + 1))
    if not event:
        return False
    if pattern[0] == "?":
        return naive(pattern[1:], event[1:])
    if pattern[0] == "\\" and len(pattern) > 1:
        return pattern[1] == event[0] and naive(pattern[2:], event[1:])
    end = pattern.find("]", 3 if pattern[1:2] in ("^", "!") else 2) if pattern[0] == "[" else -1
    if end > 0:
        negated = pattern[1] in "^!"
        members, inside = pattern[1 + negated : end], False
        while members:
            if len(members) > 2 and members[1] == "-":
                inside, members = inside or members[0] <= event[0] <= members[2], members[3:]
            else:
                inside, members = inside or members[0] == event[0], members[1:]
        return inside != negated and naive(pattern[end + 1 :], event[1:])
    return pattern[0] == event[0] and naive(pattern[1:], event[1:])
