"""The same validated echo for peers that have no calls of their own: an envelope of pydantic, in and out."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import BaseModel


class Greeting(BaseModel):
    """What is called with, and answered."""

    message: str


class Call(BaseModel):
    """What comes."""

    id: int
    method: str
    payload: Greeting


class Reply(BaseModel):
    """What goes."""

    id: int
    method: str
    response: Greeting


class Publication(BaseModel):
    """A call of ``publish`` or, without an event, of ``subscribe``."""

    id: int
    method: str
    payload: dict[str, Any]


def answered(text: str | bytes) -> str:
    """The answer to a call of ``echo``."""
    call = Call.model_validate_json(text)
    return Reply(id=call.id, method=call.method, response=call.payload).model_dump_json()


async def answer(text: str | bytes) -> str:
    """The answer to a call of ``echo`` or ``slow``."""
    call = Call.model_validate_json(text)
    if call.method == "slow":
        async with asyncio.timeout(1):
            await asyncio.sleep(0.05)
    return Reply(id=call.id, method=call.method, response=call.payload).model_dump_json()
