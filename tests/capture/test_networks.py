"""Networks as people write them: steps, state and results equal eager PyTorch at sizes not traced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import planc
from planc.errors import CaptureError
from tests.capture.training import Batch, close, mlp, pair


@dataclass
class Network:
    """A module, its loss, what it trains on, and how it is captured."""

    module: nn.Module
    loss_fn: Callable[..., Any]
    batch: Callable[[int], Batch]
    targets: int = 1
    dynamic: dict[str, dict[int, str]] | None = None
    optimizer: Callable[[Any], optim.Optimizer] = field(default=lambda p: optim.Adam(p, lr=0.01))


NETWORKS: list[Callable[[], Network]] = []


def network(make: Callable[[], Network]) -> Callable[[], Network]:
    NETWORKS.append(make)
    return make


def vectors(rows: int) -> Batch:
    return torch.randn(rows, 6), torch.randint(3, (rows,))


class Recurrent(nn.Module):
    """Takes the state of the last piece of a sequence, and gives the next."""

    def __init__(self) -> None:
        super().__init__()
        self.core, self.out = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> Any:
        _, state = self.core(x, state)
        return self.out(state[-1]), state


@network
def recurrent_with_state() -> Network:
    def loss_fn(out: Any, y: torch.Tensor) -> Any:
        return F.cross_entropy(out[0], y), out[1].detach()

    def batch(rows: int) -> Batch:
        return torch.randn(rows, 2, 4), torch.randn(1, rows, 5), torch.randint(3, (rows,))

    return Network(Recurrent(), loss_fn, batch, dynamic={"x": {0: "b"}, "state": {1: "b"}, "y": {0: "b"}})


class UNet(nn.Module):
    """One level down and up again, with a skip connection and in-place activations."""

    def __init__(self) -> None:
        super().__init__()

        def block(take: int, give: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(take, give, 3, padding=1, bias=False), nn.BatchNorm2d(give), nn.ReLU(inplace=True)
            )

        self.down, self.middle, self.join = block(1, 2), block(2, 4), block(4, 2)
        self.up, self.out = nn.ConvTranspose2d(4, 2, 2, stride=2), nn.Conv2d(2, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.down(x)
        y = self.up(self.middle(F.max_pool2d(skip, 2)))
        return self.out(self.join(torch.cat([y, skip], 1)))


@network
def u_net() -> Network:
    def dice(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        p = out.sigmoid()
        shared = (p * y).sum((1, 2, 3))
        score = (2 * shared + 1) / (p.sum((1, 2, 3)) + y.sum((1, 2, 3)) + 1)
        return 1 - score.mean() + F.binary_cross_entropy_with_logits(out, y)

    return Network(UNet(), dice, lambda n: (torch.randn(n, 1, 4, 4), (torch.rand(n, 1, 4, 4) > 0.5).float()))


class Patches(nn.Module):
    """A vision transformer's block from scratch: patches by unfold, attention by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Parameter(torch.randn(3, 2, 2, 4) * 0.3)
        self.first = nn.Parameter(torch.zeros(1, 1, 4))
        self.qkv = nn.Parameter(torch.randn(3, 2, 4, 2) * 0.3)
        self.norm, self.out = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = x.unfold(2, 2, 2).unfold(3, 2, 2)
        tokens = torch.einsum("ncxyij,cijd->nxyd", patches, self.patch).flatten(1, 2)
        tokens = torch.cat([self.first.expand(x.shape[0], -1, -1), tokens], 1)
        q, k, v = torch.einsum("ntd,chde->cnhte", self.norm(tokens), self.qkv)
        weights = torch.einsum("nhte,nhse->nhts", q, k).softmax(-1)
        return self.out(torch.einsum("nhts,nhse->nthe", weights, v).flatten(2)[:, 0])


@network
def vision_transformer() -> Network:
    def loss_fn(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(out, y, label_smoothing=0.1)

    return Network(Patches(), loss_fn, lambda n: (torch.randn(n, 3, 4, 5), torch.randint(3, (n,))))


class Causal(nn.Module):
    """A temporal convolution that sees the past alone: padding on both sides and a chomp, or on one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(2, 2, 3, padding=2), nn.Conv1d(2, 2, 3, dilation=2)
        self.out = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.a(x)[..., :-2])
        return self.out(F.relu(x + self.b(F.pad(y, (4, 0))))[:, :, -1])


@network
def temporal_convolutions() -> Network:
    def batch(rows: int) -> Batch:
        return torch.randn(rows, 2, rows + 2), torch.randint(3, (rows,))

    return Network(Causal(), F.cross_entropy, batch, dynamic={"x": {0: "b", 2: "t"}, "target": {0: "b"}})


class Discriminator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 2, 4, 2, 1, bias=False),
            nn.InstanceNorm2d(2, affine=True),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(8, 1),
        )

    def forward(self, real: torch.Tensor, fake: torch.Tensor) -> Any:
        return self.layers(real), self.layers(fake.detach())


@network
def two_losses_of_a_discriminator() -> Network:
    def loss_fn(out: Any) -> Any:
        real, fake = out
        a = F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
        b = F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
        return {"loss": a + b, "real": a, "fake": b, "right": (real > 0).float().mean()}

    return Network(
        Discriminator(), loss_fn, lambda n: (torch.randn(n, 1, 4, 4), torch.randn(n, 1, 4, 4)), targets=0
    )


class Masked(nn.Module):
    """Attention with a key padding mask, and a mean over what is not padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend = (
            nn.Embedding(9, 4, padding_idx=0),
            nn.MultiheadAttention(4, 2, batch_first=True),
        )
        self.out = nn.Linear(4, 3)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        padding = words == 0
        x = self.embed(words)
        y = self.attend(x, x, x, key_padding_mask=padding)[0].masked_fill(padding[..., None], 0)
        return self.out(y.sum(1) / (~padding).sum(1, keepdim=True))


@network
def attention_with_padding() -> Network:
    def batch(rows: int) -> Batch:
        words = torch.randint(1, 9, (rows, 4)) * (torch.arange(4) < torch.randint(1, 5, (rows, 1)))
        return words, torch.randint(3, (rows,))

    return Network(Masked(), F.cross_entropy, batch)


class Averaged(nn.Module):
    """A moving average of its weights as buffers: one written in place, others assigned anew."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.average = nn.Buffer(self.layer.weight.detach().clone())
        self.mean, self.steps = nn.Buffer(torch.zeros(6)), nn.Buffer(torch.tensor(0))

    def forward(self, x: torch.Tensor) -> Any:
        if self.training:
            with torch.no_grad():
                self.steps = self.steps + 1
                decay = torch.minimum(torch.tensor(0.9), (1 + self.steps) / (10 + self.steps))
                self.average.mul_(decay).add_(self.layer.weight * (1 - decay))
                self.mean = torch.lerp(self.mean, x.mean(0), 0.1)
        return self.layer(x - self.mean), F.linear(x, self.average)


@network
def averaged_weights() -> Network:
    def loss_fn(out: Any, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(out[0], y) + F.mse_loss(out[0], out[1])

    return Network(Averaged(), loss_fn, vectors)


@network
def weight_decay_in_the_loss() -> Network:
    """The loss reads the module's parameters on its own: they are the step's, not those at capture."""
    net = mlp()

    def loss_fn(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(out, y) + 0.1 * sum(p.square().sum() for p in net.parameters())

    return Network(net, loss_fn, vectors, optimizer=lambda p: optim.SGD(p, lr=0.1))


class Checkpointed(nn.Module):
    """Backward runs a part of forward again, with the step's parameters, not with those at capture."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(checkpoint(lambda t: F.gelu(self.a(t)), x, use_reentrant=False))


@network
def activation_checkpointing() -> Network:
    return Network(Checkpointed(), F.cross_entropy, vectors, optimizer=lambda p: optim.SGD(p, lr=0.5))


class Penalised(nn.Module):
    """Gives the gradient of its output by its input too, as a penalty on gradients wants."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Softplus(), nn.Linear(8, 1))

    def forward(self, x: torch.Tensor) -> Any:
        x = x.detach().requires_grad_()
        y = self.layers(x)
        return y, torch.autograd.grad(y.sum(), x, create_graph=True)[0]


@network
def gradient_penalty() -> Network:
    def loss_fn(out: Any, _: torch.Tensor) -> torch.Tensor:
        return out[0].mean() + (out[1].norm(2, dim=1) - 1).square().mean()

    return Network(Penalised(), loss_fn, vectors)


@network
def normalised_weights() -> Network:
    net = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(6, 4)),
        nn.Tanh(),
        parametrizations.spectral_norm(nn.Linear(4, 3)),
    )
    return Network(net, F.cross_entropy, vectors)


@network
def contrasted_pairs() -> Network:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 4)
            self.scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return F.normalize(self.a(x), dim=1) @ F.normalize(self.b(y), dim=1).T * self.scale.exp()

    def loss_fn(out: torch.Tensor) -> torch.Tensor:
        own = torch.arange(out.shape[0])
        return (F.cross_entropy(out, own) + F.cross_entropy(out.T, own)) / 2

    return Network(Pairs(), loss_fn, lambda n: (torch.randn(n, 6), torch.randn(n, 6)), targets=0)


class Graphs(nn.Module):
    """A graph convolution: sums over edges, whose number varies on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        h = self.layer(x)
        degree = torch.zeros(x.shape[0]).index_add(0, edges[1], torch.ones(edges.shape[1])).clamp(min=1)
        return h + torch.zeros_like(h).index_add(0, edges[1], h[edges[0]]) / degree[:, None]


@network
def graph_convolution() -> Network:
    def batch(nodes: int) -> Batch:
        return torch.randn(nodes, 4), torch.randint(nodes, (2, nodes + 9)), torch.randint(3, (nodes,))

    dims = {"x": {0: "n"}, "edges": {1: "m"}, "target": {0: "n"}}
    return Network(Graphs(), F.cross_entropy, batch, dynamic=dims)


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
def test_steps_and_forward_equal_eager(make: Callable[[], Network]) -> None:
    torch.manual_seed(2)
    net = make()
    both = pair(
        net.module, net.loss_fn, net.optimizer, *net.batch(5), targets=net.targets, dynamic=net.dynamic
    )
    both.train((net.batch(rows) for rows in (2, 3, 6)), 1e-5)
    module, inputs = net.module.eval(), len(net.batch(2)) - net.targets
    dims = {name: dim for name, dim in (net.dynamic or {}).items() if name not in ("y", "target")}
    plan = planc.trace(module, *net.batch(5)[:inputs], dynamic=dims or None)
    for rows in (2, 6):
        batch = net.batch(rows)[:inputs]
        close(plan(*batch), module(*batch), 1e-5)


def test_buffers_that_are_assigned_change_in_a_traced_forward_pass_too() -> None:
    net = Averaged()
    plan = planc.trace(net, torch.randn(5, 6))
    for rows in (2, 3):
        x = torch.randn(rows, 6)
        close(plan(x), net(x), 1e-6)
    assert net.steps.item() == 2
    close(plan.state_dict(), {**dict(net.named_parameters()), **dict(net.named_buffers())}, 1e-6)


class Leaving(nn.Module):
    """Leaves results on itself, as people do who look at them later, and may assign its buffer."""

    def __init__(self, assigned: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.assigned, self.calls = nn.Linear(6, 3), assigned, 0
        self.last = nn.Buffer(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen = self.layer(x)
        self.register_buffer("more", x.sum(0))
        self.last = self.assigned(self.seen)
        return self.seen


def test_the_module_is_left_as_it_was() -> None:
    net = Leaving(lambda y: y.mean(0))
    last = net.last
    planc.trace(net, torch.randn(5, 6))
    step = optim.SGD(net.parameters(), lr=0.1)
    plan = planc.train_step(net, lambda out: out.square().mean(), step, torch.randn(5, 6), targets=0)
    assert net.calls == 0
    assert net.last is last
    assert not hasattr(net, "seen")
    assert set(dict(net.named_buffers())) == {"last"}
    x = torch.randn(3, 6)
    plan(x)
    close(plan.state["last"], net(x).mean(0))


@pytest.mark.parametrize(
    ("assigned", "message"),
    [
        (
            lambda y: y.mean(0).double(),
            r"the buffer 'last' a tensor of another type, f64\[3\] where it was f32",
        ),
        (lambda y: y, r"another type, f32\[b, 3\] where it was f32\[3\].*return it as a result"),
        (lambda y: None, "assigns None to the buffer 'last'"),
    ],
)
def test_buffers_keep_their_types(assigned: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        planc.trace(Leaving(assigned), torch.randn(5, 6))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.jit.script(mlp()), "the module is TorchScript.*capture what it was made from"),
        (lambda: nn.Sequential(torch.jit.script(mlp())), "the module's part '0' is TorchScript"),
        (
            lambda: torch.compile(mlp(), backend="eager"),
            "compiled by torch.compile.*capture what it was made",
        ),
        (lambda: nn.Sequential(nn.LazyLinear(3)), "0.weight has no shape yet; run the module once"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_modules_that_cannot_be_traced(make: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        planc.trace(make(), torch.randn(5, 6))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            lambda x: nn.EmbeddingBag(5, 3)(x.long().abs() % 5),
            "_embedding_bag.*use nn.Embedding, and the sum",
        ),
        (lambda x: x.unfold(1, 3, 1), "aten.unfold.default with windows of 3 every 1 is not supported"),
    ],
)
def test_what_to_write_instead(code: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        planc.trace(code, torch.randn(5, 6))
