"""examples/hospital: the whole story, as real processes over mutual TLS, told in 80 columns."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.helpers import ENVIRONMENT

HOSPITAL = Path(__file__).parents[2] / "examples" / "hospital"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("h")
    done = subprocess.run(
        [sys.executable, str(HOSPITAL / "run.py"), str(folder)],
        capture_output=True,
        text=True,
        timeout=900,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert all((folder / name / "store" / "audit.jsonl").exists() for name in ("north", "south"))
    return done.stdout.splitlines()


def of(told: list[str], who: str) -> str:
    """What one of them said, in one line."""
    lines = (line.partition("| ")[2] for line in told if line.strip().startswith(f"{who} |"))
    return " ".join(" ".join(lines).split())


def test_ann_sees_sizes_and_no_elements(told: list[str]) -> None:
    ann = of(told, "ann")
    assert "north: images u8[2800, 28, 28], labels u8[2800]" in ann
    assert "south: images u8[1200, 28, 28], labels u8[1200]" in ann
    assert "fetch refused, PermissionDenied: worker 'north': 'ann' may find object" in ann
    assert "one operation refused, PermissionDenied: worker 'north': 'ann' may find object" in ann


def test_the_owners_approve_what_they_read(told: list[str]) -> None:
    found = re.search(
        r"ApprovalNeeded: worker '\w+': plan 'epoch_of_train_net' \(([0-9a-f]{64})\)", of(told, "ann")
    )
    assert found is not None
    for who in ("north", "south"):
        assert f"approved {found[1]}" in of(told, who)
    north = of(told, "north")
    assert "what would leave r f32[((n + 31)//32)] and may be fetched afterwards" in north
    assert "asked for by ann, on scans: private u8[2800, 28, 28] of north" in north


def test_the_model_gets_better_by_one_message_a_hospital_a_round(told: list[str]) -> None:
    rounds = re.findall(r"round (\d): loss [\d.]+, accuracy ([\d.]+), (\d) messages", of(told, "ann"))
    assert [number for number, _, _ in rounds] == ["1", "2", "3", "4", "5"]
    assert float(rounds[-1][1]) > 0.85
    assert {sent for _, _, sent in rounds[1:]} == {"2"}
    assert "round refused, ApprovalNeeded" in of(told, "ann")


def test_the_logs_have_it_all_and_are_whole(told: list[str]) -> None:
    assert len(re.findall(r"left: r f32\[88\], hidden\.weight f32\[64, 784\]", of(told, "north"))) == 5
    for who in ("north", "south"):
        assert re.search(r"--verify \d+ lines, unbroken; the last is", of(told, who))
        assert "stopped, exit code 0" in of(told, who)


def test_it_can_be_read(told: list[str]) -> None:
    assert max(map(len, told)) <= 80, [line for line in told if len(line) > 80]
