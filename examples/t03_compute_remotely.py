"""T3: operations on remote tensors run where the tensors are; the result stays there until it is fetched."""

import torch

from runtime import VirtualWorker, count_messages

bob = VirtualWorker("bob")
x = bob.send(torch.tensor([1, 2, 3, 4, 5]))
y = bob.send(torch.tensor([5, 4, 3, 2, 1]))
with count_messages() as sent:
    z = x + y
print(z.get())  # -> tensor([6, 6, 6, 6, 6])
print(sent.messages, "message")  # -> 1 message
