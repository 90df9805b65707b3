"""Whatever a client sends in whole messages: the socket lives, and each call is answered exactly once.

``FUZZ_EXAMPLES=100000 pytest tests/test_fuzz.py`` runs for minutes; the default is a short run.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from openapi_ws import Publish, SocketsManager, Subscribe, WsPathMixin, ws_rpc
from openapi_ws.protocol import HOUSE, JSONRPC, Batch, Call, Failure, decode

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "200"))


class Point(BaseModel):
    x: int
    label: str | None = None


class Stream(WsPathMixin, Subscribe, Publish, web.View):
    """A method of each kind."""

    max_calls = 10_000

    async def ws_rpc_echo(self, payload: Any) -> Any:
        return payload

    async def ws_rpc_point(self, payload: Point) -> Point:
        return payload

    async def ws_rpc_many(self, payload: list[Point] | dict[str, float]) -> int:
        return len(payload)

    async def ws_rpc_later(self, payload: Any) -> Any:
        for _ in range(5):
            await asyncio.sleep(0)
        return payload

    @ws_rpc(ordered=True)
    async def ws_rpc_fail(self, payload: Any) -> Any:
        raise ValueError(payload)


METHODS = (*Stream._ws_rpc_methods, "nope", "rpc.cancel", "$/cancelRequest", "rpc.x", "", "__class__")  # type: ignore[attr-defined]

ids = st.one_of(
    st.integers(-3, 3), st.text(max_size=3), st.floats(), st.none(), st.booleans(), st.just(2**70), st.just([])
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=4)),
    max_leaves=8,
)
subscriptions = st.fixed_dictionaries({}, optional={"channel": st.sampled_from(["a", "b", "", 1]), "event": values})
payloads = st.one_of(values, subscriptions, st.fixed_dictionaries({"x": values}), st.fixed_dictionaries({"id": ids}))
members = {
    "id": ids,
    "method": st.one_of(st.sampled_from(METHODS), values),
    "payload": payloads,
    "params": payloads,
    "jsonrpc": st.sampled_from(["2.0", "2.0", "1.0", 2, None]),
}
calls = st.fixed_dictionaries({}, optional=members)
valid = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0"), "method": st.sampled_from(METHODS)},
    optional={"id": st.integers(0, 9), "params": st.one_of(subscriptions, st.lists(values, max_size=3))},
)
documents = st.one_of(calls, valid, st.lists(st.one_of(calls, valid), max_size=22), values)
texts = documents.map(json.dumps)  # with NaN, infinities and lone surrogates, which are no JSON
frames = st.one_of(
    texts.map(str.encode),
    st.tuples(texts, st.integers(0, 200)).map(lambda cut: cut[0][: cut[1]].encode()),
    st.tuples(texts.map(str.encode), st.binary(max_size=4)).map(b"".join),
    st.binary(max_size=60),
    st.sampled_from([b"", b"[" * 2000, b"[" * 300 + b"]" * 300, b'{"id":1' + b"0" * 5000 + b"}", b"\xef\xbb\xbf{}"]),
)


def is_notification(entry: Any) -> bool:
    """JSON-RPC 2.0 §4.1, told apart independently of the library."""
    return (
        isinstance(entry, dict)
        and entry.get("jsonrpc") == "2.0"
        and isinstance(entry.get("method"), str)
        and "id" not in entry
        and isinstance(entry.get("params", []), list | dict)
    )


def answers_due(frame: bytes) -> int:
    """None for a notification or a batch of nothing else; one for anything else."""
    request = decode(frame)
    if isinstance(request, Failure):
        return 1
    document = json.loads(frame)
    if isinstance(request, Batch):
        return 0 if all(map(is_notification, document)) else 1
    return 0 if is_notification(document) else 1


def is_push(frame: Any) -> bool:
    return isinstance(frame, dict) and ("channel" in frame or frame.get("method") == "rpc.message")


def test_every_message_is_answered_once_and_the_socket_lives() -> None:
    """Frames of a grammar near both dialects, cut ones, and random bytes; then the socket still answers."""
    loop = asyncio.new_event_loop()
    app = web.Application()
    app["web_sockets"] = manager = SocketsManager.for_app(app)
    app.router.add_view("/stream", Stream)
    server = TestServer(app, loop=loop)
    loop.run_until_complete(server.start_server())

    async def check(batch: list[bytes]) -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(server.make_url("/stream")) as ws:
            due = sum(map(answers_due, batch))
            for number, frame in enumerate(batch):
                await (ws.send_bytes(frame) if number % 2 else ws.send_frame(frame, aiohttp.WSMsgType.TEXT))
            answers = [await answer(ws) for _ in range(due)]
            for word in ("still", "here"):
                await ws.send_str(json.dumps({"id": word, "method": "echo", "payload": word}))
                assert (await answer(ws))["response"] == word, answers

    async def answer(ws: aiohttp.ClientWebSocketResponse) -> Any:
        while True:
            frame = json.loads(await asyncio.wait_for(ws.receive_str(), 10))
            if not is_push(frame):
                return frame

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(frames, min_size=1, max_size=8))
    def fuzz(batch: list[bytes]) -> None:
        loop.run_until_complete(check(batch))

    try:
        fuzz()
        loop.run_until_complete(asyncio.wait_for(at_rest(manager), 10))
    finally:
        loop.run_until_complete(server.close())
        loop.close()


async def at_rest(manager: SocketsManager) -> None:
    while manager.sockets or len(manager.channels):
        await asyncio.sleep(0)


@settings(max_examples=EXAMPLES * 5, deadline=None)
@given(frames, st.sampled_from([HOUSE, JSONRPC]), st.booleans())
def test_any_bytes_are_a_call_a_batch_or_a_failure_that_can_be_said(frame: bytes, assumed: Any, fixed: bool) -> None:
    """Decoding never raises, and what is refused has an answer of JSON."""
    request = decode(frame, assumed, fixed=fixed)
    entries = request.entries if isinstance(request, Batch) else [request]
    for entry in entries:
        assert isinstance(entry, Call | Failure)
        if isinstance(entry, Failure):
            assert "error" in json.loads(entry.encode())
            assert len(entry.encode()) < 4096
