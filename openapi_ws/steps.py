"""Floor 0, words: begin a coroutine at once, and see it through later in the same task."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from contextvars import Context, copy_context
from typing import Any, Generic, TypeVar

__all__ = ["Suspended", "begin"]

Result = TypeVar("Result")


def begin(coroutine: Coroutine[Any, Any, Any]) -> Suspended[Any] | None:
    """Run *coroutine* in a context of its own as far as it gets without waiting.

    None if it has ended; otherwise what must be awaited **in the task that runs now**: timeouts and task groups that
    the coroutine has entered belong to that task. What it raises meanwhile is raised.
    """
    context = copy_context()
    try:
        wait = context.run(coroutine.send, None)
    except StopIteration:
        return None
    return Suspended(coroutine, context, wait)


class Suspended(Generic[Result]):
    """A coroutine that has begun and waits; awaiting it runs it to its end, and gives its result."""

    __slots__ = ("_context", "_coroutine", "_wait")

    def __init__(self, coroutine: Coroutine[Any, Any, Result], context: Context, wait: object) -> None:
        self._coroutine, self._context, self._wait = coroutine, context, wait

    def __await__(self) -> Generator[Any, Any, Result]:
        coroutine, run, wait = self._coroutine, self._context.run, self._wait
        while True:
            try:
                try:
                    sent = yield wait
                except BaseException as error:  # a cancellation is the coroutine's to handle, like all it waits for
                    wait = run(coroutine.throw, error)
                else:
                    wait = run(coroutine.send, sent)
            except StopIteration as end:
                result: Result = end.value
                return result
