"""Makes README's picture of a report: what headless Chromium shows of it, without the contents.

`famr-jax forget --forget class:3`, then `python docs/picture.py runs/forget-*/report.html`.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PICTURE = Path(__file__).parent / "_static" / "report.png"
WIDTH, TOP, BOTTOM = 1100, 400, 1345
"""Pixels of the window, and of the part that is kept of it."""


def main(report: str) -> None:
    """Takes the picture of a report's file."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--window-size={WIDTH},{BOTTOM}", f"--screenshot={shot}"]
        subprocess.run([*command, Path(report).resolve().as_uri()], check=True, capture_output=True)
        kept = Image.open(shot).convert("RGB").crop((0, TOP, WIDTH, BOTTOM))
    kept.quantize(64, dither=Image.Dither.NONE).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
