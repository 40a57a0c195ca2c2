"""examples/: every file runs, prints what its comments say it prints, and is in the index.

What the rows of the tutorial must give in numbers is in tests/parity.
"""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from runtime.demo import mnist
from tests.network.fixtures import channel  # noqa: F401

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(path.stem for path in EXAMPLES.glob("t*_*.py"))
Run = Callable[..., list[str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an example in an empty folder; returns the lines that it printed, ids replaced."""
    whole = mnist.load_embedded()
    few = mnist.MnistSplit(whole.train_x[:200], whole.train_y[:200], whole.test_x[:50], whole.test_y[:50])
    monkeypatch.setattr(mnist, "load_embedded", lambda: few)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)

    def execute(name: str, *args: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [name, *args])
        with torch.random.fork_rng():
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return re.sub(r"\b\d{15,}\b", "<id>", capsys.readouterr().out).splitlines()

    return execute


@pytest.mark.parametrize("name", FILES)
def test_it_prints_what_its_comments_say(name: str, run: Run, channel: str) -> None:  # noqa: F811
    printed = run(name)
    assert printed
    shown = re.findall(r"# -> (.*)$", (EXAMPLES / f"{name}.py").read_text(encoding="utf-8"), re.MULTILINE)
    rest = iter(printed)
    missing = [line for line in shown if line not in rest]  # each after the one before it
    assert not missing, printed


def test_there_is_one_for_each_row() -> None:
    assert [name[:3] for name in FILES] == [f"t{row:02}" for row in range(1, 14)]
    for name in FILES:
        first = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith(f'"""T{int(name[1:3])}: ')


def test_the_index_has_every_file() -> None:
    index = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[(.*?)\]\((.*?)\) \|", index, re.MULTILINE)
    assert [target for _, target in listed] == [f"{name}.py" for name in FILES]
    assert all(text == target for text, target in listed)


def test_most_lines_that_are_printed_are_shown() -> None:
    for name in ("t01", "t02", "t03", "t07", "t08", "t11", "t13"):
        (path,) = EXAMPLES.glob(f"{name}_*.py")
        source = path.read_text(encoding="utf-8")
        assert source.count("# -> ") == source.count("print("), name


@pytest.mark.parametrize(("args", "rows"), [(["128", "1"], 128), (["--all"], 256)])
def test_mnist_trains_on_as_many_images_as_asked(
    run: Run, tmp_path: Path, args: list[str], rows: int
) -> None:
    printed = run("t10_mnist", *args)
    assert printed[0].startswith(f"Train Epoch: 1 [0/{rows} (0%)]\tLoss: ")
    saved = torch.load(tmp_path / "mnist_mlp.pt", weights_only=True)
    assert set(saved) == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
