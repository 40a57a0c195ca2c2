"""The op test table's lines for whole layers, from convolution to losses. See `tests.ops.table`."""

from __future__ import annotations

from planc.ir import DType, TensorType
from planc.ir.dims import Dim
from planc.ops.fused import ACTIVATIONS
from tests.ops.cases import B, Case, Sample, case, f, i

_CONV = {"stride": (2,), "padding": (1,), "dilation": (1,)}
_TRANSPOSED = {**_CONV, "transposed": True, "output_padding": (1, 0)}
_PLAIN = {**_CONV, "transposed": False, "output_padding": (0, 0), "groups": 1, "bias_sizes": (6,)}
CONVOLUTIONS: list[Case] = [
    case("aten.convolution", f(B, 4, 7, 8), f(6, 2, 3, 3), f(6), **_CONV, groups=2),
    case("aten.convolution", f(2, 4, B), f(6, 4, 3), None, **_CONV),
    case("aten.convolution", f(B, 4, 3, 5), f(4, 2, 3, 3), f(2), **_TRANSPOSED),
    case("aten.convolution", f(B, 2, 3, 4, 5), f(3, 2, 2, 2, 2), None, stride=(1,), padding=(0,),
         dilation=(2, 1, 1)),
    case("aten.convolution_backward", f(B, 6, 4, 4), f(B, 4, 7, 8), f(6, 4, 3, 3), **_PLAIN,
         output_mask=(True, True, True)),
    case("aten.convolution_backward", f(B, 6, 4, 4), f(B, 4, 7, 8), f(6, 4, 3, 3), **_PLAIN,
         output_mask=(False, True, False)),
]  # fmt: skip

_MAX2 = {"kernel_size": (3, 2), "stride": (2,), "padding": (1,), "dilation": (1,), "ceil_mode": True}
_AVG2 = {
    "kernel_size": (3, 2),
    "stride": (2,),
    "padding": (1,),
    "ceil_mode": False,
    "count_include_pad": False,
}
POOLING: list[Case] = [
    case("aten.max_pool2d_with_indices", f(B, 3, 7, 8), **_MAX2),
    case("aten.max_pool2d_with_indices", f(3, B + 2, 8), kernel_size=(1,)),
    case(
        "aten.max_pool2d_with_indices_backward", f(B, 3, 4, 5), f(B, 3, 7, 8), i(B, 3, 4, 5, high=56), **_MAX2
    ),
    case("aten.avg_pool2d", f(B, 3, 7, 8), **_AVG2),
    case("aten.avg_pool2d", f(3, 7, 8), kernel_size=(1,), divisor_override=3),
    case("aten.avg_pool2d_backward", f(B, 3, 4, 5), f(B, 3, 7, 8), **_AVG2, divisor_override=None),
    case("aten.adaptive_avg_pool2d", f(B, 3, 7, 8), output_size=(2, 3)),
    case("aten.adaptive_avg_pool2d", f(3, 4, 4), output_size=(4, 4)),
    case("aten.adaptive_avg_pool2d_backward", f(B, 3, 2, 3), f(B, 3, 7, 8)),
]

_MAX3 = {"kernel_size": (2,), "stride": (2, 1, 2), "padding": (1, 0, 1), "dilation": (1,), "ceil_mode": False}
_AVG3 = {
    "kernel_size": (2,),
    "stride": (2, 1, 2),
    "padding": (1, 0, 1),
    "ceil_mode": True,
    "count_include_pad": True,
}
POOLING += [
    case("aten.max_pool3d_with_indices", f(B, 2, 4, 5, 6), **_MAX3),
    case("aten.max_pool3d_with_indices_backward", f(B, 2, 3, 4, 4), f(B, 2, 4, 5, 6),
         i(B, 2, 3, 4, 4, high=120), **_MAX3),
    case("aten.avg_pool3d", f(B, 2, 4, 5, 6), **_AVG3),
    case("aten.avg_pool3d_backward", f(B, 2, 3, 4, 4), f(B, 2, 4, 5, 6), **_AVG3, divisor_override=None),
    case("aten.adaptive_avg_pool3d", f(B, 2, 4, 5, 6), output_size=(2, 3, 4)),
    case("aten.adaptive_avg_pool3d_backward", f(B, 2, 2, 3, 4), f(B, 2, 4, 5, 6)),
    case("aten.adaptive_max_pool2d", f(B, 3, 7, 8), output_size=(2, 3)),
    case("aten.adaptive_max_pool2d_backward", f(B, 3, 2, 3), f(B, 3, 7, 8), i(B, 3, 2, 3, high=56)),
    case("aten.adaptive_max_pool3d", f(2, B, 5, 6), output_size=(2, 3, 4)),
    case("aten.adaptive_max_pool3d_backward", f(B, 2, 2, 3, 4), f(B, 2, 4, 5, 6), i(B, 2, 2, 3, 4, high=120)),
    case("aten.max_unpool2d", f(B, 3, 1, 1), i(B, 3, 1, 1, high=30), output_size=(5, 6)),
]  # fmt: skip

_REFLECTED = {1: (2, 1), 2: (1, 2, 0, 3), 3: (1, 0, 2, 1, 1, 1)}
_IMAGES = {1: (f(B, 3, 5), f(B, 3, 8)), 2: (f(B, 4, 5), f(B, 7, 8)), 3: (f(B, 2, 3, 4, 5), f(B, 2, 5, 7, 6))}
_WINDOW = {"kernel_size": (3, 2), "dilation": (1, 1), "padding": (1, 0), "stride": (1, 2)}
_GRID = {"interpolation_mode": 0, "padding_mode": 1, "align_corners": False}
_RESIZE = {"output_size": (3, 4), "align_corners": False}
RESAMPLING: list[Case] = [
    *(case(f"aten.{kind}_pad{n}d", _IMAGES[n][0], padding=_REFLECTED[n])
      for kind in ("reflection", "replication") for n in (1, 2, 3)),
    *(case(f"aten.{kind}_pad{n}d_backward", *_IMAGES[n][::-1], padding=_REFLECTED[n])
      for kind in ("reflection", "replication") for n in (1, 2, 3)),
    case("aten.replication_pad1d", f(3, B), padding=(0, 0)),
    case("aten.reflection_pad1d", f(3, B), padding=(0, 0)),
    case("aten.im2col", f(B, 3, 5, 6), **_WINDOW),
    case("aten.im2col", f(3, 5, 1), kernel_size=(1, 1), dilation=(1, 1), padding=(0, 0), stride=(1, 1)),
    case("aten.col2im", f(B, 18, 15), output_size=(5, 6), **_WINDOW),
    case("aten.grid_sampler_2d", f(B, 3, 4, 5), f(B, 2, 6, 2, low=-1, high=1), **_GRID),
    case("aten.grid_sampler_2d_backward", f(B, 3, 2, 6), f(B, 3, 4, 5), f(B, 2, 6, 2, low=-1, high=1),
         **_GRID, output_mask=(True, True)),
    *(case(f"aten.upsample_{kind}2d_aa", f(B, 2, 5, 6), **_RESIZE) for kind in ("bilinear", "bicubic")),
    *(case(f"aten.upsample_{kind}2d_aa_backward", f(B, 2, 3, 4), input_size=(B, 2, 5, 6), **_RESIZE)
      for kind in ("bilinear", "bicubic")),
    case("aten.pixel_shuffle", f(B, 12, 2, 3), upscale_factor=2),
    case("aten.pixel_shuffle", f(B, 2, 3), upscale_factor=1),
    case("aten.pixel_unshuffle", f(B, 2, 4, 6), downscale_factor=2),
    case("aten.pixel_unshuffle", f(B, 2, 3), downscale_factor=1),
    case("aten.channel_shuffle", f(B, 6, 2, 3), groups=2),
    case("aten.channel_shuffle", f(B, 6, 2), groups=1),
]  # fmt: skip

_Q, _KV, _SUMS = f(B, 2, 3, 4), f(B, 2, 5, 4), f(B, 2, 3, low=2, high=3)
ATTENTION: list[Case] = [
    case("aten.attention", _Q, _KV, _KV, None),
    case("aten.attention", *(Sample(TensorType(DType.BF16, (B, 2, 3, 4))),) * 3, None),
    case("aten.attention", _Q, _KV, _KV, f(3, 5), scale=0.3),
    case("aten.attention", _Q, _Q, _Q, None, is_causal=True),
    case("aten.attention_backward", _Q, _Q, _KV, _KV, _Q, _SUMS, None),
    case("aten.attention_backward", _Q, _Q, _KV, _KV, _Q, _SUMS, f(B, 1, 3, 5), scale=0.3),
]


def _half(*shape: Dim) -> Sample:
    return Sample(TensorType(DType.BF16, shape), 0.5, 2.0)


_C = f(3, low=0.5)
_NORM = {"momentum": 0.1, "eps": 1e-5}
_ALL = {"output_mask": (True, True, True)}
NORMALISATION: list[Case] = [
    case("aten.batch_norm", f(B, 3, 4), _C, _C, _C, _C, training=True, **_NORM),
    case("aten.batch_norm", f(B, 3), None, None, _C, _C, training=False, **_NORM),
    case("aten.batch_norm_eval", f(B, 3, 2, 2), _C, _C, _C, _C, **_NORM),
    case("aten.batch_norm_no_stats", f(B, 3, 4), _C, None, training=True, **_NORM),
    case("aten.native_batch_norm_backward", f(B, 3, 4), f(B, 3, 4), _C, _C, _C, _C, _C, train=True, eps=1e-5,
         **_ALL),
    case("aten.native_batch_norm_backward", f(B, 3, 4), f(B, 3, 4), None, _C, _C, None, None, train=False,
         eps=1e-5, output_mask=(True, False, False)),
    case("aten.native_group_norm", f(B, 4, 3), f(4), f(4), N=B, C=4, HxW=3, group=2, eps=1e-5),
    case("aten.native_group_norm", f(B, 4), None, None, N=B, C=4, HxW=1, group=4, eps=1e-5),
    case("aten.native_group_norm_backward", f(B, 4, 3), f(B, 4, 3), f(B, 2), f(B, 2, low=0.5), f(4), N=B, C=4,
         HxW=3, group=2, **_ALL),
    case("aten.weight_norm", f(B, 3, 2), f(B, 1, 1)),
    case("aten.weight_norm", f(B, 3), f(1, 3), dim=1),
    case("aten.weight_norm_backward", f(B, 3), f(B, 3), f(B, 1), f(B, 1, low=0.5), dim=0),
    case("aten.native_layer_norm", f(B, 3, 4), f(3, 4), f(3, 4), normalized_shape=(3, 4), eps=1e-5),
    *(case("aten.native_layer_norm", _half(B, 4), p, None, normalized_shape=(4,), eps=1e-5)
      for p in (None, _half(4), f(4))),
    *(case("aten.batch_norm", _half(B, 3), p, None, p, p, training=training, **_NORM)
      for p in (_half(3), _C) for training in (True, False)),
    *(case("aten.batch_norm_no_stats", _half(B, 3), p, None, training=True, **_NORM)
      for p in (None, _half(3), _C)),
    *(case("aten.native_group_norm", _half(B, 4), p, None, N=B, C=4, HxW=1, group=2, eps=1e-5)
      for p in (None, _half(4), f(4))),
    case("aten.weight_norm", _half(B, 3, 2), _half(B, 1, 1)),
    case("aten.native_layer_norm", f(B, 4), None, None, normalized_shape=(4,), eps=1e-5),
    case("aten.native_layer_norm_backward", f(B, 4), f(B, 4), f(B, 1), f(B, 1, low=0.5), f(4), f(4),
         normalized_shape=(4,), **_ALL),
]  # fmt: skip

_PROBABILITY = f(B, 4, low=0.1, high=0.9)
LOSSES: list[Case] = [
    case("aten.nll_loss_forward", f(B, 4), i(B), None, reduction=1, ignore_index=-100),
    case("aten.nll_loss_forward", f(B, 4), i(B), f(4, low=0.1), reduction=0, ignore_index=1),
    case("aten.nll_loss_forward", f(4), i(), None, reduction=2, ignore_index=-100),
    case("aten.nll_loss_backward", f(), f(B, 4), i(B), None, f(low=1), reduction=1, ignore_index=-100),
    case("aten.nll_loss2d_forward", f(B, 3, 2, 5), i(B, 2, 5), f(3, low=0.1), reduction=1, ignore_index=-100),
    case("aten.nll_loss2d_backward", f(B, 2, 5), f(B, 3, 2, 5), i(B, 2, 5), None, f(low=1), reduction=0,
         ignore_index=1),
    case("aten.soft_margin_loss_backward", f(), f(B, 4), f(B, 4), reduction=1),
    case("aten.binary_cross_entropy_with_logits", f(B, 4), _PROBABILITY, None, None),
    case("aten.binary_cross_entropy_with_logits", f(B, 4), _PROBABILITY, f(4), f(4, low=0.1), reduction=0),
    *(case(f"aten.{name}", f(B, 4), f(B, 4), reduction=r)
      for name in ("mse_loss", "smooth_l1_loss", "huber_loss", "soft_margin_loss")
      for r in (0, 1, 2)),
    case("aten.smooth_l1_loss", f(B, 4), f(B, 4), beta=0.3),
    case("aten.mse_loss_backward", f(), f(B, 4), f(B, 4), reduction=1),
    case("aten.smooth_l1_loss_backward", f(), f(B, 4), f(B, 4), reduction=2, beta=0.5),
    case("aten.huber_loss_backward", f(B, 4), f(B, 4), f(B, 4), reduction=0, delta=0.5),
    case("aten.binary_cross_entropy", _PROBABILITY, _PROBABILITY, None),
    case("aten.binary_cross_entropy", _PROBABILITY, _PROBABILITY, f(4, low=0.1), reduction=0),
    case("aten.binary_cross_entropy_backward", f(), _PROBABILITY, _PROBABILITY, None, reduction=1),
]  # fmt: skip

FUSED: list[Case] = [
    case("fused.linear", f(B, 4), f(3, 4), f(3)),
    case("fused.linear", f(B, 4), f(3, 4), None),
    *(case("fused.linear_act", f(B, 4), f(3, 4), f(3), activation=name) for name in ACTIVATIONS),
    case("fused.linear_act", f(B, 4), f(3, 4), None, activation="relu"),
    case("fused.linear_backward", f(B, 3), f(B, 4), f(3, 4), output_mask=(True, True, True)),
    case("fused.linear_backward", f(B, 3), f(B, 4), None, output_mask=(False, True, False)),
    case("fused.cross_entropy", f(B, 5), i(B, high=5), f(5, low=0.1), reduction=2),
    case("fused.cross_entropy", f(B, 5), i(B, high=5), None, reduction=0, ignore_index=2),
    case("fused.cross_entropy_backward", f(), f(B, 5, high=0.0), i(B, high=5), None, f(low=1.0)),
    case(
        "fused.cross_entropy_backward", f(B), f(B, 5, high=0.0), i(B, high=5), f(5), f(low=1.0), reduction=0
    ),
    case("fused.elementwise", (f(B, 4), f(4)), steps="mul(x0, x1); add(s0, 0.5, alpha=2); gelu(s1)"),
    case("fused.elementwise", (f(4), f(B, 1, 4)), steps="gt(x1, x0); to(s0, dtype=f64); sub(s1, x0)"),
]
LAYERS: list[Case] = [
    *CONVOLUTIONS, *POOLING, *RESAMPLING, *ATTENTION, *NORMALISATION, *LOSSES, *FUSED,
]  # fmt: skip
