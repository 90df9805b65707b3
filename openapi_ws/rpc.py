"""Floor 3, calls: the methods of a view, collected once per class, and the way from a call to its result."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Coroutine, Iterable
from contextvars import ContextVar
from types import EllipsisType
from typing import Any, TypeVar, overload

import orjson
from pydantic import AliasChoices, PydanticUserError, RootModel, TypeAdapter, ValidationError
from pydantic_core import SchemaError

from .errors import EncodeError, InvalidParams, SetupError
from .payloads import adapter_of, explain, validator
from .protocol import MISSING, Call, encode

__all__ = ["Method", "current_call", "methods_of", "type_hints", "ws_rpc"]

PREFIX = "ws_rpc_"

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_MARK = "ws_rpc"

current_call: ContextVar[tuple[object, Call]] = ContextVar("openapi_ws.current_call")
"""The call that the running task answers, and before it the socket that it came on."""

Function = TypeVar("Function", bound=Callable[..., Coroutine[Any, Any, Any]])


@dataclasses.dataclass(frozen=True, slots=True)
class _Options:
    body_schema: Any = None
    response_schema: Any = None
    name: str | None = None
    deprecated: bool = False
    tags: tuple[str, ...] = ()
    ordered: bool = False
    reply_first: bool = False
    timeout: float | EllipsisType | None = ...
    said: frozenset[str] = frozenset()
    """The options that were written, for those of an overridden method to fill in the others."""

    def over(self, other: _Options) -> _Options:
        """These options, and of *other* what they do not say."""
        theirs = {name: getattr(other, name) for name in other.said - self.said}
        return dataclasses.replace(self, **theirs, said=self.said | other.said)


@overload
def ws_rpc(function: Function, /) -> Function: ...
@overload
def ws_rpc(
    body_schema: Any = None,
    response_schema: Any = None,
    *,
    name: str | None = None,
    deprecated: bool = False,
    tags: Iterable[str] = (),
    ordered: bool = False,
    reply_first: bool = False,
    timeout: float | EllipsisType | None = ...,
) -> Callable[[Function], Function]: ...
def ws_rpc(body_schema: Any = None, response_schema: Any = None, **options: Any) -> Any:
    """Say of a ``ws_rpc_<method>`` coroutine what its name and annotations do not.

    *body_schema* and *response_schema* are types that pydantic reads, in place of the annotations; *name* is the
    method's name on the wire, default what follows ``ws_rpc_``; *deprecated* and *tags* are for documents.
    *ordered* methods of one socket run one after another, as they arrived. With *reply_first* messages for the
    calling socket wait until its answer is out. *timeout* is the seconds that a call may take, to the second, or None
    for no end; default is the view's `call_timeout`. An override takes over what it does not say itself.
    """
    if inspect.isfunction(body_schema):
        return ws_rpc()(body_schema)
    options |= {
        key: value for key, value in (("body_schema", body_schema), ("response_schema", response_schema)) if value
    }
    if unknown := options.keys() - {field.name for field in dataclasses.fields(_Options)}:
        raise SetupError(f"ws_rpc has no option {', '.join(sorted(unknown))}")
    if "tags" in options:
        options["tags"] = tuple(options["tags"])
    said = _Options(**options, said=frozenset(options))

    def mark(function: Function) -> Function:
        setattr(function, _MARK, said)
        return function

    return mark


class Method:
    """One method as callers see it: its name, the type of its payload, the type of its result."""

    __slots__ = (
        "_default", "_fields", "_serializer", "_validate_payload", "_validate_result", "body", "doc", "function",
        "is_ordered", "json", "name", "options", "replies_first", "response", "takes_payload", "waits",
    )  # fmt: skip

    def __init__(self, attribute: str, *functions: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        # The first is the method, the others are those it overrides: it takes over what it does not say itself.
        function = functions[0]
        marks = (getattr(overridden, _MARK, _Options()) for overridden in functions)
        self.options: _Options = functools.reduce(_Options.over, marks)
        self.name = attribute.removeprefix(PREFIX) if self.options.name is None else self.options.name
        """The name on the wire."""
        self.doc = inspect.getdoc(function) or ""
        self.json = orjson.dumps(self.name)
        """The name as JSON."""
        self.waits = False
        """The call of it that was seen last waited for something: the next is likely to."""
        self.function = function
        self.is_ordered, self.replies_first = self.options.ordered, self.options.reply_first
        payload, body, response = _signature(*functions)
        self.takes_payload = payload is not None
        self.body: TypeAdapter[Any] = adapter_of(body, "payload")
        """The type of the payload."""
        self.response: TypeAdapter[Any] = adapter_of(response, "result")
        """The type of the result."""
        self._validate_payload = validator(self.body)
        self._validate_result = self.response.validator.validate_python
        self._serializer = self.response.serializer
        self._fields = _fields(body)
        self._default = _default(payload)

    def dump(self, result: Any) -> bytes:
        """*result* as JSON.

        Raises:
            EncodeError: it is not of its type, or JSON cannot hold it.
        """
        try:
            return encode(self._validate_result(result), self._serializer)
        except ValidationError as error:
            raise EncodeError(f"the result of {self.name!r} is not of its type: {explain(error)}") from error

    def payload(self, call: Call) -> Any:
        """The payload of *call* as the method takes it: one parameter, or for JSON-RPC its members by position."""
        params = call.params
        try:
            if type(params) is dict:
                return self._validate_payload(params)
            if params is MISSING and self._default is not MISSING:
                return self._default
            if params is MISSING or params is None:
                return self._absent()
            if isinstance(params, list) and call.dialect.name == "jsonrpc-2.0":
                return self._by_position(params)
            return self._validate_payload(params)
        except ValidationError as error:
            raise InvalidParams(explain(error)) from None

    def _absent(self) -> Any:
        """No payload, or null: None where the type has it, else the ancestor's empty object."""
        if self.body.core_schema["type"] != "any":
            with contextlib.suppress(ValidationError):
                return self._validate_payload(None)
        return self._validate_payload({})

    def _by_position(self, params: list[Any]) -> Any:
        """An array is a model's fields in order, or the one parameter, or itself what the method takes."""
        if not params:
            return self._nothing()
        if self._fields is not None and len(params) > len(self._fields):
            raise InvalidParams({"": f"at most {len(self._fields)} parameters expected"})
        ways = [params] if self._fields is None else [dict(zip(self._fields, params, strict=False))]
        if len(params) == 1:
            ways.insert(0 if self._fields is None else 1, params[0])
        for way in ways[:-1]:
            with contextlib.suppress(ValidationError):
                return self._validate_payload(way)
        return self._validate_payload(ways[-1])

    def _nothing(self) -> Any:
        """An empty array: no parameters, unless a list is what the method takes."""
        if self._default is not MISSING:
            return self._default
        try:
            return self._validate_payload([])
        except ValidationError:
            return self._absent()


def methods_of(cls: type) -> dict[str, Method]:
    """The methods of a view class by name, collected at the first call for it.

    Raises:
        SetupError: a method cannot be offered; the message says which, and why.
    """
    table: dict[str, Method] | None = cls.__dict__.get("_ws_rpc_methods")
    if table is None:
        table = {}
        for attribute in dir(cls):
            function = inspect.getattr_static(cls, attribute)
            if attribute.startswith(PREFIX):
                _add(table, cls, attribute, function)
            elif isinstance(getattr(function, _MARK, None), _Options):
                raise SetupError(f"{cls.__name__}.{attribute} is marked @ws_rpc: name it {PREFIX}{attribute}")
        cls._ws_rpc_methods = table  # type: ignore[attr-defined]  # kept on the class it is the table of
    return table


def _add(table: dict[str, Method], cls: type, attribute: str, function: Any) -> None:
    where = f"{cls.__name__}.{attribute}"
    if not inspect.isfunction(function) or not inspect.iscoroutinefunction(function):
        raise SetupError(f"{where} is no coroutine function: write async def {attribute}(self, payload)")
    _refuse_shadowing(cls, attribute)
    try:
        method = Method(attribute, *(vars(base)[attribute] for base in cls.__mro__ if attribute in vars(base)))
    except (SetupError, NameError, TypeError, PydanticUserError, SchemaError) as error:
        raise SetupError(f"{where}: {error}") from error
    if not _NAME.fullmatch(method.name):
        raise SetupError(f"{where}: the name {method.name!r} is not of the form {_NAME.pattern}")
    if method.name.startswith("rpc."):
        raise SetupError(f"{where}: names that begin with rpc. are reserved (JSON-RPC 2.0 §4)")
    if method.name in table:
        raise SetupError(f"{where}: another method is named {method.name!r}")
    table[method.name] = method


def _refuse_shadowing(cls: type, attribute: str) -> None:
    """Two unrelated bases with a method of one name: whichever comes first would hide the other in silence."""
    owners = [base for base in cls.__mro__ if attribute in vars(base)]
    for hidden in owners[1:]:
        if not issubclass(owners[0], hidden):
            raise SetupError(
                f"{cls.__name__}.{attribute} is defined by {owners[0].__name__} and by {hidden.__name__}: "
                f"define it on {cls.__name__}, or derive one from the other"
            )


# -- reading a signature --------------------------------------------------------------------------------------


def _signature(*functions: Callable[..., Any]) -> tuple[inspect.Parameter | None, Any, Any]:
    """The payload's parameter, if the method takes one, and the types of payload and result."""
    payload = _payload(functions[0])
    body = response = None
    for function in functions:
        hints, theirs = type_hints(function), _payload(function)
        said = getattr(function, _MARK, _Options())
        body = body or said.body_schema or (hints.get(theirs.name) if theirs else None)
        response = response or said.response_schema or hints.get("return")
    return payload, body or Any, response or Any


def _payload(function: Callable[..., Any]) -> inspect.Parameter | None:
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters:
        raise SetupError("a method takes self")
    del parameters[0]
    if len(parameters) > 1 or any(p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters):
        raise SetupError("a method takes self and at most one payload; put several values into a model")
    return parameters[0] if parameters else None


def type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The types that *function* is annotated with.

    Raises:
        SetupError: one of them is not found.
    """
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, SyntaxError, TypeError, AttributeError) as error:
        raise SetupError(f"{error}: types of a payload are defined at the top of a module, before the class") from error


def _default(payload: inspect.Parameter | None) -> Any:
    return MISSING if payload is None or payload.default is payload.empty else payload.default


def _fields(annotation: Any) -> list[str] | None:
    """The names, as they are on the wire, of a model's fields in order; None for what is no model."""
    annotation = typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(annotation) if member is not type(None)]
        return _fields(members[0]) if len(members) == 1 else None
    origin = typing.get_origin(annotation) or annotation
    if not isinstance(origin, type):
        return None
    if issubclass(origin, RootModel):
        return None
    if fields := getattr(origin, "__pydantic_fields__", None):
        return [_alias(field.validation_alias) or name for name, field in fields.items()]
    if dataclasses.is_dataclass(origin):
        return [field.name for field in dataclasses.fields(origin) if field.init]
    # typing.is_typeddict does not know the TypedDict of typing_extensions, which pydantic wants before Python 3.12.
    return list(origin.__annotations__) if issubclass(origin, dict) and hasattr(origin, "__total__") else None


def _alias(alias: object) -> str | None:
    first = alias.choices[0] if isinstance(alias, AliasChoices) else alias
    return first if isinstance(first, str) else None
