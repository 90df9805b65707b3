"""fastapi_websocket_rpc, which validates envelopes and results; the arguments are validated by hand."""

import asyncio  # no annotations of the future: fastapi_websocket_rpc reads those of a method as they are

from fastapi import FastAPI
from fastapi_websocket_rpc import RpcMethodsBase, WebsocketRPCEndpoint
from fastapi_websocket_rpc.logger import LoggingModes, logging_config

from .pydantic_calls import Greeting
from .uvicorn_server import serve

logging_config.set_mode(LoggingModes.NO_LOGS)


class Methods(RpcMethodsBase):
    """The methods."""

    async def echo(self, message: str = "") -> Greeting:
        """Answer at once."""
        return Greeting(message=message)

    async def slow(self, message: str = "") -> Greeting:
        """Answer after 50 ms."""
        async with asyncio.timeout(1):
            await asyncio.sleep(0.05)
        return Greeting(message=message)


app = FastAPI()
WebsocketRPCEndpoint(Methods()).register_route(app, "/")
if __name__ == "__main__":
    serve(app)
