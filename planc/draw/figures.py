"""Figures as people read them: counts in thousands, bytes in kibibytes. Says nothing about plans."""

from __future__ import annotations

from collections.abc import Sequence

_DECIMAL = ("", " k", " M", " G", " T", " P")
_BINARY = (" B", " KiB", " MiB", " GiB", " TiB", " PiB")


def decimal(number: int) -> str:
    """A count: ``812``, ``1.23 M``."""
    return _scaled(number, 1000, _DECIMAL)


def size(number: int) -> str:
    """Bytes: ``812 B``, ``1.23 MiB``."""
    return _scaled(number, 1024, _BINARY)


def _scaled(number: int, base: int, units: Sequence[str]) -> str:
    value, unit = float(number), 0
    # 999.95 would round to 1000.0: the next unit then shows it better.
    while unit + 1 < len(units) and abs(value) >= base - (0.05 if unit else 0):
        value, unit = value / base, unit + 1
    if unit == 0:
        return f"{number:,}{units[0]}"
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f}{units[unit]}"


__all__ = ["decimal", "size"]
