"""`planc bench`: the benchmarks of a checkout, the same as ``python -m benchmarks`` in its folder.

They are no part of the installed package, so this finds them beside it, and measures nothing itself.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import planc
from planc.errors import PlancError

_ROOT = Path(planc.__file__).parents[1]


def bench(arguments: list[str]) -> int:
    """Run the harness; returns its exit code.

    Args:
        arguments: those of ``python -m benchmarks``.

    Raises:
        PlancError: planc is not installed from a checkout, so there are no benchmarks.
    """
    if not (_ROOT / "benchmarks" / "__main__.py").is_file():
        raise PlancError(
            "the benchmarks are not installed with planc: run this in a checkout of its repository, "
            "installed with pip install -e '.[demo,network]'"
        )
    if str(_ROOT) not in sys.path:
        sys.path.append(str(_ROOT))
    return importlib.import_module("benchmarks.__main__").main(arguments)
