"""T8: a tensor moves from bob to alice; it does not pass through here, and keeps its id."""

import torch

from runtime import VirtualWorker, count_messages

bob, alice = VirtualWorker("bob"), VirtualWorker("alice")
x = bob.send(torch.tensor([1, 2, 3, 4, 5]))
print("  bob:", bob.objects)  # ->   bob: {<id>: tensor([1, 2, 3, 4, 5])}
print("alice:", alice.objects)  # -> alice: {}
print(x)  # -> <RemoteTensor me:<id> -> bob i64[5]>
with count_messages() as sent:
    x = x.move(alice)
print("  bob:", bob.objects)  # ->   bob: {}
print("alice:", alice.objects)  # -> alice: {<id>: tensor([1, 2, 3, 4, 5])}
print(x)  # -> <RemoteTensor me:<id> -> alice i64[5]>
print(sent.messages, "message from here,", sent.peer_messages, "from bob to alice")
# -> 1 message from here, 1 from bob to alice
