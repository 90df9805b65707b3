"""Floor 0, words: event patterns, matched in one pass over the event whatever the pattern."""

from __future__ import annotations

from collections.abc import Callable, Iterator

__all__ = ["Pattern"]

# How it works: a pattern of n one-character tests is an automaton with n + 1 states, kept as the bits of one
# integer (Baeza-Yates and Gonnet, "A new approach to text searching", 1992). Each character moves every state
# whose test it passes up by one; a state before a `*` also stays where it is. One step costs the same whatever was
# read before, so there is nothing to backtrack and no pattern can make a match slow.

Test = Callable[[str], bool]


class Pattern:
    r"""An event name, or a glob as in Redis ``PSUBSCRIBE``.

    ``*`` stands for any run of characters, ``?`` for one, ``[a-z]`` for one of a set, ``[^a]`` or ``[!a]`` for one
    outside it; ``\`` takes the next character as it is. A ``[`` without its ``]`` is an ordinary character.
    """

    __slots__ = ("_accept", "_literals", "_loops", "_tests", "is_literal", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        """The pattern as it was written."""
        self.is_literal = not any(sign in text for sign in "*?[\\")
        """It stands for one event name, its own text."""
        self._literals: dict[str, int] = {}
        self._tests: list[tuple[int, Test]] = []
        self._loops = 0
        state = 1
        for token in _tokens(text):
            if token is None:
                self._loops |= state
                continue
            if isinstance(token, str):
                self._literals[token] = self._literals.get(token, 0) | state
            else:
                self._tests.append((state, token))
            state <<= 1
        self._accept = state

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
        passed = self._literals.get(char, 0)
        for state, test in self._tests:
            if test(char):
                passed |= state
        return passed


def _tokens(text: str) -> Iterator[str | Test | None]:
    """Characters, tests of one character, and None for a ``*``."""
    at = 0
    while at < len(text):
        char, rest = text[at], text[at + 1 :]
        at += 1
        if char == "*":
            yield None
        elif char == "?":
            yield lambda _: True
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


def _set(body: str) -> Test:
    negated = body[0] in "^!"
    body = body[negated:]
    ranges, at = [], 0
    while at < len(body):
        low = high = body[at]
        if body[at + 1 : at + 2] == "-" and at + 2 < len(body):
            high, at = body[at + 2], at + 2
        ranges.append((low, high))
        at += 1
    return lambda char: negated != any(low <= char <= high for low, high in ranges)
