"""Declared channels, alone."""

from __future__ import annotations

import datetime
import enum
import uuid
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from openapi_ws.errors import EncodeError, InvalidParams, SetupError
from openapi_ws.history import History
from openapi_ws.topics import NAME_LIMIT, Topic, Topics


class Said(BaseModel):
    text: str
    stars: int = 0


class Side(enum.Enum):
    BUY = "buy"
    SELL = "sell"


# -- names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "params", "yes", "no"),
    [
        ("lobby", {}, {"lobby": {}}, ["", "lobby2", "lobb", "Lobby"]),
        ("chat:{room}", {}, {"chat:a": {"room": "a"}, "chat:a-b.c": {"room": "a-b.c"}},
         ["chat:", "chat", "chat:a:b", "chat:a:", "xchat:a", "", "chat:\x00", "chat: ", "chat:é"]),
        ("{a}:{b}", {}, {"x:y": {"a": "x", "b": "y"}}, ["x", ":", "x:", ":y", "x:y:z"]),
        ("{a}-{b}", {}, {"x-y": {"a": "x", "b": "y"}, "x-y-z": {"a": "x", "b": "y-z"}}, ["x", "-", "x-", "-y", "x:-y"]),
        ("v{major}.{minor}:all", {}, {"v1.2:all": {"major": "1", "minor": "2"}},
         ["v1:all", "v1.2", "v1.2:al", "v.2:all"]),
        ("a{x}bc{y}", {}, {"a1bc2": {"x": "1", "y": "2"}}, ["a1b2bc3", "abc2"]),
        ("{a}a", {}, {"ba": {"a": "b"}}, ["aa", "baa", "a"]),
        ("o:{n}", {"n": int}, {"o:7": {"n": 7}, "o:-7": {"n": -7}, "o:0": {"n": 0}},
         ["o:07", "o:+7", "o:7.0", "o:x", "o:1_0", "o:-0", f"o:{'9' * 200}x"]),
        ("f:{on}", {"on": bool}, {"f:true": {"on": True}, "f:false": {"on": False}}, ["f:1", "f:True", "f:yes"]),
        ("d:{day}", {"day": datetime.date}, {"d:2026-01-31": {"day": datetime.date(2026, 1, 31)}},
         ["d:2026-1-31", "d:0"]),
        ("u:{id}", {"id": uuid.UUID}, {f"u:{uuid.UUID(int=7)}": {"id": uuid.UUID(int=7)}},
         [f"u:{uuid.UUID(int=7).hex}"]),
        ("s:{side}", {"side": Side}, {"s:buy": {"side": Side.BUY}}, ["s:BUY", "s:hold"]),
        ("s:{side}", {"side": Literal["buy"]}, {"s:buy": {"side": "buy"}}, ["s:sell"]),
        ("t:{symbol}", {"symbol": Annotated[str, Field(pattern="^[A-Z]{1,5}$")]}, {"t:ABC": {"symbol": "ABC"}},
         ["t:abc", "t:ABCDEF"]),
    ],
)  # fmt: skip
def test_which_channels_are_of_a_topic(
    address: str, params: dict[str, Any], yes: dict[str, dict[str, Any]], no: list[str]
) -> None:
    """Those that the address reads from left to right, whose parameters have their type and its one spelling."""
    topic = Topic(address, params=params)
    for name, values in yes.items():
        assert topic.match(name) == values
        assert topic.channel(**values) == name
    assert [name for name in no if topic.match(name) is not None] == []


addresses = st.lists(st.sampled_from(["a", "b", "-", ":", "{"]), min_size=1, max_size=7).map(
    lambda parts: "".join(f"{{p{n}}}" if part == "{" else part for n, part in enumerate(parts))
)


def topic_or_none(address: str) -> Topic | None:
    try:
        return Topic(address)
    except SetupError:
        return None


topics = addresses.map(topic_or_none).filter(lambda topic: topic is not None)


@given(topics, st.text("ab-:", max_size=8))
def test_a_channel_that_matches_is_made_by_its_parameters(topic: Topic, name: str) -> None:
    """``channel(**match(name)) == name``."""
    values = topic.match(name)
    assert values is None or topic.channel(**values) == name


@given(topics, st.data())
def test_a_channel_gives_its_parameters_back(topic: Topic, data: st.DataObject) -> None:
    """``match(channel(**values)) == values``, or the values are refused."""
    values = {name: data.draw(st.text("ab-: é", max_size=3)) for name in topic.params}
    try:
        name = topic.channel(**values)
    except ValueError:
        return
    assert topic.match(name) == values


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({}, "takes n, room; got none"),
        ({"room": "a"}, "got room"),
        ({"room": "a", "n": 1, "x": 1}, "got n, room, x"),
        ({"room": 1, "n": 1}, "room=1"),
        ({"room": "a", "n": "x"}, "n='x'"),
        ({"room": "a:b", "n": 1}, "'chat:a:b:1'"),
        ({"room": "", "n": 1}, "'chat::1'"),
        ({"room": "a b", "n": 1}, "'chat:a b:1'"),
        ({"room": "a\n", "n": 1}, "a\\\\n"),
        ({"room": "é", "n": 1}, "'chat:é:1'"),
        ({"room": "a" * NAME_LIMIT, "n": 1}, "'chat:aaa"),
    ],
)
def test_a_channel_that_cannot_be_is_not_named(params: dict[str, Any], named: str) -> None:
    """Each parameter once, of its type, and such that a reader of the name finds it; the error names the culprit."""
    with pytest.raises(ValueError, match=named):
        Topic("chat:{room}:{n}", params={"n": int}).channel(**params)


# -- data -----------------------------------------------------------------------------------------------------


def test_server_code_publishes_the_type() -> None:
    """As a model, or as what makes one; JSON comes out."""
    topic = Topic("chat:{room}", data=Said)
    assert topic.validate("said", Said(text="hi")) == b'{"text":"hi","stars":0}'
    assert topic.validate("any", {"text": "hi", "stars": 2}) == b'{"text":"hi","stars":2}'


def test_the_wrong_type_raises_in_the_publisher() -> None:
    """The error says where it was, and which field is wrong."""
    topic = Topic("chat:{room}", data=Said)
    with pytest.raises(TypeError, match=r"'chat:{room}', event 'said': dict is not .*'text': 'required'"):
        topic.validate("said", {})
    with pytest.raises(TypeError, match="int is not what it carries"):
        topic.validate("said", 7)
    with pytest.raises(EncodeError):
        Topic("any").validate("said", object())


def test_a_client_is_told_what_is_wrong_with_its_data() -> None:
    """By field path below ``data``, as for the payload of a method."""
    topic = Topic("chat:{room}", data=Said)
    assert topic.parse("said", {"text": "hi"}) == Said(text="hi")
    with pytest.raises(InvalidParams) as raised:
        topic.parse("said", {"stars": "x"})
    assert raised.value.errors is not None
    assert raised.value.errors["data.text"] == "required"
    assert set(raised.value.errors) == {"data.text", "data.stars"}
    with pytest.raises(InvalidParams) as raised:
        topic.parse("said", 7)
    assert list(raised.value.errors or ()) == ["data"]


def test_a_list_of_wrong_items_is_refused_early() -> None:
    """100,000 wrong items cost one error, not as many."""
    with pytest.raises(InvalidParams) as raised:
        Topic("bulk", data=list[int]).parse("add", ["x"] * 100_000)
    assert list(raised.value.errors or ()) == ["data.0"]


def test_events_have_types_of_their_own() -> None:
    """And there are no others."""
    topic = Topic("chat:{room}", events={"said": Said, "left": str})
    assert topic.validate("left", "bob") == b'"bob"'
    assert topic.parse("left", "bob") == "bob"
    with pytest.raises(TypeError):
        topic.validate("left", Said(text="hi"))
    with pytest.raises(ValueError, match="no event 'waved': it has left, said"):
        topic.validate("waved", "bob")
    with pytest.raises(InvalidParams) as raised:
        topic.parse("waved", "bob")
    assert raised.value.errors == {"event": "no such event in this channel"}
    assert set(topic.payloads) == {"said", "left"}


def test_a_topic_of_any_data_takes_all_json() -> None:
    """Nothing declared is nothing refused."""
    topic = Topic("any")
    assert topic.validate("", None) == b"null"
    assert topic.parse("", [1, {"a": None}]) == [1, {"a": None}]
    assert list(topic.payloads) == [None]


# -- what is refused at start ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "options", "named"),
    [
        ("", {}, "address"),
        (7, {}, "address"),
        ("chat:{}", {}, "name in braces"),
        ("chat:{0}", {}, "name in braces"),
        ("chat:{a-b}", {}, "name in braces"),
        ("chat:{a.b}", {}, "name in braces"),
        ("chat:{class}", {}, "name in braces"),
        ("chat:{é}", {}, "name in braces"),
        ("chat:{room:int}", {}, "name in braces"),
        ("chat:{room!r}", {}, "name in braces"),
        ("chat:{room", {}, "address"),
        ("chat:room}", {}, "address"),
        ("chat:{{room}}", {}, "braces"),
        ("chat:{room:}", {}, "braces"),
        ("chat:{a}:{a}", {}, "two parameters named 'a'"),
        ("chat:{a}{b}", {}, "between 'a' and 'b'"),
        ("chat room", {}, "visible ASCII"),
        ("a" * (NAME_LIMIT + 1), {}, "characters"),
        ("chat:{a}", {"params": {"b": int, "c": int}}, "no parameter b, c: it has a"),
        ("chat:{a}", {"params": {"a": Said}}, "'a' is no text"),
        ("chat:{a}", {"params": {"a": list[str]}}, "'a' is no text"),
        ("chat:{a}", {"params": {"a": Any}}, "'a' is no text"),
        ("chat:{a}", {"params": {"a": object()}}, "parameter 'a'"),
        ("chat", {"data": object()}, "'chat': the type of the data"),
        ("chat", {"events": {"said": object()}}, "'chat': the type of the data of 'said'"),
        ("chat", {"events": {}}, "events"),
        ("chat", {"events": {1: str}}, "events"),
        ("chat", {"events": {"said": str}, "data": str}, "not both"),
        ("chat", {"history": 100}, "history=History"),
    ],
)
def test_a_topic_with_a_mistake_is_refused(address: Any, options: dict[str, Any], named: str) -> None:
    """Where it is written, with what to write instead."""
    with pytest.raises(SetupError, match=named):
        Topic(address, **options)


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("chat:{room}", "chat:{id}", True),
        ("chat:{x}", "chat:lobby", True),
        ("chat", "chat", True),
        ("{a}:{b}", "chat:{room}", True),
        ("{a}:x", "chat:{b}", True),
        ("a-{x}", "{y}-b", True),
        ("{a}b", "{c}bb", False),
        ("{a}-x", "{b}x", True),
        ("chat:{x}", "chat:{x}:typing", False),
        ("chat:{x}", "chats:{x}", False),
        ("chat", "chat:{x}", False),
        ("a-{x}", "b-{x}", False),
        ("{x}-a", "{x}-b", False),
        ("{x}.{y}", "{x}:{y}", False),
        ("a{x}", "a", False),
    ],
)
def test_topics_that_share_a_channel_are_refused(one: str, other: str, shared: bool) -> None:
    """Whichever comes first, and the error names both."""
    for pair in ([one, other], [other, one]):
        if not shared:
            assert len(Topics(map(Topic, pair))) == 2
            continue
        with pytest.raises(SetupError) as raised:
            Topics(map(Topic, pair))
        assert repr(one) in str(raised.value)
        assert repr(other) in str(raised.value)


@given(topics, topics, st.lists(st.text("abx-:", min_size=1, max_size=8), max_size=50))
def test_no_channel_is_of_two_topics(one: Topic, other: Topic, names: list[str]) -> None:
    """What is not refused shares no name."""
    try:
        both = Topics([one, other])
    except SetupError:
        return
    for name in names:
        found = [topic for topic in (one, other) if topic.match(name) is not None]
        assert [both.find(name)] == (found or [None])


# -- finding --------------------------------------------------------------------------------------------------


def test_a_channel_is_found() -> None:
    """By the literal text before its first parameter; a parameter of the wrong type is no channel."""
    lobby, room, wild = Topic("chat:lobby:all"), Topic("chat:{room}"), Topic("{any}-x")
    order = Topic("order:{n}", params={"n": int})
    found = Topics([lobby, room, order, wild])
    assert list(found) == [lobby, room, order, wild]
    names = ["chat:lobby:all", "chat:lobby", "order:7", "order:x", "a-x", "chat:a:b", "", "chat:", ":" * 10_000]
    assert [found.find(name) for name in names] == [lobby, room, order, None, wild, None, None, None, None]
    assert Topics().find("chat") is None


def test_a_topic_among_thousands_is_found_without_asking_the_others() -> None:
    """A name is matched with those topics alone that begin as it does."""
    asked = []

    class Asked(Topic):
        def match(self, channel: str) -> dict[str, Any] | None:
            asked.append(self.address)
            return super().match(channel)

    many = Topics(Asked(f"app:kind{n}:{{id}}") for n in range(2000))
    found = many.find("app:kind1234:a")
    assert found is not None
    assert found.address == "app:kind1234:{id}"
    assert asked == ["app:kind1234:{id}"]


def test_a_topic_says_what_it_was_told() -> None:
    """Its attributes are for documents and brokers."""
    topic = Topic("chat:{room}", history=History(size=3), presence=True, publish=True, doc="Talk.")
    assert (topic.history, topic.presence, topic.publish, topic.doc) == (History(size=3), True, True, "Talk.")
    plain = Topic("plain")
    assert (plain.history, plain.presence, plain.publish, plain.doc) == (None, False, False, "")
    assert repr(topic) == "Topic('chat:{room}')"
