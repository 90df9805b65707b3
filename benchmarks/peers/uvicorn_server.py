"""How the ASGI peers are served: one process, sans-I/O websockets, which is uvicorn's fastest."""

from __future__ import annotations

from typing import Any

import uvicorn

from . import listener


def serve(app: Any) -> None:
    """Serve *app* until the process is killed."""
    options = uvicorn.Config(app, ws="websockets-sansio", loop="asyncio", log_level="critical", lifespan="auto")
    uvicorn.Server(options).run(sockets=[listener()])
