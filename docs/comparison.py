"""Writes the brief table of the comparison of methods where a page has a place for it.

python docs/comparison.py
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from experiments.comparison.comparison_tables import brief  # noqa: E402
from experiments.harness.results import read_results  # noqa: E402

PAGES = (ROOT / "README.md", ROOT / "docs/pages/which_method.md")
PLACE = re.compile(r"(<!-- comparison -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def written(text, content):
    """The text of a page with today's table in its place, if it has one."""
    return PLACE.sub(lambda found: found[1] + f"{brief(content)}\n" + found[3], text)


if __name__ == "__main__":
    recorded = read_results()["method_comparison"]
    for page in PAGES:
        page.write_text(written(page.read_text(), recorded))
