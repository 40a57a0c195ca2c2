"""The README's example runs as it stands and prints what the README says of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def test_examples_run_and_send_what_the_readme_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["result"].why
    assert len(names["result"].rounds) == 3
    assert (tmp_path / "runs" / "readme").is_dir()
    printed = capsys.readouterr().out
    assert printed.startswith("plan epoch_of_train_sequential(")
    rounds = re.findall(r"^round (\d): loss \d\.\d{4}, (\d+) messages$", printed, re.MULTILINE)
    assert rounds == [("1", "4"), ("2", "2"), ("3", "2")]


def test_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert links
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing
