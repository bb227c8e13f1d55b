"""A small residual network in torch, trained for a moment: a stranger whose arrays are audited."""

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width) for _ in range(2)])

    def forward(self, x):
        inner = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(x + self.norms[1](self.second(inner)))


def trained(x, labels, rows, seed, *, width=8, steps=40):
    """Logits and features of all images by a network that was trained on the rows of a mask."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    body = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), Block(width), Block(width), nn.Flatten()
    )
    head = nn.Linear(width * x.shape[-1] ** 2, 10)
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], 3e-3)
    places = torch.nonzero(rows)[:, 0]
    for _ in range(steps):
        batch = places[torch.randint(len(places), (64,), generator=generator)]
        loss = nn.functional.cross_entropy(head(body(x[batch])), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        features = body.eval()(x)
        return head(features), features
