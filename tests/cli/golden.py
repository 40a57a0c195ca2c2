"""Expected outputs in files; ``PLANC_UPDATE_GOLDEN=1 pytest tests/cli`` writes them anew."""

from __future__ import annotations

import os
from pathlib import Path

HERE = Path(__file__).parent / "golden"
REGENERATE = "PLANC_UPDATE_GOLDEN" in os.environ


def check(name: str, actual: str) -> None:
    """Compare ``actual`` with the file ``golden/name``."""
    path = HERE / name
    if REGENERATE:
        path.write_text(actual, encoding="utf-8")
    assert actual == path.read_text(encoding="utf-8")
