"""`RemoteOptimizer`: a torch.optim optimizer whose state stays at the workers, kept apart for each.

How classes update is planc's: an op, or their own step as a plan. What is sent for a step is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn, optim

from planc.capture.optimizers import Update, rule_of
from planc.errors import InputError
from planc.ir import type_of
from planc.plans import Plan
from runtime.messages import Body, Gradient, Handle, List, Run, Slot, Step, Steps
from runtime.remote.module import RemoteModule
from runtime.remote.resolve import attribute
from runtime.remote.tensor import RemoteTensor
from runtime.remote.update import UpdatePlans

if TYPE_CHECKING:
    from runtime.remote.handle import WorkerHandle

State = dict[str, dict[str, RemoteTensor]]
"""By the path of a parameter, its state tensors by name."""


class RemoteOptimizer:
    """Updates a `RemoteModule` where it is. A step is one message, and so is ``zero_grad``.

    The state of each worker (momenta, moments, counts) never leaves it, so that one optimizer serves a model
    that travels between workers. For some classes what it starts from, and the plan of an update, are sent
    to a worker with the first step there.

    >>> opt = RemoteOptimizer(model, torch.optim.Adam, lr=0.1)
    >>> opt = RemoteOptimizer(model, torch.optim.NAdam, [{"params": ["fc1"], "lr": 0.1}, {"params": ["fc2"]}])
    >>> schedule = torch.optim.lr_scheduler.StepLR(opt.local, 10)

    Args:
        model: the module to update.
        cls: a class of ``torch.optim``.
        groups: parameter groups with options of their own, as torch.optim takes them; but ``params`` are the
            paths of parameters, or of modules for all below them. One group of all where not given.
        **options: the optimizer's own, such as ``lr``; a group's come first.

    Attributes:
        local: an optimizer of the class that holds the options, ``param_groups``, in the order given: what
            learning-rate schedulers take. Its parameters only stand for the model's.

    Raises:
        CaptureError: the class's update cannot be a plan (LBFGS, SparseAdam); says why.
        InputError: a path that the model does not have, or one in two groups.
    """

    def __init__(
        self,
        model: RemoteModule,
        cls: type[optim.Optimizer],
        groups: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        self._model = model
        self._paths = _paths_of(model, groups)
        like = {
            path: nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device="meta"))
            for path, p in model.named_parameters()
        }
        made: Any = cls(  # torch's own class checks the options
            [
                {**given, "params": [like[path] for path in paths]}
                for given, paths in zip(groups or [{}], self._paths, strict=True)
            ],
            **options,
        )
        self.local: optim.Optimizer = made
        for group in made.param_groups:
            rule_of(made, group)
        self._plans = UpdatePlans(made)
        self._state: dict[str, tuple[WorkerHandle, State]] = {}

    @property
    def lr(self) -> float:
        """The learning rate, of the first group; setting it sets that of all."""
        return self.local.param_groups[0]["lr"]

    @lr.setter
    def lr(self, value: float) -> None:
        for group in self.local.param_groups:
            group["lr"] = value

    def zero_grad(self) -> None:
        """Forget the gradients of the model's parameters. One message."""
        self._model.zero_grad()

    def step(self) -> None:
        """Update the parameters that have a gradient, where they are. One message.

        Raises:
            InputError: the model is not at a worker.
        """
        worker = self._worker()
        parameters = self._parameters()
        known = self._state.get(worker.id)
        state = known[1] if known is not None and known[0] is worker else self._begin(worker, parameters)
        parts: list[Step | Run] = []
        tensors: list[torch.Tensor] = []
        for group, paths in zip(self.local.param_groups, self._paths, strict=True):
            trained = [path for path in paths if path in parameters]
            rule = rule_of(self.local, group)
            if isinstance(rule, Update):
                parts.append(_step(rule, [parameters[p] for p in trained], [state[p] for p in trained]))
            else:
                parts += self._runs(worker, group, {p: parameters[p] for p in trained}, state, tensors)
        body: Body = parts[0] if len(parts) == 1 and isinstance(parts[0], Step) else Steps(tuple(parts))
        worker.request(body, tensors)
        self.local.step()  # nothing there has a gradient; schedulers want to know

    def forget(self) -> None:
        """Free the state at all workers, with the next message to each."""
        self._state = {}

    def state_dict(self) -> dict[str, Any]:
        """The options and the state at the worker where the model is, as torch.optim's. Two messages.

        Raises:
            InputError: the model is not at a worker.
            PermissionDenied: the state was computed from private values.
        """
        worker = self._worker()
        found: State = self._state.get(worker.id, (worker, State()))[1]
        there = {info.id for info in worker.infos(List())}  # what was never updated has no state
        held = [(p, n, t.id) for p, state in found.items() for n, t in state.items() if t.id in there]
        tensors = iter(worker.fetch([id for _, _, id in held], delete=False))
        by_path: dict[str, dict[str, torch.Tensor]] = {}
        for path, name, _ in held:
            by_path.setdefault(path, {})[name] = next(tensors)
        order = [path for paths in self._paths for path in paths]
        state = {i: by_path[path] for i, path in enumerate(order) if path in by_path}
        return {"state": state, "param_groups": self.local.state_dict()["param_groups"]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over options, and state for the worker where the model is: what `state_dict` gave.

        One message.

        Raises:
            InputError: the model is not at a worker, or the state is that of another optimizer or model.
        """
        worker = self._worker()
        try:
            self.local.load_state_dict({"state": {}, "param_groups": state["param_groups"]})
        except (ValueError, KeyError) as error:
            raise InputError(f"the state does not fit this optimizer: {error}") from None
        order = [path for paths in self._paths for path in paths]
        parameters = self._parameters()
        given = {order[i]: dict(held) for i, held in state["state"].items()}
        fresh = self._fresh(parameters)
        for path, held in given.items():
            if path not in fresh or not set(held) <= set(fresh[path]):
                raise InputError(f"the state has {sorted(held)} for {path!r}, which this optimizer has not")
            for name, tensor in held.items():
                want = fresh[path][name]
                if tensor.shape != want.shape:
                    raise InputError(f"{path!r} wants {name} of {list(want.shape)}, got {list(tensor.shape)}")
                fresh[path][name] = torch.as_tensor(tensor).to(want.dtype)
        self._state[worker.id] = worker, _put(worker, fresh)

    def _worker(self) -> WorkerHandle:
        worker = self._model.location
        if worker is None:
            raise InputError(
                "the model is not at a worker: send it first, or use torch.optim for a local model"
            )
        return worker

    def _parameters(self) -> dict[str, RemoteTensor]:
        """The parameters that are trained, by path."""
        return {path: p for path, p in self._model.named_parameters() if p.requires_grad}

    def _fresh(self, parameters: Mapping[str, RemoteTensor]) -> dict[str, dict[str, torch.Tensor]]:
        """What each parameter's state starts from."""
        out: dict[str, dict[str, torch.Tensor]] = {}
        for group, paths in zip(self.local.param_groups, self._paths, strict=True):
            rule = rule_of(self.local, group)
            for path in paths:
                if path in parameters:
                    p = parameters[path]
                    out[path] = rule.state_of(torch.zeros(p.shape, dtype=p.dtype))
        return out

    def _begin(self, worker: WorkerHandle, parameters: Mapping[str, RemoteTensor]) -> State:
        """Handles to the state at a worker that has none yet. It is sent where it does not start as zeros."""
        fresh = self._fresh(parameters)
        rules = [rule_of(self.local, group) for group in self.local.param_groups]
        zeros = all(not bool(x.any()) for state in fresh.values() for x in state.values())
        made = (
            {path: _handles(worker, held) for path, held in fresh.items()}
            if zeros and all(isinstance(rule, Update) for rule in rules)
            else _put(worker, fresh)
        )
        self._state[worker.id] = worker, made
        return made

    def _runs(
        self,
        worker: WorkerHandle,
        group: Mapping[str, Any],
        parameters: Mapping[str, RemoteTensor],
        state: State,
        tensors: list[torch.Tensor],
    ) -> list[Run]:
        """A run of a plan for each parameter; the learning rate travels along, once."""
        tensors.append(torch.tensor(float(group["lr"]), dtype=torch.float64))
        rate = Slot(len(tensors) - 1)
        out: list[Run] = []
        for path, parameter in parameters.items():
            held = state[path]
            plan: Plan = self._plans.of(
                group, parameter.tensor_type, {n: t.tensor_type for n, t in held.items()}
            )
            worker.install(plan)
            inputs = (Handle(parameter.id), Gradient(parameter.id), *(Handle(t.id) for t in held.values()))
            out.append(Run(plan.id, (*inputs, rate) if self._plans.takes_rate else inputs, ()))
        return out


def _paths_of(model: RemoteModule, groups: Sequence[Mapping[str, Any]] | None) -> list[list[str]]:
    """The parameters of each group, by path."""
    every = [path for path, _ in model.named_parameters()]
    if groups is None:
        return [every]
    out: list[list[str]] = []
    taken: set[str] = set()
    for group in groups:
        paths: list[str] = []
        for given in group["params"]:
            found = [path for path in every if path == given or path.startswith(f"{given}.")]
            if not found:
                raise InputError(f"the model has no parameter or module {given!r}; it has {every}")
            paths += found
        if len(taken | set(paths)) != len(taken) + len(paths):
            raise InputError("a parameter is in two groups, or twice in one")
        taken |= set(paths)
        out.append(paths)
    return out


def _step(
    rule: Update, parameters: Sequence[RemoteTensor], states: Sequence[dict[str, RemoteTensor]]
) -> Step:
    ids = [() if slot is None else tuple(state[slot[0]].id for state in states) for slot in rule.slots]
    attrs = {name: attribute(value) for name, value in rule.attrs.items()}
    return Step(rule.op, attrs, rule.lr, tuple(p.id for p in parameters), tuple(ids))


def _put(worker: WorkerHandle, fresh: Mapping[str, Mapping[str, torch.Tensor]]) -> State:
    """Send state to a worker, in one message."""
    tensors = [tensor for state in fresh.values() for tensor in state.values()]
    handles = iter(worker.send_all(tensors) if tensors else [])
    return {path: {name: next(handles) for name in state} for path, state in fresh.items()}


def _handles(worker: WorkerHandle, state: Mapping[str, torch.Tensor]) -> dict[str, RemoteTensor]:
    """Handles to state that the worker will make."""
    out: dict[str, RemoteTensor] = {}
    for name, tensor in state.items():
        type = type_of(tensor)
        assert type is not None  # state is made of numbers that plans have
        out[name] = RemoteTensor(worker, worker.new_id(), type)
    return out
