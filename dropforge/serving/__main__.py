"""The inference server: `python -m dropforge.serving --root <state>/serving --port 8000`.

In a container the environment says the rest: DROPFORGE_STORAGE instead of --root, DROPFORGE_SERVE_PROVIDER (cpu, cuda,
tensorrt), DROPFORGE_SERVE_CACHE and DROPFORGE_SERVE_CACHE_MB (models of a storage account), DROPFORGE_SERVE_NO_KEY,
DROPFORGE_SERVE_WORKERS, DROPFORGE_SERVE_LOG_REQUESTS, and DROPFORGE_DEPLOYMENT (told in the reports).
"""

from __future__ import annotations

if __name__ == "__main__":
    import signal

    from dropforge.serving.allocator import start_again_for_models

    # It would end the process until there is something to do at it. Nothing is missed: the certificate is read later.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Before anything large is loaded.
    start_again_for_models()

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import re
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import uvloop

from dropforge import telemetry
from dropforge.domain.errors import DropforgeError
from dropforge.domain.shares import shares_of, words_of
from dropforge.serving.access_log import AccessLog, open_access_log
from dropforge.serving.converge import KEEP_PREVIOUS_SECONDS, Converger
from dropforge.serving.http1 import Connection, Connections, Limits
from dropforge.serving.memory import MIB, Budget
from dropforge.serving.mirror import wait_for_lanes
from dropforge.serving.polling import default_seconds
from dropforge.serving.provider import DEVICE, SETTING, gpus_here, told
from dropforge.serving.provider import wanted as wanted_provider
from dropforge.serving.server import Server
from dropforge.serving.source import open_source
from dropforge.serving.tls import Certificate
from dropforge.serving.watch import open_watch
from dropforge.serving.workers import Supervisor, devices, reserve
from dropforge.serving.workers import wanted as wanted_workers

if TYPE_CHECKING:
    from dropforge.serving.tokens import EntraTokens

log = logging.getLogger("dropforge.serving")

PARENT_POLL_SECONDS = 0.25
# Open files at most, and those that are no connections.
MOST_FILES = 65_536
OTHER_FILES = 128
# How long requests in flight get to finish after SIGTERM.
SHUTDOWN_SECONDS = 30.0
# And the copies that a candidate is run on.
LANE_SECONDS = 1.0
SWITCH_SECONDS = 0.0001
# What `--log-requests` says where it is not given.
LOG_REQUESTS = "DROPFORGE_SERVE_LOG_REQUESTS"

# What the ports speak, by its names in TLS.
_PROTOCOLS = ("http/1.1", "h2")
# Who connects and does not say hello, or good-bye, is not waited for.
_TLS_TIMES: dict[str, Any] = {"ssl_handshake_timeout": 10.0, "ssl_shutdown_timeout": 5.0}
_CANNOT_LISTEN = "cannot listen on %s:%d: %s; choose another --host, --port or --grpc-port"


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m dropforge.serving", description="Serve ONNX models over HTTP.")
    options.add_argument(
        "--root",
        default="",
        help="folder with desired/ and replicas/, or the URL of a container (default: that of the DROPFORGE_STORAGE)",
    )
    options.add_argument("--port", type=int, required=True, help="0: any free one; the log says which")
    options.add_argument(
        "--grpc-port",
        type=int,
        default=os.environ.get("DROPFORGE_GRPC_PORT") or None,
        help="also speak gRPC, on this port (default: do not)",
    )
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--replica", help="name in the reports (default: host name and port)")
    options.add_argument("--key-env", default="DROPFORGE_INFERENCE_KEY", help="variable that holds the key")
    options.add_argument(
        "--admin-key-env",
        default="DROPFORGE_ADMIN_KEY",
        help="variable that holds the key for loading and unloading; unset: nobody may",
    )
    options.add_argument(
        "--no-key",
        action="store_true",
        # Behind an endpoint that asks for a key of its own, and where a container is told by its environment alone.
        default=os.environ.get("DROPFORGE_SERVE_NO_KEY", "").lower() == "true",
        help="answer everybody",
    )
    options.add_argument(
        "--poll",
        type=float,
        help="seconds between looks at the desired states (default: 0.1, in a storage account 1.5)",
    )
    options.add_argument(
        "--memory-budget",
        type=int,
        metavar="MIB",
        default=os.environ.get("DROPFORGE_SERVE_MEMORY_MB") or None,
        help="what all models together may take (default: no limit on a CPU, what is free on a GPU)",
    )
    options.add_argument(
        "--keep-previous",
        type=float,
        default=KEEP_PREVIOUS_SECONDS,
        metavar="SECONDS",
        help="how long the models before a swap stay in memory, for a way back without loading",
    )
    options.add_argument("--max-body-bytes", type=int, default=Limits.body_bytes)
    options.add_argument("--max-queue", type=int, default=2048, help="requests at once before 429")
    options.add_argument(
        "--workers",
        type=int,
        default=os.environ.get("DROPFORGE_SERVE_WORKERS") or 1,
        help="processes that share the port; 0: one for each core, or for each GPU (default: 1)",
    )
    options.add_argument("--share-port", action="store_true", help=argparse.SUPPRESS)
    options.add_argument(
        "--busy-poll-us",
        type=int,
        metavar="MICROSECONDS",
        help="how long to look for the next request before sleeping, while that pays (default: 200; 0 with several workers, "
        "one core or a CPU quota)",
    )
    options.add_argument(
        "--device", default=os.environ.get(DEVICE, ""), metavar="0,1", help="GPUs, by their numbers; a process for each"
    )
    _add_access(options)
    _add_logs(options)
    options.add_argument(
        "--die-with-parent",
        nargs="?",
        type=int,
        const=os.getppid(),
        metavar="PID",
        help="end when the parent process (or, already at the start, anyone but PID) is the parent no more",
    )
    return options


def _add_access(options: argparse.ArgumentParser) -> None:
    """Tokens of a tenant, and TLS."""
    for name, what in (
        ("tenant", "id of the Entra tenant whose tokens are taken, beside the key or in its place"),
        ("audience", "id URI or client id that its tokens must be for; several with commas"),
        ("apps", "<client id>[=infer|admin] of apps that need no role in their tokens; several with commas"),
        ("authority", "of another cloud than the public one: https://login.microsoftonline.us"),
    ):
        default = os.environ.get(f"DROPFORGE_ENTRA_{name.upper()}", "")
        options.add_argument(f"--entra-{name}", default=default, help=what)
    options.add_argument(
        "--tls-cert", type=Path, metavar="FILE", help="certificate chain in PEM; SIGHUP reads it again"
    )
    options.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key in PEM, without a passphrase")


def _add_logs(options: argparse.ArgumentParser) -> None:
    options.add_argument(
        "--log-requests",
        action="append",
        metavar="[ENDPOINT=]SHARE",
        help="keep that share (0 to 1) of requests and answers as Parquet files under logs/; may be given for several "
        f"endpoints (or {LOG_REQUESTS}, with commas; wants the extra request-log)",
    )
    options.add_argument(
        "--log-seconds", type=float, default=60.0, help="how old a row is at most before it is in a file"
    )
    options.add_argument(
        "--access-log",
        nargs="?",
        const="-",
        metavar="FILE",
        help="a line of JSON for every request over HTTP, to a file or (-) standard output",
    )


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; 0 after a clean end, 2 when it cannot start."""
    options = parser().parse_args(arguments)
    if (options.tls_cert is None) != (options.tls_key is None):
        parser().error("--tls-cert and --tls-key go together")
    if options.entra_tenant and options.no_key:
        parser().error("--no-key answers everybody, and --entra-tenant only those with a token; choose one")
    if not options.root and not os.environ.get("DROPFORGE_STORAGE"):
        parser().error("--root must name a folder or a container, or DROPFORGE_STORAGE the storage account")
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    if options.tls_cert is None and sys.stderr.isatty():
        # It has nothing to do at it but to end with its terminal.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    key = os.environ.get(options.key_env, "").strip() or None
    if key is None and not options.no_key and not options.entra_tenant:
        log.error(
            "no key: wanted one in the variable %s; set it, or pass --no-key to answer everybody", options.key_env
        )
        return 2
    try:
        gpus = devices(options.device)
    except DropforgeError as error:
        log.error("%s", error.message)
        return 2
    on_gpu = os.environ.get(SETTING, "cpu") not in ("", "cpu")
    if on_gpu and not options.workers and not gpus:
        gpus = gpus_here()
    workers = wanted_workers(options.workers, gpus, on_gpu=on_gpu)
    if workers > 1:
        return _supervise(options, sys.argv[1:] if arguments is None else arguments, workers, gpus)
    if gpus:
        os.environ[DEVICE] = gpus[0]
    telemetry.start("dropforge-serving")
    # What is loaded by now stays: looking through it for garbage would hold up requests, and so would looking often.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    # A thread that works keeps the loop waiting for so long at each of its turns: one that loads a model, or writes a log.
    sys.setswitchinterval(SWITCH_SECONDS)
    return uvloop.run(_serve(options, None if options.no_key else key))


def _supervise(options: argparse.Namespace, arguments: list[str], workers: int, gpus: tuple[str, ...]) -> int:
    """Serve with several processes on one port, which is held here so that it stays theirs."""
    held, named = contextlib.ExitStack(), list[str]()
    with held:
        for name, port in _ports(options):
            try:
                listener = held.enter_context(reserve(options.host, port))
            except OSError as error:
                log.error(_CANNOT_LISTEN, options.host, port, error.strerror)
                return 2
            named += (name, str(listener.getsockname()[1]))
        port = int(named[1])
        command = [sys.executable, "-m", "dropforge.serving", *arguments, *named]
        return asyncio.run(Supervisor(command, workers, options.replica or _name(port), gpus).run())


def _ports(options: argparse.Namespace) -> list[tuple[str, int]]:
    """The options that name ports, those for HTTP first."""
    named = [("--port", options.port), ("--grpc-port", options.grpc_port)]
    return [(name, port) for name, port in named if port is not None]


def _name(port: int) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"{socket.gethostname()}-{port}")


async def _serve(options: argparse.Namespace, key: str | None) -> int:
    certificate: Certificate | None = None

    def renew() -> None:
        if certificate is not None:
            certificate.reload()

    loop = asyncio.get_running_loop()
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL:
        # Before the certificate is read, or one that is replaced right after would not be seen.
        loop.add_signal_handler(signal.SIGHUP, renew)
    listeners: list[socket.socket] = []
    for _, port in _ports(options):
        try:
            listeners.append((reserve if options.share_port else _listen)(options.host, port))
        except OSError as error:
            log.error(_CANNOT_LISTEN, options.host, port, error.strerror)
            return 2
    port = listeners[0].getsockname()[1]
    replica = options.replica or _name(port)
    try:
        source = open_source(options.root, replica)
        provider = wanted_provider(os.environ)
        certificate = Certificate(options.tls_cert, options.tls_key) if options.tls_cert else None
        # Now, when a pair that cannot be used still ends the start.
        contexts = [certificate.context(each) if certificate else None for each in _PROTOCOLS[: len(listeners)]]
        tokens = await _tokens(options)
        shares = shares_of(options.log_requests or words_of(os.environ.get(LOG_REQUESTS, "")))
        watch = open_watch(shares, source.keep, replica, options.log_seconds, os.environ)
        access_log = open_access_log(options.access_log) if options.access_log else None
    except DropforgeError as error:
        log.error("%s", error.message)
        for listener in listeners:
            listener.close()
        return 2
    budget = Budget(None if options.memory_budget is None else options.memory_budget * MIB, provider)
    poll, keep = options.poll or source.poll_seconds, options.keep_previous
    converger = Converger(source, replica, poll, provider, budget, keep_previous_seconds=keep)
    limits = Limits(options.max_body_bytes, connections=_connections())
    admin_key = os.environ.get(options.admin_key_env, "").strip() or None
    server = Server(
        converger,
        key,
        limits,
        queue=options.max_queue,
        admin_key=admin_key,
        tokens=tokens,
        watch=watch,
        alone=not options.share_port,
        busy_poll_seconds=_busy_poll_seconds(options),
    )
    connections = Connections(limits)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    work = [asyncio.create_task(converger.run()), asyncio.create_task(stop.wait())]
    if options.share_port:
        # The other workers answer until this one can.
        await _caught_up(converger, work)
    listening = [
        await loop.create_server(
            made,
            sock=listener,
            backlog=1024,
            ssl=context,
            **_TLS_TIMES if context else {},
        )
        for listener, context, made in zip(
            listeners, contexts, _spoken(server, access_log, connections, len(listeners)), strict=True
        )
    ]
    log.info("replica %s listens on %s://%s:%d", replica, "https" if certificate else "http", options.host, port)
    for listener in listeners[1:]:
        log.info("replica %s listens on grpc://%s:%d", replica, options.host, listener.getsockname()[1])
    # Without the GPU that was asked for it stays, live and not ready, and says why to whoever asks.
    log.log(logging.ERROR if provider.problem else logging.INFO, "%s", provider.problem or told(provider))
    work.append(asyncio.create_task(_sweep(connections)))
    if access_log is not None:
        work.append(asyncio.create_task(access_log.run()))
    if tokens is not None:
        work.append(asyncio.create_task(tokens.keep()))
    if options.die_with_parent is not None:
        work.append(asyncio.create_task(_parent_gone(options.die_with_parent)))
    done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
    log.info("ending: finishing what is in flight")
    for each in listening:
        each.close()
    await _finish(connections)
    for task in work:
        task.cancel()
    await asyncio.gather(*work, return_exceptions=True)
    await converger.close()
    server.close()
    if watch is not None:
        watch.close()
    if access_log is not None:
        access_log.close()
    return 1 if work[0] in done else 0


def _busy_poll_seconds(options: argparse.Namespace) -> float:
    given: int | None = options.busy_poll_us
    return default_seconds(shares_port=options.share_port) if given is None else max(0, given) / 1e6


def _spoken(
    server: Server, access_log: AccessLog | None, connections: Connections, ports: int
) -> list[Callable[[], asyncio.Protocol]]:
    """What makes the object for a new connection of each port."""
    app = server if access_log is None else access_log.of(server)
    spoken: list[Callable[[], asyncio.Protocol]] = [lambda: Connection(app, connections)]
    if ports > 1:
        # Protobuf and HPACK, which a server of HTTP alone does without.
        from dropforge.serving.grpc.service import speaker

        spoken.append(speaker(server, connections))
    return spoken


async def _tokens(options: argparse.Namespace) -> EntraTokens | None:
    """What reads the tenant's tokens, its keys at hand if the tenant answers. Raises `BadInput`."""
    if not options.entra_tenant:
        return None
    # Cryptography, which a server with a key alone does without.
    from dropforge.serving.tokens import EntraTokens, tenant_of

    tenant = tenant_of(options.entra_tenant, options.entra_audience, options.entra_apps, options.entra_authority)
    tokens = EntraTokens(tenant)
    await tokens.refresh()
    return tokens


async def _caught_up(converger: Converger, work: list[asyncio.Task[Any]]) -> None:
    """Until what is desired serves, or has failed to; or until one of these tasks is over."""
    while not (converger.caught_up or any(task.done() for task in work)):  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)


def _connections() -> int:
    """How many there may be: each is an open file, and the system says how many of those a process has."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return max(1, min(Limits.connections, files - OTHER_FILES))


async def _sweep(connections: Connections) -> None:
    while True:
        await asyncio.sleep(1.0)
        connections.sweep()


async def _finish(connections: Connections) -> None:
    """Let what is in flight finish, for a while."""
    connections.end()
    deadline = time.monotonic() + SHUTDOWN_SECONDS
    while connections.open and time.monotonic() < deadline:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)
    for connection in list(connections.open):
        connection.abort()


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


def _end(code: int) -> NoReturn:
    """The end of the process, also while a copy is in a model that does not come back: its thread would find no interpreter
    and abort."""
    if not wait_for_lanes(LANE_SECONDS):
        telemetry.close()
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    _end(main())
