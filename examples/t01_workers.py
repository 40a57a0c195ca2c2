"""T1: workers have names; we can look at what one holds, and clear it. The caller is a worker too: "me"."""

import torch

from runtime import VirtualWorker, me

bob = VirtualWorker("bob")
x = bob.send(torch.tensor([1, 2, 3, 4, 5]))
y = bob.send(torch.tensor([1, 1, 1, 1, 1]))
print(bob)  # -> <VirtualWorker id:bob #objects:2>
print(bob.objects)  # -> {<id>: tensor([1, 2, 3, 4, 5]), <id>: tensor([1, 1, 1, 1, 1])}
print(x.owner)  # -> <VirtualWorker id:me #objects:0>
print(x.owner is me())  # -> True

bob.clear_objects()
print(bob.objects)  # -> {}
