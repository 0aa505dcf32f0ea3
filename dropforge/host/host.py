"""The embedded host: runs an app folder's unmodified function_app.py on one machine."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import re
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from socket import socket
from typing import Any, NoReturn

from aiohttp import web

from dropforge.host.admin import Admin
from dropforge.host.announcer import Announcer, Delivered, Webhook
from dropforge.host.app import App, AppFunction, load_app
from dropforge.host.banner import banner
from dropforge.host.errors import AppError, HostError, SettingsError, StateUnusable
from dropforge.host.files import write_private
from dropforge.host.flows import RPC_PREFIX, Flows
from dropforge.host.host_json import HostJson, read_host_json
from dropforge.host.invocation import Invocations
from dropforge.host.keys import ROLES_SETTING, Keys, load_keys
from dropforge.host.local_settings import LocalSettings, read_local_settings
from dropforge.host.lock import StateLock
from dropforge.host.logs import Logs, open_logs
from dropforge.host.run_events import RunEvents
from dropforge.host.server import Server, open_socket
from dropforge.host.service_bus import bindings as service_bus
from dropforge.host.service_bus.outputs import Outputs
from dropforge.host.service_bus.settings import BusSettings
from dropforge.host.sidecars import Sidecar, Sidecars
from dropforge.host.storage_events import StorageEvents
from dropforge.host.subscriptions import Subscriptions, read_subscriptions, topic_subscribers
from dropforge.host.tasks import Tasks, repeat
from dropforge.host.threads import FunctionThreads, thread_count
from dropforge.host.topic import PATH as TOPIC_PATH
from dropforge.host.topic import Topic
from dropforge.host.triggers import DURABLE, SERVED
from dropforge.host.triggers.service import Surroundings, TriggerService

_log = logging.getLogger(__name__)

DEFAULT_PORT = 7071
_LAST_CALL_SECONDS = 0.5
_SIDECAR_PATIENCE_SECONDS = 5.0
_SWITCH_SECONDS = 0.0001
_SETTLED_SECONDS = (0.0, 20.0, 60.0)
CONNECTION_FILE = "connection.json"
# Inputs beside the trigger that a function may have.
_SERVED_INPUTS = frozenset({"durableClient"})
_SERVED_OUTPUTS = frozenset({service_bus.OUTPUT})
# Azure acts on `@app.retry` for these only (and for Event Hubs, Kafka and Cosmos DB).
_RETRIED = frozenset({"timerTrigger"})


@dataclass(frozen=True)
class HostOptions:
    """Which app to run, and where."""

    app: Path
    # Everything the host keeps: history, keys, logs, drops, runs. Made when it is not there.
    state: Path
    # None: what local.settings.json says, else 7071. 0: any free port.
    port: int | None = None
    bind: str = "127.0.0.1"
    # Orchestrator episodes are recorded here.
    record: Path | None = None
    sidecars: tuple[Sidecar, ...] = ()
    # Say addresses and keys as one JSON object instead of the lines for people.
    as_json: bool = False
    # How clients reach the local Service Bus among the sidecars; holds a key.
    service_bus: str | None = None
    # How long running functions may take when the host stops.
    grace_seconds: float = 10.0


class Host:
    """One running host. `start` either succeeds or leaves nothing behind; `stop` may be called once after it."""

    def __init__(self, options: HostOptions) -> None:
        # Absolute, because the host works in the app's folder.
        record = options.record.resolve() if options.record else None
        self.options = replace(options, app=options.app.resolve(), state=options.state.resolve(), record=record)
        self.url = ""
        self.keys = Keys(master="")
        self.app = App(self.options.app, ())
        self.host_json = HostJson()
        self._resources = contextlib.AsyncExitStack()
        self._watchers = Tasks()
        self._announcers: list[Announcer] = []
        self._services: dict[str, TriggerService] = {}
        self._bus_outputs: Outputs | None = None

    async def start(self) -> None:
        """Load the app and answer. Raises `HostError` when that cannot be."""
        try:
            await self._start()
        except (OSError, sqlite3.Error) as error:
            # A full disk, say, or a file where a folder is wanted; what is not about the state has its own error.
            await self._resources.aclose()
            raise StateUnusable(self.options.state, error) from error
        except BaseException:
            await self._resources.aclose()
            raise

    async def stop(self) -> int:
        """Take nothing new, let what runs finish within the grace, and close everything.

        Returns how many functions were still running at the end.
        """
        deadline = time.monotonic() + self.options.grace_seconds
        self._server.drain()
        for service in self._services.values():
            await service.stop()
        for announcer in self._announcers:
            announcer.stop()
        await self._watchers.cancel()
        self._invocations.stop()
        left = await self._invocations.finished(self.options.grace_seconds)
        await self._flows.stop(max(deadline - time.monotonic(), 0.0))
        # Before the sidecars end, because the Service Bus that takes the locks back is one of them.
        await self._close_services()
        if left:
            _log.warning("%d functions did not finish within %g s", left, self.options.grace_seconds)
        await self._resources.aclose()
        return left + (not _ends(self._to_thread))

    async def failed(self) -> str:
        """Returns, with the reason, when the host cannot go on."""
        return await self._flows.failed()

    def banner(self, colour: bool) -> str:
        """What to tell the user once the host is ready; holds keys."""
        sidecars = {sidecar.name: sidecar.url for sidecar in self.options.sidecars if sidecar.url}
        prefix, options = self.host_json.route_prefix, self.options
        return banner(self.app, self.keys, self.url, prefix, options.state, sidecars, options.service_bus, colour)

    async def _start(self) -> None:
        options = self.options
        self._take_state()
        settings = self._read_settings()
        logs = self._open_logs()
        ignored = [f"local.settings.json: {name}" for name in settings.ignored]
        ignored += [f"host.json: {name}" for name in self.host_json.ignored]
        if ignored:
            _log.warning("settings without effect on this host: %s", ", ".join(ignored))
        port = options.port if options.port is not None else settings.port or DEFAULT_PORT
        listener = open_socket(options.bind, port)
        self._resources.callback(listener.close)
        self.url = _url(options.bind, listener.getsockname()[1])
        self._lock.tell(self.url)
        self._load()
        self._leave_out_unserved()
        self._invocations = Invocations(self.app.functions, self._open_threads(), self.host_json.function_timeout)
        self._flows = Flows(self._invocations, self.host_json, self.keys, self.url, options.state, options.record)
        logs.redactor.hide([*self.keys.all(), self._flows.rpc_secret, *_secrets_of(options.sidecars)])
        logs.redactor.hide(service_bus.secrets(os.environ))
        self._invocations.serve_input("durableClient", self._flows.client)
        self._serve_bus_outputs()
        await self._serve(listener, settings)
        await self._watch(read_subscriptions(self.app, os.environ))
        self._write_connection()

    def _take_state(self) -> None:
        self.options.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = StateLock(self.options.state)
        self._lock.acquire()
        self._resources.callback(self._lock.release)
        # Of a host that was killed; nobody answers there.
        (self.options.state / CONNECTION_FILE).unlink(missing_ok=True)

    def _read_settings(self) -> LocalSettings:
        folder = self.options.app
        settings = read_local_settings(folder / "local.settings.json")
        settings.apply(os.environ)
        self.host_json = read_host_json(folder / "host.json", os.environ)
        # The app's own settings and adapters look here; what Azure and the Core Tools set as well.
        os.environ["DROPFORGE_STATE"] = str(self.options.state)
        for name, value in {
            "FUNCTIONS_WORKER_RUNTIME": "python",
            "AZURE_FUNCTIONS_ENVIRONMENT": "Development",
            "AzureWebJobsScriptRoot": str(folder),
        }.items():
            os.environ.setdefault(name, value)
        return settings

    def _open_logs(self) -> Logs:
        logs = open_logs(self.options.state / "logs", self.host_json.log_levels)
        self._resources.callback(logs.close)
        return logs

    def _open_threads(self) -> FunctionThreads:
        try:
            count = thread_count(os.environ)
        except ValueError as error:
            raise SettingsError(str(error)) from error
        threads = FunctionThreads(count)
        self._resources.callback(threads.shutdown)
        # A thread that works keeps the others waiting for so long at each of their turns, and a step has many turns: with
        # Python's own 5 ms the door of a busy host would answer in tenths of a second.
        sys.setswitchinterval(_SWITCH_SECONDS)
        # `asyncio.to_thread` in async functions gets as many threads as plain functions do.
        self._to_thread = ThreadPoolExecutor(count, "to-thread")
        asyncio.get_running_loop().set_default_executor(self._to_thread)
        return threads

    def _load(self) -> None:
        # The app reads its settings when it is imported; the keys of its own functions come after that.
        before = load_keys(self.options.state / "keys.json")
        os.environ[ROLES_SETTING] = before.roles(os.environ.get(ROLES_SETTING, ""))
        self.app = load_app(self.options.app, os.environ, self.host_json.functions)
        http = [function.name for function in self.app.of_type("httpTrigger")]
        self.keys = load_keys(self.options.state / "keys.json", http)

    def _leave_out_unserved(self) -> None:
        """Functions that this host cannot run are told of and left out; the others run."""
        problems, functions = list(self.app.problems), []
        for function in self.app.functions:
            problem = self._problem(function)
            if problem is None:
                functions.append(function)
                self._warn(function)
            else:
                problems.append(f"function {function.name!r} cannot run: {problem}")
        self.app = App(self.app.folder, tuple(functions), tuple(problems))
        for problem in problems:
            _log.error("%s", problem)

    def _problem(self, function: AppFunction) -> str | None:
        kind = function.trigger.type
        if kind not in SERVED and kind not in DURABLE:
            return f"triggers of type {kind} are not served by this host yet (served: {', '.join(sorted({*SERVED, *DURABLE}))})"
        missing = sorted({binding.type for binding in function.inputs} - _SERVED_INPUTS)
        if missing:
            return f"input bindings of type {', '.join(missing)} are not served by this host yet"
        return service_bus.problem(function, os.environ)

    def _warn(self, function: AppFunction) -> None:
        for binding in function.sent:
            if binding.type in _SERVED_OUTPUTS:
                continue
            what = "%r fails when it sets %r: outputs of type %s are not served by this host yet"
            _log.warning(what, function.name, binding.name, binding.type)
        if function.retry and function.trigger.type not in _RETRIED:
            _log.warning(
                "the retry policy of %r has no effect, here or in Azure: its trigger is a %s",
                function.name, function.trigger.type,
            )  # fmt: skip

    async def _serve(self, listener: socket, settings: LocalSettings) -> None:
        for kind, serve in SERVED.items():
            around = Surroundings(
                self.app.of_type(kind), self._invocations, self.keys, self.host_json, self.options.state, os.environ
            )
            self._services[kind] = serve(around)
            for problem in self._services[kind].problems:
                _log.error("%s", problem)
        by_hand = {**self._flows.by_hand, **{kind: service.by_hand for kind, service in self._services.items()}}
        admin = Admin(self.app, self._invocations, self.keys, by_hand, "local", self.url)
        self._webhook = await self._resources.enter_async_context(Webhook(self.url, self.keys))
        topic = Topic(topic_subscribers(self.app), self.keys, self._webhook.post)
        routes: list[web.AbstractRouteDef] = [*admin.routes(), *self._flows.routes(), *topic.routes()]
        for service in self._services.values():
            routes += service.routes()
        self._server = Server(listener, routes, settings.cors, self.host_json.custom_headers, RPC_PREFIX)
        self._start_sidecars()
        # Requests that arrive while the engine reads its history wait in the backlog of the socket.
        await self._flows.start()
        self._resources.push_async_callback(self._flows.stop, 0.0)
        await self._server.start()
        self._resources.push_async_callback(self._server.stop)
        self._resources.push_async_callback(self._close_services)
        # A receiver that finds nobody tries again seconds later.
        await self._sidecars.wait_for_needed(_SIDECAR_PATIENCE_SECONDS)
        for service in self._services.values():
            await service.start()

    def _start_sidecars(self) -> None:
        self._sidecars = Sidecars(self.options.sidecars, self.options.state / "logs")
        self._resources.push_async_callback(self._sidecars.stop)
        self._sidecars.start()

    def _serve_bus_outputs(self) -> None:
        if all(binding.type != service_bus.OUTPUT for function in self.app.functions for binding in function.sent):
            return
        # The SDK takes a while to load, and most apps have no Service Bus.
        from dropforge.host.service_bus.clients import Clients

        settings = BusSettings.from_host_json(self.host_json.service_bus)
        self._bus_outputs = Outputs(Clients(settings), os.environ)
        self._invocations.serve_output(service_bus.OUTPUT, self._bus_outputs.send)

    async def _close_services(self) -> None:
        await asyncio.gather(*(service.close() for service in self._services.values()))
        if self._bus_outputs is not None:
            await self._bus_outputs.close()

    async def _watch(self, subscriptions: Subscriptions) -> None:
        state = self.options.state
        (state / "drops").mkdir(exist_ok=True)
        webhook, retries = self._webhook, subscriptions.retry_seconds
        if subscriptions.storage:
            announcer = Announcer(subscriptions.storage, Delivered(state / "storage_events.db"), webhook.post, retries)
            self._announce(announcer, StorageEvents(state / "drops", announcer, subscriptions.settle_seconds))
        if subscriptions.runs:
            announcer = Announcer(subscriptions.runs, Delivered(state / "run_events.db"), webhook.post, retries)
            self._announce(announcer, RunEvents(state / "runs", announcer))

    def _announce(self, announcer: Announcer, source: StorageEvents | RunEvents) -> None:
        self._announcers.append(announcer)
        self._resources.push_async_callback(announcer.close)
        self._watchers.start(repeat(source.look))
        self._resources.push_async_callback(self._watchers.cancel)

    def connection(self) -> dict[str, Any]:
        """Where the host answers, and its keys: what clients on this machine read."""
        return {
            "url": self.url,
            "pid": os.getpid(),
            "function_key": self.keys.host["default"],
            "host_keys": dict(self.keys.host),
            "master_key": self.keys.master,
            "system_keys": dict(self.keys.system),
            "sidecars": {sidecar.name: sidecar.url for sidecar in self.options.sidecars if sidecar.url},
            "service_bus": self.options.service_bus,
            "event_grid_topic": self.url + TOPIC_PATH,
            "app": str(self.options.app),
            "state": str(self.options.state),
        }

    def _write_connection(self) -> None:
        path = self.options.state / CONNECTION_FILE
        write_private(path, json.dumps(self.connection(), indent=2) + "\n")
        self._resources.callback(path.unlink, missing_ok=True)


async def run_host(options: HostOptions) -> int:
    """Run the app until SIGTERM or SIGINT; returns the exit code.

    0 after a clean stop, 2 when app or settings cannot be used, 3 when another host has the state folder, 4 when the
    port is taken, 1 for a fault of the host. A second signal ends the process at once; so does a first one when
    functions are still running after the grace (what they have not finished, the next start takes up).
    """
    host = Host(options)
    stopped = asyncio.Event()
    with _signals(stopped):
        try:
            _enter(host.options.app)
            await host.start()
        except HostError as error:
            sys.stderr.write(f"error: {error}\n")
            return error.exit_code
        said = json.dumps(host.connection()) + "\n" if options.as_json else host.banner(colour=sys.stdout.isatty())
        sys.stdout.write(said)
        sys.stdout.flush()
        settling = Tasks()
        settling.start(_settle())
        failure = await _until(stopped, host)
        await settling.cancel()
        if failure:
            _log.critical("stopping: %s", failure)
        left = await host.stop()
    code = 1 if failure else 0
    if left:
        # Their threads cannot be ended, and would keep the process alive.
        _leave(code)
    return code


async def _settle() -> None:
    """Tell the garbage collector that what has been loaded stays: looking at all of it again, as it would every few
    seconds under load, holds everything up for 50 ms. Once more later, for what is loaded when it is first used."""
    for seconds in _SETTLED_SECONDS:
        await asyncio.sleep(seconds)
        gc.collect()
        gc.freeze()


def _enter(app: Path) -> None:
    """Work in the app's folder, as Azure does."""
    try:
        os.chdir(app)
    except OSError as error:
        raise AppError(f"the app folder {app} cannot be entered: {error.strerror}") from error


async def _until(stopped: asyncio.Event, host: Host) -> str | None:
    """Wait for a signal, or for a fault that the host cannot go on with; returns that fault."""
    failed = asyncio.create_task(host.failed())
    signalled = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait({failed, signalled}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        signalled.cancel()
        failed.cancel()
    return failed.result() if failed.done() and not stopped.is_set() else None


@contextlib.contextmanager
def _signals(stopped: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if stopped.is_set():
            _log.warning("%s again: stopping at once", number.name)
            _leave(128 + number)
        _log.info("%s: stopping; once more to stop at once", number.name)
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _secrets_of(sidecars: tuple[Sidecar, ...]) -> list[str]:
    secret = re.compile("(?i)key|secret|token|password")
    return [value for sidecar in sidecars for name, value in sidecar.env.items() if secret.search(name)]


def _ends(executor: ThreadPoolExecutor) -> bool:
    """Close the executor; False when one of its threads does not end, which the interpreter would wait for."""
    closing = threading.Thread(target=executor.shutdown, daemon=True)
    closing.start()
    closing.join(timeout=_LAST_CALL_SECONDS)
    return not closing.is_alive()


def _leave(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _url(bind: str, port: int) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(bind, f"[{bind}]" if ":" in bind else bind)  # noqa: S104
    return f"http://{reachable}:{port}"
