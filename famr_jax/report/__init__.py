"""Reports: one self-contained HTML file from a run's JSON."""

from famr_jax.report.conditioning import conditioning
from famr_jax.report.diagnosis import diagnose
from famr_jax.report.elements import interval, number
from famr_jax.report.forgetting import forgetting

__all__ = ["conditioning", "diagnose", "forgetting", "interval", "number"]
