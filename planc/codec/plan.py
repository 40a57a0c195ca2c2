"""Plans to canonical bytes and back. One plan has one byte form; nothing is read that is not in that form.

Bytes are for wires and files, text (`planc.text`) is for people. Tensors travel elsewhere (`artifact`).
"""

from __future__ import annotations

import hashlib
from typing import TypeVar

import msgspec

from planc.codec import wire
from planc.errors import DecodeError, LimitError, PlanError, VersionError
from planc.ir import (
    Attribute,
    Constant,
    Dim,
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
from planc.ir.dims import Atom, FloorDiv
from planc.ir.structure import Fixed, Leaf, Mapping, Sequence, Tree
from planc.limits import INT_MAX, INT_MIN, Limits
from planc.verifier import verify

_encoder = msgspec.msgpack.Encoder()
_documents = msgspec.msgpack.Decoder(wire.Document)
_bodies = msgspec.msgpack.Decoder(wire.Body)
_T = TypeVar("_T")


def encode(graph: Graph) -> bytes:
    """The canonical bytes of a plan: equal plans have equal bytes, source locations are not part of them.

    Raises:
        LimitError: an integer does not fit 64 bits.
        PlanError: a text cannot be written as UTF-8, or nesting is too deep.
    """
    try:
        body = _encoder.encode(_body(graph))
    except UnicodeEncodeError as error:
        raise PlanError(f"plan {graph.name!r}: a name or text is not valid Unicode: {error.reason}") from None
    except RecursionError:
        raise LimitError("dims, structures or subplans nest too deeply", f"plan {graph.name!r}") from None
    return _encoder.encode(wire.Document(wire.MAGIC, _version(graph), msgspec.Raw(body)))


def plan_id(graph: Graph) -> str:
    """The plan's id: the SHA-256 of its canonical bytes, as 64 hex digits."""
    return hashlib.sha256(encode(graph)).hexdigest()


def decode(data: bytes | bytearray | memoryview, limits: Limits | None = None) -> Graph:
    """The plan that canonical bytes stand for, verified.

    Safe on bytes from anyone: time and memory are bounded by the limits, and nothing is looked up by name
    outside the op table.

    Args:
        data: what `encode` returned.
        limits: how large the plan may be; the defaults where not given.

    Raises:
        DecodeError: the bytes are not a plan in canonical form.
        VersionError: they are one of a version that this library does not read.
        VerifyError: the plan breaks a rule of the IR.
        LimitError: the plan is larger than the limits allow.
    """
    limits = limits or Limits()
    size = memoryview(data).nbytes
    if size > limits.total_bytes:
        raise LimitError(f"a plan of at most {limits.total_bytes} bytes is allowed, got {size}")
    data = bytes(data)
    document = _parse(_documents, data)
    if document.magic != wire.MAGIC:
        raise DecodeError(f"not a plan: expected {wire.MAGIC!r} in front, got {document.magic!r:.40}")
    if document.version not in wire.VERSIONS:
        raise VersionError(
            f"the plan has version {document.version} of the format, this library reads up to "
            f"{max(wire.VERSIONS)}; use the release of planc that wrote it, or write it again with this one"
        )
    graph = _Reader(limits).graph(_parse(_bodies, document.body), 1)
    verify(graph, limits)
    if encode(graph) != data:
        raise DecodeError("not canonical: the bytes mean a plan, but its own bytes are different")
    return graph


def _parse(decoder: msgspec.msgpack.Decoder[_T], data: bytes | msgspec.Raw) -> _T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DecodeError(f"not a plan: {error}") from None
    except RecursionError:
        raise DecodeError("not a plan: it nests too deeply") from None


# Writing.


def _body(graph: Graph) -> wire.Body:
    return wire.Body(
        graph.name,
        tuple(_range(var) for var in graph.dims),  # pyright: ignore[reportArgumentType] -- a Range reads as one
        tuple(wire.InputForm(p.name, p.role, p.path, _type(p.value.type)) for p in graph.inputs),
        tuple(wire.ConstantForm(_type(c.value.type), c.digest) for c in graph.constants),
        tuple(_node(node) for node in graph.nodes),
        tuple(wire.OutputForm(p.name, p.role, p.path, p.value.index) for p in graph.outputs),
        tuple(_body(sub) for sub in graph.subplans),
        None if graph.takes is None else _tree(graph.takes),
        None if graph.gives is None else _tree(graph.gives),
    )


def _version(graph: Graph) -> int:
    """The oldest version that has a form for all of a plan."""
    related = any(var.equals is not None for part in graph.walk() for var in part.dims)
    return wire.RELATED if related else wire.PLAIN


def _range(var: DimVar) -> wire.Range:
    lo, hi = _int(var.lo), _int(var.hi)
    if var.equals is None:
        return wire.Range(var.name, lo, hi)
    return wire.RelatedRange(var.name, lo, hi, _dim(var.equals))


def _node(node: Node) -> wire.NodeForm:
    return wire.NodeForm(
        node.op,
        tuple(_operand(operand) for operand in node.operands),
        tuple(wire.AttributeForm(name, _attribute(value)) for name, value in node.attrs),
        tuple(_type(result.type) for result in node.results),
    )


def _operand(operand: Operand) -> wire.WireOperand:
    if isinstance(operand, Value):
        return wire.Ref(operand.index)
    if isinstance(operand, tuple):
        return wire.Refs(tuple(None if item is None else item.index for item in operand))
    if operand is None:
        return None
    return _number(operand)


def _attribute(value: Attribute) -> wire.WireAttribute:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, DType):
        return wire.ElementType(value)
    if isinstance(value, tuple):
        return wire.Items(tuple(_number(item) for item in value))
    return _number(value)


def _number(value: int | float | bool | DimExpr) -> int | float | bool | wire.Expression:
    if isinstance(value, (bool, float)):
        return value
    return _dim(value)


def _type(type: TensorType) -> wire.Type:
    return wire.Type(type.dtype, tuple(_dim(dim) for dim in type.shape))


def _dim(dim: Dim) -> wire.WireDim:
    if isinstance(dim, int):
        return _int(dim)
    return wire.Expression(
        tuple(wire.Term(tuple(_atom(atom) for atom in factors), _int(c)) for factors, c in dim.terms)
    )


def _atom(atom: Atom) -> str | wire.Division:
    if isinstance(atom, str):
        return atom
    return wire.Division(_dim(atom.numerator), _dim(atom.denominator))


def _int(value: int) -> int:
    if not INT_MIN <= value <= INT_MAX:
        raise LimitError(f"integers in a plan must fit 64 bits, got one of {value.bit_length()} bits")
    return value


def _tree(tree: Tree) -> wire.WireTree:
    if isinstance(tree, Leaf):
        return wire.LeafForm()
    if isinstance(tree, Fixed):
        return wire.FixedForm(_int(tree.value) if type(tree.value) is int else tree.value)
    items = tuple(_tree(item) for item in tree.items)
    if isinstance(tree, Mapping):
        return wire.MappingForm(tree.keys, items)
    return wire.SequenceForm("list" if tree.kind == "list" else "tuple", items)


# Reading.


class _Reader:
    """Rebuilds graphs from forms, checking only what that needs; the verifier checks what they mean."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def graph(self, body: wire.Body, depth: int) -> Graph:
        self._bound(depth, self._limits.depth, "subplans")
        values: list[Value] = []
        inputs = tuple(
            Input(self._define(values, port.type), port.name, port.role, port.path) for port in body.inputs
        )
        constants = tuple(Constant(self._define(values, c.type), c.digest) for c in body.constants)
        nodes = tuple(self._node(values, position, form) for position, form in enumerate(body.nodes))
        outputs = tuple(
            Output(self._value(values, port.index, f"output {port.name!r}"), port.name, port.role, port.path)
            for port in body.outputs
        )
        return Graph(
            body.name,
            tuple(self._range(form) for form in body.dims),
            inputs,
            nodes,
            outputs,
            constants,
            tuple(self.graph(sub, depth + 1) for sub in body.subplans),
            None if body.takes is None else self._tree(body.takes, 1),
            None if body.gives is None else self._tree(body.gives, 1),
        )

    def _range(self, form: wire.RelatedRange) -> DimVar:
        return DimVar(form.name, form.lo, form.hi, None if form.equals is None else self._dim(form.equals, 0))

    def _node(self, values: list[Value], position: int, form: wire.NodeForm) -> Node:
        what = f"node {position} ({form.op:.80})"
        operands = tuple(self._operand(values, operand, what) for operand in form.operands)
        attrs = tuple((attr.name, self._attribute(attr.value)) for attr in form.attrs)
        return Node(form.op, operands, attrs, tuple(self._define(values, result) for result in form.results))

    def _define(self, values: list[Value], form: wire.Type) -> Value:
        value = Value(len(values), TensorType(form.dtype, tuple(self._dim(dim, 0) for dim in form.shape)))
        values.append(value)
        return value

    def _value(self, values: list[Value], index: int, what: str) -> Value:
        if not 0 <= index < len(values):
            raise DecodeError(f"{what}: expected one of the {len(values)} values before it, got {index}")
        return values[index]

    def _operand(self, values: list[Value], form: wire.WireOperand, what: str) -> Operand:
        if isinstance(form, wire.Ref):
            return self._value(values, form.index, what)
        if isinstance(form, wire.Refs):
            return tuple(None if i is None else self._value(values, i, what) for i in form.indexes)
        return self._dim(form, 0) if isinstance(form, wire.Expression) else form

    def _attribute(self, form: wire.WireAttribute) -> Attribute:
        if isinstance(form, wire.ElementType):
            return form.dtype
        if isinstance(form, wire.Items):
            return tuple(self._dim(i, 0) if isinstance(i, wire.Expression) else i for i in form.items)
        return self._dim(form, 0) if isinstance(form, wire.Expression) else form

    def _dim(self, form: wire.WireDim, depth: int) -> Dim:
        if not isinstance(form, wire.Expression):
            return form
        self._bound(depth, self._limits.dim_depth, "floor divisions")
        terms = ((tuple(self._atom(f, depth) for f in term.factors), term.coefficient) for term in form.terms)
        return DimExpr(tuple(terms))

    def _atom(self, form: str | wire.Division, depth: int) -> Atom:
        if isinstance(form, str):
            return form
        return FloorDiv(self._dim(form.numerator, depth + 1), self._dim(form.denominator, depth + 1))

    def _tree(self, form: wire.WireTree, depth: int) -> Tree:
        self._bound(depth, self._limits.tree_depth, "containers")
        if isinstance(form, wire.LeafForm):
            return Leaf()
        if isinstance(form, wire.FixedForm):
            return Fixed(form.value)
        items = tuple(self._tree(item, depth + 1) for item in form.items)
        if isinstance(form, wire.MappingForm):
            return Mapping(form.keys, items)
        return Sequence(form.kind, items)

    def _bound(self, depth: int, limit: int, what: str) -> None:
        if depth > limit:
            raise LimitError(f"at most {limit} levels of {what} are allowed, got more")
