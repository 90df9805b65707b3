"""Floor 3, calls: whose fault it is that a call went wrong, and what each side is told."""

from __future__ import annotations

import asyncio
import inspect
import logging
import secrets
from collections.abc import Container
from typing import Any, Protocol

from .errors import EncodeError, InternalError, RpcError
from .protocol import Call, Failure
from .websocket import Websocket

__all__ = ["Failures", "View"]

logger = logging.getLogger(__name__)

OTHER = "_OTHER"
"""The name under which calls of unknown methods are counted, as OpenTelemetry has it."""


class View(Protocol):
    """What the calls need of the view whose methods they run."""

    def on_error(self, call: Call, exc: Exception) -> Any:
        """Learn that a method failed."""


class Failures:
    """What becomes of the calls of one socket that go wrong: counted, logged where it is our fault, answered."""

    __slots__ = ("_names", "_view", "_websocket", "is_closed")

    def __init__(self, view: View, websocket: Websocket, names: Container[str]) -> None:
        self._view, self._websocket, self._names = view, websocket, names
        self.is_closed = False
        """Nobody is there to be answered any more."""

    async def answer(self, call: Call, error: BaseException, verdict: RpcError | None = None) -> bytes | None:
        """The answer to *call*, which *error* has ended, or None where there is nobody to answer.

        *verdict* is what the call was cancelled with. A cancellation of the whole socket goes on its way.
        """
        if isinstance(error, RpcError):
            return await self._told(call, error)
        if isinstance(error, asyncio.CancelledError):
            if self.is_closed:
                self.count(call, "gone")
                raise error
            if verdict is not None:
                return await self._told(call, verdict)
            # Nobody cancelled the call: the method itself awaited something that was cancelled.
            return await self._ours(call, _because("the method was cancelled from within", error))
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise error
        if isinstance(error, ConnectionError) and self._websocket.is_gone:
            # The method heard of it before it was cancelled: nobody's fault, and nobody to answer.
            self.count(call, "gone")
            return None
        if not isinstance(error, Exception):  # as a panic of Rust is, or a group with a cancellation among others
            error = _because(f"the method raised {type(error).__name__}", error)
        return await self._ours(call, error)

    def refusal(self, call: Call, error: RpcError) -> bytes | None:
        """The answer that says *error*, counted; None to a notification."""
        logger.debug("%s %.64r: %s", self._websocket, call.method, error)
        answer = None if call.notification else Failure.of(call, error).encode()
        self.count(call, str(error.code))
        if call.notification:
            self._websocket.metrics.dropped["notification"] += 1
        return answer

    def count(self, call: Call, outcome: str) -> None:
        """Count *call* as ended."""
        # Names that callers make up are counted as one: without this, they would fill the memory.
        method = call.method if call.method in self._names else OTHER
        self._websocket.metrics.failed[method, outcome] += 1

    async def _told(self, call: Call, error: RpcError) -> bytes | None:
        try:
            return self.refusal(call, error)
        except Exception as unsayable:  # JSON cannot hold it, or its class left out what RpcError sets
            return await self._ours(call, unsayable)

    async def _ours(self, call: Call, error: Exception) -> bytes | None:
        """Our fault: all of it to the log and to the view's hook, nothing but an *error_id* to the caller."""
        error_id = secrets.token_hex(8)
        logger.error("%s method %s failed, error_id %s", self._websocket, call.method, error_id, exc_info=error)
        try:
            if inspect.isawaitable(told := self._view.on_error(call, error)):
                await told
        except (Exception, asyncio.CancelledError) as failed:
            if self.is_closed and isinstance(failed, asyncio.CancelledError):
                raise
            logger.exception("%s on_error failed", self._websocket)
            self._websocket.close_soon(1011, "on_error failed")
        message = "JSON object expected" if isinstance(error, EncodeError) else "Internal error"
        return self.refusal(call, InternalError(error_id, message))


def _because(message: str, cause: BaseException) -> Exception:
    error = RuntimeError(message)
    error.__cause__ = cause
    return error
