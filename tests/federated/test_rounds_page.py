"""docs/federated.md: its examples run and print what it says, and it names every event, setting and rule."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from pathlib import Path
from typing import Any, get_args

from runtime.federated import events, stopping
from runtime.federated.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "federated.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", re.DOTALL)
NUMBER = re.compile(r"\d+\.\d+")


def test_examples_run_and_print_what_the_page_says() -> None:
    names: dict[str, Any] = {}
    blocks = BLOCK.findall(PAGE)
    assert len(blocks) == 6
    for source, shown in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as stream:
            exec(compile(source, "federated.md", "exec"), names)
        printed = stream.getvalue()
        assert NUMBER.sub("#", printed) == NUMBER.sub("#", shown), source
        pairs = zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True)
        assert all(abs(float(a) - float(b)) <= 0.021 for a, b in pairs), printed


def test_every_event_setting_and_rule_is_on_the_page() -> None:
    wanted = [event.__name__ for event in get_args(events.Event)]
    wanted += [field.name for field in dataclasses.fields(Settings)]
    wanted += [name for name in stopping.__all__ if name not in ("Rule", "check_metrics")]
    for name in wanted:
        assert f"`{name}" in PAGE, name


def test_defaults_on_the_page_are_those_of_the_settings() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", PAGE, re.MULTILINE))
    for field in dataclasses.fields(Settings):
        shown = rows[field.name].strip().removesuffix(" s").strip('`"')
        is_number = isinstance(field.default, (int, float))
        assert shown == (f"{field.default:g}" if is_number else str(field.default or "none")), field.name


def test_links_lead_somewhere() -> None:
    for file in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / file).exists(), file
