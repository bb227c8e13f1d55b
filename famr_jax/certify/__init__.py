"""Bounds of unlearning with both sides measured, and certified removal from logistic heads."""

from famr_jax.certify import logistic as logistic
from famr_jax.certify import segment as segment
from famr_jax.certify.statements import Certificate as Certificate
from famr_jax.certify.statements import anchor_distance as anchor_distance
from famr_jax.certify.statements import descent_distance as descent_distance
from famr_jax.certify.statements import influence_distance as influence_distance
from famr_jax.certify.statements import linear_rate as linear_rate
from famr_jax.certify.statements import minimum_distance as minimum_distance
from famr_jax.certify.statements import newton_gap as newton_gap
from famr_jax.certify.statements import output_divergence as output_divergence
from famr_jax.certify.statements import resolvent as resolvent
from famr_jax.certify.statements import stationarity as stationarity
from famr_jax.certify.statements import step_rule as step_rule
from famr_jax.certify.statements import strong_convexity as strong_convexity
