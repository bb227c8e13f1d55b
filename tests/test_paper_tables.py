"""The commands for the paper's tables are ones that the experiments would take."""

import dataclasses
import importlib
import re
import shlex
from pathlib import Path

import pytest
import tyro

from famr_jax import mesh, methods, models
from famr_jax.cli import choosing
from famr_jax.models import vit

TEXT = (Path(__file__).parents[1] / "experiments" / "PAPER_TABLES.md").read_text()
COMMANDS = [
    line.strip() for line in TEXT.replace("\\\n", "").split("\n") if line.startswith("    python")
]


def parsed(command):
    """The flags that a command gives to its experiment."""
    _, _, module, *words = shlex.split(command)
    flags = importlib.import_module(module).Flags
    return tyro.cli(flags, args=words, config=(tyro.conf.OmitArgPrefixes,))


def given(command, flag):
    """The value of a flag on a command line, or None."""
    words = shlex.split(command)
    return words[words.index(flag) + 1] if flag in words else None


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split(" --out ")[1])
def test_every_command_is_taken(command):
    flags = parsed(command)
    shape = {"num_classes": 100, "image_shape": (224, 224, 3)}
    without_weights = re.sub(r"--weights \S+", "", command)
    for name in re.findall(r"\b(?:vit|mlp|resnet)\w*(?:/\w+)?\b", without_weights):
        assert models.create(name, **shape).name == name
    if flags.bench.mesh:
        mesh.parse(flags.bench.mesh)
    assert str(flags.bench.out) == given(command, "--out")
    if "class_forgetting" in command:
        assert choosing.step_in_source(methods.famr) == ("adam", 1e-4)
        settings = {"lam": 0.1, "epochs": 10, "method_lr": None, "optimizer": None}
        assert flags == dataclasses.replace(flags, method=("famr",), **settings), "the paper's"


def test_every_cell_has_its_command():
    cells = {}
    for command in COMMANDS:
        if "class_forgetting" in command:
            cells[given(command, "--dataset"), given(command, "--model")] = command
    size = {"Ti": "tiny", "S": "small", "B": "base", "L": "large"}
    assert set(cells) == {
        (dataset, f"vit_{variant}/16_token")
        for dataset in ("cifar100", "imagenet100")
        for variant in size
    }
    assert set(size) <= set(vit.VARIANTS)
    for (dataset, model), command in cells.items():
        variant = re.fullmatch(r"vit_(\w+)/16_token", model)[1]
        assert f"vit_{size[variant]}_patch16_224" in given(command, "--weights")
        assert ("--stream" in command) == (dataset == "imagenet100")


def test_the_commands_are_marked_as_not_run():
    assert "None of these commands has been run" in " ".join(TEXT.split())
