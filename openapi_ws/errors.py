"""Floor 0, words: every error, drawn as a tree by whose fault it is.

The caller's: answered with its code and message, never logged above debug::

    RpcError
    ├── ParseError          -32700   the frame is not JSON
    ├── InvalidRequest      -32600   JSON, but not a call
    ├── MethodNotFound      -32601
    ├── InvalidParams       -32602
    │   ├── CannotPublish            raised by a broker, or by get_publish_message
    │   └── CannotSubscribe          raised by a broker
    ├── UnknownChannel      -32004   topics are declared, and it is of none of them
    ├── LimitExceeded       -32005
    ├── TooLarge            -32007
    ├── Conflict            -32009
    ├── CallTimedOut        -32008
    ├── CallCancelled       -32013
    ├── Draining            -32014
    ├── BrokerUnavailable   -32012   not the caller's fault, but the caller's to try again
    └── InternalError       -32603   what a caller sees of our fault, and no more

Ours: any other exception. It is logged once with its traceback and an *error_id*, and the caller is answered
`InternalError` with the same id. Of our own making are only::

    ChannelCallbackError            a callback of server code asks to be taken off its channel
    EncodeError                     a value that JSON cannot hold

The programmer's: raised where the mistake is made, naming what to write instead::

    SetupError
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "BrokerUnavailable",
    "CallCancelled",
    "CallTimedOut",
    "CannotPublish",
    "CannotSubscribe",
    "ChannelCallbackError",
    "Conflict",
    "Draining",
    "EncodeError",
    "InternalError",
    "InvalidParams",
    "InvalidRequest",
    "LimitExceeded",
    "MethodNotFound",
    "ParseError",
    "RpcError",
    "SetupError",
    "TooLarge",
    "UnknownChannel",
]

ECHO_LIMIT = 64
"""The most characters of a caller's own string that an answer repeats."""


class RpcError(Exception):
    """An answer to the caller: raise it in a method, a guard or a hook.

    *code* is an integer; applications use any outside -32768…-32000, which JSON-RPC 2.0 reserves (§5.1).
    *message* and *errors*, ``{field path: why}``, go to the caller word for word, as do further members, e.g.
    ``retry_after=1.5``, each of which JSON can hold. Nothing else of the exception does.

    Raises:
        TypeError: *code* is not an integer, or *message* is not a string.
    """

    standard: ClassVar[str | None] = None
    """The message that JSON-RPC 2.0 fixes for this error; *message* is then the house dialect's."""

    def __init__(self, code: int, message: str, *, errors: dict[str, str] | None = None, **members: Any) -> None:
        if isinstance(code, bool) or not isinstance(code, int):
            raise TypeError(f"RpcError takes an integer code, then a message; got {type(code).__name__}")
        if not isinstance(message, str):
            raise TypeError(f"RpcError takes a string as message; got {type(message).__name__}")
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.errors = errors
        self.members = members

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"

    def details(self) -> dict[str, Any]:
        """What an answer says beside code and message."""
        return {"errors": self.errors, **self.members} if self.errors else dict(self.members)


class ParseError(RpcError):
    """The frame is not JSON that this library reads (RFC 8259, finite numbers, no lone surrogates)."""

    standard = "Parse error"

    def __init__(self, message: str = "JSON string expected") -> None:
        super().__init__(-32700, message)


class InvalidRequest(RpcError):
    """JSON, but not a call in either dialect."""

    standard = "Invalid Request"

    def __init__(self, message: str = "Invalid RPC parameters", errors: dict[str, str] | None = None) -> None:
        super().__init__(-32600, message, errors=errors)


class MethodNotFound(RpcError):
    """No method of this name is offered here."""

    standard = "Method not found"

    def __init__(self, method: str) -> None:
        why = f"{method[:ECHO_LIMIT]} method not available"
        super().__init__(-32601, "Invalid RPC parameters", errors={"method": why})


class InvalidParams(RpcError):
    """The payload is not what the method takes; *errors* says where and why."""

    standard = "Invalid params"

    def __init__(self, errors: dict[str, str] | None = None) -> None:
        super().__init__(-32602, "Invalid RPC parameters", errors=errors)


class CannotPublish(InvalidParams, RuntimeError):
    """Raised by a broker that does not publish to this channel. *reason* is for logs, not for the caller."""

    def __init__(self, reason: str = "") -> None:
        super().__init__({"channel": "Cannot publish to channel"})
        self.reason = reason


class CannotSubscribe(InvalidParams, RuntimeError):
    """Raised by a broker that has no such channel. *reason* is for logs, not for the caller."""

    def __init__(self, reason: str = "") -> None:
        super().__init__({"channel": "Invalid channel"})
        self.reason = reason


class UnknownChannel(RpcError):
    """Topics are declared, and no channel of this name is of any of them."""

    def __init__(self) -> None:
        super().__init__(-32004, "Unknown channel", errors={"channel": "Invalid channel"})


class LimitExceeded(RpcError):
    """A limit of this socket is reached; the same call may succeed later."""

    def __init__(self, message: str) -> None:
        super().__init__(-32005, message)


class Conflict(RpcError):
    """The call clashes with one that is under way."""

    def __init__(self, message: str) -> None:
        super().__init__(-32009, message)


class CallCancelled(RpcError):
    """The caller took the call back."""

    def __init__(self) -> None:
        super().__init__(-32013, "Call cancelled")


class CallTimedOut(RpcError):
    """The method took too long and was cancelled; what it had done by then, nobody knows."""

    def __init__(self) -> None:
        super().__init__(-32008, "Call timed out")


class Draining(RpcError):
    """The socket is about to close; the same call may be made on the next."""

    def __init__(self) -> None:
        super().__init__(-32014, "Server is draining")


class BrokerUnavailable(RpcError):
    """The broker did not answer in time, or is not connected. *reason* is for logs, not for the caller.

    With *may_have_run* the command was written, and its reply was lost: whether it ran, nobody knows. Otherwise it did
    not run.
    """

    def __init__(self, reason: str = "", *, may_have_run: bool = False) -> None:
        super().__init__(-32012, "Broker unavailable")
        self.reason = reason
        self.may_have_run = may_have_run


class TooLarge(RpcError):
    """The message has more bytes than the broker carries."""

    def __init__(self, limit: int) -> None:
        super().__init__(-32007, f"At most {limit} bytes")


class InternalError(RpcError):
    """What a caller sees of a fault of ours: *error_id*, which the log line carries too."""

    standard = "Internal error"

    def __init__(self, error_id: str, message: str = "Internal error") -> None:
        super().__init__(-32603, message, error_id=error_id)


class ChannelCallbackError(RuntimeError):
    """Raised by a channel callback of server code that wants to be taken off its channels."""


class EncodeError(ValueError):
    """The value cannot be written as JSON (RFC 8259): an unknown type, a cycle, a lone surrogate, bad depth."""


class SetupError(RuntimeError):
    """A mistake in the application's code; the message names the line to write instead."""
