"""Zips of pipeline folders, as tests hand them over."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection


def packed(files: dict[str, bytes], programs: Collection[str] = ()) -> bytes:
    """A zip of these files, of which `programs` are executable; equal files give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            if name in programs:
                entry.external_attr = 0o100755 << 16
            archive.writestr(entry, content)
    return buffer.getvalue()
