"""T4: the toy model, trained here by plain PyTorch: what the next examples are compared with."""

import torch
from toy import DATA, TARGET, linear

model = linear()
opt = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(20):
    opt.zero_grad()
    loss = ((model(DATA) - TARGET) ** 2).sum()
    loss.backward()
    opt.step()
    print(loss.data)
