"""A file holds one idea: limits on its lines, and on those of the committed results."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY, EXPERIMENT, TEST, RESULT, RESULTS = 400, 300, 400, 2_000, 30_000


def lines(path):
    return len(path.read_text().splitlines())


@pytest.mark.parametrize(
    ("folder", "pattern", "most"),
    [
        ("famr_jax", "**/*.py", LIBRARY),
        ("experiments", "**/*.py", EXPERIMENT),
        ("tests", "**/*.py", TEST),
        ("experiments/results", "*.json", RESULT),
    ],
)
def test_files_are_short(folder, pattern, most):
    found = {path: lines(path) for path in sorted((ROOT / folder).glob(pattern))}
    assert found
    assert not {str(path.relative_to(ROOT)): n for path, n in found.items() if n > most}


def test_results_are_read_in_a_diff():
    assert sum(map(lines, (ROOT / "experiments/results").glob("*.json"))) <= RESULTS
