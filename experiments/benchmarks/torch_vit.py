"""Our networks in PyTorch, with the same weights, and the two steps of the step benchmark.

Imports no JAX, whose start would count as the peers' in cold runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from famr_jax import models
    from famr_jax.types import Batch, Params

CALL_STEPS = 3
LAM, WEIGHT_DECAY = 0.1, 0.05
TRAIN_LR, UNLEARN_LR = 1e-3, 1e-4


def import_torch() -> Any:
    """The peer, or a sentence that says how to get it."""
    try:
        import torch
    except ImportError as error:
        raise ValueError("`torch` is needed here: install the [parity] extra.") from error
    return torch


def torch_steps(torch: Any, case: str, model: models.Model, params: Params, batch: Batch):
    """Two makers of timed functions: PyTorch eager, and with model and loss compiled."""

    def maker(compiled):
        def make():
            net = torch_vit(torch, model, params)
            loss = torch_loss(torch, case, net, batch)
            if case == "train":
                options = {"lr": TRAIN_LR, "weight_decay": WEIGHT_DECAY}
                optimizer = torch.optim.AdamW(net.parameters(), **options, fused=True)
            else:
                optimizer = torch.optim.Adam(net.parameters(), lr=UNLEARN_LR, fused=True)
            if compiled:
                torch._dynamo.reset()
                loss = torch.compile(loss, fullgraph=True)
            x = torch.from_numpy(np.array(batch.x))

            def timed():
                for _ in range(CALL_STEPS):
                    optimizer.zero_grad()
                    loss(x).backward()
                    optimizer.step()
                return CALL_STEPS

            return timed

        return make

    return maker(False), maker(True)


def torch_loss(torch: Any, case: str, net: Any, batch: Batch) -> Callable[[Any], Any]:
    """The scalar that a step descends; the anchor is where `net` stands now."""
    labels = torch.from_numpy(np.array(batch.labels)).long()
    weights = tuple(net.parameters())
    anchor = tuple(weight.detach().clone() for weight in weights)

    def cross_entropy(x):
        return torch.nn.functional.cross_entropy(net(x), labels)

    def anchored_uniform(x):
        logits = net(x)
        kl = logits.logsumexp(-1) - logits.mean(-1) - math.log(logits.shape[-1])
        pairs = zip(weights, anchor, strict=True)
        distance = sum(((weight - held) ** 2).sum() for weight, held in pairs)
        return kl.mean() + LAM / 2 * distance

    return cross_entropy if case == "train" else anchored_uniform


def torch_vit(torch: Any, model: models.Model, params: Params) -> Any:
    """The same ViT as a PyTorch module, with the same weights."""
    module = model.module
    net = vit(torch, module.variant, module.patch, model.image_shape, model.num_classes)
    return with_weights(torch, net, params)


def vit(torch: Any, variant: Any, patch: int, image_shape: Any, num_classes: int) -> Any:
    """A ViT as a PyTorch module: `(dim, depth, heads)`, patch, `(height, width, channels)`."""
    dim, depth, heads = variant
    height, width, channels = image_shape
    rows, columns = height // patch, width // patch
    linear, functional = torch.nn.Linear, torch.nn.functional

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm_attention = torch.nn.LayerNorm(dim, eps=1e-6)
            self.qkv, self.out = linear(dim, 3 * dim), linear(dim, dim)
            self.norm_mlp = torch.nn.LayerNorm(dim, eps=1e-6)
            self.up, self.down = linear(dim, 4 * dim), linear(4 * dim, dim)

        def forward(self, x):
            n, tokens, _ = x.shape
            qkv = self.qkv(self.norm_attention(x)).reshape(n, tokens, 3, heads, dim // heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            y = functional.scaled_dot_product_attention(q, k, v)
            x = x + self.out(y.transpose(1, 2).reshape(n, tokens, dim))
            return x + self.down(functional.gelu(self.up(self.norm_mlp(x)), approximate="tanh"))

    class ViT(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = linear(patch * patch * channels, dim)
            self.position = torch.nn.Parameter(torch.empty(rows * columns, dim))
            for i in range(depth):
                setattr(self, f"block_{i}", Block())
            self.norm = torch.nn.LayerNorm(dim, eps=1e-6)
            self.head = linear(dim, num_classes)

        def forward(self, x):
            n = x.shape[0]
            x = x.reshape(n, rows, patch, columns, patch, channels).transpose(2, 3)
            x = self.patches(x.reshape(n, rows * columns, -1)) + self.position
            for i in range(depth):
                x = getattr(self, f"block_{i}")(x)
            return self.head(self.norm(x).mean(1))

    return ViT()


def mlp(torch: Any, sizes: Any) -> Any:
    """A tanh network on flattened images, as a PyTorch module: sizes from pixels to classes."""

    class MLP(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for i in range(len(sizes) - 2):
                setattr(self, f"layer_{i}", torch.nn.Linear(sizes[i], sizes[i + 1]))
            self.head = torch.nn.Linear(sizes[-2], sizes[-1])

        def forward(self, x):
            x = x.flatten(1)
            for i in range(len(sizes) - 2):
                x = torch.tanh(getattr(self, f"layer_{i}")(x))
            return self.head(x)

    return MLP()


def with_weights(torch: Any, net: Any, params: Params) -> Any:
    """The module with our weights in it."""
    named = torch_layout(params).items()
    net.load_state_dict({name: torch.from_numpy(leaf.copy()) for name, leaf in named})
    return net


def torch_layout(params: Params) -> dict[str, np.ndarray]:
    """Weights, or their gradients, under PyTorch's names: kernels transposed, scales weights."""
    named = {}
    for name, part in params.items():
        if isinstance(part, Mapping):
            named |= {f"{name}.{inner}": leaf for inner, leaf in torch_layout(part).items()}
        else:
            name = {"kernel": "weight", "scale": "weight"}.get(name, name)
            leaf = np.array(part)
            named[name] = leaf.T if name == "weight" and leaf.ndim == 2 else leaf
    return named
