"""The sections of a run's report on its data: doubtful labels, classes, worst errors, and what to do next."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..data import decisions
from ..data.row_cards import PICTURE, RowCard, read_cards
from ..errors import SelfdistillError
from ..evaluation.label_errors import FILE, conflict_lines, conflicts_of, read_label_errors, summary_lines
from ..evaluation.label_noise import LIKELY
from ..evaluation.metrics import MATRIX
from ..evaluation.statistics import share_interval
from ..io.display import plural
from .figures import bars, residuals
from .layout import figure, matrix, paragraph, table
from .summary import score_rows

BASELINES = ("plain", "the learner alone")  # among the models whose predictions a result holds
SHOWN = 48  # rows whose labels look wrong on a page
ASKED = {
    "classify": "Tell {classes} apart",
    "regress": "Predict a number",
    "generate": "Answer prompts",
    "features": "Learn features without labels",
    "control": "Act in an environment",
}

USES = {
    "classify": ("Use the model on new data:", "selfdistill predict {} NEW_DATA --out predictions.csv"),
    "generate": ("Use the model on new prompts:", "selfdistill predict {} NEW_PROMPTS --out answers.jsonl"),
    "features": ("Train a classifier from these features:", "selfdistill run LABELLED_DATA --init {}"),
    "control": ("Let the policy play:", "selfdistill predict {} --episodes 20"),
}


def shown_rows(folder: Path, result: Mapping[str, Any]) -> list[int]:
    """The sample ids of the rows that a page shows: of the most doubtful labels, and of the worst errors."""
    rows = [row["row"] for row in result.get("breakdown", {}).get("worst", [])]
    if (folder / FILE).exists():
        with (folder / FILE).open(encoding="utf-8", newline="") as file:
            rows += [int(row["row"]) for row, _ in zip(csv.DictReader(file), range(SHOWN), strict=False)]
    return sorted({row - 1 for row in rows})


# the first screen -----------------------------------------------------------------------------------------------------


def asked(record: Mapping[str, Any]) -> str:
    """What a run was asked for, in a sentence."""
    data = record["data"]
    names = data["classes"]
    some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    job = ASKED[data["task"]].format(classes=f"{plural(len(names), 'class')} ({some})".replace("classs", "classes"))
    words = {
        "labelled": "teach with their label",
        "unlabelled": "teach without one",
        "audit": "validate",
        "test": "test",
        "clean": "have a label that a person decided",
    }
    order = sorted(data["rows"], key=[*words, *data["rows"]].index)
    counts = [f"{data['rows'][kind]:,} {words.get(kind, kind)}" for kind in order if data["rows"][kind]]
    return (
        f"{job} in {data['name']}: of the rows {', '.join(counts)}. Method {record['method']}, model {record['model']}."
    )


def measured(result: Mapping[str, Any]) -> list[str]:
    """The final model's score with its interval, and how many labels look wrong, a line each."""
    lines, test, rows = [], result.get("test", {}), score_rows(result)
    if rows and "accuracy" in test and "breakdown" in result:
        right = round(test["accuracy"] * rows)
        low, high = share_interval(right, rows)
        lines.append(
            f"The final model is right on {right:,} of {rows:,} test rows: {100 * test['accuracy']:.1f} % (95 % "
            f"interval {100 * low:.1f} to {100 * high:.1f} %)."
        )
    elif rows and "rmse" in test:
        lines.append(
            f"The final model is off by {test['rmse']:.4g} on {rows:,} test rows (RMSE; {test['mae']:.4g} on average)."
        )
    if cross := result.get("cross_fit"):
        lines = [_cross_line(cross, test), cross["about"]]
    errors = result.get("label_errors")
    return lines + (summary_lines(errors) if errors else [])


def _cross_line(cross: Mapping[str, Any], test: Mapping[str, float]) -> str:
    """The cross-fitted score with its interval."""
    share, rows = cross["metric"] == "accuracy", f"{cross['rows']:,} labelled rows"
    ends = (test[cross["metric"]], cross["low"], cross["high"])
    value, low, high = (f"{100 * end:.1f} %" if share else f"{end:.4g}" for end in ends)
    what = f"are right on {value} of {rows}" if share else f"are off by {value} (RMSE) on {rows}"
    return f"Models that did not learn a row {what} (95 % interval {low} to {high})."


def next_steps(record: Mapping[str, Any], result: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    """What to do after a run: words, and the command."""
    place, lines = shlex.quote(str(folder)), []
    likely = likely_errors(result)
    tested = int((result.get("label_errors") or {}).get("likely", 0)) - likely
    if likely:
        more = f" ({tested:,} more are of test rows)" if tested else ""
        minutes = max(1, round(likely / 20))
        lines.append((
            f"Look at the {plural(likely, 'label')} that look wrong{more}, about {plural(minutes, 'minute')} by "
            "keyboard:",
            f"selfdistill review {place}",
        ))  # fmt: skip
        source = Path(record["request"]["data"])
        if source.exists():
            copy = "cleaned" if source.is_dir() else "cleaned.csv"
            command = f"selfdistill label-errors {place} --write {copy}"
            lines.append(("Or write a copy of the data without the rows that look wrong, unseen:", command))
        lines.append(("Train again on the decided labels:", retraining(record, folder / decisions.FILE)))
    if result["data"]["rows"].get("unlabelled"):
        lines.append(("Label the unlabelled rows that would teach most:", f"selfdistill label-next {place} -n 50"))
    words, command = USES.get(result["data"]["task"], USES["classify"])
    return [*lines, (words, command.format(place))]


def likely_errors(result: Mapping[str, Any]) -> int:
    """The number of training and validation labels of a run that look wrong; decisions do not change the test split."""
    splits = (result.get("label_errors") or {}).get("splits", {})
    return sum(int(counts["likely"]) for name, counts in splits.items() if name != "test")


def retraining(record: Mapping[str, Any], file: Path) -> str:
    """The command of a run with the labels that a file decides, into a new folder."""
    request, command = record["request"], record["command"]
    if len(command) < 2 or command[1] not in ("run", "update"):  # another program made the run
        named = {f"--{name}": request.get(name) for name in ("target", "annotators")}
        target = [word for option, column in named.items() if column for word in (option, column)]
        command = ["selfdistill", "run", request["data"], *target]
    kept, rest = list[str](), list(command[1:])
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name in ("--out", "--labels") and not equals and rest:
            value = rest.pop(0)
        if name in ("--out", "--quiet", "--json") or (name == "--labels" and not value.isdecimal()):
            continue
        kept += [word] if equals or name != "--labels" else [word, value]
    return shlex.join(["selfdistill", *kept, "--labels", str(file)])


# rows -----------------------------------------------------------------------------------------------------------------


def cards_of(folder: Path) -> dict[int, RowCard]:
    """The cards of a run's rows; none where they are missing or damaged."""
    try:
        return read_cards(folder)
    except SelfdistillError:
        return {}


def card_list(rows: Sequence[tuple[int, str, str]], cards: Mapping[int, RowCard]) -> str:
    """Rows as a list of cards: the number of each, its headline and what else is said of it."""
    items = []
    for number, headline, more in rows:
        card = cards.get(number, RowCard())
        shown = ""
        if card.picture:
            kind = ' class="pixels"' if card.picture.startswith(PICTURE[0]) else ""
            label = escape(f"row {number}", quote=True)
            shown = f'<img{kind} src="{escape(card.picture, quote=True)}" alt="{label}">'
        if card.text:
            shown += f'<span class="text">{escape(card.text[:400])}{"…" * (len(card.text) > 400)}</span>'
        shown += "".join(f'<span class="cell">{escape(f"{name}: {cell}")}</span>' for name, cell in card.cells[:8])
        items.append(f'<li>{shown}<b>{escape(headline)}</b><br><span class="soft">{escape(more)}</span></li>')
    pictures = any(card.picture for card in cards.values())
    return f'<ul class="cards{"" if pictures else " rows"}">{"".join(items)}</ul>' if items else ""


def doubtful_labels(result: dict[str, Any], folder: Path, cards: Mapping[int, RowCard]) -> list[str]:
    """The labels that are most probably wrong, and equal inputs with different labels."""
    if not result:
        return []
    conflicts = [paragraph(line) for line in conflict_lines(conflicts_of(result, 12))]
    if not result.get("label_errors"):
        return conflicts
    try:
        errors = read_label_errors(folder, SHOWN)
    except SelfdistillError:
        return conflicts
    shown = []
    for label in errors["labels"]:
        if label["score"] > LIKELY:
            sure = "" if label["p_suggested"] is None else f", {100 * label['p_suggested']:.0f} % sure"
            name = f", {'/'.join(Path(label['name']).parts[-2:])}" if label["name"] else ""
            more = f"given: {label['given']}; {label['split']} row {label['row']}{name}"
            shown.append((label["row"], f"{label['suggested']}?{sure}", more))
    count = f"{errors['likely']:,} of {errors['examined']:,} labels look wrong. {FILE} lists all, the worst first."
    tested = errors["splits"].get("test", {}).get("likely", 0)
    if tested:
        count += (
            f" {tested:,} of them are labels of test rows, which `review` leaves out (--test shows them), since "
            "decisions never change the test split."
        )
    return [paragraph(count), card_list(shown, cards), *_noise(errors), *conflicts]


def _noise(errors: Mapping[str, Any]) -> list[str]:
    """Which classes are given for which, by estimate."""
    lines = []
    for one in errors.get("pairs", [])[:10]:
        rate, low, high = (100 * one[name] for name in ("rate", "low", "high"))
        ends = f"{low:.1f} to {high:.1f} %"
        lines += [(one["true"], one["given"], f"{rate:.1f} %", ends, f"{one['rows']:,}")] if one["rows"] else []
    caption = "Estimated: the share of the rows of a true class that have another class as their label."
    head = ("true class", "given as", "share", "95 % interval", "rows")
    return [table(head, lines), paragraph(caption, "soft")] if lines else []


def annotators(result: Mapping[str, Any]) -> list[str]:
    """The annotators, the best one first: how often each is right, and what it says in place of what."""
    panel = (result.get("label_errors") or {}).get("annotators", [])
    lines = []
    for one in sorted(panel, key=lambda one: int(one["rank"])):
        rate, low, high = (100 * one["agreement"][name] for name in ("rate", "low", "high"))
        pairs = [f"{pair['given']} for {pair['true']} ({100 * pair['rate']:.0f} %)" for pair in one["pairs"][:2]]
        ends, most = f"{low:.1f} to {high:.1f} %", ", ".join(pairs) or "-"
        lines.append((str(one["rank"]), one["name"], f"{one['rows']:,}", f"{rate:.1f} %", ends, most))
    head = (
        "rank",
        "annotator",
        "rows",
        "labels that are right",
        "95 % interval",
        "says most often",
    )
    caption = (
        "Estimated from all annotators and the model together. The label that was learnt is the consensus of the "
        "annotators, and the given label elsewhere on this page; run.json has the noise matrix of each one."
    )
    return [table(head, lines), paragraph(caption, "soft")] if lines else []


def worst_errors(result: Mapping[str, Any], cards: Mapping[int, RowCard]) -> list[str]:
    """The test rows on which the final model is most certainly wrong, or farthest off."""
    worst = result.get("breakdown", {}).get("worst", [])
    rows, split = [], "left out" if "cross_fit" in result else "test"
    for row in worst:
        sure = "" if row["confidence"] is None else f", {100 * row['confidence']:.0f} % sure"
        name = f"row {row['row']}" if row["name"] == str(row["row"]) else "/".join(Path(row["name"]).parts[-2:])
        rows.append((row["row"], f"predicted {row['predicted']}{sure}", f"label: {row['label']}; {split}, {name}"))
    who = "Rows on which the model that did not learn them" if split != "test" else "Test rows on which the final model"
    words = f"{who} is most certainly wrong. Some of their labels may be wrong instead."
    if worst and worst[0]["confidence"] is None:
        words = f"{who} is farthest off."
    return [paragraph(words, "soft"), card_list(rows, cards)] if rows else []


# classes, errors of values and columns --------------------------------------------------------------------------------


def classes(result: Mapping[str, Any]) -> list[str]:
    """Precision and recall of each class, and which class is taken for which."""
    found, errors = result.get("breakdown", {}), result.get("label_errors") or {}
    by_class = found.get("by_class", [])
    if not by_class:
        return []
    given = errors.get("matrix", {})
    doubted = dict(
        zip(given.get("classes", []), map(_doubted, given.get("counts", []), range(MATRIX + 1)), strict=False)
    )
    head = ("class", "test rows", "precision", "recall", *(("labels that look wrong",) if doubted else ()))
    lines = [
        [
            one["name"],
            f"{one['rows']:,}",
            _share(one["precision"]),
            _share(one["recall"]),
            *((doubted.get(one["name"], "-"),) if doubted else ()),
        ]
        for one in by_class
    ]
    parts = [table(head, lines)]
    parts.append(
        paragraph(
            "Precision: of the rows that the model calls so, the share that are. Recall: of the rows that are so, the "
            "share that the model finds. A dash: no such row.",
            "soft",
        )
    )
    names = [one["name"] for one in by_class]
    if found.get("confusion") and len(result["data"]["classes"]) == len(found["confusion"]):
        parts.append(matrix(found["confusion"], result["data"]["classes"], "label", "predicted"))
        parts.append(
            paragraph("Test rows by label (down) and prediction (across); a frame marks the right ones.", "soft")
        )
    elif found.get("confused"):
        rows = [(one["label"], one["predicted"], f"{one['rows']:,}") for one in found["confused"]]
        parts.append(table(("label", "taken for", "test rows"), rows))
    if given.get("counts"):
        parts.append(matrix(given["counts"], given["classes"], "given", "suggested"))
        parts.append(
            paragraph("All examined rows by given label (down) and the label that is suggested (across).", "soft")
        )
    return parts if names else []


def _doubted(counts: Sequence[int], place: int) -> str:
    """The share of a class's labels for which another class is suggested."""
    return _share(1 - counts[place] / sum(counts)) if sum(counts) else "-"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def errors_of_values(result: Mapping[str, Any]) -> list[str]:
    """The errors of the final model by its prediction."""
    points = result.get("predicted") or {}
    if not points:
        return []
    own = [name for name in points if name not in BASELINES]
    name = own[0] if own and result.get("chosen") != "plain" else next(iter(points))
    drawing = residuals(points[name], "errors by prediction")
    caption = (
        f"{name}, on up to 300 test rows: a cloud around the line at zero is what to hope for; a slope or a fan is not."
    )
    return [figure(drawing, caption)]


def importance(result: Mapping[str, Any]) -> list[str]:
    """What the final model loses where a column is shuffled."""
    columns = result.get("importance", [])
    if not columns:
        return []
    share = "accuracy" in result["test"]
    unit, scale = ("points worse", 100.0) if share else ("more RMSE", 1.0)
    shown = [
        (one["name"], max(0.0, one["mean"]), f"{scale * one['mean']:.3g} ± {scale * one['deviation']:.2g} {unit}")
        if one["mean"] > 0
        else (one["name"], 0.0, "no worse")
        for one in columns[:20]
    ]
    caption = "How much worse the final model is on test rows with a column shuffled (permutation importance)."
    rest = f" {len(columns) - 20} further columns matter less." if len(columns) > 20 else ""
    return [figure(bars(shown, "importance of columns"), caption + rest)]


def noisy_validation(result: Mapping[str, Any]) -> str:
    """What wrong validation labels mean for the curves of a run; empty where few look wrong."""
    errors = result.get("label_errors") or {}
    split = errors.get("splits", {}).get("validation", {})
    share = split["likely"] / split["examined"] if split.get("examined") else 0.0
    if share < 0.02:
        return ""
    return (
        f"About {100 * share:.0f} % of the validation labels look wrong, so a model that is always right would score "
        f"about {100 * (1 - share):.0f} % here. A curve that falls at its end may be learning wrong labels: compare "
        "curves, not levels."
    )
