"""The figures of a process in the formats of Prometheus, read with its own parsers."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from conftest import Serve, Served, until
from prometheus_client import REGISTRY, CollectorRegistry, Metric, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from openapi_ws import Publish, RpcError, SetupError, SocketsManager, Subscribe, WsPathMixin
from openapi_ws.prometheus import Collector, handler, handler_for

SOCKETS = web.AppKey("sockets", SocketsManager)
OPENMETRICS = "application/openmetrics-text"
AT_REST = {
    "sockets": 0,
    "sockets_opened_total": 0,
    "handshakes_refused_total reason=closing": 0,
    "handshakes_refused_total reason=sockets": 0,
    "handshakes_refused_total reason=address": 0,
    "handshakes_refused_total reason=identity": 0,
    "dropped_total reason=slow": 0,
    "dropped_total reason=closed": 0,
    "dropped_total reason=notification": 0,
    "dropped_total reason=broker": 0,
    "dropped_total reason=callbacks": 0,
    "lagged_total": 0,
    "queued_bytes": 0,
    "channels": 0,
    "subscriptions": 0,
}
"""What is shown before anything has happened; lag aside, which is the machine's."""


class Stream(WsPathMixin, Subscribe, Publish, web.View):
    async def ws_rpc_double(self, n: int) -> int:
        return 2 * n

    async def ws_rpc_refuse(self) -> None:
        raise RpcError(7, "no")

    async def ws_rpc_leave(self) -> None:
        self.websocket.close_soon(4503, "kicked")


class Keyed(WsPathMixin, web.View):
    SOCKETS_KEY = SOCKETS

    async def ws_rpc_double(self, n: int) -> int:
        return 2 * n


async def start(serve: Serve) -> Served:
    """The view above, its figures beside it."""
    app = web.Application()
    app.router.add_get("/metrics", handler)
    return await serve(Stream, app=app)


async def scrape(served: Served, accept: str = "", path: str = "/metrics") -> tuple[str, str]:
    """Content type and text of the figures."""
    async with served.session.get(served.server.make_url(path), headers={"Accept": accept}) as response:
        assert response.status == 200
        return response.headers["Content-Type"], await response.text()


def samples(families: Any) -> dict[str, float]:
    """The values by name and labels; lag aside."""
    found = {}
    for sample in (sample for family in families for sample in family.samples):
        labels = [f"{name}={value}" for name, value in sample.labels.items()]
        found[" ".join([sample.name.removeprefix("openapi_ws_"), *labels])] = sample.value
    del found["loop_lag_seconds"]
    return found


async def figures(served: Served, path: str = "/metrics") -> dict[str, float]:
    """The values as Prometheus text has them."""
    return samples(parse_text((await scrape(served, path=path))[1]))


async def test_a_session_is_counted_exactly(serve: Serve) -> None:
    """Sockets, handshakes, calls by outcome, closes by code, drops, channels, subscriptions."""
    served = await start(serve)
    assert await figures(served) == AT_REST
    served.manager.max_sockets = 3
    ada, bob, eve = [await served.connect() for _ in range(3)]
    assert (await served.refused())[0] == 503
    assert (await served.refused())[0] == 503

    for n in range(4):
        assert await ada.call("double", n) == 2 * n
    assert (await ada.error("refuse"))["code"] == 7
    assert (await ada.error("double", "two"))["code"] == -32602
    assert (await ada.error("made up"))["code"] == -32601
    await bob.send({"jsonrpc": "2.0", "method": "refuse"})
    await ada.call("subscribe", {"channel": "chat"})
    await ada.call("subscribe", {"channel": "chat", "event": "said"})
    await bob.call("subscribe", {"channel": "chat"})
    await bob.call("subscribe", {"channel": "news"})
    await served.manager.channels("chat", None)  # type: ignore[arg-type]  # no message

    await eve.send({"id": 1, "method": "leave"})
    assert await eve.closed() == 4503
    await bob.ws.close(code=4100)
    await until(lambda: len(served.manager.metrics.closes) == 2)
    assert await figures(served) == AT_REST | {
        "sockets": 1,
        "sockets_opened_total": 3,
        "handshakes_refused_total reason=sockets": 2,
        "calls_total method=double outcome=ok": 4,
        "calls_total method=refuse outcome=7": 2,
        "calls_total method=double outcome=-32602": 1,
        "calls_total method=_OTHER outcome=-32601": 1,
        "calls_total method=subscribe outcome=ok": 4,
        "calls_total method=leave outcome=ok": 1,
        "closes_total code=4503": 1,
        "closes_total code=other": 1,
        "dropped_total reason=notification": 1,
        "dropped_total reason=broker": 1,
        "dropped_total reason=callbacks": 0,
        "lagged_total": 0,
        "channels": 1,
        "subscriptions": 2,
    }

    await served.manager.close_sockets()
    assert (await served.refused())[0] == 503
    shown = await figures(served)
    assert shown["sockets"] == shown["channels"] == shown["subscriptions"] == 0
    assert shown["closes_total code=1012"] == shown["handshakes_refused_total reason=closing"] == 1


async def test_bytes_that_wait_are_shown(serve: Serve) -> None:
    """As many as `server_info` says, while a client does not read."""
    served = await start(serve)
    client = await served.connect_raw()
    client.frame(b'{"id":1,"method":"subscribe","payload":{"channel":"c"}}')
    await client.read()
    client.reader._transport.pause_reading()  # type: ignore[attr-defined]  # a peer that does not read
    [socket] = served.manager.sockets
    while not socket.queued_bytes:
        await served.manager.publish("c", "e", "x" * 20_000)
        await until(lambda: not socket._flushing)
    before = served.manager.server_info()["queued_bytes"]
    shown = (await figures(served))["queued_bytes"]
    assert before >= shown >= served.manager.server_info()["queued_bytes"] > 0


async def test_lag_is_in_seconds(serve: Serve) -> None:
    """With its unit, where the format has one."""
    served = await start(serve)
    served.manager.metrics.lag = 0.25
    _, text = await scrape(served, OPENMETRICS)
    assert "openapi_ws_loop_lag_seconds 0.25\n" in text
    assert "# UNIT openapi_ws_loop_lag_seconds seconds\n" in text
    assert "# UNIT openapi_ws_queued_bytes bytes\n" in text


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4"),
        ("text/html,*/*;q=0.8", "text/plain; version=0.0.4"),
        (f"{OPENMETRICS};version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2", f"{OPENMETRICS}; version=1.0.0"),
    ],
)
async def test_the_client_chooses_the_format(serve: Serve, accept: str, content_type: str) -> None:
    """By *Accept*: OpenMetrics, or Prometheus text; the same values in both, each with type and help."""
    served = await start(serve)
    client = await served.connect()
    await client.call("double", 1)
    type_, text = await scrape(served, accept)
    assert type_.startswith(content_type)
    families: list[Metric] = list((parse_openmetrics if content_type.startswith(OPENMETRICS) else parse_text)(text))
    assert samples(families) == await figures(served)
    for family in families:
        assert family.name.startswith("openapi_ws_")
        assert family.documentation.endswith(".")
        assert {sample.name.removeprefix(family.name) for sample in family.samples} <= {
            "counter": {"_total"},
            "gauge": {""},
        }[family.type]


async def test_applications_of_one_process_do_not_mix(serve: Serve) -> None:
    """Each shows its own, and the registry of the process nothing; a registry of one's own shows what it is given."""
    first, second = await start(serve), await start(serve)
    client = await first.connect()
    await client.call("double", 1)
    assert (await figures(first))["calls_total method=double outcome=ok"] == 1
    assert await figures(second) == AT_REST
    assert "openapi_ws" not in generate_latest(REGISTRY).decode()
    registry = CollectorRegistry()
    registry.register(Collector(first.manager))
    assert samples(parse_text(generate_latest(registry).decode())) == await figures(first)


async def test_the_manager_is_found_where_a_view_finds_it(serve: Serve) -> None:
    """Under an AppKey, and from a nested application."""
    app, inner = web.Application(), web.Application()
    inner.router.add_get("/metrics", handler_for(SOCKETS))
    app.add_subapp("/inner", inner)
    app[SOCKETS] = SocketsManager.for_app(app)
    served = await serve(Keyed, app[SOCKETS], app)
    client = await served.connect()
    await client.call("double", 1)
    assert (await figures(served, "/inner/metrics"))["sockets"] == 1


@pytest.mark.parametrize(("key", "name"), [("web_sockets", '"web_sockets"'), (SOCKETS, "sockets")])
async def test_an_application_without_a_manager_is_told_what_to_write(
    caplog: pytest.LogCaptureFixture, key: str | web.AppKey[SocketsManager], name: str
) -> None:
    """500, and the line to write in the log."""
    app = web.Application()
    app.router.add_get("/metrics", handler_for(key))
    async with TestClient(TestServer(app)) as client:
        assert (await client.get("/metrics")).status == 500
    [record] = [record for record in caplog.records if record.exc_info]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], SetupError)
    assert name in str(record.exc_info[1])
    assert "= SocketsManager.for_app(app)" in str(record.exc_info[1])


def test_without_prometheus_client_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is optional; nothing else of the package needs it."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "prometheus_client"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "openapi_ws.prometheus")
    with pytest.raises(SetupError, match=r"pip install 'openapi-ws\[metrics\]'"):
        importlib.import_module("openapi_ws.prometheus")
