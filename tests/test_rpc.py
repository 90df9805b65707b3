"""Methods: their payloads and results, and what is refused when the class is made."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import decimal
import enum
import json
import math
import tracemalloc
import uuid
from contextvars import ContextVar
from typing import Annotated, Any

import pytest
from aiohttp import web
from conftest import Serve
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    TypeAdapter,
    ValidationError,
    field_validator,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on

from openapi_ws import SetupError, WsPathMixin, ws_rpc
from openapi_ws.errors import InvalidParams
from openapi_ws.payloads import validator
from openapi_ws.rpc import methods_of


class Colour(enum.Enum):
    RED = "red"


class Point(BaseModel):
    x: int
    y: int = 0


class Aliased(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    from_: int = Field(alias="from")


class Strict(BaseModel):
    name: Annotated[str, Field(min_length=2, max_length=5)]

    @field_validator("name")
    @classmethod
    def _no_secret(cls, value: str) -> str:
        if value == "nono":
            raise ValueError("is taken")
        return value


@dataclasses.dataclass
class Pair:
    left: int
    right: int = 1


class Pet(TypedDict):
    kind: str


class Cat(BaseModel):
    kind: Annotated[str, Field(pattern="cat")]


class Tree(BaseModel):
    children: list[Tree] = []


class Rows(BaseModel):
    rows: list[Point | int | str]


class Metadata(BaseModel):
    metadata: list[int]


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Nested(BaseModel):
    tables: dict[str, Closed]


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, dict[str, int]] = Field(init=False)


class Recursive(RootModel["dict[str, Recursive | int]"]):
    pass


class Mixed(tuple[int, str], enum.Enum):
    A = (1, "a")


class Tags(RootModel[list[str]]):
    pass


class Base(WsPathMixin):
    """Methods that a view inherits."""

    async def ws_rpc_inherited(self) -> str:
        return "inherited"

    async def ws_rpc_overridden(self) -> str:
        return "base"


class Typed(Base, web.View):
    """A method for each kind of payload; each answers the type that it got."""

    async def ws_rpc_overridden(self) -> str:
        return f"not {await super().ws_rpc_overridden()}"

    async def ws_rpc_model(self, payload: Point) -> list[Any]:
        return [type(payload).__name__, payload]

    async def ws_rpc_aliased(self, payload: Aliased) -> Aliased:
        return payload

    async def ws_rpc_dataclass(self, payload: Pair) -> list[Any]:
        return [type(payload).__name__, payload]

    async def ws_rpc_typed_dict(self, payload: Pet) -> Pet:
        return payload

    async def ws_rpc_models(self, payload: list[Point]) -> list[Point]:
        return payload

    async def ws_rpc_optional(self, payload: Point | None) -> Point | None:
        return payload

    async def ws_rpc_union(self, payload: Cat | Point) -> str:
        return type(payload).__name__

    async def ws_rpc_constrained(self, payload: Annotated[int, Field(gt=0)]) -> int:
        return payload

    async def ws_rpc_plain(self, payload: dict[str, Any]) -> dict[str, Any]:
        return payload

    async def ws_rpc_untyped(self, payload):  # type: ignore[no-untyped-def]  # as code for the ancestor writes it
        return payload

    async def ws_rpc_none(self) -> None:
        return None

    async def ws_rpc_default(self, payload: Point = Point(x=9)) -> Point:  # noqa: B008  # a default of the method
        return payload

    async def ws_rpc_recursive(self, payload: Tree) -> Tree:
        return payload

    async def ws_rpc_rows(self, payload: Rows) -> int:
        return len(payload.rows)

    async def ws_rpc_strict(self, payload: Strict) -> Strict:
        return payload

    async def ws_rpc_tags(self, payload: Tags) -> Tags:
        return payload

    async def ws_rpc_metadata(self, payload: Metadata) -> None:
        pass

    async def ws_rpc_mixed(self, payload: Mixed) -> None:
        pass

    async def ws_rpc_numbers(self, payload: dict[str, int]) -> int:
        return len(payload)

    async def ws_rpc_tables(self, payload: dict[str, dict[str, int]]) -> int:
        return len(payload)

    @ws_rpc(body_schema=Point, response_schema=list[int], name="explicit.name", deprecated=True, tags=["a"])
    async def ws_rpc_explicit(self, payload):  # type: ignore[no-untyped-def]  # the schemas say it
        """Say it explicitly."""
        return (payload.x, payload.y)

    async def ws_rpc_result(self, payload: str) -> Any:
        return RESULTS[payload]

    async def ws_rpc_wrong_result(self) -> Point:
        return {"x": "no number"}  # type: ignore[return-value]  # on purpose

    async def ws_rpc_right_dict(self) -> Point:
        return {"x": "1"}  # type: ignore[return-value]  # pydantic reads it as a Point


RESULTS: dict[str, Any] = {
    "object": {"a": [1, "b", None, True, 1.5]},
    "datetime": {"at": datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)},
    "uuid": [uuid.UUID(int=1)],
    "decimal": decimal.Decimal("1.10"),
    "enum": {Colour.RED: Colour.RED},
    "model": {"point": Point(x=1)},
    "dataclass": [Pair(1)],
    "alias": [Aliased(from_=1)],
    "nan": [math.nan, math.inf, -math.inf],
    "big": 2**60,
    "tuple": (1, {2}),
    "object()": object(),
    "surrogate": "\ud800",
}


@pytest.mark.parametrize(
    ("method", "payload", "response"),
    [
        ("inherited", None, "inherited"),
        ("overridden", None, "not base"),
        ("model", {"x": "1", "more": 1}, ["Point", {"x": 1, "y": 0}]),
        ("aliased", {"from": 1}, {"from": 1}),
        ("dataclass", {"left": 2}, ["Pair", {"left": 2, "right": 1}]),
        ("typed_dict", {"kind": "dog"}, {"kind": "dog"}),
        ("models", [{"x": 1}, {"x": 2}], [{"x": 1, "y": 0}, {"x": 2, "y": 0}]),
        ("optional", {"x": 1}, {"x": 1, "y": 0}),
        ("optional", None, None),
        ("optional", ..., None),
        ("union", {"kind": "cat"}, "Cat"),
        ("union", {"x": 1}, "Point"),
        ("constrained", 3, 3),
        ("plain", {"any": ["thing"]}, {"any": ["thing"]}),
        ("plain", ..., {}),
        ("plain", None, {}),
        ("untyped", ..., {}),
        ("untyped", [1, None], [1, None]),
        ("none", {"ignored": 1}, None),
        ("default", ..., {"x": 9, "y": 0}),
        ("default", {"x": 1}, {"x": 1, "y": 0}),
        ("recursive", {"children": [{"children": []}]}, {"children": [{"children": []}]}),
        ("tags", ["a"], ["a"]),
        ("explicit.name", {"x": 1, "y": 2}, [1, 2]),
        ("right_dict", ..., {"x": 1, "y": 0}),
        ("result", "object", {"a": [1, "b", None, True, 1.5]}),
        ("result", "datetime", {"at": "2026-01-02T03:04:05Z"}),
        ("result", "uuid", ["00000000-0000-0000-0000-000000000001"]),
        ("result", "decimal", "1.10"),
        ("result", "enum", {"red": "red"}),
        ("result", "model", {"point": {"x": 1, "y": 0}}),
        ("result", "dataclass", [{"left": 1, "right": 1}]),
        ("result", "alias", [{"from": 1}]),
        ("result", "nan", [None, None, None]),
        ("result", "big", 2**60),
        ("result", "tuple", [1, [2]]),
    ],
)
async def test_a_payload_is_of_its_type_and_a_result_is_json(
    serve: Serve, method: str, payload: object, response: object
) -> None:
    """Every type that pydantic reads is validated on the way in and written on the way out."""
    client = await (await serve(Typed)).connect()
    assert await client.call(method, payload) == response


@pytest.mark.parametrize(
    ("method", "payload", "errors"),
    [
        ("model", {}, {"x": "required"}),
        ("model", ..., {"x": "required"}),
        ("model", None, {"x": "required"}),
        ("model", {"x": "no", "y": []}, {"x": "unable to parse", "y": "valid integer"}),
        ("model", "text", {"": "valid dictionary or instance of Point"}),
        ("models", [{"x": 1}, {}], {"1.x": "required"}),
        ("models", {}, {"": "valid list"}),
        ("typed_dict", {}, {"kind": "required"}),
        ("dataclass", {}, {"left": "required"}),
        ("constrained", 0, {"": "greater than 0"}),
        ("aliased", {"from": "x"}, {"from": "unable to parse"}),
        ("recursive", {"children": [{"children": 1}]}, {"children.0.children": "valid list"}),
        ("strict", {"name": "nono"}, {"name": "Value error, is taken"}),
        ("numbers", {"a": 2**64}, {"a": "exceeded maximum size"}),
    ],
)
async def test_a_wrong_payload_is_answered_by_field(
    serve: Serve, method: str, payload: object, errors: dict[str, str]
) -> None:
    """Each error has the path of its field and why; a missing field is "required"."""
    client = await (await serve(Typed)).connect()
    error = await client.error(method, payload)
    assert (error["message"], error["code"]) == ("Invalid RPC parameters", -32602)
    assert error["errors"].keys() == errors.keys()
    for path, why in errors.items():
        assert why in error["errors"][path]


@pytest.mark.parametrize(
    ("method", "payload"),
    [
        ("models", [{"SECRET": "SECRET"}] * 2500),
        ("rows", {"rows": [None] * 10_000}),
        ("numbers", {f"SECRET{n}": "SECRET" for n in range(2500)}),
        ("numbers", {f"SECRET{n}": "SECRET" for n in range(500)}),
        ("numbers", {"SECRET" * 1000 + str(n): "SECRET" for n in range(5)}),
        ("numbers", {"\x00" * 60 + str(n): "SECRET" for n in range(100)}),
        ("tables", {"SECRET" * 5000: {str(n): "SECRET" for n in range(1500)}}),
    ],
)
async def test_an_answer_to_a_huge_wrong_payload_is_small(serve: Serve, method: str, payload: object) -> None:
    """At most 20 errors and 4 KiB, whatever came, and never the input's values."""
    client = await (await serve(Typed)).connect()
    assert len(json.dumps(payload)) < 64_000
    answer = await client.ask(method, payload)
    assert 1 <= len(answer["error"]["errors"]) <= 20
    assert len(json.dumps(answer)) <= 4096
    assert '"SECRET"' not in json.dumps(list(answer["error"]["errors"].values()))


@pytest.mark.parametrize("annotation", [dict[str, dict[str, int]], dict[str, Closed], Nested, list[Open], Recursive])
def test_a_long_key_is_not_repeated_for_each_error(annotation: Any) -> None:
    """A frame of 64 KiB does not become 100 MB; short keys are named as ever, and long ones with one value are keys."""
    validate = validator(TypeAdapter(annotation))

    def payload(key: str) -> Any:
        wrong = {key: {f"{n:x}": "no" for n in range(1500)}}
        return [wrong] if annotation == list[Open] else {"tables": wrong} if annotation is Nested else wrong

    tracemalloc.start()
    with pytest.raises(InvalidParams) as refused:
        validate(payload("k" * 30_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refused.value.errors == {"": "keys are too long"}
    assert peak < 1_000_000
    with pytest.raises(ValidationError):
        validate(payload("k" * 1000))
    if annotation == dict[str, dict[str, int]]:
        assert validate({"short": {"k" * 30_000: 1}})


def test_validation_stops_at_the_first_wrong_item() -> None:
    """A list inside a user's own model yields one item's errors, not one per item."""
    from openapi_ws.protocol import HOUSE, Call

    method = methods_of(Typed)["rows"]
    with pytest.raises(InvalidParams) as raised:
        method.payload(Call(HOUSE, 1, "rows", {"rows": [None] * 100_000}))
    assert raised.value.errors is not None
    assert all(path.startswith("rows.0.") for path in raised.value.errors)
    with pytest.raises(InvalidParams) as raised:
        methods_of(Typed)["metadata"].payload(Call(HOUSE, 1, "metadata", {"metadata": [None] * 100_000}))
    assert list(raised.value.errors or ()) == ["metadata.0"]


@pytest.mark.parametrize("payload", ["object()", "surrogate"])
async def test_a_result_that_json_cannot_hold_is_our_fault(serve: Serve, payload: str) -> None:
    """The ancestor's message, an error_id, and the socket lives."""
    client = await (await serve(Typed)).connect()
    error = await client.error("result", payload)
    assert (error["message"], error["code"]) == ("JSON object expected", -32603)
    assert error["error_id"]
    assert await client.call("none") is None


async def test_a_result_of_the_wrong_type_is_our_fault(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """The caller learns nothing of it but an error_id; the log says what is wrong."""
    client = await (await serve(Typed)).connect()
    error = await client.error("wrong_result")
    assert error["code"] == -32603
    assert "no number" not in json.dumps(error)
    assert "the result of 'wrong_result' is not of its type" in caplog.text


def test_methods_are_collected_once_per_class() -> None:
    """A table per class, with what documents need to know of each method."""
    table = methods_of(Typed)
    assert methods_of(Typed) is table
    method = table["explicit.name"]
    assert method.doc == "Say it explicitly."
    assert method.options.deprecated
    assert method.options.tags == ("a",)
    assert "explicit" not in table
    assert "inherited" in table


class Unreadable:
    pass


def _sync(self: Any, payload: Any) -> None:
    pass


async def _plain(self: Any) -> None:
    pass


async def _unreadable(self: Any, payload: Unreadable) -> None:
    pass


async def _unreadable_result(self: Any) -> Unreadable:
    return Unreadable()


async def _unknown(self: Any, payload: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821  # on purpose
    pass


async def _two(self: Any, first: int, second: int) -> None:
    pass


async def _keyword(self: Any, *, payload: int) -> None:
    pass


async def _selfless() -> None:
    pass


async def _generator(self: Any) -> Any:
    yield 1


def named(name: str) -> Any:
    async def method(self: Any) -> None:
        pass

    return ws_rpc(name=name)(method)


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"ws_rpc_a": _sync}, "write async def ws_rpc_a"),
        ({"ws_rpc_a": 5}, "is no coroutine function"),
        ({"ws_rpc_a": staticmethod(_plain)}, "is no coroutine function"),
        ({"ws_rpc_a": _generator}, "is no coroutine function"),
        ({"ws_rpc_a": _unreadable}, "type of the payload.*Unreadable.*cannot be read by pydantic"),
        ({"ws_rpc_a": _unreadable_result}, "type of the result.*Unreadable.*cannot be read by pydantic"),
        ({"ws_rpc_a": _unknown}, "name 'Nowhere' is not defined"),
        ({"ws_rpc_a": _two}, "at most one payload"),
        ({"ws_rpc_a": _keyword}, "at most one payload"),
        ({"ws_rpc_a": _selfless}, "takes self"),
        ({"ws_rpc_a": named("b"), "ws_rpc_b": _plain}, "another method is named 'b'"),
        ({"ws_rpc_a": named("rpc.a")}, "reserved"),
        ({"ws_rpc_a": named("a b")}, "not of the form"),
        ({"ws_rpc_a": named("")}, "not of the form"),
        ({"ws_rpc_": _plain}, "not of the form"),
        ({"ws_rpc__a": _plain}, "not of the form"),
        ({"ws_rpc_a": named("a" * 65)}, "not of the form"),
        ({"a": named("a")}, "name it ws_rpc_a"),
    ],
)
def test_what_cannot_be_a_method_is_refused_when_the_class_is_made(members: dict[str, Any], why: str) -> None:
    """The error names class, method and what to write instead; nothing is left for the first call."""
    with pytest.raises(SetupError, match=rf"Bad\.\w+.*{why}"):
        type("Bad", (WsPathMixin, web.View), members)


def test_an_unknown_option_is_named() -> None:
    """A slip of the pen is not taken for a wish."""
    with pytest.raises(SetupError, match="ws_rpc has no option orderd"):
        ws_rpc(orderd=True)  # type: ignore[call-overload]  # on purpose


def test_two_mixins_with_one_method_are_refused() -> None:
    """Neither hides the other in silence; deriving one from the other, or defining it anew, says which is meant."""

    class Left:
        async def ws_rpc_same(self) -> str:
            return "left"

    class Right:
        async def ws_rpc_same(self) -> str:
            return "right"

    class Heir(Left):
        async def ws_rpc_same(self) -> str:
            return "heir"

    with pytest.raises(SetupError, match="defined by Left and by Right"):
        type("Bad", (Left, Right, WsPathMixin), {})
    type("Good", (Heir, Left, WsPathMixin), {})
    type("Good", (Left, Right, WsPathMixin), {"ws_rpc_same": Left.ws_rpc_same})


def test_a_base_in_front_cannot_hide_what_is_wrong() -> None:
    """Also where it keeps `__init_subclass__` to itself, as aiohttp_pydantic's does, methods are collected at once."""

    class Selfish(web.View):
        def __init_subclass__(cls) -> None:
            pass

    assert "a" in methods_of(type("Good", (Selfish, WsPathMixin), {"ws_rpc_a": _plain}))
    with pytest.raises(SetupError, match="write async def ws_rpc_a"):
        type("Bad", (Selfish, WsPathMixin), {"ws_rpc_a": _sync})


async def test_a_method_is_a_coroutine_like_any_other(serve: Serve) -> None:
    """Time-outs, the current task and context variables behave as anywhere."""
    client = await (await serve(Ordinary)).connect()
    assert await client.call("timeout") == "timed out"
    assert await client.call("task") is True
    assert await client.call("context", "a") == ["unset", "a"]
    assert await client.call("context", "b") == ["unset", "b"]
    assert await client.call("group") == [1, 2]


class Ordinary(WsPathMixin, web.View):
    async def ws_rpc_timeout(self) -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            return "timed out"
        return "never"

    async def ws_rpc_task(self) -> bool:
        task = asyncio.current_task()
        await asyncio.sleep(0)
        return task is not None and task is asyncio.current_task()

    async def ws_rpc_context(self, payload: str) -> list[str]:
        before = VARIABLE.get("unset")
        VARIABLE.set(payload)
        await asyncio.sleep(0)
        return [before, VARIABLE.get()]

    async def ws_rpc_group(self) -> list[int]:
        async def one(n: int) -> int:
            await asyncio.sleep(0)
            return n

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(n)) for n in (1, 2)]
        return [task.result() for task in tasks]


VARIABLE: ContextVar[str] = ContextVar("variable")


class Filter(BaseModel):
    where: dict[str, Any] = {}
    limit: int = 10


class Chosen(BaseModel):
    symbol: str = Field(validation_alias=AliasChoices("sym", "symbol"))


@pydantic_dataclass
class Aliases:
    symbol: str = Field(alias="sym")


class Positions(WsPathMixin, web.View):
    async def ws_rpc_filter(self, payload: Filter) -> Filter:
        return payload

    async def ws_rpc_chosen(self, payload: Chosen) -> str:
        return payload.symbol

    async def ws_rpc_aliases(self, payload: Aliases) -> str:
        return payload.symbol

    async def ws_rpc_maybe(self, payload: Point | None = None) -> Point | None:
        return payload

    async def ws_rpc_number(self, payload: int = 3) -> int:
        return payload

    async def ws_rpc_list(self, payload: list[int]) -> int:
        return len(payload)

    async def ws_rpc_point(self, payload: Point) -> Point:
        return payload


@pytest.mark.parametrize(
    ("method", "params", "result"),
    [
        ("filter", [{"symbol": "A"}], {"where": {"symbol": "A"}, "limit": 10}),
        ("filter", [{"symbol": "A"}, 5], {"where": {"symbol": "A"}, "limit": 5}),
        ("filter", [], {"where": {}, "limit": 10}),
        ("chosen", ["A"], "A"),
        ("aliases", ["A"], "A"),
        ("maybe", [], None),
        ("number", [], 3),
        ("number", [4], 4),
        ("list", [], 0),
        ("list", [1, 2], 2),
        ("list", [[1, 2, 3]], 3),
        ("point", [1, 2], {"x": 1, "y": 2}),
        ("point", [{"x": 1}], {"x": 1, "y": 0}),
    ],
)
async def test_parameters_by_position(serve: Serve, method: str, params: list[Any], result: object) -> None:
    """A model's fields in order, under their names on the wire; else the one parameter; none where there are none."""
    client = await (await serve(Positions)).connect()
    await client.send({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
    assert (await client.receive()) == {"jsonrpc": "2.0", "id": 1, "result": result}


class Marked(WsPathMixin):
    @ws_rpc(name="marked.name", ordered=True)
    async def ws_rpc_marked(self, payload: Point) -> Point:
        return payload

    @ws_rpc
    async def ws_rpc_bare(self, payload: int) -> int:
        return payload


class Partly(Marked, web.View):
    @ws_rpc(tags=["b"])
    async def ws_rpc_marked(self, payload: Point) -> Point:
        return payload


def test_an_override_may_say_a_part() -> None:
    """What it says is added to what the other says, option by option."""
    options = methods_of(Partly)["marked.name"].options
    assert (options.ordered, options.tags) == (True, ("b",))


class Overriding(Marked, web.View):
    async def ws_rpc_marked(self, payload):  # type: ignore[no-untyped-def]  # as the base says
        return await super().ws_rpc_marked(payload.model_copy(update={"y": 5}))

    async def ws_rpc_bare(self, payload: str) -> str:  # type: ignore[override]  # says it anew
        return payload


async def test_an_override_takes_over_what_it_does_not_say(serve: Serve) -> None:
    """Name, order and types of the method it overrides; what it says itself counts."""
    client = await (await serve(Overriding)).connect()
    assert methods_of(Overriding)["marked.name"].options.ordered
    assert await client.call("marked.name", {"x": 1}) == {"x": 1, "y": 5}
    assert (await client.error("marked.name", {}))["errors"] == {"x": "required"}
    assert await client.call("bare", "text") == "text"
