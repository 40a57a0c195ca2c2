"""The pages of the harness, the table of targets, and the command, on figures made up: nothing is timed."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from typer.testing import CliRunner

import planc.cli.bench
from benchmarks.__main__ import main
from benchmarks.harness import Figure, Report, Result, missed
from benchmarks.html import bars, html
from benchmarks.page import page
from benchmarks.rounds import EACH, ONE, RAY, TWO
from benchmarks.suites import suites
from benchmarks.targets import TARGETS, judged
from planc.cli import app


def figure(name: str, ratio: float) -> Figure:
    return Figure(name, ratio * 1e-4, ratio * 9e-5, ratio, 10)


def step(work: str, ratio: float, target: str = "", suite: str = "steps") -> Result:
    here = "plan, in-process worker (message included)"
    return Result(
        suite,
        work,
        "local eager PyTorch",
        (figure("local eager PyTorch", 1.0), figure("plan, run here", 2.0), figure(here, ratio)),
        "one <thread>",
        target,
    )


@pytest.fixture
def report() -> Report:
    report = Report({"processor": "a & b", "cores": 2}, "python -m benchmarks")
    report.results += [
        step("linear 2x1, SGD", 0.2, "<= 0.25x"),
        step("MLP 784-64-10, batch 32, SGD", 0.9, "<= 0.75x"),
        Result(
            "rounds",
            "100 clients x 2 batches of the MLP",
            "plain PyTorch loop",
            (
                figure("plain PyTorch loop", 1.0),
                figure(EACH, 0.9),
                figure(ONE, 0.8),
                figure("Flower 1.0", 40.0),
                figure("pfl 1.0", 1.6),
            ),
            "parameters travel",
            "<= 0.7x",
        ),
        Result(
            "rounds",
            "Ray: 100 clients x 2 batches of the MLP",
            TWO,
            (figure(TWO, 1.0), figure(ONE, 1.5), figure(RAY, 1.2)),
            target="<= 1.3x",
        ),
        Result(
            "micro",
            "200 additions of 8 numbers",
            "by hand",
            (Figure("by hand", 3e-4, 2e-4, 1.0, 5), Figure("executable", 4e-4, 2.4e-4, 1.2, 5)),
            target="<= 0.3 us a node more than the loop",
        ),
    ]
    report.tables["peak"] = [
        {"work": "CNN", "way": "local eager PyTorch", "peak KiB": 1000},
        {"work": "CNN", "way": "plan", "peak KiB": 1100},
    ]
    return report


def test_targets_are_judged_by_the_figures(report: Report) -> None:
    found = {(row["work"], row["baseline"]): (row["measured"], row["verdict"]) for row in judged(report)}
    assert len(found) == len(TARGETS) == 14
    eager = "local eager PyTorch"
    assert found[("linear 2x1 SGD step, message included", eager)] == ("0.200x", "reached")
    assert found[("MLP 784-64-10 step, SGD, batch 32", eager)] == ("0.900x", "**missed**")
    assert found[("the same", "pfl")] == ("0.500x", "**missed**")
    assert found[("round of the MLP, in-process", "plain loop")] == ("0.800x", "**missed**")
    assert found[("the same on Ray, two workers", "two in this process")] == ("1.200x", "reached")
    assert found[("the same", "Flower")] == ("0.020x", "reached")
    assert found[("overhead a node over the bare call", "loop by hand")] == ("0.200 us", "reached")
    assert found[("peak memory of a CNN step", eager)] == ("1.100x", "**missed**")
    assert found[("CNN step, batch 64", eager)] == ("", "not measured")


def test_what_misses_is_bold_and_nothing_else(report: Report) -> None:
    text = page(report)
    assert re.findall(r"\*\*([\d.]+x)\*\*", text) == ["0.90x", "0.80x"]
    assert (
        "| linear 2x1 SGD step, message included | local eager PyTorch | <= 0.25x | 0.200x | reached" in text
    )


def test_without_a_target_a_slower_plan_is_marked() -> None:
    result = step("small transformer", 1.2)
    assert [missed(result, f) for f in result.figures] == [False, True, True]
    elsewhere = step("an empty plan call", 1.2, suite="network")
    assert not any(missed(elsewhere, f) for f in elsewhere.figures)


def test_the_page_of_plots_loads_nothing_and_escapes_what_it_shows(report: Report) -> None:
    text = html(report)
    assert not re.search(r"(src|href)=|@import|url\(", text)
    assert "one &lt;thread&gt;" in text
    assert "a &amp; b" in text
    assert "prefers-color-scheme: dark" in text
    assert text.count("<svg") == len(report.results)
    assert "<strong>0.90x</strong>" in text


def test_bars_are_as_long_as_what_they_show() -> None:
    root = ElementTree.fromstring(bars(step("MLP", 0.5, "<= 0.75x")))
    lengths = [float(bar.attrib["width"]) for bar in root.iter("rect")]
    assert lengths[1] == pytest.approx(2 * lengths[0], abs=0.1)
    assert lengths[2] == pytest.approx(lengths[0] / 2, abs=0.1)
    (line,) = root.iter("line")
    start = float(next(root.iter("rect")).attrib["x"])
    assert float(line.attrib["x1"]) == pytest.approx(start + 0.75 * lengths[0], abs=0.1)


def test_a_suite_runs_and_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {kind: tmp_path / f"found.{kind}" for kind in ("json", "page", "html")}
    options = [part for kind, path in files.items() for part in (f"--{kind}", str(path))]
    assert main(["messages", "--quick", *options]) == 0
    found = json.loads(files["json"].read_text())
    assert {row["way"] for row in found["tables"]["messages"]} >= {"plan a step", "Monarch, eager (quoted)"}
    assert "| 21.01 |" in files["page"].read_text()
    assert files["html"].read_text().count("<svg") == 3
    assert "messages" in capsys.readouterr().out


def test_an_unknown_suite_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["mesages"])
    assert "there is no suite 'mesages'" in capsys.readouterr().err


def test_every_suite_gives_one_thing_and_says_what() -> None:
    for suite in suites().values():
        assert (suite.rows is None) != (suite.results is None)
        assert suite.title
        assert suite.about


def test_planc_bench_passes_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr("benchmarks.__main__.main", lambda arguments: given.append(arguments) or 0)
    result = CliRunner().invoke(app, ["bench", "steps", "micro", "--quick", "--json", "found.json"])
    assert result.exit_code == 0
    assert given == [["steps", "micro", "--quick", "--threads", "1", "--json", "found.json"]]


def test_planc_bench_says_where_it_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(planc.cli.bench, "_ROOT", tmp_path)
    result = CliRunner().invoke(app, ["bench"])
    assert result.exit_code == 1
    assert "run this in a checkout" in result.output
