"""Four forced devices give what one gives: training, ensembles, unlearning, curvature."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import random_batch
from jax.sharding import PartitionSpec

from famr_jax import curvature, loop, losses, mesh, metrics, models, unlearn
from famr_jax.methods import famr
from famr_jax.models.vit import Variant, ViT
from famr_jax.train import Supervised

KEY = jax.random.key(3)
SGD = optax.sgd(0.1, momentum=0.9)
TRAIN, FORGET = random_batch(30, seed=1), random_batch(11, seed=2)
MODEL = models.Model("vit", 3, (4, 4, 1), ViT(3, 2, Variant(8, 1, 2)))


def loss_fn(params, batch):
    return losses.cross_entropy(MODEL.apply(params, batch.x), batch.labels)


def train(key):
    learner = Supervised(MODEL.apply, SGD)

    def init(key):
        return learner.init(MODEL.init(key))

    state = mesh.split(jax.jit(jax.vmap(init) if key.ndim else init)(key))
    sizes = {"size": len(TRAIN), "epochs": 3, "batch_size": 10}
    *_, (_, state, _) = loop.run_epochs(learner, state, TRAIN, **sizes, key=key)
    return state.params


def everything():
    """Logits after training one model and two, and after unlearning; a product, an eigenvalue."""
    params = train(KEY)
    members = train(jax.random.split(KEY, 2))
    method = famr(MODEL.apply, optimizer=optax.sgd(0.05))
    ended = unlearn.run(method, params, FORGET, epochs=2, batch_size=6, key=KEY).params
    hessian = curvature.Hessian(loss_fn, params, TRAIN, 8)
    product = jax.jit(lambda matvec, v: matvec(v))(hessian, params)
    top = curvature.eigenvalues(hessian, params, k=1, key=KEY).values

    def predict(params):
        return metrics.predict(MODEL.apply, params, TRAIN.x, batch_size=12)

    logits = [predict(params), jax.vmap(predict)(members), predict(ended)]
    return jax.device_get([*logits, *jax.tree.leaves(product), top])


@pytest.fixture(scope="module")
def alone():
    return everything()


@pytest.mark.parametrize("name", ["data=4", "data=2,model=2"])
def test_a_mesh_gives_what_one_device_gives(alone, name):
    grid = mesh.parse(name)
    with jax.set_mesh(grid):
        many = everything()
    for one, other in zip(alone, many, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_batches_are_spread_and_matrices_split():
    grid = mesh.parse("data=2,model=2")
    with jax.set_mesh(grid):
        params = mesh.split(MODEL.init(KEY))
    up = params["block_0"]["up"]["kernel"]
    assert up.sharding.spec == PartitionSpec(None, "model")
    assert params["block_0"]["down"]["kernel"].sharding.spec == PartitionSpec("model", None)
    assert params["block_0"]["up"]["bias"].sharding.is_fully_replicated
    with jax.set_mesh(grid):
        lowered = jax.jit(lambda params, x: jnp.sum(MODEL.apply(params, mesh.spread(x)))).lower(
            params, TRAIN.x[:8]
        )
    assert "all-reduce" in lowered.compile().as_text()
    assert mesh.spread(TRAIN) is mesh.split(TRAIN) is TRAIN


def test_a_product_outside_jit_is_what_it_is_without_a_mesh():
    params = MODEL.init(KEY)
    matrix = curvature.fisher(lambda params, x: MODEL.apply(params, x), params, TRAIN.x)
    alone = matrix(params)
    with jax.set_mesh(mesh.parse("data=2")):
        within = curvature.fisher(lambda params, x: MODEL.apply(params, x), params, TRAIN.x)(params)
    for one, other in zip(*map(jax.tree.leaves, (alone, within)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("text", ["", "data", "data=0", "rows=2", "data=2,data=2", "data=2;x=2"])
def test_parse_refuses_other_forms(text):
    with pytest.raises(ValueError, match="`mesh` must be like"):
        mesh.parse(text)


def test_parse_refuses_more_devices_than_there_are():
    with pytest.raises(ValueError, match="needs 4096 devices, got 4"):
        mesh.parse("data=4096")


PROCESS = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
import test_mesh
from famr_jax import mesh
grid = mesh.parse("data=8")
with jax.set_mesh(grid):
    params = test_mesh.train(jax.random.key(3))
    whole = jax.jit(lambda p: p, out_shardings=NamedSharding(grid, PartitionSpec()))(params)
leaves = [np.asarray(leaf.addressable_data(0)) for leaf in jax.tree.leaves(whole)]
np.savez(sys.argv[3], *leaves)
"""


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent), *filter(None, sys.path)])
    outs = [tmp_path / f"{i}.npz" for i in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(i), str(out)],
            env=os.environ | {"PYTHONPATH": paths},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, out in enumerate(outs)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    wanted = jax.tree.leaves(train(KEY))
    for out in outs:
        found = np.load(out)
        for one, name in zip(wanted, found.files, strict=True):
            np.testing.assert_allclose(one, found[name], atol=1e-4)
