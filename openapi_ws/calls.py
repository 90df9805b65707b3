"""Floor 3, calls: the calls of one socket that have no answer yet; each gets exactly one."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from .errors import (
    CallCancelled,
    CallTimedOut,
    Conflict,
    Draining,
    LimitExceeded,
    MethodNotFound,
    RpcError,
)
from .failures import Failures, View
from .protocol import Batch, Call, Failure, decode, is_id
from .rpc import Method, current_call
from .steps import Suspended, begin
from .websocket import Websocket

__all__ = ["Calls"]

logger = logging.getLogger(__name__)

CANCEL_METHODS = ("rpc.cancel", "$/cancelRequest")
"""Names under which a caller takes a call back; the second is that of the Language Server Protocol."""
IN_FLIGHT = "A call with this id is in flight"
FAREWELL = (1.0, 0.2, 0.2)
"""Seconds that a cancelled method has to clean up, until it is cancelled again, and again, and left behind."""

Answer = Callable[[bytes | None], None]
"""Takes an answer's text, or None of a call that has none."""


class _Running:
    """One call under way."""

    # Not __slots__: most calls end before they need any of these, and cost a third less so.
    key: object = None
    deadline: float | None = None
    verdict: RpcError | None = None
    task: asyncio.Task[None] | None = None
    has_run = is_cancellable = is_holding = is_unopened = False

    def __init__(self, call: Call, method: Method, answer: Answer) -> None:
        self.call, self.method, self.answer = call, method, answer

    def cancel(self, verdict: RpcError) -> None:
        """End the call with *verdict* as its answer; once, so that the method may clean up in peace."""
        # A task that is cancelled before its first step, or while it makes its answer, would end without one.
        if self.is_cancellable and self.task is not None:
            self.task.cancel()
        if self.verdict is None:
            self.verdict, self.is_cancellable = verdict, False


class Calls:
    """What runs for one socket: reads frames, starts methods, sends each answer once.

    A method runs in the task that reads the socket until it waits for the first time. Then that task stays with it,
    since timeouts and task groups belong to the task in which they were entered, and another has to read on. A method
    whose last call has waited gets a task at once. So a call that never waits costs no task, and one that does holds
    nobody up ("leader and followers", Schmidt et al., Pattern-Oriented Software Architecture 2, 2000).
    """

    __slots__ = (
        "_failures", "_in_lane", "_lane", "_limit", "_methods", "_opening", "_running", "_settled", "_timeout",
        "_unopened", "_view", "_websocket",
    )  # fmt: skip

    def __init__(
        self, view: View, websocket: Websocket, methods: dict[str, Method], *, limit: int, timeout: float | None
    ) -> None:
        self._view, self._websocket, self._methods = view, websocket, methods
        self._limit, self._timeout = limit, timeout
        self._opening: asyncio.Task[None] | None = None
        self._running: dict[object, _Running] = {}
        self._lane: asyncio.Lock | None = None
        self._in_lane = self._unopened = 0
        self._failures = Failures(view, websocket, methods)
        self._settled: asyncio.Event | None = None

    def __len__(self) -> int:
        return len(self._running)

    def wait_for(self, opening: asyncio.Task[None]) -> None:
        """Begin no method before *opening* has ended."""
        self._opening = opening
        opening.add_done_callback(self._opened)

    def _opened(self, _: asyncio.Task[None]) -> None:
        self._opening = None

    def receive(self, frame: bytes) -> Suspended[None] | None:
        """Answer one frame, or start the calls that will.

        What it returns, if anything, is to be awaited in this task, while another reads on.
        """
        if self._failures.is_closed:
            return None
        websocket = self._websocket
        request = decode(frame, websocket.dialect, fixed=websocket.dialect_is_fixed)
        websocket.dialect = request.dialect
        if type(request) is Call:
            return self._start(request, websocket.send)
        if isinstance(request, Batch):
            return self._start_batch(request)
        if isinstance(request, Failure):
            websocket.send(request.encode())
        return None

    def tick(self, now: float) -> None:
        """End the calls whose time is up."""
        for running in tuple(self._running.values()):
            if running.deadline is not None and now >= running.deadline:
                running.cancel(CallTimedOut())

    def dismiss(self) -> None:
        """End all calls with -32014: the socket is about to close."""
        for running in tuple(self._running.values()):
            running.cancel(Draining())

    def refuse(self) -> None:
        """Start and answer nothing any more, and cancel what runs; each call once, so that it may clean up."""
        was_closed, self._failures.is_closed = self._failures.is_closed, True
        for running in tuple(self._running.values()):
            if running.task is not None and running.verdict is None and not was_closed:
                running.task.cancel()
                if not running.has_run:  # and now it never will
                    self._failures.count(running.call, "gone")
                    self._forget(running)

    async def close(self) -> None:
        """End all that runs, and wait for it as long as `FAREWELL` says."""
        self.refuse()
        if self._opening is not None:
            self._opening.cancel()
        for patience in FAREWELL:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._all_ended()
                    return
            # A method may have swallowed its cancellation, to wait for something else.
            for running in self._running.values():
                if running.task is not None:
                    running.task.cancel()
        for running in self._running.values():
            logger.warning("%s is gone, but a method goes on though cancelled: %r", self._websocket, running.task)

    async def _all_ended(self) -> None:
        if self._opening is not None:
            await asyncio.wait([self._opening])
        if self._running:
            self._settled = asyncio.Event()
            await self._settled.wait()

    def _start_batch(self, batch: Batch) -> Suspended[None] | None:
        """Start all entries; their answers leave in one array when the last has come (JSON-RPC 2.0 §6)."""
        answers: list[bytes | None] = [None] * len(batch.entries)
        missing = len(answers)
        methods = [self._methods.get(entry.method) for entry in batch.entries if isinstance(entry, Call)]
        holds = any(method.replies_first for method in methods if method)
        if holds:
            self._websocket.hold()

        def put(place: int, text: bytes | None) -> None:
            nonlocal missing
            missing -= 1
            answers[place] = text
            if not missing:
                if texts := [text for text in answers if text is not None]:
                    self._websocket.send(b"[%b]" % b",".join(texts))
                if holds:
                    self._websocket.release()

        suspended, ids = None, set()
        for place, entry in enumerate(batch.entries):
            answer = functools.partial(put, place)
            if isinstance(entry, Failure):
                answer(entry.encode())
            elif entry.id in ids:  # the first may have ended, but its answer is not out
                answer(self._failures.refusal(entry, Conflict(IN_FLIGHT)))
            elif suspended is None:
                suspended = self._start(entry, answer)
            elif running := self._admit(entry, answer):
                self._spawn(running)
            ids |= {entry.id} - {None}
        return suspended

    def _start(self, call: Call, answer: Answer) -> Suspended[None] | None:
        """Begin *call* here and now, unless it must not or would have to wait."""
        method = self._methods.get(call.method)
        if method is None or self._running or self._websocket.is_leaving:
            running = self._admit(call, answer)
            if running is None:
                return None
            method = running.method
        else:
            running = _Running(call, method, answer)
        if method.waits or self._opening is not None or self._unopened or (self._in_lane and method.is_ordered):
            self._spawn(running)
            return None
        suspended = begin(self._run(running))
        if suspended is not None:
            self._enter(running)
            running.task = asyncio.current_task()
            method.waits = True
            if self._failures.is_closed and running.task is not None:  # by the method itself
                running.task.cancel()
        return suspended

    def _admit(self, call: Call, answer: Answer) -> _Running | None:
        """A call that may begin; or None, and it has its answer."""
        running, key = self._running, call.id
        method = self._methods.get(call.method)
        is_free = not running or (len(running) < self._limit and (key is None or key not in running))
        if is_free and method is not None and not self._websocket.is_leaving:
            return _Running(call, method, answer)
        if call.method in CANCEL_METHODS and key not in running:
            answer(self._cancel(call))
        else:
            answer(self._failures.refusal(call, self._why_not(call)))
        return None

    def _why_not(self, call: Call) -> RpcError:
        if call.id in self._running:
            return Conflict(IN_FLIGHT)
        if len(self._running) >= self._limit:
            return LimitExceeded(f"At most {self._limit} calls in flight")
        return Draining() if call.method in self._methods else MethodNotFound(call.method)

    def _cancel(self, call: Call) -> bytes | None:
        params = call.params[:1] if isinstance(call.params, list) else [call.params]
        id_ = params[0].get("id") if params and isinstance(params[0], dict) else (params or [None])[0]
        running = self._running.get(id_) if is_id(id_) else None
        if running:
            running.cancel(CallCancelled())
        if call.notification:
            return None
        return call.dialect.reply(call, b'{"cancelled":%b}' % (b"true" if running else b"false"))

    # -- from its beginning to its answer -----------------------------------------------------------------------

    def _spawn(self, running: _Running) -> None:
        self._enter(running)
        # One that comes as `connected` ends overtakes none of those that wait for it.
        if self._opening is not None or self._unopened:
            self._unopened += 1
            running.is_unopened = True
        running.task = asyncio.get_running_loop().create_task(self._run_alone(running))

    def _enter(self, running: _Running) -> None:
        """Count a call in that does not end at once."""
        timeout = running.method.options.timeout
        if timeout is ...:
            timeout = self._timeout
        if timeout is not None:
            running.deadline = asyncio.get_running_loop().time() + timeout
        running.key = object() if running.call.id is None else running.call.id
        self._running[running.key] = running
        self._in_lane += running.method.is_ordered

    def _forget(self, running: _Running) -> None:
        if self._running.pop(running.key, None) is None:
            return
        self._in_lane -= running.method.is_ordered
        self._is_opened(running)
        if self._settled is not None and not self._running:
            self._settled.set()

    def _is_opened(self, running: _Running) -> None:
        self._unopened -= running.is_unopened
        running.is_unopened = False

    async def _run_alone(self, running: _Running) -> None:
        suspended = begin(self._run(running))
        running.method.waits = suspended is not None
        if suspended is not None:
            await suspended

    async def _run(self, running: _Running) -> None:
        """Run the method to its end, good or bad, and answer."""
        running.has_run = True
        call, method = running.call, running.method
        try:
            try:
                if running.task is None and not method.is_ordered:  # it has nobody to wait for
                    result = await self._method(running)
                else:
                    result = await self._in_turn(running)
                text = method.dump(result)
                running.is_cancellable = False
                self._websocket.metrics.answered[method] += 1
                answer = None if call.notification else call.dialect.reply(call, text, method.json)
            except BaseException as error:
                running.is_cancellable = False
                answer = await self._failures.answer(call, error, running.verdict)
            if running.task is not None:
                self._forget(running)  # before the answer: whoever has it may use the id again
            running.answer(answer)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException:  # of on_error: a call that is not answered closes its socket
            logger.exception("%s method %s is not answered", self._websocket, running.call.method)
            self._websocket.close_soon(1011, "no answer")
        finally:
            if running.task is not None:
                self._forget(running)
            if running.is_holding:
                self._websocket.release()

    async def _in_turn(self, running: _Running) -> Any:
        if running.verdict is not None:
            raise running.verdict
        running.is_cancellable = True
        # In the lane before `connected` has ended: else a call that comes as it ends would overtake those that wait.
        async with self._ordered() if running.method.is_ordered else contextlib.nullcontext():
            if self._opening is not None:
                await asyncio.shield(self._opening)
            self._is_opened(running)
            return await self._method(running)

    def _ordered(self) -> asyncio.Lock:
        self._lane = self._lane or asyncio.Lock()
        return self._lane

    def _method(self, running: _Running) -> Coroutine[Any, Any, Any]:
        call, method = running.call, running.method
        running.is_cancellable = True
        if method.replies_first:
            self._websocket.hold()
            running.is_holding = True
        current_call.set((self._websocket, call))
        if method.takes_payload:
            return method.function(self._view, method.payload(call))
        return method.function(self._view)
