"""Is a gradient step of ResNet-18 on a CPU slow inside a loop, and is PyTorch's faster?

    OMP_NUM_THREADS=1 taskset -c 1 python -m experiments.benchmarks.convolution

Ten minutes of one busy core. Expect (medians of three rounds and their range; a step is the
gradient of 20 images and a step along it, by ResNet-18 with 32 channels and group normalisation;
`lax` is XLA's own convolution, `scan` a loop of two steps, `call` a program of one):

    8 x 8: call: patches 49, lax 118; scan: patches 55, lax 373; torch 116 ms a step
    8 x 8: patches in a scan are 6.75 times as fast as lax, scan (6.74-6.76)
    8 x 8: patches in a scan are 2.14 times as fast as lax, call (2.01-2.22)
    8 x 8: patches in a scan are 2.00 times as fast as torch (1.90-2.10)
    32 x 32: call: patches 801, lax 616; scan: patches 736, lax 11191; torch 513 ms a step
    32 x 32: patches in a scan are 15.21 times as fast as lax, scan (13.71-18.08)
    32 x 32: patches in a scan are 0.81 times as fast as lax, call (0.76-0.86)
    32 x 32: patches in a scan are 0.70 times as fast as torch (0.46-0.87)

The library trains, unlearns and solves in loops; there XLA's CPU compiler has plain loops for a
convolution's derivatives. Outside of them its own convolution is quicker than patches on images of
32 pixels, and PyTorch's quicker than both: what would be better still is a loop that compiles them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.ranges import Matching, Some
from experiments.benchmarks.timing import CLOCKS, interleave, only_cpu, ratio, write
from experiments.benchmarks.torch_vit import import_torch
from famr_jax import losses, models
from famr_jax.cli.flags import AtLeast, Count, Seed, check
from famr_jax.cli.run import main
from famr_jax.models import resnet
from famr_jax.store import Clock, console
from famr_jax.types import Params

LR, CLASSES = 1e-3, 10
KINDS = {"patches": resnet.convolved, "lax": jax.lax.conv_general_dilated}
"""What a convolution is: ours on a CPU, and XLA's."""


@dataclass(frozen=True)
class Flags:
    """Settings of the benchmark."""

    model: Annotated[str, Matching(r"resnet18(_\d+)?", "resnet18 or resnet18_WIDTH")] = (
        "resnet18_32"
    )
    """ResNet-18 with group normalisation."""
    sides: Annotated[tuple[Count, ...], Some()] = (8, 32)
    """Heights and widths of the images, in turn."""
    batch_size: Annotated[int, AtLeast(2)] = 20
    """Images a step."""
    steps: Count = 2
    """Steps in a scan."""
    repeats: Count = 3
    """Interleaved rounds, whose median counts."""
    seed: Seed = 0
    """Of weights and images."""
    out: Path = Path("experiments/results/benchmark-convolution.json")
    """The JSON to write."""


SMALL = Flags(sides=(4,), batch_size=2, steps=2, repeats=1)


def run(flags: Flags) -> None:
    """Checks that all compute the same gradient, times them in turns, writes the JSON."""
    check(flags)
    only_cpu()
    torch, clock, results = import_torch(), Clock(), {}
    for side in flags.sides:
        results[str(side)] = clock.time(
            f"{side} x {side}", lambda s=side: measured(torch, s, flags)
        )
    content = write(
        "convolution",
        flags,
        results,
        seconds=clock.seconds(),
        environment={"torch_threads": torch.get_num_threads()},
        versions={"torch": torch.__version__},
        path=flags.out,
    )
    for line in headline(content):
        console.print(line, highlight=False)


def measured(torch: Any, side: int, flags: Flags) -> dict[str, Any]:
    """Seconds of a step by each runner on images of a size, and how far gradients are apart."""
    init_key, move_key, x_key, label_key = jax.random.split(jax.random.key(flags.seed), 4)
    model = models.create(flags.model, num_classes=CLASSES, image_shape=(side, side, 3))
    params = moved(model.init(init_key), move_key)
    x = jax.random.normal(x_key, (flags.batch_size, side, side, 3))
    labels = jax.random.randint(label_key, x.shape[:1], 0, CLASSES)

    def gradient(params):
        return jax.grad(lambda p: jnp.mean(losses.cross_entropy(model.apply(p, x), labels)))(params)

    def step(params):
        return jax.tree.map(lambda leaf, g: leaf - LR * g, params, gradient(params))

    def scan(params):
        return jax.lax.fori_loop(0, flags.steps, lambda _, params: step(params), params)

    runners, gradients, begun = {}, {}, jax.block_until_ready(params)
    for kind, function in KINDS.items():
        with mock.patch.object(resnet, "convolved", function):
            gradients[kind] = jax.jit(lambda params: gradient(params))(params)
            for where, steps, timed in (("call", 1, step), ("scan", flags.steps, scan)):
                compiled = (
                    jax.jit(lambda params, timed=timed: timed(params)).lower(params).compile()
                )
                runners[f"{kind}, {where}"] = _runner(compiled, begun, steps)
    theirs = TorchStep(torch, params, x, labels)
    runners["torch"] = theirs
    gradients["torch"] = theirs.gradient()
    return {
        "apart": {kind: apart(gradients[kind], gradients["torch"]) for kind in KINDS},
        "per_step": interleave(runners, flags.repeats, {"wall_ms": CLOCKS["wall_ms"]}),
    }


def headline(content: Mapping[str, Any]) -> list[str]:
    """Milliseconds of a step in lines, and what a scan of convolutions takes beside ours."""
    lines = []
    for side, result in content["results"].items():
        taken = {name: each["wall_ms"] for name, each in result["per_step"].items()}
        told = {name: f"{each['median']:.0f}" for name, each in taken.items()}
        in_turn = (
            f"{where}: " + ", ".join(f"{kind} {told[f'{kind}, {where}']}" for kind in KINDS)
            for where in ("call", "scan")
        )
        lines.append(f"{side} x {side}: {'; '.join(in_turn)}; torch {told['torch']} ms a step")
        for peer in ("lax, scan", "lax, call", "torch"):
            found = ratio(taken[peer], taken["patches, scan"])
            lines.append(
                f"{side} x {side}: patches in a scan are {found['ratio']:.2f} times as fast as "
                f"{peer} ({found['low']:.2f}-{found['high']:.2f})"
            )
    return lines


def moved(params: Params, key: jax.Array) -> Params:
    """Weights off their start, at which the head is zero and most gradients are."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.normal(each, leaf.shape) for each, leaf in zip(keys, leaves, strict=True)]
    return tree.unflatten([leaf + 0.1 * noise for leaf, noise in zip(leaves, drawn, strict=True)])


def apart(one: Params, other: Params) -> float:
    """Greatest difference of a leaf, as a share of the leaf's greatest entry."""
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return float(max(np.abs(a - b).max() / np.abs(a).max() for a, b in leaves))


def _runner(compiled, params, num_steps) -> Callable[[], int]:
    def runner():
        jax.block_until_ready(compiled(params))
        return num_steps

    jax.block_until_ready(compiled(params))
    return runner


class TorchStep:
    """The same step in eager PyTorch."""

    def __init__(self, torch: Any, params: Params, x: jax.Array, labels: jax.Array):
        self.torch = torch
        self.weights = torch_weights(torch, params)
        self.x = torch.tensor(np.asarray(x))
        self.labels = torch.tensor(np.asarray(labels), dtype=torch.int64)
        self.optimizer = torch.optim.SGD(jax.tree.leaves(self.weights), lr=LR)

    def backward(self) -> None:
        """Leaves the mean cross-entropy's gradient at the weights."""
        self.optimizer.zero_grad()
        logits = torch_resnet18(self.torch, self.weights, self.x)
        self.torch.nn.functional.cross_entropy(logits, self.labels).backward()

    def gradient(self) -> Params:
        """That gradient, before any step."""
        self.backward()
        return jax.tree.map(lambda weight: weight.grad.numpy().copy(), self.weights)

    def __call__(self) -> int:
        self.backward()
        self.optimizer.step()
        return 1


def torch_weights(torch: Any, params: Params) -> Any:
    """Leaves that ask for their gradient, under the same names."""
    return jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf), requires_grad=True), params)


def torch_resnet18(torch: Any, weights: Any, x: Any) -> Any:
    """Logits of our ResNet-18 with 32 groups for images `[n, h, w, c]`, by PyTorch."""
    functional = torch.nn.functional
    large = max(x.shape[1:3]) > 64

    def conv(x, weights, stride=1):
        kernel = weights["kernel"].permute(3, 2, 0, 1)
        return functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def norm(x, weights):
        return functional.group_norm(x, resnet.GROUPS, weights["scale"], weights["bias"])

    y = conv(x.permute(0, 3, 1, 2), weights["conv"], 2 if large else 1)
    y = functional.relu(norm(y, weights["norm"]))
    y = functional.max_pool2d(y, 3, 2, padding=1) if large else y
    for i in range(8):
        block, stride = weights[f"block_{i}"], 2 if i in (2, 4, 6) else 1
        z = functional.relu(norm(conv(y, block["conv_1"], stride), block["norm_1"]))
        z = norm(conv(z, block["conv_2"]), block["norm_2"])
        if i in (2, 4, 6):
            y = norm(conv(y, block["conv_shortcut"], stride), block["norm_shortcut"])
        y = functional.relu(y + z)
    return y.mean((2, 3)) @ weights["head"]["kernel"] + weights["head"]["bias"]


if __name__ == "__main__":
    main(Flags, run, description=__doc__)
