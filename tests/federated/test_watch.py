"""What watches a run: lines on a screen, JSON lines, TensorBoard, and the events gathered."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from planc.errors import DataError, PlancError
from runtime.federated import events as E
from runtime.federated.watch import JsonLines, Progress, TensorBoard, read_lines
from runtime.federated.watch.history import History
from tests.federated.events import run


def tell(callback: Callable[[E.Event], None], events: Iterable[E.Event]) -> None:
    for event in events:
        callback(event)


def same(a: Iterable[E.Event], b: Iterable[E.Event]) -> bool:
    return [repr(event) for event in a] == [repr(event) for event in b]  # NaN is not equal to itself


# -- JSON lines


def test_lines_give_the_events_back(tmp_path: Path) -> None:
    tell(JsonLines(tmp_path / "deep" / "run.jsonl"), run())
    assert same(read_lines(tmp_path / "deep" / "run.jsonl"), run())


def test_every_kind_of_event_has_its_line(tmp_path: Path) -> None:
    values = {
        "number": 2,
        "why": "ü\n",
        "worker": "a",
        "dropped": (1,),
        "path": "p",
        "rounds": 2,
        "seconds": 0.5,
    }
    some = [
        E.RunStarted(1, ("a",), 2, 0, "id", {"x": None}, 1),
        E.WorkerRefused(**{k: values[k] for k in ("number", "worker", "why", "dropped")}),
        E.CheckpointSkipped(path="p", why="w"),
    ]
    with JsonLines(tmp_path / "run.jsonl") as lines:
        tell(lines, some)
    assert read_lines(tmp_path / "run.jsonl") == some


def test_lines_are_there_at_once_and_are_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with JsonLines(path) as lines:
        for count, event in enumerate(run(), 1):
            lines(event)
            assert len(path.read_text().splitlines()) == count

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_a_resumed_run_has_each_round_once(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with JsonLines(path) as lines:
        tell(lines, run(5, last=3))
    skipped = E.CheckpointSkipped("checkpoints/3", "damaged")
    tell(JsonLines(path), [skipped, *run(5, first=2)])
    found = read_lines(path)
    done = [event.number for event in found if isinstance(event, E.RoundDone)]
    assert done == [1, 2, 3, 5]
    assert [event.first for event in found if isinstance(event, E.RunStarted)] == [1, 2]
    assert skipped in found
    whole = History.of(run(5))
    assert repr(History.of(found).rounds) == repr(whole.rounds)


def test_a_line_that_was_cut_is_left_out_and_the_file_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with JsonLines(path) as lines:
        tell(lines, run(5, last=2))
    path.write_bytes(path.read_bytes()[:-7])  # killed while it wrote
    kept = len(read_lines(path))
    tell(JsonLines(path), run(5, first=2))
    assert kept == len(list(run(5, last=2))) - 1
    assert [e.number for e in read_lines(path) if isinstance(e, E.RoundDone)] == [1, 2, 3, 5]


def test_a_run_from_round_1_begins_the_file_anew(tmp_path: Path) -> None:
    for _ in range(2):
        tell(JsonLines(tmp_path / "run.jsonl"), run())
    assert same(read_lines(tmp_path / "run.jsonl"), run())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2"),
        ("3", "got int"),
        ('{"event": "Nonsense"}', "one of RunStarted"),
        ('{"event": "RoundFailed", "number": 1}', "RoundFailed"),
        ('{"event": "RoundFailed", "number": "one", "why": ""}', "Expected `int`"),
        ('{"event": "RoundStarted", "number": 1, "cohort": [1], "more": 2}', "more"),
        ('{"event": "ClientsDone", "number": 1, "failed": 3}', "line 2"),
    ],
)
def test_lines_that_are_no_events_are_refused(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text('{"event": "RoundStarted", "number": 1, "cohort": [1]}\n' + line + "\n")
    with pytest.raises(DataError, match="expected an event of a run") as error:
        read_lines(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_bytes_are_no_lines(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_lines(tmp_path / "x")


# -- on a screen


def test_elsewhere_than_on_a_terminal_a_round_is_a_line() -> None:
    screen = io.StringIO()
    tell(Progress(screen), run())
    lines = screen.getvalue().splitlines()
    assert lines[0] == "10 clients at 2 workers, 5 rounds"
    assert lines[2].split() == ["1", "3", "0", "1", "2.1000", "50.00%", "2", "1.95", "KiB", "0.50"]
    assert [line.split()[0] for line in lines[2:-1]] == ["1", "2", "3", "3", "4", "5"]
    assert "worker b lost: no reply in 5 s (1 client rescheduled, 1 client dropped)" in lines[4]
    assert "failed: 1 of 4 clients count" in lines[6]
    assert lines[-1] == "5 rounds, 1.5 s: all rounds were done"
    assert "\x1b" not in screen.getvalue()


def test_columns_stand_below_their_names() -> None:
    screen = io.StringIO()
    tell(Progress(screen), run())
    header, row = screen.getvalue().splitlines()[1:3]
    ends = [
        header.index(name) + len(name) for name in ("round", "done", "failed", "late", "loss", "accuracy")
    ]
    assert all(row[end - 1] != " " and row[end : end + 1] in (" ", "") for end in ends), f"\n{header}\n{row}"


def test_a_round_without_metrics_has_dashes() -> None:
    screen = io.StringIO()
    tell(Progress(screen), [E.RoundStarted(1, (0,)), E.RoundDone(1, 0.1, 1, 1.0, {}, {}, 1, 1, 1, {})])
    assert screen.getvalue().split()[4:6] == ["-", "-"]


def test_on_a_terminal_there_are_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    screen = Terminal()
    progress = Progress(screen)
    tell(progress, run(5, last=2))
    progress.close()
    shown = screen.getvalue()
    assert "clients of round 2" in shown
    assert "1 failed" in shown
    assert "\x1b[?25h" in shown, "the cursor is given back"
    assert "worker b" not in shown


# -- TensorBoard


def test_tensorboard_has_a_point_a_round(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with_cut = [*run(5, last=3), *run(5, first=3)]
    tell(TensorBoard(tmp_path), with_cut)
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert [(s.step, round(s.value, 3)) for s in found.Scalars("evaluation/accuracy")] == [
        (1, 0.5),
        (2, 0.75),
        (3, 0.833),
        (5, 0.9),
    ]
    assert [s.value for s in found.Scalars("clients/failed")] == [0, 1, 0, 0]
    assert [s.step for s in found.Scalars("round/failed")] == [4]


def test_without_the_package_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(PlancError, match=r"planc\[tensorboard\]"):
        TensorBoard(tmp_path)


# -- gathered


def test_history_counts_what_happened() -> None:
    history = History.of(run())
    assert [record.done for record in history.rounds.values()] == [3, 3, 3, 2, 3]
    assert history.rounds[2].failed == [(3, "b", "nonsense: fc.weight is NaN")]
    assert history.rounds[3].dropped == 1
    assert history.reasons() == {"nonsense: fc.weight is NaN": 1}
    assert history.last("accuracy") == pytest.approx(0.9)
    stragglers = history.stragglers()
    assert list(stragglers) == ["b", "a"]
    assert (stragglers["a"].worst, stragglers["a"].last, stragglers["b"].last) == (0.5, 2, 2)
    assert history.end is not None


def test_history_takes_clients_and_training_where_nothing_else_is_measured() -> None:
    def done(number: int, metrics: dict[str, float], evaluation: dict[str, float]) -> E.Event:
        return E.RoundDone(number, 1.0, 1, 1.0, metrics, evaluation, 1, 1, 1, {})

    assert History.of([done(1, {"loss": 2.0}, {})]).last("loss") == 2.0
    both = [done(1, {"loss": 2.0}, {"clients.loss": 3.0}), done(2, {"loss": 1.0}, {})]
    assert History.of(both).last("loss") == 3.0
    assert History.of(both).last("accuracy") is None
