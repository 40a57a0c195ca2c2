"""The commands and their options, each a few lines over the module that does the work.

The first paragraph of a function's docstring is what ``--help`` says.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import planc
from planc import codec
from planc.cli import (
    bench,
    certs,
    costs,
    differences,
    experiments,
    failures,
    passing,
    profiling,
    running,
    sources,
    tensors,
    worker,
)
from planc.cli.drawings import Emit, Form, rendered
from planc.cli.sizes import sizes_for
from planc.cli.summary import Summary, Written
from planc.cli.words import console
from planc.diff import diff
from planc.text import format as layout
from planc.text.suggest import count_of

app = typer.Typer(
    cls=failures.Commands,
    name="planc",
    help="Compile PyTorch programs to plans: explicit, typed, bounded, and readable before they run.",
    epilog=failures.epilog(),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)


Source = Annotated[
    str, typer.Argument(metavar="SRC", help=f"{sources.FORMS}. {sources.TRUST}", show_default=False)
]
Dims = Annotated[
    list[str] | None, typer.Option("--dim", metavar="NAME=SIZE", help="Size of a named dim; repeatable.")
]
Batch = Annotated[int | None, typer.Option("--batch", metavar="N", help="Size of the plan's first dim.")]
Private = Annotated[
    list[str] | None,
    typer.Option("--private", metavar="PATH", help="An input that drawings mark as private; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"planc {planc.__version__}")
        raise typer.Exit


@app.callback()
def planc_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Options of ``planc`` itself."""


@app.command("compile")
def compile_command(
    source: Source,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", metavar="OUT", help="File to write; by default PLAN.planc, after its name."
        ),
    ] = None,
    emit: Annotated[
        Emit,
        typer.Option(help="What to write; all but an artifact goes to standard output unless -o is given."),
    ] = Emit.ARTIFACT,
    passes: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,C",
            help=f"Run these passes instead of {passing.NAMES}; there is also {passing.ALSO}.",
            show_default=False,
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what the passes nearly did, and why they did not.")
    ] = False,
    print_after: Annotated[
        str | None,
        typer.Option(metavar="PASS", help="Print the plan after every run of this pass, to standard error."),
    ] = None,
    private: Private = None,
    dims: Dims = None,
    batch: Batch = None,
    as_json: Json = False,
) -> None:
    """Optimise a plan, write it, and say what it is and costs."""
    plan = passing.optimised(sources.load(source), passes, print_after, _tell)
    sizes = sizes_for(plan.graph, dims or [], batch)
    if emit is not Emit.ARTIFACT and out is None:
        if as_json:
            raise typer.BadParameter(
                f"--emit {emit.value} needs -o OUT, or two things are printed", param_hint="--json"
            )
        typer.echo(rendered(plan, Form(emit.value), sizes, private or []), nl=False)
        if explain:  # beside what was asked for, not in it
            for line in passing.reasons(plan.records):
                _tell(line)
        return
    cost = plan.cost(**sizes.dims)  # before anything is written: sizes can be wrong
    path = out or _default_name(plan.name, source)
    if emit is Emit.ARTIFACT:
        written = codec.save(path, plan.graph, plan.constants, plan.state)
    else:
        written = _write_text(path, rendered(plan, Form(emit.value), sizes, private or []))
    summary = Summary(source, plan, sizes, cost, Written(path, emit.value, written), explain)
    _print_json(summary.json()) if as_json else _print_lines(summary.lines())


@app.command("show")
def show_command(
    source: Source,
    emit: Annotated[Form, typer.Option(help="What to print.")] = Form.TEXT,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="OUT", help="File to write instead of printing.")
    ] = None,
    private: Private = None,
    dims: Dims = None,
    batch: Batch = None,
) -> None:
    """Print a plan as text, one operation a line, or draw it."""
    plan = sources.load(source)
    shown = rendered(plan, emit, sizes_for(plan.graph, dims or [], batch), private or [])
    if out is None:
        typer.echo(shown, nl=False)
    else:
        _write_text(out, shown)
        typer.echo(f"wrote {out}: {emit.value}")


@app.command("diff")
def diff_command(
    before: Annotated[
        str, typer.Argument(metavar="A", help="The plan that was approved.", show_default=False)
    ],
    after: Annotated[
        str, typer.Argument(metavar="B", help="The plan that is asked for.", show_default=False)
    ],
    dims: Dims = None,
    as_json: Json = False,
) -> None:
    """Say what changed between two plans; exit with 1 if anything did."""
    plans = sources.load(before), sources.load(after)
    known = {var.name for plan in plans for var in plan.dims}
    a, b = (
        _side(source, plan, dims or [], known) for source, plan in zip((before, after), plans, strict=True)
    )
    found = diff(*plans)
    _print_json(differences.report_json(a, b, found)) if as_json else _print_lines(
        differences.lines(a, b, found)
    )
    raise typer.Exit(0 if found.same else 1)


@app.command("check")
def check_command(source: Source, as_json: Json = False) -> None:
    """Check every rule of a plan, and say what is wrong and where."""
    plan = sources.load(source)
    planc.verify(plan)
    if as_json:
        _print_json({"source": source, "plan": plan.name, "id": plan.id, "nodes": plan.graph.count_nodes()})
        return
    nodes = count_of(plan.graph.count_nodes(), "node")
    typer.echo(f"{source}: plan {plan.name} is valid: {nodes}, id {plan.id[:12]}")


@app.command("cost")
def cost_command(source: Source, dims: Dims = None, batch: Batch = None, as_json: Json = False) -> None:
    """Say what one run costs, node by node: FLOPs, bytes, memory."""
    plan = sources.load(source)
    sizes = sizes_for(plan.graph, dims or [], batch)
    cost = plan.cost(**sizes.dims)
    if as_json:
        _print_json(costs.report_json(plan, sizes, cost))
        return
    screen = console()
    for part in costs.report(plan, sizes, cost):
        screen.print(part)


@app.command("run")
def run_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help=f"{sources.FORMS}; or FILE.toml, a federated run. {sources.TRUST}",
            show_default=False,
        ),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            "-i",
            metavar="NAME=FILE",
            help=f"A tensor for an argument or state; {', '.join(tensors.KINDS)}. Repeatable.",
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option(metavar="FILE", help=f"Write the results: {', '.join(tensors.KINDS)}.")
    ] = None,
    save: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the plan with the state that the run left it.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Seed of the plan's random keys.")] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Run it a few times more, and tell where the time goes.")
    ] = False,
    as_json: Json = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Of FILE.toml: a key that goes before it. Repeatable."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Of FILE.toml: go on after the last checkpoint.")
    ] = False,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Of FILE.toml: print settings and costs, train nothing.")
    ] = False,
) -> None:
    """Run a plan here, on tensors from files; or a federated run.

    A FILE.toml describes one: docs/experiments.md has every key.
    """
    for_plans = {"--input": inputs, "--output": output, "--save": save, "--seed": seed, "--profile": profile}
    for_runs = {"--set": overrides, "--resume": resume, "--dry-run": dry}
    if source.endswith(experiments.SUFFIX):
        experiments.refuse(source, {**for_plans, "--json": as_json}, experiment=True)
        _print_lines(experiments.run(source, overrides or [], resume=resume, dry=dry))
        return
    experiments.refuse(source, for_runs, experiment=False)
    if output is not None:
        tensors.check_kind(output)
    tell = _tell if as_json else typer.echo
    ran = running.run(sources.load(source), inputs or [], seed, profile=profile)
    _print_json(ran.json()) if as_json else _print_lines(ran.lines())
    if profile and not as_json:
        for part in profiling.report(ran.plan, ran.timings):
            console().print(part)
    if output is not None:
        tensors.write(output, ran.results)
        tell(f"wrote {output}: {count_of(len(ran.results), 'tensor')}")
    updates = ran.plan.graph.updates()
    if save is not None:
        ran.plan.save(save)
        tell(f"wrote {save}: the plan with its new state")
    elif updates:
        tell(f"{count_of(len(updates), 'state tensor')} replaced, and not kept (--save FILE keeps them)")


@app.command("fmt")
def fmt_command(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Texts to lay out.", show_default=False)
    ],
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit with 1 if a file is not in this layout.")
    ] = False,
) -> None:
    """Lay out .plan files in the one canonical way, comments kept."""
    # All are read before one is written: an error leaves every file as it is.
    pairs = [(path, layout(sources.read_text(path), path)) for path in files]
    stale = [(path, text) for path, text in pairs if Path(path).read_bytes() != text.encode()]
    for path, text in stale:
        if not check:
            _write_text(path, text)
        typer.echo(f"{path}: {'not in canonical layout' if check else 'laid out anew'}")
    if not stale:
        typer.echo(f"{count_of(len(files), 'file')} in canonical layout")
    if stale and check:
        raise typer.Exit(1)


@app.command("demo")
def demo_command(
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="How many workers share the images.")] = 4,
    rounds: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Rounds of training.  [default: enough for 0.95]")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="The same seed gives the same result.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Images a step.")] = 64,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Full MNIST, as IDX files; by default 5,000 embedded images."),
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch full MNIST into --data first.")] = False,
    engine: Annotated[
        Literal["in-process", "ray"],
        typer.Option(metavar="NAME", help="Where the workers run: in-process, or ray."),
    ] = "in-process",
    report: Annotated[Path, typer.Option(metavar="FILE", help="Where the HTML report goes.")] = Path(
        "planc-demo.html"
    ),
    model_out: Annotated[Path, typer.Option(metavar="FILE", help="Where the trained model goes.")] = Path(
        "planc-demo-model.pt"
    ),
    as_json: Json = False,
) -> None:
    """Train federated on real MNIST images that stay at their workers."""
    # Only here: the compiler knows no worker, and the other commands need not load any.
    from runtime.demo.command import demo

    code = demo(
        workers=workers,
        rounds=rounds,
        seed=seed,
        data=data,
        download=download,
        json=as_json,
        report=report,
        model_out=model_out,
        batch_size=batch_size,
        engine=engine,
    )
    raise typer.Exit(code)


@app.command("bench")
def bench_command(
    suites: Annotated[
        list[str] | None, typer.Argument(metavar="SUITE", help="Which; all if none.", show_default=False)
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer turns and clients.")] = False,
    peers: Annotated[
        bool, typer.Option("--peers", help="Other tools run the rounds too, after `make bench-peers`.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="torch's threads.")] = 1,
    figures: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write all figures.", show_default=False)
    ] = None,
    page: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write a page of Markdown.", show_default=False)
    ] = None,
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write a page with plots.", show_default=False)
    ] = None,
) -> None:
    """Measure messages, times and memory beside eager PyTorch, in a checkout."""
    files = {"--json": figures, "--page": page, "--html": html}
    switches = [name for name, on in {"--quick": quick, "--peers": peers}.items() if on]
    given = [part for name, path in files.items() if path is not None for part in (name, path)]
    raise typer.Exit(bench.bench([*(suites or []), *switches, "--threads", str(threads), *given]))


app.add_typer(certs.app)
app.add_typer(worker.app)
app.registered_commands.extend(experiments.app.registered_commands)


def main() -> None:
    """The entry point ``planc``."""
    app()


def _side(source: str, plan: planc.Plan, dims: list[str], known: set[str]) -> differences.Side:
    """One side of a difference. A size of a dim that only the other plan has is left to the other."""
    mine = {var.name for var in plan.dims}
    given = [entry for entry in dims if entry.partition("=")[0].strip() not in known - mine]
    sizes = sizes_for(plan.graph, given)
    return source, plan, sizes, plan.cost(**sizes.dims)


def _default_name(plan: str, source: str) -> str:
    name = plan + sources.ARTIFACT  # the names of plans are identifiers: they fit any file system
    if source.endswith(sources.ARTIFACT) and os.path.realpath(name) == os.path.realpath(source):
        raise typer.BadParameter(f"{name} is what is being read; say where to write", param_hint="--out")
    return name


def _write_text(path: str, text: str) -> int:
    """Write a text file wholly or not at all; returns its size in bytes."""
    data = text.encode()
    temporary = f"{path}.{secrets.token_hex(6)}.tmp"
    try:
        Path(temporary).write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror or "cannot be written", path) from error
    return len(data)


def _tell(text: str) -> None:
    """Print what goes beside the output proper."""
    typer.echo(text, err=True)


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line)


def _print_json(data: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(data, indent=2))


__all__ = ["app", "main"]
