"""Which share of its requests each endpoint keeps for monitoring."""

from __future__ import annotations

from collections.abc import Sequence

from dropforge.domain.errors import BadInput
from dropforge.domain.names import NAME


def shares_of(given: Sequence[str], name: str = "--log-requests") -> dict[str, float]:
    """The shares (0 to 1) that are named: `0.01` for all endpoints, which is `*`, and `flights=0.1` for one. Raises `BadInput`,
    which tells the `name` of the option or setting."""
    shares: dict[str, float] = {}
    for text in given:
        endpoint, _, number = text.rpartition("=")
        try:
            share = float(number)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1 or (endpoint and not NAME.fullmatch(endpoint)):
            raise BadInput(f"{name} wants a share from 0 to 1, or <endpoint>=<share>, found {text!r}")
        shares[endpoint or "*"] = share
    return shares


def words_of(text: str) -> list[str]:
    """The parts of a setting that holds several, with commas between."""
    return [part.strip() for part in text.split(",") if part.strip()]
