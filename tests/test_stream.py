"""Images on disk: the same pixels, batches and keys as in memory, in bounded memory."""

import json
import shutil
import threading
import time
import tracemalloc
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_same, counting, drawn
from PIL import Image
from test_folder import write_folder
from test_loop import Seen, Writer, run

from famr_jax import data, mesh, metrics, models, unlearn
from famr_jax.cli import forget
from famr_jax.cli.flags import BenchFlags
from famr_jax.cli.opening import open_bench
from famr_jax.data import stream
from famr_jax.data.stream import OnDisk, read_ahead
from famr_jax.methods import descent_ascent
from famr_jax.train import Supervised
from famr_jax.types import Source

ADAM, KEY = optax.adam(1e-2), jax.random.key(3)


def train(learner, state, source, *, epochs=2, key=KEY, start=0):
    """All that a training yields on the twelve images of the fixtures."""
    return run(learner, state, source, size=12, epochs=epochs, batch_size=4, key=key, start=start)


def reading():
    """Threads that read ahead and are still there."""
    return [thread for thread in threading.enumerate() if "read-ahead" in thread.name]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert not reading()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("folder")
    write_folder(root, classes=("a", "b", "c"), n=4)
    return root


@pytest.fixture(scope="module")
def on_disk(root):
    return data.load(f"folder:{root}", stream=True)


@pytest.fixture(scope="module")
def in_memory(root):
    return data.load(f"folder:{root}")


@pytest.fixture(scope="module")
def model(on_disk):
    return models.create("mlp_8", num_classes=3, image_shape=on_disk.image_shape)


@pytest.fixture(scope="module")
def params(model):
    return drawn(model.init)


@pytest.fixture(scope="module")
def learner(model):
    return Supervised(model.apply, ADAM)


def begin(learner, params):
    return learner.init(jax.tree.map(jnp.copy, params))


def test_a_set_on_disk_is_the_one_in_memory(on_disk, in_memory):
    assert on_disk.class_names == in_memory.class_names
    assert on_disk.image_shape == in_memory.image_shape
    for source, split in ((on_disk.train, in_memory.train), (on_disk.test, in_memory.test)):
        assert isinstance(source, Source)
        assert_same(source.batch(), split.batch())
        rows = np.array([[3, 0], [7, 7]])
        [batch] = source.stream([rows])
        assert_same(batch, split.batch()[rows])
        mask = split.labels == 1
        for part in (mask, np.flatnonzero(mask), slice(4, 8)):
            assert_same(source[part].batch(), split.batch()[part])
            assert_same(source.pixels(part), split.pixels(part))
        assert_same(source[4:][1:3].batch(), split.batch()[5:7])


def test_a_set_on_disk_has_no_array_and_says_so(on_disk):
    with pytest.raises(ValueError, match="`x` must be in memory for this, got 12 images on disk"):
        _ = on_disk.train.x


def test_prepared_records_stream_in_the_order_of_memory(tmp_path):
    digits, streamed = (data.load("digits", data_dir=tmp_path, stream=on) for on in (False, True))
    for split, source in ((digits.train, streamed.train), (digits.test, streamed.test)):
        np.testing.assert_array_equal(source.labels, split.labels)
        np.testing.assert_array_equal(source.pixels(slice(0, 90)), split.x[:90])
    assert streamed.fingerprint == data.load("digits", data_dir=tmp_path, stream=True).fingerprint
    assert streamed.fingerprint != digits.fingerprint
    kept = data.load("digits", data_dir=tmp_path, stream=True, classes=2).train
    np.testing.assert_array_equal(kept.pixels()[-9:], digits.train.x[digits.train.labels < 2][-9:])


@pytest.mark.parametrize("members", [None, 2])
def test_an_epoch_shows_the_rows_and_keys_of_memory(on_disk, in_memory, members):
    keys = KEY if members is None else jax.random.split(KEY, members)

    def start():
        blank = Seen(jnp.zeros((2, 3)), jnp.zeros((), int))
        return blank if members is None else jax.tree.map(lambda x: jnp.stack([x] * members), blank)

    def shown(*sets):
        return run(Writer(), start(), sets, size=12, epochs=2, batch_size=5, key=keys)

    memory, disk = in_memory.train.batch(), on_disk.train
    wanted = shown(memory, memory[:7])
    for sets in ((disk, disk[:7]), (memory, disk[:7])):
        assert_same(shown(*sets), wanted)


@pytest.mark.parametrize("members", [None, 2])
def test_training_from_disk_is_training_in_memory(on_disk, in_memory, learner, params, members):
    def last(images):
        state, keys = begin(learner, params), KEY
        if members is not None:
            state = jax.tree.map(lambda leaf: jnp.stack([leaf] * members), state)
            keys = jax.random.split(KEY, members)
        [*_, (_, state, info)] = train(learner, state, images, key=keys)
        return state.params, info

    streamed, wanted = last(on_disk.train), last(in_memory.train.batch())
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), streamed, wanted)
    assert streamed[1]["loss"].shape == (() if members is None else (members,))


def test_unlearning_from_disk_is_unlearning_in_memory(on_disk, in_memory, model, params):
    method = descent_ascent(model.apply, optimizer=ADAM)
    mask = in_memory.train.labels == 1
    memory, disk = in_memory.train.batch(), on_disk.train
    ends = [
        unlearn.run(method, params, forget, retain, epochs=2, batch_size=3, key=KEY)
        for forget, retain in (
            (memory[mask], memory[~mask]),
            (disk[mask], disk[~mask]),
        )
    ]
    for end in ends[1:]:
        logits = [model.apply(each.params, memory.x) for each in (end, ends[0])]
        np.testing.assert_allclose(*logits, rtol=0, atol=1e-4)
        assert end.finite
        for name, values in ends[0].log.items():
            np.testing.assert_allclose(end.log[name], values, rtol=1e-4, atol=1e-5)


def test_training_from_disk_resumes_to_the_same_bits(on_disk, learner, params):
    whole = train(learner, begin(learner, params), on_disk.train, epochs=4)
    for epoch, state, _ in whole[:-1]:
        state = jax.tree.map(jnp.asarray, state)
        assert_same(train(learner, state, on_disk.train, epochs=4, start=epoch), whole[epoch:])


def test_training_from_disk_stops_where_it_is_not_finite(on_disk):
    growing = Writer(2e38)  # the second showing overflows float32
    sets = (on_disk.train[:2],)
    start = Seen(jnp.zeros((1, 3)), jnp.zeros((), int))
    log = run(growing, start, sets, size=2, epochs=5, batch_size=1)
    assert [bool(info["finite"]) for _, _, info in log] == [False]


def test_training_from_disk_over_a_mesh(on_disk, learner, params):
    [_, (_, alone, _)] = train(learner, begin(learner, params), on_disk.train)
    with jax.set_mesh(mesh.parse("data=2")):
        state = mesh.split(begin(learner, params))
        [_, (_, spread, _)] = train(learner, state, on_disk.train)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), spread.params, alone.params)


@pytest.mark.parametrize("batch_size", [4, 5, 12, 50])
def test_predict_reads_in_order(on_disk, in_memory, model, params, batch_size):
    streamed = metrics.predict(model.apply, params, on_disk.train, batch_size=batch_size)
    wanted = model.apply(params, in_memory.train.batch().x)
    np.testing.assert_allclose(streamed, wanted, rtol=0, atol=1e-5)


def test_a_broken_file_is_named_when_its_batch_is_asked_for(root, tmp_path, learner, params):
    shutil.copytree(root, tmp_path / "set")
    whole = data.load(f"folder:{tmp_path / 'set'}", stream=True)
    file = tmp_path / "set" / "train" / "b" / "1.png"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"train/b/1.png` must be a readable 8-bit image, got"):
        train(learner, begin(learner, params), whole.train)
    with pytest.raises(ValueError, match=r"train/b/1.png` must be"):
        metrics.predict(learner.apply_fn, params, whole.train)


def test_a_learner_that_fails_ends_the_reading(on_disk):
    class Fails(Exception):
        pass

    class Failing:
        def step(self, state, batch, key):
            raise Fails

    failing = jax.tree_util.register_static(Failing)()
    with pytest.raises(Fails):
        train(failing, jnp.zeros(()), on_disk.train)


def test_reading_ahead_keeps_order_and_holds_few():
    held, most, lock = [0], [0], threading.Lock()

    def read(item):
        with lock:
            held[0] += 1
            most[0] = max(most[0], held[0])
        time.sleep(0.001 * (item % 3))
        return item

    for item, read_item in enumerate(read_ahead(read, range(60))):
        assert item == read_item
        time.sleep(0.002)
        with lock:
            held[0] -= 1
    assert item == 59
    assert 1 < most[0] <= stream.AHEAD


def test_reading_ahead_ends_early_and_passes_errors_on():
    read = []
    items = read_ahead(lambda item: read.append(item) or item, range(10_000))
    assert [next(items), next(items)] == [0, 1]
    items.close()
    assert len(read) <= stream.AHEAD + 1
    assert not reading()
    broken = read_ahead(lambda item: 1 // (item - 3), range(10_000))
    with pytest.raises(ZeroDivisionError):
        list(broken)


def synthetic(n, side):
    def read(row):
        return np.full((side, side, 3), row % 256, np.uint8)

    labels = np.zeros(n, np.int32)
    return OnDisk(read, (side, side, 3), labels, np.zeros((n, 16), np.uint8), np.arange(n))


def test_an_epoch_from_disk_stays_within_a_few_batches(monkeypatch):
    monkeypatch.setattr(stream, "WORKERS", 2)
    monkeypatch.setattr(stream, "AHEAD", 3)
    source = synthetic(300, 32)

    def show(part):
        start = Seen(jnp.zeros((1, 3)), jnp.zeros((), int))
        run(Writer(), start, (part,), size=len(part), epochs=1, batch_size=3)

    show(source[:3])  # compiles
    tracemalloc.start()
    try:
        show(source)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A third of what the whole set takes as float32: 33 of 100 batches.
    assert peak < 300 * 32 * 32 * 3 * 4 / 3


def write_uneven(root):
    """Coloured photographs of three sizes, no two alike, as JPEG."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in "ab":
            for i, (height, width) in enumerate(((40, 60), (90, 45), (16, 16))):
                file = root / split / name / f"{i}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                noise = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8)
                picture = Image.fromarray(noise).resize((width, height), Image.BICUBIC)
                picture.save(file, quality=90)
    return root


@pytest.mark.parametrize("on", [False, True])
def test_images_of_many_sizes_become_squares(tmp_path, on):
    root = write_uneven(tmp_path)
    with pytest.raises(ValueError, match=r"must have one size .* an image size"):
        data.load(f"folder:{root}", stream=on)
    with pytest.raises(ValueError, match="`image_size` must be an integer >= 1, got 0"):
        data.load(f"folder:{root}", image_size=0)
    split = data.load(f"folder:{root}", image_size=16, stream=on).train
    pixels = split.pixels()
    assert pixels.shape == (6, 16, 16, 3)
    for row, name in enumerate(f"{c}/{i}" for c in "ab" for i in range(3)):
        picture = Image.open(root / "train" / f"{name}.jpg")
        # The other way: the whole image until its short side is 16, then the middle.
        scale = 16 / min(picture.size)
        width, height = (round(side * scale) for side in picture.size)
        whole = np.asarray(picture.resize((width, height), Image.BICUBIC), int)
        top, left = (height - 16) // 2, (width - 16) // 2
        wanted = whole[top : top + 16, left : left + 16]
        # Pillow rounds to bytes between its passes over rows and columns, in an order of its own.
        assert np.abs(pixels[row] - wanted).max() <= 4


@pytest.mark.parametrize("on", [False, True])
def test_images_of_one_size_are_not_enlarged(root, on):
    shape = data.load(f"folder:{root}", stream=on).image_shape
    assert data.load(f"folder:{root}", image_size=max(shape), stream=on).image_shape == shape
    assert data.load(f"folder:{root}", image_size=2, stream=on).image_shape[:2] == (2, 2)


def test_twins_on_disk_are_equal_files(root, tmp_path):
    shutil.copytree(root, tmp_path / "set")
    shutil.copy(tmp_path / "set/train/a/0.png", tmp_path / "set/train/c/3.png")
    shutil.copy(tmp_path / "set/train/a/0.png", tmp_path / "set/val/b/2.png")
    on_disk = data.load(f"folder:{tmp_path / 'set'}", stream=True)
    in_memory = data.load(f"folder:{tmp_path / 'set'}")
    counts = data.count_duplicates(on_disk.train, on_disk.test)
    assert counts == {"within_train": 2, "within_test": 0, "across": 1}
    assert counts == data.count_duplicates(in_memory.train, in_memory.test)
    assert counts == data.count_duplicates(in_memory.train.x, in_memory.test.x)
    assert on_disk.fingerprint != data.load(f"folder:{root}", stream=True).fingerprint


def test_an_epoch_from_disk_does_not_retrace(on_disk, model, params):
    apply_fn, traces = counting(model.apply)
    for seed in range(2):
        learner = Supervised(apply_fn, ADAM)
        train(learner, begin(learner, params), on_disk.train[seed:], key=KEY)
    assert len(traces) == 1


def small_job(root, tmp_path, *, stream):
    """The flags of the smallest main job on the photographs of many sizes."""
    return BenchFlags(
        dataset=f"folder:{root}",
        image_size=7,
        stream=stream,
        model="mlp_4",
        train_epochs=1,
        batch_size=4,
        oracles=2,
        out=tmp_path / "out",
        cache=tmp_path / "cache",
    )


def test_an_experiment_that_needs_memory_says_so(root, tmp_path):
    with pytest.raises(ValueError, match="`stream` must be off"):
        open_bench(small_job(root, tmp_path, stream=True))


def test_the_bench_trains_and_evaluates_from_disk(tmp_path):
    root, made = write_uneven(tmp_path / "set"), []
    for on in (False, True):
        bench = open_bench(small_job(root, tmp_path, stream=on), streams=True)
        assert (bench.model.image_shape, bench.dataset.image_shape) == ((7, 7, 3), (8, 8, 3))
        [gone] = bench.forget_sets(["class:1"])
        weights = bench.original().params
        view = bench.evaluator(gone).view(weights)
        logits = [view.logits(name) for name in ("forget", "retain", "test")]
        made.append((weights, logits, bench.in_memory(gone.mask)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *made)


@pytest.mark.slow
def test_the_main_job_runs_from_disk(tmp_path):
    bench = small_job(write_uneven(tmp_path / "set"), tmp_path, stream=True)
    forget.run(forget.Flags(forget=("class:1",), epochs=1, bench=bench))
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert content["results"]["finite"]
    assert content["config"]["flags"]["stream"]
    assert " --stream --model " in content["config"]["command"]
    assert (tmp_path / "out" / "report.html").exists()
