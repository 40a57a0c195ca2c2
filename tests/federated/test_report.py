"""The page of a run: whole, well-formed, self-contained, and true to the events."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from planc.cli import app
from runtime.federated import events as E
from runtime.federated.watch import JsonLines, Report, render
from runtime.federated.watch.history import History
from tests.federated.events import run

VOID = {"meta", "line", "circle", "polyline", "br", "img", "link"}


class Page(HTMLParser):
    """Checks that tags close in order, and collects the texts of table cells and headings."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.headings: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "dd"):
            self.cells.append("")
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if any(tag in ("td", "dd") for tag in self.open):
            self.cells[-1] += data
        elif self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings[-1] += data


def test_the_page_says_what_happened() -> None:
    page = Page(render(History.of(run()), "A run & more"))
    assert page.headings[0] == "A run & more"
    assert [
        h for h in page.headings if h in ("accuracy", "loss", "clients", "messages", "bytes", "seconds")
    ] == [
        "accuracy",
        "loss",
        "clients",
        "messages",
        "bytes",
        "seconds",
    ]
    for cell in (
        "90.00%",
        "nonsense: fc.weight is NaN",
        "no reply in 5 s",
        "1 of 4 clients count, the quorum is 2",
        "fedavg",
    ):
        assert cell in page.cells


def test_the_page_needs_nothing_else() -> None:
    page = render(History.of(run()))
    assert "<script" not in page
    assert "@import" not in page
    assert not [v for name, v in Page(page).attributes if name in ("src", "href", "onload", "onclick")]
    assert not re.search(r"url\(|https?://", page)
    assert "prefers-color-scheme: dark" in page


def test_what_comes_from_elsewhere_is_escaped() -> None:
    evil = "<script>alert(1)</script>"
    told = [
        E.RunStarted(1, (evil,), 1, 0, evil, {evil: evil}),
        E.RoundStarted(1, (0,)),
        E.ClientsDone(1, evil, (), {0: evil}, (), 0.1, 1, 1),
        E.WorkerLost(1, evil, evil, (), ()),
        E.WorkerRefused(1, evil, evil, ()),
        E.CheckpointSkipped(evil, evil),
        E.CheckpointSaved(1, evil),
        E.RoundDone(1, 1.0, 1, 1.0, {evil: 1.0}, {evil: 1.0}, 1, 1, 1, {evil: 1.0}),
        E.RoundFailed(2, evil),
        E.RunDone(1, evil, 1.0),
    ]
    page = render(History.of(told), evil)
    Page(page)
    assert "<script" not in page


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_a_run_that_has_hardly_begun_has_a_page(count: int) -> None:
    page = render(History.of(list(run())[:count]))
    Page(page)
    assert "not ended" in page or count == 0


def test_many_failures_are_cut_and_counted() -> None:
    failed = {client: f"op {client} failed" for client in range(100)}
    events = [E.RoundStarted(1, tuple(range(100))), E.ClientsDone(1, "a", (), failed, (), 0.1, 1, 1)]
    page = render(History.of(events))
    assert "and 60 more" in page
    assert page.count("failed</td>") == 40


def test_the_callback_writes_the_page_at_the_end_and_when_a_round_failed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    report = Report(path, every=1e9)
    written = []
    for event in run():
        report(event)
        if path.exists():
            written.append(type(event).__name__)
            path.unlink()
    assert written == ["RoundFailed", "RunDone"]


def test_the_callback_of_a_resumed_run_has_the_rounds_before(tmp_path: Path) -> None:
    report = Report(tmp_path / "r.html", before=run(5, last=3))
    for event in run(5, first=2):
        report(event)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Resumed before round 2" in page
    assert page == render(History.of([*run(5, last=3), *run(5, first=2)]))


def test_planc_report_makes_the_same_page_of_the_lines(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "events.jsonl")
    for event in run():
        lines(event)
    out = tmp_path / "page.html"
    call = ["report", str(tmp_path / "events.jsonl"), "-o", str(out), "--title", "T"]
    result = CliRunner().invoke(app, call)
    assert (result.exit_code, result.output) == (0, f"wrote {out}: 4 rounds\n")
    assert out.read_text(encoding="utf-8") == render(History.of(run()), "T")


def test_planc_report_of_something_else_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("hello\n")
    result = CliRunner().invoke(app, ["report", str(tmp_path / "x")])
    assert result.exit_code == 8
    assert "line 1: expected an event of a run" in result.stderr
