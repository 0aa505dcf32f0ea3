"""The upstream system: one file a day with the digits that were scanned on it.

    python feed.py --to drops/digits --days 14

The data is scikit-learn's copy of the test set of "Optical Recognition of Handwritten Digits" (UCI, CC BY 4.0): 1797
images of 8 by 8 pixels, in the order of the file. Each writer's digits stand together there, so a day brings hands that
no earlier day had.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import date, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

FIRST_DAY = date(2026, 1, 1)
A_DAY = 60
PIXELS = [f"p{number}" for number in range(64)]
LABEL = "digit"


@lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    found = load_digits()
    return found.data.astype(np.int64), found.target


def days(first: int = 0, count: int | None = None) -> Iterator[int]:
    """Numbers of days, 0 to 29."""
    last = -(-len(_digits()[1]) // A_DAY)
    yield from range(first, last if count is None else min(last, first + count))


def write_day(day: int, folder: Path) -> Path:
    """The file of that day; equal bytes on every call."""
    pixels, digits = (values[day * A_DAY : (day + 1) * A_DAY] for values in _digits())
    at = FIRST_DAY + timedelta(days=day)
    lines = [",".join(["scanned_on", *PIXELS, LABEL])]
    lines += [f"{at},{','.join(map(str, row))},{digit}" for row, digit in zip(pixels, digits, strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"digits-{at}.csv"
    part = path.with_name(f".{path.name}.part")
    part.write_text("\n".join(lines) + "\n")
    part.replace(path)
    return path


def requests_for(day: int) -> list[dict[str, int]]:
    """What a client asks about the digits of that day."""
    pixels, _ = (values[day * A_DAY : (day + 1) * A_DAY] for values in _digits())
    return [dict(zip(PIXELS, map(int, row), strict=True)) for row in pixels]


def answers_for(day: int) -> list[int]:
    """What the digits of that day are, in the order of `requests_for`."""
    return [int(each) for each in _digits()[1][day * A_DAY : (day + 1) * A_DAY]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, help="folder to write the files to")
    parser.add_argument("--first", type=int, default=0, help="first day (default 0)")
    parser.add_argument("--days", type=int, default=14, help="how many days (default 14)")
    asked = parser.parse_args()
    for day in days(asked.first, asked.days):
        print(write_day(day, asked.to))


if __name__ == "__main__":
    main()
