"""What a server optimizer does to one parameter, put together for a whole model: a plan that runs here.

Knows no particular optimizer: those are in `servers`.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch

from planc import parse
from planc.capture.trace import unique_name
from planc.errors import InputError
from planc.ir import DType, Graph, Role, TensorType, Value, type_of
from planc.ir.builder import GraphBuilder
from planc.ir.inline import inline
from planc.ir.program import Program
from planc.plans import Plan

Model = Mapping[str, torch.Tensor]
"""Parameters and buffers by path."""


@dataclass(frozen=True)
class Rule:
    """What happens to one parameter, in the language of plans.

    ``statements`` may use ``x`` and ``delta``, the parameter and how far the mean is from it (both f64), and
    what is ``kept``; for each of that they define ``new_<name>``. ``result`` is the new parameter.
    """

    name: str
    result: str
    kept: Mapping[str, float] = field(default_factory=dict[str, float])
    statements: str = ""

    def of(self, t: TensorType) -> Graph:
        """The rule for a parameter of one type: from it, its mean and what is kept to all of that anew."""
        wide = TensorType(DType.F64, t.shape)
        inputs = "".join(f", {name}: {wide}" for name in self.kept)
        results = "".join(f", new_{name}" for name in self.kept)
        text = f"""
            plan {self.name}(model: {t}, mean: {t}{inputs}) {{
              x = to(model, dtype=f64)
              delta = to(mean, dtype=f64) - x
              {self.statements}
              return to({self.result}, dtype={t.dtype}){results}
            }}"""
        return parse(text, f"<{self.name}>").graph


@dataclass(frozen=True)
class ServerUpdate:
    """A server optimizer for one model: a plan, and what it starts from.

    Attributes:
        plan: its state are the model by path and what the server keeps of each parameter
            (``<path>.momentum``, ...: f64 tensors of the parameter's shape); its arguments are the means,
            ``mean.<path>``, in the order of ``paths``; it returns nothing else.
        paths: those of the model, in order.
        parameters: those of them that the rule updates; the others become the plain mean.
        kept: what the server keeps of each parameter, by name, and its first value.
    """

    plan: Plan
    paths: tuple[str, ...]
    parameters: tuple[str, ...]
    kept: Mapping[str, float]

    def initial(self, model: Model) -> dict[str, torch.Tensor]:
        """The server's state before the first round, by path: tensors that a checkpoint can hold.

        Raises:
            InputError: the model has other paths than the one that this was made for.
        """
        self._check("model", model)
        return {
            f"{path}.{name}": torch.full_like(model[path], first, dtype=torch.float64, requires_grad=False)
            for path in self.parameters
            for name, first in self.kept.items()
        }

    def step(
        self, model: Model, mean: Model, state: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """One round's update, run here: the new model and the new state of the server.

        Args:
            model: what the round started from.
            mean: the weighted mean of the clients' models, with the same paths, shapes and dtypes.
            state: of the server, from `initial` or the round before.

        Raises:
            InputError: paths, shapes or dtypes are not those of the model that this was made for, or a
                tensor of the state is missing.
        """
        self._check("model", model)
        self._check("mean", mean)
        run = copy.copy(self.plan)  # with its id, which takes longer to compute than a small model's update
        run.state = {**state, **model}
        run(*(mean[path] for path in self.paths))
        return {path: run.state[path] for path in self.paths}, {path: run.state[path] for path in state}

    def _check(self, what: str, given: Model) -> None:
        if set(given) == set(self.paths):
            return
        missing = [path for path in self.paths if path not in given]
        strange = [path for path in given if path not in self.paths]
        raise InputError(
            f"the {what} must have the paths {list(self.paths)} that the server's update was made for; "
            + (f"{missing[0]!r} is missing" if missing else f"it has no {strange[0]!r}")
        )


def server_update(model: Model, parameters: Collection[str], rule: Rule | None) -> ServerUpdate:
    """The update of ``parameters`` by a rule; without one, and for the rest of the model, it is the mean.

    Raises:
        InputError: what the server would keep of a parameter is at a path of the model, or a tensor of the
            model has a dtype that plans do not have.
    """
    types = {path: _type_of(path, tensor) for path, tensor in model.items()}
    plan = Plan(Program(_Composition(types, parameters, rule).graph(), {})).optimized()
    ruled = tuple(path for path in types if path in parameters)
    return ServerUpdate(plan, tuple(types), ruled, rule.kept if rule else {})


def _type_of(path: str, tensor: torch.Tensor) -> TensorType:
    t = type_of(tensor)
    if t is None:
        raise InputError(f"the model's {path!r} is {tensor.dtype}, which plans do not have")
    return t


class _Composition:
    """A rule put together for all of a model: one program."""

    def __init__(self, types: Mapping[str, TensorType], ruled: Collection[str], rule: Rule | None) -> None:
        self._types, self._ruled, self._rule = types, ruled, rule
        self._builder = GraphBuilder(rule.name if rule else "fedavg")
        self._names: set[str] = set()
        self._graphs: dict[TensorType, Graph] = {}

    def graph(self) -> Graph:
        means = {path: self._input(f"mean.{path}", t, Role.ARGUMENT) for path, t in self._types.items()}
        model = {path: self._input(path, t, self._role(path)) for path, t in self._types.items()}
        kept = self._kept()
        held = {
            path: {name: self._input(name, t, Role.OPTIMIZER) for name, t in slots.items()}
            for path, slots in kept.items()
        }
        new_model, new_kept = dict(means), dict[str, Value]()
        for path in self._types:
            if self._rule and path in self._ruled:
                graph = self._of(self._types[path], self._rule)
                slots = held[path]
                new, *rest = inline(self._builder, graph, [model[path], means[path], *slots.values()])
                new_model[path] = new
                new_kept.update(zip(slots, rest, strict=True))
        for path, value in new_model.items():
            self._output(path, value, self._role(path))
        for path, value in new_kept.items():
            self._output(path, value, Role.OPTIMIZER)
        return self._builder.build()

    def _kept(self) -> dict[str, dict[str, TensorType]]:
        """By parameter, the paths and types of what the server keeps of it."""
        names = self._rule.kept if self._rule else ()
        out = {
            path: {f"{path}.{name}": TensorType(DType.F64, t.shape) for name in names}
            for path, t in self._types.items()
            if path in self._ruled
        }
        for slots in out.values():
            for path in slots:
                if path in self._types:
                    raise InputError(
                        f"the model has a tensor at {path!r}, where the server keeps state of its own; "
                        "rename it"
                    )
        return out

    def _role(self, path: str) -> Role:
        return Role.PARAMETER if path in self._ruled else Role.BUFFER

    def _of(self, t: TensorType, rule: Rule) -> Graph:
        if t not in self._graphs:
            self._graphs[t] = rule.of(t)
        return self._graphs[t]

    def _input(self, path: str, t: TensorType, role: Role) -> Value:
        return self._builder.input(unique_name(path, self._names), t, role, path)

    def _output(self, path: str, value: Value, role: Role) -> None:
        self._builder.output(value, unique_name(f"new_{path}", self._names), role, path)
