"""The message that runs a plan for many clients, one after another, and adds up what comes of it.

What a member takes and may do is `membership`'s. A member that fails changes nothing and stops nobody; what
the others keep is kept together at the end, or nothing of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from planc.errors import InputError, LimitError, PlancError
from planc.ir import Graph, Output
from planc.ir.program import Program
from planc.lower import Kind
from runtime.access.admission import denied
from runtime.call import Call
from runtime.cohorts import Cohort, CohortDone, Each, KeptOwn, Mean, Sum, Unfit
from runtime.errors import QuotaExceeded, RemoteLimitError, to_failure
from runtime.executor import Prepared
from runtime.handlers.membership import Entrant, Membership
from runtime.policy import Right, Secrecy, derive
from runtime.store import Stored
from runtime.sums import Accumulator, accumulator_bytes, fits

_REASON = 256
"""Bytes of the reason why a member does not count: as many as may be of all members fit a header."""
_FEW = 64
"""Elements whose mean is taken in Python."""
NONSENSE = "nonsense"
"""The kind of a result that cannot be added up."""

Ready = tuple[Entrant, Prepared]
"""A member whose inputs fit the plan, and what running the plan on such inputs needs."""


@dataclass(frozen=True, slots=True)
class _Outputs:
    """What becomes of each output of a plan, by position."""

    graph: Graph
    sums: tuple[int, ...]
    each: tuple[int, ...]
    means: tuple[int, ...]
    kept: tuple[int, ...]
    exponents: tuple[int, ...]

    @classmethod
    def of(cls, graph: Graph, body: Cohort) -> _Outputs:
        wishes = body.outputs

        def those(kind: type) -> tuple[int, ...]:
            return tuple(i for i, wish in enumerate(wishes) if isinstance(wish, kind))

        each = tuple(
            i
            for i, wish in enumerate(wishes)
            if isinstance(wish, Each) or (isinstance(wish, Sum) and wish.each)
        )
        exponents = tuple(wish.exponent for wish in wishes if isinstance(wish, Sum))
        found = cls(graph, those(Sum), each, those(Mean), those(KeptOwn), exponents)
        for i in (*found.sums, *each, *found.kept):
            port = graph.outputs[i]
            if not port.value.type.is_static:
                raise InputError(
                    f"plan {graph.name!r}: output {port.path!r} is {port.value.type}: it cannot be added up, "
                    "sent back or kept for each member, as its shape is not fixed"
                )
        return found

    def ports(self, positions: Sequence[int]) -> list[Output]:
        return [self.graph.outputs[i] for i in positions]

    def elements(self, positions: Sequence[int]) -> int:
        """Elements of these outputs."""
        return sum(math.prod(port.value.type.at({})) for port in self.ports(positions))

    def nbytes(self, positions: Sequence[int]) -> int:
        """Bytes of these outputs."""
        return sum(
            math.prod(p.value.type.at({})) * p.value.type.dtype.itemsize for p in self.ports(positions)
        )


def _cohort(call: Call, body: Cohort) -> CohortDone:
    start = time.perf_counter()
    site, quota = call.site, call.rights.quota
    call.right = Right.RUN
    call.touched.plan_id = body.plan_id
    call.taken.require_time(quota)
    program = site.shelf.get(body.plan_id).program
    if not call.rights.fetch.anything:
        raise denied(call.identity, call.rights, site.worker, Right.FETCH)
    membership = Membership(call, program.graph, body)
    outputs = _Outputs.of(program.graph, body)
    written = _check(call, body, outputs)
    entrants = membership.entrants()
    work = _Work(call, body, program, membership, outputs, start)
    ready = None
    if any(entrant.clearance.approval is not None for entrant in entrants):
        # Before approvals are spent: inputs that do not fit use up no run of them.
        ready = work.fitting(entrants)
        call.taken.require_run(quota)
        membership.spend([entrant for entrant, _ in ready])
    with call.taken.run(quota), site.computing(written):
        if ready is None:  # others need not wait for that
            ready = work.fitting(entrants)
        work.run(ready)
    call.touched.released |= any(entrant.clearance.releases for entrant, _ in ready)
    answer = work.answer()
    site.store.commit(work.kept)
    return answer


def _check(call: Call, body: Cohort, outputs: _Outputs) -> list[int]:
    """Refuse what could not be added up or held, before anything is made for it. The ids to keep at."""
    members = body.members
    if outputs.sums and not fits([member.weight for member in members], body.limit):
        raise InputError(
            f"the weights of {len(members)} members times the limit {body.limit} could overflow: expected at "
            "most 2**62 in all"
        )
    for place, member in enumerate(members):
        if len(member.keep) not in (0, len(outputs.kept)):
            raise InputError(
                f"member {place} of the cohort: expected no id to keep at or {len(outputs.kept)}, got "
                f"{len(member.keep)}"
            )
    if len(body.hold) not in (0, len(outputs.sums)):
        raise InputError(
            f"expected no id to hold sums at or {len(outputs.sums)}, one for each, got {len(body.hold)}"
        )
    written = [*body.hold, *(id for member in members for id in member.keep)]
    call.require_writable(written)
    summed = outputs.elements(outputs.sums)
    sent = len(members) * (outputs.nbytes(outputs.each) + 8 * len(outputs.means) + 8) + 8 * summed
    if sent > call.site.reply_bytes:
        raise LimitError(
            f"the reply would have {sent} bytes of tensors, {call.site.reply_bytes} are allowed: ask for "
            "fewer members at a time"
        )
    keeping = sum(bool(member.keep) for member in members)
    call.require_room(sent + accumulator_bytes(summed) + keeping * outputs.nbytes(outputs.kept))
    return written


@dataclass(slots=True)
class _Work:
    """A cohort while it is computed: what the members that are done gave, and who is not."""

    call: Call
    body: Cohort
    program: Program
    membership: Membership
    outputs: _Outputs
    start: float
    done: list[int] = field(default_factory=list[int])
    unfit: list[Unfit] = field(default_factory=list[Unfit])
    late: list[int] = field(default_factory=list[int])
    kept: dict[int, Stored] = field(default_factory=dict[int, Stored])
    _sums: Accumulator | None = None
    _each: list[torch.Tensor] = field(default_factory=list[torch.Tensor])
    _means: list[list[float]] = field(default_factory=list[list[float]])
    _seconds: list[float] = field(default_factory=list[float])
    _secrecies: set[Secrecy] = field(default_factory=set[Secrecy])

    def fitting(self, entrants: Sequence[Entrant]) -> list[Ready]:
        """The members whose inputs fit the plan and whose run is within bounds."""
        known: dict[tuple[Kind, ...], Prepared | PlancError] = {}
        out: list[Ready] = []
        with self.call.charged():
            for entrant in entrants:
                own = tuple([part.kind() for part in entrant.parts])
                found = known.get(own)
                if found is None:
                    found = known[own] = self._checked(entrant, own)
                if isinstance(found, PlancError):
                    self._fail(entrant.place, found)
                else:
                    out.append((entrant, found))
        return out

    def run(self, ready: Sequence[Ready]) -> None:
        """Compute member after member, until the time is over."""
        call, body = self.call, self.body
        deadline = math.inf if body.seconds is None else self.start + body.seconds
        self._prepare(len(ready), math.fsum(entrant.member.weight for entrant, _ in ready))
        inputs = self.membership.bare()
        for number, (entrant, prepared) in enumerate(ready):
            began = time.perf_counter()
            if began >= deadline:
                self.late += [each.place for each, _ in ready[number:]]
                return
            try:
                values = self._compute(entrant, prepared, inputs, min(deadline - began, self._allowed()))
            except PlancError as error:
                if isinstance(error, RemoteLimitError) and time.perf_counter() >= deadline:
                    self.late.append(entrant.place)
                else:
                    self._fail(entrant.place, error)
            else:
                self._take(entrant, values, began)
            finally:
                call.spent += time.perf_counter() - began

    def answer(self) -> CohortDone:
        """The reply, with its tensors attached."""
        call, outputs, count = self.call, self.outputs, len(self.done)
        sums = self._sums.sums() if self._sums is not None and count else []
        if self.body.hold:
            secrecy = derive(self._secrecies)
            for id, total in zip(self.body.hold, sums, strict=False):
                self.kept[id] = Stored(total.clone(), call.client, secrecy=secrecy)
            sums = []
        means = torch.tensor(self._means, dtype=torch.float64).reshape(len(outputs.means), count)
        seconds = torch.tensor(self._seconds, dtype=torch.float64)
        paths = [port.path for port in outputs.ports(outputs.sums)]
        return CohortDone(
            tuple(self.done),
            tuple(self.unfit),
            tuple(self.late),
            tuple(call.attach(t, f"sum of {path}") for path, t in zip(paths, sums, strict=False)),
            tuple(
                call.attach(rows[:count], port.path)
                for rows, port in zip(self._each, outputs.ports(outputs.each), strict=True)
            ),
            call.attach(means, "means"),
            call.attach(seconds, "seconds"),
        )

    def _checked(self, entrant: Entrant, own: tuple[Kind, ...]) -> Prepared | PlancError:
        """What running the plan on a member's inputs needs, or what is wrong with inputs of these kinds."""
        inputs, kinds = self.membership.bare(), self.membership.kinds(own)
        for i, part in zip(self.membership.own, entrant.parts, strict=True):
            inputs[i] = part.stand_in()
        try:
            return self.call.site.executor.prepare(self.body.plan_id, self.program, inputs, kinds)
        except PlancError as error:
            return error

    def _prepare(self, members: int, weight: float) -> None:
        """The memory for what comes, of which is known that there is room for it."""
        outputs, device = self.outputs, self.call.site.device
        types = [port.value.type for port in outputs.ports(outputs.sums)]
        if types and members:
            self._sums = Accumulator(
                [torch.Size(type.at({})) for type in types],
                [type.dtype.torch for type in types],
                outputs.exponents,
                self.body.limit,
                weight,
                device,
            )
        self._each = [
            torch.empty((members, *port.value.type.at({})), dtype=port.value.type.dtype.torch, device=device)
            for port in outputs.ports(outputs.each)
        ]
        self._means = [[] for _ in outputs.means]

    def _allowed(self) -> float:
        """The seconds that the next member may take."""
        call, quota = self.call, self.call.rights.quota
        allowed = math.inf if quota.run_seconds is None else quota.run_seconds
        if quota.seconds is None:
            return allowed
        left = quota.seconds - call.taken.seconds - call.spent
        if left <= 0:
            raise QuotaExceeded(
                f"{call.client!r} has computed all of its {quota.seconds:g} seconds here; ask the worker's "
                "owner for more (quota.seconds)"
            )
        return min(allowed, left)

    def _compute(
        self, entrant: Entrant, prepared: Prepared, inputs: list[torch.Tensor], seconds: float
    ) -> list[torch.Tensor]:
        for i, part in zip(self.membership.own, entrant.parts, strict=True):
            inputs[i] = part.take()
        limit = None if seconds == math.inf else seconds
        return self.call.site.executor.run(prepared, self.program, inputs, limit)

    def _take(self, entrant: Entrant, values: Sequence[torch.Tensor], began: float) -> None:
        """Count a member in, or say why it does not count."""
        outputs, member, count = self.outputs, entrant.member, len(self.done)
        if self._sums is not None:
            if not self._sums.add([values[i] for i in outputs.sums], member.weight):
                self._nonsense(entrant.place, "NaN, infinite, or too large to be a result of training")
                return
        elif any(not bool(values[i].isfinite().all()) for i in outputs.each):
            self._nonsense(entrant.place, "NaN or infinite")
            return
        for rows, i in zip(self._each, outputs.each, strict=True):
            rows[count].copy_(values[i])
        for means, i in zip(self._means, outputs.means, strict=True):
            means.append(_mean(values[i]))
        for id, i in zip(member.keep, outputs.kept, strict=False):
            self.kept[id] = Stored(values[i].detach(), self.call.client, secrecy=entrant.clearance.secrecy)
        self._secrecies.add(entrant.clearance.secrecy)
        self.done.append(entrant.place)
        self._seconds.append(time.perf_counter() - began)

    def _nonsense(self, place: int, what: str) -> None:
        name = self.program.graph.name
        reason = f"plan {name!r}: a result has elements that are {what}"
        self.unfit.append(Unfit(place, NONSENSE, _short(reason)))

    def _fail(self, place: int, error: PlancError) -> None:
        failure = to_failure(error, self.call.site.worker)
        self.unfit.append(Unfit(place, failure.kind, _short(failure.message)))


def _short(reason: str) -> str:
    return reason.encode()[:_REASON].decode(errors="ignore")


def _mean(value: torch.Tensor) -> float:
    """The mean of a result's elements; NaN where it has none."""
    count = value.numel()
    if 0 < count <= _FEW:  # torch's mean of so few takes twenty times as long
        return float(sum(value.reshape(-1).tolist()) / count)
    return float(value.mean(dtype=torch.float64).item())


HANDLERS: dict[type, Callable[..., Any]] = {Cohort: _cohort}
