"""`planc demo`: its files, its output for people and machines, its errors, and Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import planc
from planc.errors import DataError, InputError
from runtime.demo import command
from runtime.demo.command import demo
from runtime.demo.network import Net
from tests.processes import start
from tests.test_mnist import TEST_X, TEST_Y, TRAIN_X, TRAIN_Y, idx_images, idx_labels, write

ROOT = Path(__file__).parents[2]
FILES = {
    TRAIN_X: idx_images(50),
    TRAIN_Y: idx_labels([i % 10 for i in range(50)]),
    TEST_X: idx_images(10),
    TEST_Y: idx_labels(list(range(10))),
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "mnist"
    write(folder, FILES)
    return folder


@pytest.fixture
def run(data: Path, tmp_path: Path, step: planc.Plan, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The demo on small files, with the step that is captured already."""
    monkeypatch.setattr(command, "capture_step", lambda network: step.with_state(dict(network.state_dict())))
    monkeypatch.setattr(command, "_REPEATS", 1)
    defaults = {
        "workers": 2,
        "rounds": 2,
        "batch_size": 25,
        "data": data,
        "report": tmp_path / "report.html",
        "model_out": tmp_path / "model.pt",
    }
    return lambda **changed: demo(**{**defaults, **changed})


def load(path: Path) -> None:
    Net().load_state_dict(torch.load(path, weights_only=True))


class Page(HTMLParser):
    """Collects what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        outside = {"src", "href", "xlink:href", "srcset", "data", "action"}
        self.fetched += [(tag, value) for name, value in attrs if name in outside]
        if tag in ("script", "link", "iframe", "object"):
            self.fetched.append((tag, None))


def test_a_run_for_people(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    captured = capsys.readouterr()
    out = captured.out
    assert captured.err == ""
    # Piped: no bar, no colours, no cursor movements; at most 80 columns but for names of files.
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out)
    assert [line for line in out.splitlines() if len(line) > 80 and str(tmp_path) not in line] == []
    assert "50 MNIST images" in out
    assert re.search(r"^ +2 .*%  +2 ", out, re.MULTILINE)
    for way in ("plain PyTorch, here", "eagerly", "a plan a batch", "a plan a round"):
        assert re.search(rf"^{way} +[\d,]+\*? ", out, re.MULTILINE)
    assert "one message more a worker" in " ".join(out.split())
    load(tmp_path / "model.pt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mnist", "model.pt", "report.html"]

    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    reader = Page()
    reader.feed(page)
    assert reader.fetched == []
    # The namespace of SVG is a name that is never fetched.
    assert not re.search(
        r"@import|url\((?!#)|https?://", page.replace('xmlns="http://www.w3.org/2000/svg"', "")
    )
    assert "$" not in re.sub(
        r"<pre>.*</pre>", "", page, flags=re.DOTALL
    )  # every place of the template is filled
    assert "prefers-color-scheme: dark" in page
    assert page.count("<svg") == 3
    assert "plan epoch_of_train_net(" in page


def test_json_is_all_of_standard_output(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["data"] == {"source": found["data"]["source"], "training": 50, "held_out": 10}
    assert [r["round"] for r in found["rounds"]] == [1, 2]
    assert [r["messages"] for r in found["rounds"]] == [2, 2]
    assert found["accuracy"] == found["rounds"][-1]["accuracy"]
    assert found["installing_plan"]["messages"] == 2
    ways = {way["way"]: way for way in found["comparison"]}
    assert ways["round"]["messages"] == 2
    assert ways["local"]["bytes"] == 0
    assert (ways["eager"]["batches"], ways["eager"]["extrapolated"]) == (2, False)
    assert Path(found["model"]) == tmp_path / "model.pt"
    assert Path(found["report"]).exists()


def test_ctrl_c_before_the_first_round_saves_nothing(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "capture_step", interrupted)
    assert run(json=True) == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "interrupted before the first round was done: nothing was saved\n"
    assert [p.name for p in tmp_path.iterdir()] == ["mnist"]


def test_ctrl_c_while_measuring_keeps_the_model(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_compare", interrupted)
    assert run() == 130
    assert "interrupted after round 2 of 2: the model so far" in capsys.readouterr().err
    load(tmp_path / "model.pt")
    assert not (tmp_path / "report.html").exists()


def test_sigint_of_a_real_process(data: Path, tmp_path: Path) -> None:
    """While rounds are running, with everything as it is: capture, threads, the file."""
    code = (
        "import sys; from pathlib import Path; from runtime.demo.command import demo\n"
        f"sys.exit(demo(workers=2, rounds=1000000, data=Path({str(data)!r})))"
    )
    process = start(
        code,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if re.match(r" +2 ", line):
                break
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert re.fullmatch(
        r"interrupted after round \d+ of 1000000: the model so far \(held-out accuracy [\d.]+%\) "
        r"is in planc-demo-model\.pt; no report was written\n",
        err,
    )
    load(tmp_path / "planc-demo-model.pt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mnist", "planc-demo-model.pt"]


def test_a_corrupt_file_is_a_clear_error(run: Any, data: Path, tmp_path: Path) -> None:
    (data / TRAIN_X).write_bytes(FILES[TRAIN_X][:-1])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte: truncated"):
        run()
    assert [p.name for p in tmp_path.iterdir()] == ["mnist"]


def test_the_command_line_ends_with_the_code_of_the_error(data: Path) -> None:
    from typer.testing import CliRunner

    from planc.cli.app import app

    (data / TEST_Y).unlink()
    ended = CliRunner().invoke(app, ["demo", "--data", str(data)])
    assert ended.exit_code == 8
    assert "missing t10k-labels-idx1-ubyte" in " ".join(ended.output.split())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"rounds": -1}, "rounds must be at least 1, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"download": True, "data": None}, "--download needs --data DIR"),
    ],
    ids=str,
)
def test_numbers_out_of_range_are_errors(run: Any, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(**changed)


@pytest.mark.parametrize("name", ["report", "model_out"])
def test_files_that_cannot_be_written_are_found_before_the_work(run: Any, tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        run(**{name: tmp_path / "missing" / "file"})
    with pytest.raises(IsADirectoryError, match="is a folder"):
        run(**{name: tmp_path})
