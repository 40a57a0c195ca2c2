"""From torch's exported graph to the IR: each ATen node becomes a node of the op table, checked by torch's.

What an overload becomes is decided by the op table (``OpDef.targets``) or, where it takes more than renaming,
by a rule in `planc.capture.rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from planc.capture.dynamic import DynamicDims
from planc.capture.location import location_of, pointing
from planc.capture.refusals import unsupported
from planc.capture.symbols import to_dim
from planc.errors import CaptureError, TypeCheckError, UnsupportedOpError
from planc.ir import Attribute, Dim, DType, Operand, Role, TensorType, Value, from_torch, type_of
from planc.ir.builder import GraphBuilder
from planc.ir.constants import digest
from planc.ir.dims import floordiv
from planc.ir.facts import knowing
from planc.ops import Kind, OpDef, Param, for_target, node
from planc.ops.randomness import KEY_TYPE

Entry = Any
"""What an fx node stands for: a Value, a dim, a tuple of Values (some missing), or None."""
Rule = Callable[["Importer", torch.fx.Node, Mapping[str, Any]], Entry]

# Arguments of ATen operators that say where and how memory is laid out: the executor's affair, not a plan's.
_IGNORED = {
    "memory_format",
    "pin_memory",
    "layout",
    "device",
    "generator",
    "non_blocking",
    "implicit",
    "copy",
}


_OVERLOAD: type = type(torch.ops.aten.add.Tensor)


class Port:
    """An input to be: its name in the graph, role, path and example."""

    def __init__(self, name: str, role: Role, path: str, example: torch.Tensor) -> None:
        self.name, self.role, self.path, self.example = name, role, path, example

    @property
    def type(self) -> TensorType:
        """The example's type: that of an input all of whose dims are fixed."""
        found = type_of(self.example)
        if found is None:
            raise UnsupportedOpError(f"{self.path}: plans have no tensors of dtype {self.example.dtype}")
        return found


class Importer:
    """Imports one exported program into a `GraphBuilder`.

    ``ports`` are the inputs that the program was traced over, ``extra`` further inputs of the plan that only
    nodes added later read. After construction ``builder`` holds all inputs and nodes, ``outputs`` the entries
    of the program's user outputs in order, ``constants`` the data of lifted constants, and ``key`` the key
    that remains after the program's random draws (None if it draws none). ``writes`` holds, by path, what
    in-place operations made of inputs; without ``allow_writes`` they are an error.
    """

    def __init__(
        self,
        name: str,
        program: ExportedProgram,
        ports: Sequence[Port],
        extra: Sequence[Port],
        dims: DynamicDims,
        rules: Mapping[str, Rule],
        random_targets: frozenset[str],
        allow_writes: bool = False,
    ) -> None:
        self.builder = GraphBuilder(name)
        self.constants: dict[str, torch.Tensor] = {}
        self.outputs: list[Entry] = []
        self.key: Value | None = None
        self.writes: dict[str, Entry] = {}
        self._allow_writes = allow_writes
        self._program = program
        self._rules = rules
        self._symbols: dict[str, Dim] = {}
        self._env: dict[torch.fx.Node, Entry] = {}
        self._keys: list[Value] = []
        self._location: Any = None
        nodes = [n for n in program.graph.nodes if n.op != "placeholder"]
        draws = sum(target_of(n) in random_targets for n in nodes)
        self._inputs(ports, extra, dims, draws)
        with knowing(self.builder.dims):
            for n in nodes:
                self._location = location_of(n.meta)
                if n.op == "call_function":
                    self._env[n] = self._import(n)
                elif n.op == "output":
                    self._outputs(n)
                else:
                    raise CaptureError(f"unexpected {n.op} node {n.name} in the exported graph")

    def value(self, role: Role, path: str) -> Value:
        """The input of this role and path."""
        return next(p.value for p in self.builder.inputs if p.role is role and p.path == path)

    # -- for rules -----------------------------------

    def emit(self, op: str, *operands: Operand, **attrs: Attribute) -> Value:
        """Append a node with one result."""
        return self.emit_all(op, *operands, **attrs)[0]

    def emit_all(self, op: str, *operands: Operand, **attrs: Attribute) -> tuple[Value, ...]:
        """Append a node and return all its results."""
        made = node(op, operands, attrs, self.builder.next_index, loc=self._location)
        return self.builder.add(made)

    def next_key(self) -> Value:
        """A key for one random draw."""
        return self._keys.pop(0)

    def dim(self, value: Any) -> Dim:
        """A size as it stands in an fx node's arguments: an int, a symbolic integer, or the node of one."""
        if isinstance(value, torch.fx.Node):
            value = self._env[value]
        return to_dim(value, self._symbols) if isinstance(value, torch.SymInt) else value

    def type_of(self, n: torch.fx.Node) -> TensorType:
        """The type that torch found for an fx node's (first) tensor."""
        return self.type_from(n.meta["val"])

    def type_from(self, fake: torch.Tensor) -> TensorType:
        dtype = from_torch(fake.dtype)
        if dtype is None:
            raise UnsupportedOpError(pointing(f"plans have no tensors of dtype {fake.dtype}", self._location))
        return TensorType(dtype, tuple(to_dim(d, self._symbols) for d in fake.shape))

    def entry(self, argument: Any) -> Any:
        """An fx argument with nodes replaced by what they stand for, recursively."""
        if isinstance(argument, torch.fx.Node):
            return self._env[argument]
        if isinstance(argument, (list, tuple)):
            return tuple(self.entry(item) for item in argument)
        if isinstance(argument, torch.SymInt):
            return to_dim(argument, self._symbols)
        if isinstance(argument, torch.dtype):
            return self.dtype(argument)
        return argument

    def dtype(self, dtype: torch.dtype) -> DType:
        found = from_torch(dtype)
        if found is None:
            raise UnsupportedOpError(pointing(f"plans have no dtype {dtype}", self._location))
        return found

    def fail(self, n: torch.fx.Node, reason: str) -> UnsupportedOpError:
        """The error for an operation that a plan cannot have."""
        return UnsupportedOpError(pointing(f"{target_of(n)} {reason}", self._location))

    # -- the import itself -----------------------------------

    def _inputs(
        self,
        ports: Sequence[Port],
        extra: Sequence[Port],
        dims: DynamicDims,
        draws: int,
    ) -> None:
        specs = self._program.graph_signature.input_specs
        placeholders = [n for n in self._program.graph.nodes if n.op == "placeholder"]
        user = [n for n, s in zip(placeholders, specs, strict=True) if s.kind is InputKind.USER_INPUT]
        self._paths = {n.name: port.path for n, port in zip(user, ports, strict=True)}
        for n, names in zip(user, dims.names, strict=True):
            self._name_symbols(n, names, dims)
        self.builder.dims = dims.variables()
        for n, port, names in zip(user, ports, dims.names, strict=True):
            found = self.type_of(n)
            shape = tuple(dims.written(names[i]) if i in names else d for i, d in enumerate(found.shape))
            self._env[n] = self.builder.input(port.name, TensorType(found.dtype, shape), port.role, port.path)
        for port in extra:
            self.builder.input(port.name, port.type, port.role, port.path)
        key = self.builder.input("rng", KEY_TYPE, Role.KEY) if draws else None
        for n, spec in zip(placeholders, specs, strict=True):
            if spec.kind is InputKind.TOKEN:
                self._env[n] = None  # of an operation with effects, which is refused where it comes
            elif spec.kind is not InputKind.USER_INPUT:
                self._env[n] = self._constant(str(spec.target))
        if key is not None:
            self.key, *self._keys = self.emit_all("random.split", key, count=draws + 1)

    def _name_symbols(self, n: torch.fx.Node, names: Mapping[int, str], dims: DynamicDims) -> None:
        for i, size in enumerate(n.meta["val"].shape):
            if i not in names:
                continue
            where = f"dim {names[i]} (dim {i} of input {self._paths[n.name]!r})"
            meaning = dims.meaning(names[i])
            if not isinstance(size, torch.SymInt) or size.node.expr.is_number:
                raise CaptureError(f"{where} was to vary, but the code only works when it is {size}")
            expr = size.node.expr
            if expr.is_Symbol:
                known = self._symbols.setdefault(expr.name, meaning)
                if known != meaning:
                    raise CaptureError(
                        f"{where} must equal dim {known} for this code; give them one name in dynamic="
                    )
            elif any(s.name not in self._symbols for s in expr.free_symbols):
                self._solve(expr, meaning, where)
            elif to_dim(size, self._symbols) != meaning:
                told = expr.subs({s: str(self._symbols[s.name]) for s in expr.free_symbols})
                raise CaptureError(f"{where} must equal {told} for this code; write it so in dynamic=")

    def _solve(self, expr: Any, meaning: Dim, where: str) -> None:
        """Let ``expr``, a multiple of one symbol, be the dim, which is that multiple of something."""
        factor, symbol = expr.as_coeff_Mul()
        part = floordiv(meaning, int(factor)) if factor.is_Integer else meaning
        if not symbol.is_Symbol or part * int(factor) != meaning:
            raise CaptureError(f"{where} must be of the form {expr} for this code; write it so in dynamic=")
        self._symbols[symbol.name] = part

    def _constant(self, target: str) -> Value:
        data = self._program.constants.get(target, self._program.state_dict.get(target))
        if not isinstance(data, torch.Tensor):
            raise CaptureError(f"the code uses the object {target!r}, which is not a tensor")
        data = data.detach()
        name = digest(data)
        self.constants[name] = data.clone()
        dtype = self.dtype(data.dtype)
        return self.builder.constant(TensorType(dtype, tuple(data.shape)), name)

    def _outputs(self, n: torch.fx.Node) -> None:
        specs = self._program.graph_signature.output_specs
        for argument, spec in zip(n.args[0], specs, strict=True):  # pyright: ignore[reportArgumentType] -- a tuple
            if spec.kind is OutputKind.USER_OUTPUT:
                self.outputs.append(self.entry(argument))
            elif spec.kind is OutputKind.USER_INPUT_MUTATION and self._allow_writes:
                self.writes[self._paths[str(spec.target)]] = self.entry(argument)
            elif spec.kind in (OutputKind.USER_INPUT_MUTATION, OutputKind.BUFFER_MUTATION):
                path = self._paths.get(str(spec.target), str(spec.target))
                where = location_of(argument.meta) if isinstance(argument, torch.fx.Node) else None
                raise CaptureError(
                    pointing(
                        f"the code writes into its input {path!r}; a plan's inputs cannot change. "
                        "Use the out-of-place form (x = x + 1, not x += 1), or clone the input first",
                        where,
                    )
                )
            else:
                raise CaptureError(f"unexpected output of kind {spec.kind} in the exported graph")

    def _import(self, n: torch.fx.Node) -> Entry:
        value = n.meta.get("val")
        if isinstance(value, (torch.SymInt, int)) and not isinstance(value, bool):
            return to_dim(value, self._symbols)  # arithmetic on sizes: torch has done it
        target = target_of(n)
        if target == "getitem":
            return self._env[n.args[0]][n.args[1]]  # pyright: ignore[reportArgumentType]
        if target == "with_effects":
            raise UnsupportedOpError(pointing(unsupported(str(n.args[1])), self._location))
        arguments = _named_arguments(n)
        try:
            rule = self._rules.get(target)
            entry = rule(self, n, arguments) if rule else self._from_table(n, target, arguments)
        except TypeCheckError as error:
            raise CaptureError(pointing(f"{target}: {error}", self._location)) from error
        self._check(n, entry)
        return entry

    def _from_table(self, n: torch.fx.Node, target: str, arguments: Mapping[str, Any]) -> Entry:
        definition = for_target(target)
        if definition is None:
            raise UnsupportedOpError(pointing(unsupported(target), self._location))
        operands: list[Operand] = []
        attrs: dict[str, Attribute] = {}
        for p in definition.params:
            if p.name not in arguments:
                if p.kind.is_operand:
                    operands.append(None if p.required else p.default)  # pyright: ignore[reportArgumentType]
                continue
            value = self.entry(arguments[p.name])
            if p.kind.is_operand:
                operands.append(value)
            else:
                attrs[p.name] = _fit(p, value)
        self._no_extras(n, definition, arguments)
        results = list(self.emit_all(definition.name, *operands, **attrs))
        fake = n.meta["val"]
        if not isinstance(fake, (tuple, list)):
            return results[0]
        return tuple(None if f is None else results.pop(0) for f in fake)

    def _no_extras(self, n: torch.fx.Node, definition: OpDef, arguments: Mapping[str, Any]) -> None:
        known = {p.name for p in definition.params} | _IGNORED
        defaults = {a.name: a.default_value for a in _schema(n.target)}
        for name, value in arguments.items():
            if name not in known and value != defaults.get(name):
                raise self.fail(n, f"with {name}={value!r} is not supported")

    def _check(self, n: torch.fx.Node, entry: Entry) -> None:
        """Our inference and torch's must agree, or the plan would not mean what the code does."""
        fakes = n.meta.get("val")
        pairs = zip(fakes, entry, strict=True) if isinstance(fakes, (tuple, list)) else [(fakes, entry)]
        for fake, value in pairs:
            if isinstance(fake, torch.Tensor) and isinstance(value, Value):
                expected = self.type_from(fake)
                if expected != value.type:
                    raise CaptureError(
                        pointing(
                            f"{target_of(n)}: inferred {value.type}, but PyTorch says {expected}",
                            self._location,
                        )
                    )


def target_of(n: torch.fx.Node) -> str:
    """The name of what an fx node calls: ``aten.add.Tensor``, or a Python function's."""
    if isinstance(n.target, _OVERLOAD):
        return str(n.target)
    return getattr(n.target, "__name__", str(n.target))


def _schema(overload: Any) -> Any:
    """The arguments that an ATen overload declares."""
    return overload._schema.arguments


def _named_arguments(n: torch.fx.Node) -> dict[str, Any]:
    """Every argument of an ATen call by its schema's name, defaults filled in."""
    if not isinstance(n.target, _OVERLOAD):
        raise UnsupportedOpError(f"{target_of(n)} is not an ATen operator")
    schema = _schema(n.target)
    given = dict(zip((a.name for a in schema), n.args, strict=False)) | n.kwargs
    return {
        a.name: given.get(a.name, a.default_value) for a in schema if a.name in given or a.has_default_value()
    }


def _fit(p: Param, value: Any) -> Attribute:
    """A single number where the op's attribute is a list, as ATen allows."""
    if p.kind in (Kind.INTS, Kind.OPT_INTS, Kind.DIMS) and isinstance(value, int):
        return (value,)
    return value
