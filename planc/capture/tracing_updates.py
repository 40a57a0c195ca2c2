"""Updates of torch.optim optimizers without an op of their own: the optimizer's own step, traced as a graph.

One graph a parameter type: from a parameter, its gradient and its state to their new values. The optimizer
runs in its capturable form, which keeps counts in tensors. Adafactor, which has none, is in `adafactor`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn, optim

from planc.capture.adafactor import adafactor
from planc.capture.dynamic import DynamicDims
from planc.capture.export import alone, export, quiet
from planc.capture.importer import Importer, Port
from planc.capture.nadam import nadam
from planc.capture.rules import RULES
from planc.errors import CaptureError
from planc.ir import Graph, Role, Value
from planc.ir.builder import GraphBuilder
from planc.ir.inline import inline

_REFUSED: dict[type, str] = {
    optim.LBFGS: "it evaluates the loss several times in one step, as often as its values tell it, and "
    "a plan does the same work at every step",
    optim.SparseAdam: "it takes sparse gradients, which plans do not have; Adam with dense ones does the "
    "same where every row is in use",
}
_INSTEAD = "Use another optimizer of torch.optim, Adam or SGD for instance"
State = dict[str, torch.Tensor]
Step = Callable[[torch.Tensor, torch.Tensor, State, Mapping[str, Any]], tuple[torch.Tensor, State]]
"""New parameter and state from parameter, gradient, state and options."""


class TracedUpdate:
    """How one parameter group is updated by the nodes that its optimizer's step comes down to."""

    def __init__(self, cls: type[optim.Optimizer], group: Mapping[str, Any]) -> None:
        """Of an optimizer class of torch.optim and the options of one group of it.

        Raises:
            CaptureError: its step cannot be a plan.
        """
        _check(cls)
        self._class = cls
        self._options = {name: value for name, value in group.items() if name != "params"}
        self.lr = float(group["lr"])
        self._graphs: dict[tuple[Any, ...], Graph] = {}
        self._names: dict[tuple[Any, ...], list[str]] = {}

    def names_of(self, parameter: torch.Tensor) -> list[str]:
        """The names of the state tensors of a parameter, in order."""
        key = (parameter.shape, parameter.dtype)
        if key not in self._names:
            self._names[key] = list(self.state_of(parameter))
        return self._names[key]

    def state_of(self, parameter: torch.Tensor) -> State:
        """The state that the optimizer makes for a parameter before its first update.

        Raises:
            CaptureError: it keeps something else than tensors.
        """
        zeros = nn.Parameter(torch.zeros_like(parameter, requires_grad=False))
        zeros.grad = torch.zeros_like(zeros, requires_grad=False)
        optimizer = self._made(zeros)
        first = _FirstValues()
        optimizer.state[zeros] = first
        optimizer.step()
        for name, value in first.seen.items():
            if not isinstance(value, torch.Tensor):
                raise self._refusal(f"its state {name!r} is a {type(value).__name__} and no tensor")
        self._names[parameter.shape, parameter.dtype] = list(first.seen)
        return first.seen

    def emit(
        self,
        builder: GraphBuilder,
        parameters: Sequence[Value],
        grads: Sequence[Value],
        states: Sequence[Mapping[str, Value]],
        lr: Value | float,
    ) -> list[tuple[Value, dict[str, Value]]]:
        """Append the update of each parameter; returns new parameters and states.

        Raises:
            CaptureError: the optimizer's step cannot be a plan.
        """
        rate = [lr] if isinstance(lr, Value) else []
        out: list[tuple[Value, dict[str, Value]]] = []
        for parameter, grad, state in zip(parameters, grads, states, strict=True):
            values = [parameter, grad, *state.values(), *rate]
            key = (*(value.type for value in values), *state)
            graph = self._graphs.get(key)
            if graph is None:
                graph = self._graphs[key] = self._trace(values, list(state))
            new, *rest = inline(builder, graph, values)
            out.append((new, dict(zip(state, rest, strict=True))))
        return out

    def _numbers(self, parameter: torch.Tensor) -> set[str]:
        """Which entries of the state are numbers, of a parameter without dims too."""
        probe = parameter if parameter.dim() else parameter.new_zeros(2)
        return {name for name, tensor in self.state_of(probe).items() if tensor.dim() == 0}

    def _made(self, parameter: torch.Tensor) -> optim.Optimizer:
        """The optimizer over one parameter, with the group's options."""
        made: Any = self._class([parameter])  # pyright: ignore[reportCallIssue] -- those of torch.optim take params
        group = made.param_groups[0]
        group |= self._options
        for name, value in {"foreach": False, "fused": False, "differentiable": False}.items():
            if name in group:
                group[name] = value
        return made

    def _step(
        self, parameter: torch.Tensor, grad: torch.Tensor, state: State, options: Mapping[str, Any]
    ) -> tuple[torch.Tensor, State]:
        optimizer = self._made(parameter)
        group = optimizer.param_groups[0]
        group["lr"] = options["lr"]
        if "capturable" in group:
            group["capturable"] = True
        parameter.grad = grad
        optimizer.state[parameter] = state
        optimizer.step()
        return parameter, state

    def _trace(self, values: Sequence[Value], names: Sequence[str]) -> Graph:
        """The update of one parameter as a graph without constants."""
        examples = [torch.zeros(value.type.at({}), dtype=value.type.dtype.torch) for value in values]
        step = _BY_HAND.get(self._class, self._step)
        hint = " (it may do with a fixed learning rate)" if len(values) > 2 + len(names) else ""
        stepping = _Stepping(step, self._options, names, self._numbers(examples[0]))
        fixed = DynamicDims(tuple({} for _ in examples))
        try:
            with alone, quiet():
                program = torch.export.export(stepping, tuple(examples), strict=False)
                module = program.module(check_guards=False)
        except Exception as error:  # torch has no one error for this
            raise self._refusal(f"PyTorch could not trace its step: {type(error).__name__}{hint}") from error
        ports = [Port(f"x{i}", Role.ARGUMENT, f"x{i}", example) for i, example in enumerate(examples)]
        try:
            exported = export(lambda *flat: list(module(*flat)), examples, fixed)
            importer = Importer("update", exported, ports, (), fixed, RULES, frozenset())
        except CaptureError as error:
            first = str(error).splitlines()[0]
            raise self._refusal(f"{first}{hint}") from error
        if importer.constants:
            raise self._refusal("its step brings along constant tensors")
        for i, entry in enumerate(importer.outputs):
            importer.builder.output(entry, f"r{i}")
        return importer.builder.build()

    def _refusal(self, reason: str) -> CaptureError:
        return CaptureError(f"plans cannot have {self._class.__name__}: {reason}. {_INSTEAD}")


def _check(cls: type[optim.Optimizer]) -> None:
    for refused, reason in _REFUSED.items():
        if issubclass(cls, refused):
            raise CaptureError(f"plans cannot have {cls.__name__}: {reason}. {_INSTEAD}")
    if getattr(optim, cls.__name__, None) is not cls:
        raise CaptureError(
            f"plans cannot have {cls.__name__}: it is no optimizer of torch.optim, so nothing is known of "
            f"the state that it starts from. {_INSTEAD}"
        )


class _FirstValues(dict[str, Any]):
    """An optimizer's state of one parameter that remembers the first value of each entry."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: State = {}

    def __setitem__(self, name: str, value: Any) -> None:
        self.seen.setdefault(name, value.clone() if isinstance(value, torch.Tensor) else value)
        super().__setitem__(name, value)


class _Stepping(nn.Module):
    """One update as a function of flat tensors, for torch.export.

    Numbers of state (counts, products) are f64 within it, as Python's are in the optimizer's usual form: in
    f32 a capturable step would lose digits that the usual one has.
    """

    def __init__(
        self, step: Step, options: Mapping[str, Any], names: Sequence[str], numbers: set[str]
    ) -> None:
        super().__init__()
        self._step, self._options, self._names, self._numbers = step, dict(options), tuple(names), numbers

    def forward(self, parameter: torch.Tensor, grad: torch.Tensor, *rest: torch.Tensor) -> list[torch.Tensor]:
        held = dict(zip(self._names, rest, strict=False))
        lr = rest[len(self._names)] if len(rest) > len(self._names) else float(self._options["lr"])
        with torch.no_grad():
            state = {k: x.to(torch.float64) if k in self._numbers else x.clone() for k, x in held.items()}
            new, state = self._step(parameter.clone(), grad.clone(), state, {**self._options, "lr": lr})
            return [new.to(parameter.dtype), *(state[k].to(x.dtype) for k, x in held.items())]


_BY_HAND: dict[type, Step] = {optim.Adafactor: adafactor, optim.NAdam: nadam}
