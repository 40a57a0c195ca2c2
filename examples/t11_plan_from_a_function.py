"""T11: a plan from a function, sent to a worker and called on values there: one message a call."""

import torch

import planc
from runtime import VirtualWorker, count_messages


@planc.plan(args_shape=[(-1,), (-1,)])
def calcu(x, y):
    z = x + y
    return z / 2


alice = VirtualWorker("alice")
x, y = alice.send(torch.tensor([1.0, 2, 3, 4, 5])), alice.send(torch.tensor([5.0, 4, 3, 2, 1]))
remote = calcu.send(alice)
with count_messages() as sent:
    result = remote(x, y)
print(result.get())  # -> tensor([3., 3., 3., 3., 3.])
print(sent.messages, "message")  # -> 1 message
