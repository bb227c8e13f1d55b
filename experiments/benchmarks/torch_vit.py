"""The peer of the step benchmark: our Vision Transformer and its two steps in PyTorch."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

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
    dim, depth, heads = model.module.variant
    patch, (height, width, channels) = model.module.patch, model.image_shape
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
            self.head = linear(dim, model.num_classes)

        def forward(self, x):
            n = x.shape[0]
            x = x.reshape(n, rows, patch, columns, patch, channels).transpose(2, 3)
            x = self.patches(x.reshape(n, rows * columns, -1)) + self.position
            for i in range(depth):
                x = getattr(self, f"block_{i}")(x)
            return self.head(self.norm(x).mean(1))

    net = ViT()
    weights = {name: torch.from_numpy(leaf.copy()) for name, leaf in torch_layout(params).items()}
    net.load_state_dict(weights)
    return net


def torch_layout(params: Params) -> dict[str, np.ndarray]:
    """Weights, or their gradients, under PyTorch's names: kernels transposed, scales weights."""
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        *parents, last = (entry.key for entry in path)
        name = {"kernel": "weight", "scale": "weight"}.get(last, last)
        named[".".join([*parents, name])] = np.array(leaf).T if last == "kernel" else np.array(leaf)
    return named
