"""T6: why the last example leaks.

Whoever sees a model before and after one step sees the gradient; and the gradient of
a model this small is the data. Private data cannot be seen that way: what is computed from it is private too.
"""

import torch
from toy import linear

from runtime import RemoteModule, RemoteOptimizer, VirtualWorker
from runtime.errors import PermissionDenied


def train_one_step(private: bool) -> None:
    bob = VirtualWorker("bob")
    data = bob.send(torch.tensor([[3.0, 7.0]]), private=private)
    target = bob.send(torch.tensor([[1.0]]), private=private)
    model = RemoteModule(linear())
    before = model.state_dict()
    model.send(bob)
    opt = RemoteOptimizer(model, torch.optim.SGD, lr=0.1)
    ((model(data) - target) ** 2).sum().backward()
    opt.step()
    after = model.get().state_dict()
    gradient = {path: (before[path] - after[path]) / 0.1 for path in before}
    print((gradient["weight"] / gradient["bias"]).round())


train_one_step(private=False)  # -> tensor([[3., 7.]])
# ... which is the row that bob has
try:
    train_one_step(private=True)
except PermissionDenied as error:
    print("PermissionDenied:", error)
