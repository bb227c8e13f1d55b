"""What is communicated: known programs, the law of data parallelism, and the recorded numbers."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from experiments.benchmarks import scaling
from experiments.benchmarks.collectives import size_of, traffic
from famr_jax import mesh, models
from famr_jax.models.vit import Variant, ViT

MODEL = models.Model("vit", 3, (4, 4, 1), ViT(3, 2, Variant(8, 1, 2)))
RESULT = Path(__file__).parent.parent / scaling.SMALL.out


def of(function, *shapes):
    """The traffic of a function run on every device of data=4, on rows of float32 arrays."""
    with jax.set_mesh(mesh.parse("data=4")):
        local = jax.shard_map(
            function,
            mesh=jax.sharding.get_mesh(),
            in_specs=PartitionSpec("data"),
            out_specs=PartitionSpec("data"),
            check_vma=False,
        )
        args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        return traffic(jax.jit(local).lower(*args).compile().as_text())


def psum(x):
    return jax.lax.psum(x, "data")


ROWS = (8, 3)  # two rows, 24 bytes, on each device


@pytest.mark.parametrize(
    ("function", "kind", "size"),
    [
        (psum, "all-reduce", 24),
        (lambda x: jax.lax.all_gather(x, "data"), "all-gather", 4 * 24),
        (
            lambda x: jax.lax.psum_scatter(x.reshape(-1)[:4], "data", tiled=True),
            "reduce-scatter",
            4,
        ),
        (lambda x: jax.lax.ppermute(x, "data", [(0, 1), (1, 0)]), "collective-permute", 24),
        (lambda x: jax.lax.all_to_all(x.reshape(-1)[:4], "data", 0, 0), "all-to-all", 16),
    ],
)
def test_one_collective_of_known_size(function, kind, size):
    assert of(function, ROWS) == {kind: (1, size)}


def test_a_program_on_one_device_communicates_nothing():
    assert traffic(jax.jit(jnp.sin).lower(1.0).compile().as_text()) == {}


def test_a_tuple_is_the_sum_of_its_parts():
    assert of(lambda x, y: psum((x, y)), ROWS, (4, 5))["all-reduce"].bytes == 24 + 20


def turning(body, x, *, turns):
    return jax.lax.scan(lambda x, _: (body(x), None), x, length=turns)[0]


def test_a_collective_in_a_loop_counts_as_often_as_it_turns():
    def halved(x):
        return jnp.sin(psum(x))

    assert of(partial(turning, halved, turns=5), ROWS) == {"all-reduce": (5, 5 * 24)}
    twice = partial(turning, partial(turning, halved, turns=3), turns=7)
    assert of(twice, ROWS) == {"all-reduce": (21, 21 * 24)}


def test_loops_of_unknown_length_and_branches_are_refused():
    def until(x):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 9, lambda x: x + jnp.sin(psum(x)), x)

    def either(x):
        return jax.lax.cond(jnp.sum(x) > 0, psum, jnp.sin, x)

    for function, words in (
        (until, "loops of known length"),
        (either, "no collective in a branch"),
    ):
        with pytest.raises(ValueError, match=f"`hlo` must have {words}"):
            of(function, ROWS)
    with pytest.raises(ValueError, match="must be the text of a compiled program"):
        traffic("nothing")


@pytest.mark.parametrize(
    ("shape", "size"),
    [("f32[64,3]{1,0}", 768), ("(bf16[5]{0}, /*index=1*/pred[7]{0})", 17), ("u8[]", 1)],
)
def test_bytes_of_a_shape(shape, size):
    assert size_of(shape) == size


@pytest.fixture(scope="module")
def measured():
    found = {}
    for words in ("data=1", "data=2", "data=4"):
        with jax.set_mesh(mesh.parse(words)):
            found[words] = scaling.measure(MODEL, 4)
    return found


WEIGHTS = 4 * sum(
    leaf.size for leaf in jax.tree.leaves(jax.eval_shape(MODEL.init, jax.random.key(0)))
)


@pytest.mark.parametrize(
    ("program", "weights", "scalars"),
    [
        (scaling.TRAIN, 1, 2),  # gradients; loss and accuracy
        (scaling.PARTS, scaling.MICRO_BATCHES, 2 * scaling.MICRO_BATCHES),
        (scaling.UNLEARN, 1, 1),  # gradients; the forget loss
    ],
)
def test_data_parallel_steps_sum_one_gradient_whatever_the_devices(
    measured, program, weights, scalars
):
    assert measured["data=1"][program]["collectives"] == {}
    for words in ("data=2", "data=4"):
        (reduced,) = measured[words][program]["collectives"].items()
        assert reduced[0] == "all-reduce"
        assert reduced[1]["bytes"] == weights * WEIGHTS + 4 * scalars


def test_a_device_computes_the_same_however_many_there_are(measured):
    for program in (scaling.TRAIN, scaling.UNLEARN, scaling.HVP):
        alone, two, four = (each[program]["flops"] for each in measured.values())
        assert two == four
        # Of a sum over devices XLA counts one addition for each weight, a product's at most twice.
        assert 0 < two - alone <= 2.1 * WEIGHTS / 4


def test_small_run_writes_its_numbers(tmp_path):
    out = tmp_path / "scaling.json"
    chosen = replace(scaling.SMALL, meshes=("data=1", "data=2,model=2"), out=out)
    scaling.run(chosen)
    content = json.loads(out.read_text())
    trained = content["results"]["programs"]["train"]
    assert trained["data=1"]["flops_ratio"] == 1
    assert trained["data=2,model=2"]["bytes"] > 0
    assert len(scaling.headline(content)) == 2 + 2 * 3 + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 6}, "`batch_size` must be a multiple of 4, got 6"),
        ({"model": "vit_mu/3"}, "needs an image whose sides its patch divides"),
        ({"meshes": ("data=64",)}, "needs 64 devices"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        scaling.run(replace(scaling.SMALL, **changes))


@pytest.mark.skipif(not RESULT.exists(), reason="no result is recorded")
def test_prose_is_the_recorded_result():
    content = json.loads(RESULT.read_text())
    for line in scaling.headline(content):
        assert line in scaling.__doc__
