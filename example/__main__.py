"""Serve the example: ``python -m example``, then open the address it prints in two tabs."""

import argparse

from aiohttp import web

from .app import create_app

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m example", description="Chat in rooms, beside a live chart.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", default=8080, type=int, help="port, 0 for a free one (default: %(default)s)")
    options = parser.parse_args()
    web.run_app(
        create_app(),
        host=options.host,
        port=options.port,
        keepalive_timeout=20,  # seconds for a connection that asks nothing; open WebSockets stay
        backlog=4096,  # after a restart all clients come back at once, too many for the default of 128
        print=lambda text: print(text, flush=True),  # without the flush, a pipe would hold the address back
    )
