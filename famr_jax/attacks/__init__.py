"""Membership attacks on a model's outputs, and what an unlearned model still knows."""

from famr_jax.attacks.probe import held_out_probe as held_out_probe
from famr_jax.attacks.probe import linear_probe as linear_probe
from famr_jax.attacks.svc_mia import loss_attack as loss_attack
from famr_jax.attacks.svc_mia import svc_confidence as svc_confidence
