"""The demo's report: one HTML page that needs nothing else. Its look is in report.html."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from html import escape
from importlib.resources import files
from string import Template

import torch
from rich.filesize import decimal

import planc
from planc.draw import Captions, svg
from planc.draw.style import page_style
from planc.ir import Role
from runtime.charts import Series, chart_style, line_chart
from runtime.demo.results import Results, count

_INPUTS = {
    Role.ARGUMENT: "data: stays at its worker",
    Role.PARAMETER: "parameters: travel each round",
    Role.BUFFER: "buffers: travel each round",
    Role.OPTIMIZER: "optimizer state: stays there",
    Role.KEY: "random key: stays there",
}
_OUTPUTS = {
    Role.ARGUMENT: "results: come back",
    Role.PARAMETER: "parameters: come back",
    Role.BUFFER: "buffers: come back",
    Role.OPTIMIZER: "optimizer state: stays there",
    Role.KEY: "random key: stays there",
}


def render(results: Results) -> str:
    """The page."""
    template = Template(files("runtime.demo").joinpath("report.html").read_text(encoding="utf-8"))
    rounds = results.rounds
    settings = results.settings
    summary = (
        f"{results.training:,} {results.source} stayed at {count(settings.workers, 'worker', 'workers')}. "
        f"A compiled plan of the whole epoch was sent there once, and each of "
        f"{count(len(rounds), 'round', 'rounds')} of federated averaging was one message a worker. "
        f"The {results.held_out:,} images of the test were never sent."
    )
    accuracy = [trained.held_out.accuracy for trained in rounds]
    losses = [
        Series("training", "orange dashed", [trained.loss for trained in rounds]),
        Series("held-out", "blue", [trained.held_out.loss for trained in rounds]),
    ]
    return template.substitute(
        accuracy=f"{results.accuracy:.1%}",
        summary=escape(summary),
        facts="\n".join(_facts(results)),
        accuracy_chart=line_chart(
            "held-out accuracy by round",
            [Series("held-out", "blue", accuracy)],
            show="{:.2%}".format,
            ceiling=1.0,
        ),
        loss_chart=line_chart("loss by round", losses),
        work=escape(results.work()),
        rows="\n".join(_rows(results)),
        notes="\n".join(f'<p class="foot">{escape(note)}</p>' for note in results.notes()),
        style=page_style() + chart_style(),
        drawing=svg(results.plan.graph, captions=_captions(results.plan)),
        nodes=results.plan.graph.count_nodes(),
        plan_id=results.plan.id,
        text=escape(results.plan.text),
        made=escape(
            f"Made by planc {planc.__version__} with torch {torch.__version__}, "
            f"Python {platform.python_version()}, {count(os.cpu_count() or 1, 'processor', 'processors')}; "
            f"seed {settings.seed}, batch size {settings.batch_size}; {results.seconds:.0f} seconds in all."
        ),
    )


def _captions(plan: planc.Plan) -> Captions:
    """Cards of inputs and outputs that say what becomes of each between the rounds."""
    return Captions(_INPUTS, _OUTPUTS, {port.path: "the loss of each step" for port in plan.graph.results()})


def _facts(results: Results) -> Iterator[str]:
    last, eager, ours = results.rounds[-1].figures, results.way("eager"), results.way("round")
    facts = [
        ("held-out accuracy", f"{results.accuracy:.1%}"),
        ("messages a round", f"{last.messages:,}"),
        ("bytes a round", decimal(last.bytes)),
        ("messages a round, eagerly", f"{'≈ ' if eager.is_extrapolated else ''}{eager.figures.messages:,}"),
        ("seconds a round", f"{ours.figures.seconds:.2f}"),
    ]
    for name, value in facts:
        yield f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"


def _rows(results: Results) -> Iterator[str]:
    for way, cells in zip(results.ways, results.table(), strict=True):
        css = ' class="ours"' if way.key == "round" else ""
        yield f"<tr{css}>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


__all__ = ["render"]
