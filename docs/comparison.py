"""Writes the brief tables of the comparisons of methods where a page has a place for them.

python docs/comparison.py
"""

import re
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from experiments.comparison import comparison_tables, leaderboard_tables  # noqa: E402
from experiments.harness.results import read_results  # noqa: E402

PAGES = (
    ROOT / "README.md",
    ROOT / "docs/pages/which_method.md",
    ROOT / "docs/pages/leaderboard.md",
)
TABLES = {
    "comparison": ("method_comparison", comparison_tables.brief),
    "comparison on CIFAR-100": ("method_comparison-cifar100", comparison_tables.brief),
    "leaderboard": ("leaderboard", leaderboard_tables.brief),
    "leaders": ("leaderboard", partial(leaderboard_tables.brief, best=2)),
}
"""By the name of its place: the result, and what is written there."""


def place(name):
    """Where a page has a table of this name."""
    return re.compile(rf"(<!-- {name} -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def written(text, results):
    """The text of a page with today's tables in their places; one not recorded yet stays."""
    for name, (result, brief) in TABLES.items():
        if result in results:
            table = brief(results[result])
            text = place(name).sub(lambda found, t=table: f"{found[1]}{t}\n{found[3]}", text)
    return text


if __name__ == "__main__":
    recorded = read_results()
    for page in PAGES:
        page.write_text(written(page.read_text(), recorded))
