"""UNSIR: impair a class by images that the model finds hardest, then repair the others."""

import jax
import jax.numpy as jnp
import optax

from famr_jax.losses import cross_entropy
from famr_jax.methods.finetune import mean_loss
from famr_jax.types import ApplyFn, Batch, check_count, check_number, pytree, static
from famr_jax.unlearn import Descent, descend, in_memory, place

NOISE_STEP = optax.adam(0.1)


@pytree
class Impaired:
    """The objective of `unsir`, which says what its fields mean."""

    apply_fn: ApplyFn = static()
    num_noise: int = static(default=32)
    noise_steps: int = static(default=25)
    impair_epochs: int = 1
    noise_weight: float = 1.0
    penalty: float = 0.1

    def prepare(self, params, forget, retain, key):
        forget = in_memory("forget", forget)
        labels = forget.labels[jnp.arange(self.num_noise) % len(forget)]
        noise = jax.random.normal(key, (self.num_noise, *forget.x.shape[1:]), forget.x.dtype)

        def objective(noise):
            easy = jnp.mean(cross_entropy(self.apply_fn(params, noise), labels))
            return -easy + self.penalty * jnp.mean(jnp.sum(noise**2, axis=(1, 2, 3)))

        def body(carry, _):
            noise, opt_state = carry
            updates, opt_state = NOISE_STEP.update(jax.grad(objective)(noise), opt_state)
            return (noise + updates, opt_state), None

        carry = (noise, NOISE_STEP.init(noise))
        (noise, _), _ = jax.lax.scan(body, carry, length=self.noise_steps)
        return {"noise": Batch(noise, labels), "retain": jnp.asarray(len(retain))}

    def __call__(self, params, context, pair, key):
        del key
        epoch, _, _ = place(context.step, context.prepared["retain"], len(pair.retain))
        weight = jnp.where(epoch < self.impair_epochs, self.noise_weight, 0.0)
        noise = mean_loss(self.apply_fn, params, context.prepared["noise"])
        retain = mean_loss(self.apply_fn, params, pair.retain)
        return retain + weight * noise, {"noise": noise, "retain": retain}


def unsir(
    apply_fn: ApplyFn,
    *,
    num_noise: int = 32,
    noise_steps: int = 25,
    impair_epochs: int = 1,
    noise_weight: float = 1.0,
    penalty: float = 0.1,
    optimizer: optax.GradientTransformation = optax.adam(2e-3, b2=0.99),  # noqa: B008
) -> Descent:
    """Teaches the forgotten labels to images of noise, beside the retained set, then that alone.

        noise:   minimise  -mean l(noise, y) + penalty mean ||noise||^2   once, y labels of F
        impair:  J = mean_R l(x, y) + w mean l(noise, y)                  in the first epochs
        repair:  J = mean_R l(x, y)                                       afterwards

    It uses the labels of F alone, which are the classes to forget.

    Args:
        apply_fn: The model.
        num_noise: Images of noise.
        noise_steps: Steps of Adam at .1 that make them from N(0, 1).
        impair_epochs: Epochs that impair.
        noise_weight: w, >= 0: our choice; the source pools both sets.
        penalty: Of the noise, >= 0.
        optimizer: The training's own step; the source impairs at .02 and repairs at .01.

    Raises:
        ValueError: A number out of range.

    Source: Fast Yet Effective Machine Unlearning (arXiv 2111.08947), as in public code.
    """
    for name, value in (("num_noise", num_noise), ("noise_steps", noise_steps)):
        check_count(name, value)
    check_count("impair_epochs", impair_epochs)
    check_number("noise_weight", noise_weight, least=0)
    check_number("penalty", penalty, least=0)
    objective = Impaired(apply_fn, num_noise, noise_steps, impair_epochs, noise_weight, penalty)
    return descend(objective, optimizer, epoch_over="retain")
