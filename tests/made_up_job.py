"""The JSON and the images of the main job, with made-up but plausible numbers."""

import itertools
import json
import math

import numpy as np

from famr_jax.cli.diagnosis import diagnose

CLASSES = 10
LOG_C = math.log(CLASSES)
EPOCHS = 10


def _row(measure, title, what, unit, n, original, value, oracles):
    mean = float(np.mean(oracles))
    half = 4.303 * float(np.std(oracles, ddof=1)) * math.sqrt(1 + 1 / len(oracles))
    return {
        **{"measure": measure, "title": title, "model": "famr", "unit": unit, "value": value},
        **{"n": n, "original": original, "oracle": mean, "oracles": len(oracles)},
        **{"gap": abs(value - mean), "band": [mean - half, mean + half]},
        "null": float(np.mean([abs(a - b) for a, b in itertools.combinations(oracles, 2)])),
        **{"original_gap": abs(original - mean), "verdict": "too few oracles", "what": what},
    }


def _path(start, end, rate, generator):
    steps = end + (start - end) * np.exp(-rate * np.arange(EPOCHS + 1))
    return (steps + np.r_[0, generator.normal(0, 0.004, EPOCHS)]).clip(0).tolist()


def fake_case(kind, generator):
    """One case as famr_jax/cli/forget.py writes it, with made-up but plausible numbers."""
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
    known = {
        "for_acc": ("For-Acc (train)", "Accuracy on the forgotten training images.", "share", size,
                    start[0], paths[0][-1], oracle[0]),
        "ret_acc": ("Ret-Acc (train)", "Accuracy on the retained training images.", "share",
                    1437 - size, start[1], paths[1][-1], oracle[1]),
        "test_acc": ("Test-Acc", "Accuracy on test images of the retained classes.", "share", 323,
                     0.961, paths[1][-1] - 0.02, [0.957, 0.948, 0.963]),
        "entropy": ("Entropy", "Mean entropy of the predictions on the forgotten images.", "nats",
                    size, start[2], paths[2][-1], oracle[2]),
        "kl_test": ("KL to oracle (test)", "KL(oracle || model) on the test images.", "nats", 360,
                    0.42, 0.61, [0.05, 0.06, 0.07]),
        "loss_attack": ("Loss attack", "How well the loss tells forgotten from test images.",
                        "share", size, 0.61, 0.38, [0.49, 0.52, 0.5]),
    }  # fmt: skip
    rows = [_row(name, *entries) for name, entries in known.items()]
    absent = {"title": "SVC attack", "model": "famr", "unit": "share", "absent": "there is none"}
    rows.append({"measure": "svc_attack", **absent})
    values = {name: entries[-1] for name, entries in known.items()}
    models = [{"model": "original"} | {name: entries[-3] for name, entries in known.items()}]
    models += [
        {"model": "oracle", "member": i} | {name: each[i] for name, each in values.items()}
        for i in range(3)
    ]
    targets = {"chance": 1 / CLASSES, "max_entropy": LOG_C}
    confusion = None
    if by_class:
        seeds = generator.dirichlet([0.1, 2, 0.3, 0.001, 0.2, 4, 0.1, 1, 6, 3], 3)
        three = {
            "original": [0, 0, 0, 0.944, 0, 0.028, 0, 0, 0.014, 0.014],
            "famr": [0.02, 0.05, 0.11, 0.055, 0.015, 0.28, 0, 0.07, 0.3, 0.1],
            "oracle": seeds.mean(0).tolist(),
        }
        found = [{"model": model, "shares": shares} for model, shares in three.items()]
        found[-1]["members"] = seeds.tolist()
        confusion = {"n": 36, "rows": found}
    grid = {
        "indices": list(range(3, 75, 6)),
        "labels": [3] * 12 if by_class else [*range(10), 1, 2],
        "rows": [],
    }
    for model, sharpness in (("original", 40), ("famr", 1.2), ("oracle", 6)):
        p = generator.dirichlet(np.ones(CLASSES) / sharpness, 12)
        for i, label in enumerate(grid["labels"] if model != "oracle" or not by_class else []):
            p[i] = (
                p[i] * 0.05 + 0.95 * (np.arange(CLASSES) == label) if model == "original" else p[i]
            )
        told = {"predicted": p.argmax(1).tolist(), "confidence": p.max(1).tolist()}
        grid["rows"].append({"model": model, **told})
    histograms = None
    if not by_class:
        histograms = {"edges": np.linspace(0, 1, 21).tolist(), "rows": []}
        for model, skew in (("original", 9), ("famr", 1.5), ("oracle", 7)):
            parts = {
                part: (
                    np.histogram(generator.beta(skew - d, 0.8, 400), 20, (0, 1))[0] / 400
                ).tolist()
                for part, d in (
                    ("forget", 1.0 if model == "famr" else 0),
                    ("retain", 0),
                    ("test", 0.6),
                )
            }
            histograms["rows"].append({"model": model, **parts})
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
        "classes": [3] if by_class else [],
        **{"num_forget": size, "num_retain": 1437 - size, "num_test": 360, "duplicates_taken": 0},
        "num_forget_test": 36 if by_class else 0,
        "ret_acc_n": 1437 - size,
        "methods": [
            {
                **{"name": "famr", "lam": 0.1, "lr": 1e-4, "epochs": EPOCHS, "batch_size": 32},
                **{"optimizer": "adam", "uses_retain": False, "epoch_over": "forget"},
                "why": "Adam, since plain SGD at this step covers under 1 % of the way.",
                "finite": True,
                "curves": dict(zip(("for_acc", "ret_acc", "entropy"), paths, strict=True)),
                "terms": {
                    "objective": (forget_term + 0.1 * anchor_term).tolist(),
                    "forget": forget_term.tolist(),
                    "anchor": anchor_term.tolist(),
                    "grad_norm": (3 * forget_term / 2.9 + 0.1).tolist(),
                },
            }
        ],
        **{"models": models, "rows": rows, "studied": "famr"},
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
        case["methods"][0]["diagnosis"] = diagnose(case)
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
            "command": "python -m famr_jax forget",
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


def every_leaf(value, replace):
    if isinstance(value, dict):
        return {key: every_leaf(item, replace) for key, item in value.items()}
    if isinstance(value, list):
        return [every_leaf(item, replace) for item in value]
    return replace(value)
