"""Statements to nodes: assignments, and loops, each of which becomes a ``scan`` over a plan of its own.

What expressions mean is the affair of `planc.text.expressions`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from planc.ir import MAX_DIM, Dim, DimVar, DType, TensorType, Value
from planc.ir.builder import GraphBuilder
from planc.ir.dims import names as names_of
from planc.ir.dims import show, sym
from planc.ir.facts import knowing, known
from planc.text.dims import Dims, show_piece
from planc.text.expressions import Expressions
from planc.text.suggest import count_of, nearest
from planc.text.syntax import (
    Assign,
    Collect,
    Ident,
    Loop,
    Name,
    Place,
    Problem,
    Statement,
    names_assigned,
    names_read,
)

_BATCH = "batch"
"""What the dim of a batch is called where the loop's names have no types."""


def run(scope: Expressions, statements: Iterable[Statement]) -> list[tuple[Collect, Value]]:
    """Elaborate statements in their order; returns what they collect.

    Raises:
        Problem: a name, type, op or attribute does not fit.
    """
    collected: list[tuple[Collect, Value]] = []
    for statement in statements:
        if isinstance(statement, Assign):
            _assign(scope, statement)
        elif isinstance(statement, Loop):
            _loop(scope, statement)
        else:
            collected.append((statement, _collected(scope, statement)))
    return collected


def check_type(what: str, declared: TensorType, actual: TensorType, at: Place, hint: str = "") -> None:
    """Check that a value is of the type that was written for it.

    Raises:
        Problem: it is not.
    """
    declared, actual = known().type(declared), known().type(actual)
    if declared != actual:
        hint = hint or _difference(declared, actual)
        raise Problem(f"{what} is declared as {declared}, but its value is {actual}", at, hint)


def _difference(declared: TensorType, actual: TensorType) -> str:
    if declared.rank != actual.rank:
        return f"{count_of(declared.rank, 'dim')} declared, the value has {actual.rank}"
    for axis, (want, got) in enumerate(zip(declared.shape, actual.shape, strict=True)):
        if want != got:
            return f"dim {axis} is declared as {show(want)}, the value has {show(got)}"
    return f"to(value, {declared.dtype}) converts it"


def _assign(scope: Expressions, statement: Assign) -> None:
    results = scope.values_of(statement.value)
    if results and not statement.targets:
        raise Problem("the results of this call are not used", statement.at, "name them: result = ...")
    if len(results) != len(statement.targets):
        raise Problem(
            f"{count_of(len(statement.targets), 'name')} for {count_of(len(results), 'result')}",
            statement.at.to(statement.value.at),
            "give each result a name; _ for those that are not needed",
        )
    for target, value in zip(statement.targets, results, strict=True):
        if target.type is not None:
            check_type(f"{target.name.text!r}", scope.dims.type(target.type), value.type, target.type.at)
        if not _is_blank(target.name):
            scope.define(target.name, value)


def _collected(scope: Expressions, statement: Collect) -> Value:
    name, written = statement.target.name, statement.target.type
    value = scope.value(Name(name.at, name.text) if statement.value is None else statement.value)
    if written is not None:
        check_type(f"{name.text!r}", scope.dims.type(written), value.type, written.at)
    return value


# -- loops ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """What a loop goes over: batches of tensors, or a number of trips."""

    over: tuple[Value, ...]
    size: int = 0
    trips: Dim = 1
    drop_last: bool = False


def _loop(scope: Expressions, loop: Loop) -> None:
    """One ``scan``: its body is a plan of the loop's statements, its carry what they give a new value."""
    source = _source(scope, loop)
    counter: Value | None = None
    if not source.over and not _is_blank(loop.targets[0].name):
        (counter,) = scope.emit("aten.full", (), loop.at, size=(), fill_value=0, dtype=DType.I64)
    loop_names = {target.name.text for target in loop.targets}
    for target in loop.targets:
        if target.name.text in scope.values:
            raise Problem(
                f"{target.name.text!r} is defined twice",
                target.name.at,
                "it has a value before the loop; choose another name for the loop's own",
            )
    assigned = dict.fromkeys(names_assigned(loop.statements))
    carried = [name for name in assigned if name in scope.values]
    read = dict.fromkeys(names_read(loop.statements))
    given = [n for n in read if n in scope.values and n not in assigned and n not in loop_names]
    body = _Body(scope, loop, source, carried, given, counter is not None)
    with knowing(body.builder.dims):
        collected = run(body.scope, loop.statements)
        body.finish(carried, collected, loop)
    carry = tuple(scope.values[name] for name in carried)
    if counter is not None:
        carry = (*carry, counter)
    results = scope.emit(
        "scan",
        (carry, source.over, (*(scope.values[name] for name in given), *body.witnesses)),
        loop.at,
        body=scope.add_body(body.builder.build()),
        size=source.size,
        trips=source.trips,
        drop_last=source.drop_last,
    )
    scope.values.update(zip(carried, results, strict=False))
    for (statement, _), value in zip(collected, results[len(carry) :], strict=True):
        scope.define(statement.target.name, value)
    scope.forget({*assigned, *loop_names}, loop.at.line)


class _Body:
    """The plan of a loop's body while it is made: inputs first, as `planc.ops.structured` orders them."""

    def __init__(
        self,
        outer: Expressions,
        loop: Loop,
        source: _Source,
        carried: Sequence[str],
        given: Sequence[str],
        counts: bool,
    ) -> None:
        self.builder = GraphBuilder(outer.free_plan_name("loop"))
        self._taken = {*carried, *given, *(target.name.text for target in loop.targets)}
        self._counts = counts
        batch = self._batch = _batch_dim(outer, loop) if source.over else None
        outside = known()
        over = [outside.type(value.type) for value in source.over]
        rows = [TensorType(type.dtype, (sym(batch), *type.shape[1:])) for type in over if batch]
        self._types = {name: outside.type(outer.values[name].type) for name in (*carried, *given)}
        types = [*self._types.values(), *rows]
        named = {name for type in types for name in type.dim_names()} | set(names_read(loop.statements))
        named |= {name for read in set(named) for name in names_of(outside.dim(sym(read)))}
        shared = [var for var in outer.builder.dims if var.name in named and var.name != batch]
        if batch is not None:
            self.builder.dims.append(DimVar(batch, source.size if source.drop_last else 1, source.size))
        self.builder.dims += shared
        dims = Dims()
        dims.names = dict.fromkeys(var.name for var in self.builder.dims)
        self.scope = outer.inner(self.builder, dims)
        self.scope.carried = set(carried)
        for name in carried:
            self.scope.values[name] = self.builder.input(name, self._types[name])
        self._declare_targets(loop, rows, counts)
        for name in given:
            self.scope.values[name] = self.builder.input(name, self._types[name])
        self.witnesses = self._witnesses(outer, shared, types)

    def _declare_targets(self, loop: Loop, rows: Sequence[TensorType], counts: bool) -> None:
        for target, type in zip(loop.targets, rows or [_COUNTER] * counts, strict=False):
            if target.type is not None:
                hint = "the first dim of a batch is a name of its own, its other dims are those of the data"
                check_type(
                    f"{target.name.text!r}", self.scope.dims.type(target.type), type, target.type.at, hint
                )
            if _is_blank(target.name):
                self.builder.input(self._fresh("unused"), type)
            else:
                self.scope.values[target.name.text] = self.builder.input(target.name.text, type)

    def _witnesses(
        self, outer: Expressions, shared: Sequence[DimVar], types: Sequence[TensorType]
    ) -> tuple[Value, ...]:
        """Inputs of the outer plan that the body takes for their shape alone: they determine its dims."""
        bare = {dim for type in types for dim in type.shape}
        found: list[Value] = []
        for var in shared:
            if sym(var.name) in bare:
                continue
            port = next((p for p in outer.builder.inputs if sym(var.name) in p.value.type.shape), None)
            if port is not None:
                found.append(port.value)
                self.builder.input(self._fresh(port.name), port.value.type)
                bare |= set(port.value.type.shape)
        return tuple(found)

    def finish(self, carried: Sequence[str], collected: Sequence[tuple[Collect, Value]], loop: Loop) -> None:
        """Declare the body's results: the carry's new values, then what a trip collects."""
        for name, port in zip(carried, self.builder.inputs, strict=False):
            before, after = port.value.type, self.scope.values[name]
            if before != after.type:
                raise Problem(
                    f"{name!r} goes into the loop as {before}, but its new value is {after.type}",
                    _last_assignment(loop.statements, name) or loop.at,
                    "what a loop carries keeps its type; give other values names of their own",
                )
            self.builder.output(after, name)
        if self._counts:
            counter = self.builder.inputs[len(carried)]
            (more,) = self.scope.emit("aten.add", (counter.value, 1), loop.at)
            self.builder.output(more, counter.name)
        names: set[str] = set()
        for statement, value in collected:
            name = statement.target.name
            if name.text in carried:
                hint = f"after the loop {name.text!r} is its last value; write: collect name = {name.text}"
                raise Problem(f"{name.text!r} is carried by the loop", name.at, hint)
            if name.text in names:
                raise Problem(f"{name.text!r} is collected twice", name.at, "name them apart")
            shape = value.type.shape
            rest = shape[1:] if self._batch and shape[:1] == (sym(self._batch),) else shape
            if self._batch in {name for dim in rest for name in names_of(dim)}:
                hint = "collect values with one row a row of the batch, or with no trace of its size"
                message = f"{value.type} has the dim {self._batch} elsewhere than alone in front"
                raise Problem(message, statement.at, hint)
            names.add(name.text)
            self.builder.output(value, name.text)

    def _fresh(self, name: str) -> str:
        """``name``, or one like it that the body does not use."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


_COUNTER = TensorType(DType.I64, ())
_HINT_SOURCE = "a loop goes over batches(x, y, size=64) or range(10)"


def _source(scope: Expressions, loop: Loop) -> _Source:
    """What the loop's ``in`` says."""
    call = loop.source
    what = call.callee.text
    if what == "batches" and not call.callee.quoted:
        return _batches(scope, loop)
    if what == "range" and not call.callee.quoted:
        if len(call.arguments) != 1 or call.keywords:
            raise Problem("range takes the number of trips", call.at, "for i in range(10) { ... }")
        if len(loop.targets) != 1:
            hint = "for i in range(10) { ... }, or _ where the number is not needed"
            raise Problem(
                f"{len(loop.targets)} names for the number of a trip", loop.targets[0].name.at, hint
            )
        return _Source((), trips=scope.dims.dim(call.arguments[0]))
    raise Problem(f"a loop cannot go over {what!r}", call.callee.at, _HINT_SOURCE)


def _batches(scope: Expressions, loop: Loop) -> _Source:
    call = loop.source
    options: dict[str, int] = {"size": 0, "drop_last": False}
    for name, expr in call.keywords:
        if name.text not in options:
            hint = nearest(name.text, options, "it takes tensors, size= and drop_last=")
            raise Problem(f"batches has no parameter {name.text!r}", name.at, hint)
        value = scope.dims.constant(expr)
        if not isinstance(value, int) or type(value) is not type(options[name.text]) or value > MAX_DIM:
            wanted = "a whole number of rows, 1 or more" if name.text == "size" else "true or false"
            raise Problem(f"{name.text!r} is {wanted}, got {show_piece(value)}", expr.at)
        options[name.text] = value
    if not call.arguments or options["size"] < 1:
        missing = "tensors to go over" if not call.arguments else "the size of a batch"
        raise Problem(f"batches needs {missing}", call.at, "for xb, yb in batches(x, y, size=64) { ... }")
    over = tuple(scope.value(expr) for expr in call.arguments)
    for value, expr in zip(over, call.arguments, strict=True):
        if not value.type.shape:
            raise Problem(
                f"{value.type} has no rows to go over", expr.at, "batches are cut from the first dim"
            )
        if known().dim(value.type.shape[0]) != known().dim(over[0].type.shape[0]):
            raise Problem(
                f"batches are cut from tensors of equally many rows, got {over[0].type} and {value.type}",
                expr.at,
            )
    if len(loop.targets) != len(over):
        raise Problem(
            f"{count_of(len(loop.targets), 'name')} for batches of {count_of(len(over), 'tensor')}",
            loop.targets[0].name.at.to(loop.targets[-1].name.at),
            "give each tensor's batch a name; _ for those that are not needed",
        )
    return _Source(over, size=options["size"], drop_last=bool(options["drop_last"]))


def _batch_dim(scope: Expressions, loop: Loop) -> str:
    """The name of the batch's dim: as the type of one of the loop's names says, or ``batch``."""
    for target in loop.targets:
        if target.type is not None and target.type.dims:
            first = target.type.dims[0]
            if isinstance(first, Name):
                if first.text in scope.dims.names:
                    hint = "the last batch may be shorter, so its dim has a name of its own"
                    raise Problem(f"{first.text!r} is a dim of the whole plan", first.at, hint)
                return first.text
    name = _BATCH
    while name in scope.dims.names:
        name += "_"
    return name


def _last_assignment(statements: Iterable[Statement], name: str) -> Place | None:
    """Where ``name`` gets its last value."""
    places = [s.at for s in statements if isinstance(s, Loop) and name in names_assigned([s])]
    for statement in statements:
        if isinstance(statement, Assign):
            places += [target.name.at for target in statement.targets if target.name.text == name]
    return max(places, default=None)


def _is_blank(name: Ident) -> bool:
    return name.text == "_" and not name.quoted
