"""A coroutine begun at once and seen through later in the same task."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

from openapi_ws.steps import begin

VAR = contextvars.ContextVar("VAR", default="outside")


async def test_what_does_not_wait_ends_at_once() -> None:
    """There is nothing to await then, and no task."""
    seen = []

    async def method() -> None:
        seen.append(asyncio.current_task())

    assert begin(method()) is None
    assert seen == [asyncio.current_task()]


async def test_what_it_raises_at_once_is_raised() -> None:
    """An exception before the first wait is the caller's to handle."""

    async def method() -> None:
        raise ValueError("now")

    with pytest.raises(ValueError, match="now"):
        begin(method())


async def test_it_gives_its_result_and_its_errors() -> None:
    """Awaiting what waits gives what the coroutine returns or raises, however often it waits."""

    async def method(fails: bool) -> str:
        for _ in range(3):
            await asyncio.sleep(0)
        if fails:
            raise ValueError("later")
        return "done"

    suspended, failing = begin(method(False)), begin(method(True))
    assert suspended is not None
    assert failing is not None
    assert await suspended == "done"
    with pytest.raises(ValueError, match="later"):
        await failing


async def test_it_has_a_context_of_its_own() -> None:
    """A context variable that it sets is its own, before it waits and after; what was set outside it can read."""
    seen = []

    async def method() -> None:
        VAR.set("inside")
        await asyncio.sleep(0)
        seen.append(VAR.get())
        await asyncio.create_task(asyncio.sleep(0))
        seen.append(VAR.get())

    suspended = begin(method())
    assert suspended is not None
    assert VAR.get() == "outside"
    await suspended
    assert (seen, VAR.get()) == (["inside", "inside"], "outside")


async def test_a_timeout_entered_before_the_first_wait_ends_it_and_not_its_caller() -> None:
    """`asyncio.timeout` cancels the task in which it was entered: that is the one that sees the coroutine through."""

    async def method() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            return "timed out"
        return "never"

    suspended = begin(method())
    assert suspended is not None
    assert await suspended == "timed out"
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_task_group_entered_before_the_first_wait_ends_with_its_children() -> None:
    """A child that fails cancels the group's body, and the group raises."""

    async def fail() -> None:
        raise ValueError("child")

    async def method() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            await asyncio.Event().wait()

    suspended = begin(method())
    assert suspended is not None
    with pytest.raises(ExceptionGroup):
        await suspended


async def test_a_cancellation_reaches_it() -> None:
    """It may clean up, and even wait for that, before the cancellation goes on."""
    seen = []

    async def method() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            seen.append(VAR.get())

    async def run() -> None:
        VAR.set("of the task")
        suspended = begin(method())
        assert suspended is not None
        await suspended

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["of the task"]
