"""Trains a classifier from weights of a file, or random ones, for the other experiments to forget.

The door to `famr_jax.cli.finetune`, or `python -m famr_jax finetune`. Writes metrics.json,
report.html and a checkpoint, which `python -m experiments.class_forgetting --original
OUT/checkpoints/original` takes at the same --dataset, --classes, --model and --image-size. (That
experiment takes the same flags of training itself, for its original and for its oracles.)

    python -m experiments.finetune --dataset cifar100 --data-dir DIR --model vit_Ti/16 \
        --weights FILE --image-size 224 --train-epochs 10 --train-lr 3e-4 --batch-size 256 \
        --accumulate 4 --ema 0.999 --dtype bfloat16

Not run from a weight file at that size yet. From random weights, in 5 minutes on two CPU cores
(test accuracy in per cent, before and after):

    python -m experiments.finetune --dataset cifar100 --data-dir DIR --classes 10 \
        --model vit_nano/4 --train-epochs 20 --train-lr 2e-3 --batch-size 50 \
        --accumulate 2 --ema 0.99 --dtype bfloat16

    cifar100  vit_nano/4  bfloat16  test accuracy 10.0 68.2
"""

from functools import partial

from famr_jax.cli import finetune
from famr_jax.cli import run as command
from famr_jax.cli.finetune import Flags, headline

__all__ = ["Flags", "headline", "run"]

run = partial(finetune.run, program="python -m experiments.finetune")

if __name__ == "__main__":
    command.main(Flags, run, description=__doc__)
