"""Unlearning methods: one file, one function, one `Unlearner` each."""

from famr_jax.methods.delete import delete as delete
from famr_jax.methods.descent_ascent import descent_ascent as descent_ascent
from famr_jax.methods.famr import famr as famr
from famr_jax.methods.famr_style import famr_style as famr_style
from famr_jax.methods.finetune import finetune as finetune
from famr_jax.methods.gradient_ascent import gradient_ascent as gradient_ascent
from famr_jax.methods.l1_sparse import l1_sparse as l1_sparse
from famr_jax.methods.nothing import nothing as nothing
from famr_jax.methods.random_labels import random_labels as random_labels
from famr_jax.methods.retrain import retrain as retrain

BY_NAME = {
    "delete": delete,
    "descent_ascent": descent_ascent,
    "famr": famr,
    "finetune": finetune,
    "gradient_ascent": gradient_ascent,
    "l1_sparse": l1_sparse,
    "random_labels": random_labels,
}
"""Methods by name, all of the signature `method(apply_fn, *, optimizer, ...)`.

`famr_style` needs features and a reference, `retrain` a learner and an initialiser, and `nothing`
neither model nor optimizer: they stay outside.
"""
