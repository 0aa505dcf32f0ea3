"""Microsoft's own tests and samples of azure-servicebus: fetched from PyPI when they are run, never kept in this tree."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".dropforge-cache"

VERSION = "7.15.0"
NAME = f"azure_servicebus-{VERSION}"
SHA256 = "62c73f3d9efbaf0089a375adc5ef992ffe6d7d0b1218b8462265aa30ad352c3e"
DOWNLOAD_SECONDS = 120


class NotFetched(Exception):
    """The source distribution is neither in the cache nor to be had from the package index."""


def fetched() -> Path:
    """The folder of the unpacked source distribution. The second call finds it in the cache.

    Raises NotFetched when the package index cannot be reached, or hands out something else.
    """
    unpacked = CACHE / NAME
    if unpacked.is_dir():
        return unpacked
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        archive = _download(Path(folder))
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != SHA256:
            raise NotFetched(f"wanted {archive.name} with sha256 {SHA256}, found {found}: look at the package index")
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter="data")
        try:
            (Path(folder) / NAME).rename(unpacked)
        except OSError:
            # Somebody else unpacked it meanwhile.
            if not unpacked.is_dir():
                raise
    return unpacked


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1"]
    command += ["--no-deps", "--no-binary", "azure-servicebus", "--dest", str(folder), f"azure-servicebus=={VERSION}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise NotFetched(f"pip did not fetch azure-servicebus {VERSION} within {DOWNLOAD_SECONDS} s") from None
    archive = folder / f"{NAME}.tar.gz"
    if done.returncode or not archive.exists():
        raise NotFetched(f"pip could not fetch the sdist of azure-servicebus {VERSION}: {done.stderr.strip()[-500:]}")
    return archive


def must_be_had() -> bool:
    """Whether a missing sdist is a failure (CI) and not a reason to skip (a laptop without a network)."""
    return os.environ.get("CI", "").lower() in ("1", "true")
