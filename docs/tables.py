"""The tables and numbers of the site, written from the recorded results at every build."""

import importlib
import sys
from collections import Counter

from experiments.comparison import comparison_tables, defaults, leaderboard_tables
from experiments.harness import ledger
from experiments.harness.results import VERDICTS, read_results, setting
from famr_jax.evaluation import DISTANCE, ENSEMBLE_MEASURES, MEASURES
from famr_jax.methods import BY_NAME

RESULTS = read_results()


def row(*cells):
    """A line of a Markdown table."""
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def table(head, rows):
    """A Markdown table."""
    lines = [row(*head), "|" + "---|" * len(head), *(row(*cells) for cells in rows)]
    return "\n".join(lines) + "\n"


def methods():
    """Every method at its defaults on a class and on a random tenth: what it needs and costs."""
    found = {}
    for name in ("defaults", "defaults-random"):
        results = RESULTS[name]["results"]
        found[name] = {line["model"]: line for line in results["rows"]}
    rows = []
    for name in ("original", *BY_NAME):
        lines = [rows_of.get(name, {}) for rows_of in found.values()]
        asks = {True: "yes", False: "no"}.get(lines[0].get("retained_data"), "")
        link = f"{{py:func}}`~famr_jax.methods.{name}`" if name in BY_NAME else "original"
        told = sys.modules[BY_NAME[name].__module__].__doc__ if name in BY_NAME else ""
        what = told.partition(": ")[2].partition("\n")[0].rstrip(".")
        shares = (
            f"{100 * line[each]:.1f}" if line else "–"
            for line in lines
            for each in ("for_acc", "ret_acc", "test_acc")
        )
        rows.append((link, asks, *shares, what))
    shares = [f"{each}, {what}" for what in ("class", "tenth") for each in ("For", "Ret", "Test")]
    head = ("method", "retained data", *shares, "what it does")
    return table(head, rows)


def cost():
    """In one line a forget set: who loses more than ten points of retained accuracy."""
    recorded = (RESULTS[name] for name in ("defaults", "defaults-random"))
    lines = [line for result in recorded for line in defaults.headline(result)]
    return "```text\n" + "\n".join(lines) + "\n```\n"


def comparison():
    """Every method at one budget of search: a table for each data set and forget set."""
    return _each("method_comparison", comparison_tables.full)


def leaderboard():
    """Every method beside a hundred retrained models: tables for each recorded data set."""
    return _each("leaderboard", leaderboard_tables.full)


def _each(experiment, full):
    """What is to say of every recorded result of an experiment, below what it was measured on."""
    found = [result for name, result in RESULTS.items() if name.startswith(experiment)]
    told = (f"{setting(each['results'])}:\n\n{full(each)}" for each in found)
    return "\n".join(told) or "Not recorded yet.\n"


def measures():
    """What is taken of every model, and of ensembles."""
    known = (*MEASURES, DISTANCE, *ENSEMBLE_MEASURES)
    rows = ((f"`{m.name}`", m.what, m.set, m.unit) for m in known)
    return table(("name", "what it is", "taken on", "unit"), rows)


def verdicts():
    """How many claims of each paper hold."""
    counts = {paper.source: Counter() for paper in ledger.papers()}
    for result in RESULTS.values():
        for claim in result.get("claims", ()):
            counts[claim["source"]][claim["verdict"]] += 1
    rows = (
        (source, *(found[verdict] or "" for verdict in VERDICTS))
        for source, found in counts.items()
        if found
    )
    return table(("paper", *VERDICTS), rows)


def headlines():
    """The lines of numbers that experiments print, by experiment."""
    parts = {}
    for name, result in RESULTS.items():
        experiment = name.partition("-")[0]
        if experiment == "benchmark":
            continue
        module = importlib.import_module(ledger.module_of(experiment))
        about = module.__doc__.strip().partition("\n")[0]
        lines = parts.setdefault(experiment, [about])
        lines += module.headline(result)
    told = (
        f"**`{experiment}`.** {about}\n\n```text\n" + "\n".join(lines) + "\n```\n"
        for experiment, (about, *lines) in parts.items()
    )
    return "\n".join(told)


def numbers():
    """What the prose of the pages quotes, by name."""
    programs = RESULTS["benchmark-scaling"]["results"]["programs"]["train"]
    return {
        "num_methods": len(BY_NAME),
        "num_params": f"{RESULTS['defaults']['results']['model']['num_params']:,}",
        "data_mb": f"{programs['data=2']['bytes'] / 1e6:.3f} MB",
        "model_mb": f"{programs['data=2,model=2']['bytes'] / 1e6:.3f} MB",
    }


def write(folder):
    """Writes each table into a file that pages include."""
    folder.mkdir(exist_ok=True)
    for make in (methods, cost, comparison, leaderboard, measures, verdicts, headlines):
        (folder / f"{make.__name__}.md").write_text(make())
    (folder / "claims.md").write_text(ledger.ledger(RESULTS).partition("\n")[2])
