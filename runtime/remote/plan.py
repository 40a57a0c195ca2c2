"""`RemotePlan`: a plan installed at a worker, with its state resident there."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from operator import is_
from typing import TYPE_CHECKING, Any

import torch

from planc.errors import InputError
from planc.ir import Input, Role, TensorType
from planc.ir.binding import bind
from planc.plans import Plan
from runtime.errors import WrongWorker
from runtime.messages import Drop, Handle, Keep, Return, Run, Slot, Update
from runtime.remote.background import background
from runtime.remote.rows import RowsTensor, lazy_rows, on_rows
from runtime.remote.tensor import Changes, RemoteTensor

if TYPE_CHECKING:
    from runtime.remote.handle import WorkerHandle

_REMEMBERED = 256
"""Combinations of input types whose dims a handle remembers."""

State = Mapping[str, torch.Tensor | RemoteTensor]


class _Seen:
    """What was found out about the last call on values at the worker: another like it needs no checks.

    Attributes:
        plan_id: the plan.
        arguments: the types of the arguments.
        results: the types of the results.
        single: whether the call returns its one result as it is.
    """

    __slots__ = (
        "_last",
        "_ports",
        "_trains",
        "arguments",
        "plan_id",
        "results",
        "single",
    )

    def __init__(self, plan: Plan, types: Sequence[TensorType], results: Sequence[TensorType]) -> None:
        graph = plan.graph
        self.plan_id = plan.id
        self.arguments = tuple(types[: len(graph.arguments())])
        self.results = tuple(results)
        self.single = len(results) == 1 and plan.returns_tensor
        self._trains = any(port.role is Role.PARAMETER for port in graph.updates())
        """It updates its parameters itself: autograd has no part in it then."""
        self._ports = [(p.path, type) for p, type in zip(graph.inputs, types, strict=True) if p.role.is_state]
        self._last: _State | None = None

    @classmethod
    def of(cls, plan: Plan, types: Sequence[TensorType], results: Sequence[TensorType]) -> _Seen | None:
        """Of a call that went well; None where arguments or results are more than plain tensors in a row."""
        in_order = sorted(plan.graph.inputs, key=lambda port: port.role.is_state) == list(plan.graph.inputs)
        return cls(plan, types, results) if plan.takes_tensors and in_order else None

    def inputs(
        self, args: tuple[Any, ...], state: Mapping[str, RemoteTensor], location: WorkerHandle
    ) -> tuple[Handle, ...] | None:
        """The inputs of a call as its message names them; None where it is not such a call."""
        if len(args) != len(self.arguments):
            return None
        cut = self._trains or not torch.is_grad_enabled()
        inputs: list[Handle] = []
        for value, type_ in zip(args, self.arguments, strict=True):
            if not _is(value, type_, location, cut):
                return None
            inputs.append(Handle(value.id))
        if not self._ports:
            return tuple(inputs)
        last = self._last
        if last is None or not cut or not last.is_still(state):
            found = self._state_of(state, location, cut)
            if found is None:
                return None
            last = self._last = found
        return (*inputs, *last.inputs)

    def _state_of(
        self, state: Mapping[str, RemoteTensor], location: WorkerHandle, cut: bool
    ) -> _State | None:
        changes, state = Changes.count, dict(state)  # before it is looked at, and as it is now
        inputs: list[Handle] = []
        for path, type_ in self._ports:
            value = state.get(path)
            if value is None or not _is(value, type_, location, cut):
                return None
            inputs.append(Handle(value.id))
        return _State(changes, list(state), [weakref.ref(each) for each in state.values()], tuple(inputs))


class _State:
    """The state of the last call: what it was, and its handles as a message names them. Keeps none alive."""

    __slots__ = ("_changes", "_handles", "_paths", "inputs")

    def __init__(
        self,
        changes: int,
        paths: list[str],
        handles: list[weakref.ref[RemoteTensor]],
        inputs: tuple[Handle, ...],
    ) -> None:
        self._changes = changes
        self._paths = paths
        self._handles = handles
        self.inputs = inputs

    def is_still(self, state: Mapping[str, RemoteTensor]) -> bool:
        """Whether a state has the same handles, and no handle was changed in place."""
        return (
            Changes.count == self._changes
            and list(state) == self._paths
            and all(map(is_, state.values(), [handle() for handle in self._handles]))
        )


def _is(value: Any, type_: TensorType, location: WorkerHandle, cut: bool) -> bool:
    """Whether a value is a remote tensor of a type, there, that autograd has no part in."""
    return (
        type(value) is RemoteTensor
        and value.location is location
        and (value.tensor_type is type_ or value.tensor_type == type_)
        and (cut or not value.requires_grad)
    )


class RemotePlan:
    """A plan at a worker. Calling it is one message, whatever it takes and returns.

    Attributes:
        plan: the plan itself, as it was sent.
        location: the worker.
        state: handles to its parameters, buffers, optimizer state and key at the worker, by path. Plans that
            were given the same handles share their state.
    """

    def __init__(self, plan: Plan, location: WorkerHandle, state: Mapping[str, RemoteTensor]) -> None:
        self.plan = plan
        self.location = location
        self.state = dict(state)
        self._seen: _Seen | None = None
        self._bound: dict[tuple[TensorType, ...], dict[str, int]] = {}
        self._bound_on_rows: dict[tuple[TensorType, ...], dict[str, int]] = {}

    @classmethod
    def place(cls, plan: Plan, worker: WorkerHandle) -> RemotePlan:
        """The handle of an installed plan, its state put at the worker: one message, none without state."""
        paths = [port.path for port in plan.graph.state() if port.path in plan.state]
        handles = worker.send_all([plan.state[path].detach() for path in paths]) if paths else []
        return cls(plan, worker, dict(zip(paths, handles, strict=True)))

    @property
    def id(self) -> str:
        return self.plan.id

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def text(self) -> str:
        return self.plan.text

    def __call__(self, *args: Any) -> Any:
        """Run at the worker on remote and local values; the results stay there, and state is replaced there.

        Under autograd, where an argument or a parameter requires grad, the results do too and ``backward``
        reaches it (more slowly than without: node by node). A plan that updates its parameters does that by
        itself.

        Returns:
            Remote tensors, arranged as the plan's Python code returns its results.

        Raises:
            WrongWorker: an argument lives at another worker.
            InputError: arguments that do not fit the plan.
            WorkerError: the run failed there; nothing there has changed.
        """
        seen = self._seen
        if seen is not None:
            inputs = seen.inputs(args, self.state, self.location)
            if inputs is not None:
                return self._call_again(seen, inputs)
        self, leaves = self._with_rows(args)
        inputs, tensors, types = self._inputs(leaves, {})
        bindings = self._bind(types)
        results = self.plan.graph.results()
        ids = [self.location.new_id() for _ in results]
        grad = self._differentiates(leaves)
        self.location.request(Run(self.id, inputs, tuple(Keep(id) for id in ids), grad=grad), tensors)
        handles: list[RemoteTensor] = []
        for id, port in zip(ids, results, strict=True):
            type = TensorType(port.value.type.dtype, port.value.type.at(bindings))
            handle = RemoteTensor(self.location, id, type, requires_grad=grad and type.dtype.is_floating)
            handle.is_leaf = not handle.requires_grad
            handles.append(handle)
        if not (tensors or grad):
            self._seen = _Seen.of(self.plan, types, [handle.tensor_type for handle in handles])
        return self.plan.arrange(handles)

    def _call_again(self, seen: _Seen, inputs: tuple[Handle, ...]) -> Any:
        """A call as one before it, on other values of the same types."""
        location = self.location
        if seen.single:
            id = location.new_id()
            location.request(Run(seen.plan_id, inputs, (Keep(id),)))
            return RemoteTensor(location, id, seen.results[0])
        ids = [location.new_id() for _ in seen.results]
        location.request(Run(seen.plan_id, inputs, tuple([Keep(id) for id in ids])))
        handles = [RemoteTensor(location, id, type) for id, type in zip(ids, seen.results, strict=True)]
        return self.plan.arrange(handles)

    def submit(self, *args: Any) -> Future[Any]:
        """As a call, in the background: a future of what it returns."""
        return background().submit(self, *args)

    def fetch(self, *args: Any) -> Any:
        """As a call, but the results come back in the reply: still one message."""
        self, leaves = self._with_rows(args)
        inputs, tensors, types = self._inputs(leaves, {})
        self._bind(types)
        run = Run(self.id, inputs, (Return(),) * len(self.plan.graph.results()))
        return self.plan.arrange(own(self.location.values(run, tensors)))

    def evaluate(self, *args: Any) -> Any:
        """As `fetch`, but the state at the worker stays as it is."""
        self, leaves = self._with_rows(args)
        inputs, tensors, types = self._inputs(leaves, {})
        self._bind(types)
        graph = self.plan.graph
        run = Run(self.id, inputs, (Return(),) * len(graph.results()), (Drop(),) * len(graph.updates()))
        return self.plan.arrange(own(self.location.values(run, tensors)))

    def round(
        self, state: Mapping[str, torch.Tensor], *args: Any, keep: Mapping[str, torch.Tensor] | None = None
    ) -> tuple[Any, dict[str, torch.Tensor]]:
        """Run with state that travels along: one message there, its reply brings results and updated state.

        Args:
            state: by path, local tensors: they are sent, and their updates come back.
            *args: as for a call.
            keep: by path, local tensors: they are sent, and their updates stay at the worker as this handle's
                state. State that is in neither must be this handle's already, and is replaced at the worker.

        Returns:
            The results, local; and the updates of ``state``, by path.
        """
        keep = keep or {}
        graph = self.plan.graph
        unknown = {*state, *keep} - {p.path for p in graph.state()}
        if unknown:
            raise InputError(f"plan {self.name!r} has no state {min(unknown)!r}")
        frozen = set(keep) - {p.path for p in graph.updates()}
        if frozen:
            raise InputError(
                f"plan {self.name!r} does not update {min(frozen)!r}, so nothing of it can be kept"
            )
        inputs, tensors, types = self._inputs(self.plan.flatten_arguments(args), {**state, **keep})
        self._bind(types)
        kept = {path: self.location.new_id() for path in keep}
        updates = tuple(
            Return() if p.path in state else Keep(kept[p.path]) if p.path in kept else Update()
            for p in graph.updates()
        )
        run = Run(self.id, inputs, (Return(),) * len(graph.results()), updates)
        values = iter(own(self.location.values(run, tensors)))
        ports = {p.path: p for p in graph.updates()}
        self.state |= {
            path: RemoteTensor(self.location, id, ports[path].value.type) for path, id in kept.items()
        }
        results: list[torch.Tensor] = []
        new: dict[str, torch.Tensor] = {}
        for port in graph.outputs:
            if not port.role.is_state:
                results.append(next(values))
            elif port.path in state:
                new[port.path] = next(values)
        return self.plan.arrange(results), new

    def with_state(self, state: Mapping[str, RemoteTensor]) -> RemotePlan:
        """The same plan over other state at the worker: a step and an evaluation of the same parameters."""
        return RemotePlan(self.plan, self.location, {**self.state, **state})

    def get(self) -> Plan:
        """Fetch the plan's state; the plan as it is now, to run or save here. One message.

        The state is gone from the worker then, and this handle of no use.
        """
        paths = list(self.state)
        tensors = self.location.fetch([self.state[path].id for path in paths], delete=True)
        for handle in self.state.values():
            handle.let_go()
        self.state = {}
        return self.plan.with_state(dict(zip(paths, tensors, strict=True)))

    def copy_here(self) -> Plan:
        """As `get`, but everything stays at the worker too. One message."""
        paths = list(self.state)
        tensors = self.location.fetch([self.state[path].id for path in paths], delete=False)
        return self.plan.with_state(dict(zip(paths, tensors, strict=True)))

    def _with_rows(self, args: tuple[Any, ...]) -> tuple[RemotePlan, Sequence[Any]]:
        """What to call, and on what: where a batch was not taken yet, a plan that takes its rows itself."""
        leaves = self.plan.flatten_arguments(args)
        rows = lazy_rows(leaves)
        if rows is None:
            return self, leaves
        found = {
            i: leaf.whole
            for i, leaf in enumerate(leaves)
            if isinstance(leaf, RowsTensor) and leaf.rows is rows and leaf.location is self.location
        }
        plan = on_rows(self.plan, tuple(found)) if found else None
        if plan is None:
            return self, leaves
        self.location.install(plan)
        twin = RemotePlan(plan, self.location, self.state)
        twin._bound = self._bound_on_rows
        return twin, [*(found.get(i, leaf) for i, leaf in enumerate(leaves)), rows.index]

    def _differentiates(self, leaves: Sequence[Any]) -> bool:
        if not torch.is_grad_enabled() or any(p.role is Role.PARAMETER for p in self.plan.graph.updates()):
            return False
        given = [*leaves, *(self.state[p.path] for p in self.plan.graph.state())]
        return any(isinstance(x, RemoteTensor) and x.requires_grad for x in given)

    def _inputs(
        self, leaves: Sequence[Any], state: State
    ) -> tuple[tuple[Handle | Slot, ...], list[torch.Tensor], list[TensorType]]:
        """Every input of the graph as the message names it, the tensors that travel, and their types."""
        from runtime.remote.handle import tensor_type

        arguments = iter(leaves)
        inputs: list[Handle | Slot] = []
        tensors: list[torch.Tensor] = []
        types: list[TensorType] = []
        for port in self.plan.graph.inputs:
            value = self._state_of(port, state) if port.role.is_state else next(arguments)
            if isinstance(value, RemoteTensor):
                self._check_location(port, value)
                inputs.append(Handle(value.id))
                types.append(value.tensor_type)
            elif isinstance(value, torch.Tensor):
                types.append(tensor_type(value))
                tensors.append(value.detach())
                inputs.append(Slot(len(tensors) - 1))
            else:
                raise InputError(
                    f"input {port.path!r} must be a tensor, {port.value.type}, got a {type(value).__name__}"
                )
        return tuple(inputs), tensors, types

    def _bind(self, types: list[TensorType]) -> dict[str, int]:
        """The size of each dim for inputs of these types; looked up where they came before."""
        key = tuple(types)
        bindings = self._bound.get(key)
        if bindings is None:
            bindings = bind(self.plan.graph, types)
            if len(self._bound) >= _REMEMBERED:
                self._bound.clear()
            self._bound[key] = bindings
        return bindings

    def _state_of(self, port: Input, state: State) -> Any:
        found = state.get(port.path, self.state.get(port.path))
        if found is None:
            raise InputError(
                f"plan {self.name!r} needs the state {port.path!r} ({port.value.type}), which it was not "
                "given"
            )
        return found

    def _check_location(self, port: Input, value: RemoteTensor) -> None:
        if value.location is not self.location:
            raise WrongWorker(
                f"plan {self.name!r} is at {self.location.id!r}, but input {port.path!r} is at "
                f"{value.location.id!r}: move it, as in x.move({self.location.id}), or send the plan there"
            )

    def __repr__(self) -> str:
        state = f"{len(self.state)} state tensors"
        return f"<RemotePlan {self.name} at {self.location.id}, id {self.id[:12]}, {state}>"


def own(values: Sequence[Any]) -> list[torch.Tensor]:
    """Values of one reply as tensors; each in memory of its own, so that none keeps the whole frame alive."""
    return [value.clone() if len(values) > 1 else value for value in values]
