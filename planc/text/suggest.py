"""Words of hints: the nearest names to one that is unknown, counts of things. Knows no syntax."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_MAX_LENGTH = 64  # comparing takes time quadratic in length, and long names are no slips of the pen


def nearest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint such as ``did you mean 'relu' or 'relu6'?``, or ``otherwise`` where nothing is near."""
    if len(name) > _MAX_LENGTH:
        return otherwise
    known = list(dict.fromkeys(known))
    matches = get_close_matches(name, known, n=3, cutoff=0.7)
    if not matches:
        folded = {k.lower(): k for k in known}
        matches = [folded[name.lower()]] if name.lower() in folded else []
    if not matches:
        return otherwise
    quoted = [f"'{match}'" for match in matches]
    listed = " or ".join([", ".join(quoted[:-1]), quoted[-1]]) if len(quoted) > 1 else quoted[0]
    return f"did you mean {listed}?"


def count_of(number: int, what: str) -> str:
    """``1 result``, ``2 results``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
