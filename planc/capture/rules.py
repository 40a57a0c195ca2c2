"""What ATen overloads import as where it takes more than the op table's renaming.

One entry an overload: a function of the importer, the fx node and its arguments by name, that emits nodes and
returns what the fx node stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from planc.capture.importer import Entry, Importer, Rule
from planc.capture.slicing import slice_, slice_scatter, squeeze
from planc.capture.strided import as_strided, as_strided_scatter
from planc.ir import Dim, DType, TensorType, Value
from planc.ops.rules import axis

Args = Mapping[str, Any]
RULES: dict[str, Rule] = {}
RANDOM: set[str] = set()
"""Overloads whose rule takes a key."""


def _rule(*targets: str, draws: bool = False) -> Any:
    def register(rule: Rule) -> Rule:
        for target in targets:
            RULES[target] = rule
        if draws:
            RANDOM.update(targets)
        return rule

    return register


# -- copies: in a functional IR a copy is the value itself ---------------------------------------------------


@_rule(
    "aten.detach.default",
    "aten.alias.default",
    "aten.clone.default",
    "aten.lift_fresh_copy.default",
    "aten.lift_fresh.default",
    "aten.contiguous.default",
    "aten.detach_copy.default",
)
def _same(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    return importer.entry(next(iter(args.values())))


@_rule("aten._to_copy.default")
def _to_copy(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    value = importer.entry(args["self"])
    dtype = args["dtype"]
    return value if dtype is None else _cast(importer, value, importer.dtype(dtype))


@_rule("aten.copy.default")
def _copy(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    target: TensorType = importer.entry(args["self"]).type
    source = _cast(importer, importer.entry(args["src"]), target.dtype)
    return source if source.type == target else importer.emit("aten.expand", source, size=target.shape)


def _cast(importer: Importer, value: Value, dtype: DType) -> Value:
    return value if value.type.dtype is dtype else importer.emit("aten.to", value, dtype=dtype)


@_rule(
    "aten._assert_tensor_metadata.default",
    "aten._assert_scalar.default",
    "aten.sym_constrain_range.default",
    "aten.sym_constrain_range_for_size.default",
)
def _nothing(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    return None


# -- constant tensors ----------------------------------------------------------------------------------------


def _filled(value: Any) -> Rule:
    def rule(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
        t = importer.type_of(n)
        fill = importer.entry(args["fill_value"]) if value is None else value
        return importer.emit("aten.full", size=t.shape, fill_value=_number(fill, t.dtype), dtype=t.dtype)

    return rule


def _number(value: Any, dtype: DType) -> Any:
    """A fill value in the Python type of its dtype, so that equal tensors are equal nodes."""
    if not isinstance(value, (bool, int, float)):
        return value
    return bool(value) if dtype is DType.BOOL else float(value) if dtype.is_floating else int(value)


for _name, _value in {
    "zeros": 0,
    "zeros_like": 0,
    "new_zeros": 0,
    "ones": 1,
    "ones_like": 1,
    "new_ones": 1,
    "full": None,
    "full_like": None,
    "new_full": None,
    # Uninitialised memory becomes zeros: a plan never shows what lay in memory before.
    "empty_like": 0,
    "new_empty": 0,
    "new_empty_strided": 0,
    "empty_strided": 0,
}.items():
    RULES[f"aten.{_name}.default"] = _filled(_value)
RULES["aten.zero.default"] = _filled(0)
RULES["aten.empty.memory_format"] = _filled(0)
RULES["aten.empty_permuted.default"] = _filled(0)


@_rule("aten.scalar_tensor.default")
def _scalar_tensor(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    t = importer.type_of(n)
    return importer.emit(
        "aten.full", size=(), fill_value=_number(importer.entry(args["s"]), t.dtype), dtype=t.dtype
    )


@_rule("aten.fill.Scalar")
def _fill(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    t = importer.type_of(n)
    value = _number(importer.entry(args["value"]), t.dtype)
    return importer.emit("aten.full", size=t.shape, fill_value=value, dtype=t.dtype)


@_rule("aten.fill.Tensor")
def _fill_tensor(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    t = importer.type_of(n)
    value = _cast(importer, importer.entry(args["value"]), t.dtype)
    return value if value.type == t else importer.emit("aten.expand", value, size=t.shape)


@_rule("aten.arange.default", "aten.arange.start", "aten.arange.start_step")
def _arange(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    start, end, step = args.get("start", 0), args["end"], args.get("step", 1)
    parts = [importer.dim(x) for x in (start, end, step)]
    if any(isinstance(x, float) for x in parts):
        raise importer.fail(n, "counts in whole numbers only; scale the result instead")
    return importer.emit(
        "aten.arange", end=parts[1], dtype=importer.type_of(n).dtype, start=parts[0], step=parts[2]
    )


@_rule("aten.linspace.default")
def _linspace(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    start, end, steps = (importer.dim(args[name]) for name in ("start", "end", "steps"))
    return importer.emit("aten.linspace", start=start, end=end, steps=steps, dtype=importer.type_of(n).dtype)


@_rule("aten.eye.default")
def _eye(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    return importer.emit("aten.eye", n=importer.dim(args["n"]), dtype=importer.type_of(n).dtype)


# -- shapes --------------------------------------------------------------------------------------------------


@_rule("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default")
def _view(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    value: Value = importer.entry(args["self"])
    size = importer.type_of(n).shape  # torch has resolved a -1
    return value if value.type.shape == size else importer.emit("aten.view", value, size=size)


_rule("aten.as_strided.default")(as_strided)
_rule("aten.as_strided_scatter.default")(as_strided_scatter)


@_rule("aten.expand.default")
def _expand(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    value: Value = importer.entry(args["self"])
    size = importer.type_of(n).shape
    return value if value.type.shape == size else importer.emit("aten.expand", value, size=size)


@_rule("aten.squeeze.default")
def _squeeze_all(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    value: Value = importer.entry(args["self"])
    ones = tuple(i for i, d in enumerate(value.type.shape) if d == 1)
    return importer.emit("aten.squeeze", value, dim=ones) if ones else value


_rule("aten.squeeze.dim", "aten.squeeze.dims")(squeeze)
_rule("aten.slice.Tensor")(slice_)
_rule("aten.slice_scatter.default")(slice_scatter)


@_rule("aten.split.Tensor", "aten.unsafe_split.Tensor")
def _split(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    piece = importer.entry(args["split_size"])
    if not isinstance(piece, int):
        raise importer.fail(
            n,
            f"makes pieces of {piece}, so how many there are may vary; slice the dim: x[:n // 2], x[n // 2:]",
        )
    return importer.emit_all("aten.split", importer.entry(args["self"]), split_size=piece, dim=args["dim"])


@_rule("aten.unfold.default")
def _windows(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    """``x.unfold(dim, size, step)`` where windows lie side by side: how images are cut into patches."""
    value: Value = importer.entry(args["self"])
    at, size = axis(args["dimension"], value.type.rank), _window(importer, n, args)
    shape, count = value.type.shape, importer.type_of(n).shape[at]
    if shape[at] != count * size:
        value = importer.emit("aten.slice", value, dim=at, end=count * size)
    split = importer.emit("aten.view", value, size=(*shape[:at], count, size, *shape[at + 1 :]))
    order = [i for i in range(len(shape) + 1) if i != at + 1]
    return importer.emit("aten.permute", split, dims=(*order, at + 1))


@_rule("aten.unfold_backward.default")
def _windows_backward(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    grad, sizes = importer.entry(args["grad_in"]), importer.entry(args["input_sizes"])
    at, size = axis(args["dim"], len(sizes)), _window(importer, n, args)
    last, count = len(sizes), grad.type.shape[at]
    order = (*range(at + 1), last, *range(at + 1, last))
    joined = (*sizes[:at], count * size, *sizes[at + 1 :])
    out = importer.emit("aten.view", importer.emit("aten.permute", grad, dims=order), size=joined)
    if joined == tuple(sizes):
        return out
    after = [(0, sizes[at] - count * size)] + [(0, 0)] * (len(sizes) - 1 - at)
    return importer.emit("aten.constant_pad", out, pad=tuple(x for pair in reversed(after) for x in pair))


def _window(importer: Importer, n: torch.fx.Node, args: Args) -> int:
    size, step = args["size"], args["step"]
    if size != step:
        raise importer.fail(
            n,
            f"with windows of {size} every {step} is not supported; F.unfold and windows "
            "side by side (step == size) are",
        )
    return size


@_rule("aten.vdot.default")
def _vdot(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    return importer.emit("aten.dot", importer.entry(args["self"]), importer.entry(args["other"]))


@_rule("aten.scatter.value")
def _scatter_value(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    value, index, number = (importer.entry(args[name]) for name in ("self", "index", "value"))
    return importer.emit("aten.scatter", value, index, _number(number, value.type.dtype), dim=args["dim"])


@_rule("aten.norm.ScalarOpt_dim", "aten.norm.Scalar", "aten.norm.ScalarOpt_dim_dtype")
def _norm(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    order = importer.entry(args["p"])
    dtype = args.get("dtype")
    return importer.emit(
        "aten.vector_norm",
        importer.entry(args["self"]),
        ord=2 if order is None else order,
        dim=importer.entry(args.get("dim")),
        keepdim=args.get("keepdim", False),
        dtype=None if dtype is None else importer.dtype(dtype),
    )


@_rule("aten.prod.default")
def _prod_all(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    value: Value = importer.entry(args["self"])
    flat = importer.emit("aten.view", value, size=(value.type.numel,))
    dtype = args.get("dtype")
    return importer.emit("aten.prod", flat, dim=0, dtype=None if dtype is None else importer.dtype(dtype))


@_rule("aten.any.dim", "aten.all.dim")
def _any_all(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    name = "aten.any" if "any" in str(n.target) else "aten.all"
    return importer.emit(name, importer.entry(args["self"]), dim=(args["dim"],), keepdim=args["keepdim"])


@_rule("aten.sort.stable")
def _sort_stable(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    return importer.emit_all(
        "aten.sort", importer.entry(args["self"]), dim=args["dim"], descending=args["descending"]
    )


# -- random draws: each takes a key of its own ---------------------------------------------------------------


@_rule("aten.native_dropout.default", draws=True)
def _dropout(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    key, value = importer.next_key(), importer.entry(args["input"])
    if args["train"] is False:
        raise importer.fail(n, "outside training is the identity; call eval() on the module before capture")
    return importer.emit_all("random.dropout", key, value, p=float(args["p"]))


@_rule("aten.bernoulli.p", draws=True)
def _bernoulli_p(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    t = importer.type_of(n)
    wide = t.dtype if t.dtype.is_floating else DType.F32
    p = importer.emit("aten.full", size=t.shape, fill_value=float(args["p"]), dtype=wide)
    return _cast(importer, importer.emit("random.bernoulli", importer.next_key(), p), t.dtype)


@_rule("aten.bernoulli.default", draws=True)
def _bernoulli(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    return importer.emit("random.bernoulli", importer.next_key(), importer.entry(args["self"]))


@_rule(
    "aten.rand.default", "aten.rand_like.default", "aten.randn.default", "aten.randn_like.default", draws=True
)
def _rand(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    t = importer.type_of(n)
    name = "random.randn" if "randn" in str(n.target) else "random.rand"
    return importer.emit(name, importer.next_key(), size=t.shape, dtype=t.dtype)


@_rule(
    "aten.randint.default",
    "aten.randint.low",
    "aten.randint_like.default",
    "aten.randint_like.low_dtype",
    draws=True,
)
def _randint(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    t = importer.type_of(n)
    low, high = importer.dim(args.get("low", 0)), importer.dim(args["high"])
    return importer.emit(
        "random.randint", importer.next_key(), low=low, high=high, size=t.shape, dtype=t.dtype
    )


@_rule("aten.randperm.default", draws=True)
def _randperm(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    t = importer.type_of(n)
    if t.dtype is not DType.I64:
        raise importer.fail(n, f"of dtype {t.dtype} is not supported; i64 is")
    count: Dim = importer.dim(args["n"])
    return importer.emit("random.randperm", importer.next_key(), n=count)


# -- draws of other distributions, made of the ones that the op table has ------------------------------------


def _drawn(importer: Importer, op: str, t: TensorType, scale: float, shift: float) -> Value:
    """Numbers of ``random.rand`` or ``random.randn``, scaled and then shifted."""
    drawn = importer.emit(op, importer.next_key(), size=t.shape, dtype=t.dtype)
    return importer.emit("aten.add", importer.emit("aten.mul", drawn, float(scale)), float(shift))


@_rule("aten.uniform.default", draws=True)
def _uniform(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    low, high = args["from"], args["to"]
    return _drawn(importer, "random.rand", importer.type_of(n), high - low, low)


@_rule("aten.normal_functional.default", draws=True)
def _normal(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    return _drawn(importer, "random.randn", importer.type_of(n), args["std"], args["mean"])


@_rule("aten.exponential.default", draws=True)
def _exponential(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    """-log(1 - u) / lambd for u uniform on [0, 1); never 0, whose logarithm people take (gumbel_softmax)."""
    t = importer.type_of(n)
    below_one = _drawn(importer, "random.rand", t, -1.0, 0.0)
    scaled = importer.emit("aten.mul", importer.emit("aten.log1p", below_one), -1.0 / float(args["lambd"]))
    return importer.emit("aten.clamp_min", scaled, torch.finfo(t.dtype.torch).tiny)


@_rule("aten.rrelu_with_noise_functional.default", draws=True)
def _rrelu(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    value: Value = importer.entry(args["self"])
    low, high = float(args["lower"]), float(args["upper"])
    if not args["training"]:
        raise importer.fail(n, "outside training is leaky_relu; call eval() on the module before capture")
    slopes = _drawn(importer, "random.rand", value.type, high - low, low)
    noise = importer.emit("aten.where", importer.emit("aten.le", value, 0), slopes, 1.0)
    return importer.emit("aten.mul", value, noise), noise


@_rule("aten.rrelu_with_noise_backward.default")
def _rrelu_backward(importer: Importer, n: torch.fx.Node, args: Args) -> Entry:
    return importer.emit("aten.mul", importer.entry(args["grad_output"]), importer.entry(args["noise"]))
