"""JSON-RPC 2.0 on the wire, https://www.jsonrpc.org/specification: its own examples, then what they leave open."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conftest import Client, Serve
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from openapi_ws import Publish, RpcError, Subscribe, WsPathMixin
from openapi_ws.protocol import Call

HOUSE, JSONRPC = "openapi-ws.v1", "jsonrpc-2.0"
SPECIFICATION = Path(__file__).parent / "jsonrpc_examples.txt"


class Subtraction(BaseModel):
    minuend: int
    subtrahend: int


class Order(BaseModel):
    symbol: str = Field(alias="sym")
    quantity: int = Field(default=1, alias="qty")


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Person(TypedDict):
    name: str
    age: int


class Stream(WsPathMixin, Subscribe, Publish, web.View):
    """The methods of the specification's examples, one for each kind of parameter, and some that fail or wait."""

    async def connected(self) -> None:
        self.heard: list[Any] = []
        self.begun, self.gate = asyncio.Event(), asyncio.Event()

    async def on_error(self, call: Call, exc: Exception) -> None:
        if isinstance(exc, LookupError):
            self.begun.set()
            await self.gate.wait()

    async def ws_rpc_subtract(self, payload: Subtraction) -> int:
        return payload.minuend - payload.subtrahend

    async def ws_rpc_sum(self, payload: list[int]) -> int:
        return sum(payload)

    async def ws_rpc_update(self, payload: list[int]) -> None:
        self.heard.append(payload)

    ws_rpc_notify_sum = ws_rpc_update

    async def ws_rpc_notify_hello(self, payload: int) -> None:
        self.heard.append(payload)

    async def ws_rpc_get_data(self) -> list[Any]:
        return ["hello", 5]

    async def ws_rpc_heard(self) -> list[Any]:
        return self.heard

    async def ws_rpc_double(self, payload: int) -> int:
        return payload * 2

    async def ws_rpc_order(self, payload: Order) -> Order:
        return payload

    async def ws_rpc_point(self, payload: Point) -> Point:
        return payload

    async def ws_rpc_person(self, payload: Person) -> Person:
        return payload

    async def ws_rpc_maybe(self, payload: Subtraction | None) -> Subtraction | None:
        return payload

    async def ws_rpc_refuse(self) -> None:
        raise RpcError(17, "Market closed", errors={"symbol": "closed"}, retry_after=60)

    async def ws_rpc_crash(self) -> None:
        raise ValueError("SECRET")

    async def ws_rpc_crash_slowly(self) -> None:
        raise LookupError("SECRET")

    async def ws_rpc_wait(self) -> str:
        self.begun.set()
        await self.gate.wait()
        return "waited"

    async def ws_rpc_until_begun(self) -> None:
        await self.begun.wait()

    async def ws_rpc_open(self) -> None:
        self.gate.set()


def call(method: str, params: Any = ..., **members: Any) -> dict[str, Any]:
    """A JSON-RPC call if *members* have an id, else a notification."""
    frame = {"jsonrpc": "2.0", "method": method, **members}
    return frame if params is ... else {**frame, "params": params}


def result(id_: object, value: object) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id_, "result": value}


def error(id_: object, code: int, message: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id_, "error": {"code": code, "message": message}}


def invalid(id_: object = None) -> dict[str, Any]:
    return error(id_, -32600, "Invalid Request")


def bare(answer: Any) -> Any:
    """An answer without what the specification leaves open: an error's data, the order of a batch's answers."""
    if isinstance(answer, list):
        return sorted(map(bare, answer), key=lambda entry: json.dumps(entry, sort_keys=True))
    if "error" in answer:
        return {**answer, "error": {name: value for name, value in answer["error"].items() if name != "data"}}
    return answer


async def exchange(client: Client, frame: object, expected: Any) -> None:
    """*frame* is answered by one frame that is *expected*, or by none if that is None, and by nothing more.

    A call that waits is overtaken by one that does not.
    """
    end = result("end", ["hello", 5])
    await client.send(frame)
    await client.send(call("get_data", id="end"))
    answers = [await client.receive()] if expected is None else [await client.receive(), await client.receive()]
    assert end in answers
    answers.remove(end)
    assert answers == [] if expected is None else bare(answers[0]) == bare(expected)


async def connect(serve: Serve, kind: str = "silent") -> Client:
    """A client that has said nothing yet, has negotiated JSON-RPC, or has spoken it already."""
    client = await (await serve(Stream)).connect(protocols=(JSONRPC,) if kind == "negotiated" else ())
    if kind == "spoken":
        await exchange(client, call("sum", [1], id=0), result(0, 1))
    return client


def examples() -> dict[str, tuple[str, Any]]:
    """What §7 of the specification sends, to the letter, and what it says comes back."""
    found = {}
    for block in SPECIFICATION.read_text().split("\n\n")[1:]:
        title, *exchanges = block.split("\n-> ")
        for number, text in enumerate(exchanges, 1):
            frame, _, answer = text.partition("\n<-")
            found[f"{title} {number}"] = frame, json.loads(answer) if answer.strip() else None
    return found


EXAMPLES = examples()
MUTE = {
    **{title: example for title, example in EXAMPLES.items() if "jsonrpc" not in example[0]},
    "broken JSON": ('{"method": "foobar, "params": "bar", "baz]', error(None, -32700, "Parse error")),
    "no object": ("17", invalid()),
}
"""Frames that do not say which dialect they are of."""


# -- the specification's examples -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["silent", "negotiated", "spoken"])
@pytest.mark.parametrize("example", [title for title in EXAMPLES if title not in MUTE])
async def test_the_specifications_examples_hold(serve: Serve, example: str, kind: str) -> None:
    """§7: each example is answered as the specification prints it, and by nothing more."""
    await exchange(await connect(serve, kind), *EXAMPLES[example])


@pytest.mark.parametrize("kind", ["negotiated", "spoken"])
@pytest.mark.parametrize("example", MUTE)
async def test_a_frame_without_a_dialect_is_of_the_one_agreed_on(serve: Serve, example: str, kind: str) -> None:
    """Such frames are JSON-RPC where that was negotiated, or was spoken before."""
    await exchange(await connect(serve, kind), *MUTE[example])


async def test_notifications_run(serve: Serve) -> None:
    """§4.1: a notification, alone or in a batch, is carried out as a call is."""
    client = await connect(serve)
    await client.send(call("update", [1, 2]))
    await client.send([call("notify_hello", [7]), call("notify_sum", [3])])
    await exchange(client, call("heard", id=1), result(1, [[1, 2], 7, [3]]))


# -- ids and members ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id_", ["a", "", "x" * 255, 0, 1, -1, 1.5, 2**64 - 1, -(2**63), None], ids=repr)
async def test_an_answer_repeats_the_id_of_its_call(serve: Serve, id_: object) -> None:
    """§4: an id is a string, a number or null; with id null it is a call all the same, and is answered."""
    client = await connect(serve)
    await exchange(client, call("double", [4], id=id_), result(id_, 8))
    await exchange(client, call("nothing", id=id_), error(id_, -32601, "Method not found"))


@pytest.mark.parametrize("id_", [True, False, [], {}, 2**64, 10**30, -(2**63) - 1, 2.0**53, "x" * 256], ids=repr)
async def test_an_id_that_no_answer_can_repeat_is_refused(serve: Serve, id_: object) -> None:
    """§5: where the id cannot be read, it is null in the answer."""
    await exchange(await connect(serve), call("double", [4], id=id_), invalid())


@pytest.mark.parametrize(
    "members",
    [
        {"params": None}, {"params": "bar"}, {"params": 5}, {"params": False}, {"jsonrpc": "1.0"}, {"jsonrpc": 2.0},
        {"jsonrpc": None}, {"jsonrpc": ["2.0"]}, {"method": None}, {"method": ["double"]},
    ],
    ids=str,
)  # fmt: skip
async def test_a_member_of_the_wrong_type_makes_no_call(serve: Serve, members: dict[str, Any]) -> None:
    """§4: jsonrpc is exactly "2.0", method is a string, params an array or an object."""
    await exchange(await connect(serve), {**call("double", [4], id=5), **members}, invalid(5))


# -- parameters -----------------------------------------------------------------------------------------------

NOT_TAKEN = -32602
ADA = {"name": "Ada", "age": 36}
PARAMETERS: dict[str, list[tuple[Any, Any]]] = {
    "subtract": [
        ([{"minuend": 5, "subtrahend": 3}], 2), ([5], NOT_TAKEN), ([5, 3, 1], NOT_TAKEN), (["x", 3], NOT_TAKEN),
        (..., NOT_TAKEN), ([], NOT_TAKEN), ({}, NOT_TAKEN), ([[5, 3]], NOT_TAKEN),
    ],
    "order": [
        ({"sym": "A", "qty": 2}, {"sym": "A", "qty": 2}), (["A", 2], {"sym": "A", "qty": 2}),
        (["A"], {"sym": "A", "qty": 1}), ({"symbol": "A"}, NOT_TAKEN), (["A", 2, 3], NOT_TAKEN),
    ],
    "point": [
        ({"y": 2, "x": 1}, {"x": 1, "y": 2}), ([1, 2], {"x": 1, "y": 2}), ([1], {"x": 1, "y": 0}),
        ([{"x": 1}], {"x": 1, "y": 0}), ([1, 2, 3], NOT_TAKEN),
    ],
    "person": [(ADA, ADA), ([ADA], ADA), (["Ada", 36], ADA), (["Ada"], NOT_TAKEN), (["Ada", 36, 1], NOT_TAKEN)],
    "sum": [([1, 2, 4], 7), ([[1, 2, 4]], 7), ([5], 5), ([], 0), ([[]], 0), ({"payload": [1]}, NOT_TAKEN)],
    "double": [([4], 8), ([4, 5], NOT_TAKEN), ([], NOT_TAKEN), ([[4]], NOT_TAKEN), ({"payload": 4}, NOT_TAKEN)],
    "maybe": [
        (..., None), ([None], None), ([5, 3], {"minuend": 5, "subtrahend": 3}), ([5, 3, 1], NOT_TAKEN),
        ({"minuend": 5, "subtrahend": 3}, {"minuend": 5, "subtrahend": 3}), ({"minuend": 5}, NOT_TAKEN),
    ],
    "get_data": [(..., ["hello", 5]), ([], ["hello", 5]), ({}, ["hello", 5])],
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "params", "expected"),
    [(method, *case) for method, cases in PARAMETERS.items() for case in cases],
    ids=str,
)
async def test_parameters_are_taken_by_name_and_by_position(
    serve: Serve, method: str, params: Any, expected: Any
) -> None:
    """§4.2: an object is the payload, an array its fields in order; or either is the one element of an array."""
    answer = error(1, -32602, "Invalid params") if expected == NOT_TAKEN else result(1, expected)
    await exchange(await connect(serve), call(method, params, id=1), answer)


@pytest.mark.parametrize(
    ("method", "payload"),
    [
        ("subtract", {"minuend": 5, "subtrahend": 3}), ("subtract", {"minuend": "x"}), ("sum", [1, 2]), ("sum", ["x"]),
        ("order", {"sym": "A"}), ("maybe", ...), ("get_data", ...), ("refuse", ...), ("crash", ...), ("nothing", {}),
        ("rpc.nothing", ...),
    ],
    ids=str,
)  # fmt: skip
async def test_both_dialects_answer_alike(serve: Serve, method: str, payload: Any) -> None:
    """One method stands behind both: the same result, or the same code and the same details."""
    client = await connect(serve)
    house = await client.ask(method, payload, id=1)
    await client.send(call(method, payload, id=1))
    answer = await client.receive()
    assert answer.get("result") == house.get("response")
    if "error" in house:
        message, code, details = house["error"].pop("message"), house["error"].pop("code"), house["error"]
        assert answer["error"]["code"] == code
        assert answer["error"]["message"] == message or -32700 <= code <= -32600  # whose messages §5.1 fixes
        assert {**answer["error"]["data"], "error_id": ""} == {**details, "error_id": ""}
        assert "SECRET" not in str(answer)


@pytest.mark.parametrize(
    "frame",
    [call("crash"), call("refuse"), call("nothing", [1]), call("double", ["x"]), call("rpc.cancel", {"id": 1})],
    ids=str,
)
async def test_a_notification_that_fails_is_not_answered(serve: Serve, frame: dict[str, Any]) -> None:
    """§4.1: no answer to a notification, alone or in a batch, whatever happens."""
    client = await connect(serve)
    await exchange(client, frame, None)
    await exchange(client, [frame, frame], None)
    await exchange(client, [frame, call("double", [1], id=1)], [result(1, 2)])


# -- batches --------------------------------------------------------------------------------------------------


async def test_a_batch_of_more_than_20_is_one_invalid_request(serve: Serve) -> None:
    """Of 20 entries each is answered; a batch of 21 is refused as a whole, by one object."""
    client = await connect(serve)
    calls = [call("double", [n], id=n) for n in range(21)]
    await exchange(client, calls[:20], [result(n, 2 * n) for n in range(20)])
    await exchange(client, calls, invalid())


async def test_a_batch_is_answered_when_its_last_call_has_ended(serve: Serve) -> None:
    """§6: one array with one answer for each id, in whatever order the methods end."""
    client = await connect(serve)
    calls = [call("wait", id="slow"), call("double", [1], id="quick"), call("until_begun", id="next")]
    await exchange(client, calls, None)
    await client.send(call("open", id="opened"))
    assert await client.receive() == result("opened", None)
    expected = [result("slow", "waited"), result("quick", 2), result("next", None)]
    assert bare(await client.receive()) == bare(expected)


async def test_an_error_in_a_batch_stays_with_its_entry(serve: Serve) -> None:
    """§6: each entry is answered for itself; two of one id are a conflict for the second."""
    calls = [
        call("crash", id=1), call("double", [2], id=2), call("double", "x", id=3), call("refuse", id=4), None,
        call("double", ["x"], id=5), [call("double", [6], id=6)], call("double", [2], id=2),
    ]  # fmt: skip
    expected = [
        error(1, -32603, "Internal error"), result(2, 4), invalid(3), error(4, 17, "Market closed"), invalid(),
        error(5, -32602, "Invalid params"), invalid(), error(2, -32009, "A call with this id is in flight"),
    ]  # fmt: skip
    await exchange(await connect(serve), calls, expected)


# -- the sub-protocol -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ((), None), ((HOUSE,), HOUSE), ((JSONRPC,), JSONRPC), ((JSONRPC, HOUSE), JSONRPC), ((HOUSE, JSONRPC), HOUSE),
        (("x", JSONRPC), JSONRPC),
    ],
    ids=str,
)  # fmt: skip
async def test_the_first_known_sub_protocol_is_chosen(serve: Serve, offered: tuple[str, ...], chosen: str) -> None:
    """RFC 6455 §4.2.2: of those offered, in the client's order; none offered is none chosen."""
    client = await (await serve(Stream)).connect(protocols=offered)
    assert client.ws.protocol == chosen


async def test_unknown_sub_protocols_alone_are_refused_with_a_reason(serve: Serve) -> None:
    """The answer is 400 and names what is supported: a browser would fail later, without a reason."""
    served = await serve(Stream)
    headers = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol": "graphql-ws, soap",
    }  # fmt: skip
    async with served.session.get(served.server.make_url("/stream"), headers=headers) as response:
        assert response.status == 400
        message = (await response.json())["message"]
        assert HOUSE in message and JSONRPC in message


async def test_a_sub_protocol_leaves_no_room_for_the_other_dialect(serve: Serve) -> None:
    """Where one was negotiated, the member "jsonrpc" decides nothing: calls, batches and broken frames are of it."""
    served = await serve(Stream)
    house, jsonrpc = await served.connect(protocols=(HOUSE,)), await served.connect(protocols=(JSONRPC,))
    await house.send({"jsonrpc": "2.0", "id": 1, "method": "double", "payload": 4})
    assert await house.receive() == {"id": 1, "method": "double", "response": 8}
    for frame in (call("update", [1]), [call("double", [4], id=1)], '{"jsonrpc": "2.0"'):
        await house.send(frame)
        assert (await house.receive()).keys() == {"error"}
    await exchange(jsonrpc, {"id": 1, "method": "sum", "payload": [4]}, invalid(1))


# -- messages -------------------------------------------------------------------------------------------------


async def test_a_message_goes_out_in_the_dialect_of_the_subscription(serve: Serve) -> None:
    """Each socket gets the same message in its own form, whatever else it speaks afterwards."""
    served = await serve(Stream)
    house, jsonrpc = await served.connect(), await served.connect()
    await house.call("subscribe", {"channel": "room"})
    await exchange(house, call("double", [1], id=1), result(1, 2))
    await exchange(jsonrpc, call("subscribe", ["room"], id=1), result(1, {"subscribed": {"room": ["*"]}}))
    await jsonrpc.call("double", 1)
    await served.manager.publish("room", "said", {"text": "hi"})
    message = {"channel": "room", "event": "said", "data": {"text": "hi"}}
    assert await house.receive() == message
    assert await jsonrpc.receive() == {"jsonrpc": "2.0", "method": "rpc.message", "params": message}


# -- calls taken back -----------------------------------------------------------------------------------------

CANCELLED = error(1, -32013, "Call cancelled")


@pytest.mark.parametrize("is_running", [True, False], ids=["running", "just sent"])
@pytest.mark.parametrize(
    ("cancel", "answers"),
    [
        (call("$/cancelRequest", {"id": 1}), []),
        (call("rpc.cancel", {"id": 1}, id=2), [result(2, {"cancelled": True})]),
        ({"method": "rpc.cancel", "payload": {"id": 1}, "id": 2},
         [{"id": 2, "method": "rpc.cancel", "response": {"cancelled": True}}]),
    ],
    ids=["$/cancelRequest", "rpc.cancel", "house"],
)  # fmt: skip
async def test_a_call_taken_back_is_answered_once(
    serve: Serve, cancel: dict[str, Any], answers: list[Any], is_running: bool
) -> None:
    """A cancelled call is answered -32013, once, and its id may be used again; a second cancel finds nothing."""
    client = await connect(serve)
    await client.send(call("wait", id=1))
    if is_running:
        await exchange(client, call("until_begun", id=0), result(0, None))
    await client.send(cancel)
    assert [await client.receive() for _ in (*answers, CANCELLED)] == [*answers, CANCELLED]
    await client.send(call("open"))
    await exchange(client, call("$/cancelRequest", {"id": 1}), None)
    await exchange(client, call("wait", id=1), result(1, "waited"))


async def test_a_call_whose_failure_is_being_told_is_answered_when_taken_back(serve: Serve) -> None:
    """Every call gets one answer, also one that is cancelled while the view's `on_error` still runs."""
    client = await connect(serve)
    await client.send(call("crash_slowly", id=1))
    await exchange(client, call("until_begun", id=0), result(0, None))
    await client.send(call("$/cancelRequest", {"id": 1}))
    await client.send(call("open"))
    answer = await client.receive()
    assert answer["id"] == 1
    assert answer["error"]["code"] in (-32013, -32603)


async def test_a_cancelled_entry_leaves_its_batch_whole(serve: Serve) -> None:
    """§6: the entry is answered -32013 within the array, even if the cancel came in the same batch."""
    batch = [call("wait", id=1), call("double", [1], id=2), call("$/cancelRequest", {"id": 1})]
    await exchange(await connect(serve), batch, [CANCELLED, result(2, 2)])


@pytest.mark.parametrize(
    "params", [{"id": 9}, {"id": "1"}, {"id": None}, {"id": [1]}, {"id": {}}, {}, [], ...], ids=str
)
async def test_to_cancel_what_does_not_run_is_harmless(serve: Serve, params: Any) -> None:
    """An id that is not in flight, or is none, cancels nothing, and says so to who asks."""
    client = await connect(serve)
    await client.send(call("wait", id=1))
    await exchange(client, call("$/cancelRequest", params), None)
    await exchange(client, call("rpc.cancel", params, id=2), result(2, {"cancelled": False}))
    await client.send(call("open"))
    assert await client.receive() == result(1, "waited")


async def test_an_id_in_flight_is_a_conflict(serve: Serve) -> None:
    """The second call of an id is answered -32009 in its dialect, and the first as if there were no second."""
    client = await connect(serve)
    await client.send(call("wait", id=1))
    await exchange(client, call("double", [1], id="1"), result("1", 2))  # another id
    await exchange(client, call("double", [1], id=1), error(1, -32009, "A call with this id is in flight"))
    await client.send({"id": 1, "method": "double", "payload": 1})
    assert (await client.receive())["error"]["code"] == -32009
    await client.send(call("open"))
    assert await client.receive() == result(1, "waited")
