"""`planc run FILE.toml` and `planc report`: federated runs from a file, and the page of one.

Words and options over `runtime.federated.experiment`, which is imported only here, inside functions.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from planc.cli import sources
from planc.text.suggest import count_of

SUFFIX = ".toml"

app = typer.Typer()


@app.command("report")
def report_command(
    events: Annotated[
        Path, typer.Argument(metavar="FILE", help="The events of a federated run.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The page to write.")] = Path(
        "report.html"
    ),
    title: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Of the page; by default the folder's name.")
    ] = None,
) -> None:
    """Make the page of a federated run from its events.jsonl."""
    typer.echo(report(events, out, title))


def refuse(source: str, options: Mapping[str, Any], *, experiment: bool) -> None:
    """Refuse options that are for the other kind of run.

    Raises:
        typer.BadParameter: one is given.
    """
    for option, value in options.items():
        if value is not None and value is not False and value != []:
            what = (
                f"for plans, and {source} describes a run" if experiment else f"for runs from {SUFFIX} files"
            )
            raise typer.BadParameter(f"this option is {what}", param_hint=option)


def run(source: str, overrides: Sequence[str], *, resume: bool, dry: bool) -> list[str]:
    """Run what a file describes, or say what that would be; returns what to print at the end.

    Raises:
        PlancError: the file, data, plans or workers cannot be used, or a round failed.
        OSError: a file cannot be read or written.
    """
    from runtime.federated import experiment

    path = Path(source)
    if dry:
        return list(experiment.dry_run(path, overrides, load_plan=sources.load).lines())
    return experiment.run(path, overrides, resume=resume, load_plan=sources.load).lines()


def report(lines: Path, out: Path, title: str | None) -> str:
    """Write the page of a run whose events are in a file; returns what to print.

    Raises:
        DataError: the file holds no events.
        OSError: a file cannot be read or written.
    """
    from runtime.federated.watch import read_lines, render
    from runtime.federated.watch.history import History

    history = History.of(read_lines(lines))
    page = render(history, title or lines.absolute().parent.name)
    temporary = out.with_name(f"{out.name}.{secrets.token_hex(6)}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return f"wrote {out}: {count_of(len(history.results()), 'round')}"


__all__ = ["SUFFIX", "app", "refuse", "report", "run"]
