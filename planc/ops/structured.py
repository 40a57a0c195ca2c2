"""Structured ops: a plan called from a plan, and a plan scanned over batches. No other control flow exists.

``call`` runs a subplan once on its inputs in order.

``scan`` runs its body once a trip, in order. The body's inputs are ``(*carry, *batches, *given)`` and its
outputs ``(*carry, *collected)``; the carry of the last trip and everything collected are the results.
- With ``over`` (tensors of equal leading size n), trip i gets rows ``[i*size, (i+1)*size)`` of each: there
  are ``ceil(n / size)`` trips, the last possibly shorter, or ``n // size`` with ``drop_last``.
- Without, there are ``trips`` trips.
- A collected output whose leading dim is the batch's own is concatenated along it; any other is stacked
  along a new leading dim of one entry a trip.
"""

from __future__ import annotations

from typing import Any, NoReturn

from planc.errors import TypeCheckError
from planc.ir import Dim, Graph, Node, TensorType, Value
from planc.ir.dims import DimExpr, floordiv, names, show, substitute, sym
from planc.ir.facts import known, relations
from planc.ops.schema import Bool, DimAttr, Int, Subplan, Tensors, Trait
from planc.ops.table import free, full, op

_BATCH_NAME = "%batch"  # no identifier, so it cannot meet a dim of the outer plan
_BATCH = sym(_BATCH_NAME)


def _not_callable(*_args: Any, **_kwargs: Any) -> NoReturn:
    raise AssertionError("structured ops are run by the interpreter and the executor, not by a callable")


@op("call", _not_callable, Trait.STRUCTURED, flops=free)
def call(args: Tensors, *, plan: Subplan) -> tuple[TensorType, ...]:
    """Run another plan once."""
    return _apply(plan, args)


@op("scan", _not_callable, Trait.STRUCTURED, flops=free)
def scan(
    carry: Tensors,
    over: Tensors,
    given: Tensors,
    *,
    body: Subplan,
    size: Int = 0,
    trips: DimAttr = 1,
    drop_last: Bool = False,
) -> tuple[TensorType, ...]:
    """Run a plan over batches of data, carrying state."""
    if isinstance(trips, int) and trips < 0:
        raise TypeCheckError(f"trips must be 0 or more, got {trips}")
    batch = batch_name(body, len(carry), len(over))
    batches: list[TensorType] = []
    count: Dim = trips
    rows: Dim = 0
    if over:
        if size < 1:
            raise TypeCheckError(f"size must be at least 1 to batch data, got {size}")
        if any(t.rank == 0 for t in over):
            raise TypeCheckError("data to scan over needs a leading dim, got a scalar tensor")
        rows = over[0].shape[0]
        for t in over[1:]:
            if t.shape[0] != rows:
                raise TypeCheckError(f"data to scan over must have equal leading dims, got {over[0]} and {t}")
        lead: Dim = size if batch is None else _BATCH
        batches = [TensorType(t.dtype, (lead, *t.shape[1:])) for t in over]
        count = trip_total(rows, size, drop_last)
        rows = floordiv(rows, size) * size if drop_last else rows
        _check_batch(body, batch, size, rows, drop_last)
    elif size:
        raise TypeCheckError("size is given but there is no data to scan over")
    kept = {batch: _BATCH} if batch is not None else {}
    results = _apply(body, (*carry, *batches, *given), kept)
    carried, collected = results[: len(carry)], results[len(carry) :]
    for before, after in zip(carry, carried, strict=True):
        if before != after:
            raise TypeCheckError(f"a carried value changes type over a trip, from {before} to {after}")
    out: list[TensorType] = list(carried)
    for t in collected:
        if t.shape and t.shape[0] == _BATCH:
            t = TensorType(t.dtype, (rows, *t.shape[1:]))
        else:
            t = TensorType(t.dtype, (count, *t.shape))
        if _BATCH_NAME in t.dim_names():
            raise TypeCheckError(f"a collected output may have the batch dim {batch} in front only, got {t}")
        out.append(t)
    return tuple(out)


def trip_total(rows: Dim, size: int, drop_last: bool) -> Dim:
    """How many trips ``rows`` rows make in batches of ``size``."""
    return floordiv(rows if drop_last else rows + (size - 1), size)


def trip_count(node: Node) -> Dim:
    """How many times a ``scan`` node runs its body."""
    over = node.operands[1]
    if isinstance(over, tuple) and over and over[0] is not None:
        size, drop = node.attr("size"), node.attr("drop_last", False)
        assert isinstance(size, int)
        assert isinstance(drop, bool)
        return trip_total(over[0].type.shape[0], size, drop)
    trips = node.attr("trips", 1)
    assert isinstance(trips, (int, DimExpr))
    return trips


def batch_name(body: Graph, carry: int, over: int) -> str | None:
    """The body's dim that is the batch: the leading dim of its first batched input, where that is a name."""
    if not over or carry >= len(body.inputs):
        return None
    shape = body.inputs[carry].value.type.shape
    if shape and isinstance(shape[0], DimExpr) and str(shape[0]).isidentifier():
        return str(shape[0])
    return None


def subplan_of(graph: Graph, node: Node) -> Graph:
    """The subplan that a ``call`` or ``scan`` node of ``graph`` runs."""
    index = node.attr("plan" if node.op == "call" else "body")
    assert isinstance(index, int)
    return graph.subplans[index]


def scan_operands(node: Node) -> tuple[tuple[Value, ...], tuple[Value, ...], tuple[Value, ...]]:
    """The carry, the data scanned over, and the values given to every trip."""
    carry, over, given = node.operands
    assert isinstance(carry, tuple)
    assert isinstance(over, tuple)
    assert isinstance(given, tuple)
    return full(carry), full(over), full(given)


def _check_batch(body: Graph, batch: str | None, size: int, rows: Dim, drop_last: bool) -> None:
    if batch is None:
        if not drop_last and (not isinstance(rows, int) or rows % size):
            raise TypeCheckError(
                f"the body takes batches of exactly {size} rows but the last of {rows} rows may be shorter; "
                "give it a named batch dim, or drop_last=True"
            )
        return
    var = body.dim(batch)
    if var is not None and not var.lo <= size <= var.hi:
        raise TypeCheckError(
            f"batches of {size} rows are outside the body's range {batch} in {var.lo}..{var.hi}"
        )


def _solve_related(plan: Graph, bindings: dict[str, Dim]) -> None:
    """Bind the dims that no input's shape has by itself, where the plan's relations say what they are."""
    for var in plan.dims:
        if var.equals is not None and bindings.keys() >= set(names(var.equals)):
            bindings.setdefault(var.name, substitute(var.equals, bindings))
    for var in plan.dims:
        # The other way round: k, where n == k*8 and n is known.
        if var.equals is None or var.name not in bindings:
            continue
        unknown = list(dict.fromkeys(n for n in names(var.equals) if n not in bindings))
        if len(unknown) == 1:
            zero = substitute(var.equals, {unknown[0]: 0})
            slope = substitute(var.equals, {unknown[0]: 1}) - zero
            bindings[unknown[0]] = floordiv(bindings[var.name] - substitute(zero, bindings), slope)


def _apply(
    plan: Graph, args: tuple[TensorType, ...], kept: dict[str, DimExpr] | None = None
) -> tuple[TensorType, ...]:
    """The output types of ``plan`` on inputs of these types, its dims bound to the caller's."""
    if len(args) != len(plan.inputs):
        raise TypeCheckError(f"plan {plan.name!r} takes {len(plan.inputs)} inputs, got {len(args)}")
    bindings: dict[str, Dim] = dict(kept or {})
    for port, got in zip(plan.inputs, args, strict=True):
        want = port.value.type
        if want.dtype != got.dtype or want.rank != got.rank:
            raise TypeCheckError(f"plan {plan.name!r}: input {port.name!r} wants {want}, got {got}")
        for w, g in zip(want.shape, got.shape, strict=True):
            name = str(w)
            if isinstance(w, DimExpr) and name.isidentifier() and name not in bindings:
                bindings[name] = g
    for var in plan.dims:
        bound = bindings.get(var.name)
        if isinstance(bound, int) and not var.lo <= bound <= var.hi:
            raise TypeCheckError(f"plan {plan.name!r}: dim {var.name} is {bound}, outside {var.lo}..{var.hi}")
    facts = known()
    _solve_related(plan, bindings)
    for var, equals in relations(plan):
        sides = [facts.dim(substitute(side, bindings)) for side in (var, equals)]
        if sides[0] != sides[1]:
            told = f"{show(sides[0])} and {show(sides[1])}"
            raise TypeCheckError(f"plan {plan.name!r} wants {show(var)} == {show(equals)}, got {told}")
    for port, got in zip(plan.inputs, args, strict=True):
        want = facts.type(port.value.type.substitute(bindings))
        if want != got:
            raise TypeCheckError(f"plan {plan.name!r}: input {port.name!r} wants {want}, got {got}")
    return tuple(port.value.type.substitute(bindings) for port in plan.outputs)
