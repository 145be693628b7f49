"""What a run says at its end: a table for the terminal, and the README of its folder."""

from __future__ import annotations

from typing import Any

COLUMNS = ("accuracy", "nll", "ece", "brier")


def rows(result: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """What was compared, on the test split: (name, metrics)."""
    table: list[tuple[str, dict[str, float]]] = []
    plain = result.get("plain")
    if plain:
        chosen = ", the product" if result.get("chosen") == "plain" else ""
        table.append((f"plain, after {plain['steps']} steps{chosen}", plain["end"]))
        stopped = plain["early_stopped"]
        table.append((f"plain, stopped early (epoch {stopped['epoch'] + 1})", stopped))
    if plain and plain["from"] == "itself":
        return table
    generations = result["generations"]
    for g in generations:
        name = result["method"] if len(generations) == 1 else f"{result['method']}, {_called(result, g)}"
        table.append((name, g["test"]))
    return table


def _called(result: dict[str, Any], generation: dict[str, Any]) -> str:
    """A generation's number, and what the audit made of it."""
    number = generation["generation"]
    if number == result.get("product") and result.get("chosen") != "plain":
        return f"generation {number}, the product"
    rolled_back = not generation.get("decision", {}).get("accepted", True)
    return f"generation {number}{', rolled back' if rolled_back else ''}"


def cells(metrics: dict[str, float]) -> list[str]:
    """Accuracy in per cent, the rest as they are."""
    return [f"{100 * metrics['accuracy']:.1f} %", *(f"{metrics[c]:.3f}" for c in COLUMNS[1:])]


def sentence(result: dict[str, Any]) -> str:
    """One run's outcome in words. One seed is an anecdote and is called one."""
    plain = result.get("plain")
    if not plain or plain["from"] == "itself":
        return f"Accuracy on the test split: {100 * result['test']['accuracy']:.1f} %."
    plainly = result.get("chosen") == "plain"
    ours = result["generations"][result["product"]]["test"] if plainly else result["test"]
    gains = [100 * (ours["accuracy"] - plain[k]["accuracy"]) for k in ("end", "early_stopped")]
    kept = " The audit prefers the plain model, so that is the product." if plainly else ""
    several = len(result["generations"]) > 1 or bool((result.get("folds") or {}).get("decisions"))
    untaught = several and result.get("product") == 0
    what = "Generation 0, which the audit keeps and no earlier one taught," if untaught else "Self-distilled"
    return (
        f"{what} against plain: {gains[0]:+.1f} points at equal steps, {gains[1]:+.1f} against the plain model "
        f"stopped early.{kept} One seed is an anecdote; repeat with other --seed values before you believe it."
    )


def readme(result: dict[str, Any], record: dict[str, Any]) -> str:
    """The run folder's README."""
    return "\n".join([*_facts(result, record, f" in {result['seconds']} s"), *_loading("model")])


def model_card_text(result: dict[str, Any], record: dict[str, Any]) -> str:
    """The README of the model's own folder: the same facts, the audit's decisions, and what it is not fit for."""
    data = result["data"]
    decisions = [g["decision"]["why"] for g in result["generations"] if g.get("decision")]
    lines = [
        "---", "library_name: selfdistill", f"tags: [self-distillation, {data['task']}]", "metrics: [accuracy]", "---",
        "", *_facts(result, record), "## Audit", "", *(f"- {why}" for why in decisions), "", "## Limits", "",
        f"Trained and tested on {data['name']} alone, with one seed: on other data nothing is known of it. Classes: "
        f"{', '.join(map(str, data['classes']))}.",
        "", *_loading("."),
    ]  # fmt: skip
    return "\n".join(lines)


def _facts(result: dict[str, Any], record: dict[str, Any], took: str = "") -> list[str]:
    """Without ``took``, equal runs tell it in equal words."""
    data = result["data"]
    batch, seed = record["settings"]["batch_size"], result["seed"]
    counts = ", ".join(f"{n} {kind}" for kind, n in data["rows"].items())
    return [
        f"# {result['method']} on {data['name']}",
        "",
        sentence(result),
        "",
        "| on the test split | accuracy | NLL | ECE | Brier |",
        "|---|---|---|---|---|",
        *(f"| {name} | {' | '.join(cells(metrics))} |" for name, metrics in rows(result)),
        "",
        f"- data: {data['name']} ({counts}; {100 * data['noise']:.0f} % of the training labels wrong on purpose)",
        f"- model: {result['model']}, {result['parameters']} parameters",
        f"- steps: {result['steps']}{took}, batch {batch}, seed {seed}",
        f"- versions: {', '.join(f'{k} {v}' for k, v in record['versions'].items())}",
        "",
    ]


def _loading(folder: str) -> list[str]:
    return [
        "Load the model without the training code:",
        "",
        "```python",
        "from selfdistill.models import load",
        f'model = load("{folder}")',
        "```",
        "",
    ]
