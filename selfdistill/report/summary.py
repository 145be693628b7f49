"""The summary of a run: a table for the terminal, a sentence, and the README files of its folder and its model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..data.copies import notices
from ..io.display import change, markdown
from ..training.shortlist import WORDS
from ..training.task_type import FigureTable, Rows, TaskType

#: The metrics that are shown, by task, and their names.
COLUMNS = {
    "classify": {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE", "brier": "Brier"},
    "generate": {
        "accuracy": "right",
        "nll": "NLL",
        "kept": "prior tasks right",
        "tasks": "lm-eval",
        "length": "tokens",
    },
    "regress": {"rmse": "RMSE", "mae": "MAE", "r2": "R2", "coverage": "coverage of 90 %"},
    "features": {},
    "control": {
        "return": "return",
        "half": "±",
        "iqm": "IQM",
        "env_steps": "steps",
        "teacher_steps": "teacher's steps",
        "updates": "gradient steps",
    },
}


#: Those of a stream of tasks, of an update, and of an adaptation.
STREAM = {
    "task_incremental": "within a task",
    "old": "old classes",
    "new": "new rows",
    "forgetting": "forgetting",
    "backward": "backward transfer",
    "forward": "forward transfer",
    "domains": "all domains",
}


AUDIT = "An audit tests on validation rows whether a generation of the model may teach the next one."


def score_rows(result: Mapping[str, Any]) -> int:
    """The rows that scores are of: those of the test split, or all labelled ones where scores are cross-fitted."""
    cross = result.get("cross_fit")
    return int(cross["rows"] if cross else result["data"]["rows"].get("test") or 0)


def score_place(result: Mapping[str, Any], unit: str = "rows") -> str:
    """What scores are of, in words."""
    if "cross_fit" in result:
        return "cross-fitted, on all labelled rows"
    return f"on the test {'split' if unit == 'rows' else unit}"


def rows(result: dict[str, Any], task: TaskType) -> Rows:
    """The rows (name, metrics on the test split) of a run's table; empty if no row of the data has a label."""
    if not COLUMNS[result["data"]["task"]]:
        return []
    apart = result.get("without_copies", {})
    names = {"plain": task.baseline(result), "before": "the model before", "test": "the final model"}
    copies = [(f"{name}, on {apart['rows']} rows without copies", apart[k]) for k, name in names.items() if k in apart]
    return [*task.rows(result), *copies]


def ensemble_name(ensemble: dict[str, Any]) -> str:
    """The name of an ensemble."""
    return (
        f"mean of {ensemble['peers']} peers"
        if "peers" in ensemble
        else f"mean of {len(ensemble['generations'])} generations"
    )


def columns(table: Rows, kind: str) -> dict[str, str]:
    """The names of the metrics that at least one row of a table has."""
    present = {key for _, metrics in table for key, value in metrics.items() if value is not None}
    return {key: name for key, name in (COLUMNS[kind] | STREAM).items() if key in present}


def table(result: dict[str, Any], task: TaskType) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The table of a run: the names of its metrics, and the rows with their figures as text."""
    lines = rows(result, task)
    names = columns(lines, result["data"]["task"])
    return list(names.values()), [(name, cells(metrics, list(names))) for name, metrics in lines]


def cells(metrics: dict[str, float], columns: Sequence[str] | None = None) -> list[str]:
    """The cells of a row: accuracy and coverage in per cent, errors of values with four digits, others with three
    decimals; of `columns`, by default all of the task."""
    kind = "generate" if "length" in metrics else "classify" if "accuracy" in metrics else "regress"
    return [_cell(key, metrics.get(key)) for key in (COLUMNS[kind] if columns is None else columns)]


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name in ("length", "env_steps", "teacher_steps", "updates"):
        return f"{value:,.0f}"
    if name in ("return", "half", "iqm"):
        return f"{value:,.1f}"
    if name in ("accuracy", "coverage", "kept", "tasks", *STREAM):
        return f"{100 * value:.1f} %"
    if name in ("rmse", "mae"):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:#.4g}".rstrip(".")
    return f"{value:.3f}"


def sentence(result: dict[str, Any], task: TaskType) -> str:
    """The outcome of one run as a sentence, which says that one seed is an anecdote."""
    if verdict := task.verdict(result):
        return _choice(result) + verdict
    if not COLUMNS[result["data"]["task"]]:
        return (
            f"No row of {result['data']['name']} has a label, so nothing was scored or validated, and the last weights "
            "are the final model: `selfdistill run LABELLED --init RUN` trains on labels from them."
        )
    plain, metric = result.get("plain"), next(iter(COLUMNS[result["data"]["task"]].values()))
    nearest = result.get("nearest")
    nearest = (
        f" A nearest-neighbour classifier on features scores {100 * nearest:.1f} %." if nearest is not None else ""
    )
    if not plain or plain["from"] == "method":
        place = score_place(result)
        score = f"{metric[0].upper()}{metric[1:]} {place}: {cells(result['test'])[0]}.{nearest}"
        return _choice(result) + score
    plain_chosen = result.get("chosen") == "plain"
    metrics = result["generations"][result["final_generation"]]["test"] if plain_chosen else result["test"]
    gains = [_gain(metrics, plain[k]) for k in ("end", "early_stopped") if plain.get(k)]
    final = " The final model is the baseline, which has the lower validation loss." if plain_chosen else ""
    repeated = len(result["generations"]) > 1 or bool((result.get("folds") or {}).get("decisions"))
    first_kept = repeated and result.get("final_generation") == 0
    subject = "Generation 0 (no later one was accepted)" if first_kept else "Self-distillation"
    if result.get("probed"):
        subject = "A linear probe on self-supervised features"
    early = f"; against the baseline with early stopping: {gains[1]}" if len(gains) > 1 else ""
    equal = " at equal steps" if task.equal_steps else ""
    return _choice(result) + (
        f"{subject} against {task.baseline(result)}: {gains[0]}{equal}{early}.{nearest}{final} One seed "
        "proves little; repeat with other --seed values, or use `selfdistill compare`."
    )


def _gain(metrics: dict[str, float], reference: dict[str, float]) -> str:
    """The difference of accuracy in points, or of the root mean squared error in per cent, in words."""
    if "accuracy" in metrics:
        return change(100 * (metrics["accuracy"] - reference["accuracy"]), " points")
    if not reference["rmse"]:
        return "no error to compare with"
    return f"RMSE {change(100 * (metrics['rmse'] / reference['rmse'] - 1), ' %', falls=True)}"


def readme(result: dict[str, Any], record: dict[str, Any], task: TaskType) -> str:
    """The run folder's README."""
    return "\n".join([*_facts(result, record, task, f" in {result['seconds']} s"), *task.loading("model")])


def model_card_text(result: dict[str, Any], record: dict[str, Any], task: TaskType) -> str:
    """The model card: the facts of the run, the audit's decisions, and the limits of the model."""
    data = result["data"]
    tested = "and tested " if rows(result, task) else ""
    decisions = [_prose(f"- {g['decision']['why']}") for g in result["generations"] if g.get("decision")]
    audited = task.audited and bool(decisions)
    decisions = decisions if task.audited else ["- Nothing audits the training; the last weights are the result of it."]
    lines = [
        "---",
        *(f"{name}: {value}" for name, value in task.card_fields(result, record).items()),
        f"tags: [self-distillation, {data['task']}]",
        f"metrics: [{', '.join(list(COLUMNS[data['task']])[:1])}]",
        "---",
        "",
        *_facts(result, record, task),
        "## Audit",
        "",
        *([AUDIT, ""] if audited else []),
        *decisions,
        "",
        "## Limits",
        "",
        f"Trained {tested}on {markdown(data['name'])} alone, with one seed: its scores on other data are unknown."
        + (f" Classes: {', '.join(map(markdown, data['classes']))}." if data["classes"] else ""),
        "",
        *task.loading("."),
    ]
    return "\n".join(lines)


def _facts(result: dict[str, Any], record: dict[str, Any], task: TaskType, time: str = "") -> list[str]:
    """The facts of a run; without ``time``, equal runs give equal text."""
    data, name = result["data"], markdown(result["data"]["name"])
    return [
        f"# {markdown(result['method'])} on {name}",
        "",
        _prose(sentence(result, task)),
        "",
        *_tested(result, task),
        *_tried(result),
        *(f"- {markdown(line)}" for line in notices(data["name"], data)),
        f"- data: {name} ({task.data_line(data)})",
        *map(_prose, [*task.size(result, record, time), *together(result), *budget_lines(result)]),
        f"- versions: {', '.join(f'{k} {v}' for k, v in record['versions'].items())}",
        "",
    ]


def exploration(result: dict[str, Any]) -> dict[str, Any] | None:
    """What a run spent on trying, and on the trainings that the final model came from; None where nothing was tried.

    Trying are the trials of a search, candidates that were not chosen, folds, and generations after the final one; a
    generation counts for an equal share of its training.

    >>> passes = {"forward": 10, "backward": 10, "teacher": 0}
    >>> exploration({"passes": passes, "generations": [{}, {}, {}], "final_generation": 1, "chosen": "method"})
    {'unit': 'passes', 'trying': 10.0, 'winner': 20.0}
    """
    if "passes" not in result or "generations" not in result:
        return None
    whole, tried = _passes(result), [one for one in result.get("auto", {}).get("tried", []) if not one["chosen"]]
    trying = float(result.get("search", {}).get("passes", 0.0)) + math.fsum(one["passes"] for one in tried)
    trying += _passes(result["folds"]) if result.get("folds") else 0.0
    number = len(result["generations"])
    if tried:
        winner = whole - math.fsum(one["passes"] for one in tried)
    elif result.get("chosen") == "plain" and result.get("plain", {}).get("passes"):
        winner, trying = _passes(result["plain"]), trying + whole
    else:
        later = whole * (number - 1 - max(0, result["final_generation"])) / number
        winner, trying = whole - later, trying + later
    return {"unit": "passes", "trying": trying, "winner": winner} if trying else None


def _passes(training: dict[str, Any]) -> float:
    passes = training["passes"]
    return float(passes["forward"] + 2 * passes["backward"] + passes["teacher"])


def exploration_lines(result: dict[str, Any]) -> list[str]:
    """The shares of trying and of the winner as a line; none where nothing was tried.

    >>> exploration_lines({"exploration": {"unit": "passes", "trying": 30.0, "winner": 10.0}})
    ['- exploration: 75 % of the passes tried something out, 25 % trained the final model']
    """
    spent = result.get("exploration")
    if not spent:
        return []
    share = 100 * spent["trying"] / max(1e-9, spent["trying"] + spent["winner"])
    kept = f"{100 - share:.0f} % trained the final model"
    return [f"- exploration: {share:.0f} % of the {spent['unit']} tried something out, {kept}"]


def budget_lines(result: dict[str, Any]) -> list[str]:
    """The bounds of a run, what it spent, what they cut, and the share of trying, a line each.

    >>> spent = {"bound": "10min", "seconds": 61.5, "passes": 20000.0, "peak_mib": 410.0, "cut": ["3 steps"]}
    >>> budget_lines({"budget": spent})
    ['- budget 10min: 61.5 s, 20,000 passes and at most 410 MiB were spent', '- cut by the budget: 3 steps']
    """
    budget, explored = result.get("budget"), exploration_lines(result)
    if cross := result.get("cross_fit"):
        explored.append(f"- {cross['about']}")
    if (refit := result.get("refit")) and not cross:
        explored.append(f"- {refit['about']}")
    if not budget:
        return explored
    spent = f"{budget['seconds']:,.1f} s, {budget['passes']:,.0f} passes and at most {budget['peak_mib']:,.0f} MiB"
    cut = [f"- cut by the budget: {line}" for line in budget["cut"]] or ["- the budget cut nothing"]
    return [f"- budget {budget['bound']}: {spent} were spent", *cut, *explored]


def _prose(line: str) -> str:
    """A line of our own words as Markdown, in which a name that a file gave is no markup."""
    return markdown(line, kept="`")


def _tested(result: dict[str, Any], task: TaskType) -> list[str]:
    """The table of a run as Markdown."""
    names, lines = table(result, task)
    if not names:
        return []
    head = [f"| {score_place(result)} | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    return [*head, *(f"| {markdown(name)} | {' | '.join(figures)} |" for name, figures in lines), ""]


def trials(result: dict[str, Any]) -> FigureTable | None:
    """The candidates of ``auto()`` with their validation scores and costs; None where nothing was chosen so."""
    auto = result.get("auto")
    if not auto:
        return None
    share, spent = auto["measure"] == "accuracy", any(trial["steps"] for trial in auto["tried"])
    rows = [
        [
            f"{trial['method']}{', chosen' if trial['chosen'] else ''}",
            _cell("accuracy" if share else auto["measure"], trial["score"]),
            _against_first(trial["gain"], share),
            str(trial["rows"]),
            *_spent(trial, spent),
        ]
        for trial in auto["tried"]
    ]
    last = ("passes", "seconds") if spent else ("about",)
    head = ("candidate", f"validation {WORDS[auto['measure']]}", "against the first", "rows", *last)
    notes = [f"{auto['why']}.", *(f"Not tried: {line}." for line in auto["left_out"])]
    return FigureTable("Candidates of auto()", head, rows, " ".join(notes)[:1].upper() + " ".join(notes)[1:])


def _against_first(gain: float | None, share: bool) -> str:
    """A candidate's score against that of the first one: points, or an error, which falls."""
    if gain is None:
        return "-"
    return change(100 * gain) if share else change(gain, digits=".4g", falls=True)


def _spent(trial: dict[str, Any], spent: bool) -> tuple[str, ...]:
    """What a candidate took; of learners, which are trained once for several candidates, what it is."""
    if not spent:
        outcome = "" if trial["outcome"] in ("", "product") else f"; {trial['outcome']}"
        return (f"{trial['about']}{outcome}",)
    return (f"{trial['passes']:,.0f}", f"{trial['seconds']:.1f}") if trial["steps"] else ("-", "-")


def _choice(result: dict[str, Any]) -> str:
    """The outcome of ``auto()`` as a sentence before the others; empty for other methods."""
    auto = result.get("auto")
    if not auto:
        return ""
    count, first = len(auto["tried"]), auto["tried"][0]
    if first["chosen"]:
        return f"auto(): nothing helps; {first['method']} is the final model: {auto['why']} (of {count}). "
    chosen = next(trial["method"] for trial in auto["tried"] if trial["chosen"])
    return f"auto() chose {chosen} of {count} candidates: {auto['why']}. "


def _tried(result: dict[str, Any]) -> list[str]:
    """The candidates of ``auto()`` as Markdown."""
    table = trials(result)
    if table is None:
        return []
    lines = [f"| {' | '.join(table.head)} |", "|---" * len(table.head) + "|"]
    return [*lines, *(f"| {' | '.join(map(_prose, row))} |" for row in table.rows), "", _prose(table.caption), ""]


def together(result: dict[str, Any]) -> list[str]:
    """The gain of an ensemble, the share of it that the single model keeps, and the disagreement of its members."""
    ensemble = result.get("ensemble")
    if not ensemble:
        return []
    line = f"- {ensemble_name(ensemble)}: {_gain(ensemble['test'], ensemble['single'])} against the single model"
    if ensemble.get("kept") is not None:
        line += f", which keeps {100 * ensemble['kept']:.0f} % of the gain over plain"
    disagreement = ensemble.get("disagreement")
    return [
        line + ("" if disagreement is None else f"; two of them differ on {100 * disagreement:.1f} % of the test rows")
    ]
