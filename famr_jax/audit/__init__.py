"""The audit of anyone's model: is it one that retraining without the forget set could have given?

`arrays` takes logits from any framework, `checkpoints` weights of this one; `write` makes the page.
"""

from famr_jax.audit.auditing import Audit, arrays, checkpoints
from famr_jax.audit.page import blocks, write

__all__ = ["Audit", "arrays", "blocks", "checkpoints", "write"]
