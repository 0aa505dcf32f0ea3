"""Which of several processes of one run this is: what PyTorch's launchers, Azure ML and MPI write into the environment."""

from __future__ import annotations

from collections.abc import Mapping

_RANK = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
_SIZE = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


def rank_of(environment: Mapping[str, str]) -> int:
    """0 for the one that reports, and for a process that is alone."""
    return _number(environment, _RANK) if size_of(environment) > 1 else 0


def size_of(environment: Mapping[str, str]) -> int:
    """How many processes the run has."""
    return max(1, _number(environment, _SIZE))


def _number(environment: Mapping[str, str], names: tuple[str, ...]) -> int:
    text = next((environment[name] for name in names if environment.get(name)), "0")
    return int(text) if text.isascii() and text.isdigit() else 0
