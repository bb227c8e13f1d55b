"""NegGrad+: a weighted sum of descent on the retained set and ascent on the forget set."""

import optax

from famr_jax.methods.descent_ascent import DescentAscent
from famr_jax.types import ApplyFn, check_number, pytree, static
from famr_jax.unlearn import Descent, descend


@pytree
class Weighted:
    """The objective of `neggradplus`: descent-ascent at w = (1 - alpha) / alpha, times alpha."""

    apply_fn: ApplyFn = static()
    alpha: float = 0.95

    def __call__(self, params, context, pair, key):
        both = DescentAscent(self.apply_fn, (1 - self.alpha) / self.alpha)
        value, terms = both(params, context, pair, key)
        return self.alpha * value, terms


def neggradplus(
    apply_fn: ApplyFn,
    *,
    alpha: float = 0.95,
    optimizer: optax.GradientTransformation = optax.adam(5e-4),  # noqa: B008
) -> Descent:
    """Descends the retained loss and ascends a little of the forget loss in every step.

        J(params) = alpha mean_R l(x, y; params) - (1 - alpha) mean_F l(x, y; params)

    This is `descent_ascent` at w = (1 - alpha) / alpha with SGD's step times alpha. It is unbounded
    below: too long a run or too small an alpha breaks the model.

    Args:
        apply_fn: The model.
        alpha: Weight of the retained loss, > 0 and <= 1; 1 is fine-tuning.
        optimizer: The source's code runs 10 epochs of SGD at .01 with momentum .9. The default is a
            quarter of the training's own step: our choice.

    Raises:
        ValueError: `alpha` not in (0, 1].

    Source: the baseline NegGrad+ of Towards Unbounded Machine Unlearning (arXiv 2302.09880) and its
        public code, alpha .95.
    """
    check_number("alpha", alpha, above=0)
    check_number("1 - alpha", 1 - alpha, least=0)
    return descend(Weighted(apply_fn, alpha), optimizer, epoch_over="retain")
