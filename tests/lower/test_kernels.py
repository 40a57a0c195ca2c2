"""Every op, through planned memory and over its own operands: the op table's bits, whatever the operands are.

Each line of `tests.ops.table` runs as a plan that copies its operands first (so that they may be written
over) and its results last (so that they may be planned), at several dtypes, layouts, sizes, kinds of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from planc.errors import PlancError
from planc.ir import DimExpr, DType, Graph, TensorType, Value
from planc.ir.dims import evaluate
from planc.ir.program import Program
from planc.lower import Executable, bind_tensors, kernels
from planc.ops import all_ops
from runtime.interpreter import interpret
from tests.ops.cases import Case, Sample, tensors
from tests.ops.table import TABLE
from tests.sketch import Sketch

CPU = torch.device("cpu")
SPECIAL = [math.nan, math.inf, -math.inf, -0.0, 0.0, 1e-40, 3.0, -1.5, 1e30]


def retyped(sample: Sample, dtype: DType | None) -> TensorType:
    return TensorType(dtype or sample.type.dtype, sample.type.shape)


def program(case: Case, b: int, dtype: DType | None, ours: bool) -> Graph:
    """The line as a plan: with ``ours``, operands are copied first; results are copied last."""
    s = Sketch("line")

    def operand(item: Any) -> Any:
        if isinstance(item, Sample):
            wanted = dtype if item.type.dtype.is_floating else None
            return s.input(f"x{s.next_index}", retyped(item, wanted).substitute({"b": b}))
        if isinstance(item, tuple):
            return tuple(operand(x) for x in item)
        return at(item, b)

    given = [operand(item) for item in case.operands]

    def copied(item: Any) -> Any:
        if isinstance(item, tuple):
            return tuple(copied(x) for x in item)
        return s.op("aten.clone", item) if isinstance(item, Value) and ours else item

    operands = [copied(item) for item in given]
    results = s.many(case.op, *operands, **{k: at(v, b) for k, v in case.attrs.items()})
    return s.give(*(s.op("aten.clone", r) for r in results), *(results[:1] if not ours else ()))


def at(value: Any, b: int) -> Any:
    """An attribute at this size of ``b``."""
    if isinstance(value, tuple):
        return tuple(at(item, b) for item in value)
    return evaluate(value, {"b": b}) if isinstance(value, DimExpr) else value


Layout = Callable[[torch.Tensor], torch.Tensor]


def turned(x: torch.Tensor) -> torch.Tensor:
    """The same elements, the dims in memory in the opposite order."""
    dims = list(range(x.dim()))[::-1]
    return x.permute(dims).contiguous().permute(dims)


def gapped(x: torch.Tensor) -> torch.Tensor:
    """The same elements, every other one of a larger tensor."""
    if not x.dim():
        return x
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), 7, dtype=x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


LAYOUTS: dict[str, Layout] = {"plain": lambda x: x, "turned": turned, "gapped": gapped}


def bits(x: torch.Tensor) -> torch.Tensor:
    """What tells -0 from 0, and takes every NaN for the same."""
    if not x.is_floating_point():
        return x
    x = torch.where(x.isnan(), torch.full_like(x, math.nan), x).contiguous()
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.itemsize])


def identical(got: Sequence[torch.Tensor], want: Sequence[torch.Tensor]) -> bool:
    return len(got) == len(want) and all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))
        for a, b in zip(got, want, strict=True)
    )


def check(graph: Graph, values: list[torch.Tensor]) -> None:
    """Recorded, compiled and compiled again: always what the interpreter says, and inputs as they were."""
    before = [x.clone() for x in values]
    try:
        want = interpret(graph, values)
    except PlancError:
        return  # torch has no kernel for this dtype, or refuses the numbers
    want = [x.clone() for x in want]
    run = Executable(Program(graph), bind_tensors(graph, values), CPU)
    for _ in range(3):
        assert identical(run(values), want)
        assert identical(values, before)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", TABLE, ids=str)
def test_every_line_gives_the_tables_bits(case: Case, layout: str) -> None:
    for ours in (True, False):
        values = [LAYOUTS[layout](x) for x in tensors(case.arguments(4)[0])]
        check(program(case, 4, None, ours), values)


WRITERS = [c for c in TABLE if kernels.writer(c.op) is not None]


@pytest.mark.parametrize("case", WRITERS, ids=str)
def test_written_results_at_every_dtype_and_for_special_numbers(case: Case) -> None:
    for dtype in (None, DType.F64, DType.F16, DType.BF16):
        try:
            graph = program(case, 4, dtype, ours=True)
        except PlancError:
            continue
        values = tensors(case.arguments(4)[0])
        values = [x.to(port.value.type.dtype.torch) for x, port in zip(values, graph.inputs, strict=True)]
        check(graph, values)
        for start in range(3):
            check(graph, [special(x, start + i) for i, x in enumerate(values)])


def special(x: torch.Tensor, start: int) -> torch.Tensor:
    """Numbers that kernels get wrong, where the tensor is of reals."""
    if not x.is_floating_point():
        return x
    numbers = [SPECIAL[(start + i) % len(SPECIAL)] for i in range(x.numel())]
    return torch.tensor(numbers, dtype=torch.float64).to(x.dtype).view(x.shape)


@pytest.mark.parametrize("case", [c for c in WRITERS if "b" in str(c)], ids=str)
def test_written_results_without_elements(case: Case) -> None:
    try:
        graph = program(case, 0, None, ours=True)
    except PlancError:
        return
    check(graph, [torch.zeros(p.value.type.at({}), dtype=p.value.type.dtype.torch) for p in graph.inputs])


def test_results_are_written_where_memory_is_planned() -> None:
    """So that the tests above are about what they say."""
    for case in WRITERS:
        if case.op == "aten.where" and not all(isinstance(x, Sample) for x in case.operands):
            continue
        graph = program(case, 4, None, ours=True)
        values = tensors(case.arguments(4)[0])
        run = Executable(Program(graph), bind_tensors(graph, values), CPU)
        for _ in range(2):
            run(values)
        made = [line for line in run.source.splitlines() if line.startswith("    v")]
        assert len(made) == 1, str(case)  # the copy that is the plan's result


def test_every_writer_is_held_against_its_op() -> None:
    known = {op.name for op in all_ops()}
    assert {c.op for c in WRITERS} == {name for name in known if kernels.writer(name) is not None}
