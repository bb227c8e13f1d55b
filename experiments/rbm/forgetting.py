"""A Boltzmann machine forgets a digit: ascent on the free-energy gap, with two anchors.

Claim (ours): the unlearner that raises the free energy of a class above that of the machine's own
samples, held by an anchor, makes the machine that training without the class makes. Trains a
machine on all digits and oracles without each class, unlearns with the plain and with the Fisher
anchor over a grid of strengths, and compares exact likelihoods, divergences from the oracles and
samples; the strength is chosen by one oracle that is kept out of the band. Writes metrics.json and
report.html.

    python -m experiments.rbm.forgetting

Twenty-five minutes on two busy CPU cores, most of them compiling. Expect (for each class and
method: log-likelihood in nats of test images of the class, of the other classes, share of samples
that a classifier takes for the class, %, and KL from the oracles in nats; a method's lam in
brackets; of oracles the mean):

    class:1  original                -17.77  -20.49  10.6   0.57
    class:1  oracles                 -23.20  -21.13   4.4   0.27
    class:1  plain anchor (100)      -18.05  -20.48   6.4   0.57
    class:1  Fisher anchor (300)     -18.46  -20.49   6.5   0.59
    class:1  fine-tuning             -20.00  -19.93   4.2   0.75
    class:3  original                -19.76  -20.27   9.5   0.45
    class:3  oracles                 -22.62  -20.55   4.1   0.24
    class:3  plain anchor (100)      -20.19  -20.29   6.6   0.46
    class:3  Fisher anchor (600)     -20.38  -20.30   4.8   0.48
    class:3  fine-tuning             -22.07  -19.72   2.4   0.66
    class:8  original                -21.25  -20.11  14.0   0.45
    class:8  oracles                 -23.33  -20.48   8.2   0.38
    class:8  plain anchor (30)       -21.72  -20.12  12.9   0.43
    class:8  Fisher anchor (300)     -21.59  -20.12  13.9   0.43
    class:8  fine-tuning             -23.05  -19.58   5.9   0.70
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.harness.run import Experiment, main
from experiments.rbm import machines
from experiments.rbm.forgetting_page import MEASURES, METHODS, TUNED, claims, headline, page
from famr_jax import evaluation, metrics, rbm, unlearn
from famr_jax.cli.bench import Bench
from famr_jax.cli.flags import Ascending, BenchFlags, Count, Positive, Within, make_optimizer
from famr_jax.forget import ForgetSet
from famr_jax.rbm.likelihood import MOST_EXACT


@dataclass(frozen=True)
class Flags:
    """Settings of a run; of the bench, the model is the auxiliary classifier."""

    forget: tuple[str, ...] = ("class:1", "class:3", "class:8")
    """Classes to forget, each on its own, as class:3."""
    hidden: Annotated[int, Within(1, MOST_EXACT + 1)] = 16
    """Hidden units, few enough for exact likelihoods."""
    epochs: Count = 60
    """Passes over the data in training, of the machine and of the oracles."""
    lr: Positive = 0.1
    """Step, constant, by SGD, in training."""
    gibbs_steps: Count = 3
    """Steps of the persistent chains between two updates."""
    chains: Count = 100
    """Chains, in training and in unlearning."""
    rbm_batch_size: Count = 100
    """Examples an update, in training and in unlearning."""
    lams: Annotated[tuple[Positive, ...], Ascending(1)] = (3.0, 10.0, 30.0, 100.0, 300.0, 600.0)
    """Strengths of the anchors, ascending."""
    unlearn_epochs: Count = 120
    """Passes over the forget set in unlearning; fine-tuning makes as many updates."""
    unlearn_lr: Positive = 0.002
    """Step of unlearning, by SGD; a plain anchor is stable below 2 / lam."""
    samples: Count = 1000
    """Samples of each machine."""
    sample_steps: Count = 300
    """Gibbs steps from fair coins to each sample."""
    bench: BenchFlags = field(
        default_factory=lambda: BenchFlags(model="mlp_64", train_epochs=30, oracles=8)
    )

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """What trains the machines; the same object each time, as jit wants it."""
        return make_optimizer("sgd", self.lr)


SMALL = Flags(
    forget=("class:1",),
    hidden=3,
    epochs=2,
    gibbs_steps=1,
    chains=10,
    lams=(0.1, 1.0),
    unlearn_epochs=1,
    samples=20,
    sample_steps=3,
    bench=BenchFlags(model="logistic", train_epochs=1, batch_size=64, oracles=2),
)
"""The configuration that the test suite runs."""


def check(flags: Flags) -> None:
    """Raises a `ValueError` unless whole classes are forgotten."""
    for spec in flags.forget:
        if not spec.startswith("class:"):
            raise ValueError(f"`forget` must be classes, as class:3, got {spec!r}.")


def measure(flags: Flags, bench: Bench) -> dict[str, Any]:
    """Rows of every machine, and verdicts beside the original, the oracles' band and their null."""
    classifier = bench.original("classifier").params
    train = machines.flat(bench.train)
    original = _trained(flags, bench, "all", train, 1)
    cases = []
    for gone in bench.forget_sets(flags.forget):
        case = partial(_case, flags, bench, gone, classifier, train, original)
        cases.append(bench.clock.show(f"forget {gone.name}", case))
    name, classes = bench.dataset.name, bench.dataset.num_classes
    return {
        "dataset": {"name": name, "num_classes": classes},
        "num_visible": train.x.shape[1],
        "num_train": len(train),
        "cases": cases,
    }


def _trained(flags, bench, name, rows, count):
    """Fresh machines trained on some rows, stacked."""
    own = 0 if name == "all" else 1
    init_key, train_key = jax.random.split(jax.random.fold_in(bench.keys.oracle_train, own))
    begun = machines.start(init_key, rows, flags.hidden, count)
    keys = jax.random.split(train_key, count)
    known = {"hidden": flags.hidden, "rows": name, "count": count, "epochs": flags.epochs}
    return machines.trained(
        bench,
        f"machines {name}",
        flags,
        begun,
        rows,
        jnp.ones_like(begun.weights),
        keys,
        config=known,
    )


def _case(flags, bench, gone: ForgetSet, classifier, train, original):
    """One class: rows of the original, the oracles and every unlearned machine, and verdicts."""
    forgotten, retained = train[np.flatnonzero(gone.mask)], train[np.flatnonzero(~gone.mask)]
    oracles = _trained(flags, bench, f"without {gone.name}", retained, bench.flags.oracles + 1)
    first = jax.tree.map(lambda leaf: leaf[0], original)
    tried, about = _unlearned(flags, bench, first, forgotten, retained)
    everything = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), original, oracles, tried)
    measured = _measured(flags, bench, classifier, everything, gone)
    count = bench.flags.oracles
    heads = [{"model": "original"}, *[{"model": "oracle"}] * (1 + count), *about]
    rows = [head | numbers for head, numbers in zip(heads, measured, strict=True)]
    # The first oracle chooses the strengths and is kept out of the band.
    references, grid = [rows[0], *rows[2 : 2 + count]], rows[2 + count :]
    chosen = [
        min((row for row in grid if row["model"] == name), key=lambda row: row["chosen_by"])
        for name in dict.fromkeys(row["model"] for row in grid)
    ]
    return {
        "forget": gone.spec,
        "num_forget": int(gone.mask.sum()),
        "num_retain": int((~gone.mask).sum()),
        "references": references,
        "chosen": chosen,
        "grid": grid,
        "verdicts": evaluation.verdicts([*references, *chosen], MEASURES),
    }


def _measured(flags, bench, classifier, everything, gone):
    """Numbers of each machine; machine 0 is the original, then come the oracles."""
    log_z = jax.lax.map(rbm.log_partition, everything)
    samples = machines.drawn(
        everything, bench.keys.probes, num_samples=flags.samples, num_steps=flags.sample_steps
    )
    likelihood = jax.jit(jax.vmap(rbm.log_likelihood, in_axes=(0, None, 0)))

    def of(v):
        return np.asarray(likelihood(everything, v, log_z), np.float64)

    test = machines.flat(bench.test)
    of_test, lost = of(test.x), np.isin(np.asarray(test.labels), gone.classes)
    images = (2 * samples - 1).reshape(-1, *bench.dataset.image_shape)
    logits = metrics.predict(bench.model.apply, classifier, images)
    votes = np.asarray(metrics.votes(logits)).reshape(len(log_z), flags.samples, -1)
    kl = {}  # by oracle: the mean of log p_oracle - log p_machine over the oracle's own samples
    for i in range(1, 2 + bench.flags.oracles):
        means = of(samples[i]).mean(1)
        kl[i] = means[i] - means
    sizes = {"forgotten": int(lost.sum()), "kept": int((~lost).sum())}
    return [
        {
            "forgotten": of_test[i, lost].mean(),
            "kept": of_test[i, ~lost].mean(),
            "share": votes[i][:, list(gone.classes)].sum(-1).mean(),
            "kl": np.mean([kl[j][i] for j in kl if j not in (1, i)]),
            "chosen_by": kl[1][i],
            "n": sizes | {"share": flags.samples, "kl": flags.samples},
        }
        for i in range(len(log_z))
    ]


def _unlearned(flags, bench, original, forgotten, retained):
    """The machine unlearned by each method at each strength, stacked, and what each is."""
    optimizer, lams = make_optimizer("sgd", flags.unlearn_lr), jnp.asarray(flags.lams)
    found, about = [], []
    for name, fisher in METHODS.items():

        def method(lam, fisher=fisher):
            return rbm.forget_gap(
                lam=lam,
                fisher=fisher,
                num_steps=flags.gibbs_steps,
                num_chains=flags.chains,
                optimizer=optimizer,
            )

        done = unlearn.run(
            jax.vmap(method)(lams),
            original,
            forgotten,
            epochs=flags.unlearn_epochs,
            batch_size=flags.rbm_batch_size,
            key=jax.random.split(bench.keys.unlearn, len(flags.lams)),
            swept=True,
        )
        found.append(done.params)
        about += [{"model": name, "lam": lam} for lam in flags.lams]
    per_epoch = -(-len(retained) // flags.rbm_batch_size)
    updates = flags.unlearn_epochs * -(-len(forgotten) // flags.rbm_batch_size)
    tuned = rbm.fit(
        rbm.ContrastiveDivergence(flags.optimizer, flags.gibbs_steps),
        original,
        retained,
        epochs=-(-updates // per_epoch),
        batch_size=flags.rbm_batch_size,
        key=bench.keys.unlearn_again,
        num_chains=flags.chains,
    )
    found.append(jax.tree.map(lambda leaf: leaf[None], tuned.params))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *found), [*about, {"model": TUNED}]


EXPERIMENT = Experiment(
    module="experiments.rbm.forgetting",
    flags=Flags,
    small=SMALL,
    measure=measure,
    claims=claims,
    page=page,
    headline=headline,
    check=check,
    change=machines.binary,
)

if __name__ == "__main__":
    main(EXPERIMENT)
