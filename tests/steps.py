"""The steps of which generated plans are made: each adds a node or a few to a `tests.strategies.Maker`.

A step that finds no operands of fitting types adds nothing. No step makes a node that can fail when it runs.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

from planc.ir import Dim, DimExpr, DimVar, DType, Role, TensorType, Value, sym
from tests.maker import Maker

Step = Callable[[Maker], None]
STEPS: list[Step] = []

_NUMBERS = [2, 0.5, -0.0, 1, 1.0, True, -3, 1e-300, float("inf"), 0.1]


def _step(function: Step) -> Step:
    STEPS.append(function)
    return function


def _floating(type: TensorType) -> bool:
    return type.dtype.is_floating


def _f32(*ranks: int) -> Callable[[TensorType], bool]:
    return lambda type: type.dtype is DType.F32 and type.rank in ranks


def _number(m: Maker) -> int | float | bool | DimExpr:
    if m.builder.dims and m.number(0, 4) == 0:
        return sym(m.builder.dims[0].name) * 2 + 1
    return m.draw(st.sampled_from(_NUMBERS))


def _axis(m: Maker, value: Value) -> int:
    """A dim number, from the front or from the back."""
    return m.number(-value.type.rank, value.type.rank - 1)


def _nonempty(m: Maker, value: Value) -> bool:
    return all(m.least(dim) > 0 for dim in value.type.shape)


# Elementwise.


@_step
def unary(m: Maker) -> None:
    x = m.pick(_floating)
    if x:
        m.add(f"aten.{m.choose('relu', 'tanh', 'sigmoid', 'neg', 'abs', 'exp', 'detach', 'clone')}", x)


@_step
def binary(m: Maker) -> None:
    x = m.pick(_floating)
    if not x:
        return
    y = m.pick(_floating) if m.flag() else m.pick(lambda type: type == x.type)
    op = m.draw(st.sampled_from(["add", "sub", "mul"]))
    alpha = {"alpha": m.draw(st.sampled_from([1, 2, 1.0, 0.5]))} if op != "mul" else {}
    m.add(f"aten.{op}", x, y, **alpha)


@_step
def scalar_operand(m: Maker) -> None:
    x = m.pick(_floating)
    if x:
        m.add(f"aten.{m.choose('add', 'mul', 'div', 'lt', 'eq')}", x, _number(m))


@_step
def number_first(m: Maker) -> None:
    x = m.pick(_floating)
    if x:
        m.add("aten.pow", m.draw(st.sampled_from([2, 0.5])), x)


@_step
def text_attribute(m: Maker) -> None:
    x = m.pick(_floating)
    if x and m.flag():
        m.add("aten.div", x, 3.0, rounding_mode=m.draw(st.sampled_from([None, "floor", "trunc"])))
    elif x:
        m.add("aten.gelu", x, approximate=m.draw(st.sampled_from(["none", "tanh"])))


@_step
def choice(m: Maker) -> None:
    x = m.pick(_floating)
    if x:
        (mask,) = m.add("aten.gt", x, 0)
        m.add("aten.where", mask, x, _number(m))


@_step
def optional_number(m: Maker) -> None:
    x = m.pick(_floating)
    if x:
        low, high = m.draw(st.sampled_from([(None, 1.0), (-1, None), (-1.0, 2.0), (0, 1)]))
        m.add("aten.clamp", x, low, high)


@_step
def convert(m: Maker) -> None:
    x = m.pick()
    # Infinite or huge numbers have no defined integer, so integers come from integers only.
    targets = [DType.F32, DType.F64, DType.BF16, DType.F16, DType.BOOL]
    if x and not x.type.dtype.is_floating:
        targets += [DType.I64, DType.I32]
    if x:
        m.add("aten.to", x, dtype=m.draw(st.sampled_from(targets)))


# Products, reductions, networks.


@_step
def product(m: Maker) -> None:
    x = m.pick(_f32(2))
    if not x:
        return
    y = m.pick(lambda type: _f32(2)(type) and type.shape[0] == x.type.shape[1])
    if not y:
        (y,) = m.add("aten.t", x)
    if m.flag():
        m.add("aten.mm", x, y)
    else:
        bias = m.pick(lambda type: _f32(1)(type) and type.shape[0] == y.type.shape[1])
        m.add("aten.addmm", bias or x, x, y, beta=0.5)


@_step
def reduction(m: Maker) -> None:
    x = m.pick(lambda type: _floating(type) and type.rank > 0)
    if x:
        dims = m.draw(st.sampled_from([None, (), (_axis(m, x),)]))
        dtype = m.draw(st.sampled_from([None, DType.F64]))
        m.add(f"aten.{m.choose('sum', 'mean')}", x, dim=dims, keepdim=m.flag(), dtype=dtype)


@_step
def several_results(m: Maker) -> None:
    x = m.pick(lambda type: _floating(type) and type.rank > 0)
    if not x or not _nonempty(m, x):
        return
    if m.flag():
        m.add(f"aten.{m.choose('max_dim', 'min_dim')}", x, dim=_axis(m, x), keepdim=m.flag())
    else:
        at = _axis(m, x)
        # None corrects by 1, of which one element alone has no variance.
        corrections = [0, 0.0] + [None] * (m.least(x.type.shape[at]) > 1)
        m.add("aten.var_mean", x, dim=(at,), correction=m.draw(st.sampled_from(corrections)))


@_step
def softmax(m: Maker) -> None:
    x = m.pick(lambda type: _floating(type) and type.rank > 0)
    if x:
        m.add(f"aten.{m.choose('softmax', 'log_softmax')}", x, dim=_axis(m, x))


@_step
def loss(m: Maker) -> None:
    x = m.pick(_f32(2))
    if x and _nonempty(m, x):
        (target,) = m.add("aten.argmax", x, dim=1)
        m.add("aten.nll_loss_forward", x, target, None, reduction=m.number(0, 2))


@_step
def convolution(m: Maker) -> None:
    x = m.pick(lambda type: _f32(4)(type) and type.shape[1:] == (2, 6, 6))
    if x:
        (weight,) = m.add("aten.full", size=(3, 2, 3, 3), fill_value=0.25, dtype=DType.F32)
        padding = (m.number(0, 1),)
        results = m.add("aten.convolution", x, weight, None, stride=(1,), padding=padding, dilation=(1,))
        for y in results:
            m.add("aten.max_pool2d_with_indices", y, kernel_size=(2, 2), ceil_mode=m.flag())


@_step
def norm(m: Maker) -> None:
    x = m.pick(lambda type: _f32(2, 3, 4)(type) and isinstance(type.shape[-1], int) and type.shape[-1] > 0)
    if x:
        m.add("aten.native_layer_norm", x, None, None, normalized_shape=(x.type.shape[-1],), eps=1e-5)


# Views, joins, gathers.


@_step
def rearrangement(m: Maker) -> None:
    x = m.pick(lambda type: type.rank > 0)
    if not x:
        return
    rank = x.type.rank
    kind = m.choose("transpose", "permute", "unsqueeze", "squeeze", "flip")
    if kind == "transpose":
        m.add("aten.transpose", x, dim0=_axis(m, x), dim1=_axis(m, x))
    elif kind == "permute":
        m.add("aten.permute", x, dims=tuple(m.draw(st.permutations(range(rank)))))
    elif kind == "unsqueeze":
        m.add("aten.unsqueeze", x, dim=m.number(-rank - 1, rank))
    elif kind == "squeeze":
        fixed = [i for i, size in enumerate(x.type.shape) if isinstance(size, int)]
        m.add("aten.squeeze", x, dim=tuple(fixed[: m.number(1, 2)]))
    else:
        m.add("aten.flip", x, dims=(0,))


@_step
def view(m: Maker) -> None:
    x = m.pick()
    if not x:
        return
    # -1 has no answer where the other dims can be 0.
    sizes: list[tuple[Dim, ...]] = [(x.type.numel,), (1, *x.type.shape), (*x.type.shape, 1)]
    if _nonempty(m, x):
        sizes += [(-1,), (x.type.shape[0], -1) if x.type.rank else (1, -1)]
    m.add("aten.view", x, size=m.draw(st.sampled_from(sizes)))


@_step
def expansion(m: Maker) -> None:
    x = m.pick(lambda type: type.rank < 4)
    if x:
        m.add("aten.expand", x, size=(m.dim(), *x.type.shape))


@_step
def window(m: Maker) -> None:
    x = m.pick(lambda type: type.rank > 0)
    if not x:
        return
    at = _axis(m, x)
    size = x.type.shape[at]
    if m.flag() and m.least(size) > 0:
        m.add("aten.select", x, dim=at, index=m.draw(st.sampled_from([0, -1])))
    elif m.least(size) > 0:
        start, end = m.draw(st.sampled_from([(1, None), (0, -1), (None, None), (0, size), (-1, None)]))
        m.add("aten.slice", x, dim=at, start=start, end=end, step=m.number(1, 2))


@_step
def pieces(m: Maker) -> None:
    x = m.pick(lambda type: type.rank > 0 and isinstance(type.shape[0], int) and 0 < type.shape[0] < 7)
    if not x:
        return
    size = x.type.shape[0]
    assert isinstance(size, int)
    kind = m.choose("split", "unbind", "split_with_sizes")
    if kind == "split":
        m.add("aten.split", x, split_size=m.number(1, 3))
    elif kind == "unbind":
        m.add("aten.unbind", x)
    else:
        m.add("aten.split_with_sizes", x, split_sizes=(1, size - 1))


@_step
def join(m: Maker) -> None:
    x = m.pick(lambda type: type.rank > 0)
    if x:
        group = [x, x] if m.flag() else [x]
        rest = x.type.shape[1:]
        y = m.pick(lambda type: type.rank == x.type.rank and type.shape[1:] == rest)
        group += [y] if y else []
        m.add(f"aten.{m.choose('cat', 'stack')}", tuple(group), dim=0)


@_step
def gather(m: Maker) -> None:
    x = m.pick(lambda type: type.rank > 1)
    if x and m.least(x.type.shape[1]) > 0:
        (index,) = m.add("aten.full", size=(2, m.number(1, 2)), fill_value=0, dtype=DType.I64)
        m.add("aten.index", x, (None, index))


@_step
def factory(m: Maker) -> None:
    kind = m.choose("full", "arange", "eye")
    if kind == "full":
        size = tuple(m.dim() for _ in range(m.number(0, 3)))
        value = m.draw(st.sampled_from([0, 1.5, True, -0.0, float("-inf")]))
        dtypes = [DType.F32, DType.F64] if isinstance(value, float) else [DType.F32, DType.I64, DType.BOOL]
        m.add("aten.full", size=size, fill_value=value, dtype=m.draw(st.sampled_from(dtypes)))
    elif kind == "arange":
        m.add("aten.arange", end=m.dim(), dtype=DType.I64, step=m.number(1, 2))
    else:
        m.add("aten.eye", n=m.dim(), dtype=DType.F32)


# Random numbers, optimizers.


@_step
def random(m: Maker) -> None:
    key = m.pick(lambda type: type == TensorType(DType.I64, ()))
    if not key:
        return
    # The value may be any number, which is as good a key as another.
    keys = m.add("random.split", key, count=m.number(1, 3))
    x = m.pick(_f32(1, 2))
    kind = m.choose("dropout", "randn", "randperm", "none")
    if kind == "dropout" and x:
        m.add("random.dropout", keys[-1], x, p=m.draw(st.sampled_from([0.0, 0.5, 1])))
    elif kind == "randn":
        m.add("random.randn", keys[0], size=(m.dim(), 2), dtype=DType.F32)
    elif kind == "randperm":
        m.add("random.randperm", keys[0], n=m.dim())


@_step
def optimizer(m: Maker) -> None:
    x = m.pick(_f32(0, 1, 2))
    if not x:
        return
    y = m.pick(lambda type: type == x.type) or x
    if m.flag():
        rate = m.pick(_f32(0)) if m.flag() else None
        momentum = m.draw(st.sampled_from([0.0, 0.5]))
        m.add("opt.sgd", (x, y), (y, y), (x, x) if momentum else (), rate or 0.5, momentum=momentum)
    else:
        (step,) = m.add("aten.full", size=(), fill_value=0, dtype=DType.F32)
        (zeros,) = m.add("aten.full", size=x.type.shape, fill_value=0, dtype=DType.F32)
        m.add("opt.adam", (x,), (y,), (zeros,), (zeros,), (), (step,), 1e-3, decoupled=m.flag())


# Plans in plans.


@_step
def call(m: Maker) -> None:
    if m.depth < 2 or not m.pool:
        return
    args = m.draw(st.lists(st.sampled_from(m.pool), max_size=3))
    inner = _inner(m, "callee")
    names = _Names(inner)
    for value in args:
        inner.input(names.rename(value.type), m.draw(st.sampled_from([Role.ARGUMENT, Role.BUFFER])))
    _grow(inner)
    m.builder.subplans.append(inner.finish())
    m.add("call", tuple(args), plan=len(m.builder.subplans) - 1)


@_step
def scan(m: Maker) -> None:
    if m.depth < 2 or not m.pool:
        return
    carry = m.draw(st.lists(st.sampled_from(m.pool), max_size=2))
    given = m.draw(st.lists(st.sampled_from(m.pool), max_size=1))
    data = m.pick(lambda type: type.rank > 0 and m.least(type.shape[0]) > 0) if m.flag() else None
    body = _inner(m, "body")
    names = _Names(body)
    carried = [body.input(names.rename(value.type)) for value in carry]
    batch: str | None = None
    over: list[Value] = []
    size = 0
    drop_last = data is not None and m.flag()
    if data:
        over = [data] * m.number(1, 2)
        # With whole batches only, there must be at least one: else nothing has a shape to collect.
        size = m.number(1, m.least(data.type.shape[0]) if drop_last else 4)
        fixed = drop_last and m.flag()
        if not fixed:
            batch = "rows"
            body.builder.dims.append(DimVar(batch, 1, 4))
        lead: Dim = size if batch is None else sym(batch)
        rest = names.rename(TensorType(data.type.dtype, data.type.shape[1:])).shape
        for _ in over:
            body.input(TensorType(data.type.dtype, (lead, *rest)))
    for value in given:
        body.input(names.rename(value.type))
    _grow(body)
    outputs = [_next_carry(body, value) for value in carried]
    outputs += [v for v in body.pool[-3:] if _can_collect(v.type, batch)]
    m.builder.subplans.append(body.finish(outputs))
    trips = [1, 2, 3, *(sym(var.name) for var in m.builder.dims if var.lo)]
    options = {"size": size, "drop_last": drop_last} if data else {"trips": m.draw(st.sampled_from(trips))}
    operands = tuple(carry), tuple(over), tuple(given)
    m.add("scan", *operands, body=len(m.builder.subplans) - 1, **options)


def _inner(m: Maker, name: str) -> Maker:
    return Maker(m.draw, m.draw(st.sampled_from([name, "inner"])), [], m.depth - 1)


def _grow(inner: Maker) -> None:
    for step in inner.draw(st.lists(st.sampled_from(STEPS), max_size=3)):
        step(inner)


def _next_carry(body: Maker, value: Value) -> Value:
    fitting = [v for v in body.pool if v.type == value.type]
    return body.draw(st.sampled_from(fitting[-3:]))


def _can_collect(type: TensorType, batch: str | None) -> bool:
    """Whether the batch dim stands in front and alone, if anywhere."""
    leads = bool(type.shape) and type.shape[0] == (sym(batch) if batch else None)
    inside = TensorType(type.dtype, type.shape[1:] if leads else type.shape)
    return batch not in inside.dim_names()


class _Names:
    """Gives the dims of an outer plan names in an inner one: one name for each different expression."""

    def __init__(self, inner: Maker) -> None:
        self._inner = inner
        self._known: dict[DimExpr, str] = {}

    def rename(self, type: TensorType) -> TensorType:
        return TensorType(type.dtype, tuple(self._dim(dim) for dim in type.shape))

    def _dim(self, dim: Dim) -> Dim:
        if isinstance(dim, int):
            return dim
        if dim not in self._known:
            self._known[dim] = f"d{len(self._known)}"
            self._inner.builder.dims.append(DimVar(self._known[dim], 0))
        return sym(self._known[dim])
