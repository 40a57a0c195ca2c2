"""What the owner is shown before a plan is approved, and how far the approval goes. Asks and prints nothing.

The default is as narrow as what was asked: those clients, that data. Wider is possible, and has to be said.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from planc.draw.figures import decimal, size
from planc.errors import InputError
from planc.ir import Input, Output
from planc.plans import Plan
from planc.text.suggest import count_of
from runtime.access.reports import object_type, plain, scope
from runtime.access.units import parse_seconds
from runtime.messages import ApprovalInfo, AskedInfo, OwnerObject
from runtime.owner import OwnerHandle

_DIM = 64
"""The size that is assumed for a dim, within its range."""
_SHORTEST = 8
"""Characters by which an id may be given."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the owner said. None and nothing: as it was asked for."""

    clients: Sequence[str] = ()
    any_client: bool = False
    inputs: Sequence[str] = ()
    any_data: bool = False
    runs: int | None = None
    expires: str | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """A plan, who asked for it, and the approvals to be made."""

    plan: Plan
    asked: tuple[AskedInfo, ...]
    objects: Mapping[int, OwnerObject]
    approvals: tuple[ApprovalInfo, ...]

    def lines(self) -> Iterator[str]:
        """All that the owner should see before they say yes."""
        plan = self.plan
        yield f"plan {plain(plan.name)}"
        yield f"id   {plan.id}"
        yield ""
        yield from plan.text.rstrip("\n").split("\n")
        yield ""
        yield from self._cost()
        yield ""
        yield "what would leave"
        yield from (f"  {line}" for line in _ports(plan.graph.results()))
        updates = plan.graph.updates()
        if updates:
            yield "and may be fetched afterwards: the state that it replaces"
            yield from (f"  {line}" for line in _ports(updates))
        yield ""
        for asked in self.asked:
            yield f"asked for by {plain(asked.client)}, on"
            yield from (f"  {line}" for line in self._data(asked))
        yield from self._free()
        yield ""
        for approval in self.approvals:
            yield f"approve {scope(approval)}"

    def _cost(self) -> Iterator[str]:
        dims = {var.name: min(max(_DIM, var.lo), var.hi) for var in self.plan.dims}
        cost = self.plan.cost(**dims)
        at = f" at {', '.join(f'{name}={n}' for name, n in dims.items())} (assumed)" if dims else ""
        yield f"one run{at}: {decimal(cost.flops)} FLOPs, {size(cost.peak_bytes)} at its peak"
        yield f"  {size(cost.argument_bytes)} in, {size(cost.result_bytes)} out"

    def _data(self, asked: AskedInfo) -> Iterator[str]:
        for path, name in asked.inputs.items():
            found = self.objects.get(int(name)) if name.isdecimal() else None
            if found is None:
                yield f"{plain(path)}: object {plain(name)}, which is not here any more"
                continue
            privacy = "private" if found.private else "public"
            tags = " ".join(plain(tag) for tag in found.tags)
            what = f"{privacy} {object_type(found)} of {plain(found.owner)}, object {name} {tags}"
            yield f"{plain(path)}: {what}".rstrip()

    def _free(self) -> Iterator[str]:
        """The inputs that the approvals say nothing of: the client decides what stands there."""
        bound = set[str]().union(*(approval.inputs for approval in self.approvals))
        ports = [port for port in self.plan.graph.inputs if port.path not in bound]
        if ports:
            yield "the client chooses what stands at"
            yield from (f"  {line}" for line in _ports(ports))


def propose(handle: OwnerHandle, plan_id: str, options: Options) -> Proposal:
    """What there is to decide about a plan, given by its id or the beginning of it.

    Raises:
        InputError: there is no such plan, or several, or what is to be approved is not clear.
    """
    asked = {each.plan.id: each for each in handle.pending()}
    full = find_id(plan_id, [*asked, *(each.plan_id for each in handle.plans() if each.clients)])
    waiting = asked.get(full)
    plan = waiting.plan if waiting else handle.plan(full)
    who = waiting.asked if waiting else ()
    objects = {each.id: each for each in handle.objects()}
    return Proposal(plan, who, objects, tuple(_approvals(who, options)))


def find_id(plan_id: str, known: Sequence[str]) -> str:
    """The one plan whose id begins so.

    Raises:
        InputError: there is none, or there are several.
    """
    found = sorted({each for each in known if each.startswith(plan_id)})
    if len(plan_id) < _SHORTEST:
        raise InputError(f"plan {plan_id!r}: give at least {_SHORTEST} characters of its id")
    if len(found) != 1:
        what = f"{len(found)} plans" if found else "no plan"
        raise InputError(
            f"{what} here has an id that begins with {plan_id!r}; `planc worker plans` lists them"
        )
    return found[0]


def decide(handle: OwnerHandle, proposal: Proposal) -> None:
    """Make the approvals of a proposal."""
    for approval in proposal.approvals:
        handle.approve(
            proposal.plan.id,
            clients=approval.clients or (),
            inputs=approval.inputs,
            runs=approval.runs,
            expires=approval.expires,
        )


def _approvals(asked: Sequence[AskedInfo], options: Options) -> Iterator[ApprovalInfo]:
    if options.clients and options.any_client:
        raise InputError("--client and --any-client exclude each other")
    if options.inputs and options.any_data:
        raise InputError("--input and --any-data exclude each other")
    expires = None if options.expires is None else time.time() + _duration(options.expires)
    given = _inputs(options.inputs)
    clients = list(options.clients) or [each.client for each in asked]
    if not clients and not options.any_client:
        raise InputError("nobody asked for this plan: say whom it is for, --client NAME or --any-client")
    by_client = {each.client: each for each in asked}
    if not given and not options.any_data:
        unknown = [client for client in clients if client not in by_client]
        if options.any_client or unknown:
            who = f"{unknown[0]!r} did not ask" if unknown else "nobody in particular asked"
            raise InputError(f"{who}: say on which data, --input PATH=TAG_OR_ID or --any-data")
        for client in dict.fromkeys(clients):  # one each: nobody gets the data that another asked for
            inputs = {path: (name,) for path, name in by_client[client].inputs.items()}
            yield ApprovalInfo((client,), inputs, options.runs, expires)
        return
    whom = None if options.any_client else tuple(dict.fromkeys(clients))
    yield ApprovalInfo(whom, {} if options.any_data else given, options.runs, expires)


def _inputs(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    out: dict[str, tuple[str, ...]] = {}
    for entry in given:
        path, equals, name = entry.partition("=")
        if not equals or not path or not name:
            raise InputError(f"--input: expected PATH=TAG_OR_ID, got {entry!r}")
        out[path] = (*out.get(path, ()), name)
    return out


def _duration(text: str) -> float:
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise InputError(f"--expires: {error}") from None


def _ports(ports: Sequence[Input | Output]) -> Iterator[str]:
    for port in ports[:20]:
        yield f"{plain(port.path)}  {port.value.type}"
    if len(ports) > 20:
        yield f"and {count_of(len(ports) - 20, 'more')[:-1] if len(ports) > 21 else '1 more'}"


__all__ = ["Options", "Proposal", "decide", "find_id", "propose"]
