"""A plan under construction, as the steps of `tests.steps` see it. It takes valid nodes only."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

from planc.errors import TypeCheckError
from planc.ir import Attribute, Dim, DimVar, Graph, Operand, Role, TensorType, Value, sym
from planc.ir.builder import GraphBuilder
from planc.ir.dims import evaluate
from planc.ir.facts import knowing
from planc.ir.structure import Fixed, Leaf, Sequence, Tree
from planc.ir.structure import Mapping as Keyed
from planc.ops import node

LARGEST_SIZE_ABOVE_LEAST = 4
"""Plans are run with dims of at most this much above their least size."""
_MOST_ELEMENTS = 20_000
_PORT_NAMES = ["x", "y", "w", "b", "v0", "v3", "plan", "return", "param", "in_", "lambda", "X", "_"]
_PATHS = ["fc1.weight", "0", "a b", 'quo"te', "back\\slash", "näme", "line\nbreak", "#", ""]
_FIXED = st.sampled_from([None, True, 1, 1.0, -0.0, 2**63 - 1, float("-inf"), "", 'a "quoted" text', "ü\n"])


class Maker:
    """A plan under construction: what the steps of `tests.steps` draw from and add to."""

    def __init__(self, draw: st.DrawFn, name: str, dims: list[DimVar], depth: int) -> None:
        self.draw = draw
        self.builder = GraphBuilder(name, dims)
        self.pool: list[Value] = []
        self.depth = depth
        """How many more levels of subplans there may be."""

    def input(self, type: TensorType, role: Role = Role.ARGUMENT) -> Value:
        count = len(self.builder.inputs)
        name = fresh(self.draw(st.sampled_from(_PORT_NAMES)), {port.name for port in self.builder.inputs})
        paths = {port.path for port in self.builder.inputs}
        path = name
        if role.is_state or self.draw(st.booleans()):
            path = self.draw(st.sampled_from(_PATHS))
        value = self.builder.input(name, type, role, f"{path}.{count}" if path in paths else path)
        self.pool.append(value)
        return value

    def add(self, op: str, *operands: Operand, **attrs: Attribute) -> tuple[Value, ...]:
        """The results of a new node; nothing where the op does not take these operands."""
        subplans = tuple(self.builder.subplans)
        try:
            with knowing(self.builder.dims):
                made = node(op, operands, attrs, self.builder.next_index, subplans=subplans)
        except TypeCheckError:
            return ()
        if not all(self._is_reasonable(result.type) for result in made.results):
            return ()
        self.builder.add(made)
        self.pool += made.results
        return made.results

    def _is_reasonable(self, type: TensorType) -> bool:
        largest = {var.name: var.lo + LARGEST_SIZE_ABOVE_LEAST for var in self.builder.dims}
        if any(self.least(dim) < 0 for dim in type.shape):
            return False
        return evaluate(type.numel, largest) <= _MOST_ELEMENTS

    def pick(self, want: Callable[[TensorType], bool] = lambda _: True) -> Value | None:
        """One of the values so far of a wanted type, if there is one."""
        fitting = [value for value in self.pool if want(value.type)]
        return self.draw(st.sampled_from(fitting)) if fitting else None

    def choose(self, *options: str) -> str:
        return self.draw(st.sampled_from(options))

    def flag(self) -> bool:
        return self.draw(st.booleans())

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def least(self, dim: Dim) -> int:
        """The smallest size that a dim can have (those made here never shrink as a name grows)."""
        try:
            return evaluate(dim, {var.name: var.lo for var in self.builder.dims})
        except ZeroDivisionError:
            return -1

    def dim(self) -> Dim:
        """An int or an expression of the plan's dims, at least 0."""
        names = [sym(var.name) for var in self.builder.dims if var.lo]
        if not names or self.flag():
            return self.number(1, 4)
        b = self.draw(st.sampled_from(names))
        c = self.draw(st.sampled_from(names))
        return self.draw(
            st.sampled_from([b, b * 2, b + 3, b * c, (b + 3) // 4, b * b - b, (b * 3 + c) // 2 + 1])
        )

    def finish(self, outputs: list[Value] | None = None) -> Graph:
        """The plan, with these outputs; where not given, with some of its values and updates of its state."""
        builder = self.builder
        if outputs is None:
            recent = self.pool[-4:]
            for value in self.draw(st.lists(st.sampled_from(recent), max_size=4)) if recent else []:
                self._output(value)
            for port in builder.inputs:
                if port.role.is_state and self.flag():
                    value = self.pick(lambda type, want=port.value.type: type == want)
                    builder.output(value or port.value, f"new_{len(builder.outputs)}", port.role, port.path)
            builder.outputs = self.draw(st.permutations(builder.outputs))
        else:
            for value in outputs:
                self._output(value)
        flat = builder.build()
        takes = self._arrangement(len(flat.arguments()))
        return builder.build(takes, self._arrangement(len(flat.results())))

    def _output(self, value: Value) -> None:
        taken = {port.name for port in self.builder.outputs}
        name = fresh(self.draw(st.sampled_from(["r", "out", *_PORT_NAMES])), taken)
        self.builder.output(value, name)

    def _arrangement(self, leaves: int) -> Tree | None:
        return None if self.number(0, 2) else self._tree(leaves, 2)

    def _tree(self, leaves: int, depth: int) -> Tree:
        if leaves == 1 and (depth == 0 or self.flag()):
            return Leaf()
        items: list[Tree] = []
        while leaves:
            part = self.number(1, leaves) if depth else 1
            items.append(self._tree(part, depth - 1) if depth else Leaf())
            leaves -= part
            if self.number(0, 3) == 0:
                items.append(Fixed(self.draw(_FIXED)))
        keys = [f"k{i}" if i else self.draw(st.sampled_from(_PATHS)) for i in range(len(items))]
        kind = self.draw(st.sampled_from(["tuple", "list", "dict"]))
        return Keyed(tuple(keys), tuple(items)) if kind == "dict" else Sequence(kind, tuple(items))


def fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name
