"""The inference server: `python -m dropforge.serving --root <state>/serving --port 8000`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import re
import signal
import socket
import sys
from pathlib import Path

from aiohttp import web

from dropforge.domain.errors import BadName
from dropforge.serving.converge import Converger
from dropforge.serving.server import Limits, Server
from dropforge.serving.source import open_source

log = logging.getLogger("dropforge.serving")

PARENT_POLL_SECONDS = 0.25
# How long requests in flight get to finish after SIGTERM.
SHUTDOWN_SECONDS = 30.0


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m dropforge.serving", description="Serve ONNX models over HTTP.")
    options.add_argument("--root", type=Path, required=True, help="folder with desired/ and replicas/")
    options.add_argument("--port", type=int, required=True, help="0: any free one; the log says which")
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--replica", help="name in the reports (default: host name and port)")
    options.add_argument("--key-env", default="DROPFORGE_INFERENCE_KEY", help="variable that holds the key")
    options.add_argument("--no-key", action="store_true", help="answer everybody")
    options.add_argument("--poll", type=float, default=0.1, help="seconds between looks at the desired states")
    options.add_argument("--max-body-bytes", type=int, default=Limits.body_bytes)
    options.add_argument("--max-queue", type=int, default=Limits.queue, help="requests at once before 429")
    options.add_argument(
        "--die-with-parent",
        nargs="?",
        type=int,
        const=os.getppid(),
        metavar="PID",
        help="end when the parent process (or, already at the start, anyone but PID) is the parent no more",
    )
    return options


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; 0 after a clean end, 2 when it cannot start."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    key = os.environ.get(options.key_env, "").strip() or None
    if key is None and not options.no_key:
        log.error(
            "no key: wanted one in the variable %s; set it, or pass --no-key to answer everybody", options.key_env
        )
        return 2
    # What is loaded by now stays: looking through it for garbage would hold up requests, and so would looking often.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    return asyncio.run(_serve(options, None if options.no_key else key))


async def _serve(options: argparse.Namespace, key: str | None) -> int:
    try:
        listener = _listen(options.host, options.port)
    except OSError as error:
        log.error(
            "cannot listen on %s:%d: %s; choose another --host or --port", options.host, options.port, error.strerror
        )
        return 2
    port = listener.getsockname()[1]
    replica = options.replica or re.sub(r"[^A-Za-z0-9._-]", "-", f"{socket.gethostname()}-{port}")
    try:
        source = open_source(options.root, replica)
    except BadName as error:
        log.error("%s", error.message)
        listener.close()
        return 2
    converger = Converger(source, replica, options.poll)
    server = Server(converger, key, Limits(options.max_body_bytes, options.max_queue))
    runner = web.AppRunner(server.app(), access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await web.SockSite(runner, listener).start()
    log.info("replica %s listens on http://%s:%d", replica, options.host, port)
    work = [asyncio.create_task(converger.run()), asyncio.create_task(stop.wait())]
    if options.die_with_parent is not None:
        work.append(asyncio.create_task(_parent_gone(options.die_with_parent)))
    done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
    log.info("ending: finishing what is in flight")
    await runner.cleanup()
    for task in work:
        task.cancel()
    await asyncio.gather(*work, return_exceptions=True)
    await converger.close()
    server.close()
    return 1 if work[0] in done else 0


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


async def _parent_gone(parent: int) -> None:
    # Not PR_SET_PDEATHSIG: that fires when the thread that started this process ends, which may be long before its
    # process does.
    while os.getppid() == parent:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(PARENT_POLL_SECONDS)
    log.warning("process %d, which started this one, is gone", parent)


if __name__ == "__main__":
    sys.exit(main())
