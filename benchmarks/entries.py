"""Who takes part: how each server is started, and what its clients say to it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Wire:
    """What a client says, as templates of ``wsload.c``; empty where there is no such thing.

    ``%PAD`` is filled up to the size of the workload.
    """

    call: str = ""
    answer: str = ""
    """Must be in each answer."""
    slow: str = ""
    subscribe: str = ""
    other: str = ""
    """Subscribes to one more channel, named by ``%OTHER``."""
    publish: str = ""
    message: str = '%PAD"'
    """Must be in each message."""
    hello: str = ""
    """Said by every client, whatever it is."""
    acks: int = 0
    """Frames that come in answer to that."""


@dataclass(frozen=True)
class Entry:
    """One server of the benchmark."""

    name: str
    title: str
    module: str
    wire: Wire
    paths: dict[str, str] = field(default_factory=dict)
    """Where each kind of workload is served, if not at ``/``."""
    requires: tuple[str, ...] = ()
    """What is installed for it."""
    bare: tuple[str, ...] = ()
    """What is installed without what that asks for."""
    python: str | None = None
    """The Python that it wants, if not the one that runs the benchmarks."""
    uvloop: bool = False
    is_apart: bool = False
    """Its environment is its own: what it asks for does not suit others."""

    @property
    def is_ours(self) -> bool:
        """It is this library."""
        return self.module == "ours"

    @property
    def is_node(self) -> bool:
        """It is a program for Node.js."""
        return self.module.endswith(".cjs")

    @property
    def is_at_hand(self) -> bool:
        """It needs nothing that the library's own test environment has not."""
        return not (self.requires or self.bare or self.python or self.is_node)


HOUSE = Wire(
    call='{"id":%ID,"method":"echo","payload":{"message":"hello"}}',
    answer='"response":{"message":"hello"}',
    slow='{"id":%ID,"method":"slow","payload":{"message":"hello"}}',
    subscribe='{"id":%ID,"method":"subscribe","payload":{"channel":"bench"}}',
    other='{"id":%ID,"method":"subscribe","payload":{"channel":"%OTHER"}}',
    publish='{"id":%ID,"method":"publish","payload":{"channel":"bench","event":"tick","data":"%ID%PAD"}}',
)
JSONRPC = Wire(
    call='{"jsonrpc":"2.0","id":%ID,"method":"echo","params":{"message":"hello"}}',
    answer='"result":{"message":"hello"}',
    slow='{"jsonrpc":"2.0","id":%ID,"method":"slow","params":{"message":"hello"}}',
    subscribe='{"jsonrpc":"2.0","id":%ID,"method":"subscribe","params":{"channel":"bench"}}',
    publish='{"jsonrpc":"2.0","id":%ID,"method":"publish","params":{"channel":"bench","event":"tick","data":"%ID%PAD"}}',
)
ECHOED = replace(HOUSE, answer=HOUSE.call.partition("%ID")[2], slow="", other="")
LOOSE = replace(HOUSE, answer='"response": {"message": "hello"}', publish="")
ANCESTOR = Wire(
    call=HOUSE.call.replace("%ID", '"%ID"'),
    answer=LOOSE.answer,
    slow=HOUSE.slow.replace("%ID", '"%ID"'),
    subscribe=HOUSE.subscribe.replace("%ID", '"%ID"'),
    publish=HOUSE.publish.replace('"id":%ID', '"id":"%ID"'),
)
BY_HAND = replace(HOUSE, other="")
CHANNELS = replace(BY_HAND, call="", slow="")
SOCKETIO = Wire(
    call='42%ID["echo",{"message":"hello"}]',
    answer='[{"message":"hello"}]',
    slow='42%ID["slow",{"message":"hello"}]',
    subscribe='42%ID["subscribe","bench"]',
    publish='42%ID["publish","bench","%ID%PAD"]',
    hello="40",
    acks=2,
)
FASTAPI_RPC = Wire(
    call='{"request":{"method":"echo","arguments":{"message":"hello"},"call_id":"%ID"}}',
    answer='"result":{"message":"hello"}',
    slow='{"request":{"method":"slow","arguments":{"message":"hello"},"call_id":"%ID"}}',
)

APART = {"fanout": "/fanout"}
KINDS = ("echo", "slow", "fanout")
UVLOOP = ("uvloop==0.23.0",)
UVICORN = ("uvicorn==0.54.0", "websockets==17.4")
ANCESTORS_NEEDS = ("simplejson<4", "python-dateutil<3", "email-validator<2", "PyYAML", "click", "SQLAlchemy[asyncio]<3")

ENTRIES = {
    entry.name: entry
    for entry in (
        Entry("raw", "raw aiohttp", "aiohttp_raw", ECHOED, {"echo": "/echo", **APART}),
        Entry("json", "aiohttp, json by hand", "aiohttp_raw", LOOSE, dict.fromkeys(KINDS, "/json")),
        Entry(
            "raw-uvloop", "raw aiohttp, uvloop", "aiohttp_raw", ECHOED, {"echo": "/echo", **APART},
            requires=UVLOOP, uvloop=True,
        ),
        Entry(
            "raw-py313", "raw aiohttp, Python 3.13", "aiohttp_raw", ECHOED, {"echo": "/echo", **APART}, python="3.13",
        ),
        Entry("openapi_ws", "openapi_ws", "ours", HOUSE),
        Entry("jsonrpc", "openapi_ws, JSON-RPC 2.0", "ours", JSONRPC),
        Entry("all", "openapi_ws, everything on", "ours", HOUSE, dict.fromkeys(KINDS, "/all")),
        Entry("uvloop", "openapi_ws, uvloop", "ours", HOUSE, requires=UVLOOP, uvloop=True),
        Entry("py313", "openapi_ws, Python 3.13", "ours", HOUSE, python="3.13"),
        Entry(
            "aio-openapi", "aio-openapi", "aio_openapi", ANCESTOR,
            requires=ANCESTORS_NEEDS, bare=("aio-openapi==3.2.1",), is_apart=True,
        ),
        Entry(
            "socketio", "python-socketio", "socketio_aiohttp", SOCKETIO,
            dict.fromkeys(KINDS, "/socket.io/?EIO=4&transport=websocket"), requires=("python-socketio==5.18.1",),
        ),
        Entry(
            "fastapi-rpc", "fastapi_websocket_rpc", "fastapi_rpc", FASTAPI_RPC,
            requires=("fastapi==0.165.0", "fastapi_websocket_rpc==0.1.29", *UVICORN),
        ),
        Entry(
            "fastapi", "FastAPI, pydantic by hand", "fastapi_by_hand", replace(BY_HAND, publish=""),
            requires=("fastapi==0.165.0", *UVICORN),
        ),
        Entry("litestar", "Litestar channels", "litestar_channels", CHANNELS, requires=("litestar==2.25.0", *UVICORN)),
        Entry(
            "websockets", "websockets, pydantic by hand", "websockets_by_hand", BY_HAND, APART,
            requires=("websockets==17.4",),
        ),
        Entry(
            "picows", "picows, pydantic by hand", "picows_by_hand", replace(BY_HAND, slow=""), APART,
            requires=("picows==2.3.1",),
        ),
        Entry("node-ws", "Node.js ws", "node_ws.cjs", BY_HAND, APART, requires=("ws@8",)),
    )
}  # fmt: skip
