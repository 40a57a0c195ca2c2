"""Ann's side: trains on scans at two hospitals that she never sees. `run.py` starts it, see README.md.

python scientist.py CERTS HELD_OUT.npz north=grpcs://HOST:PORT south=grpcs://HOST:PORT
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import planc
from runtime import TLS, FederatedAveraging, connect, count_messages
from runtime.data import FederatedDataset
from runtime.errors import ApprovalNeeded, PermissionDenied

ROUNDS = 5


class Net(nn.Module):
    """Scans as they are stored, u8[n, 28, 28], to ten scores each."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(28 * 28, 64)
        self.scores = nn.Linear(64, 10)

    def forward(self, scans: torch.Tensor) -> torch.Tensor:
        pixels = scans.flatten(1).to(torch.float32) / 255
        return self.scores(F.relu(self.hidden(pixels)))


def loss_of(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(scores, labels.to(torch.int64))


def main(certs: Path, held_out: Path, places: dict[str, str]) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)

    print("# connect, and look at what is there")
    me = TLS(certs / "ca.pem", certs / "client-ann.pem", certs / "client-ann.key")
    shards = {}
    for name, address in places.items():
        worker = connect(address, worker=name, tls=me)
        (images,) = worker.search("#scans", "#images")
        (labels,) = worker.search("#scans", "#labels")
        shards[worker] = (images, labels)
        print(f"{name}: images {images.tensor_type}, labels {labels.tensor_type}")
    data = FederatedDataset(shards)

    print("# try to have the scans")
    images, _ = data["north"]
    refused("fetch", lambda: images.copy().get())
    refused("one operation", lambda: (images[0] + 0).get())

    print("# ask for training: all scans of a hospital once, as one plan")
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    example = torch.zeros(7, 28, 28, dtype=torch.uint8), torch.zeros(7, dtype=torch.uint8)
    plan = planc.epoch(planc.train_step(net, loss_of, optimizer, *example), batch_size=32)
    training = FederatedAveraging(plan, data)
    try:
        training.round()
    except ApprovalNeeded as error:
        print(f"ApprovalNeeded: {error}")
    print(f"plan {plan.id}")
    input("waiting for the owners (Enter when they said yes)\n")

    print("# train")
    known = np.load(held_out)
    scans, truth = torch.from_numpy(known["images"]), torch.from_numpy(known["labels"])
    for _ in range(ROUNDS):
        with count_messages() as sent:
            done = training.round()
        net.load_state_dict(training.state_dict())
        with torch.inference_mode():
            right = (net(scans).argmax(1) == truth).float().mean().item()
        print(
            f"round {done.number}: loss {done.loss:.3f}, accuracy {right:.3f}, {sent.messages} messages, "
            f"{sent.bytes_out / 1e6:.1f} MB out, {sent.bytes_in / 1e6:.1f} MB in"
        )

    print("# one round more than they approved")
    refused("round", training.round)
    for worker in data.workers:
        worker.close()


def refused(what: str, attempt: Callable[[], object]) -> None:
    """Try what must not work, and say how it was refused."""
    try:
        attempt()
    except PermissionDenied as error:
        print(f"{what} refused, {type(error).__name__}: {error}")
    else:
        sys.exit(f"{what} was allowed")


if __name__ == "__main__":
    certs, held_out, *places = sys.argv[1:]
    main(Path(certs), Path(held_out), dict(place.split("=", 1) for place in places))
