"""Accuracies and their differences in words, with intervals as wide as the images can tell."""

from collections.abc import Mapping
from typing import Any

from famr_jax.statistics import share_interval, widened


def beside_chance(row: Mapping[str, Any], chance: float) -> str:
    """For-Acc before and after, its 95 % interval as a share of its images, 1/C, and the oracles.

    Args:
        row: The line of For-Acc, of those of `evaluation.verdicts`.
        chance: 1/C, what FAMR's uniform outputs would score.
    """
    low, high = share_interval(row["value"], row["n"])
    return (
        f"For-Acc {row['original']:.1%} before, {row['value']:.1%} after (95 % interval {low:.1%} "
        f"to {high:.1%}, N={row['n']} images; FAMR's own target, 1/C, is {chance:.1%}), oracles "
        f"{row['oracle']:.1%} (n={row['oracles']})"
    )


def points(found: Mapping[str, Any], n: int, *, decimals: int) -> str:
    """A difference in points and its 95 % interval, "+4.55 points (+4.50 to +4.60".

    The bracket is left open for what else belongs into it.

    Args:
        found: `mean` and `interval`, or None, of differences between accuracies.
        n: Images of each accuracy, which tell 1/n apart: the interval is that much wider.
        decimals: Of the numbers.
    """
    pair = widened(found["interval"], 1 / n)
    told = pair and " to ".join(f"{100 * end:+.{decimals}f}" for end in pair)
    return f"{100 * found['mean']:+.{decimals}f} points ({told or 'no interval'}"
