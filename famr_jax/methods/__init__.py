"""Unlearning methods: one file, one function, one `Unlearner` each."""

from collections.abc import Callable

from famr_jax.methods.amun import amun as amun
from famr_jax.methods.augmented import augmented as augmented
from famr_jax.methods.bad_teacher import bad_teacher as bad_teacher
from famr_jax.methods.boundary_expand import boundary_expand as boundary_expand
from famr_jax.methods.boundary_shrink import boundary_shrink as boundary_shrink
from famr_jax.methods.ct import ct as ct
from famr_jax.methods.cure_newton import cure_newton as cure_newton
from famr_jax.methods.damp import damp as damp
from famr_jax.methods.delete import delete as delete
from famr_jax.methods.descent_ascent import descent_ascent as descent_ascent
from famr_jax.methods.dual_removal import dual_removal as dual_removal
from famr_jax.methods.famr import famr as famr
from famr_jax.methods.famr_style import famr_style as famr_style
from famr_jax.methods.finetune import finetune as finetune
from famr_jax.methods.fisher_noise import fisher_noise as fisher_noise
from famr_jax.methods.gauss_newton_ascent import gauss_newton_ascent as gauss_newton_ascent
from famr_jax.methods.gauss_newton_removal import gauss_newton_removal as gauss_newton_removal
from famr_jax.methods.gradient_ascent import gradient_ascent as gradient_ascent
from famr_jax.methods.imu import imu as imu
from famr_jax.methods.l1_sparse import l1_sparse as l1_sparse
from famr_jax.methods.msg import msg as msg
from famr_jax.methods.mu_mis import mu_mis as mu_mis
from famr_jax.methods.neggradplus import neggradplus as neggradplus
from famr_jax.methods.newton_removal import newton_removal as newton_removal
from famr_jax.methods.nothing import nothing as nothing
from famr_jax.methods.random_labels import random_labels as random_labels
from famr_jax.methods.retrain import retrain as retrain
from famr_jax.methods.rurk import rurk as rurk
from famr_jax.methods.salun import salun as salun
from famr_jax.methods.scrub import scrub as scrub
from famr_jax.methods.ssd import ssd as ssd
from famr_jax.methods.trw import trw as trw
from famr_jax.methods.unsir import unsir as unsir
from famr_jax.methods.win_u import win_u as win_u
from famr_jax.types import Unlearner

BY_NAME: dict[str, Callable[..., Unlearner]] = {
    "amun": amun,
    "bad_teacher": bad_teacher,
    "boundary_expand": boundary_expand,
    "boundary_shrink": boundary_shrink,
    "ct": ct,
    "cure_newton": cure_newton,
    "damp": damp,
    "delete": delete,
    "descent_ascent": descent_ascent,
    "dual_removal": dual_removal,
    "famr": famr,
    "finetune": finetune,
    "fisher_noise": fisher_noise,
    "gauss_newton_ascent": gauss_newton_ascent,
    "gauss_newton_removal": gauss_newton_removal,
    "gradient_ascent": gradient_ascent,
    "imu": imu,
    "l1_sparse": l1_sparse,
    "msg": msg,
    "mu_mis": mu_mis,
    "neggradplus": neggradplus,
    "newton_removal": newton_removal,
    "random_labels": random_labels,
    "rurk": rurk,
    "salun": salun,
    "scrub": scrub,
    "ssd": ssd,
    "trw": trw,
    "unsir": unsir,
    "win_u": win_u,
}
"""Methods by name, all of the signature `method(apply_fn, *, optimizer, ...)`.

`famr_style` needs features and a reference, `retrain` a learner and an initialiser, and `nothing`
neither model nor optimizer: they stay outside.
"""
