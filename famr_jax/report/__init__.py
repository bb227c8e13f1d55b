"""Reports: one self-contained HTML file from a run's JSON."""

from famr_jax.report.conditioning import conditioning
from famr_jax.report.diagnosis import diagnose
from famr_jax.report.forgetting import forgetting
from famr_jax.report.page import interval, number

__all__ = ["conditioning", "diagnose", "forgetting", "interval", "number"]
