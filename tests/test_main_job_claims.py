"""The claims of the main job: judged by what was forgotten and kept, and in words."""

import pytest

from experiments.famr import FAMR, main_job

CASE = {
    "kind": "class",
    "forget": "class:3",
    "methods": [{**main_job.PAPER, "name": "famr", "optimizer": "adam", "finite": True}],
    "targets": {"chance": 0.1},
    "studied": "famr",
    "stationarity": {"at_anchor": 0.0, "end": 0.0},
    "normalisation": [
        {"form": form, "optimizer": "sgd", "obeys": form == "mean", "limit": 1e-3}
        for form in ("mean", "sum")
    ],
}


@pytest.mark.parametrize(
    ("model", "forgotten", "retained", "verdicts"),
    [
        ("vit_B/16", 0.0, 0.95, ["holds", "holds"]),
        ("vit_B/16", 0.0, 0.60, ["holds", "fails"]),
        ("vit_S/16", 0.02, 0.95, ["holds", "holds"]),
        # 3 % of 500 images may be 2.1 % of the class (1.7 to 4.9 %), 5 % may not (3.3 to 7.3 %).
        ("vit_Ti/16", 0.03, 0.95, ["not resolved", "holds"]),
        ("vit_Ti/16", 0.05, 0.95, ["fails", "holds"]),
        ("vit_L/16_token", 0.002, 0.95, ["fails", "holds"]),
        ("vit_Ti/16", 0.9, 0.95, ["fails", "not testable here"]),
        # What the paper reports of larger models is not refuted by a smaller one.
        ("vit_nano/4", 0.9, 0.50, ["not testable here", "not testable here"]),
        ("mlp_16", 0.0, 0.95, ["not testable here", "not testable here"]),
    ],
)
def test_claims_are_judged_by_what_was_forgotten_and_kept(model, forgotten, retained, verdicts):
    common = {"model": "famr", "oracle": 0.0, "oracles": 3, "n": 500}
    rows = [
        {"measure": "for_acc", "original": 0.9, "value": forgotten, **common},
        {"measure": "ret_acc", "original": 0.96, "value": retained, **common},
    ]
    found = main_job.claims_of({**CASE, "rows": rows}, "a model on data", model)
    assert [entry["verdict"] for entry in found] == [*verdicts, "mixed", "holds"]
    assert "N=500 images; FAMR's own target, 1/C, is 10.0%" in found[0]["words"]
    assert all(entry["words"].startswith("a model on data, class:3:") for entry in found)
    assert {entry["claim"] for entry in found} <= set(FAMR.claims.values())
    other = {**CASE, "rows": rows, "methods": [{**CASE["methods"][0], "lam": 1.0}]}
    assert main_job.claims_of(other, "", model) == []
    assert main_job.claims_of({**CASE, "rows": rows, "methods": []}, "", model) == []
    short = {name: value for name, value in CASE.items() if name != "studied"} | {"rows": rows}
    assert [entry["verdict"] for entry in main_job.claims_of(short, "", model)] == verdicts


def test_words_of_a_small_model_hold_its_numbers_interval_and_target():
    common = {"model": "famr", "original": 0.492, "oracle": 0.0, "oracles": 3, "n": 500}
    rows = [{"measure": name, "value": 0.026, **common} for name in ("for_acc", "ret_acc")]
    first, *_ = main_job.claims_of({**CASE, "rows": rows}, "vit_nano/4 on data", "vit_nano/4")
    assert first["words"] == (
        "vit_nano/4 on data, class:3: For-Acc 49.2% before, 2.6% after (95 % interval 1.4% to "
        "4.4%, N=500 images; FAMR's own target, 1/C, is 10.0%), oracles 0.0% (n=3). No ViT-Ti, S, "
        "B or L was run here."
    )
