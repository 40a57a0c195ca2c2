"""`planc run`: a plan called here on tensors from files. Remote runs are the affair of `runtime`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import typer

import planc
from planc.capture.tree import match, unflatten
from planc.cli import profiling, tensors
from planc.errors import InputError
from planc.ir import Role, type_of
from planc.ir.structure import flat
from planc.lower import Timing

SHOWN = 16
"""Results of at most this many elements are printed in full."""


@dataclass(frozen=True, slots=True)
class Ran:
    """The plan after the run (with its new state), its results by path, in order, and where its time went."""

    plan: planc.Plan
    results: dict[str, torch.Tensor]
    timings: Sequence[Timing] = ()

    def lines(self) -> Iterator[str]:
        """What came out, for people."""
        for name, value in self.results.items():
            yield from _described(name, value)
        if not self.results:
            yield "no results"

    def json(self) -> dict[str, Any]:
        """The same for machines, and the profile if there is one."""
        results = [
            {
                "path": name,
                "type": str(type_of(value)),
                "values": value.tolist() if value.numel() <= SHOWN else None,
            }
            for name, value in self.results.items()
        ]
        told = {"profile": profiling.report_json(self.timings)} if self.timings else {}
        return {"plan": self.plan.name, "id": self.plan.id, "results": results, **told}


def run(plan: planc.Plan, given: Sequence[str], seed: int | None, *, profile: bool = False) -> Ran:
    """Call ``plan`` once.

    Args:
        plan: what to call.
        given: entries ``name=file``, one for each argument; a state's path names a state to start from.
        seed: for the random keys that the plan has.
        profile: whether to find out where the time goes, by calls before that one.

    Raises:
        typer.BadParameter: an entry is not of that form.
        InputError: an argument or state is missing, unknown, or does not fit.
        DataError: a file is of the wrong kind or damaged.
        OSError: a file cannot be read.
        ExecutionError: an operation failed.
    """
    arguments, state = _read(plan, given)
    if seed is not None:
        keys = [port.path for port in plan.graph.state() if port.role is Role.KEY]
        if not keys:
            raise InputError(f"plan {plan.name!r} draws no random numbers: it takes no --seed")
        state.update({path: planc.key(seed) for path in keys})
    own = plan.with_state(state)
    absent = [port for port in own.graph.state() if port.path not in own.state]
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        option = "--seed N" if absent[0].role is Role.KEY else f"--input {absent[0].path}=FILE"
        raise InputError(
            f"plan {plan.name!r} comes without its state {absent[0].path!r} ({absent[0].value.type}){more}: "
            f"give it with {option}"
        )
    tree = own.graph.takes or flat(len(own.graph.arguments()))
    args = unflatten(tree, iter(arguments))
    timings = own.profile(*args) if profile else ()
    out = own(*args)
    ports = own.graph.results()
    if own.graph.gives is not None:
        values = list(match(own.graph.gives, out, "result"))
    else:
        values = [out] if len(ports) == 1 else list(out)
    return Ran(own, {port.path: value for port, value in zip(ports, values, strict=True)}, timings)


def _read(plan: planc.Plan, given: Sequence[str]) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """The arguments in order, and state by path."""
    files: dict[str, str] = {}
    known = {port.name: port for port in plan.inputs} | {port.path: port for port in plan.inputs}
    for entry in given:
        name, equals, path = entry.partition("=")
        if not equals or not name or not path:
            raise typer.BadParameter(f"expected NAME=FILE, got {entry!r}", param_hint="--input")
        if name not in known:
            have = ", ".join(repr(port.path) for port in plan.inputs[:8]) or "none"
            raise InputError(f"plan {plan.name!r} has no input {name!r}; its inputs: {have}")
        if known[name].path in files:
            raise typer.BadParameter(f"input {name!r} is given twice", param_hint="--input")
        files[known[name].path] = path
    wanted = plan.graph.arguments()
    missing = [f"{port.path}: {port.value.type}" for port in wanted if port.path not in files]
    if missing:
        raise InputError(f"plan {plan.name!r} needs --input for {', '.join(missing)}")
    read = {path: tensors.read(file, path) for path, file in files.items()}
    arguments = [read.pop(port.path) for port in wanted]
    return arguments, read


def _described(name: str, value: torch.Tensor) -> Iterator[str]:
    head = f"{name}: {type_of(value)}"
    if value.numel() == 1:
        yield f"{head} = {value.item()}"
    elif 0 < value.numel() <= SHOWN:
        yield head
        yield from (f"  {line}" for line in str(value.tolist()).splitlines())
    elif value.numel() and value.is_floating_point():
        wide = value.double()
        low, mean, high = (float(v) for v in (wide.min(), wide.mean(), wide.max()))
        yield f"{head}, min {low:.4g}, mean {mean:.4g}, max {high:.4g}"
    else:
        yield head


__all__ = ["Ran", "run"]
