"""`planc worker status|objects|plans|pending|approve|deny|audit`: for the owner of a worker, where it runs.

Options and questions over `runtime.access` and `runtime.audit`, which are imported only when a command runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from planc.errors import InputError

app = typer.Typer(name="worker", help="See and decide what a worker does.", no_args_is_help=True)

Socket = Annotated[
    Path | None,
    typer.Option("--socket", metavar="PATH", help="The worker's socket for its owner.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
PlanId = Annotated[
    str, typer.Argument(metavar="PLAN_ID", help="The plan's id, or how it begins.", show_default=False)
]


@app.command("status")
def status_command(socket: Socket = None, as_json: Json = False) -> None:
    """Say how the worker is: what it holds, who uses it, what waits."""
    from runtime.access.reports import status_json, status_lines

    with _owner(socket) as handle:
        status = handle.status()
    _print_json(status_json(status)) if as_json else _print_lines(status_lines(status))


@app.command("objects")
def objects_command(socket: Socket = None, as_json: Json = False) -> None:
    """List all objects of everybody, never their elements."""
    from runtime.access.reports import object_json, object_lines

    with _owner(socket) as handle:
        found = handle.objects()
    _print_json([object_json(each) for each in found]) if as_json else _print_lines(object_lines(found))


@app.command("plans")
def plans_command(socket: Socket = None, as_json: Json = False) -> None:
    """List all plans, who installed them, and what was decided about them."""
    from runtime.access.reports import plan_json, plan_lines

    with _owner(socket) as handle:
        found = handle.plans()
    _print_json([plan_json(each) for each in found]) if as_json else _print_lines(plan_lines(found))


@app.command("pending")
def pending_command(socket: Socket = None, as_json: Json = False) -> None:
    """List the plans that wait for a decision."""
    from runtime.access.reports import pending_json, pending_lines

    with _owner(socket) as handle:
        found = handle.pending()
    _print_json([pending_json(each) for each in found]) if as_json else _print_lines(pending_lines(found))


@app.command("approve")
def approve_command(
    plan_id: PlanId,
    clients: Annotated[
        list[str] | None,
        typer.Option(
            "--client",
            metavar="NAME",
            help="Who may run it; by default who asked. Repeatable.",
            show_default=False,
        ),
    ] = None,
    any_client: Annotated[bool, typer.Option("--any-client", help="Anybody may run it.")] = False,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="PATH=TAG_OR_ID",
            help="What may stand at an input; by default what was asked for. Repeatable.",
            show_default=False,
        ),
    ] = None,
    any_data: Annotated[
        bool, typer.Option("--any-data", help="It may run on any private originals.")
    ] = False,
    runs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How many runs may release something.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="DURATION", help="How long it holds, such as '2 d'.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """Show a plan, what it costs and what would leave; then ask, and approve exactly that plan."""
    from runtime.access.deciding import Options, decide, propose
    from runtime.access.reports import approval_json

    options = Options(clients or (), any_client, inputs or (), any_data, runs, expires)
    with _owner(socket) as handle:
        proposal = propose(handle, plan_id, options)
        if not as_json:
            _print_lines(proposal.lines())
        if not yes:
            _ask(f"approve plan {proposal.plan.id}?", as_json)
        decide(handle, proposal)
    approvals = [approval_json(each) for each in proposal.approvals]
    if as_json:
        _print_json({"id": proposal.plan.id, "approved": approvals})
    else:
        typer.echo(f"approved {proposal.plan.id}")


@app.command("deny")
def deny_command(
    plan_id: PlanId,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="What its clients are told.")] = "",
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """Refuse a plan on data that is not its client's own, and take approvals of it back."""
    from runtime.access.deciding import find_id

    with _owner(socket) as handle:
        full = find_id(plan_id, [each.plan_id for each in handle.plans()])
        handle.deny(full, reason)
    _print_json({"id": full, "denied": reason}) if as_json else typer.echo(f"denied {full}")


@app.command("audit")
def audit_command(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The audit log; its older segments lie beside it.")
    ] = Path("audit.jsonl"),
    verify: Annotated[
        bool, typer.Option("--verify", help="Check that nothing was changed; exit with 1 if it was.")
    ] = False,
    witness: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER:HASH", help="With --verify: a line that was noted elsewhere must be there."
        ),
    ] = None,
    client: Annotated[str | None, typer.Option(metavar="NAME", help="Only what this client did.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only from then on: 2026-01-31, or '2 h' ago.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the audit log, or check it."""
    from runtime.audit.reading import check, check_lines, entries, line_of

    if witness is not None and not verify:
        raise typer.BadParameter("it is for --verify", param_hint="--witness")
    if not verify:
        for entry in entries(file, client, since):
            typer.echo(json.dumps(entry) if as_json else line_of(entry))
        return
    found = check(file, witness)
    if as_json:
        head = {"line": found.head.n, "hash": found.head.hash}
        _print_json(
            {
                "good": found.good,
                "lines": found.lines,
                "head": head,
                "problems": found.problems,
                "notes": found.notes,
            }
        )
    else:
        _print_lines(check_lines(found))
    raise typer.Exit(0 if found.good else 1)


@contextmanager
def _owner(socket: Path | None) -> Generator[Any]:
    """The owner's handle of the worker at a socket, or of the only one that runs here."""
    from runtime import connect_owner

    handle = connect_owner(socket)
    try:
        yield handle
    finally:
        handle.close()


def _ask(question: str, as_json: bool) -> None:
    """Ask on the terminal; go on only if the answer is yes.

    Raises:
        InputError: there is nobody to ask.
    """
    if as_json or not sys.stdin.isatty():
        raise InputError("there is no terminal to ask on: read the plan, then say --yes")
    if not typer.confirm(question):
        typer.echo("nothing was approved")
        raise typer.Exit(1)


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line)


def _print_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2))


__all__ = ["app"]
