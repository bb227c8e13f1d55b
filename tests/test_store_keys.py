"""Keys of the store: every digit of a configuration, versions, platform and sources."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from famr_jax import data, mesh, provenance
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import BenchFlags
from famr_jax.provenance import TRAINING, sources_of
from famr_jax.store import Clock, Store

ROOT = Path(__file__).parents[1]


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
