"""JSON at the edges: from many threads at once, and what is none."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from dropforge.domain.errors import BadInput
from dropforge.wire import from_json


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"more":"\xff"}', '{"more":"\ud800"}', b'{"more":' + b"[" * 100_000])
def test_what_is_no_json_or_another_is_bad_input(text: bytes | str) -> None:
    with pytest.raises(BadInput, match="not a dict: "):
        from_json(dict, text)


def test_many_threads_may_meet_a_type_for_the_first_time_together() -> None:
    # msgspec learns a dataclass on first use and is not safe while it does: it ends the process with a SIGSEGV. So this
    # runs in a process of its own.
    script = textwrap.dedent("""
        import sys, threading
        from dataclasses import make_dataclass
        from dropforge.wire import from_builtins

        sys.setswitchinterval(1e-6)
        for _ in range(60):
            inner = make_dataclass("Inner", [(f"f{n}", int) for n in range(40)])
            outer = make_dataclass("Outer", [("one", inner), ("many", tuple[inner, ...]), ("none", inner | None)])
            value = {f"f{n}": n for n in range(40)}
            wanted = {"one": value, "many": [value, value], "none": None}
            ready, found = threading.Barrier(8), []
            def read():
                ready.wait()
                found.append(from_builtins(outer, wanted).many[1].f39)
            threads = [threading.Thread(target=read) for _ in range(8)]
            for each in threads: each.start()
            for each in threads: each.join()
            assert found == [39] * 8
        print("ok")
    """)
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stdout) == (0, "ok\n"), told.stderr[-2000:]
