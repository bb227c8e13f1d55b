"""The store: one model a key, the same bits whoever made it, however often it was interrupted."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_same

from famr_jax import checkpoint, data, mesh, provenance, store
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import BenchFlags
from famr_jax.provenance import TRAINING, sources_of
from famr_jax.store import Clock, Store

ROOT = Path(__file__).parents[1]
EPOCHS = 4


class State(NamedTuple):
    params: dict
    momentum: jax.Array


@jax.jit
def _begin(seed):
    w = jax.random.normal(jax.random.key(seed), (5, 3))
    return State({"w": w, "b": jnp.zeros(3)}, jnp.zeros((5, 3)))


def _step(state, seed, epoch):
    key = jax.random.fold_in(jax.random.key(seed), epoch)
    x = jax.random.normal(key, (7, 5))

    def loss(w):
        return jnp.mean(jax.nn.logsumexp(x @ w, axis=1))

    value, slope = jax.value_and_grad(loss)(state.params["w"])
    momentum = 0.9 * state.momentum + slope
    params = {"w": state.params["w"] - 0.1 * momentum, "b": state.params["b"] + value}
    return State(params, momentum), {"loss": value, "finite": jnp.isfinite(value)}


STEP, STEPS = jax.jit(_step), jax.jit(jax.vmap(_step, (0, 0, None)))


class Members:
    """Seeds that train, what was run of them, and an interruption."""

    def __init__(self, seeds, width, stop=None):
        self.seeds, self.width, self.stop, self.ran = seeds, width, stop, []

    def begin(self, rows):
        seeds = np.array(self.seeds)[rows]
        return jax.vmap(_begin)(seeds) if self.width > 1 else _begin(seeds)

    def advance(self, rows, state, start):
        self.ran.append((list(np.atleast_1d(rows)), start))
        for epoch in range(start + 1, EPOCHS + 1):
            if epoch == self.stop:
                raise KeyboardInterrupt
            step = STEPS if self.width > 1 else STEP
            state, info = step(state, np.array(self.seeds)[rows], epoch)
            yield epoch, state, info

    def fit(self, root, *, resume=True, **changes):
        clock = Clock()
        found = Store(root, resume=resume, clock=clock).fit_members(
            "oracles class:3",
            [{"data": "x", "member": seed} | changes for seed in self.seeds],
            self.begin,
            self.advance,
            epochs=EPOCHS,
            width=self.width,
        )
        assert list(clock.phases) == ["oracles class:3"]
        total = sum(each.seconds["run"] for each in found)
        assert clock.phases["oracles class:3"]["run"] == pytest.approx(total)
        return found


def bits(found):
    return [each.params for each in found]


@pytest.fixture
def every_epoch_saved(monkeypatch):
    monkeypatch.setattr(store, "SECONDS_BETWEEN_SAVES", 0)


@pytest.mark.parametrize("width", [1, 4])
def test_a_members_bits_depend_on_neither_slot_neighbours_nor_a_warm_store(tmp_path, width):
    seeds = [3, 1, 4, 15, 9, 2]  # 6: a chunk of 4 and one of 2
    cold = Members(seeds, width).fit(tmp_path / "cold")
    few = Members(seeds[:2], width)
    few.fit(tmp_path / "warm")
    more = Members(seeds, width)
    warm = more.fit(tmp_path / "warm")
    assert_same(bits(warm), bits(cold))
    chunks = [[2], [3], [4], [5]] if width == 1 else [[2, 3, 4, 5]]
    assert more.ran == [(chunk, 0) for chunk in chunks]
    turned = Members(seeds[::-1], width).fit(tmp_path / "turned")
    assert_same(bits(turned)[::-1], bits(cold))
    again = Members(seeds[::-1], width)
    assert_same(bits(again.fit(tmp_path / "cold"))[::-1], bits(cold))
    assert not again.ran
    (alone,) = Members([9], width).fit(tmp_path / "alone")
    assert_same(alone.params, cold[4].params)
    assert alone.log == cold[4].log
    assert [set(entry) for entry in alone.log] == [{"loss"}] * EPOCHS
    assert isinstance(alone.log[0]["loss"], float)


def test_members_agree_with_single_runs(tmp_path):
    many, single = (Members([3, 1], width).fit(tmp_path) for width in (4, 1))
    assert len([path for path in tmp_path.iterdir() if path.name != ".locks"]) == 4
    for one, other in zip(jax.tree.leaves(bits(many)), jax.tree.leaves(bits(single)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.usefixtures("every_epoch_saved")
@pytest.mark.parametrize("width", [1, 4])
def test_an_interrupted_chunk_goes_on_to_the_same_bits(tmp_path, width):
    whole = Members([3, 1, 4], width).fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        Members([3, 1, 4], width, stop=3).fit(tmp_path / "run[1]")
    later = Members([3, 1, 4], width)
    assert_same(bits(later.fit(tmp_path / "run[1]")), bits(whole))
    assert later.ran[0] == ([0] if width == 1 else [0, 1, 2, 2], 2)
    kept = [path for path in (tmp_path / "run[1]").iterdir() if path.name != ".locks"]
    assert [[part.name for part in path.iterdir()] for path in kept] == [["weights"]] * 3


@pytest.mark.usefixtures("every_epoch_saved")
def test_a_member_finished_elsewhere_meanwhile_is_fine(tmp_path):
    whole = Members([3, 1, 4], 4).fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        Members([3, 1, 4], 4, stop=3).fit(tmp_path / "run")
    Members([1], 4).fit(tmp_path / "run")
    later = Members([3, 1, 4], 4)
    assert_same(bits(later.fit(tmp_path / "run")), bits(whole))
    assert later.ran == [([0, 2, 2, 2], 0)]


@pytest.mark.usefixtures("every_epoch_saved")
@pytest.mark.parametrize("width", [1, 4])
def test_without_resume_all_is_made_anew(tmp_path, width):
    first = Members([3, 1], width).fit(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        Members([3, 1], width, stop=2).fit(tmp_path, resume=False)
    again = Members([3, 1], width)
    assert_same(bits(again.fit(tmp_path, resume=False)), bits(first))
    assert [start for _, start in again.ran] == [0] * len(again.ran)
    assert sorted(row for rows, _ in again.ran for row in set(rows)) == [0, 1]


def fit(root, *, watch=None, sources=TRAINING, config=None, epochs=EPOCHS):
    one = Members([3], 1)
    keep = Store(root, resume=True, clock=Clock())
    return keep.fit(
        "original",
        {"seed": 3} if config is None else config,
        lambda: one.begin(0),
        lambda state, start: one.advance(0, state, start),
        epochs=epochs,
        sources=sources,
        watch=watch,
    ), one.ran


def test_one_phase_keeps_what_was_watched_and_is_read_back(tmp_path):
    def watch(params):
        return {"size": jnp.sum(params["b"])}

    first, ran = fit(tmp_path, watch=watch)
    assert ran == [([0], 0)]
    assert set(first.log[-1]) == {"loss", "size"}
    again, ran = fit(tmp_path, watch=watch)
    assert not ran
    assert_same(again.params, first.params)
    assert again[1:] == first[1:]


@pytest.mark.usefixtures("every_epoch_saved")
@pytest.mark.parametrize("spoilt", ["finite", "watched"])
def test_an_epoch_that_is_not_finite_is_not_saved(tmp_path, spoilt):
    calls = []

    def watch(params):
        calls.append(params)
        return {"size": np.nan if len(calls) == 3 and spoilt == "watched" else 1.0}

    def advance(state, start):
        for epoch in range(start + 1, EPOCHS + 1):
            yield epoch, state, {"finite": epoch != 3 or spoilt == "watched"}

    keep = Store(tmp_path, resume=True, clock=Clock())
    with pytest.raises(store.NonFiniteError, match=r"phase: not finite in epoch 3; ") as failed:
        keep.fit("phase", {}, lambda: _begin(0), advance, epochs=EPOCHS, watch=watch)
    assert (failed.value.phase, failed.value.epoch) == ("phase", 3)
    home = keep.directory("phase", {}, epochs=EPOCHS)
    assert checkpoint.latest_epoch(home / "progress") == 2
    assert checkpoint.latest_epoch(home / "weights") is None


def test_programs_are_forgotten_where_a_process_could_hold_no_more(tmp_path, monkeypatch):
    if not Path("/proc/self/maps").exists():
        pytest.skip("counts mappings on Linux alone")
    traces, kept = [], Store(tmp_path, resume=True, clock=Clock())

    @jax.jit
    def function(x):
        traces.append(None)
        return x + 1

    for name, most, count in (("few", 10**6, 1), ("many", 0, 2)):
        monkeypatch.setattr(store, "MOST_MAPPINGS", most)
        function(1.0)
        assert kept.remember(name, {}, lambda: 1.0, sources=(Path(__file__),)) == 1.0
        function(1.0)
        assert len(traces) == count


def test_the_key_has_every_digit_the_name_the_sources_and_the_platform(tmp_path, monkeypatch):
    keep = Store(tmp_path, resume=True, clock=Clock())
    default = {"name": "a", "config": {"lr": 1e-3, "mask": np.arange(3)}, "epochs": 2}

    def home(**changes):
        return keep.directory(**default | changes)

    paths = [
        home(),
        home(name="b"),
        home(config={"lr": 1e-3 + 1e-12, "mask": np.arange(3)}),
        home(config={"lr": 1e-3, "mask": np.arange(4)}),
        home(epochs=3),
        home(width=8),
        home(sources=(*TRAINING, "famr_jax.models")),
    ]
    for text in ("data=2", "data=4", "model=2"):
        with jax.set_mesh(mesh.parse(text)):
            paths.append(home())
    with jax.enable_x64(True):
        paths.append(home())
    with jax.default_matmul_precision("highest"):
        paths.append(home())
    with jax.threefry_partitionable(False):
        paths.append(home())
    with jax.default_prng_impl("rbg"):
        paths.append(home())
    with monkeypatch.context() as patch:
        patch.setattr(provenance.metadata, "version", lambda package: f"{package} 99")
        paths.append(home())
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "gpu")
        paths.append(home())
    assert len(set(paths)) == len(paths)
    assert home() == home(config={"mask": np.arange(3), "lr": 1e-3}) == paths[0]
    assert home(name="famr class:3/[x]").parent == tmp_path
    assert len(home(name="é" * 300).name.encode()) < 255
    with pytest.raises(TypeError, match="`config` must be JSON-able, got a object"):
        home(config={"lr": object()})


UNLEARNING = ("famr_jax.unlearn", "famr_jax.methods.famr")


@pytest.mark.parametrize(
    ("edited", "changed"),
    [
        ("report/page.py", ()),
        ("metrics.py", ()),
        ("store.py", ()),
        ("__init__.py", ()),
        ("methods/__init__.py", ()),
        ("methods/gradient_ascent.py", ()),
        ("models/pretrained.py", ()),
        ("data/tfds.py", ()),
        ("loop.py", ("training", "unlearning")),
        ("mesh.py", ("training", "unlearning")),
        ("train.py", ("training",)),
        ("models/vit.py", ("training",)),
        ("models/__init__.py", ("training",)),
        ("data/augment.py", ("training",)),
        ("unlearn.py", ("unlearning",)),
        ("methods/famr.py", ("unlearning",)),
    ],
)
def test_a_comment_changes_the_keys_of_what_it_makes_alone(tmp_path, edited, changed):
    made_by = {
        "training": (*TRAINING, "famr_jax.models", "famr_jax.data.augment"),
        "unlearning": UNLEARNING,
    }
    shutil.copytree(ROOT / "famr_jax", tmp_path / "famr_jax")
    with (tmp_path / "famr_jax" / edited).open("a") as file:
        file.write("# A comment.\n")
    for name, modules in made_by.items():
        assert (sources_of(*modules) != sources_of(*modules, root=tmp_path)) == (name in changed)


@pytest.mark.parametrize(("stream", "decoded"), [(False, False), (True, True)])
def test_what_scales_images_counts_and_what_decodes_them_where_they_are_on_disk(stream, decoded):
    bench = SimpleNamespace(flags=BenchFlags(stream=stream), augment=data.crop)
    sources = Bench.sources.fget(bench)
    assert "famr_jax.data.augment" in sources
    assert ("famr_jax.data.encoded" in sources) == decoded
    assert ("famr_jax.data.stream" in sources) != decoded  # what decodes imports it


def test_files_of_ones_own_count_with_what_they_import(tmp_path):
    own = tmp_path / "own.py"
    texts = ("import jax", "import famr_jax.losses", "from famr_jax import loop", "import famr_jax")
    hashes = set()
    for text in texts:
        own.write_text(text + "\n")
        hashes.add(sources_of(own))
        hashes.add(sources_of(own, *UNLEARNING))
    assert len(hashes) == 2 * len(texts) - 1  # all of the library is all of it, whatever is added
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.copy(own, tmp_path / "elsewhere" / "own.py")
    assert sources_of(own) == sources_of(moved)
    for wrong in ("famr_jax.nothing", "numpy", str(own)):
        with pytest.raises(ValueError, match="`sources` must be files or modules of famr_jax, got"):
            sources_of(wrong)


def test_files_of_ones_own_count_with_the_modules_beside_them(tmp_path):
    own = tmp_path / "own.py"
    own.write_text("import numpy, famr_jax.losses\nfrom helper import make\nimport parts.one\n")
    (tmp_path / "parts").mkdir()
    others = ("helper.py", "further.py", "parts/__init__.py", "parts/one.py", "stranger.py")
    texts = ("from further import make", "make = 1", "from . import one", "", "")
    hashes = [sources_of(own)]
    for other, text in zip(others, texts, strict=True):
        (tmp_path / other).write_text(text)
        hashes.append(sources_of(own))
    # What is not imported by then, `stranger`, changes nothing; an empty file is a file.
    assert len(set(hashes)) == len(hashes) - 1
    assert hashes[-1] == hashes[-2]


PROCESS = """
import sys
from pathlib import Path
import jax
jax.config.update("jax_num_cpu_devices", 4)
import test_store
from famr_jax import store

store.SECONDS_BETWEEN_SAVES = 0
root, width, resume = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "resume"
members = test_store.Members([3, 1, 4], width)
print("started", flush=True)
found = members.fit(root, resume=resume)
print(len(members.ran), *(store.fingerprint(each.params) for each in found), flush=True)
"""


def start(root, width, resume):
    command = [sys.executable, "-c", PROCESS, str(root), str(width), resume]
    paths = {"PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}"}
    return subprocess.Popen(
        command,
        env=dict(os.environ, **paths),
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.parametrize(("width", "resume"), [(1, "resume"), (4, "resume"), (4, "anew")])
def test_runs_side_by_side_share_the_store(tmp_path, width, resume):
    runs = [start(tmp_path, width, resume) for _ in range(3)]
    told = [run.communicate()[0].split()[1:] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0]
    wanted = Members([3, 1, 4], width).fit(tmp_path / "here")
    assert [words[1:] for words in told] == [[store.fingerprint(p) for p in bits(wanted)]] * 3
    chunks = {1: 3, 4: 1}[width] * (1 if resume == "resume" else 3)
    assert sum(int(words[0]) for words in told) == chunks


@pytest.mark.parametrize("width", [1, 4])
def test_killed_runs_leave_nothing_that_breaks_the_next(tmp_path, width):
    wanted = Members([3, 1, 4], width).fit(tmp_path / "whole")
    root = tmp_path / "run"
    for seen in ("*/progress/.[1-9]*", "*/progress/2", "*/weights/.[1-9]*"):
        run = start(root, width, "resume")
        while not list(root.glob(seen)) and run.poll() is None:
            time.sleep(0.001)
        run.send_signal(signal.SIGKILL)
        run.communicate()
    assert_same(bits(Members([3, 1, 4], width).fit(root)), bits(wanted))


def test_weights_of_a_mesh_are_those_of_the_mesh_and_load_in_it(tmp_path):
    with jax.set_mesh(mesh.parse("data=2")):
        first, _ = fit(tmp_path)
        again, ran = fit(tmp_path)
    assert not ran
    assert_same(again.params, first.params)
    assert len(again.params["w"].devices()) == 2
    _, ran = fit(tmp_path)
    assert ran


def test_numbers_that_two_runs_ask_for_at_once_are_computed_once(tmp_path):
    started, calls = threading.Event(), []

    def numbers():
        calls.append(1)
        started.set()
        time.sleep(0.3)  # the other asks meanwhile
        return {"share": 0.5}

    def ask():
        keep = Store(tmp_path, resume=True, clock=Clock())
        return keep.remember("numbers", {"a": 1}, numbers, sources=TRAINING)

    with ThreadPoolExecutor() as pool:
        first = pool.submit(ask)
        assert started.wait(20)
        second = pool.submit(ask)
        assert first.result() == second.result() == {"share": 0.5}
    assert len(calls) == 1
