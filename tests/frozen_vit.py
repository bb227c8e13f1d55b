"""Writes tests/data/vit.npz: a tiny random ViT of transformers, its logits and gradients.

Run with the [parity] extra: `python tests/frozen_vit.py`. With what it writes, `make test` compares
our logits and gradients without torch. Weights are rounded to float16: the file stays small, and
both sides read the same.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import ViTConfig, ViTForImageClassification


def write(path: Path) -> None:
    """One file: `weights/NAME` and `gradients/NAME`, images, labels, logits and names."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=[8, 12],
        patch_size=4,
        num_channels=2,
        intermediate_size=128,
        num_labels=3,
    )
    model = ViTForImageClassification(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.2)
            weight.copy_(weight.half())
    weights, text = saved(model)
    newest = {name: weight.detach().numpy().copy() for name, weight in model.named_parameters()}
    model.double()
    x = torch.randn(5, 2, 8, 12).double()
    labels = torch.tensor([0, 1, 2, 0, 1])
    logits = model(x).logits
    torch.nn.functional.cross_entropy(logits, labels).backward()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.grad)
    gradients, _ = saved(model.float())
    pairs = [(old, new) for old in weights for new in newest]
    names = {old: new for old, new in pairs if np.array_equal(weights[old], newest[new])}
    assert len(names) == len(weights) == len(set(names.values()))
    np.savez_compressed(
        path,
        config=text,
        newest=json.dumps(names),
        x=x.permute(0, 2, 3, 1).numpy().astype(np.float32),
        labels=labels.numpy().astype(np.int32),
        logits=logits.detach().numpy(),
        **{f"weights/{name}": array.astype(np.float16) for name, array in weights.items()},
        **{f"gradients/{name}": array for name, array in gradients.items()},
    )


def saved(model) -> tuple[dict[str, np.ndarray], str]:
    """The arrays and the configuration that transformers writes."""
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        config = (Path(directory) / "config.json").read_text()
        return load_file(Path(directory) / "model.safetensors"), config


if __name__ == "__main__":
    write(Path(__file__).parent / "data" / "vit.npz")
