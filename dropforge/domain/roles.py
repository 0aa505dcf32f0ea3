"""Roles: who may do what. Each may do what the one before it may."""

from __future__ import annotations

from enum import Enum


class Role(Enum):
    # Sees everything there is to see.
    READER = "reader"
    # Makes the platform work: applies pipelines, trains, replays, pauses, puts an earlier champion back.
    OPERATOR = "operator"
    # Answers the gate's questions, and promotes by hand.
    APPROVER = "approver"

    def covers(self, wanted: Role) -> bool:
        """Whether who has this role may do what is for that one."""
        ranks = list(Role)
        return ranks.index(self) >= ranks.index(wanted)


def least(roles: list[Role]) -> Role:
    """The one that may do least."""
    return min(roles, key=list(Role).index)
