"""Floor 5, tools: what a process has counted, as Prometheus reads it, on a route of one's own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from aiohttp import hdrs, web

from .errors import SetupError
from .manager import SocketsManager

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.exposition import choose_encoder
except ModuleNotFoundError:
    message = "openapi_ws.prometheus needs prometheus-client: pip install 'openapi-ws[metrics]'"
    raise SetupError(message) from None

__all__ = ["Collector", "handler", "handler_for"]

# Shown from the start, as 0: without this, `rate` would not see the first of each.
REFUSALS = ("closing", "sockets", "address", "identity")
DROPS = ("slow", "closed", "notification", "broker", "callbacks")


class Collector:
    """The figures of one *manager*; `collect` reads them in the thread of the event loop.

    `handler` needs no registry. Register a collector where an application serves a registry of its own.
    """

    def __init__(self, manager: SocketsManager) -> None:
        self._manager = manager

    def collect(self) -> Iterator[Metric]:
        """All metrics, with the names and units of Prometheus (prometheus.io/docs/practices/naming)."""
        manager, metrics = self._manager, self._manager.metrics
        refused = dict.fromkeys(REFUSALS, 0) | metrics.refused
        dropped = dict.fromkeys(DROPS, 0) | metrics.dropped | manager.channels.losses
        queued = sum(ws.queued_bytes for ws in manager.sockets)
        subscriptions = sum(sum(channel.info().values()) for channel in manager.channels)

        yield _gauge("sockets", "Clients connected.", len(manager.sockets))
        yield _counter("sockets_opened", "Handshakes that became sockets.", {(): metrics.opened})
        yield _counter("handshakes_refused", "Handshakes refused.", refused, "reason")
        yield _counter("closes", "Sockets that are gone, by close code.", metrics.closes, "code")
        yield _counter("calls", "Calls ended: ok, gone, or the code of the error.", metrics.calls, "method", "outcome")
        yield _counter("dropped", "Messages and answers that did not reach whom they were for.", dropped, "reason")
        yield _gauge("queued_bytes", "Bytes that wait for clients to read.", queued, "bytes")
        yield _counter("lagged", "Times that clients fell behind in a channel with history.", {(): metrics.lagged})
        yield _gauge("loop_lag_seconds", "Delay of the event loop when it last looked.", metrics.lag, "seconds")
        yield _gauge("channels", "Channels that somebody listens to.", len(manager.channels))
        yield _gauge("subscriptions", "Listeners, once for each event or pattern they are on.", subscriptions)


def handler_for(key: str | web.AppKey[Any]) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A `handler` of the manager that is under *key*, where views have a `SOCKETS_KEY` of their own."""

    async def handler(request: web.Request) -> web.Response:
        """Answer with the figures of the manager, in the format that *Accept* asks for."""
        manager = request.config_dict.get(key)
        if not isinstance(manager, SocketsManager):
            name = key if isinstance(key, web.AppKey) else f'"{key}"'
            raise SetupError(f"no manager: write app[{name}] = SocketsManager.for_app(app)")
        encode, content_type = choose_encoder(request.headers.get(hdrs.ACCEPT, ""))
        return web.Response(body=encode(Collector(manager)), headers={hdrs.CONTENT_TYPE: content_type})

    return handler


handler = handler_for("web_sockets")
"""Serves the figures of ``app["web_sockets"]``, as OpenMetrics or Prometheus text, whichever *Accept* asks for; mount
it, e.g. ``app.router.add_get("/metrics", handler)``, where the public does not come."""


def _gauge(name: str, text: str, value: float, unit: str = "") -> Metric:
    return GaugeMetricFamily(f"openapi_ws_{name}", text, value, unit=unit)


def _counter(name: str, text: str, counts: Mapping[Any, int], *labels: str) -> Metric:
    """A counter by one label, or by as many as the keys of *counts* are long; its sample ends in ``_total``."""
    family = CounterMetricFamily(f"openapi_ws_{name}", text, labels=labels)
    for key, count in counts.items():
        family.add_metric(key if isinstance(key, tuple) else (str(key),), count)
    return family
