"""Checkpoints: what comes back is what was saved, bit for bit, or a `ValueError`."""

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_same, to_float64

from famr_jax import checkpoint, mesh
from famr_jax.methods import famr
from famr_jax.train import TrainState

ROOT = Path(__file__).parents[1]
ADAM = optax.adam(1e-3)
CONFIG = {"model": "mlp_8", "num_classes": 3}


def weights(scale=1.0):
    """Large enough that one array lies in a file of its own."""
    w = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
    return {"w": jnp.asarray(scale * w), "b": jnp.arange(3.0)}


def blank(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with one checkpoint, to copy and to damage."""
    directory = tmp_path_factory.mktemp("saved") / "run"
    checkpoint.save(directory, weights(), epoch=1, config=CONFIG)
    return directory


def test_a_state_with_its_optimizer_comes_back_bit_for_bit(tmp_path, model, params):
    unlearner = famr(model.apply, optimizer=ADAM)
    state = unlearner.init(params, None, None, None)
    config = {"seed": 3, "log": [{"loss": 0.1}], "seconds": 1.5, "words": "ä", "none": None}
    checkpoint.save(tmp_path / "made" / "on the way", state, epoch=7, config=config)
    loaded = checkpoint.load(str(tmp_path / "made" / "on the way"), blank(state))
    assert_same(loaded.tree, state)
    assert (loaded.epoch, loaded.config) == (7, config)


def test_a_loaded_state_trains_on(tmp_path, model, params, forget):
    unlearner = famr(model.apply, optimizer=ADAM)
    state = unlearner.init(params, None, None, None)
    checkpoint.save(tmp_path, state, epoch=1, config={})
    step = jax.jit(lambda state: state._replace(params=jax.tree.map(jnp.negative, state.params)),
                   donate_argnums=0)  # fmt: skip
    loaded = checkpoint.load(tmp_path, blank(state)).tree
    assert_same(step(loaded).params, jax.tree.map(jnp.negative, params))


def test_float64_integers_and_odd_bits_come_back(tmp_path, x64):
    params = to_float64(weights(1 / 3))
    state = TrainState(params, ADAM.init(params))
    tiny = {"tiny": jnp.array([5e-324, -0.0]), "count": jnp.array(2**40), "flag": jnp.array(True)}
    checkpoint.save(tmp_path, (state, tiny), epoch=1, config={})
    tree = checkpoint.load(tmp_path, blank((state, tiny))).tree
    assert_same(tree, (state, tiny))
    assert np.signbit(tree[1]["tiny"][1])


def test_typed_keys_come_back(tmp_path):
    key = jax.random.split(jax.random.key(5), 2)
    checkpoint.save(tmp_path, {"key": key}, epoch=1, config={})
    loaded = checkpoint.load(tmp_path, {"key": key}).tree["key"]
    assert loaded.dtype == key.dtype
    assert_same(jax.random.key_data(loaded), jax.random.key_data(key))


def test_the_newest_epoch_wins_and_two_are_kept(tmp_path):
    for epoch in (1, 2, 10):
        checkpoint.save(tmp_path, weights(epoch), epoch=epoch, config={"epoch": epoch})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "2"]
    assert checkpoint.latest_epoch(tmp_path) == 10
    tree, epoch, config = checkpoint.load(tmp_path, weights())
    assert (epoch, config) == (10, {"epoch": 10})
    assert_same(tree, weights(10))


def test_saving_an_epoch_again_replaces_it(tmp_path):
    for scale in (1, 2):
        checkpoint.save(tmp_path, weights(scale), epoch=3, config={"scale": scale})
    tree, epoch, config = checkpoint.load(tmp_path, weights())
    assert (epoch, config) == (3, {"scale": 2})
    assert_same(tree, weights(2))


def test_other_configurations_are_refused(saved):
    assert checkpoint.load(saved, weights(), expect=CONFIG).config == CONFIG
    for name, wanted in (("model", "vit_mu/4"), ("num_classes", 10), ("absent", 1)):
        with pytest.raises(ValueError, match=f"must have {name} = {wanted!r}, got "):
            checkpoint.load(saved, weights(), expect={**CONFIG, name: wanted})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w": jnp.zeros((40, 31))}, r"w float32\[40, 31\], got float32\[40, 30\]"),
        ({"b": jnp.zeros(2)}, r"b float32\[2\], got float32\[3\]"),
        ({"w": jnp.zeros((30, 40))}, r"w float32\[30, 40\], got"),
        ({"w": jnp.zeros(1200)}, r"w float32\[1200\], got"),
        ({"w": jnp.zeros((40, 30), jnp.float16)}, r"w float16\[40, 30\], got float32"),
        ({"b": jnp.zeros(3, int)}, r"b int32\[3\], got float32\[3\]"),
        ({"c": jnp.zeros(1)}, r"c float32\[1\], got absent"),
        ({"b": None}, r"b absent, got float32\[3\]"),
        ({"b": {"deep": jnp.zeros(3)}}, r"b absent, got float32\[3\]"),
    ],
)
def test_arrays_of_another_model_are_refused(saved, changes, message):
    with pytest.raises(
        ValueError, match=f"`checkpoint` .* must hold the model's arrays, {message}"
    ):
        checkpoint.load(saved, {**weights(), **changes})


def test_a_missing_or_empty_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("no directory")
    for directory in (tmp_path, tmp_path / "absent", tmp_path / "file"):
        assert checkpoint.latest_epoch(directory) is None
        with pytest.raises(ValueError, match="must be a directory with a saved epoch, got "):
            checkpoint.load(directory, weights())
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    spoilt = {**weights(), "b": jnp.array([0, value, 0])}
    checkpoint.save(tmp_path, spoilt, epoch=1, config={})
    with pytest.raises(ValueError, match="must hold finite weights"):
        checkpoint.load(tmp_path, weights())


# In a process of its own: where one array of several cannot be read, orbax closes its event loop
# under the others, whose complaints reach standard error at any later time.
LOADER = """\
import shutil, sys
from pathlib import Path
import numpy as np
from famr_jax import checkpoint

source, copy = map(Path, sys.argv[1:])
like = {"w": np.zeros((40, 30), np.float32), "b": np.zeros(3, np.float32)}
tree = checkpoint.load(source, like).tree
for file in [path.relative_to(source) for path in source.rglob("*") if path.is_file()]:
    for share in (0, 0.5):
        shutil.copytree(source, copy)
        data = (copy / file).read_bytes()
        (copy / file).write_bytes(data[: int(share * len(data))])
        try:
            loaded = checkpoint.load(copy, tree).tree
            words = "garbage" if any(np.any(loaded[k] != tree[k]) for k in tree) else "whole"
        except Exception as error:
            words = type(error).__name__
        print(words, file)
        shutil.rmtree(copy)
"""


def test_a_truncated_file_gives_a_value_error_or_the_right_weights(saved, tmp_path):
    command = [sys.executable, "-c", LOADER, str(saved), str(tmp_path / "copy")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = [line.split() for line in done.stdout.splitlines()]
    assert {words for words, _ in outcomes} == {"ValueError", "whole"}, done.stdout
    refused = {Path(file).name for words, file in outcomes if words == "ValueError"}
    assert {"metadata", "_METADATA", "manifest.ocdbt"} <= refused, done.stdout


def test_what_a_killed_save_leaves_behind_is_ignored(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    shutil.copytree(saved / "1", tmp_path / "2.orbax-checkpoint-tmp-1700000000000000")
    shutil.rmtree(tmp_path / "2.orbax-checkpoint-tmp-1700000000000000" / "tree" / "d")
    assert checkpoint.latest_epoch(tmp_path) == 1
    assert_same(checkpoint.load(tmp_path, weights()).tree, weights())
    checkpoint.save(tmp_path, weights(2), epoch=2, config={})
    assert_same(checkpoint.load(tmp_path, weights()).tree, weights(2))


SAVER = """
import sys
import jax.numpy as jnp
from famr_jax import checkpoint

for epoch in range(1, 10_000):
    checkpoint.save(sys.argv[1], {"w": jnp.full((300, 300), epoch, float)}, epoch=epoch, config={})
    print(epoch, flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.03])
def test_a_process_killed_while_it_saves_leaves_the_last_whole_epoch(tmp_path, delay):
    command = [sys.executable, "-c", SAVER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        done = [int(process.stdout.readline()) for _ in range(2)]
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        done += [int(line) for line in process.stdout]
    like = {"w": jnp.zeros((300, 300))}
    tree, epoch, _ = checkpoint.load(tmp_path, like)
    assert epoch in (done[-1], done[-1] + 1)
    assert_same(tree, {"w": jnp.full((300, 300), epoch, float)})


@pytest.mark.parametrize(
    "name", ["run[1]/w", "back\\slash", "a b", "ü-日", "*?%20#:'{$~", "new\nline"]
)
def test_any_path_works(tmp_path, name):
    for scale in (1, 2):
        checkpoint.save(tmp_path / name, weights(scale), epoch=3, config=CONFIG)
    assert checkpoint.latest_epoch(tmp_path / name) == 3
    assert_same(checkpoint.load(tmp_path / name, weights(), expect=CONFIG).tree, weights(2))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["run", "run[1]"])
@pytest.mark.parametrize("saving", [None, "data=2", "data=2,model=2"])
@pytest.mark.parametrize("loading", [None, "data=4", "model=2"])
def test_weights_load_on_other_devices_than_they_were_saved_from(tmp_path, saving, loading, name):
    def on(text):
        return jax.set_mesh(mesh.parse(text)) if text else contextlib.nullcontext()

    with on(saving):
        checkpoint.save(tmp_path / name, mesh.split(weights()), epoch=1, config={})
    with on(loading):
        tree = checkpoint.load(tmp_path / name, weights()).tree
        assert_same(tree, weights())
        assert_same(
            jax.jit(lambda tree: jax.tree.map(jnp.negative, tree))(tree)["w"], -weights()["w"]
        )
        if loading:
            assert tree["w"].sharding == mesh.layout(weights())["w"]
            assert len(tree["w"].devices()) == (4 if loading == "data=4" else 2)
        else:
            assert tree["w"].devices() == {jax.devices()[0]}


def test_float64_is_not_loaded_as_float32(tmp_path):
    tree = {"w": np.full(3, 1 / 3)}
    checkpoint.save(tmp_path, tree, epoch=1, config={})
    with pytest.raises(ValueError, match=r"`like` of float64 needs jax\.config\.update"):
        checkpoint.load(tmp_path, tree)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(checkpoint.load(tmp_path, tree).tree["w"], tree["w"])


@pytest.mark.parametrize("damage", ["unreadable", "other bits"])
def test_what_cannot_be_read_back_is_not_claimed_to_be_saved(tmp_path, monkeypatch, damage):
    checkpoint.save(tmp_path, weights(), epoch=1, config={})
    read = checkpoint._read

    def damaged(path, like):
        if damage == "unreadable":
            raise FileNotFoundError(path)
        return {**read(path, like), "b": np.array([0, 1, 3], np.float32)}

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_read", damaged)
        with pytest.raises(OSError, match="read back"):
            checkpoint.save(tmp_path, weights(2), epoch=2, config={})
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert_same(checkpoint.load(tmp_path, weights()).tree, weights())


def test_processes_that_save_side_by_side_leave_whole_epochs(tmp_path):
    program = SAVER.replace("10_000", "6")
    savers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdout=subprocess.DEVNULL
        )
        for _ in range(3)
    ]
    assert [saver.wait() for saver in savers] == [0, 0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "5"]
    tree = checkpoint.load(tmp_path, {"w": jnp.zeros((300, 300))}).tree
    assert_same(tree, {"w": jnp.full((300, 300), 5.0)})
