"""What a run says at its end: a table for the terminal, and the README of its folder."""

from __future__ import annotations

import itertools
from typing import Any

from ..evaluation.statistics import FEWEST

#: The metrics that are shown, by task, and their names.
COLUMNS = {
    "classify": {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE", "brier": "Brier"},
    "generate": {"accuracy": "right", "nll": "NLL", "kept": "prior tasks right", "length": "tokens"},
    "regress": {"rmse": "RMSE", "mae": "MAE", "r2": "R2", "coverage": "coverage of 90 %"},
    "features": {},
}


def rows(result: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """What was compared, on the test split: (name, metrics); nothing where no row has a label."""
    if not COLUMNS[result["data"]["task"]]:
        return []
    table: list[tuple[str, dict[str, float]]] = []
    plain = result.get("plain")
    if speaks(result):
        return _spoken(result)
    if plain:
        chosen = ", the product" if result.get("chosen") == "plain" else ""
        alone = f"{result['model']} alone" if is_learner(result) else f"plain, after {plain['steps']} steps{chosen}"
        table.append((alone, plain["end"]))
        if stopped := plain.get("early_stopped"):
            table.append((f"plain, stopped early (epoch {stopped['epoch'] + 1})", stopped))
    if plain and plain["from"] == "itself":
        return table
    if is_learner(result):
        return [*table, (f"{result['method']}, {_called(result, {'generation': result['product']})}", result["test"])]
    generations = result["generations"]
    for g in generations:
        name = result["method"] if len(generations) == 1 else f"{result['method']}, {_called(result, g)}"
        table.append((name, g["test"]))
    if whole := result.get("ensemble"):
        table.append((_mean(whole), whole["test"]))
    return table


def speaks(result: dict[str, Any]) -> bool:
    """Was a language model trained?"""
    return result.get("kind") == "language"


def _spoken(result: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """The model before, the control, and the generations."""
    name = f"{result['model']}, before" + (", the product" if result["product"] < 0 else "")
    table = [(name, result["before"])]
    if plain := result.get("plain"):
        table.append((f"sft(), after {plain['steps']} steps", plain["end"]))
    return table + [(f"{result['method']}, {_called(result, g)}", g["test"]) for g in result["generations"]]


def _verdicts(result: dict[str, Any]) -> str:
    """What a language model's run shows, on the test prompts and on prior tasks."""
    said = []
    for name, part in itertools.product(("before", "sft"), ("test", "kept")):
        if found := result["against"].get(name, {}).get(part):  # in this order: a record on disk is sorted by name
            unit, scale = (" nats", 1) if part == "test" and "nll" in result["test"] else (" points", 100)
            than = "the model before" if name == "before" else "sft() at equal steps"
            than += " on prior tasks" if part == "kept" else ""
            gain = f"{scale * found['gain']:+.3g}"
            if found["verdict"] is None:
                count = f"{found['rows']} prompt{'' if found['rows'] == 1 else 's'}"
                said.append(f"has no verdict against {than}: {gain}{unit} over {count}, and at least {FEWEST} show one")
            else:
                won = "LOSES to" if found["verdict"] == "LOSES" else found["verdict"]
                said.append(f"{won} {than} by {gain} ± {scale * found['half']:.2g}{unit}")
    kept = " The audit keeps the model it started from, so that is the product." if result["product"] < 0 else ""
    trouble = f" {result['trouble']}." if result.get("trouble") else ""
    return (
        f"The product {'; '.join(said)} (over {result['data']['rows']['test']} test prompts).{kept}{trouble} One seed "
        "is an anecdote; repeat with other --seed values before you believe it."
    )


def _mean(whole: dict[str, Any]) -> str:
    """What an ensemble is the mean of."""
    return f"mean of {whole['peers']} peers" if "peers" in whole else f"mean of {len(whole['generations'])} generations"


def is_learner(result: dict[str, Any]) -> bool:
    """Was a learner of scikit-learn trained, and no network?"""
    return result.get("kind") == "learner"


def _called(result: dict[str, Any], generation: dict[str, Any]) -> str:
    """A generation's number, and what the audit made of it."""
    number = generation["generation"]
    if number == result.get("product") and result.get("chosen") != "plain":
        return f"generation {number}, the product"
    rolled_back = not generation.get("decision", {}).get("accepted", True)
    return f"generation {number}{', rolled back' if rolled_back else ''}"


def head(result: dict[str, Any]) -> list[str]:
    """The names of the metrics in `cells`."""
    return [COLUMNS[result["data"]["task"]][key] for key in _columns(result)]


def _columns(result: dict[str, Any]) -> list[str]:
    """The metrics that any row of the table has: a column without a figure says nothing."""
    known = {key for _, metrics in rows(result) for key, value in metrics.items() if value is not None}
    return [key for key in COLUMNS[result["data"]["task"]] if key in known]


def cells(metrics: dict[str, float], result: dict[str, Any] | None = None) -> list[str]:
    """Accuracy and coverage in per cent, errors of values in four digits, the rest in three after the point; of a
    ``result`` the columns that its table has."""
    task = "generate" if "length" in metrics else "classify" if "accuracy" in metrics else "regress"
    return [_cell(key, metrics.get(key)) for key in (COLUMNS[task] if result is None else _columns(result))]


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name == "length":
        return f"{value:.0f}"
    if name in ("accuracy", "coverage", "kept"):
        return f"{100 * value:.1f} %"
    if name in ("rmse", "mae"):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:#.4g}".rstrip(".")
    return f"{value:.3f}"


def sentence(result: dict[str, Any]) -> str:
    """One run's outcome in words. One seed is an anecdote and is called one."""
    if speaks(result):
        return _verdicts(result)
    if not COLUMNS[result["data"]["task"]]:
        return (
            f"No row of {result['data']['name']} has a label, so nothing was scored or audited, and the last weights "
            "are the product: `selfdistill run LABELLED --init RUN` learns classes or values from their layers."
        )
    plain, first = result.get("plain"), next(iter(COLUMNS[result["data"]["task"]].values()))
    near = result.get("nearest")
    near = f" The nearest rows by its features are right in {100 * near:.1f} %." if near is not None else ""
    if not plain or plain["from"] == "itself":
        return f"{first[0].upper()}{first[1:]} on the test split: {cells(result['test'])[0]}.{near}"
    plainly = result.get("chosen") == "plain"
    ours = result["generations"][result["product"]]["test"] if plainly else result["test"]
    against = f"{result['model']} alone" if is_learner(result) else "plain"
    gains = [_gain(ours, plain[k]) for k in ("end", "early_stopped") if plain.get(k)]
    kept = " The audit prefers the plain model, so that is the product." if plainly else ""
    several = len(result["generations"]) > 1 or bool((result.get("folds") or {}).get("decisions"))
    first_kept = several and result.get("product") == 0
    what = "Generation 0, which the audit keeps and no earlier one taught," if first_kept else "Self-distilled"
    if result.get("probed"):
        what = "A linear probe of features that no label has taught"
    stopped = f", {gains[1].removesuffix(' points')} against the plain model stopped early" if len(gains) > 1 else ""
    equal = "" if is_learner(result) else " at equal steps"
    return (
        f"{what} against {against}: {gains[0]}{equal}{stopped}.{near}{kept} One seed is an anecdote; repeat with other "
        "--seed values before you believe it."
    )


def _gain(ours: dict[str, float], theirs: dict[str, float]) -> str:
    """Points of accuracy, or the change of the root mean squared error in per cent, which is better below 0."""
    if "accuracy" in ours:
        return f"{100 * (ours['accuracy'] - theirs['accuracy']):+.1f} points"
    return f"{100 * (ours['rmse'] / theirs['rmse'] - 1):+.1f} % RMSE" if theirs["rmse"] else "no error to compare with"


def readme(result: dict[str, Any], record: dict[str, Any]) -> str:
    """The run folder's README."""
    return "\n".join([*_facts(result, record, f" in {result['seconds']} s"), *_loading("model", result)])


def model_card_text(result: dict[str, Any], record: dict[str, Any]) -> str:
    """The README of the model's own folder: the same facts, the audit's decisions, and what it is not fit for."""
    data = result["data"]
    decisions = [g["decision"]["why"] for g in result["generations"] if g.get("decision")]
    lines = [
        "---", "library_name: selfdistill", f"tags: [self-distillation, {data['task']}]",
        f"metrics: [{', '.join(list(COLUMNS[data['task']])[:1])}]", "---",
        "", *_facts(result, record), "## Audit", "", *(f"- {why}" for why in decisions), "", "## Limits", "",
        f"Trained {'and tested ' * bool(head(result))}on {data['name']} alone, with one seed: on other data nothing is "
        "known of it."
        + (f" Classes: {', '.join(map(str, data['classes']))}." if data["classes"] else ""),
        "", *_loading(".", result),
    ]  # fmt: skip
    return "\n".join(lines)


def _facts(result: dict[str, Any], record: dict[str, Any], took: str = "") -> list[str]:
    """Without ``took``, equal runs tell it in equal words."""
    data = result["data"]
    counts, noise = ", ".join(f"{n} {kind}" for kind, n in data["rows"].items()), 100 * data["noise"]
    return [
        f"# {result['method']} on {data['name']}",
        "",
        sentence(result),
        "",
        *_tested(result),
        f"- data: {data['name']} ({counts}; {noise:.0f} % of the training and audit labels wrong on purpose)",
        *_trained(result, record, took),
        *together(result),
        f"- versions: {', '.join(f'{k} {v}' for k, v in record['versions'].items())}",
        "",
    ]


def _tested(result: dict[str, Any]) -> list[str]:
    """The table of `rows`."""
    names = head(result)
    if not names:
        return []
    lines = [f"| on the test split | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    return [*lines, *(f"| {name} | {' | '.join(cells(metrics, result))} |" for name, metrics in rows(result)), ""]


def together(result: dict[str, Any]) -> list[str]:
    """What an ensemble gains, how much of it the single model keeps, and how far its members differ."""
    whole = result.get("ensemble")
    if not whole:
        return []
    said = f"- {_mean(whole)}: {_gain(whole['test'], whole['single'])} against the single model"
    if whole.get("kept") is not None:
        said += f", which keeps {100 * whole['kept']:.0f} % of the gain over plain"
    differ = whole.get("disagreement")
    return [said + ("" if differ is None else f"; two of them differ on {100 * differ:.1f} % of the test rows")]


def _trained(result: dict[str, Any], record: dict[str, Any], took: str) -> list[str]:
    if is_learner(result):
        return [f"- model: {result['model']}", f"- trainings: {result['steps']}{took}, seed {result['seed']}"]
    return [
        f"- model: {result['model']}, {result['parameters']} parameters",
        f"- steps: {result['steps']}{took}, batch {record['settings']['batch_size']}, seed {result['seed']}",
    ]


def _loading(folder: str, result: dict[str, Any]) -> list[str]:
    learner = is_learner(result)
    if speaks(result):
        return [
            "Load the model by transformers alone:", "", "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            f'model = AutoModelForCausalLM.from_pretrained("{folder}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{folder}")', "```", "",
        ]  # fmt: skip
    loader, file = ("estimators", f"{folder}/estimator.skops") if learner else ("models", folder)
    return [
        "Load the model without the training code:",
        "",
        "```python",
        f"from selfdistill.{loader} import load",
        f'model = load("{file}")',
        *(
            ["model.predict(frame)  # the columns without the target, in their order; classes by name"]
            if learner
            else []
        ),
        "```",
        "",
    ]
