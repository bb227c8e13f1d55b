"""The optimizer that training uses: AdamW with a schedule, on clipped gradients."""

from functools import lru_cache

import jax
import optax

from famr_jax.types import check_count, check_number


def adamw(
    *, num_steps: int, lr: float = 2e-3, weight_decay: float = 0.05, warmup: float = 0.1
) -> optax.GradientTransformation:
    """AdamW with warm-up, cosine decay to zero and clipped gradients: what a small ViT needs.

    Args:
        num_steps: Length of the schedule, in steps.
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay; only matrices decay, not biases and norms.
        warmup: Share of the steps that warm up, from a rate of zero; none where that is less than
            two steps, which would waste the first one.

    Raises:
        ValueError: A value out of range.
    """
    check_count("num_steps", num_steps)
    check_number("lr", lr, above=0)
    check_number("weight_decay", weight_decay, least=0)
    if not 0 <= warmup < 1:
        raise ValueError(f"`warmup` must be in [0, 1), got {warmup!r}.")
    return _adamw(int(num_steps), float(lr), float(weight_decay), float(warmup))


@lru_cache
def _adamw(num_steps, lr, weight_decay, warmup):
    """One object for one recipe: jit knows a function by its identity, and another recompiles."""
    warmup_steps = round(warmup * num_steps)
    if warmup_steps < 2:  # of one step, all would be at the rate of zero
        warmup_steps = 0
    end = max(num_steps, warmup_steps + 1)
    schedule = optax.warmup_cosine_decay_schedule(0.0, lr, warmup_steps, end)
    decayed = optax.adamw(schedule, b2=0.99, weight_decay=weight_decay, mask=_matrices)
    return optax.chain(optax.clip_by_global_norm(1.0), decayed)


def _matrices(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
