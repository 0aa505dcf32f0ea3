"""How the C library gives out the memory of models: in large pages, and from one heap.

The memory of a large model is given out page by page while it is loaded, and each new page stops every thread of the process
that asks for memory at that moment. With pages of 2 MiB there are five hundred times fewer: under load, the slowest answer while
500 MB are swapped in goes from 40 ms to 6.

glibc gives threads heaps of their own, so that they do not wait for each other, and what one of them frees no other takes up.
Each load has its own thread, so models that come and go beside requests left holes in all heaps: 50 kB a swap, without end. From
one heap the next model takes what the one before it left. Threads here hardly ever run at once: the interpreter's lock is one.

glibc takes both from its environment, and only at the start of a process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

SETTING = "DROPFORGE_SERVE_HUGE_PAGES"
_TUNABLES = "GLIBC_TUNABLES"
_HUGE, _HEAPS = "glibc.malloc.hugetlb", "glibc.malloc.arena_max"
# Since which version they are known: https://www.gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html
_SINCE = {_HUGE: (2, 35), _HEAPS: (2, 26)}
# An older name of the same.
_HEAPS_BEFORE = "MALLOC_ARENA_MAX"


def environment_for_models(environment: Mapping[str, str], libc: str) -> dict[str, str] | None:
    """The environment to start again in; None where that would change nothing, or nobody wants it."""
    name, _, version = libc.partition(" ")
    major, _, minor = version.partition(".")
    if name != "glibc" or not major.isdigit() or not minor[:2].isdigit():
        return None
    tunables = environment.get(_TUNABLES, "")
    wanted = {
        _HUGE: environment.get(SETTING, "").lower() != "false",
        _HEAPS: _HEAPS_BEFORE not in environment,
    }
    added = [
        f"{each}=1"
        for each, is_wanted in wanted.items()
        if is_wanted and each not in tunables and (int(major), int(minor[:2])) >= _SINCE[each]
    ]
    if not added:
        return None
    return {**environment, _TUNABLES: ":".join([tunables, *added]).lstrip(":")}


def start_again_for_models() -> None:
    """Be the same process once more, with memory for models, where that is to be had. Costs as long as Python takes to start."""
    if sys.platform != "linux":
        return
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except ValueError:
        return
    environment = environment_for_models(os.environ, libc)
    if environment is not None:
        os.execve(sys.executable, sys.orig_argv, environment)  # noqa: S606 - itself
