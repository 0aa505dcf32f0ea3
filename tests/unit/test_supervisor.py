"""The supervisor of a local run: what it learns of a command that ends while it is being ended."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap


def test_the_status_of_a_command_that_ends_between_two_looks_is_not_lost() -> None:
    # In a process of its own, because the supervisor collects every child there is. The command dies after the first
    # look for the dead and before the look for the living: a pause in between makes sure of it.
    script = textwrap.dedent("""
        import os, subprocess, time
        from dropforge.adapters.local import supervisor
        real = supervisor.descendants
        def slow(root):
            os.kill(child.pid, 15)
            while supervisor._stat(child.pid)[0] != "Z":
                time.sleep(0.01)
            return real(root)
        child = subprocess.Popen(["sleep", "60"])
        supervisor.descendants = slow
        status, stubborn = supervisor._end_all(os.getpid(), 1.0, child.pid)
        print(os.waitstatus_to_exitcode(status), stubborn)
    """)
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, env=os.environ)
    assert told.stdout.split("\n")[0] == "-15 []", told.stderr
