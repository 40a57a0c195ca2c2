"""Epochs: a training step scanned over batches of its data, shuffled by a key, as one plan.

The whole of it is a graph: a permutation drawn from a key, a scan over its batches that gathers rows and runs
the step, and for several epochs a scan around that.
"""

from __future__ import annotations

from planc.capture.trace import KEY
from planc.errors import PlanError
from planc.ir import DimVar, Graph, Input, Output, Role, TensorType, Value, sym
from planc.ir.builder import GraphBuilder
from planc.ir.inline import inline
from planc.ir.rewrite import unified
from planc.ops import node
from planc.ops.randomness import KEY_TYPE

ROWS = "n"


def epoch(
    step: Graph, batch_size: int = 64, shuffle: bool = True, epochs: int = 1, drop_last: bool = False
) -> Graph:
    """A plan that runs ``step`` once for every batch of its data.

    The step's arguments whose leading dim is its batch dim become data of ``n`` rows; others are given to
    every step as they are. Its results are collected, a row a step (and a leading row an epoch, where
    ``epochs`` is more than one). State is carried from step to step.

    Args:
        step: a training step: a graph with state and a named batch dim.
        batch_size: rows a step; the last batch has what is left.
        shuffle: draw a new order of the rows every epoch, from the key ``rng``, which becomes state.
        epochs: how many times to go over the data.
        drop_last: leave out a last batch that is not whole.

    Raises:
        PlanError: the step has no batch dim, or a number is out of range.
    """
    if batch_size < 1 or epochs < 1:
        raise PlanError(f"batch_size and epochs must be at least 1, got {batch_size} and {epochs}")
    step = unified(step)  # data of equally many rows by a relation have one dim for them
    batch = batch_dim(step)
    if not batch.lo <= batch_size <= batch.hi:
        raise PlanError(
            f"batches of {batch_size} rows are outside the step's range "
            f"{batch.name} in {batch.lo}..{batch.hi}"
        )
    return _outer(one_epoch(step, batch, batch_size, shuffle, drop_last), step.name, epochs)


def batch_dim(step: Graph) -> DimVar:
    """The dim that leads the step's first argument."""
    for port in step.arguments():
        for var in step.dims:
            if port.value.type.shape[:1] == (sym(var.name),):
                return var
    raise PlanError(
        f"plan {step.name!r} has no argument with a named leading dim, so its data cannot be batched"
    )


def one_epoch(
    step: Graph, batch: DimVar, size: int, shuffle: bool = False, drop_last: bool = False, named: str = ROWS
) -> Graph:
    """One epoch over data of ``named`` rows; its inputs are in a scan's order, carried state first."""
    rows = sym(named)
    others = [var for var in step.dims if var.name != batch.name]
    if any(var.name == named for var in others):
        raise PlanError(f"plan {step.name!r} has a dim called {named!r} already; name it otherwise")
    lowest = size if drop_last else 1
    builder = GraphBuilder("epoch", [DimVar(named, lowest), *others])
    draws = shuffle and not any(port.role is Role.KEY for port in step.state())
    carried = _carried(step)
    values = {_key(port): builder.input(port.name, port.value.type, port.role, port.path) for port in carried}
    key = (
        builder.input(_free_name(step, KEY), KEY_TYPE, Role.KEY, KEY)
        if draws
        else values.get((Role.KEY, KEY))
    )
    data: list[tuple[Input, Value]] = []
    for port in step.inputs:
        if _key(port) in values:
            continue
        t = port.value.type
        if _is_data(port, batch):
            t = TensorType(t.dtype, (rows, *t.shape[1:]))
        values[_key(port)] = builder.input(port.name, t, port.role, port.path)
        if _is_data(port, batch):
            data.append((port, values[_key(port)]))
    carry_key: Value | None = None
    order: Value | None = None
    if shuffle:
        assert key is not None
        made = node("random.split", (key,), {"count": 3}, builder.next_index)
        carry_key, order_key, step_key = builder.add(made)
        (order,) = builder.add(node("random.randperm", (order_key,), {"n": rows}, builder.next_index))
        if not draws:
            values[(Role.KEY, KEY)] = step_key
    given = [
        port for port in step.inputs if port not in carried and not (not shuffle and _is_data(port, batch))
    ]
    over = [order] if order is not None else [value for _, value in data]
    body = builder.subplan(_body(step, batch, carried, given, shuffle))
    scan = node(
        "scan",
        (tuple(values[_key(p)] for p in carried), tuple(over), tuple(values[_key(p)] for p in given)),
        {"body": body, "size": size, "drop_last": drop_last},
        builder.next_index,
        subplans=tuple(builder.subplans),
    )
    results = builder.add(scan)
    for port, value in zip(carried, results, strict=False):
        if shuffle and port.role is Role.KEY:
            assert carry_key is not None
            value = carry_key
        builder.output(value, port.name, port.role, port.path)
    if draws:
        assert carry_key is not None
        builder.output(carry_key, _free_name(step, KEY), Role.KEY, KEY)
    for port, value in zip(step.results(), results[len(carried) :], strict=True):
        builder.output(value, port.name, port.role, port.path)
    return builder.build()


def _body(step: Graph, batch: DimVar, carried: list[Input], given: list[Input], shuffle: bool) -> Graph:
    """The scan's body: gather the batch's rows (when shuffling), run the step, carry its state on."""
    builder = GraphBuilder("batch", step.dims if not shuffle else [*step.dims, DimVar(ROWS)])
    values = {_key(port): builder.input(port.name, port.value.type, port.role, port.path) for port in carried}
    rows: Value | None = None
    if shuffle:
        rows = builder.input("rows", TensorType(KEY_TYPE.dtype, (sym(batch.name),)))
    else:
        for port in step.inputs:
            if _is_data(port, batch):
                values[_key(port)] = builder.input(port.name, port.value.type, port.role, port.path)
    for port in given:
        t = port.value.type
        if _is_data(port, batch):
            t = TensorType(t.dtype, (sym(ROWS), *t.shape[1:]))
        values[_key(port)] = builder.input(port.name, t, port.role, port.path)
    for constant in step.constants:
        builder.constant(constant.value.type, constant.digest)
    if rows is not None:
        for port in given:
            if _is_data(port, batch):
                whole = values[_key(port)]
                (values[_key(port)],) = builder.add(
                    node("aten.index_select", (whole, rows), {"dim": 0}, builder.next_index)
                )
    outputs = inline(builder, step, [values[_key(port)] for port in step.inputs])
    made = {
        _key(port): value for port, value in zip(step.outputs, outputs, strict=True) if port.role.is_state
    }
    for port in carried:
        builder.output(made[_key(port)], port.name, port.role, port.path)
    for port, value in zip(step.outputs, outputs, strict=True):
        if not port.role.is_state:
            builder.output(value, port.name, port.role, port.path)
    return builder.build()


def _outer(one: Graph, name: str, epochs: int) -> Graph:
    """The plan that users see: arguments first, then state; results first, then updates."""
    builder = GraphBuilder(f"epoch_of_{name}", one.dims)
    ordered = [*one.arguments(), *one.state()]
    values = {_key(p): builder.input(p.name, p.value.type, p.role, p.path) for p in ordered}
    if epochs == 1:
        outputs = inline(builder, one, [values[_key(port)] for port in one.inputs])
    else:
        updated = {_key(port) for port in one.updates()}
        carry = tuple(values[_key(p)] for p in one.inputs if _key(p) in updated)
        rest = tuple(values[_key(p)] for p in one.inputs if _key(p) not in updated)
        made = node(
            "scan",
            (carry, (), rest),
            {"body": builder.subplan(one), "trips": epochs},
            builder.next_index,
            subplans=tuple(builder.subplans),
        )
        outputs = list(builder.add(made))
    pairs = list(zip(one.outputs, outputs, strict=True))
    for port, value in [p for p in pairs if not p[0].role.is_state] + [
        p for p in pairs if p[0].role.is_state
    ]:
        builder.output(value, port.name, port.role, port.path)
    return builder.build()


def _carried(step: Graph) -> list[Input]:
    """State inputs that the step updates, in the order of its inputs."""
    updated = {_key(port) for port in step.updates()}
    return [port for port in step.inputs if _key(port) in updated]


def _is_data(port: Input, batch: DimVar) -> bool:
    return not port.role.is_state and port.value.type.shape[:1] == (sym(batch.name),)


def _free_name(step: Graph, name: str) -> str:
    taken = {port.name for port in (*step.inputs, *step.outputs)}
    while name in taken:
        name += "_"
    return name


def _key(port: Input | Output) -> tuple[Role, str]:
    """What identifies a port across graphs."""
    return port.role, port.path


__all__ = ["KEY", "ROWS", "epoch"]
