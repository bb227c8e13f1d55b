"""Files: whole or not at all, and JSON that comes back as it was, a column a line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from famr_jax import files

ROOT = Path(__file__).parents[1]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS.filter(lambda value: value not in (float("inf"), float("-inf"))),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=40,
)


@given(VALUES)
def test_layout_loses_nothing(value):
    assert json.dumps(json.loads(files.layout(value))) == json.dumps(value)


def test_layout_gives_a_column_a_line_and_a_row_a_line():
    column = list(range(200))
    row = {"name": "x" * 90, "why": "y" * 90}
    table = {"small": {"run": 1.5, "compile": []}, "column": column, "rows": [row], "wide": row}
    assert files.layout(table).splitlines() == [
        "{",
        ' "small": {"run": 1.5, "compile": []},',
        f' "column": {json.dumps(column)},',
        ' "rows": [',
        f"  {json.dumps(row)}",
        " ],",
        ' "wide": {',
        f'  "name": "{"x" * 90}",',
        f'  "why": "{"y" * 90}"',
        " }",
        "}",
    ]


def test_json_is_plain_and_comes_back(tmp_path):
    content = {1: jnp.arange(3), "f": np.float32(1 / 3), "nan": [np.nan], "at": tmp_path / "last"}
    files.write_json(tmp_path / "new" / "out.json", content)
    assert json.loads((tmp_path / "new" / "out.json").read_text()) == {
        "1": [0, 1, 2],
        "f": 0.333333,
        "nan": [None],
        "at": "last",
    }


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    files.write_json(tmp_path / "a.json", [1])
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "a.json", [object()])
    with pytest.raises(UnicodeEncodeError):
        files.write_text(tmp_path / "a.json", "\ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == [1]


WRITER = """
import sys
from pathlib import Path
from famr_jax import files

for i in range(200):
    files.write_text(Path(sys.argv[1]), sys.argv[2] * 5000)
"""


def test_writers_side_by_side_leave_one_whole_file(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path / "shared")]
    writers = [subprocess.Popen([*command, letter], cwd=ROOT) for letter in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert (tmp_path / "shared").read_text() in {letter * 5000 for letter in "abc"}
    assert len(os.listdir(tmp_path)) == 1


def test_discard_takes_files_directories_and_what_a_killed_one_left(tmp_path):
    (tmp_path / "[d]" / "deep").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    (tmp_path / ".discarded-before").mkdir()
    for name in ("[d]", "file", "absent"):
        files.discard(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_results_are_laid_out_and_short():
    paths = sorted((ROOT / "experiments" / "results").glob("*.json"))
    lines = {path.name: path.read_text().count("\n") for path in paths}
    assert max(lines.values()) <= 2000
    assert sum(lines.values()) <= 30_000
    for path in paths:
        assert path.read_text() == files.layout(json.loads(path.read_text())) + "\n", path.name
