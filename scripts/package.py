"""Builds what is deployed to Azure: `dist/app`, the Function App's folder, and `dist/app.zip`, the same in one file.

    python scripts/package.py [--out DIST] [--remote]

The folder holds the app's code, what it needs as Linux wheels for Python 3.13 unpacked and compiled
(`.python_packages`), and `requirements.txt` with our wheel for a build on Azure. It is deployed as it is, without one:
docs/decisions/0007-prebuilt-package.md. `--remote` leaves `.python_packages` out, for a build there. The same commit gives
the same bytes.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".dropforge-cache"
LOCK = ROOT / "requirements" / "app.txt"
DEPENDENCIES = Path(".python_packages/lib/site-packages")
# Where Azure mounts the package: tracebacks name these paths.
MOUNTED = PurePosixPath("/home/site/wwwroot")
# The tags that the app's image (Debian 12, glibc 2.36) takes, newest first. pip does not derive the older from the newer.
GLIBC = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_26", "manylinux_2_17", "manylinux2014", "manylinux1")
# A file system's smallest date; the same in every archive.
EPOCH = (1980, 1, 1, 0, 0, 0)
# Of what is installed, what no interpreter loads: 950 files. `azure-functions-durable` ships its tests as `tests`.
UNUSED_FOLDERS = {"bin", "include", "tests"}
UNUSED_SUFFIXES = {".c", ".cc", ".h", ".hpp", ".pxd", ".pxi", ".pyi", ".pyx"}
# Its being there also keeps azd from leaving out every `__pycache__`, which it does where there is none.
FUNCIGNORE = "local.settings.json\n.git*\n.venv*\n.vscode\n"
SDKS = "import azure.functions, azure.durable_functions"


class CannotPackage(Exception):
    """What is missing, and where it comes from."""


@dataclass(frozen=True)
class Figures:
    """What was built."""

    files: int
    size_bytes: int
    zip_bytes: int | None
    largest: tuple[tuple[str, int], ...]


def python_313() -> Path:
    """A Python 3.13: the bytecode must be of the version that runs it."""
    for folder in (ROOT / ".venv-runtime", ROOT / ".venv"):
        found = folder / "bin" / "python"
        if found.exists() and (folder / "lib" / "python3.13").is_dir():
            return found
    raise CannotPackage(
        "the package is made for Python 3.13, and `make setup` has found none: install one (pyenv install 3.13)"
    )


# ------------------------------------------------------------------------------------------------ dependencies
def dependencies(python: Path) -> Path:
    """The folder with what the lock names, installed and compiled once for each lock."""
    rules = [sorted(UNUSED_FOLDERS), sorted(UNUSED_SUFFIXES), GLIBC, str(MOUNTED)]
    magic = _run(python, "-I", "-c", "import importlib.util as u; print(u.MAGIC_NUMBER.hex())").strip()
    key = hashlib.sha256(LOCK.read_bytes() + json.dumps([rules, magic]).encode()).hexdigest()[:16]
    folder = CACHE / f"app-{key}"
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "app.lock").open("w") as lock:
        # Two that start together install once.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            with tempfile.TemporaryDirectory(prefix=".app-", dir=CACHE) as made:
                target = Path(made) / "site-packages"
                _install(python, target)
                _compile(python, target, DEPENDENCIES)
                target.rename(folder)
    return folder


def _install(python: Path, target: Path) -> None:
    """The lock's wheels for the app's platform, whatever this machine's is."""
    platforms = [f"--platform={tag}_x86_64" for tag in GLIBC]
    _run(
        python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes",
        "--only-binary=:all:", "--no-compile", "--implementation=cp", "--python-version=3.13", *platforms,
        "--target", str(target), "--requirement", str(LOCK),
    )  # fmt: skip
    for path in sorted(target.rglob("*")):
        inside = path.relative_to(target)
        if path.is_file() and (UNUSED_FOLDERS & set(inside.parts[:-1]) or path.suffix in UNUSED_SUFFIXES):
            path.unlink()
    _remove_empty(target)


def _remove_empty(folder: Path) -> None:
    for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        if not any(path.iterdir()):
            path.rmdir()


def _compile(python: Path, folder: Path, place: Path) -> None:
    """Bytecode beside every module, never checked against its source: dates do not survive a deployment, and what is
    compiled again on a read-only disk is compiled at every start."""
    mounted = MOUNTED / place.as_posix()
    options = ["-q", "-j", "0", "--invalidation-mode", "unchecked-hash", "-s", str(folder), "-p", str(mounted)]
    _run(python, "-s", "-P", "-W", "ignore", "-m", "compileall", *options, str(folder))


# ------------------------------------------------------------------------------------------------ the app
def build(out: Path, *, remote: bool = False, linked: bool = False) -> Path:
    """Make `out/app` anew and return it.

    `linked`: the dependencies are hard links into the cache, in a second instead of half a gigabyte; for who changes none.
    """
    python = python_313()
    app = out / "app"
    shutil.rmtree(app, ignore_errors=True)
    app.mkdir(parents=True)
    for file in ("function_app.py", "host.json"):
        shutil.copyfile(ROOT / file, app / file)
    for package in ("functions", "orchestrators"):
        (app / package).mkdir()
        for module in sorted((ROOT / package).glob("*.py")):
            shutil.copyfile(module, app / package / module.name)
    (app / ".funcignore").write_text(FUNCIGNORE)
    ours = wheel(app)
    digest = hashlib.sha256(ours.read_bytes()).hexdigest()
    (app / "requirements.txt").write_text(f"{LOCK.read_text()}./{ours.name} --hash=sha256:{digest}\n")
    if remote:
        return app
    with tempfile.TemporaryDirectory(prefix=".own-", dir=out) as made:
        own = Path(made)
        with zipfile.ZipFile(ours) as archive:
            archive.extractall(own)
        _compile(python, own, DEPENDENCIES)
        shutil.copytree(dependencies(python), app / DEPENDENCIES, copy_function=os.link if linked else shutil.copy)
        shutil.copytree(own, app / DEPENDENCIES, dirs_exist_ok=True)
    for package in ("functions", "orchestrators"):
        _compile(python, app / package, Path(package))
    return app


def wheel(folder: Path) -> Path:
    """Our package as a wheel in that folder."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "315532800"}
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise CannotPackage(f"the wheel cannot be built: {done.stderr.strip()[-2000:]}")
    (made,) = folder.glob("dropforge-*.whl")
    return made


def pack(folder: Path, to: Path) -> None:
    """The folder as a zip: names in order, one date, one mode, so that the same files give the same bytes."""
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o100644 << 16
                archive.writestr(entry, path.read_bytes())


# ------------------------------------------------------------------------------------------------ figures
def figures(app: Path, packed: Path | None = None) -> Figures:
    """How much it is."""
    sizes: Counter[str] = Counter()
    files = [path for path in app.rglob("*") if path.is_file()]
    for path in files:
        inside = path.relative_to(app)
        below = inside.relative_to(DEPENDENCIES) if inside.is_relative_to(DEPENDENCIES) else None
        sizes[below.parts[0] if below else "the app"] += path.stat().st_size
    zip_bytes = packed.stat().st_size if packed else None
    return Figures(len(files), sum(sizes.values()), zip_bytes, tuple(sizes.most_common(5)))


def import_seconds(app: Path, statement: str, rounds: int = 5) -> float:
    """How long the statement takes in a fresh interpreter that sees the package alone; the median."""
    return statistics.median(_import_seconds(app, statement) for _ in range(rounds))


def _import_seconds(app: Path, statement: str) -> float:
    # Azure's order: the dependencies first, the app's own folder last.
    program = f"import sys, time; sys.path += {[str(app / DEPENDENCIES), str(app)]!r}; start = time.perf_counter(); "
    program += f"{statement}; print(time.perf_counter() - start)"
    return float(_run(python_313(), "-I", "-S", "-B", "-c", program, cwd=app))


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    environment = {
        key: value for key, value in os.environ.items() if not re.match("PYTHON(?!WARNINGS)|DROPFORGE_", key)
    }
    # Sets of constants lie in the bytecode in the order of their hashes.
    environment["PYTHONHASHSEED"] = "0"
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise CannotPackage(
            f"`{' '.join(map(str, command))[:300]}` failed: {(done.stderr or done.stdout).strip()[-3000:]}"
        )
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description="Build what is deployed to Azure.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where to; default: dist")
    parser.add_argument("--remote", action="store_true", help="leave the dependencies to a build on Azure")
    asked = parser.parse_args()
    out = asked.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    try:
        app = build(out, remote=asked.remote)
        packed = out / "app.zip"
        pack(app, packed)
        made = figures(app, packed)
        lines = [
            ("folder", f"{app}"),
            ("zip", f"{packed}, {packed.stat().st_size / 1e6:.1f} MB, sha256 {_sha256(packed)}"),
            ("files", f"{made.files:,}, {made.size_bytes / 1e6:.1f} MB"),
            ("largest", ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in made.largest)),
        ]
        if platform.system() == "Linux" and platform.machine() == "x86_64" and not asked.remote:
            sdks, ours = import_seconds(app, SDKS), import_seconds(app, "import function_app")
            lines.append(("cold import", f"{ours * 1000:.0f} ms, of which the SDKs alone {sdks * 1000:.0f} ms"))
    except CannotPackage as error:
        sys.exit(f"package: {error}")
    for name, value in lines:
        print(f"{name:<12} {value}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()
