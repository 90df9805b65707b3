"""The signs of life of one client, alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from openapi_ws.pulse import End, Ping, Pulse, Warn


def pulse(**limits: float | None) -> Pulse:
    return Pulse(0.0, **{"heartbeat": None, "max_idle": None, "max_age": None, **limits})


def test_silence_is_asked_about_once_and_then_is_death() -> None:
    """A ping after the heartbeat, the end after 1.5 of it; a sign of life begins anew."""
    client = pulse(heartbeat=10)
    assert [client.look(now) for now in range(1, 15)] == [None] * 9 + [Ping()] + [None] * 4
    client.heard()
    assert [client.look(now) for now in range(15, 30)] == [None] * 9 + [Ping()] + [None] * 4 + [End(4012, "no pong")]


@given(st.lists(st.floats(0.1, 9.9), max_size=50))
def test_a_client_that_is_heard_in_time_is_left_alone(pauses: list[float]) -> None:
    """However irregularly, as long as no pause is a heartbeat."""
    client, now = pulse(heartbeat=10), 0.0
    for pause in pauses:
        now += pause
        assert client.look(now) is None
        client.heard()


def test_a_process_that_had_no_time_gives_nobody_up() -> None:
    """After an hour in which nobody looked, a client has still the time to be heard."""
    client = pulse(heartbeat=10)
    assert [client.look(now) for now in (1, 2, 3600)] == [None] * 3
    assert client.look(3603) == Ping()
    assert client.look(7200) == End(4012, "no pong")


def test_time_in_which_nobody_listened_is_no_silence() -> None:
    """A stop of the process between ping and pong leaves the client its time, which then runs on."""
    client = pulse(heartbeat=10)
    assert client.look(10) is None
    assert client.look(15) == Ping()
    assert client.look(60, late=44) is None
    assert client.look(63) is None
    assert client.look(64) == End(4012, "no pong")


def test_idle_time_is_warned_of_and_use_begins_it_anew() -> None:
    """Ten seconds before, once; what is heard but no use does not count."""
    client = pulse(max_idle=60)
    client.heard()
    assert client.look(49) is None
    assert client.look(51) == Warn("idle", 9)
    assert client.look(52) is None
    client.used(55)
    assert client.look(56) is None
    assert client.look(106) == Warn("idle", 9)
    assert client.look(115) == End(4011, "idle")


def test_age_is_warned_of_and_nothing_helps() -> None:
    """Half of a short life before its end."""
    client = pulse(max_age=4, max_idle=100)
    client.used(1)
    assert client.look(1) is None
    assert client.look(2.5) == Warn("age", 1.5)
    client.used(3)
    assert client.look(4) == End(4011, "age")


def test_each_end_is_warned_of() -> None:
    """Also where one comes nearer while the other was averted."""
    client = pulse(max_idle=6, max_age=8)
    assert client.look(3) == Warn("idle", 3)
    client.used(4)
    assert client.look(5) == Warn("age", 3)
    assert client.look(8) == End(4011, "age")


def test_control_frames_are_allowed_at_a_rate() -> None:
    """Twenty at once, then ten a second."""
    client = pulse()
    assert [client.allows_control() for _ in range(21)] == [True] * 20 + [False]
    client.look(1)
    assert sum(client.allows_control() for _ in range(20)) in (9, 10)


def test_without_limits_nothing_is_ever_called_for() -> None:
    """None means never."""
    assert pulse().look(1e9) is None
