"""Floor 2, hub: where Redis is, read from a URL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from openapi_ws.errors import SetupError

from .wire import ClusterNode, Redis, RedisCluster, Sentinel, parse_url

__all__ = ["connect"]

EXAMPLES = (
    "redis://localhost, rediss://…, unix:///run/redis.sock, redis+cluster://h1:7000,h2:7000, "
    "redis+sentinel://h1:26379,h2:26379/mymaster"
)


def connect(url: str, *, timeout: float) -> tuple[Redis | RedisCluster, list[Any]]:
    """A client of what *url* names, which is not connected yet, and all that is to be closed with ``aclose``.

    - ``redis://[user:password@]host[:port][/database][?options]``, ``rediss://`` with TLS, ``unix://``: what
      `redis.asyncio.Redis.from_url` takes, with its options
    - ``redis+cluster://[user:password@]host[:port],host[:port],…[?options]``: some nodes of a Redis Cluster, which tell
      of the others; ``rediss+cluster://`` with TLS
    - ``redis+sentinel://[user:password@]host[:port],host[:port],…/master[/database][?options]``: the Sentinels that
      know the *master*, default port 26379; ``rediss+sentinel://`` with TLS to both. User and password are those of the
      master; those of the Sentinels are the options ``sentinel_username`` and ``sentinel_password``

    A Sentinel has *timeout* seconds to answer.

    Raises:
        SetupError: it is none of these.
    """
    scheme, plus, kind = url.partition("://")[0].partition("+")
    try:
        if not plus:
            client = Redis.from_url(url)
            return client, [client]
        if scheme in ("redis", "rediss") and kind == "cluster":
            return _cluster(scheme, url), []
        if scheme in ("redis", "rediss") and kind == "sentinel":
            return _sentinel(scheme, url, timeout)
    except (ValueError, TypeError) as error:
        raise SetupError(f"not a URL of Redis: {error}; e.g. {EXAMPLES}") from None
    raise SetupError(f"not a URL of Redis: {scheme}{plus}{kind}://; e.g. {EXAMPLES}")


def _cluster(scheme: str, url: str) -> RedisCluster:
    parts = urlsplit(url)
    if parts.path not in ("", "/"):
        raise ValueError("a cluster has no databases")
    ((host, port), *others), login = _hosts(parts.netloc, 6379)
    first = f"[{host}]" if ":" in host else host
    return RedisCluster.from_url(
        f"{scheme}://{login}{first}:{port}?{parts.query}", startup_nodes=[ClusterNode(*node) for node in others]
    )


def _sentinel(scheme: str, url: str, timeout: float) -> tuple[Redis, list[Any]]:
    parts = urlsplit(url)
    _, master, *database = parts.path.split("/") if parts.path else ("", "")
    if not master:
        raise ValueError("the name of the master comes after the Sentinels")
    nodes, login = _hosts(parts.netloc, 26379)
    query = dict(parse_qsl(parts.query))
    own = {key: query.pop(f"sentinel_{key}") for key in ("username", "password") if f"sentinel_{key}" in query}
    options = dict(parse_url(f"{scheme}://{login}/{'/'.join(database)}?{urlencode(query)}"))
    if options.pop("connection_class", None) is not None:
        options["ssl"] = True
    common = {key: value for key, value in options.items() if key.startswith("ssl")}
    watch = {"socket_timeout": timeout / 2, "socket_connect_timeout": timeout / 2, **common, **own}
    make: Callable[..., Any] = Sentinel  # redis-py has not typed it
    sentinel = make(nodes, sentinel_kwargs=watch, **options)
    client = sentinel.master_for(master)
    return client, [client, *sentinel.sentinels]


def _hosts(netloc: str, port: int) -> tuple[list[tuple[str, int]], str]:
    """Each host and port, and what comes before them."""
    login, at, hosts = netloc.rpartition("@")
    found = []
    for place in hosts.split(","):
        parts = urlsplit(f"//{place}")
        if not parts.hostname:
            raise ValueError("a host is missing")
        found.append((parts.hostname, parts.port or port))
    return found, login + at
