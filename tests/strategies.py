"""Hypothesis strategies for valid plans that can also be run, and tensors to run them on.

`graphs` is the one source of generated plans: the codec, the language, passes and executors are tested on the
same ones. What is here builds plans; what must hold of them is in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from hypothesis import strategies as st

from planc.ir import Dim, DimVar, DType, Graph, Role, TensorType, sym, type_of
from planc.ir.binding import sizes_of
from planc.ir.constants import digest
from planc.ops.randomness import KEY_TYPE, make_key
from tests.maker import LARGEST_SIZE_ABOVE_LEAST, Maker
from tests.steps import STEPS

CONSTANTS: dict[str, torch.Tensor] = {
    digest(tensor): tensor
    for tensor in (
        torch.tensor([0.5, -0.0, float("inf")]),
        torch.linspace(-1, 1, 12).reshape(4, 3),
        torch.tensor([1, 0, 1]),
        torch.tensor(1.5, dtype=torch.bfloat16),
        torch.tensor([True, False, True]),
        torch.empty(0, 3),
        torch.arange(6, dtype=torch.float64).reshape(2, 3),
    )
}
"""The data of every constant that a generated plan can have."""


@st.composite
def graphs(draw: st.DrawFn, max_nodes: int = 8, depth: int = 2) -> Graph:
    """A valid plan that runs on `inputs_for` it, whatever its dims are bound to in their ranges.

    Args:
        max_nodes: about how many nodes its outermost level has; some steps add two or three.
        depth: how many levels of plans there may be.
    """
    count = draw(st.integers(0, 2))
    dims = [DimVar(name, draw(st.integers(1, 2)), draw(_BOUND)) for name in ("b", "n")[:count]]
    if count == 2 and draw(st.integers(0, 3)) == 0:
        b = sym("b")
        dims[1] = DimVar("n", 1, 64, draw(st.sampled_from([b, b * 2, b + 3])))
        dims = draw(st.permutations(dims))
    maker = Maker(draw, draw(st.sampled_from(["main", "step", "plan", "p_1"])), dims, depth)
    _declare_inputs(maker)
    for name in draw(st.lists(st.sampled_from(list(CONSTANTS)), max_size=2, unique=True)):
        type = type_of(CONSTANTS[name])
        assert type is not None
        maker.pool.append(maker.builder.constant(type, name))
    for step in draw(st.lists(st.sampled_from(STEPS), max_size=max_nodes)):
        step(maker)
    return maker.finish()


_BOUND = st.sampled_from([6, 64, 2**31 - 1])


def _declare_inputs(maker: Maker) -> None:
    """Inputs that determine every dim, and some of other types and roles."""
    bare = [sym(var.name) for var in maker.builder.dims]
    first: list[TensorType] = [TensorType(DType.F32, (dim, 4)) for dim in bare]
    b: Dim = bare[0] if bare else 2
    n: Dim = bare[-1] if bare else 3
    others = [
        TensorType(DType.F32, (4, 3)),
        TensorType(DType.F32, ()),
        TensorType(DType.F32, (b * 6, 4)),
        TensorType(DType.F32, (b, 2, 6, 6)),
        TensorType(DType.F64, (b + n,)),
        TensorType(DType.BF16, (b, 3)),
        TensorType(DType.F16, (n, 1, 2)),
        TensorType(DType.I64, (b,)),
        TensorType(DType.I32, (n, b)),
        TensorType(DType.BOOL, (b, 4)),
        TensorType(DType.U8, (3,)),
        TensorType(DType.F32, (0, 4)),
    ]
    extra = maker.draw(st.lists(st.sampled_from(others), max_size=4))
    # An order of its own: dims may be used before the input that determines them.
    for type in maker.draw(st.permutations([*first, *extra])):
        role = maker.draw(st.sampled_from([Role.ARGUMENT, Role.ARGUMENT, Role.PARAMETER, Role.BUFFER]))
        maker.input(type, role)
    if maker.flag():
        maker.input(KEY_TYPE, maker.draw(st.sampled_from([Role.KEY, Role.ARGUMENT])))
    if maker.flag():
        maker.input(TensorType(DType.F32, (4,)), Role.OPTIMIZER)


def bindings_for(graph: Graph) -> st.SearchStrategy[dict[str, int]]:
    """Small sizes for a plan's dims, within their ranges and related as the plan says."""
    return st.fixed_dictionaries(
        {
            v.name: st.integers(v.lo, min(v.hi, v.lo + LARGEST_SIZE_ABOVE_LEAST))
            for v in graph.dims
            if v.equals is None
        }
    ).map(lambda sizes: sizes_of(graph, sizes))


def inputs_for(graph: Graph, bindings: Mapping[str, int], seed: int = 0) -> list[torch.Tensor]:
    """A tensor for each input, in order; the same ones for the same arguments."""
    generator = torch.Generator().manual_seed(seed)
    return [_tensor(port.value.type, port.role, bindings, generator) for port in graph.inputs]


def _tensor(
    type: TensorType, role: Role, bindings: Mapping[str, int], generator: torch.Generator
) -> torch.Tensor:
    shape = type.at(bindings)
    if type == KEY_TYPE:
        return make_key(int(torch.randint(0, 2**31, (), generator=generator)))
    if type.dtype.is_floating:
        tensor = torch.randn(shape, generator=generator, dtype=torch.float64).to(type.dtype.torch)
        return tensor.abs() if role is Role.OPTIMIZER else tensor
    return torch.randint(0, 2 if type.dtype is DType.BOOL else 3, shape, generator=generator).to(
        type.dtype.torch
    )
