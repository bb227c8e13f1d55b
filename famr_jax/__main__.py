"""`python -m famr_jax COMMAND ...`: forget is the main job; audit judges any model."""

import sys
from collections.abc import Sequence


def forget(words: Sequence[str]) -> None:
    """Trains, unlearns, retrains the oracles, compares, and writes a report."""
    from famr_jax.cli import forget, run

    run.main(
        forget.Flags,
        forget.run,
        description=forget.__doc__,
        args=list(words),
        prog="python -m famr_jax forget",
    )


def finetune(words: Sequence[str]) -> None:
    """Trains a classifier, from weights of a file or fresh ones, for others to forget."""
    from famr_jax.cli import finetune, run

    run.main(
        finetune.Flags,
        finetune.run,
        description=finetune.__doc__,
        args=list(words),
        prog="python -m famr_jax finetune",
    )


def audit(words: Sequence[str]) -> None:
    """Judges any model, by its logits or its checkpoint, beside retrained ones."""
    from famr_jax.cli import audit, run

    run.main(
        audit.Flags,
        audit.run,
        description=audit.__doc__,
        args=list(words),
        prog="python -m famr_jax audit",
    )


def prepare(words: Sequence[str]) -> None:
    """Downloads and prepares a data set of TFDS, once."""
    from famr_jax.data.__main__ import main

    main(["prepare", *words])


COMMANDS = {"forget": forget, "finetune": finetune, "audit": audit, "prepare": prepare}


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command that the first word names; exits 2 with the list of them if none is."""
    name, *others = [*(sys.argv[1:] if words is None else words), ""]
    if name in COMMANDS:
        COMMANDS[name](others[:-1])
        return
    asked = name in ("-h", "--help")
    told = (f"  {name:<10}{command.__doc__}" for name, command in COMMANDS.items())
    place = sys.stdout if asked else sys.stderr
    print("usage: python -m famr_jax COMMAND ...", *told, sep="\n", file=place)
    raise SystemExit(0 if asked else 2)


if __name__ == "__main__":
    main()
