"""Influence in function space: removal by the kernel of a linear or linearised model.

A model linear in its parameters, f = f0 + J (params - centre), that minimises

    (1/n) sum_i l(f_i, y_i) + l2/2 |params - centre|^2

has params = centre + J^T a with one *dual weight* a_ic = -(1/(n l2)) dl_i/df_ic for each output. So
all of it can be said with the kernel K = J J^T: removal, the change of outputs, and, where there
are parameters, the way back to them. An infinitely wide network has the kernel alone.

    kernel = TangentKernel(apply_fn, centre)          # or ReLUKernel(depth)
    gram = kernel.gram(x)                             # dense or matrix-free, whichever costs less
    found = remove(CROSS_ENTROPY, gram, outputs, labels, forget, l2=1e-2)
    found.converged, found.residual, found.why
    kernel.product(query, x, found.value)             # change of outputs
    kernel.to_params(x, found.value)                  # change of parameters
"""

from famr_jax.dual.kernels import Dense as Dense
from famr_jax.dual.kernels import Gram as Gram
from famr_jax.dual.kernels import Linearized as Linearized
from famr_jax.dual.kernels import MatrixFree as MatrixFree
from famr_jax.dual.kernels import ReLUKernel as ReLUKernel
from famr_jax.dual.kernels import TangentKernel as TangentKernel
from famr_jax.dual.kernels import linearize_model as linearize_model
from famr_jax.dual.removal import CROSS_ENTROPY as CROSS_ENTROPY
from famr_jax.dual.removal import SQUARED as SQUARED
from famr_jax.dual.removal import Fit as Fit
from famr_jax.dual.removal import Loss as Loss
from famr_jax.dual.removal import dual_weights as dual_weights
from famr_jax.dual.removal import fit as fit
from famr_jax.dual.removal import loss_changes as loss_changes
from famr_jax.dual.removal import remove as remove
from famr_jax.dual.removal import squared_error as squared_error
