"""Apps written by a test: loaded from a folder, with the import state of the process restored afterwards."""

from __future__ import annotations

import contextlib
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

from dropforge.host.app import App, load_app

HEAD = """
import asyncio
import logging
import azure.functions as func
import azure.durable_functions as df
"""


@contextlib.contextmanager
def loaded(
    folder: Path, source: str, environment: Mapping[str, str] | None = None, only: frozenset[str] | None = None
) -> Iterator[App]:
    """The app whose function_app.py is this source."""
    folder.mkdir(exist_ok=True)
    (folder / "function_app.py").write_text(HEAD + textwrap.dedent(source))
    path, modules = list(sys.path), set(sys.modules)
    try:
        yield load_app(folder, environment or {}, only)
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if getattr(sys.modules[name], "__file__", None) and str(folder) in str(sys.modules[name].__file__):
                del sys.modules[name]
