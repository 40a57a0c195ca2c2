"""T2: a tensor goes to a worker and comes back; then the worker has it no more."""

import torch

from runtime import VirtualWorker

bob = VirtualWorker("bob")
x = bob.send(torch.tensor([1, 2, 3, 4, 5]))
y = bob.send(torch.tensor([1, 1, 1, 1, 1]))
print(x.location is bob)  # -> True
print(x)  # -> <RemoteTensor me:<id> -> bob i64[5]>

print(x.get())  # -> tensor([1, 2, 3, 4, 5])
print(bob.objects)  # -> {<id>: tensor([1, 1, 1, 1, 1])}
