"""The verdicts on federated unlearning, by rules fixed before the runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.federated import OURS, PUF
from experiments.federated.recovery import NATURAL
from experiments.federated.recovery import PUF as VARIANTS
from famr_jax import statistics

AS_LONG = "natural, as long"
"""Recovery alone for as many rounds as PUF-Special took in all."""
LEAST_CASES = 8
NULL = "null"


def column(split: Mapping[str, Any], model: str, stage: str, measure: str) -> np.ndarray | None:
    """The values of one measure of a model at a stage, one for each case; None if never taken."""
    for line in split["table"]:
        if (line["model"], line["stage"], line["measure"]) == (model, stage, measure):
            return np.array([np.nan if v is None else v for v in line["values"]], float)
    return None


def gap(split: Mapping[str, Any], model: str, stage: str, measure: str) -> np.ndarray:
    """Distance of each case's value to its oracles' mean; of a divergence, the value itself."""
    values = column(split, model, stage, measure)
    if measure.startswith("kl"):
        return values
    return np.abs(values - column(split, "oracle", "", measure))


def rounds(split: Mapping[str, Any], model: str, rule: str, most: int) -> np.ndarray:
    """Rounds of each case; those that did not recover count as the most that were run."""
    found = column(split, model, rule, "rounds")
    return np.where(np.isnan(found), most, found)


def _sign(values: np.ndarray) -> int:
    """Whether a mean over cases is above 0, below, or neither, by its 95 % interval."""
    values = values[np.isfinite(values)]
    if len(values) < LEAST_CASES:
        return 0
    return statistics.sign(statistics.spread(values))


def claims(results: Mapping[str, Any], flags: Mapping[str, Any]) -> list[dict[str, str]]:
    """Every claim that the splits of the run can speak of, and the one that no data here can."""
    splits = {split["split"]: split for split in results["splits"]}
    plain = [split for name, split in splits.items() if name != "backdoor"]
    told = [
        PUF.judge(
            "medical",
            "not testable here",
            "ProstateMRI and its six hospitals' splits cannot be had freely, and the models here "
            "classify: no segmentation was run.",
        )
    ]
    setting = _setting(results, flags)
    if plain:
        told += [_one_round(plain, flags, setting), _more(plain, setting)]
    if "iid" in splits:
        told.append(_over(splits["iid"], setting))
    if "backdoor" in splits:
        told.append(_backdoor(splits["backdoor"], setting))
    return told


def _setting(results, flags):
    dataset = results["dataset"]
    return (
        f"{results['model']['name']} on {dataset['name']} ({dataset['num_classes']} classes, "
        f"{dataset['num_train']} images), {flags['clients']} clients, {flags['seeds']} seeds"
    )


def _enough(split):
    return len(split["forgotten"]) >= LEAST_CASES


def _one_round(splits, flags, setting):
    most, found = flags["most_rounds"] + 1, []
    for split in splits:
        for variant in VARIANTS:
            nearer = all(
                _sign(gap(split, "original", "", m) - gap(split, variant, "retrained", m)) > 0
                for m in ("for_acc", "kl_forget")
            )
            saved = rounds(split, "oracle", "retrained", flags["rounds"])
            fewer = _sign(saved - rounds(split, variant, "retrained", most)) > 0
            found.append((nearer, fewer))
    good = [nearer and fewer for nearer, fewer in found]
    verdict = "holds" if all(good) else "mixed" if any(good) else "fails"
    if not all(map(_enough, splits)):
        verdict = "not resolved"
    return PUF.judge(
        "one_round",
        verdict,
        f"{setting}; means over {len(splits[0]['forgotten'])} forgotten clients of a split. "
        + " ".join(_tell(split, flags) for split in splits)
        + f" Nearer to the oracles than the original in For-Acc and KL in "
        f"{sum(n for n, _ in found)} of {len(found)} pairs of split and variant, in fewer rounds "
        f"than retraining in {sum(f for _, f in found)} (95 % intervals over clients and seeds).",
    )


def _mean(split, model, stage, measure, scale=100):
    values = column(split, model, stage, measure)
    return float(np.nanmean(values)) * scale


def _tell(split, flags):
    most = flags["most_rounds"] + 1

    def of(model):
        taken = rounds(split, model, "retrained", most).mean()
        return f"{_mean(split, model, 'retrained', 'for_acc'):.1f} % in {taken:.1f} rounds"

    retrain = rounds(split, "oracle", "retrained", flags["rounds"]).mean()
    return (
        f"{split['split']}: For-Acc {_mean(split, 'original', '', 'for_acc'):.1f} % before, "
        f"Special {of(VARIANTS[0])}, Regular {of(VARIANTS[1])}, recovery alone {of(NATURAL)}, "
        f"oracles {_mean(split, 'oracle', '', 'for_acc'):.1f} % in {retrain:.1f}."
    )


def _more(splits, setting):
    signs, words = [], []
    for split in splits:
        for measure, unit, scale in (("for_acc", "points", 100), ("kl_forget", "nats", 1)):
            other = gap(split, AS_LONG, "retrained", measure)
            mine = gap(split, VARIANTS[0], "retrained", measure)
            signs.append(_sign(other - mine))
            words.append(
                f"{split['split']} {measure} {scale * np.nanmean(mine):.2f} against "
                f"{scale * np.nanmean(other):.2f} {unit}"
            )
    verdict = "not resolved"
    if all(map(_enough, splits)):
        verdict = "holds" if min(signs) > 0 else "mixed" if max(signs) > 0 else "fails"
    return OURS.judge(
        "more_than_recovery",
        verdict,
        f"{setting}: mean gap to the oracles of PUF-Special against recovery alone for as many "
        f"rounds: {'; '.join(words)}. PUF is nearer in {sum(s > 0 for s in signs)} of "
        f"{len(signs)}, farther in {sum(s < 0 for s in signs)}.",
    )


def _over(split, setting):
    below, words = [], []
    for variant in VARIANTS:
        after = column(split, variant, "unlearned", "for_acc")
        below.append(_sign(column(split, "oracle", "", "for_acc") - after))
        words.append(f"{variant} {100 * np.nanmean(after):.1f} %")
    verdict = "holds" if min(below) > 0 else "mixed" if max(below) > 0 else "fails"
    test = [f"{_mean(split, v, 'unlearned', 'test_acc'):.1f}" for v in VARIANTS]
    return OURS.judge(
        "over_forgets",
        verdict if _enough(split) else "not resolved",
        f"{setting}: For-Acc right after the round {' and '.join(words)}, oracles "
        f"{_mean(split, 'oracle', '', 'for_acc'):.1f} % (null "
        f"{_mean(split, NULL, '', 'for_acc'):.1f} points), whose Test-Acc is "
        f"{_mean(split, 'oracle', '', 'test_acc'):.1f} %. Test-Acc right after the round is "
        f"{' and '.join(test)} %.",
    )


def _backdoor(split, setting):
    original, oracle = (column(split, m, "", "backdoor") for m in ("original", "oracle"))
    left = [column(split, v, "retrained", "backdoor") for v in VARIANTS]
    longer = column(split, AS_LONG, "retrained", "backdoor")
    lowered = [_sign(original - each) for each in left]
    excess = [_sign(each - oracle) for each in left]
    if not _enough(split) or _sign(original - oracle) <= 0:
        verdict = "not resolved"
    elif min(lowered) > 0 and max(excess) <= 0:
        verdict = "holds"
    else:
        verdict = "mixed" if max(lowered) > 0 else "fails"
    special, regular = (100 * np.nanmean(each) for each in left)
    return OURS.judge(
        "backdoor",
        verdict,
        f"{setting}: the trigger takes {100 * original.mean():.1f} % of other classes' test images "
        f"to its class in the original, {100 * oracle.mean():.1f} % in the oracles; after recovery "
        f"{special:.1f} % (Special) and {regular:.1f} % (Regular), after as many rounds of "
        f"recovery alone {100 * np.nanmean(longer):.1f} %.",
    )


def line(name: str, split: Mapping[str, Any], models: Sequence[str], most: int) -> str:
    """One line: For-Acc before, after the round and recovered, and rounds, of some models."""
    told = [f"original {_mean(split, 'original', '', 'for_acc'):.1f}"]
    for model in models:
        after, back = (_mean(split, model, s, "for_acc") for s in ("unlearned", "retrained"))
        taken = np.median(rounds(split, model, "retrained", most))
        told.append(f"{model.removeprefix('PUF-')} {after:.1f} {back:.1f} ({taken:g})")
    told.append(f"oracles {_mean(split, 'oracle', '', 'for_acc'):.1f}")
    return f"{name} {split['split']}  " + " ".join(told)
