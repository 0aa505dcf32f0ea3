"""Azurite, Microsoft's emulator of Azure Storage: fetched once from npm, started when the first test asks for it."""

from __future__ import annotations

import base64
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from azure.core.exceptions import ResourceExistsError
from azure.storage.blob import BlobServiceClient, ContainerClient

# Pinned: what the tests prove is proved of this version.
VERSION = "3.35.0"
ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".dropforge-cache"
# The account that the contract's URLs name.
ACCOUNT = "local"
KEY = base64.b64encode(b"a key for tests, known to all").decode()
_MAIN = Path("node_modules/azurite/dist/src/azurite.js")
_START_SECONDS = 60


@dataclass(frozen=True)
class Azurite:
    """Running Blob and Table services with one account; everything in them is gone when they end."""

    url: str
    table_url: str

    @property
    def connection_string(self) -> str:
        return (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};"
            f"BlobEndpoint={self.url}/{ACCOUNT};TableEndpoint={self.table_url}/{ACCOUNT}"
        )

    @contextmanager
    def container(self, name: str) -> Iterator[ContainerClient]:
        """The container, empty."""
        # Nothing here is slow for a reason that goes away by waiting.
        with BlobServiceClient.from_connection_string(self.connection_string, retry_total=0) as service:
            client = service.get_container_client(name)
            try:
                client.create_container()
            except ResourceExistsError:
                for blob in client.list_blob_names():
                    client.delete_blob(blob)
            yield client


@pytest.fixture(scope="session")
def azurite() -> Iterator[Azurite]:
    """Skips where it cannot be had; in CI that is a failure."""
    try:
        main = installed()
    except (OSError, subprocess.SubprocessError) as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"Azurite needs node, npm and, the first time, the npm registry: {error}")
    with running(main) as azurite:
        yield azurite


def installed() -> Path:
    """Its main file, fetched into the cache when it is not there."""
    folder = CACHE / f"azurite-{VERSION}"
    if (folder / _MAIN).exists():
        return folder / _MAIN
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            raise FileNotFoundError(f"there is no {tool} on the PATH")
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "azurite.lock").open("w") as lock:
        # Test processes that start together fetch it once.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / _MAIN).exists():
            with tempfile.TemporaryDirectory(prefix=".azurite-", dir=CACHE, ignore_cleanup_errors=True) as made:
                command = ["npm", "install", "--no-audit", "--no-fund", "--no-save", "--loglevel", "error"]
                subprocess.run([*command, "--prefix", made, f"azurite@{VERSION}"], check=True, timeout=170, cwd=made)
                Path(made).rename(folder)
                Path(made).mkdir()
    return folder / _MAIN


@contextmanager
def running(main: Path) -> Iterator[Azurite]:
    """Azurite on free ports, in memory."""
    command = ["node", str(main)]
    for service in ("blob", "queue", "table"):
        command += [f"--{service}Host", "127.0.0.1", f"--{service}Port", "0"]
    command += ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    with tempfile.TemporaryDirectory(prefix="azurite-") as folder:
        output = Path(folder) / "output.txt"
        with output.open("wb") as told:
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=told,
                stderr=told,
                env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"},
            )
        try:
            yield Azurite(*_addresses(process, output))
        finally:
            process.kill()
            process.wait()


def _addresses(process: subprocess.Popen[bytes], output: Path) -> tuple[str, str]:
    """Of the Blob and of the Table service."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        said = output.read_text(errors="replace")
        found = dict(re.findall(r"Azurite (Blob|Table) service .* listen\w* (?:on|at) (http://\S+)", said))
        if len(found) == 2:
            return found["Blob"], found["Table"]
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise AssertionError(f"Azurite does not answer: {output.read_text(errors='replace')}")
