"""Rounds at scale: what each sends, exactly; the suite's lines and plots, and the planning note's formula."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import coordinator, planning, rounds, scaling
from benchmarks.coordinator import Bench, Point, Sizes
from benchmarks.curves import Line, Series, fit, plot
from benchmarks.planning import Constants
from benchmarks.scaling import Row, row
from benchmarks.scenarios import Scenario
from benchmarks.workloads import MLP_SGD
from runtime import VirtualWorker

SIZES = Sizes(80, (10, 20), 4, (4, 8), 8, 1, (64,), ())
ELEMENTS = 50_890
MEMBER = 100
"""Bytes that are said of a client in the message, at most."""


@pytest.fixture(scope="module")
def found() -> dict[str, list[Point]]:
    """What a tiny run finds, by work; only its counts are looked at."""
    torch.set_num_threads(1)
    bench = Bench("here", [VirtualWorker("bob")], SIZES)
    plan, data = coordinator.mlp(64), (torch.randn(640, 784), torch.randint(10, (640,)))
    parts = (bench.against_cohort, bench.against_workers, bench.against_others)
    return {points[0].work: points for points in ([*part(plan, data)] for part in parts)}


# -- what a round sends ------------------------------------------------------------------------------------


def test_a_round_is_a_message_a_worker(found: dict[str, list[Point]]) -> None:
    assert [(point.workers, point.messages) for point in found[coordinator.WORKERS]] == [
        (1, 1),
        (2, 2),
        (4, 4),
    ]
    others = found[coordinator.COHORT] + found[coordinator.OTHERS]
    assert {point.messages for point in others} == {1}


def test_the_model_goes_out_once_a_worker_and_comes_back_as_one_sum(found: dict[str, list[Point]]) -> None:
    for point in (point for points in found.values() for point in points):
        assert point.elements == ELEMENTS
        workers, cohort = point.workers or 0, point.cohort or 0
        out = (point.bytes_out or 0) - workers * 4 * ELEMENTS
        back = (point.bytes_in or 0) - workers * 8 * ELEMENTS
        assert 0 < out < 700 * workers + MEMBER * cohort
        assert 0 < back < 700 * workers + MEMBER * cohort


def test_who_is_not_in_the_cohort_costs_no_bytes(found: dict[str, list[Point]]) -> None:
    points = found[coordinator.OTHERS]
    assert [point.clients for point in points] == [8, 16, 40, 80]
    bytes_out = [point.bytes_out or 0 for point in points]
    assert (
        max(bytes_out) - min(bytes_out) <= 128
    )  # row numbers take as many bytes as they need, and are padded


def test_data_made_on_demand_is_sent_once_and_memory_is_told() -> None:
    torch.set_num_threads(1)
    bench = Bench("here", [VirtualWorker("bob")], SIZES)
    points = [*bench.on_demand(coordinator.mlp(64))]
    assert [point.clients for point in points] == [10, 20]
    for point in points:
        assert point.messages in (1, 2)
        assert (point.peak or 0) > 100


# -- the suite of rounds -----------------------------------------------------------------------------------


def test_all_ways_of_the_rounds_give_the_loops_parameters() -> None:
    torch.set_num_threads(1)
    scenario = Scenario("tiny", MLP_SGD, 4, 4, 2, 8)
    data, plan = scenario.data(), rounds.client_plan(scenario)
    plain = rounds.Plain(scenario, data)
    ours = [
        rounds.Each(scenario, data, plan),
        rounds.Ours(scenario, data, plan, rounds.here(1)),
        rounds.Ours(scenario, data, plan, rounds.here(2)),
    ]
    for _ in range(2):
        plain.round()
        for way in ours:
            way.round()
    assert all(rounds.difference(plain.state, way.state) < 1e-6 for way in ours)
    assert rounds.difference(ours[1].state, ours[2].state) == 0


def test_cohorts_are_the_next_in_line() -> None:
    scenario = Scenario("tiny", MLP_SGD, 6, 2, 1, 4)
    sampling = rounds.NextInLine(scenario)
    drawn = [sampling.sample(number, 6, [1.0] * 6, 0) for number in (1, 2, 3, 4)]
    assert drawn == [(0, 1), (2, 3), (4, 5), (0, 1)]
    with pytest.raises(ValueError, match="all of its workers"):
        rounds.Each(scenario, scenario.data(), rounds.client_plan(scenario))


# -- lines and plots ---------------------------------------------------------------------------------------


def test_a_line_goes_through_its_points() -> None:
    line = fit([1, 2, 4], [5, 7, 11])
    assert (line.slope, line.intercept, line.r2) == pytest.approx((2, 3, 1))
    assert fit([0, 1, 2, 3], [0, 1, 0, 1]).r2 == pytest.approx(0.2)
    assert fit([1, 2], [3, 3]) == Line(0, 3, 1)
    with pytest.raises(ValueError, match="different x"):
        fit([2, 2], [1, 3])


@pytest.mark.parametrize(("last", "middle"), [(21, 11), (100, 10)])
def test_dots_are_where_their_values_are(last: float, middle: float) -> None:
    """Half way: of a plain axis and, where values differ much, of a logarithmic one."""
    text = plot(
        "a <b>", "x", "ms", [Series("ours", "ours", [(1, 10), (middle, 5), (last, 0)], Line(0, 5, 1))]
    )
    root = ElementTree.fromstring(text)
    dots = [dot for dot in root.iter("circle") if len(dot)]
    across, down = ([float(dot.attrib[name]) for dot in dots] for name in ("cx", "cy"))
    assert across[1] == pytest.approx((across[0] + across[2]) / 2, abs=0.2)
    assert down[1] == pytest.approx((down[0] + down[2]) / 2, abs=0.2)
    assert down[0] < down[2]
    (line,) = root.iter("polyline")
    assert {point.split(",")[1] for point in line.attrib["points"].split()} == {f"{down[1]:.1f}"}


def test_an_engine_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_ray(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if '"here"' in command[-1]:
            return subprocess.CompletedProcess(command, 1, "", "Traceback\nValueError: broken")
        return subprocess.CompletedProcess(command, 0, '{"why": "Ray is missing"}\n', "")

    monkeypatch.setattr(subprocess, "run", no_ray)
    rows = [*scaling.run(quick=True)]
    assert [row["work"] for row in rows] == ["not measured"] * 2
    assert [row["way"] for row in rows] == [
        "in this process: failed: ValueError: broken",
        "on Ray: Ray is missing",
    ]
    with pytest.raises(ValueError, match="Ray is missing"):
        planning.block(rows, {})


# -- the planning note -------------------------------------------------------------------------------------

TRUE = Constants(
    round=Line(1e-5, 4, 1),
    member=Line(2e-6, 0.2, 1),
    step=Line(1e-6, 0.1, 1),
    client=4e-5,
    message=1.5,
    out=0.7,
    back=0.9,
    member_out=60,
    member_in=20,
    base=400,
    each=1e-4,
    element=1e-5,
)


def _said(point: Point, ray: bool) -> Row:
    """The point, as the formula has it."""
    clients, cohort, elements = point.clients or 0, point.cohort or 0, point.elements or 0
    constants = TRUE if ray else replace(TRUE, message=0, out=0, back=0)
    ms = constants.ms(0, cohort, elements, point.workers or 1, point.steps or 2)
    out, back = TRUE.bytes(cohort, elements, point.workers or 1)
    peak = TRUE.mib(clients, elements, 2) if point.work in (coordinator.DEMAND, coordinator.MEMORY) else None
    return row(replace(point, ms=ms, bytes_out=int(out), bytes_in=int(back), peak=peak))


@pytest.fixture
def rows() -> list[Row]:
    """A run that the formula fits exactly."""
    here, ray, small, large = "here", "ray", ELEMENTS, 814_090
    model = [
        Point(coordinator.MODEL, here, 24, cohort, elements, steps, 1)
        for elements in (small, large)
        for cohort, steps in ((4, 1), (24, 1), (24, 5))
    ]
    there = [
        *(Point(coordinator.COHORT, ray, 10_000, cohort, small, 2, 2) for cohort in (50, 250, 500)),
        *(Point(coordinator.DEMAND, ray, clients, 500, small, 2, 2) for clients in (1_000, 1_000_000)),
        Point(coordinator.MEMORY, ray, 0, 4, large, 2, 2),
    ]
    found = [_said(point, ray=False) for point in model] + [_said(point, ray=True) for point in there]
    found += [row(Point(coordinator.DRAW, here, clients=n, ms=TRUE.client * n)) for n in (1_000, 1_000_000)]
    found.append(row(Point(coordinator.EMPTY, ray, messages=1, ms=TRUE.message)))
    found.append(row(Point(coordinator.BYTES, ray, bytes_out=16 * 2**20, ms=16 * TRUE.out)))
    found.append(row(Point(coordinator.BYTES, ray, bytes_in=16 * 2**20, ms=16 * TRUE.back)))
    return found


def test_constants_are_found_in_what_was_measured(rows: list[Row]) -> None:
    found = planning.constants(rows)
    assert found is not None
    for setting in planning.SETTINGS:
        clients, cohort, elements, workers = setting
        assert found.ms(*setting) == pytest.approx(TRUE.ms(*setting), rel=1e-3)
        assert found.mib(clients, elements, workers) == pytest.approx(
            TRUE.mib(clients, elements, workers), rel=1e-3
        )
        assert found.bytes(cohort, elements, workers) == pytest.approx(
            TRUE.bytes(cohort, elements, workers), rel=1e-2
        )


def test_a_round_by_the_formula() -> None:
    """500 of a million clients at 20 workers, by hand: 4.5 + 40 + 25 * (0.3 + 2 * 0.15) + 30 + bytes."""
    mib = (20 * 4 * 50_000 + 500 * 60) / 2**20 * 0.7 + (20 * 8 * 50_000 + 500 * 20) / 2**20 * 0.9
    assert TRUE.ms(1_000_000, 500, 50_000, 20) == pytest.approx(4.5 + 40 + 25 * 0.6 + 30 + mib)


def test_the_page_says_it(rows: list[Row]) -> None:
    text = planning.block(rows, {"cores": 2})
    assert "| `t_message` | an empty message to Ray and back | 1.5 ms |" in text
    checks = [line for line in text.splitlines() if line.startswith("| on Ray | 10,000 | 500 | 2 |")]
    # The formula counts a draw of 10,000 clients, which the made-up times leave out.
    assert [line.split(" | ")[-1] for line in checks] == ["1.00 |"]
    page = planning.written(f"before\n{planning.BEGIN}\nold\n{planning.END}\nafter\n", text)
    assert page.startswith("before\n") and page.endswith("\nafter\n")  # noqa: PT018
    assert "old" not in page


def test_the_note_in_the_repository_has_its_marks_and_tables() -> None:
    page = planning.PAGE.read_text(encoding="utf-8")
    assert planning.written(page, "new").count("new") >= 1
    for clients, cohort, elements, workers in planning.SETTINGS:
        assert f"| {clients:,} | {cohort:,} | {elements:,} | {workers} | {workers} |" in page


def test_the_suite_is_plotted(rows: list[Row]) -> None:
    text = scaling.plots(rows)
    assert text.count("<svg") == 3
    assert text.count("<polyline") == 2
    assert "time against the cohort: ms a round" in text
    (line,) = (row for row in scaling.lines(rows) if row["work"].startswith(coordinator.COHORT))
    assert line["way"].startswith("on Ray: ")
    assert line["way"].endswith("r2 1.0000")
