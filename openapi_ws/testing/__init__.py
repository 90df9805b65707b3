"""Floor 5, tools: what a broker promises, as tests that whoever makes one runs over it."""

from .live import LiveContract
from .nodes import Contract
from .recovery import BrokerContract, HistoryContract

__all__ = ["BrokerContract", "Contract", "HistoryContract", "LiveContract"]
