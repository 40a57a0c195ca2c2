"""`planc demo`: its options reach the demo, its exit code comes back. The rest is tested in tests/demo."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.cli.conftest import Call


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The calls of a demo that only notes them, and that ends with exit code 8."""
    noted: list[dict[str, Any]] = []

    def demo(**options: Any) -> int:
        noted.append(options)
        return 8 if options["download"] else 0

    module = ModuleType("runtime.demo.command")
    vars(module)["demo"] = demo
    monkeypatch.setitem(sys.modules, "runtime.demo.command", module)
    return noted


DEFAULTS = {
    "workers": 4,
    "rounds": None,
    "seed": 0,
    "data": None,
    "download": False,
    "json": False,
    "report": Path("planc-demo.html"),
    "model_out": Path("planc-demo-model.pt"),
    "batch_size": 64,
    "engine": "in-process",
}


def test_defaults(call: Call, calls: list[dict[str, Any]]) -> None:
    call("demo")
    assert calls == [DEFAULTS]


def test_options(call: Call, calls: list[dict[str, Any]]) -> None:
    args = "demo --workers 8 --rounds 3 --seed 5 --data d --download --json --report r.html --model-out m.pt"
    call(*args.split(), "--batch-size", "32", "--engine", "ray", code=8)
    assert calls == [
        {
            "workers": 8,
            "rounds": 3,
            "seed": 5,
            "data": Path("d"),
            "download": True,
            "json": True,
            "report": Path("r.html"),
            "model_out": Path("m.pt"),
            "batch_size": 32,
            "engine": "ray",
        }
    ]


def test_numbers_are_checked(call: Call, calls: list[dict[str, Any]]) -> None:
    for option in ("--workers", "--rounds", "--batch-size"):
        assert option in call("demo", option, "0", code=2).stderr
    assert calls == []
