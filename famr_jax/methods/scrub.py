"""SCRUB: away from the teacher on the forget set, near to it on the retained set, in turn."""

import jax
import jax.numpy as jnp
import optax

from famr_jax.losses import cross_entropy
from famr_jax.targets import as_trained, kl_to
from famr_jax.types import ApplyFn, check_count, check_number, pytree, static
from famr_jax.unlearn import Descent, descend, place


@pytree
class Scrubbed:
    """The objective of `scrub`, which says what its fields mean."""

    apply_fn: ApplyFn = static()
    alpha: float = 0.5
    gamma: float = 1.0
    temperature: float = 2.0
    max_epochs: int = 3

    def prepare(self, params, forget, retain, key):
        del params, key
        return {"forget": jnp.asarray(len(forget)), "retain": jnp.asarray(len(retain))}

    def __call__(self, params, context, pair, key):
        del key
        sizes = context.prepared
        epoch, position, steps = place(context.step, sizes["retain"], len(pair.retain))
        share = sizes["forget"] / (sizes["forget"] + sizes["retain"])
        ascending = (epoch < self.max_epochs) & (position < jnp.ceil(share * steps))
        # At the trained weights d has no slope but rounding errors, which Adam would follow.
        ascending &= context.step > 0
        return jax.lax.cond(ascending, self._away, self._near, params, context.anchor, pair)

    def _away(self, params, anchor, pair):
        _, teacher = self._terms(params, anchor, pair.forget)
        return -teacher, {"away": teacher, "near": 0 * teacher}

    def _near(self, params, anchor, pair):
        loss, teacher = self._terms(params, anchor, pair.retain)
        value = self.gamma * loss + self.alpha * teacher
        return value, {"away": 0 * value, "near": value}

    def _terms(self, params, anchor, batch):
        logits = self.apply_fn(params, batch.x)
        target = as_trained(self.apply_fn(anchor, batch.x) / self.temperature, batch.labels)
        teacher = self.temperature**2 * kl_to(target, logits / self.temperature)
        return jnp.mean(cross_entropy(logits, batch.labels)), jnp.mean(teacher)


def scrub(
    apply_fn: ApplyFn,
    *,
    alpha: float = 0.5,
    gamma: float = 1.0,
    temperature: float = 2.0,
    max_epochs: int = 3,
    optimizer: optax.GradientTransformation = optax.adam(5e-4),  # noqa: B008
) -> Descent:
    """Moves away from the trained model on the forget set and stays near it elsewhere, in turn.

        away:  J = -mean_F d(x)        near:  J = gamma mean_R l(x, y) + alpha mean_R d(x)
        d(x) = T^2 KL(p_T(.|x; anchor) || p_T(.|x; params)),    p_T the softmax of logits / T

    In the first epochs the first |F| / (|F| + |R|) of the steps go away, but for the very first;
    all others near. The source's epoch passes over all of F and then over all of R.

    Args:
        apply_fn: The model.
        alpha: Weight of the teacher on the retained set, >= 0.
        gamma: Weight of the labels there, >= 0.
        temperature: T, > 0.
        max_epochs: Epochs that go away.
        optimizer: The source takes 5e-4, decayed, for 10 epochs.

    Raises:
        ValueError: A number out of range.

    Source: Towards Unbounded Machine Unlearning (arXiv 2302.09880) and its public code.
    """
    for name, value in (("alpha", alpha), ("gamma", gamma)):
        check_number(name, value, least=0)
    check_number("temperature", temperature, above=0)
    check_count("max_epochs", max_epochs)
    objective = Scrubbed(apply_fn, alpha, gamma, temperature, max_epochs)
    return descend(objective, optimizer, epoch_over="retain")
