"""T5: the same model trained on data that bob and alice keep; the model travels, each has an Adam of its own.

Its losses are those of the same schedule here, bit for bit.
"""

import torch
from toy import DATA, TARGET, linear

from runtime import RemoteModule, RemoteOptimizer, VirtualWorker

bob, alice = VirtualWorker("bob"), VirtualWorker("alice")
datasets = [
    (bob.send(DATA[0:2]), bob.send(TARGET[0:2])),
    (alice.send(DATA[2:]), alice.send(TARGET[2:])),
]
model = RemoteModule(linear())
opt = RemoteOptimizer(model, torch.optim.Adam, lr=0.1)  # its state stays at each worker, kept apart
losses = []

for _ in range(10):
    for data, target in datasets:
        model.send(data.location)
        opt.zero_grad()
        loss = ((model(data) - target) ** 2).sum()
        loss.backward()
        opt.step()
        model.get()  # parameters only: no gradient comes along
        losses.append(loss.get())
        print(losses[-1])

# The same here: one model, and one Adam for each half of the data.
local = linear()
halves = [(DATA[0:2], TARGET[0:2]), (DATA[2:], TARGET[2:])]
opts = [torch.optim.Adam(local.parameters(), lr=0.1) for _ in halves]
local_losses = []
for _ in range(10):
    for (data, target), local_opt in zip(halves, opts, strict=True):
        local_opt.zero_grad()
        loss = ((local(data) - target) ** 2).sum()
        loss.backward()
        local_opt.step()
        local_losses.append(loss.detach())
assert torch.equal(torch.stack(losses), torch.stack(local_losses))
assert all(torch.equal(a, b) for a, b in zip(model.parameters(), local.parameters(), strict=True))
