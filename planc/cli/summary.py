"""What `planc compile` says of a plan: as data, as lines for people, and as JSON. Writes no file itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import planc
from planc.cli.passing import reasons
from planc.cli.sizes import Sizes
from planc.cli.words import decimal, size
from planc.cost import Cost
from planc.draw.marks import clean
from planc.ir import DimVar, Input, Output, Role
from planc.ir.facts import conditions
from planc.passes.pipeline import PassRecord, PipelineResult
from planc.text.suggest import count_of

LISTED = 12
"""State of more tensors than this is counted rather than listed."""

_ROLES = {
    Role.ARGUMENT: "argument",
    Role.PARAMETER: "parameter",
    Role.BUFFER: "buffer",
    Role.OPTIMIZER: "optimizer state",
    Role.KEY: "random key",
}


@dataclass(frozen=True, slots=True)
class Written:
    """A file that was written."""

    path: str
    kind: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Summary:
    """A plan, what the passes did to it, what a run of it costs, and the file that it went to."""

    source: str
    plan: planc.Plan
    sizes: Sizes
    cost: Cost
    written: Written
    explain: bool = False
    """Whether the lines say what the passes nearly did."""

    @property
    def passes(self) -> tuple[PassRecord, ...]:
        """One record a pass, its rounds taken together, each going on from the count of the one before."""
        records = PipelineResult(self.plan.program, self.plan.records).by_pass()
        out: list[PassRecord] = []
        for record in records:
            before = out[-1].nodes_after if out else record.nodes_before
            after = before - (record.nodes_before - record.nodes_after)
            out.append(replace(record, nodes_before=before, nodes_after=after))
        return tuple(out)

    @property
    def state_given(self) -> int:
        """How many of the state tensors the plan comes with."""
        return sum(port.path in self.plan.state for port in self.plan.graph.state())

    def lines(self) -> Iterator[str]:
        """The summary in lines of at most 80 columns, long names aside."""
        graph = self.plan.graph
        yield f"plan {clean(self.plan.name)}, from {self.source}"
        yield f"  id {self.plan.id}"
        yield ""
        yield from _pass_lines(self.passes)
        if self.explain:
            yield from reasons(self.passes)
        yield from _ports("inputs", graph.arguments())
        if demanded := conditions(graph.dims):
            yield f"  where {', '.join(demanded)}"
        yield from self._state_lines()
        yield from _ports("outputs", graph.results())
        yield from self._cost_lines()
        yield ""
        yield f"wrote {self.written.path}: {self.written.kind}, {self.written.bytes:,} bytes"

    def json(self) -> dict[str, Any]:
        """The summary for machines. Keys are only ever added."""
        graph = self.plan.graph
        return {
            "source": self.source,
            "plan": self.plan.name,
            "id": self.plan.id,
            "dims": [dim_json(var) for var in graph.dims],
            "nodes": graph.count_nodes(),
            "passes": [pass_json(record) for record in self.passes],
            "inputs": [port_json(port) for port in graph.arguments()],
            "state": [{**port_json(port), "given": port.path in self.plan.state} for port in graph.state()],
            "outputs": [port_json(port) for port in graph.outputs],
            "cost": cost_json(self.cost, self.sizes),
            "file": {"path": self.written.path, "kind": self.written.kind, "bytes": self.written.bytes},
        }

    def _state_lines(self) -> Iterator[str]:
        ports = self.plan.graph.state()
        if not ports:
            return
        missing = len(ports) - self.state_given
        absent = f", {missing} without a value" if missing else ""
        head = f"state: {count_of(len(ports), 'tensor')}, {size(self.cost.state_bytes)}{absent}"
        if len(ports) <= LISTED:
            yield from _ports(head, ports)
            return
        roles = Counter(_ROLES[port.role] for port in ports)
        yield ""
        yield head
        yield "  " + ", ".join(count_of(number, role) for role, number in roles.items())

    def _cost_lines(self) -> Iterator[str]:
        cost, graph = self.cost, self.plan.graph
        yield ""
        yield f"one run, at {self.sizes}" if graph.dims else "one run"
        if self.sizes.note:
            yield f"  ({self.sizes.note})"
        yield f"  compute      {decimal(cost.flops)} FLOPs, {size(cost.bytes_moved)} read and written"
        yield f"  peak memory  {size(cost.peak_bytes)}"
        yield f"  in and out   {size(cost.argument_bytes)} in, {size(cost.result_bytes)} out"


def port_json(port: Input | Output) -> dict[str, Any]:
    """An input or output for machines."""
    return {"name": port.name, "path": port.path, "role": port.role.value, "type": str(port.value.type)}


def dim_json(var: DimVar) -> dict[str, Any]:
    """A named dim for machines; ``equals`` where others define it."""
    equals = None if var.equals is None else str(var.equals)
    return {"name": var.name, "min": var.lo, "max": var.hi, "equals": equals}


def pass_json(record: PassRecord) -> dict[str, Any]:
    """What a pass did, for machines."""
    return {
        "name": record.name,
        "nodes_before": record.nodes_before,
        "nodes_after": record.nodes_after,
        "notes": list(record.notes),
        "missed": list(record.missed),
    }


def cost_json(cost: Cost, sizes: Sizes) -> dict[str, Any]:
    """The totals of a cost for machines; sizes are in bytes."""
    return {
        "dims": sizes.dims,
        "assumed_dims": list(sizes.assumed),
        "flops": cost.flops,
        "bytes_moved": cost.bytes_moved,
        "peak_bytes": cost.peak_bytes,
        "messages": cost.messages,
        "argument_bytes": cost.argument_bytes,
        "state_bytes": cost.state_bytes,
        "constant_bytes": cost.constant_bytes,
        "result_bytes": cost.result_bytes,
        "update_bytes": cost.update_bytes,
    }


def _pass_lines(records: Sequence[PassRecord]) -> Iterator[str]:
    names = max((len(record.name) for record in records), default=0)
    numbers = max((len(str(record.nodes_before)) for record in records), default=0)
    yield f"{'passes':<{names + 2}}  nodes"
    for record in records:
        counts = f"{record.nodes_before:>{numbers}} -> {record.nodes_after:<{numbers}}"
        yield f"  {record.name:<{names}}  {counts}  {', '.join(record.notes)}".rstrip()


def _ports(head: str, ports: Sequence[Input | Output]) -> Iterator[str]:
    yield ""
    yield head
    paths = [clean(port.path) for port in ports]
    names = max((len(path) for path in paths), default=0)
    types = max((len(str(port.value.type)) for port in ports), default=0)
    for port, path in zip(ports, paths, strict=True):
        role = _ROLES[port.role] if port.role.is_state else ""
        yield f"  {path:<{names}}  {port.value.type!s:<{types}}  {role}".rstrip()
    if not ports:
        yield "  none"


__all__ = ["Summary", "Written", "cost_json", "pass_json", "port_json"]
