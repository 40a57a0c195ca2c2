"""The functions that users call, each a few lines over the room that does the work."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import nn, optim

from planc import capture, codec, verifier
from planc.capture import GradTransform, clip_grad_norm, clip_grad_value
from planc.capture.dynamic import Dynamic
from planc.capture.export import Progress
from planc.capture.step import LossFunction
from planc.capture.trace import Ranges, parameter_names
from planc.errors import CaptureError
from planc.ir.program import Program
from planc.plans import Buildable, Plan
from planc.text import parse as parse_text

Shape = Sequence[int]
_DISTINCT = 1009
"""The least size of a dim in examples that only tell dims apart: they take no memory."""


def trace(
    target: Callable[..., Any] | nn.Module,
    *example_inputs: Any,
    dynamic: Dynamic = None,
    ranges: Ranges = None,
    name: str | None = None,
    optimize: bool = True,
    progress: Progress | None = None,
) -> Plan:
    """Capture a function, or a module's forward pass, as a plan.

    Args:
        target: ordinary PyTorch code; a module is captured in the mode (train or eval) that it is in, and its
            parameters and buffers become the plan's state.
        *example_inputs: tensors, numbers and nested tuples, lists and dicts of them; only their structure,
            dtypes and fixed sizes matter. Numbers are fixed.
        dynamic: which dims vary: ``{"x": {0: "b"}}`` by input name, or ``{"x": {0: "b*2"}}`` by what it is of
            others; by default the leading dims, as one dim ``b`` where they are equal; False for none. Dims
            of different names that the code wants related become so (``where n == m``), as in the examples.
        ranges: the range of each named dim, ``{"b": (1, 1024)}``; 1..2^31-1 by default.
        name: the plan's name; the target's own by default.
        optimize: whether to run the passes.
        progress: called with the stage and the count of calls traced so far, now and then.

    Raises:
        CaptureError: the code cannot be a plan; shows the line and says what to do.
        UnsupportedOpError: it uses an operation outside the op table.
    """
    options = capture.Options(dynamic, ranges, name, progress)
    return Plan.from_captured(capture.trace(target, example_inputs, options), optimize)


def train_step(
    module: nn.Module,
    loss_fn: LossFunction,
    optimizer: optim.Optimizer,
    *example_inputs: Any,
    targets: int = 1,
    lr_input: bool = False,
    grad_transform: GradTransform | None = None,
    micro_batch: int | None = None,
    dynamic: Dynamic = None,
    ranges: Ranges = None,
    name: str | None = None,
    optimize: bool = True,
    progress: Progress | None = None,
) -> Plan:
    """Capture one whole training step: forward, loss, gradients, and the optimizer's update.

    The plan takes the module's inputs and then the loss function's targets, and returns what ``loss_fn``
    does; parameters, buffers, optimizer state and (where the module draws random numbers) a key are its
    state.

    >>> step = planc.train_step(net, F.nll_loss, torch.optim.SGD(net.parameters(), lr=0.1), x, y)
    >>> loss = step(x, y)

    Args:
        module: its parameters as they are now are where the plan starts; the module itself is not changed.
        loss_fn: called as ``loss_fn(module(*inputs), *targets)``; returns the loss (a scalar), a tuple whose
            first entry it is, or a dict with the key ``"loss"``.
        optimizer: one of torch.optim, except ``LBFGS`` and ``SparseAdam``, over parameters of ``module``.
        *example_inputs: the inputs, then the targets.
        targets: how many of them are targets.
        lr_input: take the learning rate as the last argument, an ``f64[]`` (or a number) in place of the
            optimizer's, so that a schedule needs no other plan; with several parameter groups a list of them.
        grad_transform: what happens to the gradients before the update: `clip_grad_norm`, `clip_grad_value`,
            or any traceable function from gradients by path to gradients by path.
        micro_batch: accumulate gradients: forward and backward run over so many rows at a time, and one
            update follows from the mean of their gradients. Losses are averaged over micro-batches, counts
            summed.
        dynamic, ranges, name, optimize, progress: as for `trace`.

    Raises:
        CaptureError: the code cannot be a plan, or the loss or optimizer does not fit.
    """
    options = capture.Options(dynamic, ranges, name, progress)
    how = capture.StepOptions(targets, lr_input, grad_transform, micro_batch)
    captured = capture.train_step(module, loss_fn, optimizer, example_inputs, options, how)
    return Plan.from_captured(captured, optimize)


def epoch(
    step: Plan, batch_size: int = 64, shuffle: bool = True, epochs: int = 1, drop_last: bool = False
) -> Plan:
    """A plan that runs ``step`` over all batches of its data: a round of local training in one call.

    Its arguments are the step's, with ``n`` rows instead of a batch; its results are the step's, one row a
    step (and with ``epochs`` > 1 a leading row an epoch). Its state is the step's, and with ``shuffle`` a key
    ``rng``, so that the same state gives the same order; `planc.key` makes one from a seed.

    Raises:
        PlanError: the step has no batch dim, or a number is out of range.
    """
    graph = capture.epoch(step.graph, batch_size, shuffle, epochs, drop_last)
    state = dict(step.state)
    if any(port.path == capture.KEY for port in graph.state()):
        state.setdefault(capture.KEY, key(0))
    return Plan(Program(graph, step.constants), state).optimized()


def key(seed: int) -> torch.Tensor:
    """A random key, an ``i64[]`` tensor: what a plan's ``rng`` state holds."""
    return capture.make_key(seed)


def optimize(plan: Plan) -> Plan:
    """The plan after all passes: the same results, fewer and cheaper nodes."""
    return plan.optimized()


def verify(plan: Plan) -> None:
    """Check every rule of the IR.

    Raises:
        PlanError: a rule is broken; says where, what was expected and what came.
    """
    verifier.verify(plan.graph)


def parse(text: str, file: str = "<text>") -> Plan:
    """The last plan of a text in the language.

    Raises:
        SourceError: the text is not in the language or means no plan; shows file, line, column and a hint.
    """
    module = parse_text(text, file, capture.differentiate)
    return Plan(Program(module.main, module.constants))  # parsing has verified it


def load(path: str | os.PathLike[str]) -> Plan:
    """The plan in a ``.planc`` file, with its constants and state.

    Raises:
        DecodeError: the file is damaged or is no artifact.
        PlanError: what it holds is not a valid plan.
    """
    graph, constants, state = codec.load(path)
    return Plan(Program(graph, constants), state)


def load_exported(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    optimize: bool = True,
    progress: Progress | None = None,
) -> Plan:
    """The forward pass in a ``.pt2`` file that ``torch.export.save`` wrote, as a plan.

    Dims vary as they do in the file.

    torch may run code that such a file brings along: load only files that you trust.

    Raises:
        DecodeError: the file is no exported program.
        CaptureError: the program cannot be a plan.
    """
    return Plan.from_captured(
        capture.load_exported(path, capture.Options(name=name, progress=progress)), optimize
    )


class FunctionPlan(Buildable):
    """A function that is, or on ``build`` becomes, a plan. Made by `plan`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        functools.update_wrapper(self, function)

    def build(self, *example_inputs: Any, dynamic: Dynamic = None) -> Self:
        """Capture the function for inputs like these; dims as for `trace`."""
        self._plan = trace(self.function, *example_inputs, dynamic=dynamic)
        return self

    def build_shapes(self, shapes: Sequence[Shape], dtypes: Sequence[torch.dtype] | None = None) -> Self:
        """Capture the function for inputs of these shapes, -1 for a dim that varies.

        Dims that vary are taken to be independent; where the function does not work so, those at one position
        are taken to be equal, and where that fails all of them.

        Raises:
            ValueError: a dim below -1, or a dtype too many or too few.
            CaptureError: the function cannot be a plan.
        """
        kinds = list(dtypes) if dtypes is not None else [torch.get_default_dtype()] * len(shapes)
        if len(kinds) != len(shapes):
            raise ValueError(f"args_dtype has {len(kinds)} entries for {len(shapes)} shapes")
        for i, shape in enumerate(shapes):
            for dim in shape:
                if dim < -1:
                    raise ValueError(
                        f"args_shape[{i}] is {tuple(shape)}: a dim is a size, or -1 if it varies; got {dim}"
                    )
        names = parameter_names(self.function, len(shapes))
        failure: CaptureError | None = None
        for naming in (lambda i, d: f"{names[i]}{d}", lambda i, d: f"d{d}", lambda i, d: "d"):
            dynamic = {
                names[i]: {d: naming(i, d) for d, size in enumerate(shape) if size == -1}
                for i, shape in enumerate(shapes)
            }
            # No size is another or a multiple of it, or dims would be related that are tried as independent.
            varying = dict.fromkeys(called for named in dynamic.values() for called in named.values())
            sizes = {called: _DISTINCT + i for i, called in enumerate(varying)}
            examples = [
                torch.zeros((), dtype=kind).expand(
                    [sizes[naming(i, d)] if size == -1 else size for d, size in enumerate(shape)]
                )
                for i, (shape, kind) in enumerate(zip(shapes, kinds, strict=True))
            ]
            try:
                return self.build(*examples, dynamic=dynamic)
            except CaptureError as error:
                failure = error
        assert failure is not None
        raise failure

    def __call__(self, *args: Any) -> Any:
        """Run here: as a plan where it is built, else as the plain function."""
        return self.function(*args) if self._plan is None else self._plan(*args)


def plan(
    function: Callable[..., Any] | None = None,
    *,
    args_shape: Sequence[Shape] | None = None,
    args_dtype: Sequence[torch.dtype] | None = None,
) -> Any:
    """Decorator: make a function a plan.

    With ``args_shape`` (one shape an argument, -1 for a dim that varies; dtypes are float32 unless
    ``args_dtype`` says otherwise) it is built at once, without on the first ``build(*example_inputs)``.

    >>> @planc.plan(args_shape=[(-1,), (-1,)])
    ... def calcu(x, y):
    ...     return (x + y) / 2

    Raises:
        ValueError: a dim below -1.
        CaptureError: the function cannot be a plan.
    """

    def decorate(f: Callable[..., Any]) -> FunctionPlan:
        made = FunctionPlan(f)
        return made if args_shape is None else made.build_shapes(args_shape, args_dtype)

    return decorate if function is None else decorate(function)


class PlanModule(Buildable, nn.Module):
    """An ``nn.Module`` that can be built into a plan of its forward pass.

    Calling it runs the module as any other. ``build`` captures it in the mode that it is in; ``send`` and
    ``save`` take the parameters that it has at that time.
    """

    def build(self, *example_inputs: Any, dynamic: Dynamic = None, ranges: Ranges = None) -> Self:
        """Capture the forward pass for inputs like these; dims as for `trace`."""
        object.__setattr__(self, "_plan", trace(self, *example_inputs, dynamic=dynamic, ranges=ranges))
        return self

    @property
    def plan(self) -> Plan:
        """The plan, with the module's present parameters and buffers.

        Raises:
            NotBuiltError: it is not built yet.
        """
        built = super().plan
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        paths = {port.path for port in built.graph.state()}
        return built.with_state({k: v.detach().clone() for k, v in tensors.items() if k in paths})


__all__ = [
    "FunctionPlan",
    "PlanModule",
    "clip_grad_norm",
    "clip_grad_value",
    "epoch",
    "key",
    "load",
    "load_exported",
    "optimize",
    "parse",
    "plan",
    "trace",
    "train_step",
    "verify",
]
