"""THE op table: every name that a plan may use, resolved here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from planc.errors import TypeCheckError
from planc.ir import Attribute, Dim, Graph, Node, Operand, TensorType, Value
from planc.ir.facts import Facts, known
from planc.ir.graph import Location
from planc.ops.schema import Flops, Infer, Kind, OpDef, Trait, check_operand, full_attrs, normalise, params_of

_TABLE: dict[str, OpDef] = {}
_BY_TARGET: dict[str, OpDef] = {}


def elements(_operands: tuple[Any, ...], _attrs: Mapping[str, Any], results: tuple[TensorType, ...]) -> Dim:
    """The cost of most ops: one FLOP an element of the first result."""
    return results[0].numel


def free(_operands: tuple[Any, ...], _attrs: Mapping[str, Any], _results: tuple[TensorType, ...]) -> Dim:
    """The cost of an op that moves no data."""
    return 0


def op(
    name: str,
    run: Callable[..., Any],
    *traits: Trait,
    flops: Flops | None = None,
    targets: tuple[str, ...] | None = None,
) -> Callable[[Infer], Infer]:
    """Register an op; decorates its inference function, whose signature is its schema.

    Args:
        name: ``aten.*`` for operations of torch, ``random.*``, ``opt.*``, ... for our own.
        run: the callable; takes operands by position and non-default attributes by name.
        traits: what passes may assume.
        flops: floating-point operations from operand types, attributes and result types; one an element
            where not given, none for views.
        targets: the ATen overloads that import as this op; ``<name>.default`` for ``aten.*`` where not given.
    """
    if targets is None:
        targets = (f"{name}.default",) if name.startswith("aten.") else ()
    if flops is None:
        flops = free if Trait.VIEW in traits else elements

    def register(infer: Infer) -> Infer:
        definition = OpDef(
            name, params_of(infer), infer, run, flops, frozenset(traits), targets, infer.__doc__ or ""
        )
        assert name not in _TABLE, f"op {name} is defined twice"
        _TABLE[name] = definition
        for target in targets:
            assert target not in _BY_TARGET, f"target {target} belongs to two ops"
            _BY_TARGET[target] = definition
        return infer

    return register


def lookup(name: str) -> OpDef:
    """The op called ``name``.

    Raises:
        TypeCheckError: there is none.
    """
    try:
        return _TABLE[name]
    except KeyError:
        raise TypeCheckError(f"there is no op {name!r} in the op table") from None


def find(name: str) -> OpDef | None:
    return _TABLE.get(name)


def for_target(target: str) -> OpDef | None:
    """The op that an ATen overload (``aten.add.Tensor``) imports as."""
    return _BY_TARGET.get(target)


def all_ops() -> tuple[OpDef, ...]:
    """Every op, by name."""
    return tuple(_TABLE[name] for name in sorted(_TABLE))


def infer(
    definition: OpDef,
    operands: tuple[Operand, ...],
    attrs: tuple[tuple[str, Attribute], ...],
    subplans: tuple[Graph, ...] = (),
) -> tuple[TensorType, ...]:
    """The result types of an op on these operands.

    Raises:
        TypeCheckError: operands or attributes do not fit; says which, what was expected and what came.
    """
    params = definition.operands
    if len(operands) != len(params):
        raise TypeCheckError(f"{definition.name} takes {len(params)} operands, got {len(operands)}")
    facts = known()
    arguments: dict[str, Any] = {}
    for p, operand in zip(params, operands, strict=True):
        check_operand(definition, p, operand)
        arguments[p.name] = _types(operand, facts)
    for name, value in full_attrs(definition, attrs).items():
        arguments[name] = facts.attribute(value)
    for p in definition.attrs:
        if p.kind is Kind.SUBPLAN:
            index = arguments[p.name]
            if not 0 <= index < len(subplans):
                raise TypeCheckError(
                    f"{definition.name}: there is no subplan {index}; the plan has {len(subplans)}"
                )
            arguments[p.name] = subplans[index]
    keyword = {p.name: arguments[p.name] for p in definition.params}
    try:
        result = definition.infer(**keyword)
    except TypeCheckError as error:
        raise TypeCheckError(f"{definition.name}: {error}") from None
    results = tuple(facts.type(t) for t in (result if isinstance(result, tuple) else (result,)))
    for t in results:
        if any(isinstance(d, int) and d < 0 for d in t.shape):
            raise TypeCheckError(f"{definition.name}: a result would have a negative size: {t}")
    return results


def node(
    name: str,
    operands: tuple[Operand, ...],
    attrs: Mapping[str, Attribute],
    first_index: int,
    *,
    subplans: tuple[Graph, ...] = (),
    loc: Location | None = None,
) -> Node:
    """A checked node whose results are numbered from ``first_index``.

    Types follow from what is `known` of the plan's dims: one that others define is written as what it equals.

    Raises:
        TypeCheckError: no such op, or operands or attributes do not fit it.
    """
    definition = lookup(name)
    facts = known()
    stored = tuple((key, facts.attribute(value)) for key, value in normalise(definition, attrs))
    operands = tuple(facts.operand(operand) for operand in operands)
    types = infer(definition, operands, stored, subplans)
    results = tuple(Value(first_index + i, t) for i, t in enumerate(types))
    return Node(name, operands, stored, results, loc)


def _types(operand: Operand, facts: Facts) -> Any:
    if isinstance(operand, Value):
        return facts.type(operand.type)
    if isinstance(operand, tuple):
        return tuple(None if item is None else facts.type(item.type) for item in operand)
    return facts.operand(operand)


def full(operands: tuple[Value | None, ...]) -> tuple[Value, ...]:
    """A list operand none of whose entries is missing."""
    assert all(item is not None for item in operands)
    return tuple(item for item in operands if item is not None)
