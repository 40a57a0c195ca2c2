"""T12: a plan from a class: build it, send it, call it, and fetch the result."""

import torch
import torch.nn.functional as F
from torch import nn

import planc
from runtime import VirtualWorker


class Net(planc.PlanModule):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(2, 3)
        self.fc2 = nn.Linear(3, 2)

    def forward(self, x):
        x = F.relu(self.fc1(x))
        x = self.fc2(x)
        return F.log_softmax(x, dim=0)


torch.manual_seed(0)
net = Net()
net.build(torch.tensor([1.0, 2.0]))

bob = VirtualWorker("bob")
remote = net.send(bob)
data = bob.send(torch.tensor([1.0, 2.0]))
result = remote(data)
print(result.get())
with torch.no_grad():
    print(net(torch.tensor([1.0, 2.0])))  # the same, here
