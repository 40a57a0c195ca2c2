"""Capture of functions and modules: ordinary PyTorch code as a graph, the module's tensors as its state."""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from planc.capture.dynamic import Dynamic, DynamicDims, named_sizes, resolve
from planc.capture.export import Progress, TraceError, export
from planc.capture.functional import check_module, present_buffers, with_state
from planc.capture.importer import Entry, Importer, Port
from planc.capture.ones import Calls, OneRow
from planc.capture.relating import candidates
from planc.capture.rules import RANDOM, RULES
from planc.capture.tree import flatten, unflatten
from planc.errors import CaptureError
from planc.ir import Dim, DType, Role, Value
from planc.ir.dims import DimExpr
from planc.ir.program import Program
from planc.ir.structure import TUPLE, Fixed, Leaf, Tree, leaf_paths
from planc.ir.structure import Sequence as TreeSequence
from planc.ops.randomness import make_key

KEY = "rng"
"""The path of a plan's random key."""
Ranges = Mapping[str, tuple[int, int]] | None


@dataclass(frozen=True)
class Options:
    """How to capture: which dims vary and in which ranges, the plan's name, and whom to tell of progress."""

    dynamic: Dynamic = None
    ranges: Ranges = None
    name: str | None = None
    progress: Progress | None = None


DEFAULTS = Options()


@dataclass(frozen=True)
class Captured:
    """What capture makes: the program, and the first values of its state by path."""

    program: Program
    state: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])


class Signature:
    """The flat inputs that a capture traces over: the caller's arguments, then state."""

    def __init__(self, parameters: Sequence[str], examples: Sequence[Any]) -> None:
        self.takes: Tree
        self.takes, leaves = flatten(tuple(examples))
        self.examples: list[torch.Tensor] = leaves
        assert isinstance(self.takes, TreeSequence)
        named = [
            f"{name}.{path}" if path else name
            for name, item in zip(parameters, self.takes.items, strict=True)
            for path in leaf_paths(item)
        ]
        self.paths = named
        self._ports: list[Port] = []
        self._names: set[str] = set()
        for path, example in zip(named, leaves, strict=True):
            self.add(Role.ARGUMENT, path, example)

    def add(self, role: Role, path: str, example: torch.Tensor) -> None:
        """Declare one more input; its name is made from its path."""
        self._ports.append(Port(unique_name(path, self._names), role, path, example))

    def add_argument(self, tree: Tree) -> None:
        """Take one more argument, which the traced code does not see."""
        assert isinstance(self.takes, TreeSequence)
        self.takes = TreeSequence(self.takes.kind, (*self.takes.items, tree))

    @property
    def ports(self) -> list[Port]:
        return self._ports

    def arguments(self, flat: Sequence[torch.Tensor]) -> tuple[Any, ...]:
        """The Python arguments of a call whose flat inputs are ``flat``."""
        return unflatten(self.takes, iter(flat[: len(self.examples)]))

    def of(self, role: Role, flat: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The flat inputs of one role, by path."""
        return {p.path: x for p, x in zip(self._ports, flat, strict=True) if p.role is role}

    def structure(self) -> Tree | None:
        """How the caller arranges the arguments; None where they are plain positional tensors."""
        assert isinstance(self.takes, TreeSequence)
        plain = all(isinstance(item, Leaf) for item in self.takes.items)
        return None if plain else self.takes


def unique_name(path: str, taken: set[str]) -> str:
    """An identifier from a path (``fc1.weight`` -> ``fc1_weight``) that is not taken yet; takes it."""
    name = re.sub(r"\W", "_", path, flags=re.ASCII)
    if not re.match(r"[A-Za-z_]", name) or keyword.iskeyword(name):
        name = f"x_{name}"
    base, i = name, 2
    while name in taken:
        name, i = f"{base}_{i}", i + 1
    taken.add(name)
    return name


def import_program(
    name: str,
    program: ExportedProgram,
    signature: Signature,
    dynamic: DynamicDims,
    extra: Sequence[Port] = (),
) -> Importer:
    """Import what was traced over the signature's flat inputs; ``extra`` inputs follow them."""
    return Importer(name, program, signature.ports, extra, dynamic, RULES, frozenset(RANDOM))


def export_signature(
    function: Callable[..., list[Any]], signature: Signature, options: Options
) -> tuple[ExportedProgram, DynamicDims]:
    """Trace ``function`` over a signature's flat inputs: dims of arguments vary as the user said, others not.

    Where the user said nothing and the code cannot run with varying leading dims (they are features, say, and
    no batch), all dims are fixed to the example's. Where the code wants dims related that the user named,
    they are, as in the examples.
    """
    examples = [p.example for p in signature.ports]

    def attempt(
        wanted: Dynamic, equals: Mapping[str, Dim] | None = None
    ) -> tuple[ExportedProgram, DynamicDims]:
        named = resolve(wanted, signature.paths, signature.examples, options.ranges, equals)
        rest = len(signature.ports) - len(signature.examples)
        dims = replace(named, names=(*named.names, *({},) * rest))
        one_row, calls = OneRow(function, examples, dims), Calls()
        program = export(function, examples, dims, options.progress, calls.note)
        one_row.check(calls)
        return program, dims

    others: Iterable[tuple[Dynamic, Mapping[str, Dim] | None]] = [(False, None)]
    try:
        return attempt(options.dynamic)
    except TraceError:
        if isinstance(options.dynamic, Mapping):
            sizes = named_sizes(options.dynamic, signature.paths, signature.examples)
            others = ((options.dynamic, equals) for equals in candidates(sizes))
        elif options.dynamic is not None:
            raise
        for wanted, equals in others:
            try:
                return attempt(wanted, equals)
            except CaptureError:
                pass
        raise


def as_value(importer: Importer, entry: Entry) -> Value:
    """An output entry as a value: a size becomes an ``i64[]``."""
    if isinstance(entry, Value):
        return entry
    if isinstance(entry, (int, DimExpr)) and not isinstance(entry, bool):
        return importer.emit("aten.full", size=(), fill_value=entry, dtype=DType.I64)
    raise CaptureError(f"an output is {entry!r}, which is no tensor")


class Results:
    """Remembers the structure of what the traced code returned, while it is traced."""

    def __init__(self) -> None:
        self.tree: Tree = Fixed(None)
        self.count = 0

    def flat(self, value: Any) -> list[torch.Tensor]:
        """The tensors in ``value``; numbers and None stay in the structure."""
        self.tree, leaves = flatten(_with_sizes(value))
        self.count = len(leaves)
        return leaves

    def add_outputs(self, importer: Importer, entries: Sequence[Entry], names: set[str]) -> None:
        """Declare the first outputs: those that the caller gets."""
        paths = list(leaf_paths(self.tree))
        for path, entry in zip(paths, entries, strict=True):
            full = path if path and not path[0].isdigit() else f"r{path}" if path else "r"
            name = unique_name(full, names)
            importer.builder.output(as_value(importer, entry), name, Role.ARGUMENT, full)

    def structure(self) -> Tree | None:
        """How the caller gets the results; None where they are one tensor, or a plain tuple of them."""
        tree = self.tree
        if isinstance(tree, TreeSequence) and tree.kind == TUPLE and len(tree.items) > 1:
            return None if all(isinstance(item, Leaf) for item in tree.items) else tree
        return None if isinstance(tree, Leaf) else tree


@dataclass(frozen=True)
class Traced:
    """A training step's forward, loss and gradients, traced: outputs are results, buffers, then gradients."""

    name: str
    program: ExportedProgram
    dims: DynamicDims
    signature: Signature
    results: Results
    buffered: Sequence[str]
    trained: Sequence[str]
    """The paths of the parameters that have a gradient and that the optimizer updates, in order."""


def _with_sizes(value: Any) -> Any:
    """Symbolic sizes in a result as tensors, so that they are outputs and not fixed numbers."""
    if isinstance(value, torch.SymInt):
        return torch.full((), value, dtype=torch.int64)  # pyright: ignore[reportCallIssue, reportArgumentType]
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_with_sizes(item) for item in value)
    if isinstance(value, dict):
        return {key: _with_sizes(item) for key, item in value.items()}
    return value


def parameter_names(function: Callable[..., Any], count: int) -> list[str]:
    """The names of a callable's first ``count`` positional parameters; ``x0``, ``x1``... for others."""
    try:
        found = [
            p.name
            for p in inspect.signature(function).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):
        found = []
    return [found[i] if i < len(found) else f"x{i}" for i in range(count)]


@torch.inference_mode(False)  # or what is captured in that mode could never be trained
def trace(
    target: Callable[..., Any] | nn.Module,
    examples: Sequence[Any],
    options: Options = DEFAULTS,
    keywords: Sequence[str] = (),
) -> Captured:
    """Capture a function, or the forward pass of a module in the mode (train or eval) that it is in.

    The last of the examples are passed by ``keywords``; the plan takes them by position too.

    Raises:
        CaptureError: the code cannot be a plan; shows the user's line and says what to do.
        UnsupportedOpError: it uses an operation outside the op table.
    """
    module = target if isinstance(target, nn.Module) else None
    called = target.forward if isinstance(target, nn.Module) else target
    signature = Signature(parameter_names(called, len(examples)), examples)
    if module is not None:
        add_module(signature, module)
    results = Results()
    written: list[str] = []

    def run(*flat: torch.Tensor) -> list[Any]:
        taken = signature.arguments(flat)
        split = len(taken) - len(keywords)
        arguments, named = taken[:split], dict(zip(keywords, taken[split:], strict=True))
        with torch.enable_grad():  # the code may take gradients of its own; nothing else here requires any
            if module is None:
                return _detached(results.flat(called(*arguments, **named)))
            buffers = {k: v.clone() for k, v in signature.of(Role.BUFFER, flat).items()}
            written[:] = buffers
            body = partial(_forward, module, arguments, named, results, written)
            return with_state(module, {**signature.of(Role.PARAMETER, flat), **buffers}, body)

    program, dims = export_signature(run, signature, options)
    importer = import_program(options.name or plan_name(target), program, signature, dims)
    names: set[str] = set()
    entries = importer.outputs
    results.add_outputs(importer, entries[: results.count], names)
    add_updates(importer, Role.BUFFER, dict(zip(written, entries[results.count :], strict=True)), names)
    return finish(importer, signature.ports, signature, results, names)


def _forward(
    module: nn.Module, arguments: Any, named: Mapping[str, Any], results: Results, written: Sequence[str]
) -> list[torch.Tensor]:
    """What a forward pass returns, then what has become of the buffers."""
    out = results.flat(module(*arguments, **named))
    return [*_detached(out), *present_buffers(module, written).values()]


def _detached(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [x.detach() for x in tensors]


def add_module(signature: Signature, module: nn.Module) -> None:
    """Declare a module's parameters and buffers as state; a tied one counts once.

    Raises:
        CaptureError: the module's code or parameters cannot be had.
    """
    check_module(module)
    for path, parameter in module.named_parameters():
        signature.add(Role.PARAMETER, path, parameter)
    for path, buffer in module.named_buffers():
        signature.add(Role.BUFFER, path, buffer)


def add_updates(importer: Importer, role: Role, updates: Mapping[str, Entry], names: set[str]) -> None:
    """Declare an output for every state input that the code has changed.

    Raises:
        CaptureError: it has made one a tensor of another type.
    """
    for path, entry in updates.items():
        before = importer.value(role, path)
        if entry == before:
            continue
        after = as_value(importer, entry)
        if after.type != before.type:
            raise CaptureError(
                f"the code makes the {role.value} {path!r} a tensor of another type, {after.type} where it "
                f"was {before.type}; a plan's state keeps its types: cast it, or return it as a result"
            )
        importer.builder.output(after, unique_name(path, names), role, path)


def finish(
    importer: Importer, ports: Sequence[Port], signature: Signature, results: Results, names: set[str]
) -> Captured:
    """The captured program, with the random key as state where the code draws, and its first state."""
    if importer.key is not None:
        importer.builder.output(importer.key, unique_name(KEY, names), Role.KEY, KEY)
    graph = importer.builder.build(signature.structure(), results.structure())
    return Captured(Program(graph, importer.constants), initial_state(ports, importer.key is not None))


def initial_state(ports: Sequence[Port], draws: bool) -> dict[str, torch.Tensor]:
    """The tensors that a captured plan starts from."""
    state = {p.path: p.example.detach().clone() for p in ports if p.role.is_state}
    return {**state, KEY: make_key(0)} if draws else state


def plan_name(target: Any) -> str:
    """An identifier for a plan of ``target``: its own name in lower case."""
    raw = getattr(target, "__name__", None) or type(target).__name__
    return unique_name(raw.lower() if raw.isidentifier() else "plan", set())
