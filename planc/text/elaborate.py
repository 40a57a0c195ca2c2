"""Syntax trees to graphs: headers, constants, statements, results.

What an expression means is the affair of `planc.text.expressions`; syntax is that of `planc.text.parser`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from planc.errors import PlanError
from planc.ir import MAX_DIM, DimVar, Graph, Input, Output, Role, Value
from planc.ir import structure as structures
from planc.ir.builder import GraphBuilder
from planc.ir.constants import digest
from planc.ir.dims import sym
from planc.ir.facts import knowing
from planc.text.constants import tensor_of
from planc.text.dims import Dims
from planc.text.expressions import Context, Expressions
from planc.text.gradients import Differentiate
from planc.text.relations import define
from planc.text.statements import check_type, run
from planc.text.suggest import count_of, nearest
from planc.text.syntax import (
    Arrangement,
    ConstDef,
    Ident,
    Literal,
    Name,
    Place,
    PlanDef,
    Port,
    Problem,
    TreeExpr,
    TreeOf,
    names_in,
)
from planc.verifier import verify


@dataclass(frozen=True)
class Module:
    """What a text defines.

    Attributes:
        plans: the graphs by name, in the order of the text.
        constants: the data of constants that the text holds, by digest; those written as digests have none.
    """

    plans: dict[str, Graph]
    constants: dict[str, torch.Tensor]

    @property
    def main(self) -> Graph:
        """The last plan of the text."""
        return next(reversed(self.plans.values()))


def elaborate(
    plans: tuple[PlanDef, ...], text: str, file: str, differentiate: Differentiate | None = None
) -> Module:
    """The graphs that ``plans`` mean, verified.

    Raises:
        Problem: a name, type, op or attribute does not fit.
    """
    if not plans:
        raise Problem("there is no plan in the text", Place(1, 1, 2), "plan name(x: f32[b]) { return x }")
    module = Module({}, {})
    context = Context(file, [line.strip() for line in text.split("\n")], differentiate)
    for definition in plans:
        name = definition.name
        if name.text in module.plans:
            raise Problem(f"plan {name.text!r} is defined twice", name.at, "name them apart")
        graph = _Plan(definition, module.plans, module.constants, context).build()
        try:
            verify(graph)
        except PlanError as error:
            at, hint = _undetermined(definition, graph) or (name.at, "")
            raise Problem(str(error).removeprefix(f"plan {name.text!r}: "), at, hint) from None
        module.plans[name.text] = graph
    return module


def _undetermined(definition: PlanDef, graph: Graph) -> tuple[Place, str] | None:
    """Where a dim is named that stands nowhere by itself, and what to do about it."""
    shapes = [port.value.type.shape for port in graph.inputs]
    for var in graph.dims:
        if not any(sym(var.name) in shape for shape in shapes):
            ranges = (given.name.at for given in definition.ranges if given.name.text == var.name)
            types = [port.type for port in definition.inputs if port.type is not None]
            using = (t.at for t in types if any(var.name in names_in(dim) for dim in t.dims))
            at = next(using, None) or next(ranges, definition.name.at)
            return at, f"the sizes of inputs must tell it: write {var.name} by itself in some input's shape"
    return None


class _Plan:
    """The elaboration of one plan."""

    def __init__(
        self,
        definition: PlanDef,
        outer: Mapping[str, Graph],
        constants: dict[str, torch.Tensor],
        context: Context,
    ) -> None:
        self._definition = definition
        self._outer = outer
        self._constants = constants
        self._context = context
        self._dims = Dims()
        self._builder = GraphBuilder(definition.name.text)
        self._scope = Expressions(self._builder, self._dims, outer, context)

    def build(self) -> Graph:
        self._declare_dims()
        with knowing(self._builder.dims):
            return self._build()

    def _build(self) -> Graph:
        definition = self._definition
        self._inputs()
        for inner in definition.plans:
            visible = {**self._outer, **{plan.name: plan for plan in self._builder.subplans}}
            self._scope.add_plan(_Plan(inner, visible, self._constants, self._context).build())
        for const in definition.consts:
            self._const(const)
        for statement, _ in run(self._scope, definition.statements):
            hint = "it is for loops: a result with one row a trip"
            raise Problem("collect outside a loop", statement.at, hint)
        self._outputs(self._returned())
        return self._builder.build(
            self._tree(definition.takes, [port for port in self._builder.inputs if not port.role.is_state]),
            self._tree(definition.gives, [port for port in self._builder.outputs if not port.role.is_state]),
        )

    # -- the header

    def _declare_dims(self) -> None:
        """Dims with a range come first, in their order; then those that inputs name, as they come."""
        declared: dict[str, DimVar] = {}
        for given in self._definition.ranges:
            name = given.name.text
            if name in declared:
                raise Problem(f"dim {name!r} is declared twice", given.name.at)
            lo, hi = 1 if given.lo is None else given.lo, MAX_DIM if given.hi is None else given.hi
            if not 0 <= lo <= hi:
                raise Problem(f"the range {lo}..{hi} of dim {name!r} is empty or negative", given.name.at)
            declared[name] = DimVar(name, lo, hi)
        for port in self._definition.inputs:
            for expr in port.type.dims if port.type else ():
                for name in names_in(expr):
                    declared.setdefault(name, DimVar(name))
        self._dims.names = dict.fromkeys(declared)
        self._builder.dims = define(declared, self._definition.relations, self._dims)

    def _inputs(self) -> None:
        for port in self._definition.inputs:
            assert port.name is not None
            assert port.type is not None
            name = port.name.text
            path = name if port.path is None else port.path
            value = self._builder.input(name, self._dims.type(port.type), _role(port.role), path)
            self._scope.define(port.name, value)

    def _const(self, const: ConstDef) -> None:
        type = self._dims.type(const.type)
        name = const.digest
        if const.data is not None:
            tensor = tensor_of(const.data, type)
            name = digest(tensor)
            self._constants[name] = tensor
        assert name is not None
        self._scope.define(const.name, self._builder.constant(type, name))

    # -- results

    def _returned(self) -> list[tuple[Value, Place]]:
        returned = self._definition.returned
        if returned is None:
            name = self._definition.name
            raise Problem(f"plan {name.text!r} returns nothing", name.at, "end it with: return result, ...")
        if len(returned.values) == 1:
            (expr,) = returned.values
            return [(value, expr.at) for value in self._scope.values_of(expr)]
        return [(self._scope.value(expr), expr.at) for expr in returned.values]

    def _outputs(self, returned: list[tuple[Value, Place]]) -> None:
        ports = self._definition.results
        if ports is None:
            ports = (Port(self._definition.name.at, None, None, None, None),) * len(returned)
        if len(ports) != len(returned):
            assert self._definition.returned is not None
            raise Problem(
                f"{count_of(len(ports), 'result')} declared, {count_of(len(returned), 'value')} returned",
                self._definition.returned.at,
                f"the header of plan {self._definition.name.text!r} says what it returns",
            )
        seen: set[str] = set()
        for position, (port, (value, at)) in enumerate(zip(ports, returned, strict=True)):
            name = port.name.text if port.name else "r" if len(ports) == 1 else f"r{position}"
            if name in seen:
                raise Problem(f"two results are called {name!r}", port.at, "name them apart")
            seen.add(name)
            if port.type is not None:
                check_type(f"result {name!r}", self._dims.type(port.type), value.type, at)
            role = _role(port.role)
            self._builder.output(value, name, role, self._path(port, name, role))

    def _path(self, port: Port, name: str, role: Role) -> str:
        """The path of a result: as written, or the state that it updates, or its own name."""
        if port.path is not None:
            return port.path
        state = [i for i in self._builder.inputs if i.role is role and role.is_state]
        if role.is_state and not any(i.path == name for i in state):
            path = next((i.path for i in state if i.name == name), None)
            if path is None:
                hint = nearest(
                    name, (i.name for i in state), "a result with a role updates the input of that role"
                )
                raise Problem(f"there is no input '{role.value} {name}' to update", port.at, hint)
            return path
        return name

    # -- structures

    def _tree(
        self, arrangement: Arrangement | None, ports: list[Input] | list[Output]
    ) -> structures.Tree | None:
        if arrangement is None:
            return None
        names = [port.name for port in ports]
        left = iter(names)
        tree = _tree(arrangement.tree, left)
        missing = next(left, None)
        if missing is not None:
            raise Problem(
                f"{missing!r} is not in the structure",
                arrangement.at,
                f"it holds {', '.join(names)}, in order",
            )
        return tree


def _tree(written: TreeExpr, names: Iterator[str]) -> structures.Tree:
    if isinstance(written, Name):
        expected = next(names, None)
        if written.text != expected:
            wanted = "nothing is left" if expected is None else f"{expected!r} is next"
            hint = "tensors come in the order of the header, each once"
            raise Problem(f"{written.text!r} is out of place: {wanted}", written.at, hint)
        return structures.Leaf()
    if isinstance(written, Literal):
        return structures.Fixed(written.value)
    if not isinstance(written, TreeOf):
        raise Problem("a structure is made of names, fixed values and containers", written.at)
    items = tuple(_tree(item, names) for item in written.items)
    if written.kind == "dict":
        return structures.Mapping(written.keys, items)
    return structures.Sequence(written.kind, items)


def _role(written: Ident | None) -> Role:
    if written is None:
        return Role.ARGUMENT
    roles = {role.value: role for role in Role}
    if written.text not in roles:
        known = [role for role in roles if role != Role.ARGUMENT.value]
        hint = nearest(written.text, known, f"roles are {', '.join(known)}; arguments have none")
        raise Problem(f"there is no role {written.text!r}", written.at, hint)
    return roles[written.text]
