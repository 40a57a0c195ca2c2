"""The zoo: whole networks captured as training steps, compared with eager PyTorch: the table in docs/zoo.md.

``python -m benchmarks.zoo`` runs all (an hour on two cores), ``python -m benchmarks.zoo resnet18 lstm`` some;
rows of networks that did not run stay as they are. Networks and what is compared are here, numbers are not.
"""

from __future__ import annotations

import argparse
import copy
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import planc
from planc import codec
from planc.errors import PlancError
from planc.verifier import verify
from runtime.demo.torchvision_compat import import_torchvision

TABLE = Path(__file__).parents[1] / "docs" / "zoo.md"
TRACED, SIZES, STEPS = 5, (2, 3), 3
CLASSES = 10
Batch = tuple[torch.Tensor, torch.Tensor]

_AT = " | ".join(f"batch {size}" for size in SIZES)
HEADER = f"""# The zoo

Networks whose whole training step (forward, cross entropy, gradients, SGD with momentum 0.9) was captured as
a plan and run beside eager PyTorch. This page is made by `make zoo` (`python -m benchmarks.zoo`); do not edit
it.

Differences are the largest of |plan - PyTorch| / max(1, |PyTorch|) over the loss, every parameter, every
buffer and every momentum (the gradients) after each of {STEPS} steps at each batch size; captures see
batches of other sizes. 0 is bit for bit. Dropout and stochastic depth have probability 0 here, because a
plan's random numbers are not PyTorch's. Images are 64 x 64, in {CLASSES} classes. "Capture" is capture
and all passes; "decode" is decoding the plan's bytes and verifying it; both on one thread of the machine
that ran this (torch {torch.__version__.partition("+")[0]}).

| network | parameters | nodes | after passes | capture, s | decode, ms | {_AT} |
| --- | --: | --: | --: | --: | --: | --: | --: |
"""


@dataclass(frozen=True)
class Entry:
    """A network and the batches that it trains on."""

    make: Callable[[], nn.Module]
    batch: Callable[[int], Batch]


def images(rows: int) -> Batch:
    return torch.randn(rows, 3, 64, 64), torch.randint(CLASSES, (rows,))


def large_images(size: int) -> Callable[[int], Batch]:
    return lambda rows: (torch.randn(rows, 3, size, size), torch.randint(CLASSES, (rows,)))


def sequences(rows: int) -> Batch:
    return torch.randn(rows, 7, 16), torch.randint(CLASSES, (rows,))


def words(rows: int) -> Batch:
    return torch.randint(50, (rows, 9)), torch.randint(CLASSES, (rows,))


class Recurrent(nn.Module):
    """A recurrent network over sequences, and a linear layer on its last output."""

    def __init__(self, kind: Callable[..., nn.Module], **options: Any) -> None:
        super().__init__()
        self.core = kind(16, 12, batch_first=True, **options)
        self.out = nn.Linear(24 if options.get("bidirectional") else 12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.core(x)[0][:, -1])


class Attending(nn.Module):
    """Multi-head attention with its weights as a second result."""

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.MultiheadAttention(16, 4, batch_first=True)
        self.out = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, weights = self.core(x, x, x)
        return self.out(y.mean(1)) + weights.mean()


class Encoding(nn.Module):
    """Words, embedded, through a transformer encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.core = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.core(self.embed(x)).mean(1))


class Translating(nn.Module):
    """A whole transformer, encoder and decoder with a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.core = nn.Transformer(16, 4, 1, 1, 32, dropout=0.0, batch_first=True)
        self.out = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        source = self.embed(x)
        mask = nn.Transformer.generate_square_subsequent_mask(9)
        return self.out(self.core(source, source.flip(1), tgt_mask=mask)[:, -1])


def _vision(name: str, batch: Callable[[int], Batch] = images, **options: Any) -> Entry:
    def make() -> nn.Module:
        return _models().get_model(name, num_classes=CLASSES, **options)

    return Entry(make, batch)


def _models() -> Any:
    return import_torchvision().models


def _convnext() -> nn.Module:
    block = _models().convnext.CNBlockConfig
    stages = [block(24, 48, 1), block(48, 96, 1), block(96, 192, 1), block(192, None, 1)]
    return _models().ConvNeXt(stages, num_classes=CLASSES)


def _swin(**options: Any) -> nn.Module:
    """A Swin transformer of two stages, of one block and of two: the second's windows are shifted."""
    return _models().SwinTransformer(
        [4, 4], 24, [1, 2], [2, 2], [7, 7], stochastic_depth_prob=0.0, num_classes=CLASSES, **options
    )


def _swin_v2() -> nn.Module:
    swin = _models().swin_transformer
    return _swin(block=swin.SwinTransformerBlockV2, downsample_layer=swin.PatchMergingV2)


def _densenet() -> nn.Module:
    return _models().DenseNet(8, (2, 2, 2, 2), 16, num_classes=CLASSES)


def _maxvit() -> nn.Module:
    return _models().MaxVit((64, 64), 16, 4, [16, 32], [1, 1], 8, 0.0, num_classes=CLASSES)


ZOO: dict[str, Entry] = {
    "lstm": Entry(lambda: Recurrent(nn.LSTM), sequences),
    "lstm, 2 layers, both ways": Entry(
        lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True), sequences
    ),
    "gru": Entry(lambda: Recurrent(nn.GRU), sequences),
    "rnn": Entry(lambda: Recurrent(nn.RNN), sequences),
    "multi-head attention": Entry(Attending, sequences),
    "transformer encoder": Entry(Encoding, words),
    "transformer": Entry(Translating, words),
    "alexnet": _vision("alexnet"),
    "resnet18": _vision("resnet18"),
    "vgg11_bn": _vision("vgg11_bn"),
    "squeezenet1_1": _vision("squeezenet1_1"),
    "mobilenet_v2": _vision("mobilenet_v2"),
    "vit_b_16": _vision("vit_b_16", image_size=64),
    "convnext_tiny": _vision("convnext_tiny"),
    "mobilenet_v3_small": _vision("mobilenet_v3_small"),
    "shufflenet_v2_x0_5": _vision("shufflenet_v2_x0_5"),
    "mnasnet0_5": _vision("mnasnet0_5"),
    "regnet_y_400mf": _vision("regnet_y_400mf"),
    "resnet50": _vision("resnet50"),
    "efficientnet_b0": _vision("efficientnet_b0"),
    "swin_t": _vision("swin_t"),
    "swin_v2_t": _vision("swin_v2_t"),
    "mobilenet_v3_large": _vision("mobilenet_v3_large"),
    "densenet121": _vision("densenet121"),
    "resnext50_32x4d": _vision("resnext50_32x4d"),
    "wide_resnet50_2": _vision("wide_resnet50_2"),
    "googlenet": _vision("googlenet", aux_logits=False, init_weights=False),
    "inception_v3": _vision("inception_v3", large_images(96), aux_logits=False, init_weights=False),
    "efficientnet_v2_s": _vision("efficientnet_v2_s"),
    "maxvit_t": _vision("maxvit_t", large_images(224)),
    "convnext, 4 blocks": Entry(_convnext, images),
    "swin, 3 blocks": Entry(_swin, images),
    "swin v2, 3 blocks": Entry(_swin_v2, images),
    "densenet, 8 layers": Entry(_densenet, images),
    "maxvit, 2 blocks": Entry(_maxvit, images),
}


def row(name: str, entry: Entry) -> str:
    """Capture, run and compare one network; its line of the table."""
    torch.manual_seed(0)
    module = entry.make().train()
    for part in module.modules():
        if isinstance(part, nn.Dropout) or type(part).__name__ == "StochasticDepth":
            part.p = 0.0
    count = sum(p.numel() for p in module.parameters())
    began = time.perf_counter()
    try:
        plan = planc.train_step(module, F.cross_entropy, _optimizer(module), *entry.batch(TRACED))
    except PlancError as error:
        first = str(error).splitlines()[0]
        return f"| {name} | {count:,} | refused: {first} | | | | | |"
    seconds = time.perf_counter() - began
    before = plan.records[0].nodes_before
    data, began = plan.bytes, time.perf_counter()
    verify(codec.decode(data))
    decoding = 1000 * (time.perf_counter() - began)
    differences = [_difference(copy.deepcopy(module), plan.with_state({}), entry, size) for size in SIZES]
    shown = " | ".join("0" if d == 0 else f"{d:.1e}" for d in differences)
    nodes = f"{before} | {plan.graph.count_nodes()}"
    return f"| {name} | {count:,} | {nodes} | {seconds:.1f} | {decoding:.0f} | {shown} |"


def _optimizer(module: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)


def _difference(module: nn.Module, plan: planc.Plan, entry: Entry, size: int) -> float:
    optimizer = _optimizer(module)
    worst = 0.0
    for _ in range(STEPS):
        batch = entry.batch(size)
        optimizer.zero_grad()
        loss = F.cross_entropy(module(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        pairs = [(plan(*batch), loss.detach())]
        for path, tensor in (*module.named_parameters(), *module.named_buffers()):
            pairs.append((plan.state[path], tensor.detach()))
        for path, parameter in module.named_parameters():
            momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                pairs.append((plan.state[f"{path}.momentum_buffer"], momentum))
        worst = max(worst, *(_relative(got.double(), want.double()) for got, want in pairs))
    return worst


def _relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float(((got - want).abs() / want.abs().clamp(min=1)).max()) if got.numel() else 0.0


def _known() -> dict[str, str]:
    lines = TABLE.read_text(encoding="utf-8").splitlines() if TABLE.exists() else []
    return {m[1]: line for line in lines if (m := re.match(r"\| (.+?) \| [\d,]+ \|", line))}


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare captured networks with eager PyTorch.")
    parser.add_argument("networks", nargs="*", help=f"some of: {', '.join(ZOO)}")
    chosen = parser.parse_args().networks or list(ZOO)
    unknown = [name for name in chosen if name not in ZOO]
    if unknown:
        parser.error(f"there is no network {unknown[0]!r}")
    torch.set_num_threads(1)
    for name in chosen:
        print(f"{name} ...", file=sys.stderr, flush=True)
        line = row(name, ZOO[name])
        print(line, flush=True)
        rows = {**_known(), name: line}  # read anew: two runs may share the table
        TABLE.write_text(HEADER + "".join(f"{rows[key]}\n" for key in ZOO if key in rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
