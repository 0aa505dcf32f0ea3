"""Ledger keys as keys of Table storage, which takes no `/ \\ # ?`: in the same order, and readable.

A character stands for itself, or for two that begin with one that sorts where it does: `runs/ab.1` is `runs.sab.d1`. The
characters that trouble some client between here and the service (space, quotes, `%`, `&`, `+`) are spelled alike.
"""

from __future__ import annotations

# Each group is a run of neighbours in ASCII, which all begin with the first of them that Table storage takes; the second
# letters are in their order.
_GROUPS = (
    (" !\"#$%&'", "!", "abcdefgh"),
    # Asterisk, plus.
    ("*+", "*", "ap"),
    # Dot, slash.
    ("./", ".", "ds"),
    # Greater, question mark.
    (">?", ">", "gq"),
    # Bracket, slash.
    ("[\\", "[", "bs"),
)
_SPELLED = {
    character: first + second
    for characters, first, seconds in _GROUPS
    for character, second in zip(characters, seconds, strict=True)
}
_SPELLING = str.maketrans(_SPELLED)
_MEANING = {spelled: character for character, spelled in _SPELLED.items()}
_FIRSTS = frozenset(first for _, first, _ in _GROUPS)
# The last character a ledger key may hold.
_LAST = "~"


def encoded(key: str) -> str:
    """The key (or partition, or the beginning of one) as Table storage has it. `a < b` and `a.startswith(b)` hold for
    two keys as they do for what is made of them."""
    return key.translate(_SPELLING)


def decoded(text: str) -> str:
    """The key that `encoded` made this of."""
    rest = iter(text)
    return "".join(_MEANING[each + next(rest)] if each in _FIRSTS else each for each in rest)


def end_of(prefix: str) -> str | None:
    """What sorts right after every encoded key that starts with the prefix; None when nothing does."""
    stem = prefix.rstrip(_LAST)
    return encoded(stem[:-1] + chr(ord(stem[-1]) + 1)) if stem else None
