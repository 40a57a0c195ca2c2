"""What counts as a number in the settings of strategies. The bounds are where the settings are."""

from __future__ import annotations

import math
import operator
from typing import Any


def is_number(value: object) -> bool:
    """Whether it is a finite number, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    """Whether it is a whole number (numpy's too), and no truth value."""
    if isinstance(value, bool):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


__all__ = ["is_number", "is_whole"]
