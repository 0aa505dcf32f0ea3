"""`python -m dropforge.servicebus --config FILE --state DIR`: a Service Bus endpoint on this machine."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import signal
import sys
from pathlib import Path

from dropforge.servicebus import config
from dropforge.servicebus.admin.server import AdminServer
from dropforge.servicebus.core.broker import Broker
from dropforge.servicebus.errors import ConfigError, StateBusy, StoreFailed
from dropforge.servicebus.lock import FolderLock
from dropforge.servicebus.sas import AccessKey, parse_key
from dropforge.servicebus.server.listener import Listener, wall_ms
from dropforge.servicebus.settings import Namespace
from dropforge.servicebus.store import Store

KEY_NAME = "RootManageSharedAccessKey"
KEY_VARIABLE = "DROPFORGE_SERVICE_BUS_KEY"

# The process's exit codes.
STORE_FAILED, CANNOT_START, STATE_BUSY, PORT_IN_USE = 1, 2, 3, 4


def main(argv: list[str] | None = None) -> int:
    given = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        namespace = config.read(given.config)
        keys = _keys(given.keys_env)
        lock = FolderLock(given.state)
    except (ConfigError, StateBusy, OSError) as error:
        return _failed(error, STATE_BUSY if isinstance(error, StateBusy) else CANNOT_START)
    try:
        broker = _broker(namespace, given.state)
        return asyncio.run(_serve(broker, keys, given.host, given.port, given.admin_port))
    except StoreFailed as error:
        return _failed(error, STORE_FAILED)
    except ConfigError as error:
        return _failed(error, CANNOT_START)
    finally:
        lock.release()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dropforge.servicebus",
        description="A Service Bus endpoint on this machine: AMQP 1.0 for the Azure SDKs, messages kept on disk.",
    )
    parser.add_argument("--config", type=Path, required=True, help="entities, in the format of Microsoft's emulator")
    parser.add_argument("--state", type=Path, required=True, help="folder for all that is kept")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=5672, help="AMQP port; 0: any free one (default: 5672)")
    parser.add_argument(
        "--admin-port", type=int, default=5300, help="port of the admin API and /health (default: 5300)"
    )
    parser.add_argument(
        "--keys-env",
        metavar="NAME",
        help=f"environment variable with the key that clients sign with as {KEY_NAME}, or with several keys as "
        f"NAME:KEY or NAME:KEY:Send,Listen with spaces between (default: {KEY_VARIABLE}; without it nobody need sign)",
    )
    return parser


def _keys(variable: str | None) -> dict[str, AccessKey] | None:
    value = os.environ.get(variable or KEY_VARIABLE, "")
    if variable is not None and not value:
        raise ConfigError(f"the environment variable {variable} has no key; set it, or leave --keys-env out")
    # A lone key is base64 and has no colon.
    if ":" not in value:
        return {KEY_NAME: AccessKey(value)} if value else None
    try:
        return dict(parse_key(each) for each in value.split())
    except ValueError as error:
        # The message must not show a key.
        raise ConfigError(
            f"the environment variable {variable or KEY_VARIABLE} has a key that cannot be read; write NAME:KEY or "
            "NAME:KEY:Send,Listen, with spaces between several"
        ) from error


def _broker(namespace: Namespace, state: Path) -> Broker:
    # While a hundred thousand messages are read, the collector would go through them again and again; and what was
    # read stays, so it need not afterwards either.
    gc.disable()
    try:
        store = Store(state / "servicebus.db")
        try:
            return Broker(namespace, store, wall_ms)
        except BaseException:
            store.abandon()
            raise
    finally:
        gc.freeze()
        gc.enable()


async def _serve(broker: Broker, keys: dict[str, AccessKey] | None, host: str, port: int, admin_port: int) -> int:
    """Serve until a signal. Says where on standard output, as one line of JSON. Raises `StoreFailed`."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    listener = Listener(broker, keys)

    def commit() -> None:
        listener.turn()
        # The listener keeps to itself that a store failed; whoever asks here hears of it.
        broker.commit()

    admin = AdminServer(broker, keys, commit)
    try:
        try:
            bound = await listener.start(host, port)
            port = admin_port
            bound_admin = await admin.start(host, admin_port)
        except OSError as error:
            text = f"cannot listen on {host}:{port}: {error.strerror or error}; stop what does, or choose another port"
            return _failed(text, PORT_IN_USE)
        ready = {"port": bound, "admin_port": bound_admin, "host": host, "keys": keys is not None}
        _say(json.dumps({**ready, "pid": os.getpid(), "dormant": broker.dormant}))
        await _until(stop, listener)
        await admin.stop()
        await listener.stop()
        broker.close()
        return 0
    finally:
        # After an error nothing more is committed: it may have come in the middle of a change.
        await admin.stop()
        await listener.stop()
        broker.abandon()


async def _until(stop: asyncio.Event, listener: Listener) -> None:
    """Returns on a signal. Raises what ended the listener by itself."""
    signalled, ended = asyncio.create_task(stop.wait()), asyncio.create_task(listener.wait())
    try:
        await asyncio.wait((signalled, ended), return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            ended.result()
    finally:
        for task in (signalled, ended):
            task.cancel()
        await asyncio.gather(signalled, ended, return_exceptions=True)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _failed(error: Exception | str, code: int) -> int:
    sys.stderr.write(f"servicebus: {error}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
