"""Every layer, activation and loss that a plan can train: one line each, as small branches of a network.

Not a test itself: `tests.ops.test_layers` trains them in bundles, ``python -m tests.ops.layers`` one by one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from tests.ops.training import Apply, Branch, Forward, Make, bundle, worst

Tensor = torch.Tensor


def _each(sample: tuple[int, ...], **layers: Callable[[], nn.Module | Forward]) -> dict[str, Make]:
    return {name: (lambda make=make: Branch(make(), *sample)) for name, make in layers.items()}


def _functions(sample: tuple[int, ...], **functions: Forward) -> dict[str, Make]:
    return {name: (lambda f=f: Branch(f, *sample)) for name, f in functions.items()}


ACTIVATIONS = _functions(
    (6,),
    threshold=lambda x: F.threshold(x, 0.1, 2.0),
    relu=F.relu,
    hardtanh=F.hardtanh,
    hardswish=F.hardswish,
    relu6=F.relu6,
    elu=F.elu,
    selu=F.selu,
    celu=lambda x: F.celu(x, 1.3),
    leaky_relu=lambda x: F.leaky_relu(x, 0.2),
    glu=F.glu,
    gelu=F.gelu,
    gelu_tanh=lambda x: F.gelu(x, approximate="tanh"),
    logsigmoid=F.logsigmoid,
    hardshrink=F.hardshrink,
    tanhshrink=F.tanhshrink,
    softsign=F.softsign,
    softplus=lambda x: F.softplus(x, 2.0),
    softmin=lambda x: F.softmin(x, dim=1),
    softmax=lambda x: F.softmax(x, dim=1),
    softshrink=F.softshrink,
    log_softmax=lambda x: F.log_softmax(x, dim=1),
    tanh=F.tanh,
    sigmoid=F.sigmoid,
    hardsigmoid=F.hardsigmoid,
    silu=F.silu,
    mish=F.mish,
    normalize=F.normalize,
) | _each((6,), prelu=lambda: nn.PReLU(6), prelu_one=nn.PReLU)

RANDOM = (
    _functions(
        (6,),
        rrelu=lambda x: F.rrelu(x, training=True),
        gumbel_softmax=lambda x: F.gumbel_softmax(x, dim=1),
        dropout=lambda x: F.dropout(x, 0.4, True),
        alpha_dropout=lambda x: F.alpha_dropout(x, 0.4, True),
        feature_alpha_dropout=lambda x: F.feature_alpha_dropout(x, 0.4, True),
    )
    | _functions(
        (3, 4, 4),
        dropout1d=lambda x: F.dropout1d(x.flatten(2), 0.4, True),
        dropout2d=lambda x: F.dropout2d(x, 0.4, True),
    )
    | _each(
        (3, 8), encoder_dropout=lambda: nn.TransformerEncoderLayer(8, 2, 12, dropout=0.3, batch_first=True)
    )
)


def _classes(x: Tensor) -> Tensor:
    return (torch.arange(x.shape[0]) * 7 + 3) % x.shape[1]


def _signs(x: Tensor) -> Tensor:
    return (torch.arange(x.shape[0]) % 2 * 2 - 1).to(x.dtype)


def _ctc(x: Tensor) -> Tensor:
    logs = F.log_softmax(x.transpose(0, 1), dim=2)
    b = x.shape[0]
    return F.ctc_loss(logs, torch.ones(b, 2, dtype=torch.long), torch.full((b,), 5), torch.full((b,), 2))


LOSSES = _functions(
    (6,),
    l1_loss=lambda x: F.l1_loss(x, x.detach().cos()),
    mse_loss=lambda x: F.mse_loss(x, x.detach().cos()),
    mse_loss_sum=lambda x: F.mse_loss(x, x.detach().cos(), reduction="sum") / 10,
    smooth_l1_loss=lambda x: F.smooth_l1_loss(x, x.detach().cos(), beta=0.5),
    huber_loss=lambda x: F.huber_loss(x, x.detach().cos(), delta=0.7),
    cross_entropy=lambda x: F.cross_entropy(x, _classes(x)),
    cross_entropy_smooth=lambda x: F.cross_entropy(x, _classes(x), label_smoothing=0.1),
    cross_entropy_weight=lambda x: F.cross_entropy(x, _classes(x), weight=torch.linspace(0.5, 2, 6)),
    cross_entropy_soft=lambda x: F.cross_entropy(x, x.detach().softmax(1)),
    nll_loss=lambda x: F.nll_loss(x.log_softmax(1), _classes(x), ignore_index=3),
    bce=lambda x: F.binary_cross_entropy(x.sigmoid(), x.detach().cos().abs()),
    bce_logits=lambda x: F.binary_cross_entropy_with_logits(x, x.detach().cos().abs()),
    bce_logits_pos=lambda x: F.binary_cross_entropy_with_logits(
        x, x.detach().cos().abs(), pos_weight=torch.linspace(0.5, 2, 6)
    ),
    kl_div=lambda x: F.kl_div(x.log_softmax(1), x.detach().cos().softmax(1), reduction="batchmean"),
    kl_div_log=lambda x: F.kl_div(
        x.log_softmax(1), x.detach().cos().log_softmax(1), reduction="batchmean", log_target=True
    ),
    poisson_nll_loss=lambda x: F.poisson_nll_loss(x, x.detach().abs(), full=True),
    hinge_embedding_loss=lambda x: F.hinge_embedding_loss(x, _signs(x).unsqueeze(1).expand_as(x)),
    soft_margin_loss=lambda x: F.soft_margin_loss(x, _signs(x).unsqueeze(1).expand_as(x)),
    multilabel_soft_margin_loss=lambda x: F.multilabel_soft_margin_loss(x, (x.detach() > 0).float()),
    multi_margin_loss=lambda x: F.multi_margin_loss(x, _classes(x)),
    multilabel_margin_loss=lambda x: F.multilabel_margin_loss(x, _classes(x).unsqueeze(1).expand(-1, 6)),
    margin_ranking_loss=lambda x: F.margin_ranking_loss(x[:, 0], x[:, 1], _signs(x)),
    cosine_embedding_loss=lambda x: F.cosine_embedding_loss(x, x.detach().cos(), _signs(x)),
    triplet_margin_loss=lambda x: F.triplet_margin_loss(x, x.cos(), x.sin()),
    triplet_distance=lambda x: F.triplet_margin_with_distance_loss(x, x.cos(), x.sin()),
    cosine_similarity=lambda x: F.cosine_similarity(x, x.detach().cos()),
    pairwise_distance=lambda x: F.pairwise_distance(x, x.detach().cos()),
) | _functions(
    (5, 4, 3),
    cross_entropy_map=lambda x: F.cross_entropy(x, torch.ones(x.shape[0], 4, 3, dtype=torch.long)),
)

LINEAR = _each(
    (6,),
    linear=lambda: nn.Linear(6, 4),
    identity=nn.Identity,
    bilinear=lambda: Apply(nn.Bilinear(6, 6, 3), lambda layer, x: layer(x, x.cos())),
    embedding=lambda: Apply(nn.Embedding(9, 4), lambda layer, x: layer(_classes(x))),
    embedding_padding=lambda: Apply(nn.Embedding(9, 4, padding_idx=3), lambda layer, x: layer(_classes(x))),
    unflatten=lambda: nn.Unflatten(1, (2, 3)),
)

CONVOLUTIONS = (
    _each(
        (4, 9),
        conv1d=lambda: nn.Conv1d(4, 3, 3),
        conv1d_same=lambda: nn.Conv1d(4, 3, 3, padding="same"),
        conv_transpose1d=lambda: nn.ConvTranspose1d(4, 3, 3, stride=2, output_padding=1),
    )
    | _each(
        (4, 7, 8),
        conv2d=lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=1, groups=2, bias=False),
        conv2d_reflect=lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        conv_transpose2d=lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        fold=lambda: lambda x: F.fold(F.unfold(x, 3, padding=1), (7, 8), 3, padding=1),
    )
    | _each(
        (2, 5, 4, 6),
        conv3d=lambda: nn.Conv3d(2, 3, 3, padding=1),
        conv_transpose3d=lambda: nn.ConvTranspose3d(2, 3, 2, stride=2),
    )
)

POOLING = (
    _functions(
        (3, 9),
        max_pool1d=lambda x: F.max_pool1d(x, 3, 2, 1),
        avg_pool1d=lambda x: F.avg_pool1d(x, 3, 2, 1),
        lp_pool1d=lambda x: F.lp_pool1d(x.abs() + 0.1, 2.0, 3),
        adaptive_avg_pool1d=lambda x: F.adaptive_avg_pool1d(x, 4),
        adaptive_max_pool1d=lambda x: F.adaptive_max_pool1d(x, 4),
    )
    | _functions(
        (3, 7, 8),
        max_pool2d=lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
        avg_pool2d=lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
        lp_pool2d=lambda x: F.lp_pool2d(x.abs() + 0.1, 3.0, 2),
        adaptive_avg_pool2d=lambda x: F.adaptive_avg_pool2d(x, (3, 5)),
        adaptive_avg_pool2d_one=lambda x: F.adaptive_avg_pool2d(x, 1),
        adaptive_max_pool2d=lambda x: F.adaptive_max_pool2d(x, (3, 5)),
        max_unpool2d=lambda x: F.max_unpool2d(
            *F.max_pool2d(x, 2, return_indices=True), 2, output_size=(7, 8)
        ),
    )
    | _functions(
        (2, 5, 6, 7),
        max_pool3d=lambda x: F.max_pool3d(x, 2),
        avg_pool3d=lambda x: F.avg_pool3d(x, 3, 2, 1),
        adaptive_avg_pool3d=lambda x: F.adaptive_avg_pool3d(x, (2, 3, 4)),
        adaptive_max_pool3d=lambda x: F.adaptive_max_pool3d(x, (2, 3, 4)),
    )
)

NORMALISATION = (
    _each(
        (4, 6),
        batch_norm1d=lambda: nn.BatchNorm1d(4),
        layer_norm=lambda: nn.LayerNorm(6),
        layer_norm_plain=lambda: nn.LayerNorm((4, 6), elementwise_affine=False),
        rms_norm=lambda: nn.RMSNorm(6),
        group_norm=lambda: nn.GroupNorm(2, 4),
        instance_norm1d=lambda: nn.InstanceNorm1d(4, affine=True),
        local_response_norm=lambda: nn.LocalResponseNorm(2),
    )
    | _each(
        (4, 5, 6),
        batch_norm2d=lambda: nn.BatchNorm2d(4),
        batch_norm2d_eval=lambda: nn.BatchNorm2d(4).eval(),
        batch_norm2d_no_stats=lambda: nn.BatchNorm2d(4, track_running_stats=False),
        group_norm_plain=lambda: nn.GroupNorm(2, 4, affine=False),
        instance_norm2d=lambda: nn.InstanceNorm2d(4),
        instance_norm2d_stats=lambda: nn.InstanceNorm2d(4, track_running_stats=True),
        weight_norm=lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 3, 3)),
    )
    | _each(
        (2, 3, 4, 5), batch_norm3d=lambda: nn.BatchNorm3d(2), instance_norm3d=lambda: nn.InstanceNorm3d(2)
    )
)


def _encoder_layer(**options: object) -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, **options)  # pyright: ignore[reportArgumentType]


def _self_attention(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x, x, x)[0]


def _causal(x: Tensor) -> Tensor:
    heads = x.unflatten(2, (2, 4)).transpose(1, 2)
    return F.scaled_dot_product_attention(heads, heads.cos(), heads.sin(), is_causal=True)


def _masked(x: Tensor) -> Tensor:
    heads = x.unflatten(2, (2, 4)).transpose(1, 2)
    mask = torch.ones(3, 3).tril().bool()
    return F.scaled_dot_product_attention(heads, heads.cos(), heads.sin(), attn_mask=mask, scale=0.3)


SEQUENCES = _each(
    (3, 8),
    rnn=lambda: Apply(nn.RNN(8, 4, batch_first=True), lambda layer, x: layer(x)[0]),
    lstm=lambda: Apply(nn.LSTM(8, 4, batch_first=True), lambda layer, x: layer(x)[0]),
    lstm_two=lambda: Apply(
        nn.LSTM(8, 4, 2, bidirectional=True), lambda layer, x: layer(x.transpose(0, 1))[0]
    ),
    gru=lambda: Apply(nn.GRU(8, 4, batch_first=True), lambda layer, x: layer(x)[0]),
    lstm_cell=lambda: Apply(nn.LSTMCell(8, 4), lambda layer, x: layer(x[:, 0])[0]),
    gru_cell=lambda: Apply(nn.GRUCell(8, 4), lambda layer, x: layer(x[:, 0])),
    attention=lambda: Apply(nn.MultiheadAttention(8, 2, batch_first=True), _self_attention),
    sdpa=lambda: lambda x: F.scaled_dot_product_attention(x, x.cos(), x.sin()),
    sdpa_causal=lambda: _causal,
    sdpa_mask=lambda: _masked,
    encoder=lambda: _encoder_layer(),
    encoder_first=lambda: _encoder_layer(norm_first=True, activation="gelu"),
    transformer=lambda: Apply(
        nn.Transformer(8, 2, 1, 1, 12, dropout=0.0, batch_first=True), lambda layer, x: layer(x, x.cos())
    ),
)

VISION = _functions(
    (4, 5, 6),
    pixel_shuffle=lambda x: F.pixel_shuffle(x, 2),
    pixel_unshuffle=lambda x: F.pixel_unshuffle(x[:, :, :4], 2),
    channel_shuffle=lambda x: F.channel_shuffle(x, 2),
    pad=lambda x: F.pad(x, (1, 2, 0, 1)),
    pad_crop=lambda x: F.pad(x, (-1, 2)),
    pad_circular=lambda x: F.pad(x, (1, 1, 2, 0), mode="circular"),
    pad_reflect=lambda x: F.pad(x, (1, 2, 3, 0), mode="reflect"),
    pad_replicate=lambda x: F.pad(x, (1, 2, 3, 0), mode="replicate"),
    pad_reflect1d=lambda x: F.pad(x.flatten(1, 2), (1, 2), mode="reflect"),
    pad_replicate1d=lambda x: F.pad(x.flatten(1, 2), (1, 2), mode="replicate"),
    nearest=lambda x: F.interpolate(x, scale_factor=2),
    nearest_exact=lambda x: F.interpolate(x, size=(7, 9), mode="nearest-exact"),
    bilinear_up=lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    bilinear_aligned=lambda x: F.interpolate(x, size=(9, 7), mode="bilinear", align_corners=True),
    bilinear_antialias=lambda x: F.interpolate(x, size=(3, 4), mode="bilinear", antialias=True),
    bicubic=lambda x: F.interpolate(x, size=(9, 7), mode="bicubic"),
    area=lambda x: F.interpolate(x, size=(3, 3), mode="area"),
    nearest1d=lambda x: F.interpolate(x.flatten(2), scale_factor=2),
    linear1d=lambda x: F.interpolate(x.flatten(2), scale_factor=2, mode="linear"),
    grid_sample=lambda x: F.grid_sample(x, torch.tanh(x[:, :2].permute(0, 2, 3, 1)), align_corners=False),
) | _functions(
    (2, 3, 4, 5),
    nearest3d=lambda x: F.interpolate(x, scale_factor=2),
    trilinear=lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"),
    pad_reflect3d=lambda x: F.pad(x, (1, 2, 1, 0, 1, 1), mode="reflect"),
    pad_replicate3d=lambda x: F.pad(x, (1, 2, 1, 0, 1, 1), mode="replicate"),
)

UNCOVERED = (
    _functions(
        (6,),
        gaussian_nll_loss=lambda x: F.gaussian_nll_loss(x, x.detach().cos(), x.abs() + 0.1),
        embedding_bag=lambda x: F.embedding_bag(_classes(x).unsqueeze(1), x[0].expand(9, 6)),
        max_norm=lambda x: F.embedding(_classes(x), x[0].expand(9, 6).contiguous(), max_norm=1.0),
        cdist=lambda x: torch.cdist(x, x.cos()),
        masked_select=lambda x: x[x > 0],
        median=lambda x: x.median(1).values,
        fft=lambda x: torch.fft.rfft(x).abs(),
        svd=lambda x: torch.linalg.svdvals(x),
    )
    | _functions((5, 4), ctc_loss=_ctc)
    | _functions((3, 7, 8), fractional_max_pool2d=lambda x: F.fractional_max_pool2d(x, 2, output_size=(3, 4)))
)
"""What a plan cannot train, and says so."""

FAMILIES: dict[str, dict[str, Make]] = {
    "activations": ACTIVATIONS,
    "losses": LOSSES,
    "linear": LINEAR,
    "convolutions": CONVOLUTIONS,
    "pooling": POOLING,
    "normalisation": NORMALISATION,
    "sequences": SEQUENCES,
    "vision": VISION,
}
SLOW = {"rnn", "lstm_two", "gru", "encoder_first", "transformer", "attention", "trilinear", "bicubic"}
"""Left to ``python -m tests.ops.layers``: many nodes, or a second layer of a kind."""


def main(only: list[str]) -> None:
    torch.set_num_threads(1)
    for family, layers in FAMILIES.items():
        for name, make in layers.items():
            if only and name not in only and family not in only:
                continue
            try:
                print(f"{family:14} {name:28} {worst(bundle({name: make}))[name]:.1e}", flush=True)
            except Exception as error:  # the report is of everything
                text = next(line for line in str(error).splitlines() if line.strip())
                print(f"{family:14} {name:28} {type(error).__name__}: {text[:150]}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
