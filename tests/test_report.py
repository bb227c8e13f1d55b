import copy
import itertools
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest

from famr_jax.report import diagnose, forgetting, plot
from famr_jax.report import elements as page

CLASSES = 10
LOG_C = math.log(CLASSES)
EPOCHS = 10


def _row(metric, what, unit, n, original, famr, oracles, *, headline=False):
    mean = float(np.mean(oracles))
    half = 4.303 * float(np.std(oracles, ddof=1)) * math.sqrt(1 + 1 / len(oracles))
    band = [mean - half, mean + half]
    gap = {"original": abs(original - mean), "famr": abs(famr - mean)}
    oracle = {"values": list(oracles), "mean": mean, "band": band, "n": len(oracles)}
    null = float(np.mean([abs(a - b) for a, b in itertools.combinations(oracles, 2)]))
    return {
        **{"metric": metric, "what": what, "unit": unit, "n": n, "original": original},
        **{"famr": famr, "oracle": oracle, "null": null, "gap": gap, "headline": headline},
        "verdict": "too few oracles",
    }


def _path(start, end, rate, generator):
    steps = end + (start - end) * np.exp(-rate * np.arange(EPOCHS + 1))
    return (steps + np.r_[0, generator.normal(0, 0.004, EPOCHS)]).clip(0).tolist()


def fake_case(kind, generator):
    """One case as experiments/class_forgetting.py writes it, with made-up but plausible numbers."""
    by_class = kind == "class"
    size = 142 if by_class else 72
    end = (0.056, 0.62, 2.21) if by_class else (0.61, 0.83, 1.61)
    oracle = ([0.0, 0.0, 0.0], [0.991, 0.984, 0.987], [0.71, 0.78, 0.69])
    if not by_class:
        oracle = ([0.958, 0.944, 0.972], [0.99, 0.985, 0.989], [0.2, 0.22, 0.19])
    start = (0.993, 0.988, 0.12)
    paths = [_path(a, b, 0.45, generator) for a, b in zip(start, end, strict=True)]
    forget_term = np.array([2.9, 1.4, 0.82, 0.5, 0.36, 0.28, 0.22, 0.19, 0.17, 0.155])
    anchor_term = np.array([0.02, 0.09, 0.16, 0.22, 0.26, 0.29, 0.31, 0.325, 0.335, 0.34])
    if not by_class:
        forget_term, anchor_term = 1.3 * forget_term, 0.7 * anchor_term
    rows = [
        _row("For-Acc (train)", "Accuracy on the forgotten training images.", "share", size,
             start[0], paths[0][-1], oracle[0], headline=True),
        _row("Ret-Acc (train)", "Accuracy on the retained training images.", "share", 1437 - size,
             start[1], paths[1][-1], oracle[1], headline=True),
        _row("Ret-Acc (test)", "Accuracy on test images of the retained classes.", "share", 323,
             0.961, paths[1][-1] - 0.02, [0.957, 0.948, 0.963], headline=True),
        _row("Entropy (forget)", "Mean entropy of the predictions on the forgotten images.",
             "nats", size, start[2], paths[2][-1], oracle[2], headline=True),
        _row("KL to oracle (test)", "KL(oracle || model) on the test images.", "nats", 360,
             0.42, 0.61, [0.05, 0.06, 0.07]),
        _row("Loss attack (AUC)", "How well the loss tells forgotten from test images.", "share",
             size, 0.61, 0.38, [0.49, 0.52, 0.5]),
    ]  # fmt: skip
    targets = {"chance": 1 / CLASSES, "max_entropy": LOG_C}
    for name, values in zip(("for_acc", "ret_acc", "entropy"), oracle, strict=True):
        row = _row("", "", "", 1, 0.0, 0.0, values)
        targets |= {f"oracle_{name}": row["oracle"]["mean"]}
        targets |= {f"oracle_{name}_band": row["oracle"]["band"]}
    confusion = None
    if by_class:
        seeds = generator.dirichlet([0.1, 2, 0.3, 0.001, 0.2, 4, 0.1, 1, 6, 3], 3)
        confusion = {
            "original": [0, 0, 0, 0.944, 0, 0.028, 0, 0, 0.014, 0.014],
            "famr": [0.02, 0.05, 0.11, 0.055, 0.015, 0.28, 0, 0.07, 0.3, 0.1],
            "oracle": seeds.mean(0).tolist(),
            "oracle_values": seeds.tolist(),
            "n": 36,
        }
    grid = {
        "indices": list(range(3, 75, 6)),
        "labels": [3] * 12 if by_class else [*range(10), 1, 2],
    }
    for model, sharpness in (("original", 40), ("famr", 1.2), ("oracle", 6)):
        p = generator.dirichlet(np.ones(CLASSES) / sharpness, 12)
        for i, label in enumerate(grid["labels"] if model != "oracle" or not by_class else []):
            p[i] = (
                p[i] * 0.05 + 0.95 * (np.arange(CLASSES) == label) if model == "original" else p[i]
            )
        grid[model] = [[int(q.argmax()), float(q.max())] for q in p]
    histograms = None
    if not by_class:
        histograms = {"edges": np.linspace(0, 1, 21).tolist()}
        for model, skew in (("original", 9), ("famr", 1.5), ("oracle", 7)):
            histograms[model] = {
                part: (
                    np.histogram(generator.beta(skew - d, 0.8, 400), 20, (0, 1))[0] / 400
                ).tolist()
                for part, d in (
                    ("forget", 1.0 if model == "famr" else 0),
                    ("retain", 0),
                    ("test", 0.6),
                )
            }
    ends = {"for_acc": 0.1, "ret_acc": 0.55, "entropy": 2.29}
    forms = [
        {"form": "mean", "optimizer": "sgd", "lr": 1e-4, "L": 1450.0, "obeys": True},
        {"form": "sum", "optimizer": "sgd", "lr": 1e-4, "L": 205900.0, "obeys": False},
        {"form": "mean", "optimizer": "adam", "lr": 1e-4, "L": 1450.0, "obeys": True},
    ]
    return {
        "forget": "class:3" if by_class else "random:0.05",
        "kind": kind,
        "title": "Forgetting class 3" if by_class else "Forgetting 5 % random samples",
        **{"num_forget": size, "num_retain": 1437 - size, "num_test": 360, "duplicates_taken": 0},
        "num_forget_test": 36 if by_class else 0,
        "method": {
            **{"name": "famr", "lam": 0.1, "lr": 1e-4, "epochs": EPOCHS, "batch_size": 32},
            "optimizer": "adam",
            "why": "Adam, since plain SGD at this step covers under 1 % of the way in 10 epochs.",
        },
        "rows": rows,
        "epochs": {
            **dict(zip(("for_acc", "ret_acc", "entropy"), paths, strict=True)),
            "objective": (forget_term + 0.1 * anchor_term).tolist(),
            "forget": forget_term.tolist(),
            "anchor": anchor_term.tolist(),
            "grad_norm": (3 * forget_term / 2.9 + 0.1).tolist(),
        },
        "targets": targets,
        **{"confusion": confusion, "grid": grid, "histograms": histograms},
        "seeds": {
            "for_acc": (end[0] + np.array([0, 0.014, -0.007, 0.007, -0.014])).tolist(),
            "ret_acc": (end[1] + np.array([0, -0.01, 0.025, -0.02, 0.01])).tolist(),
            "entropy": (end[2] + np.array([0, -0.01, 0.01, -0.01, 0.005])).tolist(),
        },
        "stationarity": {
            **{"at_anchor": 12.4, "end": 0.83, "distance": 0.82},
            "converged": {
                "norm": 9.6e-5,
                "steps": 4210,
                "converged": True,
                "distance": 1.74,
                **ends,
            },
        },
        "normalisation": [
            {**f, "lam": 0.1, "limit": 1 / (f["L"] + 0.1), "finite": True, **ends} for f in forms
        ],
    }


def fake_metrics():
    generator = np.random.default_rng(0)
    cases = [fake_case(kind, generator) for kind in ("class", "sample")]
    for case in cases:
        case["diagnosis"] = diagnose(case)
    metrics = {
        "claims": [
            {
                "claim": "FAMR brings For-Acc to about 0 at 2-4 points of Ret-Acc",
                "source": "FAMR (arXiv 2506.14515)",
                "verdict": "fails",
                "words": "For-Acc falls to 5.6 %, Ret-Acc from 98.8 % to 62 % (oracles 98.7 %).",
            }
        ],
        "config": {
            "flags": {
                "dataset": "digits",
                "model": "vit_mu/4",
                "oracles": 3,
                "seed": 0,
                "lam": 0.1,
            },
            "environment": {
                **{"python": "3.11.7", "platform": "Linux", "device": "cpu", "cores": 2},
                "versions": {"jax": "0.10.2", "flax": "0.12.8", "optax": "0.2.8"},
            },
            "seconds": {
                **{"run": 96.2, "compile": 21.4},
                "phases": {
                    "train original": {"run": 21.3, "compile": 6.1},
                    "train oracles": {"run": 62.0, "compile": 9.9},
                    "unlearn": {"run": 1.42, "compile": 2.31},
                },
            },
        },
        "results": {
            "dataset": {
                **{"name": "digits", "num_classes": CLASSES, "image_shape": [8, 8, 1]},
                **{"num_train": 1437, "num_test": 360, "class_names": [str(c) for c in range(10)]},
                "duplicates": {"within_train": 0, "within_test": 0, "across": 0},
            },
            "model": {"name": "vit_mu/4", "num_params": 202_634},
            "original": {
                "history": {
                    "loss": [2.1, 1.2, 0.6, 0.33, 0.2, 0.14, 0.1],
                    "accuracy": [0.25, 0.6, 0.82, 0.9, 0.95, 0.97, 0.988],
                }
            },
            "cases": cases,
        },
    }
    return json.loads(json.dumps(metrics))


def fake_images(count=12):
    side = np.linspace(-1, 1, 8)
    rings = [np.hypot(side[:, None], side + 0.05 * i) for i in range(count)]
    return np.stack([255 * (np.abs(r - 0.6) < 0.25) for r in rings]).astype(np.uint8)[..., None]


@pytest.fixture
def metrics():
    return fake_metrics()


def text_of(document):
    return re.sub(r"<style>.*?</style>|<[^>]*>", "", document, flags=re.S)


def test_the_report_refers_to_nothing_outside_itself(metrics):
    document = forgetting(metrics, [fake_images(), fake_images()])
    assert document.startswith("<!doctype html>")
    assert not re.findall(r"https?://|<script|<link|@import|<style type", document)
    assert set(re.findall(r'src="([^"]{0,14})', document)) == {"data:image/png"}
    assert document.count("data:image/png;base64,") == 24
    assert all(target in document for target in re.findall(r'(?<=href="#)[\w-]+', document))
    ids = re.findall(r' id="([^"]*)"', document)
    assert len(ids) == len(set(ids))


def test_headline_numbers_stand_in_the_summary_with_the_oracle_beside_them(metrics):
    shown = text_of(forgetting(metrics, [None, None]).split("The numbers</h2>")[0])
    for case in metrics["results"]["cases"]:
        assert case["title"] in shown
        for row in (row for row in case["rows"] if row["headline"]):
            assert row["metric"] in shown
            for value in (row["famr"], row["original"], row["oracle"]["mean"]):
                assert page.number(value, row["unit"]) in shown
    assert "Three oracles draw a picture; a verdict needs 8." in shown


def test_every_row_and_every_part_is_there(metrics):
    document = forgetting(metrics, [None, None])
    shown = text_of(document)
    for heading in ("Epoch by epoch", "Where do its images go?", "Forgotten images", "Seeds",
                    "The objective's two terms", "Confidence in the true label", "Sum or mean",
                    "How far from the stationary point?", "Diagnosis", "Claims", "Configuration",
                    "Environment", "Seconds", "Exact duplicates"):  # fmt: skip
        assert heading.replace("'", "&#x27;") in shown, heading
    for case in metrics["results"]["cases"]:
        for row in case["rows"]:
            for name in ("original", "famr"):
                assert page.number(row["gap"][name], row["unit"]) in shown
            assert page.number(row["null"], row["unit"]) in shown
            assert page.interval(row["oracle"]["band"], row["unit"]) in shown
        for entry in case["diagnosis"]:
            assert page.html(entry["words"]) in document


def test_eight_oracles_carry_a_verdict(metrics):
    for case in metrics["results"]["cases"]:
        for row in case["rows"]:
            row["oracle"]["n"] = 8
            row["verdict"] = "outside band"
    shown = text_of(forgetting(metrics, [None, None]))
    assert "a verdict needs" not in shown
    assert shown.count("outside band") == 12


def test_names_are_escaped_and_never_formulas(metrics):
    name = "<b>$x_1$ & 'quoted'"
    metrics["results"]["dataset"]["class_names"][5] = name
    metrics["results"]["dataset"]["name"] = "<script>alert(1)</script>"
    metrics["config"]["flags"]["out"] = "<i>"
    metrics["results"]["cases"][0]["title"] = "<b>bold</b>"
    document = forgetting(metrics, [fake_images(), fake_images()])
    assert "<b>$x" not in document
    assert "<script" not in document
    assert "<b>bold" not in document
    assert "&lt;b&gt;$x_1$ &amp; 'quoted'" in document


def test_a_name_without_a_glyph_is_left_to_the_browser(metrics):
    metrics["results"]["dataset"]["class_names"][8] = "手写数字"
    assert "手写数字" in forgetting(metrics, [None, None])


def test_the_same_input_gives_the_same_bytes(metrics):
    pictures = [fake_images(), None]
    assert forgetting(metrics, pictures) == forgetting(copy.deepcopy(metrics), pictures)


def test_matplotlib_waits_for_the_first_figure_and_pyplot_is_never_loaded():
    code = (
        "import sys, famr_jax.report as r; assert 'matplotlib' not in sys.modules; "
        "case = {'epochs': {'for_acc': [1.0, 0.5]}}; "
        "r.forgetting({'results': {'cases': [case]}}, []); "
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_input_is_left_alone(metrics):
    before = copy.deepcopy(metrics)
    forgetting(metrics, [fake_images(), fake_images()])
    assert metrics == before


def every_leaf(value, replace):
    if isinstance(value, dict):
        return {key: every_leaf(item, replace) for key, item in value.items()}
    if isinstance(value, list):
        return [every_leaf(item, replace) for item in value]
    return replace(value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300, 0.0, -1.0, None])
def test_numbers_of_any_kind_never_crash(metrics, bad):
    def replace(value):
        return bad if isinstance(value, float) else value

    metrics["results"]["cases"] = every_leaf(metrics["results"]["cases"], replace)
    shown = text_of(forgetting(metrics, [None, None]))
    if bad is None:
        assert "nan" not in shown
        assert "after" in shown
    elif not math.isfinite(bad):
        assert "not finite" in shown


def test_each_part_of_a_case_may_be_absent_or_none(metrics):
    for name in metrics["results"]["cases"][0]:
        trial = copy.deepcopy(metrics)
        trial["results"]["cases"][0].pop(name)
        trial["results"]["cases"][1][name] = None
        assert forgetting(trial, [None, None]).endswith("</html>\n"), name


def test_absent_numbers_are_en_dashes():
    bare = {"results": {"cases": [{"rows": [{"metric": "For-Acc (train)"}]}]}}
    document = forgetting(bare, [])
    assert document.count("–") > 10
    assert not re.search(r"\bNone\b|\bnan\b", text_of(document))
    assert forgetting({}, []).endswith("</html>\n")


def test_images_that_do_not_fit_the_grid_are_refused(metrics):
    with pytest.raises(ValueError, match=r"`images` must hold the grid's 12 images, got 3\."):
        forgetting(metrics, [fake_images(3), None])
    with pytest.raises(ValueError, match="`pixels` must be uint8"):
        forgetting(metrics, [fake_images() / 255, None])


@pytest.mark.parametrize(
    ("value", "unit", "printed"),
    [
        (0.0556, "share", "5.6"),
        (-0.0001, "share", "0.0"),
        (-0.25, "share", "−25.0"),
        (2.30259, "nats", "2.303"),
        (1234567, "", "1\u202f234\u202f567"),
        (1e-4, "", "0.0001"),
        (4.86e-6, "", "4.86·10⁻⁶"),
        (205_900.0, "", "206\u202f000"),
        (-1e300, "", "−1·10³⁰⁰"),
        (None, "share", "–"),
        (math.nan, "nats", "not finite"),
    ],
)
def test_number(value, unit, printed):
    assert page.number(value, unit) == printed


def test_table_refuses_a_ragged_row():
    with pytest.raises(ValueError, match=r"`row` must have 2 cells, got 1\."):
        page.table(("a", "b"), [("x",)])


def test_labels_at_line_ends_do_not_touch():
    _, panel = plot.axes("t", "u")
    panel.set_ylim(0, 1)
    plot.label_ends(panel, [(0.0, "a", "ink"), (0.01, "b", "blue"), (math.nan, "c", "grey")])
    plot.label_ends(panel, [(1.0, "d", "ink"), (0.99, "e", "blue"), (0.98, "f", "grey")])
    heights = {t.get_text(): t.get_position()[1] for t in panel.texts}
    gap = 15 / 166
    assert heights["b"] - heights["a"] == pytest.approx(gap)
    assert heights["d"] - heights["e"] == pytest.approx(gap)
    assert heights["e"] - heights["f"] == pytest.approx(gap)
    assert heights["d"] == pytest.approx(1.0)
    assert "c" not in heights
