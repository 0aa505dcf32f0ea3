"""Zips of pipeline folders, as tests hand them over."""

from __future__ import annotations

import io
import zipfile


def packed(files: dict[str, bytes]) -> bytes:
    """A zip of these files; equal files give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()
