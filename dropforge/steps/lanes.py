"""Lanes: at most one live flow per pipeline and kind of work, and no wake-up ever lost.

A lane is one ledger row: an epoch, and whether a flow of that epoch is alive. Whoever brings work first writes the work
down and then calls `enter`; the flow, when it thinks it is done, calls `leave`, which looks at the work once more *after*
it has closed the lane. So of a bringer and a leaver that meet, at least one sees the other:

    bringer: write work -> read lane        leaver: close lane -> read work

If the bringer read "alive", its work was written before the lane closed, and the leaver's second look finds it.
"""

from __future__ import annotations

from collections.abc import Callable

from dropforge.domain.errors import Conflict
from dropforge.ports import Insert, Json, Ledger, Replace, Row


def enter(ledger: Ledger, partition: str, lane: str) -> int:
    """The epoch of the lane's live flow; opens the next epoch when none is alive. The caller starts that flow, under an
    id made of the epoch: "already there" is success."""
    key = f"lane/{lane}"
    while True:
        row = ledger.get(partition, key)
        if row is not None and row.value["alive"]:
            return int(row.value["epoch"])
        epoch = int(row.value["epoch"]) + 1 if row is not None else 1
        value: Json = {"epoch": epoch, "alive": True}
        try:
            ledger.commit(partition, [Insert(key, value) if row is None else Replace(key, value, row.etag)])
        except Conflict:
            continue
        return epoch


def leave(ledger: Ledger, partition: str, lane: str, epoch: int, more: Callable[[], bool]) -> bool:
    """Whether the flow of this epoch may end. False: there is more to do, and this epoch is the one to do it.

    `more` reads the ledger. Safe to call again after a crash at any point.
    """
    key = f"lane/{lane}"
    while True:
        row = ledger.get(partition, key)
        if row is None or row.value["epoch"] != epoch:
            return True  # a later epoch is alive; what there is to do is its to do
        if row.value["alive"]:
            if more():
                return False
            _set_alive(ledger, partition, row, alive=False)
        elif not more():
            return True
        # Work came in between the look and the closing: take the lane back, unless its bringer opened the next epoch.
        elif _set_alive(ledger, partition, row, alive=True):
            return False


def live_epoch(ledger: Ledger, partition: str, lane: str) -> int | None:
    """The epoch of the live flow, or None."""
    row = ledger.get(partition, f"lane/{lane}")
    return int(row.value["epoch"]) if row is not None and row.value["alive"] else None


def _set_alive(ledger: Ledger, partition: str, row: Row, *, alive: bool) -> bool:
    try:
        ledger.commit(partition, [Replace(row.key, {**row.value, "alive": alive}, row.etag)])
    except Conflict:
        return False
    return True
