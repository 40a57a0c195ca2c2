"""Graphs to text: the fully typed, one-op-a-line subset of the language.

Parsing it gives the same graph again, for every valid graph. Knows nothing of the sugar that people write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import torch

from planc.ir import (
    MAX_DIM,
    Attribute,
    DimExpr,
    DimVar,
    DType,
    Graph,
    Input,
    Node,
    Operand,
    Output,
    TensorType,
    Value,
)
from planc.ir import dims as dims_of
from planc.ir.structure import LIST, Fixed, Leaf, Sequence, Tree
from planc.ops import Kind, OpDef, find
from planc.text.constants import show_tensor
from planc.text.words import quote_name, quote_string, show_number

_WIDTH = 100
"""Headers longer than this are broken, one port a line."""


def show(graph: Graph, constants: Mapping[str, torch.Tensor] | None = None) -> str:
    """The text of ``graph``; ends with a newline.

    Args:
        graph: any valid graph.
        constants: data of constants by digest; small ones are written out, all others as their digest.
    """
    return "\n".join(_Printer(graph, constants or {}, "").lines()) + "\n"


class _Printer:
    def __init__(self, graph: Graph, constants: Mapping[str, torch.Tensor], indent: str) -> None:
        self._graph = graph
        self._constants = constants
        self._indent = indent
        self._dims = _DimText(var.name for var in graph.dims)
        self._names = _value_names(graph)
        self._inputs = {port.name for port in graph.inputs}

    def lines(self) -> Iterator[str]:
        graph, body = self._graph, self._indent + "  "
        yield from self._header()
        if graph.takes is not None:
            yield f"{body}takes {self._tree(graph.takes, iter(graph.arguments()))}"
        if graph.gives is not None:
            yield f"{body}gives {self._tree(graph.gives, iter(graph.results()))}"
        for sub in graph.subplans:
            yield from _Printer(sub, self._constants, body).lines()
        for constant in graph.constants:
            yield f"{body}const {self._typed(constant.value)} = {self._data(constant.digest)}"
        for node in graph.nodes:
            yield body + self._node(node)
        returned = ", ".join(self._name(port.value) for port in graph.outputs)
        yield f"{body}return {returned}".rstrip()
        yield self._indent + "}"

    # -- the header

    def _header(self) -> Iterator[str]:
        graph, indent = self._graph, self._indent
        inputs = [self._port(port) for port in graph.inputs]
        outputs = [self._port(port) for port in graph.outputs]
        where = self._where()
        line = f"{indent}plan {quote_name(graph.name)}({', '.join(inputs)}) -> ({', '.join(outputs)})"
        if len(line) <= _WIDTH:
            whole = f"{line} where {where} {{" if where else f"{line} {{"
            if len(whole) <= _WIDTH or not where:
                yield whole
            else:
                yield line
                yield f"{indent}    where {where} {{"
            return
        yield f"{indent}plan {quote_name(graph.name)}("
        yield from (f"{indent}    {port}," for port in inputs)
        yield f"{indent}) -> ("
        yield from (f"{indent}    {port}," for port in outputs)
        yield f"{indent}) where {where} {{" if where else f"{indent}) {{"

    def _port(self, port: Input | Output) -> str:
        role = f"{port.role.value} " if port.role.is_state else ""
        path = "" if port.path == port.name else f" {quote_string(port.path)}"
        return f"{role}{quote_name(port.name)}: {self._type(port.value.type)}{path}"

    def _where(self) -> str:
        """Declared dims (those with a range, and whatever keeps all in their order), and relations."""
        dims = [replace(var, equals=None) for var in self._graph.dims]
        shapes = [dim for port in self._graph.inputs for dim in port.value.type.shape]
        used = dict.fromkeys(name for dim in shapes for name in dims_of.names(dim))
        # Undeclared dims follow the declared in the order of their first use: some prefix must be declared.
        size = 0
        while size < len(dims) and dims[size:] != [DimVar(n) for n in used if n not in _names(dims[:size])]:
            size += 1
        related = [
            f"{quote_name(var.name)} == {self._dims(var.equals)}"
            for var in self._graph.dims
            if var.equals is not None
        ]
        return ", ".join([*(_range(var) for var in dims[:size]), *related])

    # -- the body

    def _node(self, node: Node) -> str:
        results = ", ".join(self._typed(value) for value in node.results)
        definition = find(node.op)
        parts = [self._operand(operand) for operand in node.operands]
        parts += [f"{name}={self._attribute(definition, name, value)}" for name, value in node.attrs]
        call = f"{node.op}({', '.join(parts)})"
        return f"{results} = {call}" if results else call

    def _operand(self, operand: Operand) -> str:
        if isinstance(operand, Value):
            return self._name(operand)
        if isinstance(operand, tuple):
            return f"[{', '.join('none' if item is None else self._name(item) for item in operand)}]"
        if isinstance(operand, DimExpr):
            text = self._dims(operand)
            hidden = not self._inputs.isdisjoint(dims_of.names(operand))
            return f"dim({text})" if hidden else text
        return show_number(operand)

    def _attribute(self, definition: OpDef | None, name: str, value: Attribute) -> str:
        kinds = {p.name: p.kind for p in definition.attrs} if definition else {}
        if kinds.get(name) is Kind.SUBPLAN and isinstance(value, int):
            names = [sub.name for sub in self._graph.subplans]
            known = value < len(names) and names.count(names[value]) == 1
            return quote_name(names[value]) if known else str(value)
        if isinstance(value, tuple):
            return f"[{', '.join(self._scalar(item) for item in value)}]"
        return self._scalar(value)

    def _scalar(self, value: Attribute) -> str:
        if isinstance(value, DimExpr):
            return self._dims(value)
        if isinstance(value, DType):
            return value.value
        if isinstance(value, str):
            return quote_string(value)
        assert not isinstance(value, tuple)
        return show_number(value)

    def _data(self, name: str) -> str:
        tensor = self._constants.get(name)
        text = None if tensor is None else show_tensor(tensor, name)
        return f"sha256:{name}" if text is None else text

    # -- names and types

    def _name(self, value: Value) -> str:
        return self._names[value.index]

    def _typed(self, value: Value) -> str:
        return f"{self._name(value)}: {self._type(value.type)}"

    def _type(self, type: TensorType) -> str:
        return f"{type.dtype}[{', '.join(self._dims(dim) for dim in type.shape)}]"

    def _tree(self, tree: Tree, leaves: Iterator[Input] | Iterator[Output]) -> str:
        if isinstance(tree, Leaf):
            port = next(leaves, None)
            return quote_name(port.name) if port else "_"
        if isinstance(tree, Fixed):
            return quote_string(tree.value) if isinstance(tree.value, str) else show_number(tree.value)
        items = [self._tree(item, leaves) for item in tree.items]
        if not isinstance(tree, Sequence):
            entries = (f"{quote_string(key)}: {item}" for key, item in zip(tree.keys, items, strict=True))
            return f"{{{', '.join(entries)}}}"
        if tree.kind == LIST:
            return f"[{', '.join(items)}]"
        return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"


class _DimText:
    """Dims as text, with unusual names in backticks."""

    def __init__(self, names: Iterator[str]) -> None:
        unusual = {name: quote_name(name) for name in names}
        self._renamed = {name: dims_of.sym(text) for name, text in unusual.items() if name != text}

    def __call__(self, dim: dims_of.Dim) -> str:
        # The order of terms may change with the names; reading them brings the canonical order back.
        return dims_of.show(dims_of.substitute(dim, self._renamed) if self._renamed else dim)


def _names(dims: Iterable[DimVar]) -> set[str]:
    return {var.name for var in dims}


def _range(var: DimVar) -> str:
    name = quote_name(var.name)
    return name if (var.lo, var.hi) == (1, MAX_DIM) else f"{name} in {var.lo}..{var.hi}"


def _value_names(graph: Graph) -> list[str]:
    """A name for every value: ports have their own, constants k0, k1, ..., results of nodes v0, v1, ..."""
    names = [quote_name(port.name) for port in graph.inputs]
    # A result may not hide a dim either: operands can be dims.
    taken = {port.name for port in graph.inputs} | {var.name for var in graph.dims}
    fresh = _fresh(taken)
    names += [fresh("k", i) for i in range(len(graph.constants))]
    results = sum(len(node.results) for node in graph.nodes)
    return names + [fresh("v", i) for i in range(results)]


def _fresh(taken: set[str]) -> Callable[[str, int], str]:
    def name(letter: str, number: int) -> str:
        text = f"{letter}{number}"
        while text in taken:
            text += "_"
        return text

    return name
