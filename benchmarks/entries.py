"""Who takes part: how each server is started, and what its clients say to it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Wire:
    """What a client says, as templates of ``wsload.c``, and what must be in the answer; "" where there is no such thing.

    ``%PAD`` is filled up to the size of the workload.
    """

    call: str = ""
    answer: str = ""
    slow: str = ""
    subscribe: str = ""
    other: str = ""
    """Subscribe to one more channel."""
    publish: str = ""
    message: str = '"%PAD"'
    """Must be in each message."""
    hello: str = ""
    """Sent by every client, whatever it is."""
    acks: int | None = None
    """Frames of the server before a client is ready, if not one for each of its own; with `hello` only."""
    is_answered: bool = True
    """A publication has an answer."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One server of the benchmark."""

    name: str
    module: str
    wire: Wire
    title: str
    paths: dict[str, str] = dataclasses.field(default_factory=dict)
    """Where each kind of workload is served, if not at ``/``."""
    group: str = "aiohttp"
    """Whose virtual environment it shares."""
    requires: tuple[str, ...] = ()
    """What it needs there."""
    bare: tuple[str, ...] = ()
    """What it needs, installed without what that asks for."""
    python: str | None = None
    """The Python it wants, if not the one that runs the benchmark."""
    uvloop: bool = False


HOUSE = Wire(
    call='{"id":%ID,"method":"echo","payload":{"message":"hello"}}',
    answer='"response":{"message":"hello"}',
    slow='{"id":%ID,"method":"slow","payload":{"message":"hello"}}',
    subscribe='{"id":%ID,"method":"subscribe","payload":{"channel":"bench"}}',
    other='{"id":%ID,"method":"subscribe","payload":{"channel":"other-%CONN-%N"}}',
    publish='{"id":%ID,"method":"publish","payload":{"channel":"bench","event":"tick","data":"%ID%PAD"}}',
    message='%PAD"',
)
JSONRPC = Wire(
    call='{"jsonrpc":"2.0","id":%ID,"method":"echo","params":{"message":"hello"}}',
    answer='"result":{"message":"hello"}',
    slow='{"jsonrpc":"2.0","id":%ID,"method":"slow","params":{"message":"hello"}}',
    subscribe='{"jsonrpc":"2.0","id":%ID,"method":"subscribe","params":{"channel":"bench"}}',
    publish='{"jsonrpc":"2.0","id":%ID,"method":"publish","params":{"channel":"bench","event":"tick","data":"%ID%PAD"}}',
    message='%PAD"',
)
ECHOED = dataclasses.replace(HOUSE, answer=HOUSE.call.partition("%ID")[2], slow="")
BY_HAND = dataclasses.replace(HOUSE, answer='"response": {"message": "hello"}', subscribe="", publish="")

ENTRIES = {
    entry.name: entry
    for entry in (
        Entry("raw", "aiohttp_raw", ECHOED, "aiohttp, raw", paths={"echo": "/echo", "fanout": "/fanout"}),
        Entry("json", "aiohttp_raw", BY_HAND, "aiohttp, json by hand", paths={"echo": "/json"}),
        Entry("openapi_ws", "ours", HOUSE, "openapi_ws"),
        Entry("jsonrpc", "ours", JSONRPC, "openapi_ws, JSON-RPC 2.0"),
        Entry("all", "ours", HOUSE, "openapi_ws, everything on", paths={"echo": "/all", "fanout": "/all"}),
    )
}
