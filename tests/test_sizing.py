"""The sizing of Redis: what is simulated places channels as the store does, what is measured is measured."""

from __future__ import annotations

import asyncio

import pytest
from redis.crc import key_slot
from redis_server import RedisServer

from benchmarks.sizing import Cost, fit, reached, sample, shares, table
from openapi_ws.brokers.fleet import Fleet
from openapi_ws.brokers.store import Store


def test_a_message_reaches_as_many_processes_as_there_may_be() -> None:
    """One subscriber is in one process; very many are in all."""
    assert reached(8, 1) == pytest.approx(1)
    assert reached(8, 2) == pytest.approx(1 + 7 / 8)
    assert reached(8, 10_000) == pytest.approx(8)
    assert reached(1, 3) == pytest.approx(1)


@pytest.mark.parametrize("skew", [0.0, 1.0])
def test_the_shares_of_the_masters_are_all_there_is(skew: float) -> None:
    """One has all; many share it, and the busiest of them has more than its part."""
    assert shares(100, 1, skew=skew) == [1]
    parts = shares(10_000, 6, skew=skew)
    assert sum(parts) == pytest.approx(1)
    assert min(parts) > 0
    assert max(parts) > 1 / 6


def test_channels_are_placed_as_the_store_places_them() -> None:
    """A single channel is on the master that has the slot of its keys."""
    store = Store(Fleet(object(), on_message=print, on_lost=print, timeout=1), "ows", timeout=1, max_message_bytes=1)
    for seed in range(20):
        master = shares(1, 16, skew=0, seed=seed).index(1)
        assert master in {key_slot(store.channel(f"room:{number}")) * 16 // 16384 for number in range(10)}


def test_costs_are_the_line_through_the_samples() -> None:
    """And rates are what fits into the share of a core."""
    cost = fit([(0, 10.0), (1, 12.0), (4, 18.0)])
    assert (cost.message, cost.process) == (pytest.approx(10), pytest.approx(2))
    assert cost.rate(5) == pytest.approx(600_000 / 20)
    assert len(list(table({"live": cost, "history": Cost(20, 3)}, 8))) == 18


@pytest.mark.parametrize("is_kept", [False, True])
async def test_a_sample_is_the_cpu_of_a_real_redis(redis_server: RedisServer, is_kept: bool) -> None:
    """More than nothing, less than a millisecond, for a message that goes to two processes."""
    cost = await asyncio.wait_for(sample(redis_server.url, 2, 2_000, is_kept=is_kept, size=100, batch=100), 60)
    assert 0 < cost < 1000
    assert not redis_server.ask("PUBSUB", "CHANNELS")
