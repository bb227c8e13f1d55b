"""`python -m famr_jax.data prepare NAME --data-dir DIR`: data sets by TFDS, once."""

import argparse
import sys

from famr_jax.data.prepare import prepare


def main(words: list[str] | None = None) -> None:
    """Parses the command line and does what it says; exits 2 with a sentence if it cannot."""
    parser = argparse.ArgumentParser("python -m famr_jax.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    told = commands.add_parser("prepare", help="download and prepare a TFDS data set")
    told.add_argument("name", help="cifar100, fashion_mnist, imagenet100, ...: a TFDS name")
    told.add_argument("--data-dir", help="where TFDS keeps its data sets; its own default")
    given = parser.parse_args(words)
    try:
        print(prepare(given.name, given.data_dir))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
