"""Style and concept forgetting on a tiny folder of CIFAR-100's class names, and their verdicts."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from experiments.famr import planted_style, style_forgetting
from experiments.famr.planted_style import GRAM, NOISE
from experiments.famr.style_forgetting import EXPERIMENT, SMALL
from experiments.harness import ledger
from experiments.harness.results import read_results
from experiments.harness.run import run
from famr_jax.cli.flags import BenchFlags
from famr_jax.cli.opening import open_bench
from famr_jax.data.superclasses import SUPERCLASSES
from famr_jax.evaluation import Part, View
from famr_jax.types import Batch

RESULTS = {k: r for k, r in read_results().items() if k.startswith("style_forgetting")}
NAMES = sorted((*SUPERCLASSES["flowers"], *SUPERCLASSES["insects"], "wolf"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eleven classes of colour images, 8x8: six to train and two to test a class."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 2)):
        for name in NAMES:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(60, 200, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory):
    """One run of a style and a superclass: its flags and its JSON."""
    root = tmp_path_factory.mktemp("run")
    bench = replace(
        SMALL.bench,
        dataset=f"folder:{folder}",
        model="mlp_8",
        train_epochs=1,
        batch_size=20,
        out=root / "out",
        cache=root / "cache",
    )
    chosen = replace(
        SMALL,
        forget=("style:tint", "superclass:insects"),
        superclasses=("flowers", "insects"),
        elsewhere=0.2,
        bench=bench,
    )
    return chosen, run(EXPERIMENT, chosen)


def test_the_whole_run_is_recorded(done):
    chosen, content = done
    (style,), (concept,) = content["results"]["styles"], content["results"]["concepts"]
    assert content["results"]["dataset"]["num_classes"] == 10
    assert style["num_styled"] == 2 * 3 + 8 * 1
    assert [(path["model"], path["lr"]) for path in style["paths"]] == list(
        dict.fromkeys((line["model"], line["lr"]) for line in style["rows"])
    )
    for line in style["rows"]:
        assert line["oracles"] == chosen.bench.oracles
        assert line["verdict"] == "too few oracles"
    for path in style["paths"]:
        epochs = chosen.control_epochs if path["model"] == "fine-tuning" else chosen.epochs
        assert len(path["styled_acc"]) == epochs + 1
    assert concept["num_forget"] == 5 * 6
    assert len(concept["classes"]) == 5
    assert content["claims"] == []  # not at the paper's settings
    phases = content["config"]["seconds"]["phases"]
    assert {"original", "original tint", "oracles styled-images"} <= set(phases)
    assert str(chosen.bench.out.parent) not in json.dumps(content)


def test_a_run_ends_where_its_curve_does(done):
    (style,) = done[1]["results"]["styles"]
    paths = {(path["model"], path["lr"]): path for path in style["paths"]}
    for line in style["rows"]:
        path = paths[line["model"], line["lr"]]
        if line["measure"] in path:
            assert line["value"] == pytest.approx(path[line["measure"]][-1], abs=1e-5)


def test_the_report_is_self_contained_and_shows_every_image(done):
    page = (done[0].bench.out / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert 'src="http' not in page
    (style,), (concept,) = (done[1]["results"][name] for name in ("styles", "concepts"))
    images = 2 * len(style["grid"]["indices"]) + len(concept["grid"]["indices"])
    assert page.count('src="data:image/png;base64,') == images
    assert "orchid" in page


def test_numbers_of_a_model_are_those_of_its_outputs():
    labels = np.repeat(np.arange(10), 2)
    right = 5.0 * np.eye(10)[labels]
    cued = 5.0 * np.eye(10)[np.where(labels == 3, 3, 5)]
    batches = {name: Batch(np.zeros((20, 1)), labels) for name in ("plain", "styled")}
    parts = dict(zip(batches, map(Part, batches.values()), strict=True))
    others = ~np.isin(labels, (0, 5))
    parts |= {f"{name}_others": Part(batch, others) for name, batch in batches.items()}

    def view_of(plain, styled):
        view = View(None, None, parts)
        view._logits = {id(batches["plain"]): plain, id(batches["styled"]): styled}
        return view

    mine, oracle = view_of(right, cued), view_of(right, right)
    style = planted_style.Style("tint", (0, 5), 0.1, 1, (1e-3,), 1)
    found = {m.name: m.function(mine, [oracle]) for m in planted_style.of_outputs(style)}
    assert found["plain_acc"] == 1
    assert found["plain_cue"] == 0
    assert found["styled_acc"] == pytest.approx(0.2)
    assert found["styled_cue"] == pytest.approx(7 / 8)
    assert found["plain_kl"] == pytest.approx(0, abs=1e-6)
    assert found["plain_same"] == 1
    assert found["styled_same"] == pytest.approx(0.2)
    assert found["styled_kl"] > 1


def test_class_forgetting_takes_a_superclass(folder):
    bench = open_bench(BenchFlags(dataset=f"folder:{folder}", model="mlp_8", batch_size=64))
    (gone,) = bench.forget_sets(["superclass:insects"])
    names = [bench.dataset.class_names[c] for c in gone.classes]
    assert names == sorted(SUPERCLASSES["insects"])
    assert gone.kind == "class"
    assert gone.mask.sum() == 30
    with pytest.raises(ValueError, match="must be one of flowers, insects, large_carnivores"):
        bench.forget_sets(["superclass:cars"])


@pytest.mark.parametrize(
    ("changes", "bench", "words"),
    [
        ({"forget": ()}, {}, "`forget` must name style"),
        ({"forget": ("class:3",)}, {}, "`forget` must name style"),
        ({"forget": ("style:texture", "style:texture")}, {}, "different sets"),
        ({"forget": ("style:oil",)}, {}, "`style` must be one of tint"),
        ({"forget": ("style:tint",)}, {}, "3 channels"),
        ({"forget": ("superclass:insects",)}, {}, "classes of CIFAR-100"),
        ({"superclasses": ("insects",)}, {}, "classes of CIFAR-100"),
        ({"share": 1.5}, {}, "`share` must be in"),
        ({"share": 0.0, "elsewhere": 0.0}, {}, "attribute must be one of none, got 'texture'"),
        ({"style_classes": (10,)}, {}, "`classes` must have training images, got 10"),
        ({"lrs": ()}, {}, "`lrs`"),
        ({"lrs": (0.0,)}, {}, "`lrs`"),
        ({"lam": -1.0}, {}, "`lam`"),
        ({"epochs": 0}, {}, "`epochs`"),
        ({"control_epochs": 0}, {}, "`control_epochs`"),
        ({}, {"model": "logistic"}, "must have blocks"),
        ({}, {"original": "somewhere"}, "`original` must not be given"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_written(tmp_path, changes, bench, words):
    places = {"out": tmp_path / "out", "cache": tmp_path / "cache"}
    with pytest.raises(ValueError, match=words):
        run(EXPERIMENT, replace(SMALL, bench=replace(SMALL.bench, **places | bench), **changes))
    assert not any(tmp_path.iterdir())


def made_up(verdicts, *, concept=(0.9, 0.0, 0.0), kept=(0.9, 0.88, 0.9)):
    """Results with one style, whose judged measures have these verdicts at the paper's step."""
    known = {"original": 0.9, "oracle": 0.5, "oracles": 8, "unit": "share", "lr": 1e-4}
    rows = [
        known | {"measure": measure, "model": name, "value": 0.5, "verdict": each}
        for measure, each in zip(style_forgetting.JUDGED, verdicts, strict=True)
        for name in (GRAM, NOISE)
    ]
    table = [
        {"measure": name, "model": "famr", "original": v[0], "value": v[1], "oracle": v[2]}
        | {"oracles": 8, "n": 500}
        for name, v in (("for_acc", concept), ("ret_acc", kept))
    ]
    case = {"forget": "superclass:insects", "classes": [0], "targets": {"chance": 0.1}}
    case |= {"methods": [{"name": "famr"}], "rows": table}
    return {
        "settings": {"lam": 0.1, "epochs": 10, "lrs": [1e-4, 1e-3]},
        "dataset": {"name": "cifar100", "num_classes": 10},
        "model": {"name": "mlp_8"},
        "styles": [{"style": "tint", "rows": rows}],
        "concepts": [case],
    }


IN, OUT, OPEN, FEW = "inside band", "outside band", "not resolved", "too few oracles"


@pytest.mark.parametrize(
    ("verdicts", "verdict"),
    [
        ((IN, IN, IN), "holds"),
        ((IN, OPEN, IN), "holds"),
        ((OUT, OUT, OUT), "fails"),
        ((OUT, OPEN, OUT), "fails"),
        ((IN, OUT, IN), "mixed"),
        ((OPEN, OPEN, OPEN), "not resolved"),
        ((FEW, FEW, FEW), "not resolved"),
    ],
)
def test_verdicts_on_styles(verdicts, verdict):
    made, _ = style_forgetting.claims(made_up(verdicts), {})
    assert made["verdict"] == verdict
    assert "tint 90.0 50.0 50.0 50.0" in made["words"]


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "holds"),
        ({"concept": (0.9, 0.3, 0.0)}, "mixed"),
        ({"kept": (0.9, 0.5, 0.9)}, "mixed"),
        ({"concept": (0.9, 0.3, 0.0), "kept": (0.9, 0.5, 0.9)}, "fails"),
    ],
)
def test_verdicts_on_concepts(changes, verdict):
    _, made = style_forgetting.claims(made_up((IN, IN, IN), **changes), {})
    assert made["verdict"] == verdict
    config = {"experiment": "style_forgetting", "command": "python -m x"}
    assert ledger.ledger({"x": {"claims": [made], "config": config}})


def test_no_claim_is_judged_away_from_the_papers_settings():
    results = made_up((IN, IN, IN))
    for name, value in (("lam", 1.0), ("epochs", 9), ("lrs", [1e-3])):
        other = results | {"settings": results["settings"] | {name: value}}
        assert style_forgetting.claims(other, {}) == []


@pytest.mark.parametrize("name", RESULTS)
def test_committed_claims_and_docstring_are_what_the_committed_numbers_give(name):
    content = RESULTS[name]
    assert style_forgetting.claims(content["results"], {}) == content["claims"]
    for line in style_forgetting.headline(content):
        assert line in style_forgetting.__doc__
