"""Floor 3, calls: the calls of one socket that have no answer yet; each gets exactly one."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import secrets
from collections.abc import Callable
from typing import Any, Protocol

from .errors import (
    CallCancelled,
    CallTimedOut,
    Conflict,
    Draining,
    EncodeError,
    InternalError,
    LimitExceeded,
    MethodNotFound,
    RpcError,
)
from .protocol import Batch, Call, Failure, Reply, decode, is_id
from .rpc import Method, current_call
from .websocket import Websocket

__all__ = ["Calls"]

logger = logging.getLogger(__name__)

OTHER = "_OTHER"
"""The name under which calls of unknown methods are counted, as OpenTelemetry has it."""
CANCEL_METHODS = ("rpc.cancel", "$/cancelRequest")
"""Names under which a caller takes a call back; the second is that of the Language Server Protocol."""
FAREWELL = (1.0, 0.2, 0.2)
"""Seconds that a cancelled method has to clean up, until it is cancelled again, and again, and left behind."""

Answer = Callable[[bytes | None], None]
"""Takes the answer's text, or None from a call that has none."""


class View(Protocol):
    """What the calls need of the view whose methods they run."""

    def on_error(self, call: Call, exc: Exception) -> Any:
        """Learn that a method failed."""


class _Running:
    """One call under way."""

    __slots__ = ("answer", "call", "deadline", "is_cancellable", "is_holding", "method", "task", "verdict")

    def __init__(self, call: Call, method: Method, answer: Answer, deadline: float | None) -> None:
        self.call, self.method, self.answer, self.deadline = call, method, answer, deadline
        self.verdict: RpcError | None = None
        self.is_holding = False
        self.is_cancellable = False
        self.task: asyncio.Task[None] | None = None

    def cancel(self, verdict: RpcError) -> None:
        """End the call with *verdict* as its answer; once, so that the method may clean up in peace."""
        # A task that is cancelled before its first step, or while it makes its answer, would end without one.
        if self.is_cancellable and self.task is not None:
            self.task.cancel()
        if self.verdict is None:
            self.verdict, self.is_cancellable = verdict, False


class Calls:
    """What runs for one socket: reads frames, starts methods, sends each answer once."""

    __slots__ = (
        "_is_closed", "_lane", "_limit", "_methods", "_running", "_timeout", "_view", "_websocket", "opening",
    )  # fmt: skip

    def __init__(
        self, view: View, websocket: Websocket, methods: dict[str, Method], *, limit: int, timeout: float | None
    ) -> None:
        self._view, self._websocket, self._methods = view, websocket, methods
        self._limit, self._timeout = limit, timeout
        self.opening: asyncio.Task[None] | None = None
        """A task that must end before the first method begins."""
        self._running: dict[object, _Running] = {}
        self._lane = asyncio.Lock()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._running)

    def receive(self, frame: bytes) -> None:
        """Answer one frame, or start the calls that will; it never waits."""
        if self._is_closed:
            return
        websocket = self._websocket
        request = decode(frame, websocket.dialect, fixed=websocket.dialect_is_fixed)
        websocket.dialect = request.dialect
        if isinstance(request, Call):
            self._start(request, self._send)
        elif isinstance(request, Failure):
            websocket.send(request.encode())
        else:
            self._start_batch(request)

    def tick(self, now: float) -> None:
        """End the calls whose time is up."""
        for running in tuple(self._running.values()):
            if running.deadline is not None and now >= running.deadline:
                running.cancel(CallTimedOut())

    def dismiss(self) -> None:
        """End all calls with -32014: the socket is about to close."""
        for running in tuple(self._running.values()):
            running.cancel(Draining())

    def refuse(self) -> list[asyncio.Task[None]]:
        """Start and answer nothing any more; the tasks that end now, each cancelled once, so that it may clean up."""
        was_closed, self._is_closed = self._is_closed, True
        for running in self._running.values():
            if running.task and running.verdict is None and not was_closed:
                running.task.cancel()
        return [running.task for running in self._running.values() if running.task]

    async def close(self) -> None:
        """End all that runs, and wait for it as long as `FAREWELL` says."""
        tasks = self.refuse()
        if self.opening is not None and self.opening.cancel():
            tasks.append(self.opening)
        for patience in FAREWELL:
            if tasks:
                _, stubborn = await asyncio.wait(tasks, timeout=patience)
                # A method may have swallowed its cancellation, to wait for something else.
                tasks = [task for task in stubborn if task.cancel()]
        for task in tasks:
            logger.warning("%s is gone, but a method goes on though cancelled: %r", self._websocket, task)

    def _send(self, answer: bytes | None) -> None:
        if answer is not None:
            self._websocket.send(answer)

    def _start_batch(self, batch: Batch) -> None:
        """Start all entries; their answers leave in one array when the last has come (JSON-RPC 2.0 §6)."""
        answers: list[bytes] = []
        missing = len(batch.entries)
        methods = [self._methods.get(entry.method) for entry in batch.entries if isinstance(entry, Call)]
        holds = any(method.options.reply_first for method in methods if method)
        if holds:
            self._websocket.hold()

        def answer(text: bytes | None) -> None:
            nonlocal missing
            missing -= 1
            if text is not None:
                answers.append(text)
            if not missing:
                if answers:
                    self._websocket.send(b"[%b]" % b",".join(answers))
                if holds:
                    self._websocket.release()

        for entry in batch.entries:
            if isinstance(entry, Call):
                self._start(entry, answer)
            else:
                answer(entry.encode())

    def _start(self, call: Call, answer: Answer) -> None:
        try:
            key = object() if call.id is None else call.id
            if key in self._running:
                raise Conflict("A call with this id is in flight")
            if call.method in CANCEL_METHODS:
                answer(self._cancel(call))
                return
            if len(self._running) >= self._limit:
                raise LimitExceeded(f"At most {self._limit} calls in flight")
            method = self._methods.get(call.method)
            if method is None:
                raise MethodNotFound(call.method)
            if self._websocket.is_leaving:
                raise Draining
        except RpcError as error:
            logger.debug("%s %.64r: %s", self._websocket, call.method, error)
            self._count(call, error)
            answer(_failure(call, error))
            return
        loop = asyncio.get_running_loop()
        timeout = self._timeout if method.options.timeout is ... else method.options.timeout
        running = _Running(call, method, answer, None if timeout is None else loop.time() + timeout)
        self._running[key] = running
        running.task = loop.create_task(self._run(key, running))

    def _cancel(self, call: Call) -> bytes | None:
        params = call.params[:1] if isinstance(call.params, list) else [call.params]
        id_ = params[0].get("id") if params and isinstance(params[0], dict) else (params or [None])[0]
        running = self._running.get(id_) if is_id(id_) else None
        if running:
            running.cancel(CallCancelled())
        return (
            None
            if call.notification
            else Reply(call, b'{"cancelled":%b}' % (b"true" if running else b"false")).encode()
        )

    async def _run(self, key: object, running: _Running) -> None:
        try:
            answer = await self._outcome(running)
            del self._running[key]  # before the answer: whoever has it may use the id again
            running.answer(answer)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException:  # of on_error: a call that is not answered closes its socket
            logger.exception("%s method %s is not answered", self._websocket, running.call.method)
            self._websocket.close_soon(1011, "no answer")
        finally:
            self._running.pop(key, None)
            if running.is_holding:
                self._websocket.release()

    async def _outcome(self, running: _Running) -> bytes | None:
        """Run the method to its end, good or bad; the text of its answer, or None for a notification."""
        call = running.call
        try:
            try:
                result = await self._result(running)
            finally:
                running.is_cancellable = False
            self._count(call, None)
            return None if call.notification else Reply(call, result).encode()
        except RpcError as error:
            return await self._rpc_error(call, error)
        except asyncio.CancelledError as error:
            if self._is_closed:
                self._websocket.metrics.calls[call.method, "gone"] += 1
                raise
            if running.verdict is not None:
                return await self._rpc_error(call, running.verdict)
            # Nobody cancelled the call: the method itself awaited something that was cancelled.
            within = RuntimeError("the method was cancelled from within")
            within.__cause__ = error
            return await self._internal(call, within)
        except Exception as error:
            if isinstance(error, ConnectionError) and self._websocket.is_gone:
                # The method heard of it before it was cancelled: nobody's fault, and nobody to answer.
                self._websocket.metrics.calls[call.method, "gone"] += 1
                return None
            return await self._internal(call, error)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # as a panic of Rust is, or a group with a cancellation among others
            panic = RuntimeError(f"the method raised {type(error).__name__}")
            panic.__cause__ = error
            return await self._internal(call, panic)

    async def _result(self, running: _Running) -> bytes:
        if running.verdict is not None:
            raise running.verdict
        running.is_cancellable = True
        # In the lane before `connected` has ended: else a call that comes as it ends would overtake those that wait.
        async with self._lane if running.method.options.ordered else contextlib.nullcontext():
            if self.opening is not None and not self.opening.done():
                await asyncio.shield(self.opening)
            return await self._invoke(running)

    async def _invoke(self, running: _Running) -> bytes:
        if running.method.options.reply_first:
            self._websocket.hold()
            running.is_holding = True
        current_call.set((self._websocket, running.call))
        return await running.method(self._view, running.call)

    async def _rpc_error(self, call: Call, error: RpcError) -> bytes | None:
        logger.debug("%s %s: %s", self._websocket, call.method, error)
        try:
            answer = _failure(call, error)
            self._count(call, error)
            return answer
        except Exception as unsayable:  # JSON cannot hold it, or its class left out what RpcError sets
            return await self._internal(call, unsayable)

    async def _internal(self, call: Call, error: Exception) -> bytes | None:
        """Our fault: all of it to the log and to the view's hook, nothing but an *error_id* to the caller."""
        error_id = secrets.token_hex(8)
        logger.error("%s method %s failed, error_id %s", self._websocket, call.method, error_id, exc_info=error)
        try:
            if inspect.isawaitable(told := self._view.on_error(call, error)):
                await told
        except (Exception, asyncio.CancelledError) as failed:
            if self._is_closed and isinstance(failed, asyncio.CancelledError):
                raise
            logger.exception("%s on_error failed", self._websocket)
            self._websocket.close_soon(1011, "on_error failed")
        message = "JSON object expected" if isinstance(error, EncodeError) else "Internal error"
        failure = InternalError(error_id, message)
        self._count(call, failure)
        return _failure(call, failure)

    def _count(self, call: Call, error: RpcError | None) -> None:
        # Names that callers make up are counted as one: without this, they would fill the memory.
        method = call.method if call.method in self._methods else OTHER
        self._websocket.metrics.calls[method, str(error.code) if error else "ok"] += 1
        if error is not None and call.notification:
            self._websocket.metrics.dropped["notification"] += 1


def _failure(call: Call, error: RpcError) -> bytes | None:
    return None if call.notification else Failure.of(call, error).encode()
