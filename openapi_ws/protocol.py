"""Floor 0, words: the two dialects of the wire, as functions from bytes to calls and from answers to bytes.

No input and no output happens here. `decode` never raises: what is not a call is a `Failure` that says why.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeGuard

import orjson
from pydantic_core import PydanticSerializationError, SchemaSerializer, to_json

from .errors import ECHO_LIMIT, EncodeError, InvalidRequest, ParseError, RpcError
from .history import Entry, Position

__all__ = [
    "HOUSE",
    "JSONRPC",
    "MISSING",
    "Batch",
    "Call",
    "Dialect",
    "Failure",
    "HouseDialect",
    "JsonRpcDialect",
    "Message",
    "Notice",
    "decode",
    "encode",
    "is_id",
]

VERSION = 1
"""Of messages as they are kept and sent between processes."""
MAX_DEPTH = 64
"""How deep arrays and objects may nest in a frame."""
MAX_BATCH = 20
"""How many calls one JSON-RPC batch may hold."""
MAX_ID_LENGTH = 255
"""How many characters an id may have: each answer repeats it."""
_EXACT_FLOAT = 2.0**53

CAPITAL_N, CAPITAL_I = b"NI"
"""Looking for one byte costs a tenth of looking for a word."""

CallId = str | int | float | None


class _Missing:
    """The payload of a call that has none; JSON's null is None."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()


@dataclass(slots=True)
class Call:
    """One call as it was read."""

    dialect: Dialect
    id: CallId
    method: str
    params: Any = MISSING
    notification: bool = False
    """JSON-RPC without an id: it gets no answer, whatever happens (JSON-RPC 2.0 §4.1)."""


@dataclass(slots=True)
class Failure:
    """The answer to a call, or to a frame that is none, that went wrong."""

    dialect: Dialect
    error: RpcError
    id: CallId = None
    method: str | None = None

    @classmethod
    def of(cls, call: Call, error: RpcError) -> Failure:
        """The failure of *call*."""
        return cls(call.dialect, error, call.id, call.method)

    def encode(self) -> bytes:
        """The frame's text in the dialect of the call."""
        return self.dialect.failure(self)


@dataclass(slots=True)
class Batch:
    """Several calls of one frame, answered by one array (JSON-RPC 2.0 §6)."""

    dialect: Dialect
    entries: list[Call | Failure]


@dataclass(slots=True)
class Message:
    """What a channel carries; *data* is JSON already, encoded once for all who listen."""

    channel: str
    event: str
    data: bytes
    position: str | None = None
    before: Position | None = None
    """The position of the message before it, where it has one."""

    @classmethod
    def of(cls, channel: str, event: str | None, data: Any) -> Message:
        """The message that says *data*, any value that `encode` takes; no event is the event "".

        Raises:
            EncodeError: channel or event is no string, or JSON cannot hold one of the three.
        """
        for name in (channel, event := event or ""):
            if not isinstance(name, str):
                raise EncodeError(f"channel and event are strings; got {type(name).__name__}")
            if not name.isascii():
                encode(name)  # a lone surrogate would fail later, in the fan-out
        return cls(channel, event, encode(data))

    def pack(self, **members: Any) -> bytes:
        """The message as it is kept and sent between processes: a line of JSON that is about it, and a line of data.

        *members* are further ones of the first line. The data is not wrapped, so that nothing rewrites its numbers.
        """
        return b"%b\n%b" % (orjson.dumps({"v": VERSION, "event": self.event, **members}), self.data)

    @classmethod
    def unpack(cls, channel: str, entry: Entry) -> Message:
        """The message of *channel* that is kept as *entry*.

        Raises:
            ValueError: it is not what `pack` makes.
        """
        message, _ = cls.read(channel, entry.data)
        return message.placed(entry)

    def placed(self, entry: Entry) -> Message:
        """The same message, with the place in its channel that *entry* says."""
        before = Position(entry.position.epoch, entry.position.offset - 1, entry.previous)
        self.position, self.before = str(entry.position), before
        return self

    @classmethod
    def read(cls, channel: str, packed: bytes) -> tuple[Message, dict[str, Any]]:
        """The message of *channel* that was packed, and its first line.

        Raises:
            ValueError: it is not what `pack` makes, e.g. because somebody else published it.
        """
        line, newline, data = packed.partition(b"\n")
        head = orjson.loads(line)
        orjson.loads(data)
        event = head.get("event") if newline and isinstance(head, dict) and head.get("v") == VERSION else None
        if not isinstance(event, str):
            raise ValueError(f"no message of version {VERSION}")
        return cls(channel, event, data), head


@dataclass(slots=True)
class Notice:
    """What the server tells one client about its connection; *data* is JSON already."""

    name: str
    data: bytes = b"null"


class HouseDialect:
    """``{"id", "method", "payload"}``, answered ``{"id", "method", "response" | "error"}``."""

    name: ClassVar = "openapi-ws.v1"
    """The WebSocket sub-protocol of this dialect."""

    def read(self, data: Any) -> Call | Failure | Batch:
        """The call that *data* stands for."""
        if not isinstance(data, dict):
            return Failure(self, InvalidRequest(f"Malformed message; expected dictionary, got {type(data).__name__}"))
        id_, method = data.get("id"), data.get("method")
        if type(method) is str and (
            (type(id_) is str and len(id_) <= MAX_ID_LENGTH) or (id_ is not None and is_id(id_))
        ):
            return Call(self, id_, method, data.get("payload", MISSING))
        errors: dict[str, str] = {}
        if id_ is None or not is_id(id_):
            errors["id"] = "required" if id_ is None else _ID_RULE
            id_ = None
        if not isinstance(method, str):
            errors["method"] = "required" if method is None else "string expected"
        return Failure(self, InvalidRequest(errors=errors), id_)

    def reply(self, call: Call, result: bytes, method: bytes | None = None) -> bytes:
        """``{"id", "method", "response"}``; *result* is JSON already, and so is *method*, the call's."""
        method = method or orjson.dumps(call.method)
        return b'{"id":%b,"method":%b,"response":%b}' % (orjson.dumps(call.id), method, result)

    def failure(self, failure: Failure) -> bytes:
        """``{"id", "method", "error": {"message", "code", …}}``; an unknown id or method is left out."""
        error = failure.error
        frame: dict[str, Any] = {}
        if failure.id is not None:
            frame["id"] = failure.id
        if failure.method is not None:
            frame["method"] = failure.method[:ECHO_LIMIT]
        frame["error"] = {"message": error.message, "code": error.code, **error.details()}
        return encode(frame)

    def message(self, message: Message) -> bytes:
        """``{"channel", "event", "data", "position"?}``."""
        return b"{%b}" % _members(message)

    def notice(self, notice: Notice) -> bytes:
        """``{"notice", "data"}``."""
        return b'{"notice":%b,"data":%b}' % (orjson.dumps(notice.name), notice.data)


class JsonRpcDialect:
    """JSON-RPC 2.0, https://www.jsonrpc.org/specification, batches and notifications included."""

    name: ClassVar = "jsonrpc-2.0"
    """The WebSocket sub-protocol of this dialect."""

    def read(self, data: Any) -> Call | Failure | Batch:
        """The call or the batch that *data* stands for."""
        if not isinstance(data, list):
            return self._read_one(data)
        if not data:
            return Failure(self, InvalidRequest())
        if len(data) > MAX_BATCH:
            return Failure(self, InvalidRequest(errors={"": f"at most {MAX_BATCH} calls in a batch"}))
        return Batch(self, [self._read_one(entry) for entry in data])

    def _read_one(self, data: Any) -> Call | Failure:
        if not isinstance(data, dict):
            return Failure(self, InvalidRequest())
        id_, method = data.get("id"), data.get("method")
        errors: dict[str, str] = {}
        if not is_id(id_):
            errors["id"], id_ = _ID_RULE, None
        if data.get("jsonrpc") != "2.0":
            errors["jsonrpc"] = '"2.0" expected'
        if not isinstance(method, str):
            errors["method"] = "string expected" if "method" in data else "required"
        params = data.get("params", MISSING)
        if params is not MISSING and not isinstance(params, list | dict):
            errors["params"] = "array or object expected"
        if errors or not isinstance(method, str):
            return Failure(self, InvalidRequest(errors=errors), id_)
        return Call(self, id_, method, params, notification="id" not in data)

    def reply(self, call: Call, result: bytes, method: bytes | None = None) -> bytes:
        """``{"jsonrpc", "id", "result"}``; *result* is JSON already, and *method* is not said."""
        return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (orjson.dumps(call.id), result)

    def failure(self, failure: Failure) -> bytes:
        """``{"jsonrpc", "id", "error": {"code", "message", "data"?}}``."""
        error = failure.error
        body: dict[str, Any] = {"code": error.code, "message": error.standard or error.message}
        if details := error.details():
            body["data"] = details
        return encode({"jsonrpc": "2.0", "id": failure.id, "error": body})

    def message(self, message: Message) -> bytes:
        """A notification ``rpc.message``."""
        return b'{"jsonrpc":"2.0","method":"rpc.message","params":{%b}}' % _members(message)

    def notice(self, notice: Notice) -> bytes:
        """A notification ``rpc.<notice>``."""
        return b'{"jsonrpc":"2.0","method":%b,"params":{"data":%b}}' % (
            orjson.dumps(f"rpc.{notice.name}"), notice.data,
        )  # fmt: skip


Dialect = HouseDialect | JsonRpcDialect
HOUSE: Final = HouseDialect()
JSONRPC: Final = JsonRpcDialect()
_ID_RULE = f"a string of at most {MAX_ID_LENGTH} characters or an exact number expected"


def decode(frame: bytes, assumed: Dialect = HOUSE, *, fixed: bool = False) -> Call | Failure | Batch:
    """Read one frame; *frame* is UTF-8 JSON, as text or binary frames carry it.

    The message itself says its dialect by the member ``jsonrpc``. One that cannot say it, e.g. because it is not
    JSON, is taken to be of the *assumed* dialect, the last that the socket spoke. With *fixed*, a sub-protocol was
    negotiated and every message is of that dialect.
    """
    try:
        data = orjson.loads(frame)
    except orjson.JSONDecodeError:
        dialect = JSONRPC if not fixed and b'"jsonrpc"' in frame else assumed
        return Failure(dialect, ParseError())
    dialect = assumed
    if not fixed:
        dialect = (JSONRPC if "jsonrpc" in data else HOUSE) if type(data) is dict else _spoken(data, assumed)
    # A level takes two brackets: few frames are long enough for so many, or have enough of them to need the walk.
    if len(frame) > 2 * MAX_DEPTH and frame.count(b"[") + frame.count(b"{") > MAX_DEPTH and _is_deep(data):
        return Failure(dialect, ParseError(f"JSON nested deeper than {MAX_DEPTH} levels"))
    return dialect.read(data)


_STRICT: Any = None


def _be_strict() -> None:
    """Make a value that is not of its type an error here, and only here.

    pydantic has an option for it, ``warnings="error"``, that costs as much as the rest of a small answer.
    """
    global _STRICT  # warnings keeps its filters in a list of the process
    warnings.filterwarnings("error", "Pydantic serializer warnings", UserWarning, re.escape(__name__) + "$")
    _STRICT = warnings.filters[0]


def encode(value: Any, serializer: SchemaSerializer | None = None) -> bytes:
    """Write *value* as JSON: any JSON type, and datetime, UUID, Decimal, Enum, models and dataclasses inside.

    Numbers that JSON has no word for, NaN and the infinities, become null, as with JavaScript's
    ``JSON.stringify``. With a *serializer*, the value is written as its type says.

    Raises:
        EncodeError: JSON cannot hold the value.
    """
    try:
        if serializer is None:
            text = to_json(value, by_alias=True, inf_nan_mode="null")
        else:
            if warnings.filters[0] is not _STRICT:
                _be_strict()
            text = serializer.to_json(value, by_alias=True)
        if (CAPITAL_N in text or CAPITAL_I in text) and (b"NaN" in text or b"Infinity" in text):
            orjson.loads(text)  # a type may ask pydantic for bare constants, which break a browser's JSON.parse
    except (PydanticSerializationError, UserWarning, orjson.JSONDecodeError, RecursionError) as error:
        raise EncodeError(f"JSON cannot hold this {type(value).__name__}: {error}") from error
    return text


def _members(message: Message) -> bytes:
    members = b'"channel":%b,"event":%b,"data":%b' % (
        orjson.dumps(message.channel), orjson.dumps(message.event), message.data,
    )  # fmt: skip
    return members if message.position is None else b'%b,"position":%b' % (members, orjson.dumps(message.position))


def _spoken(data: Any, assumed: Dialect) -> Dialect:
    if isinstance(data, list) and any(isinstance(entry, dict) and "jsonrpc" in entry for entry in data):
        return JSONRPC
    return assumed


def is_id(value: object) -> TypeGuard[CallId]:
    """A string, a number that can be repeated exactly, or null (JSON-RPC 2.0 §4)."""
    if isinstance(value, str):
        return len(value) <= MAX_ID_LENGTH
    if isinstance(value, float):
        # orjson reads integers beyond 64 bits as floats: the answer could not repeat such an id.
        return abs(value) < _EXACT_FLOAT
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _is_deep(data: Any) -> bool:
    level, depth = [data], 0
    while level:
        depth += 1
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner.extend(v for v in value.values() if isinstance(v, dict | list))
            elif isinstance(value, list):
                inner.extend(v for v in value if isinstance(v, dict | list))
        level = inner
        if depth > MAX_DEPTH:
            return True
    return False
