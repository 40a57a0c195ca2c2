"""kill -9, really: the short form of `benchmarks.durable`."""

from __future__ import annotations

from pathlib import Path

from benchmarks.durable import kill_again_and_again


def test_what_was_acknowledged_survives_kills_and_what_was_not_is_whole_or_absent(tmp_path: Path) -> None:
    outcome = kill_again_and_again(12, seed=1, folder=tmp_path / "store", most=15)
    assert outcome.kills == 12
    assert outcome.acknowledged > 20
    assert (outcome.lost, outcome.torn) == (0, 0)
