"""docs/from-pysyft.md: its example runs, and every name that it says is here is here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import planc
import runtime
from runtime.worker import Worker

PAGE = (Path(__file__).parents[2] / "docs" / "from-pysyft.md").read_text(encoding="utf-8")
NAMES = PAGE.split("\n## Names\n")[1].split("\n## ")[0]
ROOTS = {"planc": planc, "runtime": runtime, "Plan": planc.Plan, "PlanModule": planc.PlanModule}


def resolve(name: str) -> object:
    """What a dotted name of the page means."""
    root, *rest = name.split(".")
    found = ROOTS.get(root) or getattr(runtime, root)
    for attribute in rest:
        found = getattr(found, attribute)
    return found


def test_names_of_the_second_column_are_here() -> None:
    rows = [line.split(" | ") for line in NAMES.splitlines() if line.startswith("| `")]
    assert len(rows) > 30
    names = [name for _, here, *_ in rows for name in re.findall(r"`([^`]+)`", here)]
    assert len(names) > 35
    handle = runtime.VirtualWorker("bob").send(torch.zeros(1))
    for name in names:
        if name == "RemoteTensor.location":
            assert handle.location.id == "bob"
        else:
            assert resolve(name) is not None, name


def test_the_other_names_that_it_mentions_are_here() -> None:
    names = set(re.findall(r"`((?:planc|runtime)\.\w+)`", PAGE))
    assert {"planc.train_step", "runtime.record"} <= names
    assert all(resolve(name) is not None for name in names)
    assert callable(Worker.approve)


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    namespace: dict[str, object] = {"__name__": "page"}
    exec(compile(code, "from-pysyft.md", "exec"), namespace)
    assert capsys.readouterr().out == "True\n"
    assert isinstance(namespace["there"], runtime.RemotePlan)


def test_every_fault_of_the_old_tool_is_listed() -> None:
    faults = PAGE.split("\n## What behaves differently, and why\n")[1].split("\n## ")[0]
    rows = [line for line in faults.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 19
    assert all(len(row.strip("| ").split(" | ")) == 2 for row in rows)
