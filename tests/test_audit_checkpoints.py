"""The audit of checkpoints: the same as of their arrays, the main job's, a network of torch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawn, exit_status, random_batch

from famr_jax import audit, checkpoint
from famr_jax.forget import ForgetSet

TRAIN, TEST = random_batch(30, seed=3), random_batch(15, seed=4)
MASK = np.asarray(TRAIN.labels) == 0
CLASS = ForgetSet("class:0", MASK, (0,))


def test_checkpoints_and_the_arrays_of_the_same_models_give_the_same_audit(model, tmp_path):
    weights = [drawn(model.init, seed) for seed in range(4)]
    for i in (0, 1):
        checkpoint.save(tmp_path / str(i), weights[i], epoch=0, config={})
    given = [tmp_path / "0", tmp_path / "1", *weights[2:]]
    found = audit.checkpoints(model, given[0], given[1], given[2:], TRAIN, TEST, CLASS)
    x = jnp.concatenate([TRAIN.x, TEST.x])
    shared = {
        "labels": np.concatenate([TRAIN.labels, TEST.labels]),
        "split": np.array([b"train"] * 30 + [b"test"] * 15),
        "forget": np.concatenate([MASK, np.zeros(15, bool)]),
    }
    apply, features = jax.jit(model.apply), jax.jit(model.features)
    models = [
        shared | {"logits": apply(p, x), "features": features(p, x)["pre_logits"]} for p in weights
    ]
    same = audit.arrays(models[0], models[1], models[2:])
    assert (found.verdict, found.sizes) == (same.verdict, same.sizes)
    for line, other in zip(found.lines, same.lines, strict=True):
        assert (line["measure"], line.get("verdict")) == (other["measure"], other.get("verdict"))
        if "value" in line:
            assert line["value"] == pytest.approx(other["value"], rel=1e-4)
    with pytest.raises(ValueError, match="`oracle` 1 must be a model of its own"):
        audit.checkpoints(model, *weights[:2], [weights[2], weights[2]], TRAIN, TEST, CLASS)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Checkpoints of a small model on digits, as the main job leaves them, by name."""
    from famr_jax.cli.flags import BenchFlags
    from famr_jax.cli.opening import open_bench

    monkeypatch.chdir(tmp_path)
    bench = open_bench(BenchFlags(model="mlp_8", out=tmp_path / "runs"))
    (gone,) = bench.forget_sets(["class:3"])
    everything = np.ones(len(gone.mask), bool)
    roles = {"original": everything, "famr": gone.mask, "other": np.roll(gone.mask, 1)}
    roles |= {f"oracle_{i}": ~gone.mask for i in range(2)}
    for seed, (role, mask) in enumerate(roles.items()):
        config = bench.config(mask)
        config |= {"unlearn": {"lr": 1.0}} if role in ("famr", "other") else {}
        bench.keep(role, drawn(bench.model.init, seed), config)
    return {role: str(tmp_path / "runs" / "checkpoints" / role) for role in roles}


def test_the_command_audits_the_main_jobs_checkpoints_by_its_flags(kept, capsys, tmp_path):
    words = ["--model", "mlp_8", "--before", kept["original"], "--after", kept["famr"]]
    oracles = ["--oracle", kept["oracle_0"], kept["oracle_1"]]
    assert exit_status("audit", *words, *oracles, "--forget", "class:3", "--out", "page.html") == 0
    assert "famr: not resolved. 2 oracles" in capsys.readouterr().out
    content = json.loads((tmp_path / "page.json").read_text())
    (line,) = [x for x in content["results"]["lines"] if x["measure"] == "for_acc"]
    assert line["oracles"] == 2
    for changed, told in (
        ([*words, *oracles], "`forget` must be given with checkpoints, as class:3"),
        ([*words, "--oracle", kept["original"], "--forget", "class:3"],
         "must be made of the training images without this forget set, by its record it was not"),
        ([*words[:4], "--after", kept["other"], "--forget", "class:3"],
         "must be made of this forget set, by its record it was not"),
        ([*words[:2], "--before", kept["famr"], *words[4:], "--forget", "class:3"],
         "must be made of all training images, by its record it was not"),
        ([*words[2:], "--forget", "class:3"], "must have model = 'vit_mu/2', got 'mlp_8'"),
        ([*words, *oracles, "--forget", "class:3", "--oracle", kept["oracle_0"], kept["oracle_0"]],
         "`oracle` 1 must be a model of its own"),
    ):  # fmt: skip
        assert exit_status("audit", *changed) == 2
        assert told in capsys.readouterr().err


@pytest.mark.slow
def test_a_residual_network_of_torch_is_audited_by_its_arrays(tmp_path):
    """Trained for a moment on digits, saved as a user would: half precision, tensors, bytes."""
    torch = pytest.importorskip("torch", reason="torch is not installed: it is no requirement")
    from sklearn.datasets import load_digits
    from torch_resnet import trained

    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels[:600], dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    y = torch.tensor(labels[:600])
    split = np.array(["train"] * 400 + ["test"] * 200)
    is_train, forget = torch.tensor(split == "train"), torch.tensor(labels[:600] == 3)
    retained = is_train & ~forget
    plans = {"before": (0, is_train), "after": (1, is_train)}
    plans |= {f"oracle_{i}": (2 + i, retained) for i in range(2)}
    for name, (seed, rows) in plans.items():
        logits, features = trained(x, y, rows, seed)
        np.savez(
            tmp_path / f"{name}.npz",
            logits=logits.half(),
            features=features,
            labels=y.to(torch.int8),
            split=split,
            forget=forget & is_train,
        )
    paths = {name: tmp_path / f"{name}.npz" for name in plans}
    found = audit.arrays(paths["before"], paths["after"], [paths["oracle_0"], paths["oracle_1"]])
    lines = {line["measure"]: line for line in found.lines}
    assert lines["for_acc"]["value"] > 0.5 > lines["for_acc"]["oracle"]
    assert lines["ret_acc"]["oracle"] > 0.5
    assert 0.5 < lines["probe"]["value"] <= 1
    assert found.verdict == "not resolved"
