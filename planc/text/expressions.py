"""Expressions to operands, attributes and nodes: names, operators and calls.

The plan around them is the affair of `planc.text.elaborate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from planc.errors import PlancError, PlanError
from planc.ir import Attribute, Graph, Operand, Value
from planc.ir.builder import GraphBuilder, map_operand
from planc.ir.dims import sym
from planc.ir.graph import Location
from planc.ops import Kind, OpDef, Param, node
from planc.ops.schema import coerce
from planc.text.arithmetic import bounded, check_product, combine, negate
from planc.text.dims import NUMBERS, Dims, Piece, is_dim_call, number_of, show_piece
from planc.text.gradients import Differentiate, Slice
from planc.text.sugar import FUNCTIONS, infix, known_names, resolve
from planc.text.suggest import count_of, nearest
from planc.text.syntax import (
    Call,
    Chain,
    Expr,
    Ident,
    ListOf,
    Literal,
    Name,
    Negative,
    Place,
    Problem,
    TypeExpr,
)

_LISTS = {"Ints", "OptInts", "Bools", "Dims"}
_USUAL = {"axis": "dim", "keepdims": "keepdim", "input": "self", "x": "self", "epsilon": "eps"}
"""Parameters by the names that they have elsewhere."""
_DTYPES = {Kind.DTYPE, Kind.OPT_DTYPE}


@dataclass(frozen=True)
class Context:
    """What all of a text's plans share: file and lines for errors and places, how to differentiate."""

    file: str
    lines: list[str]
    differentiate: Differentiate | None = None


class Expressions:
    """Turns the expressions of one plan into nodes of its builder."""

    def __init__(
        self, builder: GraphBuilder, dims: Dims, outer: Mapping[str, Graph], context: Context
    ) -> None:
        self.builder = builder
        self.dims = dims
        self.values: dict[str, Value] = {}
        self.carried: set[str] = set()
        """Names that may be given new values: those that a loop carries, in its body."""
        self._outer = outer
        self._inner: dict[str, int] = {}
        self._context = context
        self._lines_of: dict[str, int] = {}
        self._of_loops: dict[str, int] = {}

    def inner(self, builder: GraphBuilder, dims: Dims) -> Expressions:
        """The scope of a plan within this one: it sees this one's plans, not its values."""
        return Expressions(builder, dims, self.plans(), self._context)

    def plans(self) -> dict[str, Graph]:
        """The plans that can be called here, by name."""
        own = {name: self.builder.subplans[index] for name, index in self._inner.items() if index >= 0}
        return {**self._outer, **own}

    # -- names

    def define(self, name: Ident, value: Value) -> None:
        """Let ``name`` mean ``value`` from here on."""
        if name.text in self.values and name.text not in self.carried:
            first = f" (line {self._lines_of[name.text]})" if name.text in self._lines_of else ""
            hint = f"a name means one value{first}; choose another"
            raise Problem(f"{name.text!r} is defined twice", name.at, hint)
        self.values[name.text] = value
        self._lines_of[name.text] = name.at.line

    def forget(self, names: set[str], line: int) -> None:
        """Remember that ``names`` were those of a loop, for whoever uses one that is no more."""
        self._of_loops.update((name, line) for name in names if name not in self.values)

    def add_plan(self, graph: Graph) -> None:
        """Make a plan that is written within this one callable."""
        self.builder.subplans.append(graph)
        # A printed plan may hold several of one name; it then refers to them by number.
        self._inner[graph.name] = -1 if graph.name in self._inner else len(self.builder.subplans) - 1

    def add_body(self, graph: Graph) -> int:
        """Add a plan that no one can call: the body of a loop."""
        self.builder.subplans.append(graph)
        return len(self.builder.subplans) - 1

    def free_plan_name(self, name: str) -> str:
        """``name``, or one like it that no plan has here."""
        taken = {*self._outer, *(plan.name for plan in self.builder.subplans)}
        found, number = name, 2
        while found in taken:
            found, number = f"{name}{number}", number + 1
        return found

    def _subplan(self, name: str, at: Place) -> int:
        index = self._inner.get(name)
        if index is None and name in self._outer:
            self.builder.subplans.append(self._outer[name])
            index = self._inner[name] = len(self.builder.subplans) - 1
        if index is None:
            raise Problem(f"there is no plan {name!r}", at, nearest(name, [*self._inner, *self._outer]))
        if index < 0:
            raise Problem(f"several plans here are called {name!r}", at, "name them apart")
        return index

    # -- expressions

    def value(self, expr: Expr) -> Value:
        """An expression that means one tensor."""
        piece = self.operand(expr)
        if not isinstance(piece, Value):
            hint = "full([], number) makes one"
            if isinstance(piece, tuple):
                hint = "several values are listed without brackets: return a, b"
            raise Problem(f"a tensor is wanted here, got {show_piece(piece)}", expr.at, hint)
        return piece

    def values_of(self, expr: Expr) -> tuple[Value, ...]:
        """All results of an expression: those of its op where it is a call, one value otherwise."""
        if isinstance(expr, Call) and not is_dim_call(expr):
            return self._call(expr)
        return (self.value(expr),)

    def operand(self, expr: Expr) -> Piece:
        """An expression in the place of an operand."""
        if isinstance(expr, Literal):
            return expr.value
        if isinstance(expr, Name):
            return self._name(expr)
        if isinstance(expr, ListOf):
            return tuple(self.operand(item) for item in expr.items)
        if isinstance(expr, Negative):
            piece = self.operand(expr.operand)
            if isinstance(piece, Value):
                return self.emit("aten.neg", (piece,), expr.at)[0]
            return negate(number_of(piece, expr.operand), expr.at)
        if isinstance(expr, Chain):
            total = self.operand(expr.first)
            for op, operand in expr.rest:
                total = self._infix(op, total, self.operand(operand), expr)
            return total
        if is_dim_call(expr):
            return self.dims.dim(expr.arguments[0])
        results = self._call(expr)
        if len(results) != 1:
            hint = "give the results names first: a, b = ..." if results else ""
            raise Problem(f"{expr.callee.text} has {len(results)} results, one is wanted here", expr.at, hint)
        return results[0]

    def _name(self, name: Name) -> Operand:
        value = self.values.get(name.text)
        if value is not None:
            return value
        if name.text in self.dims.names:
            return sym(name.text)
        hint = nearest(
            name.text, [*self.values, *self.dims.names], "inputs and results must be named before use"
        )
        if name.text in self._of_loops:
            line = self._of_loops[name.text]
            hint = f"the loop in line {line} keeps it: collect {name.text} there, or give it a value before"
        raise Problem(f"there is no value {name.text!r}", name.at, hint)

    def _infix(self, op: str, left: Piece, right: Piece, expr: Chain) -> Operand:
        if not isinstance(left, (Value, *NUMBERS)) or not isinstance(right, (Value, *NUMBERS)):
            wrong = right if isinstance(left, (Value, *NUMBERS)) else left
            raise Problem(f"'{op}' wants tensors or numbers, got {show_piece(wrong)}", expr.at)
        if isinstance(left, Value) or isinstance(right, Value):
            return infix(self.emit, op, left, right, expr.at)
        return combine(op, left, right, expr.at)

    # -- calls

    def emit(
        self, op: str, operands: tuple[Operand, ...], at: Place, /, **attrs: Attribute
    ) -> tuple[Value, ...]:
        """Append a node, its types inferred."""
        loc = Location(self._context.file, at.line, self._context.lines[at.line - 1])
        try:
            subplans = tuple(self.builder.subplans)
            made = node(op, operands, attrs, self.builder.next_index, subplans=subplans, loc=loc)
        except PlanError as error:
            raise Problem(str(error), at, _signature(op)) from None
        for result in made.results:
            for dim in result.type.shape:
                bounded(dim, at)
            check_product(result.type.shape, at)
        return self.builder.add(made)

    def _call(self, call: Call) -> tuple[Value, ...]:
        name = call.callee.text
        definition = None if call.callee.quoted else resolve(name)
        # Full names of ops come first, so that a printed plan means the same whatever surrounds it.
        if definition is not None and definition.name == name:
            return self._op(definition, call)
        if name in self._inner or name in self._outer:
            return self._plan(call)
        if definition is not None and name not in FUNCTIONS:
            return self._op(definition, call)
        if name in FUNCTIONS and not call.callee.quoted:
            return (self._function(call),)
        if name == "grad" and not call.callee.quoted:
            return self._grad(call)
        hint = nearest(name, [*self._inner, *self._outer, "grad", *known_names()])
        head, dot, method = name.rpartition(".")
        if dot and head in self.values:
            hint = f"there are no methods: write {method}({head}, ...)"
        elif dot and resolve(method) is not None:
            hint = f"did you mean '{method}'?"
        elif name == self.builder.name:
            hint = "a plan cannot call itself: what repeats is a loop, for i in range(10) { ... }"
        elif name in ("batches", "range"):
            hint = f"{name} is for loops: for x in {name}(...) {{ ... }}"
        raise Problem(f"there is no op or plan {name!r}", call.callee.at, hint)

    def _plan(self, call: Call) -> tuple[Value, ...]:
        index = self._subplan(call.callee.text, call.callee.at)
        plan = self.builder.subplans[index]
        ports = [port.name for port in plan.inputs]
        given = _arrange(call, ports, len(ports), f"plan {plan.name!r}")
        args = tuple(self.value(given[port]) for port in ports)
        try:
            return self.emit("call", (args,), call.at, plan=index)
        except Problem as problem:
            header = ", ".join(f"{port.name}: {port.value.type}" for port in plan.inputs)
            message = problem.message.removeprefix("call: ")
            raise Problem(message, call.at, f"it is plan {plan.name}({header})") from None

    def _function(self, call: Call) -> Value:
        function, params, required = FUNCTIONS[call.callee.text]
        given = _arrange(call, params, required, call.callee.text)
        return function(self.emit, call.at, **{name: self._as_operand(expr) for name, expr in given.items()})

    def _grad(self, call: Call) -> tuple[Value, ...]:
        given = _arrange(call, ("loss", "wrt"), 2, "grad", "write: gw, gc = grad(loss, [w, c])")
        loss, wrt = self.value(given["loss"]), given["wrt"]
        if loss.type.shape or not loss.type.dtype.is_floating:
            hint = "take its sum or mean" if loss.type.dtype.is_floating else "it has no gradient"
            raise Problem(
                f"grad wants a loss that is one real number, got {loss.type}", given["loss"].at, hint
            )
        places = wrt.items if isinstance(wrt, ListOf) else (wrt,)
        values = tuple(self.value(expr) for expr in places)
        for value, expr in zip(values, places, strict=True):
            if not value.type.dtype.is_floating:
                raise Problem(
                    f"there is no gradient with respect to {value.type}", expr.at, "only of real numbers"
                )
        part = Slice(self.builder, loss, values)
        self._check_reached(part.reached, call, places)
        if self._context.differentiate is None:
            raise Problem("grad is not available here", call.at, "planc.parse and the command line have it")
        try:
            found = self._context.differentiate(part.graph, part.wrt)
        except PlancError as error:
            raise Problem(f"grad: {error}", call.at) from None
        self._check_reached(found.reached, call, places)
        return self._splice(found.graph, part.known, call.at)

    @staticmethod
    def _check_reached(reached: Sequence[bool], call: Call, places: Sequence[Expr]) -> None:
        for hit, expr in zip(reached, places, strict=True):
            if not hit:
                name = f"{expr.text!r}" if isinstance(expr, Name) else "this value"
                hint = "the loss must be computed from it, through operations that have a gradient"
                raise Problem(f"the loss does not depend on {name}", expr.at, hint)

    def _splice(self, graph: Graph, known: Sequence[Value], at: Place) -> tuple[Value, ...]:
        """Append a graph's nodes, its inputs being ``known``; returns its outputs."""
        values = {port.value.index: value for port, value in zip(graph.inputs, known, strict=True)}
        for made in graph.nodes:
            operands = tuple(map_operand(operand, lambda v: values[v.index]) for operand in made.operands)
            results = self.emit(made.op, operands, at, **dict(made.attrs))
            values.update((old.index, new) for old, new in zip(made.results, results, strict=True))
        return tuple(values[port.value.index] for port in graph.outputs)

    def _op(self, definition: OpDef, call: Call) -> tuple[Value, ...]:
        # Operands by position as the printer writes them, then attributes in the order of the schema.
        params = {p.name: p for p in (*definition.operands, *definition.attrs)}
        required = [p.name for p in params.values() if p.required]
        given = _arrange(call, params, 0, definition.name, _signature(definition.name))
        missing = [name for name in required if name not in given]
        if missing:
            raise Problem(f"{definition.name} needs {missing[0]!r}", call.at, _signature(definition.name))
        operands = tuple(
            self._as_operand(given[p.name]) if p.name in given else _default(p) for p in definition.operands
        )
        attrs: dict[str, Attribute] = {}
        for p in definition.attrs:
            if p.name in given:
                attrs[p.name] = self._attribute(p, given[p.name])
                try:
                    coerce(definition, p, attrs[p.name])
                except PlanError as error:
                    raise Problem(str(error), given[p.name].at, _signature(definition.name)) from None
        return self.emit(definition.name, operands, call.at, **attrs)

    def _as_operand(self, expr: Expr) -> Operand:
        piece = self.operand(expr)
        if isinstance(piece, tuple):
            items: list[Value | None] = []
            for item, written in zip(piece, expr.items if isinstance(expr, ListOf) else (), strict=True):
                if item is not None and not isinstance(item, Value):
                    raise Problem(f"a list of tensors is wanted here, got {show_piece(item)}", written.at)
                items.append(item)
            return tuple(items)
        if isinstance(piece, str):
            raise Problem(f"a tensor or number is wanted here, got {show_piece(piece)}", expr.at)
        return piece

    def _attribute(self, param: Param, expr: Expr) -> Attribute:
        if param.kind in _DTYPES and isinstance(expr, Name):
            return self.dims.type(TypeExpr(expr.at, Ident(expr.at, expr.text), ())).dtype
        if param.kind is Kind.SUBPLAN and isinstance(expr, Name):
            return self._subplan(expr.text, expr.at)
        if isinstance(expr, Name) and expr.text in self.values and expr.text not in self.dims.names:
            hint = "attributes are numbers, dims, strings and types known when the plan is compiled"
            raise Problem(f"attribute {param.name!r} cannot be the tensor {expr.text!r}", expr.at, hint)
        piece = self.dims.constant(expr)
        if isinstance(piece, tuple):
            for item in piece:
                if not isinstance(item, NUMBERS):
                    raise Problem(
                        f"attribute {param.name!r} is a flat list, got {show_piece(item)} in it", expr.at
                    )
            return tuple(item for item in piece if isinstance(item, NUMBERS))
        assert not isinstance(piece, Value)
        if param.kind.value in _LISTS and isinstance(piece, NUMBERS):
            return (piece,)  # torch takes dim=1 for dim=[1], and so do we
        return piece


def _arrange(call: Call, params: Iterable[str], required: int, what: str, hint: str = "") -> dict[str, Expr]:
    """The arguments of a call by parameter name.

    Raises:
        Problem: too many, too few, one twice, or one that there is no parameter for.
    """
    names = list(params)
    hint = hint or f"it takes ({', '.join(names)})"
    if len(call.arguments) > len(names):
        raise Problem(
            f"{what} takes at most {count_of(len(names), 'argument')}, got {len(call.arguments)}",
            call.at,
            hint,
        )
    given = dict(zip(names, call.arguments, strict=False))
    for name, value in call.keywords:
        if name.text not in names:
            meant = _USUAL.get(name.text, name.text)
            hint = f"did you mean '{meant}'?" if meant in names else nearest(name.text, names, hint)
            raise Problem(f"{what} has no parameter {name.text!r}", name.at, hint)
        if name.text in given:
            raise Problem(f"{what} gets {name.text!r} twice", name.at, hint)
        given[name.text] = value
    missing = [name for name in names[:required] if name not in given]
    if missing:
        raise Problem(
            f"{what} needs {missing[0]!r}: {count_of(required, 'argument')}, got {len(given)}", call.at, hint
        )
    return given


def _default(param: Param) -> Operand:
    """What an operand is where it is left out: a number or nothing."""
    default = param.default
    return default if isinstance(default, NUMBERS) else None


@cache  # every node of a plan that is parsed asks, for errors that seldom come
def _signature(op: str) -> str:
    definition = resolve(op)
    return f"it is {definition.signature()}" if definition is not None else ""
