"""FastAPI with pydantic by hand: what a reader of its tutorial would write."""

from __future__ import annotations

from fastapi import FastAPI, WebSocket

from .pydantic_calls import answer
from .uvicorn_server import serve

app = FastAPI()


@app.websocket("/")
async def stream(websocket: WebSocket) -> None:
    """Answer one call after another."""
    await websocket.accept()
    while True:
        await websocket.send_text(await answer(await websocket.receive_text()))


if __name__ == "__main__":
    serve(app)
