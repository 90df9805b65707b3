"""Serve the example: ``python -m example``, then open the address it prints in two tabs."""

import argparse
import multiprocessing

from aiohttp import web

from .app import create_app


def serve(args: argparse.Namespace, *, is_first: bool = False) -> None:
    """Serve until a signal ends the process; of several workers, the first says where."""
    say = (lambda text: print(text, flush=True)) if is_first else None  # a pipe would hold it back without the flush
    where = {"host": args.host, "port": args.port, "reuse_port": args.workers > 1 or None}
    web.run_app(create_app(args.redis), **where, print=say, keepalive_timeout=20, backlog=4096)  # all come back at once


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m example", description="Chat in rooms, beside a live chart.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", default=8080, type=int, help="port, 0 for a free one (default: %(default)s)")
    parser.add_argument("--redis", metavar="URL", help="what several workers share, e.g. redis://localhost")
    parser.add_argument("--workers", default=1, type=int, help="processes that serve (default: %(default)s)")
    args = parser.parse_args()
    if args.workers > 1 and not (args.redis and args.port):
        parser.error("several workers need --redis, to hear of each other, and a --port other than 0, to share")
    for _ in range(args.workers - 1):  # daemons end with this process
        multiprocessing.Process(target=serve, args=(args,), daemon=True).start()
    serve(args, is_first=True)
