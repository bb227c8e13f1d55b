"""What the main job's page shows of the study of FAMR: stationary point, forms and seeds."""

import math
from typing import Any

import numpy as np

from famr_jax.cli.measured import line, method_of
from famr_jax.cli.words import CURVES, Case, label, top_of, watched
from famr_jax.report import Column, Strip, Table, number
from famr_jax.report.plot import finite

ENDS: dict[str, Any] = {
    "for_acc": Column("For-Acc, %", "share"),
    "ret_acc": Column("Ret-Acc, %", "share"),
    "entropy": Column("Entropy, nats", "nats"),
}


def stationarity(case: Case) -> list[Any]:
    found = case.get("stationarity")
    epochs = method_of(case, case.get("studied")).get("curves") or {}
    if not found:
        return []
    first, last = ({name: epochs[name][i] for name in ENDS if epochs.get(name)} for i in (0, -1))
    end = {"norm": found.get("end"), "distance": found.get("distance")}
    rows = [
        {"point": "Original, the anchor", "norm": found.get("at_anchor"), "distance": 0.0} | first,
        {"point": label(case.get("studied"))} | end | last,
    ]
    if further := found.get("converged"):
        state = "converged" if further.get("converged") else "not converged"
        point = f"Run on, {state} after {number(further.get('steps'))} steps"
        rows.append({"point": point} | further)
    columns = {"point": "Point", "norm": "Gradient norm", "distance": "Distance from anchor"}
    caption = (
        "Gradient of the full objective, |grad L_forget + lam (params − anchor)|; at a stationary "
        "point, the one the theory speaks of, it is zero. "
        f"Ret-Acc on {number(watched(case))} images."
    )
    return [Table(rows, columns | ENDS, caption)]


def forms(case: Case) -> list[Any]:
    columns = {"form": "Form", "optimizer": "Optimizer", "lr": "Learning rate", "lam": "lam"}
    columns |= {"L": "L", "limit": "1/(L + lam)", "obeys": "Obeys the rule", **ENDS}
    caption = (
        "The forget loss as a mean or as a sum over the forget set, which at one lam are two "
        "objectives; lam(mean) = lam(sum)/|T| makes them one. The paper's rule for the step of "
        "gradient descent is lr ≤ 1/(L + lam), here with L at the anchor. Ret-Acc as in the curve."
    )
    found = case.get("normalisation")
    return [Table(found, columns | {"finite": "Finite"}, caption)] if found else []


def seeds(case: Case) -> list[Any]:
    if not case.get("seeds"):
        return []
    rows = []
    for measure, (title, unit, _) in CURVES.items():
        values = case["seeds"].get(measure) or []
        known = [v for v in finite(values).tolist() if math.isfinite(v)]
        band = line(case, measure, case.get("studied")).get("band")
        top = top_of(case, unit, *known)
        rows.append(
            {
                "Measure": title,
                "Picture": Strip(values, band=band, top=top, name=label(case.get("studied"))),
                "Mean": float(np.mean(known)) if known else None,
                "Standard deviation": float(np.std(known, ddof=1)) if len(known) > 1 else None,
                "Least": min(known, default=None),
                "Largest": max(known, default=None),
                "Seeds": len(known),
                "unit": unit,
            }
        )
    caption = (
        "The same unlearning of the same original, with other batch orders; Ret-Acc as in the "
        "curve. Shares in %, entropy in nats."
    )
    return [Table(rows, [column for column in rows[0] if column != "unit"], caption)]
