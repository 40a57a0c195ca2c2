"""One line an operation: what it gives on remote tensors is what it gives on local ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from runtime import RemoteTensor, VirtualWorker
from runtime.errors import PermissionDenied

torch.manual_seed(0)
OPERANDS = {
    "a": torch.randn(4, 6),
    "b": torch.randn(4, 6),
    "p": torch.rand(4, 6) + 0.1,
    "m": torch.randn(6, 3),
    "i": torch.tensor([2, 0, 1, 3]),
    "v": torch.randn(6),
    "img": torch.randn(2, 3, 8, 8),
    "k": torch.randn(4, 3, 3, 3),
    "n": torch.randint(0, 10, (4, 6)),
}
OPERANDS["mask"] = OPERANDS["a"] > 0
SCOPE = {"torch": torch, "F": F}

OPERATORS = """a + b; a - b; a * b; a / p; 2 * a; 1 - a; 1 / p; p ** 2; 2 ** p; p ** b; a @ m; -a; +a
abs(a); a // p; a % p; n // 3; n % 3; 7 // (n + 1); 7 % (n + 1); ~mask; mask & (b > 0); mask | (b > 0)
mask ^ (b > 0); n & 3; n | 3; a == b; a != b; a < b; a <= 0; a > 0.5; a >= b; a + 1.0; n + 1; n + 0.5
n * True; a * float("inf"); a == None; a != None"""

INDEXING = """a[0]; a[-1]; a[0, 1]; a[1:3]; a[:, 2]; a[:, ::2]; a[..., 0]; a[None]; a[:, None]; a[i]
a[[0, 2]]; a[i, i]; a[:, i]; a[1:, 2:4]; a[...]; a[3:1]; a[-2:]; img[0, :, 1:3, None]; img[..., None, 2]
img[:, i[:2]]; img[0, i[:2]]; img[i[:2] % 2, :, i[:2]]; a[torch.tensor([0, 1])]; a[2, ...]"""

METHODS = """a.sum(); a.sum(0); a.sum(dim=1, keepdim=True); a.sum((0, 1)); a.mean(); a.mean(1); a.var(1)
a.norm(); a.norm(dim=1); a.prod(); a.prod(1); a.max(); a.max(1); a.max(1).values; a.min(0)[1]; a.amax(1)
a.argmax(); a.argmax(1); a.argmax(1, keepdim=True); a.argmin(0); a.topk(2, dim=1); a.sort(dim=1)
a.sort(dim=1, descending=True)[0]; a.argsort(1); a.cumsum(0); mask.any(); mask.all(1); a.logsumexp(1)
a.t(); a.T; a.mT; img.mT; m.transpose(0, 1); a.permute(1, 0); a.reshape(2, 12); a.reshape((2, 12))
a.reshape(-1); a.view(3, 8); a.view(-1, 2); a.flatten(); a.unsqueeze(0); a.unsqueeze(-1).squeeze(-1)
a[None].squeeze(); a.expand(2, 4, 6); a.expand_as(b); a.view_as(b); a.repeat(2, 1); a.split(2)
a.split([1, 3]); a.unbind(0); a.chunk(2, 1); a.index_select(0, i); a.gather(1, n % 6)
a.masked_fill(mask, 0.); a.where(mask, b); a.tril(); a.flip(0); a.roll(1, 0); a.diagonal()
a.clamp(-1, 1); a.clamp(min=0); a.clip(max=0.3); a.double(); a.float(); a.long(); a.int(); a.bool()
a.half(); a.to(torch.float64); a.to("cpu"); a.to(b); a.type_as(n)
a.to(torch.device("cpu"), torch.float64); a.type(torch.int64); n.float().mean(); a.contiguous()
a.clone(); a.detach(); a.data; a.eq(b); a.ne(0); a.le(b); mask.logical_not()
a.add(b).mul(2).div(3).sub(1); a.add(b, alpha=2); a.pow(2).sqrt(); a.sigmoid().round(); a.lerp(b, 0.3)
a.addcmul(b, p); a.new_zeros(2, 3); a.narrow(0, 1, 2); a.scatter(1, n % 6, b); a.softmax(-1)
a.log_softmax(1); mask.sum(); mask.float().mean(); a.isnan(); a.nan_to_num(); a.square(); a.abs().neg()"""

FUNCTIONS = """torch.add(a, b, alpha=2); torch.div(a, p, rounding_mode="floor"); torch.relu(a)
torch.exp(a); torch.log(p); torch.rsqrt(p); torch.pow(p, 2); torch.pow(2, p); torch.sin(a)
torch.tanh(a); torch.clamp(a, -0.5, 0.5); torch.max(a, b); torch.minimum(a, b)
torch.var(a, dim=1, unbiased=False); torch.cat([a, b]); torch.cat((a, b), dim=1); torch.stack([a, b])
torch.chunk(a, 2, dim=1); torch.where(mask, a, b); torch.where(a > 0, a, 0.0); torch.outer(v, v)
torch.dot(v, v); torch.mv(a, v); torch.mm(a, m); torch.matmul(a, m); torch.bmm(img[0], img[1])
torch.addmm(a[:, :3], a, m); torch.einsum("ij,jk->ik", a, m); torch.zeros_like(a); torch.full_like(a, 3)
torch.flatten(img, 1); torch.t(a); torch.meshgrid(v, v, indexing="ij"); torch.var_mean(a, 1)
torch.atan2(a, b); torch.vstack([a, b]); torch.square(a); torch.linalg.vector_norm(a)
torch.logical_and(mask, b > 0); torch.isfinite(a); torch.negative(a); torch.subtract(a, b)"""

FUNCTIONAL = """F.relu(a); F.gelu(a); F.silu(a); F.elu(a); F.elu(a, 0.5); F.leaky_relu(a, 0.2)
F.softplus(a); F.hardtanh(a); F.logsigmoid(a); F.softmax(a, dim=1); F.log_softmax(a, dim=1)
F.linear(a, m.t()); F.linear(a, m.t(), m[0]); F.conv2d(img, k); F.conv2d(img, k, padding=1, stride=2)
F.max_pool2d(img, 2); F.avg_pool2d(img, 2); F.pad(img, (1, 1)); F.layer_norm(a, (6,)); F.mse_loss(a, b)
F.mse_loss(a, b, reduction="sum"); F.l1_loss(a, b); F.smooth_l1_loss(a, b); F.huber_loss(a, b)
F.cross_entropy(a, i); F.nll_loss(F.log_softmax(a, 1), i); F.embedding(i, a); F.embedding(i, n)
F.nll_loss(F.log_softmax(a, 1), i, reduction="sum"); F.batch_norm(img, img[0, :, 0, 0], p[0, :3])
F.normalize(a); F.dropout(a, 0.5, training=False); F.adaptive_avg_pool2d(img, 1)
F.cross_entropy(a, i, label_smoothing=0.1)"""

LOCAL = """a.size(); a.size(0); a.size(-1); a.shape; a.shape[0]; a.dim(); a.ndim; len(a); a.numel()
a.nelement(); a.dtype; n.dtype; a.is_floating_point(); n.is_floating_point(); a.element_size()
torch.numel(a); torch.is_floating_point(n); a.requires_grad; a.is_leaf; a.type(); a.grad"""


def lines(table: str) -> list[str]:
    return [case.strip() for row in table.split("\n") for case in row.split(";")]


def fetched(value: Any) -> Any:
    if isinstance(value, RemoteTensor):
        tensor = value.copy_here()
        assert (value.shape, value.dtype) == (tensor.shape, tensor.dtype)  # known without asking
        return tensor
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return [fetched(item) for item in value]
    return value


def require_same(got: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
        torch.testing.assert_close(got, expected, equal_nan=True)
    elif isinstance(expected, (tuple, list)) and not isinstance(expected, torch.Size):
        assert len(got) == len(expected)
        for x, y in zip(got, expected, strict=True):
            require_same(x, y)
    else:
        assert got == expected


@pytest.fixture(scope="module")
def remote() -> dict[str, RemoteTensor]:
    worker = VirtualWorker("values")
    return {name: worker.send(tensor) for name, tensor in OPERANDS.items()}


@pytest.fixture(scope="module")
def private() -> dict[str, RemoteTensor]:
    worker = VirtualWorker("private")
    return {name: worker.send(tensor, private=True) for name, tensor in OPERANDS.items()}


def require_hidden(value: Any) -> None:
    if isinstance(value, RemoteTensor):
        with pytest.raises(PermissionDenied):
            value.copy_here()
    elif isinstance(value, (tuple, list)):
        for item in value:
            require_hidden(item)


@pytest.mark.parametrize(
    "case", [c for t in (OPERATORS, INDEXING, METHODS, FUNCTIONS, FUNCTIONAL) for c in lines(t)]
)
def test_values_are_torchs_and_private_where_an_operand_is(
    case: str, remote: dict[str, RemoteTensor], private: dict[str, RemoteTensor]
) -> None:
    expected = eval(case, {**SCOPE, **OPERANDS})
    require_same(fetched(eval(case, {**SCOPE, **remote})), expected)
    if not any(word in case for word in ("_like", "new_")):  # these take a shape only, which is no secret
        require_hidden(eval(case, {**SCOPE, **private}))


@pytest.mark.parametrize("case", lines(LOCAL))
def test_what_is_known_here_is_torchs_and_costs_no_message(
    case: str, remote: dict[str, RemoteTensor]
) -> None:
    from runtime import count_messages

    with count_messages() as sent:
        got = eval(case, {**SCOPE, **remote})
    assert got == eval(case, {**SCOPE, **OPERANDS})
    assert type(got) is type(eval(case, {**SCOPE, **OPERANDS}))
    assert sent.messages == 0


IN_PLACE = """x.add_(1); x.sub_(y); x.mul_(2).div_(3); x += y; x -= 1; x *= y; x /= 2; x.clamp_(0, 1)
x.zero_(); x.fill_(3); x.copy_(y); x[0] = 5; x[1, 2] = 7.5; x[:, 0] = y[:, 1]; x[0] = x[0] + 1
x[0] += 1; x[1:] *= 2; x.relu_(); x **= 2; x.add_(y, alpha=3); x.neg_(); x.exp_(); x.data.add_(1)
x.data[0] = 4; x.masked_fill_(x > 0, 2.0); x[0:2, 1:3] = 0"""


@pytest.mark.parametrize("case", lines(IN_PLACE))
def test_in_place(case: str) -> None:
    worker = VirtualWorker("values")
    x, y = torch.randn(3, 4), torch.rand(3, 4)
    there = {"x": worker.send(x), "y": worker.send(y)}
    here = {"x": x.clone(), "y": y.clone()}
    exec(case, SCOPE, here)
    exec(case, SCOPE, there)
    require_same(fetched(there["x"]), here["x"])
    require_same(fetched(there["y"]), here["y"])
    assert len(worker.worker) == 2  # nothing is left behind: a listing releases what died before


@pytest.mark.parametrize(
    "case", ["a + B", "B - a", "torch.where(mask, B, a)", "F.linear(a, B)", "torch.cat([a, B])"]
)
def test_local_tensors_travel_along(case: str, remote: dict[str, RemoteTensor]) -> None:
    local = torch.randn(4, 6)
    require_same(
        fetched(eval(case, {**SCOPE, **remote, "B": local})), eval(case, {**SCOPE, **OPERANDS, "B": local})
    )
