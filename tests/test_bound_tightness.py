"""The experiment on certificates at its SMALL size, its verdicts on made-up rows, and its prose."""

from dataclasses import asdict, replace

import pytest

from experiments.famr import FAMR, bound_tightness, measured_bounds
from experiments.famr.bound_tightness import EXPERIMENT, SMALL
from experiments.famr.measured_bounds import CHAIN, INFLUENCE, OF_FORGET, SLOPE
from experiments.harness import ledger, run
from experiments.harness.results import read_results
from famr_jax import certify
from famr_jax.report import Badge

RESULTS = {k: result for k, result in read_results().items() if k.startswith("bound_tightness")}


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    root = tmp_path_factory.mktemp("bounds")
    places = {"out": root / "out", "cache": root / "cache", "data_dir": root / "tfds"}
    content = run.run(EXPERIMENT, replace(SMALL, bench=replace(SMALL.bench, **places)))
    assert "<html" in (root / "out" / "report.html").read_text()
    return content


def rows_of(content, lam):
    (case,) = content["results"]["cases"]
    return {row["certificate"]: row for row in case["rows"] if row["lam"] == lam}


def test_on_a_convex_problem_every_true_statement_holds(content):
    untrue = {INFLUENCE, CHAIN}
    for lam in SMALL.lams:
        for name, row in rows_of(content, lam).items():
            if name not in untrue and row["verdict"] != "vacuous":
                assert row["verdict"] == "holds", row
        assert rows_of(content, lam)[OF_FORGET]["verdict"] == "vacuous"
    # At a large lam the objective is all but quadratic, and the bounds are tight.
    tight = rows_of(content, 100.0)
    for name in ("distance, convex", "distance, descent", "Newton step", "linear rate"):
        assert 1 <= tight[name]["ratio"] < 2


def test_the_papers_bound_breaks_as_lam_falls(content):
    assert rows_of(content, 1e-4)[INFLUENCE]["verdict"] == "violated"
    assert rows_of(content, 100.0)[INFLUENCE]["verdict"] == "holds"
    (claim,) = content["claims"]  # SMALL does not run at the paper's lam
    assert claim["claim"] == FAMR.claims["outputs"]
    assert claim["verdict"] == "fails"
    ledger.ledger({"small": content})


def test_influence_is_nearer_to_the_oracle_than_famr(content):
    (case,) = content["results"]["cases"]
    to = case["to_oracle"]
    assert to["influence"] < to["do_nothing"]
    assert to["influence"] < min(to["famr"].values())


def test_removals_are_counted_and_priced(content):
    removal = content["results"]["removal"]
    assert removal["distance"]["removed"] <= removal["distance"]["bound"]
    assert removal["distance"]["settled"] <= removal["distance"]["bound_settled"]
    assert removal["bound_over_residual"]["last"] >= 1
    for row in removal["rows"]:
        counts = row["removals"]
        assert 0 <= counts["guo"] <= counts["spent"] <= counts["residual"] <= SMALL.removals
    losses = removal["privacy_losses"]
    assert losses["largest"] < removal["epsilon"]


def test_an_influence_step_that_was_not_solved_proves_nothing():
    judged = certify.influence_distance(0.5, 2.0, 1.0, 0.5)
    assert measured_bounds.if_solved(judged, True).verdict == "holds"
    unsolved = measured_bounds.if_solved(judged, False)
    assert (unsolved.verdict, unsolved.bound, unsolved.measured) == ("vacuous", None, 0.5)
    # And so the bound on the outputs that is made of it.
    outputs = certify.output_divergence(1.0, 3.0, 0.5)
    assert measured_bounds.chained(unsolved, outputs, 3.0).verdict == "vacuous"


def row(verdict, problem="softmax", lam=0.1, certificate=CHAIN, measured=1.0):
    bound = None if verdict == "vacuous" else {"holds": 2.0, "violated": 0.5}[verdict]
    ratio = None if bound is None or not measured else bound / measured
    numbers = {"measured": measured, "bound": bound, "ratio": ratio, "verdict": verdict}
    return {"lam": lam, "certificate": certificate, "why": "", **numbers}


def case(rows, problem="softmax"):
    return {"problem": problem, "forget": "class:3", "rows": rows}


@pytest.mark.parametrize(
    ("chain", "convex", "wanted"),
    [
        (["violated", "holds"], ["holds", "violated"], ["fails", "mixed"]),
        (["holds", "holds"], ["holds", "holds"], ["holds", "holds"]),
        (["vacuous", "vacuous"], ["violated", "violated"], ["not testable here", "fails"]),
    ],
)
def test_claims_follow_the_verdicts(chain, convex, wanted):
    cases = [
        case(
            [
                row(first),
                row("holds", certificate=SLOPE),
                row("holds", certificate=INFLUENCE),
                row("vacuous", certificate=OF_FORGET),
                row(second, certificate="strong convexity"),
            ],
            problem,
        )
        for problem, first, second in zip(("softmax", "perceptron"), chain, convex, strict=True)
    ]
    assert [
        each["verdict"] for each in bound_tightness.claims({"cases": cases}, asdict(SMALL))
    ] == wanted


def test_every_certificate_is_explained(content):
    assert set(rows_of(content, 100.0)) == set(measured_bounds.STATEMENTS)


def test_a_cell_says_what_is_wrong():
    assert measured_bounds.cell(row("vacuous")) == "vacuous"
    assert measured_bounds.cell(row("holds")) == "2"
    assert measured_bounds.cell(row("violated")) == Badge("0.5", "bad")
    assert measured_bounds.cell(row("holds", measured=0.0)) == "0 to bound"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"problems": ("resnet",)}, "problems"),
        ({"problems": ()}, "problems"),
        ({"lams": ()}, "lams"),
        ({"sigmas": (-1.0,)}, "sigmas"),
        ({"removals": 0}, "removals"),
        ({"l2": 0.0}, "l2"),
        ({"delta": 2.0}, "delta"),
    ],
)
def test_flags_are_checked_before_anything_is_computed(change, word, tmp_path):
    untouched = replace(EXPERIMENT, measure=lambda *_: pytest.fail("computed"))
    bench = replace(SMALL.bench, out=tmp_path / "out", data_dir=tmp_path / "tfds")
    with pytest.raises(ValueError, match=word):
        run.run(untouched, replace(SMALL, bench=bench, **change))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", RESULTS)
def test_numbers_in_the_docstring_are_those_of_the_result(name):
    for line in bound_tightness.headline(RESULTS[name]):
        assert line in bound_tightness.__doc__
    result = RESULTS[name]
    judged = bound_tightness.claims(result["results"], result["config"]["flags"])
    assert judged == result["claims"]
    bound_tightness.page(result)
