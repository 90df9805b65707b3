"""Frames of one socket: a call that waits holds nobody up, and one that does not costs no task."""

from __future__ import annotations

import asyncio
import contextvars
import json
from typing import Any

import pytest
from aiohttp import web
from conftest import Serve, until

from openapi_ws import WsPathMixin, ws_rpc
from openapi_ws.rpc import methods_of

VAR = contextvars.ContextVar("VAR", default="nobody")


VIEWS: list[Stream] = []


class Stream(WsPathMixin, web.View):
    """Methods that say in which task and context they run."""

    max_calls = 4

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        VIEWS.append(self)
        self.gate = asyncio.Event()
        self.tasks: list[asyncio.Task[Any] | None] = []
        self.code: int | None = None

    async def disconnected(self, code: int) -> None:
        self.code = code

    async def ws_rpc_quick(self) -> int:
        self.tasks.append(asyncio.current_task())
        return len(asyncio.all_tasks())

    async def ws_rpc_wait(self) -> str:
        self.tasks.append(asyncio.current_task())
        await self.gate.wait()
        return "waited"

    async def ws_rpc_open(self) -> None:
        self.gate.set()

    async def ws_rpc_maybe(self, payload: bool) -> bool:
        if payload:
            await self.gate.wait()
        return payload

    async def ws_rpc_bounded(self) -> str:
        try:
            async with asyncio.timeout(0.02):
                await self.gate.wait()
        except TimeoutError:
            return "timed out"
        return "never"

    async def ws_rpc_sign(self, payload: str) -> str:
        before = VAR.get()
        VAR.set(payload)
        return before

    async def ws_rpc_sign_slowly(self, payload: str) -> list[str]:
        before = VAR.get()
        VAR.set(payload)
        await self.gate.wait()
        return [before, VAR.get()]

    async def ws_rpc_spoil(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    @ws_rpc(ordered=True)
    async def ws_rpc_lane(self, payload: bool) -> bool:
        if payload:
            await self.gate.wait()
        return payload


@pytest.fixture(autouse=True)
def _nothing_learned() -> None:
    """Each test is the first to call the methods."""
    VIEWS.clear()
    for method in methods_of(Stream).values():
        method.waits = False


async def test_the_first_wait_of_a_method_leaves_the_socket_free(serve: Serve) -> None:
    """Calls behind a method that waits for the first time are answered while it still waits, and so are pings."""
    served = await serve(Stream)
    client = await served.connect()
    await client.send({"id": 1, "method": "wait"})
    await client.call("quick")
    await client.ws.ping()
    assert (await client.ask("open", id=2))["id"] == 2
    assert await client.receive() == {"id": 1, "method": "wait", "response": "waited"}


async def test_quick_calls_share_the_task_that_reads(serve: Serve) -> None:
    """A call that does not wait has no task of its own."""
    served = await serve(Stream)
    client = await served.connect()
    await client.call("quick")
    tasks = await client.call("quick")
    assert await client.call("quick") == tasks
    (view,) = VIEWS
    assert len(set(view.tasks)) == 1


async def test_any_number_of_quick_calls_may_come_at_once(serve: Serve) -> None:
    """The bound on calls in flight is none on calls that end at once, however many one segment holds."""
    client = await (await serve(Stream)).connect_raw()
    for n in range(200):
        client.frame(json.dumps({"id": n, "method": "quick"}).encode())
    answers = [json.loads((await client.read())[1]) for _ in range(200)]
    assert [answer["id"] for answer in answers] == list(range(200))
    assert all("response" in answer for answer in answers)


async def test_a_method_is_taken_for_what_its_last_call_was(serve: Serve) -> None:
    """One that has waited gets a task at once, until a call of it ends without having waited."""
    client = await (await serve(Stream)).connect()
    method = methods_of(Stream)["maybe"]
    await client.send({"id": 1, "method": "maybe", "payload": True})
    await until(lambda: method.waits)
    assert await client.call("maybe", False) is False
    assert not method.waits
    await client.call("open")


async def test_a_timeout_in_a_method_ends_the_method_alone(serve: Serve) -> None:
    """Entered in the task that reads, it cancels neither the reading nor another call."""
    client = await (await serve(Stream)).connect()
    for _ in range(3):
        await client.send({"id": 1, "method": "bounded"})
        await client.send({"id": 2, "method": "quick"})
        answers = {answer["id"]: answer for answer in (await client.receive(), await client.receive())}
        assert answers[1]["response"] == "timed out"


async def test_context_variables_stay_in_their_call(serve: Serve) -> None:
    """What a call sets, no other call of the socket reads; the call itself does, also after it has waited."""
    client = await (await serve(Stream)).connect()
    assert [await client.call("sign", name) for name in "abc"] == ["nobody"] * 3
    for id_ in (1, 2):
        await client.send({"id": id_, "method": "sign_slowly", "payload": f"slow {id_}"})
    await client.call("sign", "d")
    await client.send({"id": 3, "method": "open"})
    answers = {answer["id"]: answer["response"] for answer in [await client.receive() for _ in range(3)]}
    assert (answers[1], answers[2]) == (["nobody", "slow 1"], ["nobody", "slow 2"])


async def test_a_method_that_cancels_its_own_task_costs_its_answer_and_no_more(serve: Serve) -> None:
    """The socket is read on by another task."""
    client = await (await serve(Stream)).connect()
    for _ in range(2):
        assert (await client.error("spoil"))["code"] == -32603
        await client.call("quick")


async def test_ordered_calls_keep_their_order_whichever_of_them_waits(serve: Serve) -> None:
    """One that would end at once waits for the one before it."""
    client = await (await serve(Stream)).connect()
    for _ in range(2):
        for id_, waits in enumerate([True, False, False]):
            await client.send({"id": id_, "method": "lane", "payload": waits})
        await client.ask("quick")
        await client.ask("open", id="open")
        answers = client.pushed + [await client.receive() for _ in range(3 - len(client.pushed))]
        assert [answer["id"] for answer in answers] == [0, 1, 2]
        client.pushed.clear()


async def test_a_client_that_leaves_ends_the_call_that_has_taken_the_first_task(serve: Serve) -> None:
    """However often the reading has changed its task, all of them end with the socket."""
    served = await serve(Stream)
    client = await served.connect()
    for id_, method in enumerate(["wait", "maybe", "bounded"]):
        await client.send({"id": id_, "method": method, "payload": True})
    await client.call("quick")
    (view,) = VIEWS
    await client.ws.close(code=4321)
    await until(lambda: view.code == 4321)
    assert not served.manager.sockets
    await until(lambda: not [task for task in view.tasks if task is not None and not task.done()])
