"""Exact curvature: linear operators, solvers and spectra that know no model and no loss."""

from famr_jax.curvature.algebra import Identity as Identity
from famr_jax.curvature.algebra import Restricted as Restricted
from famr_jax.curvature.algebra import linearized as linearized
from famr_jax.curvature.block import solve_block as solve_block
from famr_jax.curvature.conditioning import Condition as Condition
from famr_jax.curvature.conditioning import condition as condition
from famr_jax.curvature.dense import Matrix as Matrix
from famr_jax.curvature.dense import matrix_of as matrix_of
from famr_jax.curvature.dense import solve_dense as solve_dense
from famr_jax.curvature.jacobian import NTK as NTK
from famr_jax.curvature.jacobian import Jacobian as Jacobian
from famr_jax.curvature.operators import EmpiricalFisher as EmpiricalFisher
from famr_jax.curvature.operators import GaussNewton as GaussNewton
from famr_jax.curvature.operators import Hessian as Hessian
from famr_jax.curvature.operators import fisher as fisher
from famr_jax.curvature.operators import sampled_fisher as sampled_fisher
from famr_jax.curvature.quadrature import Density as Density
from famr_jax.curvature.quadrature import density as density
from famr_jax.curvature.solve import Solution as Solution
from famr_jax.curvature.solve import solve as solve
from famr_jax.curvature.spectrum import Eigenvalues as Eigenvalues
from famr_jax.curvature.spectrum import eigenvalues as eigenvalues
from famr_jax.curvature.spectrum import lanczos as lanczos
from famr_jax.curvature.traces import diagonal as diagonal
from famr_jax.curvature.traces import trace as trace
