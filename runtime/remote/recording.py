"""`record`: eager code on remote tensors collected into one plan, sent when one of its values is needed.

What is recorded has no autograd; a training step is a plan of its own (`planc.train_step`).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch

from planc.errors import InputError
from planc.ir import Node, TensorType, Value, type_of
from planc.ir.builder import GraphBuilder, map_operand
from planc.ir.program import Program
from planc.ops import node as checked_node
from planc.plans import Plan
from runtime.messages import Drop, Handle, Keep, Run, Slot

if TYPE_CHECKING:
    from runtime.channels.base import Connection
    from runtime.remote.handle import WorkerHandle

_REMEMBERED = 256
_current: ContextVar[Recording | None] = ContextVar("recording", default=None)
_optimized: OrderedDict[str, Plan] = OrderedDict()


class Recording:
    """What a `record` block collected.

    Attributes:
        plans: by worker id, the plan that was sent there last.
    """

    def __init__(self) -> None:
        self.plans: dict[str, Plan] = {}
        self._workers: dict[int, WorkerHandle] = {}

    @property
    def plan(self) -> Plan:
        """The plan, after it was sent to the one worker whose tensors were used.

        Raises:
            InputError: nothing was sent yet, or to several workers.
        """
        if len(self.plans) != 1:
            raise InputError(f"expected a recording that was sent to one worker, got {sorted(self.plans)}")
        return next(iter(self.plans.values()))

    def send(self) -> None:
        """Send what is recorded and not sent yet: a message a worker, one more where the plan is new."""
        for worker in list(self._workers.values()):
            worker.flush()

    def add(
        self, worker: WorkerHandle, node: Node, values: Mapping[int, Any], ids: tuple[int, ...], grad: bool
    ) -> None:
        """Record an operation; called in place of sending it."""
        if grad:
            raise InputError(
                f"{node.op} on a tensor that requires grad cannot be recorded: record under "
                "torch.no_grad(), or "
                "make the training step a plan with planc.train_step"
            )
        self._workers[id(worker)] = worker
        with worker.pending_lock:
            if worker.pending is None:
                worker.pending = Pending(self)
            worker.pending.add(node, values, ids)


@contextmanager
def record() -> Generator[Recording]:
    """Record the operations of the block instead of sending them: one message then does what took one each.

    >>> with runtime.record():
    ...     z = ((x + y) * 2).sum()
    >>> z.get()          # one plan is sent and run (and installed, the first time)

    Whatever else is asked of a worker sends first what was recorded for it.
    """
    recording = Recording()
    token = _current.set(recording)
    try:
        yield recording
    finally:
        _current.reset(token)


def current() -> Recording | None:
    """The recording that is going on in this thread or task."""
    return _current.get()


class Pending:
    """Operations for one worker that were not sent yet. The worker's ``pending_lock`` guards it.

    Attributes:
        sending: whether they are on their way.
        given_up: the objects whose handles died meanwhile; as operands they are released afterwards.
    """

    def __init__(self, recording: Recording) -> None:
        self.sending = False
        self.given_up: deque[int] = deque()
        self._recording = recording
        self._nodes: list[tuple[Node, dict[int, int], tuple[int, ...]]] = []
        self._inputs: dict[int, int | torch.Tensor] = {}  # by number: an object's id, or a local tensor
        self._types: list[TensorType] = []
        self._numbers: dict[int, int] = {}  # by object id
        self._made: dict[int, int] = {}  # by object id, the numbers of results

    def add(self, node: Node, values: Mapping[int, Any], ids: tuple[int, ...]) -> None:
        """Append an operation whose results have these ids."""
        given = {value.index: self._number(values[value.index]) for value in node.values()}
        first = len(self._types)
        self._types.extend(result.type for result in node.results)
        self._made.update({id: first + i for i, id in enumerate(ids)})
        self._nodes.append((node, given, ids))

    def send(self, worker: WorkerHandle) -> None:
        """Send the operations as one plan: what of their results is still wanted, and all that this needs."""
        self.sending = True
        given_up = set(self.given_up)
        wanted = [id for id in self._made if id not in given_up]
        if wanted:
            self._run(worker, wanted)

    def release(self, connection: Connection) -> None:
        """Let the worker forget what was given up meanwhile. Releasing what it never had does no harm."""
        while self.given_up:
            try:
                connection.release(self.given_up.popleft())
            except IndexError:  # another thread took the last one
                return

    def _run(self, worker: WorkerHandle, wanted: list[int]) -> None:
        plan = self._plan(wanted)
        self._recording.plans[worker.id] = plan
        worker.install(plan)
        tensors: list[torch.Tensor] = []
        inputs: list[Handle | Slot] = []
        for source in self._inputs.values():
            if isinstance(source, torch.Tensor):
                inputs.append(Slot(len(tensors)))
                tensors.append(source.detach())
            else:
                inputs.append(Handle(source))
        results: tuple[Keep | Drop, ...] = tuple(Keep(id) for id in wanted)
        worker.connection.call(Run(plan.id, tuple(inputs), results), tensors)

    def _plan(self, wanted: list[int]) -> Plan:
        builder = GraphBuilder("recorded")
        values: dict[int, Value] = {}
        for i, number in enumerate(self._inputs):
            values[number] = builder.input(f"x{i}", self._types[number])
        for node, given, ids in self._nodes:
            known = {index: values[number] for index, number in given.items()}
            operands = tuple(map_operand(o, lambda v, known=known: known[v.index]) for o in node.operands)
            results = builder.add(checked_node(node.op, operands, dict(node.attrs), builder.next_index))
            values |= {self._made[id]: result for id, result in zip(ids, results, strict=True)}
        for i, id in enumerate(wanted):
            builder.output(values[self._made[id]], f"r{i}")
        plan = Plan(Program(builder.build()))
        found = _optimized.get(plan.id)
        if found is None:
            found = _optimized[plan.id] = plan.optimized()
            if len(_optimized) > _REMEMBERED:
                _optimized.popitem(last=False)
        return found

    def _number(self, value: Any) -> int:
        """The number of an operand; a new input where it is none of the results."""
        if isinstance(value, torch.Tensor):
            type = type_of(value)
            assert type is not None  # resolving the operation checked it
            source: int | torch.Tensor = value.detach().clone()  # as it is now
        else:
            type, source = value.tensor_type, value.id
            known = self._made.get(value.id, self._numbers.get(value.id))
            if known is not None:
                return known
            self._numbers[value.id] = len(self._types)
        number = len(self._types)
        self._types.append(type)
        self._inputs[number] = source
        return number


__all__ = ["Recording", "current", "record"]
