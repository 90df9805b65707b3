"""Floor 0, words: declared channels: families of names, the types of what they carry, and which are whose."""

from __future__ import annotations

import keyword
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from string import Formatter
from typing import Any

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from .errors import InvalidParams, SetupError, UnknownChannel
from .history import History
from .payloads import adapter_of, explain, validator
from .protocol import Message, encode

__all__ = ["Topic", "Topics"]

# How it works: in an address, a parameter stands for one or more characters, none of which is ":" or the character
# that follows the parameter. So there is one way to read a name, from left to right, and nothing to try again; two
# addresses overlap where two automata of as many states as the addresses have characters can take the same step.

SCALARS = frozenset({"string", "integer", "number", "boolean"})
"""The JSON types that a parameter may have: a name is text."""

NAME_LIMIT = 255
"""The most characters of a channel's name."""


class Topic:
    """A family of channels that are alike: ``Topic("chat:{room}", data=ChatMessage)``.

    In *address*, ``{room}`` stands for one or more visible ASCII characters other than ``:`` and the one that follows
    it. *params* gives types to parameters, whose values have one spelling each: the channel ``order:07`` is none of
    ``order:{number}`` with ``{"number": int}``. *data* is the type of what all events carry; or *events* names the
    events that there are, each with its type. *snapshot* loads what a client begins with when it subscribes. *doc* says
    to users of the API what the channels are for.

    Raises:
        SetupError: one of these is not as it should be; the message says which.
    """

    __slots__ = ("_literals", "_names", "_payloads", "address", "doc", "history", "params", "payloads", "presence",
                 "publish", "snapshot")  # fmt: skip

    def __init__(
        self,
        address: str,
        *,
        data: Any = Any,
        events: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        history: History | None = None,
        presence: bool = False,
        publish: bool = False,
        snapshot: Callable[..., Awaitable[Any]] | None = None,
        doc: str | None = None,
    ) -> None:
        self.address = address
        """The template of the channels' names."""
        self._literals, self._names = _read(address)
        self.params = self._read_params(params or {})
        """The type of each parameter, in the order of the address."""
        self.payloads = self._read_payloads(data, events)
        """The type of the data by event; the key None stands for any event."""
        self._payloads = {event: (validator(type_), type_) for event, type_ in self.payloads.items()}
        if history is not None and not isinstance(history, History):
            raise SetupError(f"topic {address!r}: write history=History(size=…, ttl=…), not {history!r}")
        self.history = history
        """How much is kept; None keeps nothing."""
        self.presence = presence
        """Clients may ask who is here."""
        self.publish = publish
        """Clients may publish."""
        self.snapshot = snapshot
        """``await snapshot(**params)`` is what a client begins with: the state that the messages then change."""
        self.doc = doc or ""
        """What the channels are for."""

    def __repr__(self) -> str:
        return f"Topic({self.address!r})"

    def channel(self, /, **params: Any) -> str:
        """The name of the channel with these parameters.

        Raises:
            ValueError: a parameter is missing, unknown or not of its type, or its text cannot stand in a name.
        """
        if params.keys() != self.params.keys():
            raise ValueError(f"topic {self.address!r} takes {_listed(self.params)}; got {_listed(params)}")
        name = self._literals[0]
        for (param, type_), literal in zip(self.params.items(), self._literals[1:], strict=True):
            try:
                value = type_.validator.validate_python(params[param])
            except ValidationError as error:
                why = explain(error).get("") or "not of its type"
                raise ValueError(f"topic {self.address!r}: {param}={params[param]!r}: {why}") from error
            name += _text(type_, value) + literal
        if self.match(name) is None:
            raise ValueError(f"topic {self.address!r}: {name!r} would not be read back: parameters are one or more "
                             "visible ASCII characters, without ':' and without the one that follows them")  # fmt: skip
        return name

    def match(self, channel: str) -> dict[str, Any] | None:
        """The parameters of *channel*, each of its type, or None: it is not of this topic. Any text is taken."""
        texts = self._split(channel)
        if texts is None or not _is_name(channel):
            return None
        values: dict[str, Any] = {}
        for (param, type_), text in zip(self.params.items(), texts, strict=True):
            try:
                values[param] = type_.validate_strings(text)
            except ValidationError:
                return None
            if _text(type_, values[param]) != text:  # else one channel would have several names
                return None
        return values

    def validate(self, event: str, data: Any) -> bytes:
        """What server code publishes, as JSON.

        Raises:
            TypeError: *data* is not of the type of *event*.
            ValueError: there is no such event.
            EncodeError: JSON cannot hold *data*.
        """
        payload = self._payloads.get(event) or self._payloads.get(None)
        if payload is None:
            raise ValueError(f"topic {self.address!r} has no event {event!r}: it has {_listed(self.payloads)}")
        type_ = payload[1]
        try:
            return encode(type_.validator.validate_python(data), type_.serializer)
        except ValidationError as error:
            where = f"topic {self.address!r}, event {event!r}"
            raise TypeError(f"{where}: {type(data).__name__} is not what it carries: {explain(error)}") from error

    def parse(self, event: str, data: Any) -> Any:
        """What a client publishes, as a value of its type.

        Raises:
            InvalidParams: there is no such event, or *data* is not of its type.
        """
        payload = self._payloads.get(event) or self._payloads.get(None)
        if payload is None:
            raise InvalidParams({"event": "no such event in this channel"})
        try:
            return payload[0](data)
        except ValidationError as error:
            errors = {f"data.{path}" if path else "data": why for path, why in explain(error).items()}
            raise InvalidParams(errors) from None

    def _split(self, channel: str) -> list[str] | None:
        """The texts of the parameters, or None."""
        first, *others = self._literals
        if not others:
            return [] if channel == first else None
        if not channel.startswith(first):
            return None
        texts, at = [], len(first)
        for literal in others:
            end = _end(channel, at, literal[:1])
            if end == at or not channel.startswith(literal, end):
                return None
            texts.append(channel[at:end])
            at = end + len(literal)
        return texts if at == len(channel) else None

    def _read_params(self, params: Mapping[str, Any]) -> dict[str, TypeAdapter[Any]]:
        if unknown := params.keys() - set(self._names):
            raise SetupError(
                f"topic {self.address!r} has no parameter {_listed(unknown)}: it has {_listed(self._names)}"
            )
        types = {}
        for name in self._names:
            types[name] = self._adapter(params.get(name, str), f"parameter {name!r}")
            try:
                fits = _is_scalar(types[name].json_schema(mode="serialization"))
            except PydanticUserError:
                fits = False
            if not fits:
                raise SetupError(f"topic {self.address!r}: the parameter {name!r} is no text, number or boolean")
        return types

    def _read_payloads(self, data: Any, events: Mapping[str, Any] | None) -> dict[str | None, TypeAdapter[Any]]:
        if events is None:
            return {None: self._adapter(data, "data")}
        if data is not Any:
            raise SetupError(f"topic {self.address!r}: say data=… for all events, or events=… for each, not both")
        if not events or not all(isinstance(event, str) for event in events):
            raise SetupError(f"topic {self.address!r}: events are names with types: {{'said': ChatMessage}}")
        return {event: self._adapter(type_, f"data of {event!r}") for event, type_ in events.items()}

    def _adapter(self, type_: Any, what: str) -> TypeAdapter[Any]:
        try:
            return adapter_of(type_, what)
        except SetupError as error:
            raise SetupError(f"topic {self.address!r}: {error}") from error


class Topics:
    """The topics of an application; a name belongs to one of them at most.

    Raises:
        SetupError: two of *topics* could have a channel in common, whatever the types of their parameters.
    """

    __slots__ = ("_by_prefix", "_lengths", "_topics")

    def __init__(self, topics: Iterable[Topic] = ()) -> None:
        self._topics = tuple(topics)
        self._by_prefix: dict[str, list[Topic]] = {}
        for topic in self._topics:
            self._refuse_overlap(topic)
            self._by_prefix.setdefault(topic._literals[0], []).append(topic)
        # Few lengths, the longest first: a name is looked up by its beginnings, not compared to every topic.
        self._lengths = sorted({len(prefix) for prefix in self._by_prefix}, reverse=True)

    def __iter__(self) -> Iterator[Topic]:
        return iter(self._topics)

    def __len__(self) -> int:
        return len(self._topics)

    def find(self, channel: str) -> Topic | None:
        """The topic that *channel* is of."""
        for length in self._lengths:
            for topic in self._by_prefix.get(channel[:length], ()):
                if topic.match(channel) is not None:
                    return topic
        return None

    def message(
        self, channel: str, event: str | None, data: Any, *, key: str | None = None
    ) -> tuple[Message, History | None]:
        """What is to be published, validated and encoded, and how much is kept of its channel.

        With no topics declared every name is a channel, and nothing is kept.

        Raises:
            UnknownChannel: topics are declared, and the channel is of none of them.
            TypeError, ValueError: *data* is not what the event carries, or there is no such event; or *key* is none, or
                the channel has no history.
            EncodeError: JSON cannot hold *data*.
        """
        topic = self.find(channel)
        if topic is not None:
            message, history = Message(channel, event or "", topic.validate(event or "", data)), topic.history
        elif self._topics:
            raise UnknownChannel
        else:
            message, history = Message.of(channel, event, data), None
        if key is not None and history is None:
            raise ValueError(f"a key needs a channel with history, which {channel!r} is not")
        return message, history

    def _refuse_overlap(self, topic: Topic) -> None:
        # Of two addresses in conflict, the text before the first parameter of one begins that of the other.
        prefix = topic._literals[0]
        for other in self._topics:
            if other is topic:
                return
            theirs = other._literals[0]
            if (prefix.startswith(theirs) or theirs.startswith(prefix)) and _overlap(topic, other):
                raise SetupError(f"a channel could be of the topic {other.address!r} and of {topic.address!r}: "
                                 "give them different beginnings")  # fmt: skip


# -- reading an address ---------------------------------------------------------------------------------------


def _read(address: str) -> tuple[list[str], list[str]]:
    """The texts around the parameters, one more than there are parameters, and the parameters' names."""
    literals, names = [""], list[str]()
    try:
        fields = list(Formatter().parse(address))
    except (ValueError, TypeError) as error:
        raise SetupError(f"{address!r} is no address of a topic, e.g. 'chat:{{room}}': {error}") from None
    for literal, name, spec, conversion in fields:
        literals[-1] += literal
        if name is None:
            continue
        if spec or conversion or not name.isidentifier() or not name.isascii() or keyword.iskeyword(name):
            raise SetupError(f"topic {address!r}: a parameter is a name in braces, and params=… gives its type")
        if name in names:
            raise SetupError(f"topic {address!r} has two parameters named {name!r}")
        if names and not literals[-1]:
            raise SetupError(f"topic {address!r}: between {names[-1]!r} and {name!r} there has to be some text")
        names.append(name)
        literals.append("")
    written = literals[0] + "".join(f"{{{name}}}{text}" for name, text in zip(names, literals[1:], strict=True))
    if not address or written != address or not _is_name(address):
        raise SetupError(f"topic {address!r}: an address is visible ASCII, at most {NAME_LIMIT} characters, and braces "
                         "are for parameters")  # fmt: skip
    return literals, names


def _is_name(text: str) -> bool:
    return len(text) <= NAME_LIMIT and text.isascii() and text.isprintable() and " " not in text


def _end(channel: str, start: int, following: str) -> int:
    """Where the parameter ends that begins at *start*."""
    ends = [end for stop in {":", following or ":"} if (end := channel.find(stop, start)) >= 0]
    return min(ends, default=len(channel))


def _listed(names: Iterable[str | None]) -> str:
    return ", ".join(sorted(map(str, names))) or "none"


# -- parameters as text ---------------------------------------------------------------------------------------


def _is_scalar(schema: Mapping[str, Any]) -> bool:
    """All values of this JSON Schema, as pydantic writes it, are texts, numbers or booleans."""
    definitions = schema.get("$defs", {})
    if "$ref" in schema:
        schema = definitions.get(schema["$ref"].rpartition("/")[2], {})
    if ways := schema.get("anyOf") or schema.get("oneOf"):
        return all(_is_scalar({"$defs": definitions, **way}) for way in ways)
    return schema.get("type") in SCALARS


def _text(type_: TypeAdapter[Any], value: Any) -> str:
    """How *value* stands in a name: as in JSON, without quotes."""
    plain = type_.dump_python(value, mode="json")
    if isinstance(plain, str):
        return plain
    return str(plain).lower() if isinstance(plain, bool) else str(plain)


# -- addresses that overlap -----------------------------------------------------------------------------------

State = tuple[str, str, bool]
"""One character of an address: itself or, for a parameter, "" and those it excludes; and whether it may repeat."""


def _overlap(one: Topic, other: Topic) -> bool:
    """Some name is one of both topics, if the types of parameters are left aside."""
    tail, their_tail = one._literals[-1], other._literals[-1]
    if not (tail.endswith(their_tail) or their_tail.endswith(tail)):
        return False
    mine, theirs = _states(one), _states(other)
    reached, todo = {(0, 0)}, [(0, 0)]
    while todo:
        i, j = todo.pop()
        if (i, j) == (len(mine), len(theirs)):
            return True
        # Either goes on to its next character, or repeats the one it is in.
        steps = {
            (to_i, to_j)
            for to_i, my_state in _next(mine, i)
            for to_j, their_state in _next(theirs, j)
            if _meet(my_state, their_state)
        }
        todo += steps - reached
        reached |= steps
    return False


def _states(topic: Topic) -> list[State]:
    states = [(char, "", False) for char in topic._literals[0]]
    for literal in topic._literals[1:]:
        states.append(("", ":" + literal[:1], True))
        states += [(char, "", False) for char in literal]
    return states


def _next(states: list[State], at: int) -> list[tuple[int, State]]:
    steps = [(at + 1, states[at])] if at < len(states) else []
    if at and states[at - 1][2]:
        steps.append((at, states[at - 1]))
    return steps


def _meet(one: State, other: State) -> bool:
    """Some character is one of both."""
    (mine, excluded, _), (theirs, also, _) = one, other
    if mine and theirs:
        return mine == theirs
    return mine not in also if mine else theirs not in excluded if theirs else True
