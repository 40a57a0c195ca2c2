"""The page on strategies: its examples run and print what it says, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from runtime.federated import robust, sampling, schedules, servers

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "strategies.md").read_text(encoding="utf-8")


def test_examples_run_and_print_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "strategies.md", "exec"), names)
        if "federation" in names:
            names.pop("federation").close()
    printed = capsys.readouterr().out
    said = re.findall(r"print\(.*\)  # (.*)", PAGE)
    assert len(said) == 3
    for line in said:
        assert line.removesuffix(" ...]") in printed
    (text,) = re.findall(r"```\n(plan .*?)```", PAGE, re.DOTALL)
    assert text in printed
    for text in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL):
        assert text in printed


def test_every_strategy_is_on_the_page() -> None:
    for module in (robust, sampling, schedules, servers):
        protocols = {"Mean", "Sampling", "Schedule", "Server", "Model"}
        for name in set(module.__all__) - protocols:
            assert name in PAGE, name


def test_links_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^\w -]", "", line.strip("# ").lower()).replace(" ", "-")
        for line in PAGE.splitlines()
        if line.startswith("#")
    }
    for file, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", PAGE):
        assert not file or (ROOT / "docs" / file).exists(), file
        assert not anchor or anchor in headings, anchor
