"""`planc worker`: starts a worker beside its owner's data; with a command, what the owner sees and decides.

Options and words over `runtime.serving`, which is imported only when a worker starts. The owner's commands
are `planc.cli.worker_owner`'s.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from planc.cli import worker_owner
from planc.errors import InputError

app = typer.Typer(name="worker", invoke_without_command=True, subcommand_metavar="[COMMAND]")
app.registered_commands.extend(worker_owner.app.registered_commands)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_Value = TypeVar("_Value")


class Level(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def _many(flag: str, metavar: str, help: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=f"{help} Repeatable.", show_default=False)


def _path(flag: str, metavar: str, help: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=help, show_default=False)


@app.callback()
def worker_command(
    context: typer.Context,
    id: Annotated[
        str | None, typer.Option("--id", metavar="NAME", help="The worker's name.", show_default=False)
    ] = None,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="HOST:PORT (port 0: any that is free) or unix:PATH. Repeatable.  [default: 127.0.0.1:7700]",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        _many(
            "--data",
            "NAME=PATH",
            "What to offer, private unless --public: .safetensors, .npz, .npy, IDX files or a folder of "
            "them, or a folder with a folder of images a class.",
        ),
    ] = None,
    public: Annotated[
        list[str] | None, _many("--public", "NAME", "Data whose elements clients may have.")
    ] = None,
    tags: Annotated[list[str] | None, _many("--tag", "NAME=TAG", "One more tag to find data by.")] = None,
    descriptions: Annotated[
        list[str] | None, _many("--describe", "NAME=TEXT", "What clients read about data.")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            min=1, max=4096, metavar="N", help="Scale images of folders to N x N.", show_default=False
        ),
    ] = None,
    store: Annotated[
        Path | None, _path("--store", "DIR", "Keep all that clients put here, also over a crash.")
    ] = None,
    policy: Annotated[
        Path | None, _path("--policy", "FILE", "Who may do what: see examples/policy.toml.")
    ] = None,
    audit: Annotated[
        Path | None,
        _path("--audit", "FILE", "Log who did what, tamper-evident.  [default: audit.jsonl in --store]"),
    ] = None,
    cert: Annotated[Path | None, _path("--tls-cert", "FILE", "The worker's certificate.")] = None,
    key: Annotated[Path | None, _path("--tls-key", "FILE", "The private key to it.")] = None,
    client_ca: Annotated[
        Path | None, _path("--client-ca", "FILE", "Let in whom this authority gave a certificate.")
    ] = None,
    tokens: Annotated[
        Path | None, _path("--tokens", "FILE", "Let in who shows a token of this file instead.")
    ] = None,
    peers: Annotated[
        list[str] | None, _many("--peer", "NAME=ADDRESS", "A worker that objects may be sent to.")
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="Where tensors live and plans run, such as cuda.")
    ] = "cpu",
    socket: Annotated[
        Path | None, _path("--socket", "PATH", "The socket for its owner.  [default: one by its name]")
    ] = None,
    log_level: Annotated[
        Level, typer.Option(help="What goes to standard error, as JSON lines.")
    ] = Level.INFO,
) -> None:
    """Start a worker beside your data, or see and decide what it does.

    Without a command it runs until Ctrl-C or SIGTERM, and then finishes what runs.
    The commands are for its owner, on the same machine.
    """
    if context.invoked_subcommand is not None:
        _require_no_options(context, context.invoked_subcommand)
        return
    if id is None:
        raise typer.BadParameter(
            "a worker needs a name, as in `planc worker --id bob --data scans=scans.npz`", param_hint="--id"
        )
    _require_name("--id", id)
    named = _named("--data", data, Path)
    shown, said = set(public or ()), _named("--describe", descriptions, str)
    tagged = _pairs("--tag", tags)
    for option, names in (("--public", shown), ("--describe", said), ("--tag", [n for n, _ in tagged])):
        _require_known(option, names, named)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own lines on standard error are no JSON
    from runtime.serving.data import Source
    from runtime.serving.greeting import Greeting
    from runtime.serving.logs import log_to
    from runtime.serving.process import Serving
    from runtime.serving.settings import PORT, Settings

    sources = [
        Source(
            name, path, name not in shown, [t for n, t in tagged if n == name], said.get(name, ""), image_size
        )
        for name, path in named.items()
    ]
    settings = Settings(
        id=id,
        listen=listen or [f"127.0.0.1:{PORT}"],
        data=sources,
        store=store,
        policy=policy,
        audit=audit,
        cert=cert,
        key=key,
        client_ca=client_ca,
        tokens=tokens,
        peers=_named("--peer", peers, str),
        socket=socket,
        device=device,
    )
    try:
        settings.check()
    except InputError as error:  # of the options, and so wrong usage
        raise typer.BadParameter(str(error)) from None
    with log_to(id, log_level.value):
        serving = Serving(settings)
        serving.run(lambda: typer.echo("\n".join(Greeting.of(serving).lines())))


def _require_no_options(context: typer.Context, command: str) -> None:
    """Refuse options before a command: they are those of a worker that starts."""
    for parameter in context.command.params:
        source: Any = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(
                f"options go behind the command, as in `planc worker {command} --socket PATH`",
                param_hint=parameter.opts[0],
            )


def _require_name(option: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise typer.BadParameter(
            f"{name!r} cannot be a name: expected 1 to 64 letters, digits, '.', '_' or '-', beginning with a "
            "letter or digit",
            param_hint=option,
        )


def _pairs(option: str, given: Iterable[str] | None) -> list[tuple[str, str]]:
    """``NAME=VALUE`` entries of an option."""
    out: list[tuple[str, str]] = []
    for entry in given or ():
        name, _, value = entry.partition("=")
        if not value:
            raise typer.BadParameter(f"expected NAME=..., got {entry!r}", param_hint=option)
        _require_name(option, name)
        out.append((name, value))
    return out


def _named(option: str, given: Iterable[str] | None, kind: Callable[[str], _Value]) -> dict[str, _Value]:
    """The same, where a name is given once."""
    out: dict[str, _Value] = {}
    for name, value in _pairs(option, given):
        if name in out:
            raise typer.BadParameter(f"{name!r} is given twice", param_hint=option)
        out[name] = kind(value)
    return out


def _require_known(option: str, names: Iterable[str], data: Iterable[str]) -> None:
    known = list(data)
    for name in names:
        if name not in known:
            there = f"there is {', '.join(known)}" if known else "none is given"
            raise typer.BadParameter(f"no --data is named {name!r}: {there}", param_hint=option)


__all__ = ["app"]
