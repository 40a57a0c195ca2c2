"""T9: bob and alice each train a copy of a model; a third averages them; only the mean is fetched."""

import torch
from toy import DATA, TARGET, linear

from runtime import RemoteModule, RemoteOptimizer, VirtualWorker

bob, alice, secure = VirtualWorker("bob"), VirtualWorker("alice"), VirtualWorker("secure")
shards = {
    bob: (bob.send(DATA[0:2]), bob.send(TARGET[0:2])),
    alice: (alice.send(DATA[2:]), alice.send(TARGET[2:])),
}
model = RemoteModule(linear())

for _ in range(10):
    copies, losses = [], []
    for worker, (data, target) in shards.items():
        trained = model.copy().send(worker)
        opt = RemoteOptimizer(trained, torch.optim.SGD, lr=0.1)
        for _ in range(5):
            opt.zero_grad()
            loss = ((trained(data) - target) ** 2).sum()
            loss.backward()
            opt.step()
        copies.append(trained)
        losses.append(loss.get().data)
    for trained in copies:
        trained.move(secure)
    with torch.no_grad():
        model.load_state_dict(
            {
                "weight": ((copies[0].weight + copies[1].weight) / 2).get(),
                "bias": ((copies[0].bias + copies[1].bias) / 2).get(),
            }
        )
    print(f"Bob:{losses[0]} Alice:{losses[1]}")
