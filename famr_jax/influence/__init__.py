"""What removing training examples does: by parameters (`primal`) or in function space (`dual`)."""

from famr_jax.influence import dual as dual
from famr_jax.influence import kernels as kernels
from famr_jax.influence import stored as stored
from famr_jax.influence.primal import Curvature as Curvature
from famr_jax.influence.primal import Influence as Influence
from famr_jax.influence.primal import Normaliser as Normaliser
from famr_jax.influence.primal import Removal as Removal
from famr_jax.influence.primal import influence as influence
from famr_jax.influence.primal import remove as remove
