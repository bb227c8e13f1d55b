"""FAMR forgets a class, and 5 % of the samples, next to models retrained without them.

Claim: 10 epochs of FAMR at lr 1e-4 and lam 0.1 bring the accuracy on the forgotten class to about
zero and cost 2 to 4 points of retained accuracy (FAMR, arXiv 2506.14515). Trains a classifier,
unlearns, retrains the oracles, compares, and writes metrics.json, checkpoints and report.html: the
door to `famr_jax.cli.forget`, with the claims of `experiments.famr.main_job`.

    python -m experiments.class_forgetting

Three minutes on two CPU cores; CIFAR-100 and Tiny-ImageNet, by the commands in CLAIMS.md, took 72
minutes on a busy machine and 20 on a quiet one. Expect (%, of training images; original, FAMR, mean
oracle):

    digits  class:3  For-Acc 95.9 8.9 0.0  Ret-Acc 98.5 80.2 98.5
    digits  random:0.05  For-Acc 95.8 83.3 94.4  Ret-Acc 98.4 91.6 98.1
    cifar100  class:3  For-Acc 50.8 2.8 0.0  Ret-Acc 61.1 46.3 62.5
    cifar100  random:0.05  For-Acc 61.4 24.4 49.6  Ret-Acc 60.6 27.9 59.0
    folder:fashion_mnist_5000  class:3  For-Acc 81.4 13.6 0.0  Ret-Acc 76.3 50.6 77.3
    folder:tiny_imagenet_100  class:3  For-Acc 89.0 18.0 0.0  Ret-Acc 79.5 74.6 82.4
    folder:tiny_imagenet_100  random:0.05  For-Acc 80.0 61.0 55.3  Ret-Acc 80.5 69.8 81.6
"""

from functools import partial

from experiments.famr import main_job
from experiments.famr.main_job import headline
from famr_jax.cli import forget
from famr_jax.cli import run as command
from famr_jax.cli.forget import Flags

__all__ = ["Flags", "headline", "run"]

DEFAULT = Flags(study=True)
"""The paper's claims are judged by what the study finds; `--no-study` leaves it out."""

run = partial(
    forget.run,
    judge=main_job.claims,
    program="python -m experiments.class_forgetting",
    default=DEFAULT,
)

if __name__ == "__main__":
    command.main(Flags, run, description=__doc__, default=DEFAULT)
