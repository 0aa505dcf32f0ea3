"""Becomes another program that the kernel kills when the host dies: `sidecar_exec.py <host pid> <argv...>`."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Ask the kernel for the signal, make sure the host is still there, and become the program."""
    host, program = int(argv[1]), argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # The host may have died before the kernel was asked.
        if os.getppid() != host:
            sys.exit(f"the host (process {host}) is gone")
    os.execvp(program[0], program)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main(sys.argv)
