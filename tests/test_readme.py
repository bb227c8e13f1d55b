"""README's code runs."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
QUICK = {"epochs=50": "epochs=2", "(others, 8)": "(others, 2)"}
"""What is smaller here than in README, where training and eight oracles take minutes."""


def test_python_blocks_run_in_order(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL))
    assert code.count("\nimport") >= 2
    for words, fewer in QUICK.items():
        assert code.count(words) == 1
        code = code.replace(words, fewer)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert "Three methods" in (tmp_path / "methods.html").read_text()
