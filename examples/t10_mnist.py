"""T10: MNIST over two workers: a federated loader and the tutorial's loops; the test loop does not change.

``python t10_mnist.py [rows] [epochs] [--all]``: 1,280 of the embedded images for two epochs where no number
is given.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from runtime import FederatedDataLoader, RemoteModule, RemoteOptimizer, VirtualWorker, federate
from runtime.demo.mnist import load_embedded

parser = argparse.ArgumentParser()
parser.add_argument("rows", type=int, nargs="?", default=1280, help="images to train on")
parser.add_argument("epochs", type=int, nargs="?", default=2)
parser.add_argument("--all", action="store_true", help="train on all images but the 1,000 held-out ones")
args = parser.parse_args()
batch_size = 64


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x):
        return F.log_softmax(self.fc2(F.relu(self.fc1(x.flatten(1)))), dim=1)


def train(model, device, loader, optimizer, epoch):
    model.train()
    for batch_idx, (data, target) in enumerate(loader):  # <-- now it is a distributed data set
        model.send(data.location)  # <-- send the model to the right location
        data, target = data.to(device), target.to(device)
        optimizer.zero_grad()
        output = model(data)
        loss = F.nll_loss(output, target)
        loss.backward()
        optimizer.step()
        model.get()  # <-- get the model back
        if batch_idx % 10 == 0:
            loss = loss.get()  # <-- get the loss back
            done, of = batch_idx * batch_size, len(loader) * batch_size
            print(f"Train Epoch: {epoch} [{done}/{of} ({100.0 * done / of:.0f}%)]\tLoss: {loss.item():.6f}")


def test(model, device, loader):
    model.eval()
    test_loss, correct = 0.0, 0
    with torch.no_grad():
        for data, target in loader:
            data, target = data.to(device), target.to(device)
            output = model(data)
            test_loss += F.nll_loss(output, target, reduction="sum").item()
            pred = output.argmax(1, keepdim=True)
            correct += pred.eq(target.view_as(pred)).sum().item()
    count = len(loader.dataset)
    right = f"{correct}/{count} ({100.0 * correct / count:.0f}%)"
    print(f"\nTest set: Average loss: {test_loss / count:.4f}, Accuracy: {right}\n")


torch.manual_seed(1)
mnist = load_embedded()
bob, alice = VirtualWorker("bob"), VirtualWorker("alice")
rows = None if args.all else args.rows
train_set = TensorDataset(mnist.train_x[:rows], mnist.train_y[:rows])
federated_train_loader = FederatedDataLoader(
    federate(train_set, (bob, alice)), batch_size=batch_size, shuffle=True
)
test_loader = DataLoader(TensorDataset(mnist.test_x, mnist.test_y), batch_size=500, shuffle=True)
device = torch.device("cpu")
model = RemoteModule(Net())
optimizer = RemoteOptimizer(model, torch.optim.SGD, lr=0.1)
for epoch in range(1, args.epochs + 1):
    train(model, device, federated_train_loader, optimizer, epoch)
    test(model, device, test_loader)
path = Path("mnist_mlp.pt")
torch.save(model.state_dict(), path)
print("saved", path)
