"""Multilayer perceptrons; without hidden layers, multinomial logistic regression."""

import flax.linen as nn


class MLP(nn.Module):
    """Fully connected tanh network on flattened images; smooth, so that it has a Hessian."""

    num_classes: int
    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        """Logits `[n, num_classes]` and the named activations of images `[n, h, w, c]`."""
        features = {}
        x = x.reshape(x.shape[0], -1)
        for i, size in enumerate(self.hidden):
            x = features[f"block_{i}"] = nn.tanh(nn.Dense(size, name=f"layer_{i}")(x))
        features["pre_logits"] = x
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")
        return head(x), features
