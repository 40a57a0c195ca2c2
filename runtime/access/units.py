"""Amounts as people write them in a policy: ``"2 GiB"``, ``"10 min"``. Knows no policy."""

from __future__ import annotations

import math
import re

from planc.text.suggest import nearest

BYTES = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}

_AMOUNT = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)\s*", re.ASCII)
_MOST = 2**60


def parse_bytes(text: str) -> int:
    """A number of bytes.

    Raises:
        ValueError: it is not one; the text says what was expected.
    """
    return int(_parse(text, BYTES, "bytes such as '2 GiB'"))


def parse_seconds(text: str) -> float:
    """A duration in seconds.

    Raises:
        ValueError: it is not one; the text says what was expected.
    """
    return _parse(text, SECONDS, "a duration such as '10 min'")


def _parse(text: str, units: dict[str, float] | dict[str, int], expected: str) -> float:
    found = _AMOUNT.fullmatch(text)
    if found is None:
        raise ValueError(f"expected {expected}, got {text[:40]!r}")
    number, unit = found.groups()
    if unit not in units:
        hint = nearest(unit, units) if unit else ""
        which = f"the unit {unit!r} is not known" if unit else "the unit is missing"
        raise ValueError(
            f"expected {expected}, got {text[:40]!r}: {which}"
            f"{f' ({hint})' if hint else ''}; units are {', '.join(units)}"
        )
    # Whole numbers stay exact: a float has 53 bits.
    amount = int(number) * units[unit] if "." not in number else float(number) * units[unit]
    if not math.isfinite(amount) or amount > _MOST:
        raise ValueError(f"expected {expected}, got {text[:40]!r}: that is too much")
    return amount


__all__ = ["BYTES", "SECONDS", "parse_bytes", "parse_seconds"]
