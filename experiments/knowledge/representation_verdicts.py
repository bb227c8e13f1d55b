"""What is made of the features' numbers: verdicts and headlines."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from experiments.harness.results import setting
from experiments.knowledge import FEATURES
from famr_jax import evaluation, statistics
from famr_jax.evaluation.knowledge import QUANTITIES
from famr_jax.report import number

MORE = {"knows": 1, "reads": 1, "apart": 1, "like_oracles": -1}
"""On which side of the oracles' band a model shows that it was not retrained."""
OUTSIDE, NEVER = "outside band", "never"
TAIL = 0.025
"""How often one more oracle would lie on that side of the band."""
REFERENCES = ("untrained", "original", "oracle")


def judged(case: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for each measure and unlearned model, as `evaluation.verdicts` gives it, with sides.

    `side` is 1 or -1 where the value lies above or below the oracles' band, else 0; `original_side`
    says it of the original that the model was made from, beside which it is judged.
    """
    table = evaluation.of_layers(case["layers"])
    sizes = {m.name: case["sizes"][m.set] for m in table}
    rows = [row | {"n": sizes} for row in case["models"] if row["model"] != "untrained"]
    for seed in _seeds(case):
        mine = [row for row in rows if row.get("seed", seed) == seed]
        for line in evaluation.verdicts(mine, table):
            sides = {"side": _side(line, "value"), "original_side": _side(line, "original")}
            yield line | {"seed": seed} | sides


def _seeds(case):
    return [row["seed"] for row in case["models"] if row["model"] == "original"]


def _side(line, key):
    low, high = line["band"]
    return int(line[key] > high) - int(line[key] < low)


def relearned(case: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for each unlearned model and number of images: its steps beside the oracles'.

    `value` is the median over the draws, infinite where most of them never brought the class back,
    `oracles` those of the oracles. `sooner` says whether it is below all of theirs, which one of
    n + 1 alike models is by chance with probability 1 / (n + 1); `later` whether it is above.
    """
    rows = [row | {"value": median_steps(row["steps"])} for row in case["relearning"]]
    for row in rows:
        if row["model"] in REFERENCES:
            continue
        alike = [other for other in rows if other["shots"] == row["shots"]]
        oracles = [other["value"] for other in alike if other["model"] == "oracle"]
        before = next(
            o["value"] for o in alike if o["model"] == "original" and o["seed"] == row["seed"]
        )
        ends = min(oracles), max(oracles)
        yield row | {
            "oracles": oracles,
            "original": before,
            "sooner": row["value"] < ends[0],
            "later": row["value"] > ends[1],
            "original_sooner": before < ends[0],
        }


def median_steps(steps: Sequence[int | None]) -> float:
    """The median number of steps, where None, never, is more than any number."""
    values = [math.inf if each is None else each for each in steps]
    low, high = np.sort(values)[[(len(values) - 1) // 2, len(values) // 2]]
    return float(low if low == high else (low + high) / 2)


def claims(results: dict[str, Any], flags: dict[str, Any]) -> list[dict[str, str]]:
    """Which methods' features tell the unlearned models from retrained ones, and how often."""
    cases, methods = results["cases"], flags["methods"]
    enough = results["oracles"] >= statistics.ORACLES_FOR_A_VERDICT
    where = f"{setting(results)}, {', '.join(case['forget'] for case in cases)}"
    lines = [line for case in cases for line in judged(case)]
    made = []
    for quantity, side in MORE.items():
        mine = [line for line in lines if line["measure"].startswith(f"{quantity}_")]
        found = _counted(mine, methods, [line["side"] == side for line in mine], TAIL)
        before = [line for line in mine if line["model"] == methods[0]]
        told = [line["original_side"] == side for line in before]
        found |= _counted([{"model": "original"}] * len(told), ["original"], told, TAIL)
        layer = mine[-1]["measure"].removeprefix(f"{quantity}_")
        each = {name: [line for line in mine if line["model"] == name] for name in methods}
        means = {name: _mean(each[name], layer, "value") for name in methods}
        means["original"] = _mean(before, layer, "original")
        counts = [f"{name} {found[name][0]} ({means[name]})" for name in found]
        words = (
            f"{where}: {QUANTITIES[quantity][3]}, {'above' if side > 0 else 'below'} the band of "
            f"{results['oracles']} oracles in how many of {len(told)} layers and models (in "
            f"brackets the mean of {layer}): {', '.join(counts)}; oracles "
            f"{_mean(mine, layer, 'oracle')}."
        )
        made.append(FEATURES.judge(quantity, _verdict(found, enough), words))
    again = [line for case in cases for line in relearned(case)]
    chance = 1 / (results["oracles"] + 1)
    found = _counted(again, methods, [line["sooner"] for line in again], chance)
    told = [line["original_sooner"] for line in again if line["model"] == methods[0]]
    found |= _counted([{"model": "original"}] * len(told), ["original"], told, chance)
    words = f"{where}: {_relearning_in_words(cases, again, found, flags)}"
    return [*made, FEATURES.judge("relearn", _verdict(found, enough), words)]


def _counted(lines, methods, told, chance):
    """Of each method, how many of its lines tell it from the oracles, and if more than by luck.

    By luck: the 95 % quantile of as many independent draws. Layers of one model are not, so that
    one or two more are a weak sign.
    """
    found = {}
    for name in methods:
        mine = [told[i] for i, line in enumerate(lines) if line["model"] == name]
        found[name] = sum(mine), bool(sum(mine) > scipy.stats.binom.ppf(0.95, len(mine), chance))
    return found


def _verdict(found: Mapping[str, tuple[int, bool]], enough: bool) -> str:
    """Of all methods at once; what does not tell the original, either, resolves nothing."""
    known = [more for name, (_, more) in found.items() if name != "original"]
    if not enough or not any(known):
        return "holds" if enough and found["original"][1] else "not resolved"
    return "fails" if all(known) else "mixed"


def _mean(lines, layer, key):
    mine = [line for line in lines if line["measure"].endswith(f"_{layer}")]
    return number(float(np.mean([line[key] for line in mine])), mine[0]["unit"])


def _relearning_in_words(cases, lines, found, flags):
    """The median steps of every method and reference, by images, and how often sooner."""
    fresh = [r for case in cases for r in case["relearning"] if r["model"] == "untrained"]
    told = []
    for shots in flags["shots"]:
        mine = [line for line in lines if line["shots"] == shots]
        each = [
            f"{name} {steps_in_words([line['value'] for line in mine if line['model'] == name])}"
            for name in flags["methods"]
        ]
        known = {
            "original": [line["original"] for line in mine],
            "oracles": [value for line in mine for value in line["oracles"]],
            "fresh weights": [median_steps(r["steps"]) for r in fresh if r["shots"] == shots],
        }
        each += [f"{name} {steps_in_words(values)}" for name, values in known.items()]
        told.append(f"from {shots} of each class {', '.join(each)}")
    counts = ", ".join(f"{name} {count}" for name, (count, _) in found.items())
    return (
        f"median steps until {100 * flags['level']:g} % of the class's test images are right, "
        f"{'; '.join(told)}. Sooner than all oracles of the class in how many of "
        f"{len(lines) // len(flags['methods'])} models and numbers of images: {counts}."
    )


def steps_in_words(values: Sequence[float]) -> str:
    """The median of numbers of steps, in words where most of them are infinite."""
    middle = median_steps([None if math.isinf(value) else value for value in values])
    return NEVER if math.isinf(middle) else f"{middle:g}"


def headline(content: dict[str, Any]) -> list[str]:
    """A line for each class and model: accuracies, the last layer in three numbers, relearning."""
    lines, flags = [], content["config"]["flags"]
    shots = flags["shots"][len(flags["shots"]) // 2]
    for case in content["results"]["cases"]:
        layer = case["layers"][-1]
        for name in ("original", "oracle", *flags["methods"]):
            rows = [row for row in case["models"] if row["model"] == name]
            again = [r for r in case["relearning"] if (r["model"], r["shots"]) == (name, shots)]

            def mean(key, rows=rows):
                return float(np.mean([row[key] for row in rows]))

            lines.append(
                f"{case['forget']}  {name:<8} {100 * mean('for_acc'):5.1f} "
                f"{100 * mean('ret_acc'):5.1f}  probe {100 * mean(f'knows_{layer}'):5.1f}  CKA "
                f"{mean(f'like_oracles_{layer}'):.2f}  apart {mean(f'apart_{layer}'):.2f}  steps "
                f"{steps_in_words([median_steps(row['steps']) for row in again])}"
            )
    return lines
