"""T7: a pointer can be sent too: alice then holds a pointer to what bob holds."""

import torch

from runtime import VirtualWorker

bob, alice = VirtualWorker("bob"), VirtualWorker("alice")
x = bob.send(torch.tensor([1, 2, 3, 4]))
print(x.owner)  # -> <VirtualWorker id:me #objects:0>
pointer = x.send(alice)
print(pointer.owner)  # -> <VirtualWorker id:me #objects:0>

print(bob.objects)  # -> {<id>: tensor([1, 2, 3, 4])}
print(alice.objects)  # -> {<id>: [pointer alice:<id> -> bob:<id>]}

print(pointer.get() is x)  # -> True
print(alice.objects)  # -> {}
print(x.get())  # -> tensor([1, 2, 3, 4])
