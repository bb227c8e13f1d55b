"""Is a training or unlearning step in JAX as fast as the same ViT's in PyTorch, on a CPU?

    OMP_NUM_THREADS=1 taskset -c 1 python -m experiments.benchmarks.step

Under 10 minutes on one core of an AMD EPYC (AVX-512); without the prefix, on all cores. The numbers
are of one core because the machine was shared: with both cores and a load of 7, PyTorch's threads
wait for each other at every operation, and it came out 2 to 3 times slower than ours, which says
nothing about a free machine. Two free cores: not measured.

Expect (best of 7, wall, ms a step; vit_nano/4, 32x32 images, batch 128, float32):

                jax scan   jax call   torch eager   torch compile   scan/compile   call/compile
    train            236        366           277             263           0.90           1.39
    unlearn          242        367           285             270           0.89           1.36

So the goal, not slower than torch.compile, is met inside a scan, which is how the library runs its
epochs, and missed by one step a call. The reason is memory, not arithmetic: every call of a
compiled program takes its temporaries afresh, 69,282 page faults a training step (270 MB) against
6,930 in a scan of 10 steps and none in PyTorch, which keeps its own. With
GLIBC_TUNABLES=glibc.malloc.hugetlb=1 a step a call takes 0.24-0.26 s of CPU time instead of
0.34-0.37 (a separate run, not in the JSON).

HVP / gradient: 2.52 for our blocks (FLOPs: 2.72), 2.15 for Linen's MultiHeadDotProductAttention
(FLOPs: 2.73), whose gradient is slower: our gradient takes 0.75 of its time, our HVP 0.87. Medians,
on the shared machine, are nearer to one: 0.87 and 0.96. `compile_seconds` of PyTorch is of its warm
cache on disk; a first compilation took 38-79 s under load.
"""

import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.linen_vit import curvature_products, perturbed
from experiments.benchmarks.ranges import Matching
from experiments.benchmarks.timing import interleave, only_cpu, write
from experiments.benchmarks.torch_vit import (
    CALL_STEPS,
    LAM,
    TRAIN_LR,
    UNLEARN_LR,
    WEIGHT_DECAY,
    import_torch,
    torch_layout,
    torch_loss,
    torch_steps,
    torch_vit,
)
from famr_jax import loop, losses, models, train
from famr_jax.cli.flags import AtLeast, Count, Seed, check
from famr_jax.cli.run import main
from famr_jax.methods import famr
from famr_jax.store import console
from famr_jax.types import Batch, Context, Pair, Params

SCAN_STEPS = 10
TOLERANCE = 1e-4
CASES = ("train", "unlearn")
OURS, PEERS = ("jax call", "jax scan"), ("torch eager", "torch compile")


@dataclass(frozen=True)
class Flags:
    """Settings of the benchmark."""

    model: Annotated[str, Matching(r"vit_\w+/\d+", "vit_V/PATCH")] = "vit_nano/4"
    """vit_V/PATCH with V of mu, nano, Ti, S, B, L."""
    batch_size: Count = 128
    """Images a step."""
    image_size: Count = 32
    """Height and width of an image."""
    num_classes: Annotated[int, AtLeast(2)] = 20
    """Width of the logits."""
    repeats: Count = 7
    """Interleaved rounds; best and median are over them."""
    seed: Seed = 0
    """Of weights and images."""
    out: Path = Path("experiments/results/benchmark-step.json")
    """The JSON to write."""


SMALL = Flags(model="vit_mu/4", batch_size=4, image_size=8, num_classes=3, repeats=1)


def run(flags: Flags) -> None:
    """Checks that both sides compute the same, times them in turns, writes the JSON."""
    started = time.perf_counter()
    check(flags)
    shape = (flags.image_size, flags.image_size, 3)
    model = models.create(flags.model, num_classes=flags.num_classes, image_shape=shape)
    torch = import_torch()
    only_cpu()
    init_key, move_key, x_key, label_key, linen_key = jax.random.split(
        jax.random.key(flags.seed), 5
    )
    params = perturbed(model.init(init_key), move_key)
    images = jax.random.normal(x_key, (SCAN_STEPS * flags.batch_size, *shape))
    labels = jax.random.randint(label_key, images.shape[:1], 0, flags.num_classes)
    epoch = Batch(images, labels)
    batch = epoch[: flags.batch_size]

    agreement = compare(torch, model, params, batch)
    runners, compile_seconds = {}, {}
    for case in CASES:
        makers = dict(zip(OURS, jax_steps(case, model, params, batch, epoch), strict=True))
        makers |= dict(zip(PEERS, torch_steps(torch, case, model, params, batch), strict=True))
        for name, make in makers.items():
            begun = time.perf_counter()
            runners[f"{case}: {name}"] = step = make()
            with warnings.catch_warnings():  # inductor's imports use what PyTorch deprecates
                warnings.simplefilter("ignore", DeprecationWarning)
                step()
            first = time.perf_counter() - begun
            step()
            again = time.perf_counter() - begun - first
            compile_seconds[f"{case}: {name}"] = max(0.0, first - again)
    products, flops = curvature_products(model, params, batch, linen_key)
    times = interleave(runners, flags.repeats)
    times |= interleave(products, flags.repeats)

    compiling = sum(compile_seconds.values())
    results = {
        "agreement": agreement,
        "per_step": times,
        "compile_seconds": compile_seconds,
        "ratios": ratios(times),
        "flops": flops,
    }
    write(
        "step",
        flags,
        results,
        seconds={"run": time.perf_counter() - started - compiling, "compile": compiling},
        environment={
            "torch_threads": torch.get_num_threads(),
            "cores_allowed": len(os.sched_getaffinity(0)),
        },
        versions={"torch": torch.__version__},
        path=flags.out,
    )
    for name, clocks in times.items():
        best = [f"{clock} {each['best']:.0f}" for clock, each in clocks.items()]
        console.print(f"{name:<22}", *best, highlight=False)
    for name, ratio in results["ratios"].items():
        best = f"best {ratio['best']:.2f} median {ratio['median']:.2f}"
        console.print(f"{name:<38}", best, highlight=False)


def jax_steps(case: str, model: models.Model, params: Params, batch: Batch, epoch: Batch):
    """Two makers of timed functions: one step a call, and `SCAN_STEPS` of them in one scan."""
    if case == "train":
        optimizer = optax.adamw(TRAIN_LR, weight_decay=WEIGHT_DECAY)
        learner, sets = train.Supervised(model.apply, optimizer), (batch, epoch)
        begin = learner.init
    else:
        learner = famr(model.apply, lam=LAM, optimizer=optax.adam(UNLEARN_LR))
        sets = Pair(batch, None), Pair(epoch, None)
        begin = partial(learner.init, forget=batch, retain=None, key=None)

    def step(learner, state, sets, key):
        return learner.step(state, sets, key)

    whole = partial(loop.run_epoch, num_steps=SCAN_STEPS, batch_size=len(batch))

    def maker(function, sets, num_steps, calls):
        def make():
            jitted = jax.jit(function, donate_argnums=1)
            state = begin(jax.tree.map(jnp.copy, params))

            def timed():
                nonlocal state
                for _ in range(calls):
                    state, info = jitted(learner, state, sets, jax.random.key(0))
                    jax.block_until_ready((state, info))
                return calls * num_steps

            return timed

        return make

    return maker(step, sets[0], 1, CALL_STEPS), maker(whole, sets[1], SCAN_STEPS, 1)


def compare(torch: Any, model: models.Model, params: Params, batch: Batch) -> dict[str, float]:
    """Greatest difference of logits, and of gradients relative to their norm, leaf by leaf.

    Raises:
        ValueError: One of them is above `TOLERANCE`.
    """
    net = torch_vit(torch, model, params)
    logits = net(torch.from_numpy(np.array(batch.x))).detach().numpy()
    found = {"logits": float(np.abs(logits - model.apply(params, batch.x)).max())}
    moved = jax.tree.map(lambda leaf: 0.9 * leaf, params)
    objective = famr(model.apply, lam=LAM).objective
    scalars = {
        "train": lambda p: jnp.mean(losses.cross_entropy(model.apply(p, batch.x), batch.labels)),
        "unlearn": lambda p: objective(p, Context(params), Pair(batch, None), None)[0],
    }
    for case, scalar in scalars.items():
        net = torch_vit(torch, model, params)
        loss = torch_loss(torch, case, net, batch)
        with torch.no_grad():
            for weight in net.parameters():
                weight.mul_(0.9)
        loss(torch.from_numpy(np.array(batch.x))).backward()
        theirs = {name: weight.grad.numpy() for name, weight in net.named_parameters()}
        ours = torch_layout(jax.jit(jax.grad(scalar))(moved))
        norm = np.linalg.norm
        gaps = [norm(ours[name] - theirs[name]) / norm(ours[name]) for name in theirs]
        found[f"{case} gradient"] = float(max(gaps))
    for name, gap in found.items():
        if not gap < TOLERANCE:
            raise ValueError(f"`{name}` must agree with PyTorch to {TOLERANCE:g}, got {gap:g}.")
    return found


def ratios(times: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Time of ours / theirs by case, and HVP / gradient; below 1 we are faster."""
    pairs = {
        f"{case}: {ours} / {peer}": (f"{case}: {ours}", f"{case}: {peer}")
        for case in CASES
        for ours in OURS
        for peer in PEERS
    }
    for name in ("lean", "linen"):
        pairs[f"{name} HVP / gradient"] = (f"{name} HVP", f"{name} gradient")
    for kind in ("gradient", "HVP"):
        pairs[f"lean {kind} / linen {kind}"] = (f"lean {kind}", f"linen {kind}")
    kinds = {
        prefix + kind: (clock, kind)
        for prefix, clock in (("", "wall_ms"), ("process ", "process_ms"))
        for kind in ("best", "median")
    }
    return {
        name: {
            k: times[a][clock][kind] / times[b][clock][kind] for k, (clock, kind) in kinds.items()
        }
        for name, (a, b) in pairs.items()
    }


if __name__ == "__main__":
    main(Flags, run, description=__doc__)
