"""What users hold: a `Plan` (a graph, its constants' data, its state), and the things that become one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import nn

from planc import codec, draw
from planc.capture.trace import Captured
from planc.capture.tree import match, unflatten
from planc.cost import Cost, cost
from planc.errors import InputError, NotBuiltError
from planc.ir import DimVar, Graph, Input, Node, Output, Role, type_of
from planc.ir.program import Program
from planc.ir.structure import Fixed, Leaf, Tree, flat, leaf_paths
from planc.ir.structure import Sequence as TreeSequence
from planc.lower import BACKENDS, Backend, ExecutableCache, Timing, profile
from planc.lower.inductor import find_compiler
from planc.passes import PASSES, Pass, PassRecord, Watch, run_pipeline
from planc.text import show

_CACHES = {backend: ExecutableCache(backend=backend) for backend in BACKENDS}


class Receiver(Protocol):
    """A worker that plans can be sent to (`runtime` has several)."""

    def receive_plan(self, plan: Plan) -> Any: ...


class Plan:
    """An immutable program together with the tensors that it starts from.

    Calling it runs it here: ``loss = step(x, y)`` returns its results and replaces ``state`` by what the
    program made of it. ``plan.send(worker)`` installs it at a worker.

    Attributes:
        graph: the program: typed, bounded, without side effects.
        constants: the data of its constants, by digest.
        state: tensors of its parameters, buffers, optimizer and key, by path; replaced by each call.
        records: what each pass did, where the plan was optimised.
        backend: what runs it here.
    """

    def __init__(
        self,
        program: Program,
        state: Mapping[str, torch.Tensor] | None = None,
        records: Sequence[PassRecord] = (),
        backend: Backend = "python",
    ) -> None:
        self.program = program
        self.state: dict[str, torch.Tensor] = dict(state or {})
        self.records = tuple(records)
        self.backend: Backend = backend

    @classmethod
    def from_captured(cls, captured: Captured, optimise: bool = True) -> Plan:
        plan = cls(captured.program, captured.state)
        return plan.optimized() if optimise else plan

    @property
    def graph(self) -> Graph:
        return self.program.graph

    @property
    def constants(self) -> Mapping[str, torch.Tensor]:
        return self.program.constants

    @property
    def name(self) -> str:
        return self.graph.name

    @property
    def dims(self) -> tuple[DimVar, ...]:
        return self.graph.dims

    @property
    def inputs(self) -> tuple[Input, ...]:
        return self.graph.inputs

    @property
    def outputs(self) -> tuple[Output, ...]:
        return self.graph.outputs

    @property
    def nodes(self) -> tuple[Node, ...]:
        return self.graph.nodes

    @cached_property
    def id(self) -> str:
        """The SHA-256 of the program's canonical bytes, in hex: it names this program, not its state."""
        return codec.plan_id(self.graph)

    @cached_property
    def text(self) -> str:
        """The program in the language, fully typed; `planc.parse` reads it back."""
        return show(self.graph, self.constants)

    @cached_property
    def bytes(self) -> bytes:
        """The program's canonical bytes: what a worker is sent, once."""
        return codec.encode(self.graph)

    def cost(self, **dims: int) -> Cost:
        """FLOPs, bytes moved and peak memory for these sizes of the named dims: ``plan.cost(b=64)``.

        Raises:
            InputError: a dim's size is missing or outside its range.
        """
        return cost(self.graph, dims)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan, its constants and its state to a ``.planc`` file, wholly or not at all."""
        codec.save(path, self.graph, self.constants, self.state)

    def optimized(self, passes: Sequence[Pass] = PASSES, watch: Watch | None = None) -> Plan:
        """The same plan after the passes; its ``records`` say what each did, and ``watch`` is told then."""
        result = run_pipeline(self.program, passes, watch=watch)
        records = *self.records, *result.records
        return Plan(result.program, self.state, records, self.backend)

    def with_state(self, state: Mapping[str, torch.Tensor]) -> Plan:
        """The same program with another state.

        Raises:
            InputError: a path that the plan does not have.
        """
        paths = {port.path for port in self.graph.state()}
        unknown = [path for path in state if path not in paths]
        if unknown:
            raise InputError(f"plan {self.name!r} has no state {unknown[0]!r}; it has {sorted(paths)}")
        return Plan(self.program, {**self.state, **state}, self.records, self.backend)

    def with_backend(self, backend: Backend) -> Plan:
        """The same program and state, run here by another backend.

        ``"python"`` is what runs where nothing is said. ``"inductor"`` has `torch.compile` write C++ for it:
        its first call takes seconds to minutes, and results are rounded otherwise. It pays for long chains
        of elementwise operations on tensors of a million numbers.

        Raises:
            InputError: there is no such backend, or no C++ compiler.
        """
        if backend not in BACKENDS:
            raise InputError(
                f"there is no backend {backend!r}; there are {' and '.join(map(repr, BACKENDS))}"
            )
        if backend == "inductor":
            find_compiler()
        return Plan(self.program, self.state, self.records, backend)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers by path, as ``nn.Module.load_state_dict`` takes them (copies)."""
        kept = [p.path for p in self.graph.state() if p.role in (Role.PARAMETER, Role.BUFFER)]
        return {path: self.state[path].detach().clone() for path in kept if path in self.state}

    def load_into(self, module: nn.Module) -> None:
        """Copy parameters and buffers into a module: all of them or, where one does not fit, none.

        Unlike ``module.load_state_dict(plan.state_dict())`` it takes no offence at tied weights, which a plan
        holds once, nor at buffers that a module does not save.

        Raises:
            InputError: the module has no such parameter or buffer, or one of another type.
        """
        targets: dict[str, torch.Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        found = self.state_dict()
        for path, tensor in found.items():
            if path not in targets:
                raise InputError(
                    f"the module has no parameter or buffer {path!r}, which plan {self.name!r} has"
                )
            have, want = type_of(tensor), type_of(targets[path])
            if have != want:
                raise InputError(f"{path!r} is {have} in the plan but {want} in the module")
        with torch.no_grad():
            for path, tensor in found.items():
                targets[path].copy_(tensor)

    def send(self, worker: Receiver) -> Any:
        """Install the plan at a worker; returns the handle to call it by."""
        return worker.receive_plan(self)

    def __call__(self, *args: Any) -> Any:
        """Run here: returns the results, and replaces ``state``.

        Raises:
            InputError: arguments that do not fit, or state that is missing.
            ExecutionError: an operation failed; the state is as before.
        """
        values = self._values(args)
        outputs = _CACHES[self.backend].run(self.id, self.program, values, _device_of(values))
        results, updates = self.split_outputs(outputs)
        self.state = {**self.state, **updates}
        return self.arrange(results)

    def profile(self, *args: Any) -> list[Timing]:
        """Where the time of a call goes: a row for each node, the slowest first. The state stays as it is.

        It runs the plan a few times. What needs computing only once for all calls has no row.

        Raises:
            InputError: as a call.
            ExecutionError: as a call.
        """
        values = self._values(args)
        _, rows = profile(self.program, values, _device_of(values))
        return sorted(rows, key=lambda row: -row.seconds)

    def _values(self, args: tuple[Any, ...]) -> list[torch.Tensor]:
        """A tensor for each input of the graph: arguments and state."""
        leaves = iter(self.flatten_arguments(args))
        values: list[torch.Tensor] = []
        for port in self.graph.inputs:
            value = self._state_of(port) if port.role.is_state else next(leaves)
            if not isinstance(value, torch.Tensor):
                raise InputError(
                    f"input {port.path!r} must be a tensor, {port.value.type}, got {_kind(value)}"
                )
            values.append(value)
        return values

    def flatten_arguments(self, args: tuple[Any, ...]) -> list[Any]:
        """The leaves of a call's arguments, in the order of the graph's arguments.

        Raises:
            InputError: another count or structure than the plan takes; says where and what was expected.
        """
        ports, takes, names, plain = self._signature
        if plain and len(args) == len(ports):
            return [_scalar(port, leaf) for port, leaf in zip(ports, args, strict=True)]
        if len(args) != len(takes.items):
            types = iter(ports)
            wanted = ", ".join(
                _describe(name, tree, types) for name, tree in zip(names, takes.items, strict=True)
            )
            raise InputError(
                f"plan {self.name!r} takes {len(takes.items)} arguments ({wanted}), got {len(args)}"
            )
        leaves = [
            x
            for name, tree, arg in zip(names, takes.items, args, strict=True)
            for x in match(tree, arg, name)
        ]
        return [_scalar(port, leaf) for port, leaf in zip(ports, leaves, strict=True)]

    @property
    def takes_tensors(self) -> bool:
        """Whether each argument is one tensor: no lists, no numbers."""
        return self._signature[3]

    @cached_property
    def returns_tensor(self) -> bool:
        """Whether the result is one tensor, not in a list or other structure."""
        gives = self.graph.gives
        return isinstance(gives, Leaf) or (gives is None and len(self.graph.results()) == 1)

    @cached_property
    def _signature(self) -> tuple[Sequence[Input], TreeSequence, Sequence[str], bool]:
        """The arguments: inputs of the graph, their structure and names, and whether each is one tensor."""
        ports = self.graph.arguments()
        takes = self.graph.takes or flat(len(ports))
        assert isinstance(takes, TreeSequence)
        plain = all(isinstance(tree, Leaf) for tree in takes.items)
        return ports, takes, _argument_names(takes, ports), plain

    def arrange(self, results: Sequence[Any]) -> Any:
        """The plan's flat results as its Python code returned them: one, a tuple, or its own structure."""
        if self.graph.gives is not None:
            return unflatten(self.graph.gives, iter(results))
        return results[0] if len(results) == 1 else tuple(results)

    def split_outputs(self, outputs: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """The flat outputs of a run as (results in order, updated state by path)."""
        pairs = list(zip(self.graph.outputs, outputs, strict=True))
        return [v for p, v in pairs if not p.role.is_state], {p.path: v for p, v in pairs if p.role.is_state}

    def __repr__(self) -> str:
        wanted = ", ".join(f"{p.path}: {p.value.type}" for p in self.graph.arguments())
        gives = ", ".join(str(p.value.type) for p in self.graph.results())
        state = f", {len(self.graph.state())} state tensors" if self.graph.state() else ""
        size = f"{self.graph.count_nodes()} nodes{state}"
        return f"<Plan {self.name}({wanted}) -> ({gives}), {size}, id {self.id[:12]}>"

    def _repr_html_(self) -> str:
        """What notebooks show."""
        return draw.cell(self.graph, self.id, self.text)

    def _state_of(self, port: Input) -> torch.Tensor:
        try:
            return self.state[port.path]
        except KeyError:
            raise InputError(
                f"plan {self.name!r} needs the state {port.path!r} ({port.value.type}), which it was not "
                "given; see Plan.with_state"
            ) from None


def _device_of(values: Sequence[torch.Tensor]) -> torch.device:
    """Where to run: the device of the inputs, the CPU where they have several."""
    devices = {v.device for v in values if v.dim()} or {v.device for v in values}
    return devices.pop() if len(devices) == 1 else torch.device("cpu")


def _argument_names(takes: TreeSequence, ports: Sequence[Input]) -> list[str]:
    """What to call each argument: the name that its tensors' paths begin with, or its position."""
    out: list[str] = []
    start = 0
    for i, tree in enumerate(takes.items):
        paths = list(leaf_paths(tree))
        path = ports[start].path if paths else f"[{i}]"
        out.append(path.removesuffix(f".{paths[0]}") if paths and paths[0] else path)
        start += len(paths)
    return out


def _describe(name: str, tree: Tree, ports: Iterator[Input]) -> str:
    """An argument as a message lists it; takes its tensors off ``ports``."""
    if isinstance(tree, Leaf):
        return f"{name}: {next(ports).value.type}"
    if isinstance(tree, Fixed):
        return f"{name} fixed to {tree.value!r}"
    tensors = [str(next(ports).value.type) for _ in leaf_paths(tree)]
    return f"{name}: a {tree.kind if isinstance(tree, TreeSequence) else 'dict'} of {', '.join(tensors)}"


def _scalar(port: Input, value: Any) -> Any:
    """A Python number as the tensor of no dims that a plan takes, ``step(x, y, 0.05)``; else the value."""
    want = port.value.type
    if want.rank or not isinstance(value, (bool, int, float)):
        return value
    if torch.tensor(value).dtype.is_floating_point and not want.dtype.is_floating:
        raise InputError(f"input {port.path!r} wants {want}, got the number {value!r}")
    return torch.tensor(value, dtype=want.dtype.torch)


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


class Buildable:
    """Something that becomes a plan once it has seen example inputs, and then behaves as that plan."""

    _plan: Plan | None = None

    @property
    def plan(self) -> Plan:
        """The plan.

        Raises:
            NotBuiltError: it is not built yet.
        """
        if self._plan is None:
            name = getattr(self, "__name__", type(self).__name__)
            raise NotBuiltError(
                f"{name} is not built yet, so its shapes are unknown; call build(*example_inputs) first"
            )
        return self._plan

    @property
    def is_built(self) -> bool:
        return self._plan is not None

    @property
    def id(self) -> str:
        """As `Plan.id`."""
        return self.plan.id

    @property
    def text(self) -> str:
        """As `Plan.text`."""
        return self.plan.text

    def cost(self, **dims: int) -> Cost:
        """As `Plan.cost`."""
        return self.plan.cost(**dims)

    def save(self, path: str | os.PathLike[str]) -> None:
        """As `Plan.save`."""
        self.plan.save(path)

    def send(self, worker: Receiver) -> Any:
        """As `Plan.send`."""
        return self.plan.send(worker)


def plan_of(thing: Plan | Buildable) -> Plan:
    """The plan that ``thing`` is or has become.

    Raises:
        InputError: it is something else, a module say.
    """
    given: object = thing
    if isinstance(given, Plan):
        return given
    if not isinstance(given, Buildable):
        raise InputError(
            f"expected a plan, as planc.trace, planc.train_step and planc.epoch make one, got a "
            f"{type(given).__name__}"
        )
    return given.plan


__all__ = ["Buildable", "Plan", "Receiver", "plan_of"]
