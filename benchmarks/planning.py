"""The planning note's tables, from a run of the suite "scaling": constants, checks and the extrapolation.

``python -m benchmarks.planning`` measures, and writes them into docs/planning.md between its marks;
with a file, it takes what ``python -m benchmarks scaling --json FILE`` found.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.coordinator import BYTES, COHORT, DEMAND, DRAW, EMPTY, MEMORY, MODEL, WORKERS
from benchmarks.curves import Line, fit
from benchmarks.harness import machine
from benchmarks.scaling import ENGINES, ROOT, Row, chosen, fitted, run

PAGE = ROOT / "docs" / "planning.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
HERE, RAY = ENGINES["here"], ENGINES["ray"]
MIB = 2**20
SETTINGS = (
    (10_000, 500, 50_890, 2),
    (1_000_000, 500, 50_890, 2),
    (1_000_000, 1_000, 50_890, 20),
    (1_000_000, 10_000, 50_890, 20),
    (1_000_000, 10_000, 50_890, 200),
    (1_000_000, 10_000, 1_000_000, 200),
    (1_000_000, 10_000, 10_000_000, 200),
)
"""What is extrapolated: clients, cohort, elements of the model, workers."""
_STEPS = 2


@dataclass(frozen=True)
class Constants:
    """What a round costs, in milliseconds and bytes; lines are against the elements of the model.

    Attributes:
        round: once a round: the draw of few clients, the grid, the sum of sums, the server's step.
        member: a client, whatever it computes: inputs are bound, its model is checked and added up.
        step: one step of it.
        client: of the population, in a draw.
        message: one to a worker and back, empty.
        out, back: a MiB to a worker and from it.
        member_out, member_in: bytes of a client in the message and in the answer.
        base, each, element: MiB of a coordinator: the process; for a client of the population; for an
            element of the model.
    """

    round: Line
    member: Line
    step: Line
    client: float
    message: float
    out: float
    back: float
    member_out: float
    member_in: float
    base: float
    each: float
    element: float

    def ms(self, clients: int, cohort: int, elements: int, workers: int, steps: int = _STEPS) -> float:
        """The formula: milliseconds a round takes."""
        busy = math.ceil(cohort / workers) * (self.member.at(elements) + steps * self.step.at(elements))
        out, back = self.bytes(cohort, elements, workers)
        sent = workers * self.message + (out * self.out + back * self.back) / MIB
        return self.round.at(elements) + clients * self.client + busy + sent

    def bytes(self, cohort: int, elements: int, workers: int) -> tuple[float, float]:
        """What a round sends and gets: float32 models, int64 sums, and what is said of each client."""
        return (
            workers * 4.0 * elements + cohort * self.member_out,
            workers * 8.0 * elements + cohort * self.member_in,
        )

    def mib(self, clients: int, elements: int, workers: int) -> float:
        """Memory of the coordinator: measured with two workers, and a message and an answer for each more.

        These are 4 and 8 bytes an element, where all of them are on their way at once.
        """
        return self.base + clients * self.each + elements * (self.element + (workers - 2) * 12 / MIB)


def constants(rows: Sequence[Row]) -> Constants | None:
    """The constants of a run: the clients' of workers here, on one thread; messages and memory those of Ray.

    None where not all of it was measured.
    """
    of_model = [_of_model(rows, elements) for elements in _elements(rows)]
    draws = fitted(rows, DRAW, "clients", "ms")
    sent, back = (chosen(rows, BYTES, way, "ms", RAY) for way in ("bytes out", "bytes in"))
    empty = chosen(rows, EMPTY, "messages", "ms", RAY)
    out_line, in_line = (fitted(rows, COHORT, "cohort", column, RAY) for column in ("bytes out", "bytes in"))
    by_clients = fitted(rows, DEMAND, "clients", "MiB at most", RAY)
    large = chosen(rows, MEMORY, "elements", "MiB at most", RAY)
    small = chosen(rows, DEMAND, "elements", "MiB at most", RAY)[:1]
    by_elements = fit(*zip(*small, *large, strict=True)) if small and large else None
    if len(of_model) < 2 or not (sent and back and empty):
        return None
    if draws is None or out_line is None or in_line is None or by_clients is None or by_elements is None:
        return None
    # Through the model that rounds are measured with and the largest: least squares would see the large only.
    ends = [next(m for m in of_model if m[0] == 50_890), of_model[-1]]
    round_, member, step = (fit([m[0] for m in ends], [m[i] for m in ends]) for i in (1, 2, 3))
    return Constants(
        round=round_,
        member=member,
        step=step,
        client=draws.slope,
        message=empty[0][1],
        out=sent[0][1] * MIB / sent[0][0],
        back=back[0][1] * MIB / back[0][0],
        member_out=out_line.slope,
        member_in=in_line.slope,
        base=by_clients.intercept - by_elements.slope * 50_890,
        each=by_clients.slope,
        element=by_elements.slope,
    )


def _elements(rows: Sequence[Row]) -> list[int]:
    return sorted({row["elements"] for row in rows if row["work"] == MODEL})


def _of_model(rows: Sequence[Row], elements: int) -> tuple[float, float, float, float]:
    """A model's elements, and milliseconds a round, a client and a step, of three settings' times."""
    mine = [row for row in rows if row["work"] == MODEL and row["elements"] == elements]
    few, one, more = sorted(mine, key=lambda row: (row["steps"], row["cohort"]))
    step = (more["ms"] - one["ms"]) / one["cohort"] / (more["steps"] - one["steps"])
    client = (one["ms"] - few["ms"]) / (one["cohort"] - few["cohort"])
    return elements, few["ms"] - few["cohort"] * client, client - one["steps"] * step, step


# -- the tables ------------------------------------------------------------------------------------------


def block(rows: Sequence[Row], on: Mapping[str, Any]) -> str:
    """What stands between the marks of the page.

    Raises:
        ValueError: a part of it was not measured.
    """
    found = constants(rows)
    if found is None:
        why = "; ".join(str(row["way"]) for row in rows if row["work"] == "not measured")
        raise ValueError(f"the planning note needs workers here and on Ray, both measured in full: {why}")
    where = ", ".join(f"{name} {value}" for name, value in on.items())
    parts = [
        [f"Measured on: {where}."],
        list(_constants(found)),
        ["By the size of the model (a client's steps have 4 rows):"],
        list(_models(rows)),
        ["The formula beside what was measured:"],
        list(_checks(rows, found)),
        ["What it says of more, with two steps a client and workers on cores of their own:"],
        list(_extrapolated(found)),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 0) -> Iterator[str]:
    """A table whose first columns are words."""
    yield f"| {' | '.join(head)} |"
    yield "|" + " --- |" * words + " --: |" * (len(head) - words)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _constants(found: Constants) -> Iterator[str]:
    def both(line: Line, unit: str) -> str:
        return f"{line.at(50_890):.3g} {unit}; {1e6 * line.slope:.3g} {unit} more a million elements"

    yield from _table(
        ("constant", "what it is", "measured"),
        [
            ("`t_round`", "once a round", both(found.round, "ms")),
            ("`t_member`", "a client, without its steps", both(found.member, "ms")),
            ("`t_step`", "a step of a client", both(found.step, "ms")),
            ("`t_draw`", "a client of the population", f"{1e6 * found.client:.3g} ns"),
            ("`t_message`", "an empty message to Ray and back", f"{found.message:.3g} ms"),
            ("`t_out`, `t_in`", "a MiB to Ray, and from it", f"{found.out:.3g} ms, {found.back:.3g} ms"),
            (
                "`b_out`, `b_in`",
                "bytes of a client in the message, and in the answer",
                f"{found.member_out:.0f}, {found.member_in:.0f}",
            ),
            ("`m_0`", "the coordinator's process", f"{found.base:.0f} MiB"),
            ("`m_client`", "a client of the population", f"{MIB * found.each:.0f} bytes"),
            ("`m_element`", "an element of the model, two workers", f"{MIB * found.element:.0f} bytes"),
        ],
        words=2,
    )


def _models(rows: Sequence[Row]) -> Iterator[str]:
    found = [_of_model(rows, elements) for elements in _elements(rows)]
    yield from _table(
        ("elements", "`t_round`", "`t_member`", "`t_step`"),
        [(f"{n:,}", *(f"{value:.3g} ms" for value in values)) for n, *values in found],
    )


def _checks(rows: Sequence[Row], found: Constants) -> Iterator[str]:
    lines: list[tuple[str, ...]] = []
    for row in rows:
        largest = row["work"] == COHORT and row["cohort"] == max(
            x for x, _ in chosen(rows, COHORT, "cohort", "ms")
        )
        if not (largest or (row["work"] == WORKERS and (row["way"] == RAY or row["workers"] == 1))):
            continue
        said = found.ms(row["clients"], row["cohort"], row["elements"], row["workers"], row["steps"])
        if row["way"] == HERE:  # a message within a process takes no time that could be seen here
            out, back = found.bytes(row["cohort"], row["elements"], row["workers"])
            said -= row["workers"] * found.message + (out * found.out + back * found.back) / MIB
        counted = (f"{row['clients']:,}", str(row["cohort"]), str(row["workers"]))
        lines.append(
            (row["way"], *counted, f"{said:.0f} ms", f"{row['ms']:.0f} ms", f"{said / row['ms']:.2f}")
        )
    head = ("where", "clients", "cohort", "workers", "formula", "measured", "ratio")
    yield from _table(head, lines, words=1)


def _extrapolated(found: Constants) -> Iterator[str]:
    lines: list[tuple[str, ...]] = []
    for clients, cohort, elements, workers in SETTINGS:
        out, back = found.bytes(cohort, elements, workers)
        lines.append(
            (
                f"{clients:,}",
                f"{cohort:,}",
                f"{elements:,}",
                str(workers),
                str(workers),
                f"{out / MIB:,.0f} MiB",
                f"{back / MIB:,.0f} MiB",
                f"{found.ms(clients, cohort, elements, workers) / 1e3:,.2f} s",
                f"{found.mib(clients, elements, workers) / 1024:,.2f} GiB",
            )
        )
    head = ("clients", "cohort", "elements", "workers", "messages", "out", "in", "a round", "coordinator")
    yield from _table(head, lines)


def written(page: str, text: str) -> str:
    """The page with this between its marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"


def main(arguments: Sequence[str]) -> int:
    if arguments:
        report = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
        rows, on = report["tables"]["scaling"], report["machine"]
    else:
        rows, on = list(run()), {**machine(), "threads": 1}
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), block(rows, on)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
