"""The pages on clients, checkpoints and asynchronous runs: their examples print what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
_BLOCKS = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)


@pytest.mark.parametrize("page", ["clients", "checkpoints", "asynchronous"])
def test_examples_print_what_the_page_says(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    found = _BLOCKS.findall((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"))
    assert len(found) >= 2
    for code, said in found:
        exec(compile(code, f"{page}.md", "exec"), names)
        assert capsys.readouterr().out == said


@pytest.mark.parametrize("page", ["clients", "checkpoints", "asynchronous"])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([a-z-]+\.md)", text):
        assert (ROOT / "docs" / target).is_file(), target
