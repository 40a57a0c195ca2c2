"""T13: the reason for plans: fewer messages.

One training step, eager and as a plan, and a whole epoch as one.
"""

import torch
import torch.nn.functional as F
from torch import nn

import planc
from runtime import RemoteModule, RemoteOptimizer, VirtualWorker, count_messages

bob = VirtualWorker("bob")
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 2))
data, target = torch.randn(320, 20), torch.randint(0, 2, (320,))
x, y = bob.send(data), bob.send(target)

model = RemoteModule(net).send(bob)
opt = RemoteOptimizer(model, torch.optim.SGD, lr=0.1)
batch, labels = x[:32], y[:32]
with count_messages() as eager:
    opt.zero_grad()
    loss = F.cross_entropy(model(batch), labels)
    loss.backward()
    opt.step()
print("an eager step:", eager.messages, "messages")  # -> an eager step: 10 messages

step = planc.train_step(
    net, F.cross_entropy, torch.optim.SGD(net.parameters(), lr=0.1), data[:32], target[:32]
)
remote = step.send(bob)
with count_messages() as planned:
    remote(batch, labels)
print("the step as a plan:", planned.messages, "message")  # -> the step as a plan: 1 message

epoch = planc.epoch(step, batch_size=32).send(bob)
with count_messages() as whole:
    losses = epoch(x, y)
print("an epoch of", len(losses), "steps as a plan:", whole.messages, "message")
# -> an epoch of 10 steps as a plan: 1 message
