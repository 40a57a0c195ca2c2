"""Expressions to operands, attributes and nodes: names, operators and calls.

The plan around them is the affair of `planc.text.elaborate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from planc.errors import PlanError
from planc.ir import Attribute, Dim, DimExpr, DType, Graph, Operand, TensorType, Value
from planc.ir.builder import GraphBuilder
from planc.ir.dims import sym
from planc.ir.graph import Location
from planc.ops import Kind, OpDef, Param, node
from planc.text.arithmetic import bounded, check_product, combine, negate
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

_NUMBERS = (bool, int, float, DimExpr)
_LISTS = {"Ints", "OptInts", "Bools", "Dims"}
_DTYPES = {Kind.DTYPE, Kind.OPT_DTYPE}

Piece = Operand | str | tuple["Piece", ...]
"""What an expression can mean before it is known what it is for."""


class Dims:
    """The named dims of a plan, and what can be worked out from them without any tensor."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}

    def type(self, written: TypeExpr) -> TensorType:
        """The type that was written."""
        try:
            dtype = DType(written.dtype.text)
        except ValueError:
            hint = nearest(written.dtype.text, (d.value for d in DType), "element types: " + _listed(DType))
            raise Problem(f"there is no element type {written.dtype.text!r}", written.at, hint) from None
        shape = tuple(self.dim(expr) for expr in written.dims)
        check_product(shape, written.at)
        return TensorType(dtype, shape)

    def dim(self, expr: Expr) -> Dim:
        """An expression in the place of a dim."""
        value = self.constant(expr)
        if isinstance(value, bool) or not isinstance(value, (int, DimExpr)):
            raise Problem("a dim is an integer or an expression of dims", expr.at)
        if isinstance(value, int) and value < 0:
            raise Problem(f"a dim is at least 0, got {value}", expr.at)
        return value

    def constant(self, expr: Expr) -> Piece:
        """The value of an expression that names no tensors."""
        if isinstance(expr, Literal):
            return expr.value
        if isinstance(expr, Name):
            if expr.text not in self.names:
                known = (
                    f"dims of this plan: {', '.join(self.names)}"
                    if self.names
                    else "this plan has no named dims"
                )
                hint = nearest(expr.text, self.names, known)
                raise Problem(f"there is no dim {expr.text!r}", expr.at, hint)
            return sym(expr.text)
        if isinstance(expr, ListOf):
            items = tuple(self.constant(item) for item in expr.items)
            check_product(items, expr.at)
            return items
        if isinstance(expr, Negative):
            return negate(_number(self.constant(expr.operand), expr.operand), expr.at)
        if isinstance(expr, Chain):
            total = _number(self.constant(expr.first), expr.first)
            for op, operand in expr.rest:
                total = combine(op, total, _number(self.constant(operand), operand), expr.at)
            return total
        if _is_dim_call(expr):
            return self.dim(expr.arguments[0])
        raise Problem(
            "this must be known when the plan is compiled", expr.at, "no tensors, only numbers and dims"
        )


class Expressions:
    """Turns the expressions of one plan into nodes of its builder."""

    def __init__(
        self, builder: GraphBuilder, dims: Dims, outer: Mapping[str, Graph], file: str, lines: list[str]
    ) -> None:
        self.builder = builder
        self.dims = dims
        self.values: dict[str, Value] = {}
        self._outer = outer
        self._inner: dict[str, int] = {}
        self._file = file
        self._lines = lines

    # -- names

    def define(self, name: Ident, value: Value) -> None:
        """Let ``name`` mean ``value`` from here on."""
        if name.text in self.values:
            raise Problem(
                f"{name.text!r} is defined twice", name.at, "a name means one value; choose another"
            )
        self.values[name.text] = value

    def add_plan(self, graph: Graph) -> None:
        """Make a plan that is written within this one callable."""
        self.builder.subplans.append(graph)
        # A printed plan may hold several of one name; it then refers to them by number.
        self._inner[graph.name] = -1 if graph.name in self._inner else len(self.builder.subplans) - 1

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
            raise Problem(
                f"a tensor is wanted here, got {_show(piece)}", expr.at, "full([], number) makes one"
            )
        return piece

    def values_of(self, expr: Expr) -> tuple[Value, ...]:
        """All results of an expression: those of its op where it is a call, one value otherwise."""
        if isinstance(expr, Call) and not _is_dim_call(expr):
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
            return negate(_number(piece, expr.operand), expr.at)
        if isinstance(expr, Chain):
            total = self.operand(expr.first)
            for op, operand in expr.rest:
                total = self._infix(op, total, self.operand(operand), expr)
            return total
        if _is_dim_call(expr):
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
        raise Problem(f"there is no value {name.text!r}", name.at, hint)

    def _infix(self, op: str, left: Piece, right: Piece, expr: Chain) -> Operand:
        if not isinstance(left, (Value, *_NUMBERS)) or not isinstance(right, (Value, *_NUMBERS)):
            wrong = right if isinstance(left, (Value, *_NUMBERS)) else left
            raise Problem(f"'{op}' wants tensors or numbers, got {_show(wrong)}", expr.at)
        if isinstance(left, Value) or isinstance(right, Value):
            return infix(self.emit, op, left, right, expr.at)
        return combine(op, left, right, expr.at)

    # -- calls

    def emit(
        self, op: str, operands: tuple[Operand, ...], at: Place, /, **attrs: Attribute
    ) -> tuple[Value, ...]:
        """Append a node, its types inferred."""
        loc = Location(self._file, at.line, self._lines[at.line - 1])
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
        hint = nearest(name, [*self._inner, *self._outer, *known_names()])
        head, dot, method = name.rpartition(".")
        if dot and head in self.values:
            hint = f"there are no methods: write {method}({head}, ...)"
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
            raise Problem(problem.message, call.at, f"it is plan {plan.name}({header})") from None

    def _function(self, call: Call) -> Value:
        function, params, required = FUNCTIONS[call.callee.text]
        given = _arrange(call, params, required, call.callee.text)
        return function(self.emit, call.at, **{name: self._as_operand(expr) for name, expr in given.items()})

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
        attrs = {p.name: self._attribute(p, given[p.name]) for p in definition.attrs if p.name in given}
        return self.emit(definition.name, operands, call.at, **attrs)

    def _as_operand(self, expr: Expr) -> Operand:
        piece = self.operand(expr)
        if isinstance(piece, tuple):
            items: list[Value | None] = []
            for item, written in zip(piece, expr.items if isinstance(expr, ListOf) else (), strict=True):
                if item is not None and not isinstance(item, Value):
                    raise Problem(f"a list of tensors is wanted here, got {_show(item)}", written.at)
                items.append(item)
            return tuple(items)
        if isinstance(piece, str):
            raise Problem(f"a tensor or number is wanted here, got {_show(piece)}", expr.at)
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
                if not isinstance(item, _NUMBERS):
                    raise Problem(
                        f"attribute {param.name!r} is a flat list, got {_show(item)} in it", expr.at
                    )
            return tuple(item for item in piece if isinstance(item, _NUMBERS))
        assert not isinstance(piece, Value)
        if param.kind.value in _LISTS and isinstance(piece, _NUMBERS):
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
            raise Problem(f"{what} has no parameter {name.text!r}", name.at, nearest(name.text, names, hint))
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
    return default if isinstance(default, _NUMBERS) else None


def _is_dim_call(call: Call) -> bool:
    """Whether a call is ``dim(...)``: dims, where a tensor of the same name would hide one."""
    written = call.callee.text == "dim" and not call.callee.quoted
    return written and len(call.arguments) == 1 and not call.keywords


def _number(piece: Piece, expr: Expr) -> bool | int | float | DimExpr:
    if isinstance(piece, _NUMBERS):
        return piece
    raise Problem(f"a number or dim is wanted here, got {_show(piece)}", expr.at)


def _show(piece: Piece) -> str:
    if isinstance(piece, Value):
        return str(piece.type)
    if isinstance(piece, tuple):
        return "a list"
    return "none" if piece is None else f"{piece!r}" if isinstance(piece, str) else f"the number {piece}"


def _signature(op: str) -> str:
    definition = resolve(op)
    return f"it is {definition.signature()}" if definition is not None else ""


def _listed(dtypes: Iterable[DType]) -> str:
    return ", ".join(d.value for d in dtypes)
