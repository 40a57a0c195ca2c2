"""The verifier: every rule of the IR as one small function in a table, saying what it expected and what came.

It trusts nothing that a graph says of itself: types are inferred anew. It runs nothing and changes nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from planc.errors import PlanError, VerifyError
from planc.ir import DimExpr, DType, Graph, Node, Role, TensorType, Value
from planc.ir.dims import Dim, FloorDiv, names, show, substitute, sym
from planc.ir.facts import Facts, knowing
from planc.ir.structure import Fixed, Mapping, Sequence, Tree, count_leaves
from planc.limits import Limits, check_limits
from planc.ops import Trait, find, infer, normalise
from planc.ops.schema import same

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
"""ASCII only: whoever reads a plan before approving it must not meet two names that look alike."""
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_KEY = TensorType(DType.I64, ())


def verify(graph: Graph, limits: Limits | None = None) -> None:
    """Check a plan and all plans below it against every rule of the IR.

    Args:
        graph: the plan.
        limits: how large it may be; the defaults of `Limits` where not given.

    Raises:
        LimitError: the plan is larger than a limit allows.
        VerifyError: a rule is broken. ``where`` names the plan and node; the message has expected and actual.
    """
    check_limits(graph, limits or Limits())
    _verify(graph, f"plan {graph.name!r}", set())


def _verify(graph: Graph, where: str, done: set[int]) -> None:
    """Verify ``graph``, innermost subplans first: the inference of ``call`` and ``scan`` relies on them."""
    if id(graph) in done:
        return
    for sub in graph.subplans:
        _verify(sub, f"{where} > plan {sub.name!r}", done)
    scope = _Scope(
        graph, frozenset(var.name for var in graph.dims), tuple(_definitions(graph)), Facts.of(graph.dims)
    )
    for rule in GRAPH_RULES:
        for problem in rule(scope):
            raise VerifyError(problem, where)
    scope.defined = len(graph.inputs) + len(graph.constants)
    with knowing(graph.dims):
        for position, node in enumerate(graph.nodes):
            for node_rule in NODE_RULES:
                for problem in node_rule(scope, node):
                    raise VerifyError(problem, f"{where}, {_describe(position, node)}")
            scope.defined += len(node.results)
    done.add(id(graph))


@dataclass(slots=True)
class _Scope:
    """What the rules see of one plan; ``defined`` is how many values exist before the node in question."""

    graph: Graph
    dims: frozenset[str]
    values: tuple[Value, ...]
    facts: Facts
    defined: int = 0
    sound: set[TensorType] = field(default_factory=set[TensorType])


def _definitions(graph: Graph) -> Iterator[Value]:
    yield from (port.value for port in graph.inputs)
    yield from (constant.value for constant in graph.constants)
    for node in graph.nodes:
        yield from node.results


def _describe(position: int, node: Node) -> str:
    results = f"v{node.results[0].index} = " if node.results else ""
    return f"node {position} ({results}{node.op})" + (f" from {node.loc}" if node.loc else "")


# Rules of a whole plan.


def _numbering(scope: _Scope) -> Iterator[str]:
    for expected, value in enumerate(scope.values):
        if value.index != expected:
            yield f"values count up over inputs, constants, results: expected {expected}, got {value.index}"


def _identifiers(scope: _Scope) -> Iterator[str]:
    graph = scope.graph
    ports = [*graph.inputs, *graph.outputs]
    for name in (graph.name, *(port.name for port in ports), *(var.name for var in graph.dims)):
        if not _IDENTIFIER.match(name):
            yield f"expected an identifier (ASCII letters, digits, _) as a name, got {name!r}"


def _unique(scope: _Scope) -> Iterator[str]:
    graph = scope.graph
    for what, ports in (("input", graph.inputs), ("output", graph.outputs)):
        yield from _repeats(f"{what} name", (port.name for port in ports))
        for role in Role:
            paths = (port.path for port in ports if port.role is role)
            yield from _repeats(f"{what} path of role {role.value}", paths)
        # State is one dictionary by path, whatever the roles of its entries.
        yield from _repeats(f"{what} path of state", (port.path for port in ports if port.role.is_state))
    yield from _repeats("dim", (var.name for var in graph.dims))


def _repeats(what: str, items: Iterable[str]) -> Iterator[str]:
    seen: dict[str, int] = {}
    for position, item in enumerate(items):
        if item in seen:
            yield f"expected each {what} once, got {item!r} at positions {seen[item]} and {position}"
        seen[item] = position


def _dim_ranges(scope: _Scope) -> Iterator[str]:
    for var in scope.graph.dims:
        if not 0 <= var.lo <= var.hi:
            yield f"dim {var.name}: expected a range with 0 <= lo <= hi, got {var.lo}..{var.hi}"


def _relations(scope: _Scope) -> Iterator[str]:
    """A dim is defined by dims that nothing defines, and can equal what defines it."""
    for var in scope.graph.dims:
        if var.equals is None:
            continue
        what = f"dim {var.name} == {show(var.equals)}"
        broken = list(_sound_dim(scope, var.equals, what))
        yield from broken
        if broken:
            continue
        defined = dict.fromkeys(name for name in names(var.equals) if name in scope.facts.definitions)
        if defined:
            yield f"{what}: expected dims that nothing defines, got {', '.join(defined)}"
            continue
        if not scope.facts.can_hold(var):
            used = (scope.graph.dim(name) for name in (var.name, *dict.fromkeys(names(var.equals))))
            ranges = ", ".join(f"{dim.name} in {dim.lo}..{dim.hi}" for dim in used if dim is not None)
            yield f"{what}: expected sizes in their ranges, got none in {ranges}"


def _types(scope: _Scope) -> Iterator[str]:
    for value in scope.values:
        yield from _sound_type(scope, value.type, f"value {value.index}")


def _sound_type(scope: _Scope, type: TensorType, what: str) -> Iterator[str]:
    for dim in type.shape:
        if isinstance(dim, int) and (dim < 0 or isinstance(dim, bool)):
            yield f"{what} of type {type}: expected dims of 0 or more, got {dim!r}"
    if type in scope.sound:
        return
    for dim in type.shape:
        yield from _sound_dim(scope, dim, f"{what} of type {type}")
    scope.sound.add(type)


def _sound_dim(scope: _Scope, dim: Dim, what: str) -> Iterator[str]:
    unknown = set(names(dim)) - scope.dims
    if unknown:
        declared = ", ".join(sorted(scope.dims)) or "none"
        yield f"{what}: expected declared dims ({declared}), got {', '.join(sorted(unknown))}"
    elif isinstance(dim, DimExpr):
        try:
            canonical = substitute(dim, {})
        except PlanError as error:
            yield f"{what}: {error}"
            return
        if canonical != dim:
            yield f"{what}: expected the canonical form {canonical}, got {dim.terms}"


def _constants(scope: _Scope) -> Iterator[str]:
    for constant in scope.graph.constants:
        what, type = f"constant {constant.value.index}", constant.value.type
        if not _DIGEST.match(constant.digest):
            yield f"{what}: expected a digest of 64 hex digits, got {constant.digest!r:.80}"
        if not type.is_static:
            yield f"{what}: expected a type without named dims, got {type}"


def _determined(scope: _Scope) -> Iterator[str]:
    """Every dim follows from the shapes of the inputs, so that a call never has to name one."""
    known: set[str] = set()
    dims = [dim for port in scope.graph.inputs for dim in port.value.type.shape]
    dims += [var.equals - sym(var.name) for var in scope.graph.dims if var.equals is not None]
    waiting = [dim for dim in dims if isinstance(dim, DimExpr)]
    while True:
        found = {name for dim in waiting for name in _solvable(dim, known)}
        if not found:
            break
        known |= found
        waiting = [dim for dim in waiting if not known.issuperset(names(dim))]
    for var in scope.graph.dims:
        if var.name not in known:
            shapes = ", ".join(f"{port.name}: {port.value.type}" for port in scope.graph.inputs[:8])
            yield f"dim {var.name}: expected inputs that determine it, got ({shapes})"


def _solvable(dim: DimExpr, known: set[str]) -> Iterator[str]:
    """The one unknown name of ``dim``, where it stands in it linearly and outside floor divisions."""
    unknown = set(names(dim)) - known
    if len(unknown) == 1:
        name = unknown.pop()
        divided = any(
            isinstance(atom, FloorDiv) and name in {*names(atom.numerator), *names(atom.denominator)}
            for monomial, _ in dim.terms
            for atom in monomial
        )
        if not divided and max(monomial.count(name) for monomial, _ in dim.terms) == 1:
            yield name


def _input_keys(scope: _Scope) -> Iterator[str]:
    for port in scope.graph.inputs:
        if port.role is Role.KEY and port.value.type != _KEY:
            yield f"random key {port.name!r}: expected {_KEY}, got {port.value.type}"


def _outputs(scope: _Scope) -> Iterator[str]:
    for port in scope.graph.outputs:
        for problem in _is_defined(port.value, scope.values, len(scope.values)):
            yield f"output {port.name!r}: {problem}"


def _updates(scope: _Scope) -> Iterator[str]:
    state = {(port.role, port.path): port for port in scope.graph.state()}
    for port in scope.graph.updates():
        what = f"output {port.name!r} updates the {port.role.value} {port.path!r}"
        target = state.get((port.role, port.path))
        if target is None:
            known = ", ".join(f"{role.value} {path!r}" for role, path in list(state)[:8]) or "none"
            yield f"{what}: expected an input of this role and path, got inputs {known}"
        elif scope.facts.type(target.value.type) != scope.facts.type(port.value.type):
            yield f"{what}: expected its type {target.value.type}, got {port.value.type}"


def _structures(scope: _Scope) -> Iterator[str]:
    graph = scope.graph
    for what, tree, ports in (
        ("arguments", graph.takes, graph.arguments()),
        ("results", graph.gives, graph.results()),
    ):
        if tree is None:
            continue
        broken = list(_broken_tree(tree))
        yield from (f"structure of the {what}: {problem}" for problem in broken)
        if not broken and count_leaves(tree) != len(ports):
            yield f"structure of the {what}: expected {len(ports)} tensors, got {count_leaves(tree)}"


def _broken_tree(tree: Tree) -> Iterator[str]:
    if isinstance(tree, Fixed):
        if isinstance(tree.value, float) and math.isnan(tree.value):
            yield "expected a fixed value that equals itself, got nan"
    elif isinstance(tree, Sequence):
        if tree.kind not in ("tuple", "list"):
            yield f"expected a tuple or a list, got {tree.kind!r}"
    elif isinstance(tree, Mapping):
        if len(tree.keys) != len(tree.items):
            yield f"expected an entry for each of {len(tree.keys)} keys, got {len(tree.items)}"
        yield from _repeats("key", tree.keys)
    if isinstance(tree, (Sequence, Mapping)):
        for item in tree.items:
            yield from _broken_tree(item)


# Rules of a node.


def _op_exists(_scope: _Scope, node: Node) -> Iterator[str]:
    if find(node.op) is None:
        yield f"expected an op of the op table, got {node.op!r}"


def _operands_defined(scope: _Scope, node: Node) -> Iterator[str]:
    for value in node.values():
        for problem in _is_defined(value, scope.values, scope.defined):
            yield f"operand {problem}"


def _is_defined(value: Value, values: tuple[Value, ...], count: int) -> Iterator[str]:
    """Whether ``value`` is one of the first ``count`` of ``values``."""
    if not 0 <= value.index < count:
        yield f"v{value.index}: expected a value defined before it (there are {count}), got v{value.index}"
    elif values[value.index] != value:
        yield f"v{value.index}: expected its type {values[value.index].type}, got {value.type}"


def _numbers(scope: _Scope, node: Node) -> Iterator[str]:
    """Numbers equal themselves and dims are declared, wherever a node holds them."""
    held = [(f"operand {position}", item) for position, item in enumerate(node.operands)]
    for name, attr in node.attrs:
        held += [(f"attribute {name!r}", item) for item in (attr if isinstance(attr, tuple) else (attr,))]
    for what, item in held:
        if isinstance(item, float) and math.isnan(item):
            yield f"{what}: expected a number that equals itself, got nan"
        elif isinstance(item, DimExpr):
            yield from _sound_dim(scope, item, what)
            if (plain := scope.facts.dim(item)) != item:
                # Only inputs name a dim that others define: elsewhere equal sizes must be equal dims.
                yield f"{what}: expected {show(plain)}, which {show(item)} equals, got {show(item)}"


def _attributes(_scope: _Scope, node: Node) -> Iterator[str]:
    definition = find(node.op)
    assert definition is not None
    try:
        expected = normalise(definition, dict(node.attrs))
    except PlanError as error:
        yield str(error)
        return
    if [name for name, _ in expected] != [name for name, _ in node.attrs]:
        wanted, got = ([name for name, _ in attrs] for attrs in (expected, node.attrs))
        yield f"expected the attributes that differ from their defaults, in order {wanted}, got {got}"
        return
    for (name, value), (_, stored) in zip(expected, node.attrs, strict=True):
        if not same(value, stored):
            yield f"attribute {name!r}: expected {value!r}, got {stored!r}"


def _keys(_scope: _Scope, node: Node) -> Iterator[str]:
    definition = find(node.op)
    assert definition is not None
    if not definition.has(Trait.RANDOM):
        return
    for param, operand in zip(definition.operands, node.operands, strict=False):
        if param.name == "key" and not (isinstance(operand, Value) and operand.type == _KEY):
            got = operand.type if isinstance(operand, Value) else operand
            yield f"operand 'key': expected a random key of type {_KEY}, got {got}"


def _inference(scope: _Scope, node: Node) -> Iterator[str]:
    definition = find(node.op)
    assert definition is not None
    try:
        expected = infer(definition, node.operands, node.attrs, scope.graph.subplans)
    except PlanError as error:
        yield str(error)
        return
    except Exception as error:
        # A gap in one op's inference must not become an untyped error out of a decoder.
        yield f"its type could not be inferred ({type(error).__name__}: {error})"
        return
    got = tuple(value.type for value in node.results)
    if expected != got:
        yield f"expected results of type ({_list(expected)}), got ({_list(got)})"


def _list(types: tuple[TensorType, ...]) -> str:
    return ", ".join(str(type) for type in types)


GRAPH_RULES: tuple[Callable[[_Scope], Iterator[str]], ...] = (
    _numbering,
    _identifiers,
    _unique,
    _dim_ranges,
    _relations,
    _types,
    _constants,
    _determined,
    _input_keys,
    _outputs,
    _updates,
    _structures,
)
"""In this order: a rule may rely on those before it."""

NODE_RULES: tuple[Callable[[_Scope, Node], Iterator[str]], ...] = (
    _op_exists,
    _operands_defined,
    _numbers,
    _attributes,
    _keys,
    _inference,
)

__all__ = ["GRAPH_RULES", "NODE_RULES", "Limits", "verify"]
