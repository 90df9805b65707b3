"""Floor 0, words: event patterns, matched in one pass over the event whatever the pattern."""

from __future__ import annotations

import bisect
import itertools
import operator
from collections.abc import Iterator

__all__ = ["Pattern"]

# How it works: a pattern of n one-character tests is an automaton with n + 1 states, kept as the bits of one
# integer (Baeza-Yates and Gonnet, "A new approach to text searching", 1992). Each character moves every state
# whose test it passes up by one; a state before a `*` also stays where it is. One step costs the same whatever was
# read before, so there is nothing to backtrack and no pattern can make a match slow. Which tests a character passes
# is looked up, not tried: sets are kept as the code points at which any of them begins or ends, and between two of
# these all characters pass the same.

Set = tuple[bool, list[tuple[int, int]]]
"""Whether it stands for what is outside, and its ranges of code points, apart, each to before its second."""


class Pattern:
    r"""An event name, or a glob as in Redis ``PSUBSCRIBE``.

    ``*`` stands for any run of characters, ``?`` for one, ``[a-z]`` for one of a set, ``[^a]`` or ``[!a]`` for one
    outside it; ``\`` takes the next character as it is. A ``[`` without its ``]`` is an ordinary character.
    """

    __slots__ = ("_accept", "_edges", "_literals", "_loops", "_passing", "is_literal", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        """The pattern as it was written."""
        self.is_literal = not any(sign in text for sign in "*?[\\")
        """It stands for one event name, its own text."""
        self._literals: dict[str, int] = {}
        self._loops = outside = 0
        edges: dict[int, int] = {}
        state = 1
        for token in _tokens(text):
            if token is None:
                self._loops |= state
                continue
            if isinstance(token, str):
                self._literals[token] = self._literals.get(token, 0) | state
            else:
                outside |= state if token[0] else 0
                for edge in itertools.chain.from_iterable(token[1]):
                    edges[edge] = edges.get(edge, 0) ^ state
            state <<= 1
        self._accept = state
        self._edges = sorted(edges)
        # Each edge turns the sets that begin or end there.
        self._passing = list(itertools.accumulate((edges[edge] for edge in self._edges), operator.xor, initial=outside))

    def matches(self, event: str) -> bool:
        """The whole of *event* is one that the pattern stands for."""
        if self.is_literal:
            return event == self.text
        if self.text == "*":
            return True
        states = 1
        known: dict[str, int] = {}
        for char in event:
            passed = known.get(char)
            if passed is None:
                passed = known[char] = self._passes(char)
            states = (states & passed) << 1 | states & self._loops
            if not states:
                return False
        return bool(states & self._accept)

    def _passes(self, char: str) -> int:
        """The states whose test *char* passes."""
        return self._literals.get(char, 0) | self._passing[bisect.bisect_right(self._edges, ord(char))]


def _tokens(text: str) -> Iterator[str | Set | None]:
    """Characters, sets of characters, and None for a ``*``."""
    at = 0
    while at < len(text):
        char, rest = text[at], text[at + 1 :]
        at += 1
        if char == "*":
            yield None
        elif char == "?":
            yield True, []
        elif char == "[" and (end := _end_of_set(rest)) > 0:
            yield _set(rest[:end])
            at += end + 1
        elif char == "\\" and rest:
            yield rest[0]
            at += 1
        else:
            yield char


def _end_of_set(rest: str) -> int:
    """Where the set that *rest* begins ends, or -1; a ``]`` in first place belongs to the set."""
    first = 1 if rest[:1] in ("^", "!") else 0
    return rest.find("]", first + 1)


def _set(body: str) -> Set:
    negated = body[0] in "^!"
    body = body[negated:]
    ranges, at = [], 0
    while at < len(body):
        low = high = body[at]
        if body[at + 1 : at + 2] == "-" and at + 2 < len(body):
            high, at = body[at + 2], at + 2
        if low <= high:
            ranges.append((ord(low), ord(high) + 1))
        at += 1
    return negated, _apart(sorted(ranges))


def _apart(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join those of the sorted *ranges* that meet."""
    joined: list[tuple[int, int]] = []
    for low, end in ranges:
        if joined and low <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((low, end))
    return joined
