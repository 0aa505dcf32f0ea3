"""Settings files: JSON objects read with errors that say where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dropforge.host.errors import SettingsError


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in the file, or None when there is no file. Raises `SettingsError` with line and column."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise SettingsError(f"{path}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from error
    if not isinstance(found, dict):
        raise SettingsError(f"{path} must hold a JSON object, found {type(found).__name__}")
    return found
