"""Typed WebSocket endpoints for aiohttp: RPC, and pub/sub in one process or over a broker."""

from .brokers.local import LocalBroker
from .channels import Channel, Channels, Event
from .errors import (
    CannotPublish,
    CannotSubscribe,
    ChannelCallbackError,
    EncodeError,
    InvalidParams,
    RpcError,
    SetupError,
    UnknownChannel,
)
from .history import History, Position
from .manager import SocketsManager, WsHandlerType
from .outbox import conflate, disconnect, drop_oldest
from .path import WsPathMixin
from .presence import Presence
from .pubsub import Publish, Subscribe
from .rpc import ws_rpc
from .topics import Topic
from .websocket import Websocket

__all__ = [
    "CannotPublish",
    "CannotSubscribe",
    "Channel",
    "ChannelCallbackError",
    "Channels",
    "EncodeError",
    "Event",
    "History",
    "InvalidParams",
    "LocalBroker",
    "Position",
    "Presence",
    "Publish",
    "RpcError",
    "SetupError",
    "SocketsManager",
    "Subscribe",
    "Topic",
    "UnknownChannel",
    "Websocket",
    "WsHandlerType",
    "WsPathMixin",
    "conflate",
    "disconnect",
    "drop_oldest",
    "ws_rpc",
]
