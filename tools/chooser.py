"""The measured part of docs/choose.md: by setting, the recipes that beat the best baseline of the benchmark."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

#: the settings that a chooser needs, and how a reader calls them
SETTINGS = {
    "digits-noise": "Wrong labels",
    "digits-50": "50 labels",
    "digits-100": "100 labels",
    "digits-250": "250 labels",
    "digits-all": "All labels right",
}
MOST = 5


class Row(NamedTuple):
    """A recipe in the table of one setting, in the words of the benchmark."""

    recipe: str
    accuracy: str
    to_plain: str
    to_best: str
    verdict: str


def setting_text(benchmark: str, setting: str) -> str:
    """The section of the benchmark's page on one setting."""
    return benchmark.partition(f"\n## {setting}\n")[2].partition("\n## ")[0]


def rows(section: str) -> list[Row]:
    """The recipes of a setting's table, the best first; baselines are left out.

    >>> rows("| `elr()` | 97.2 | +9 ± 1 | BEATS | 0.1 | +4 ± 1 | TIES | 0.1 | 9 | 9 | 9 | 10 | `command` |  |")
    [Row(recipe='elr()', accuracy='97.2', to_plain='+9 ± 1', to_best='+4 ± 1', verdict='TIES')]
    """
    found = list[Row]()
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) > 12 and cells[6] in {"BEATS", "TIES", "LOSES"}:
            recipe = cells[0].strip("`")
            found.append(Row(recipe, cells[1], cells[2], cells[5], cells[6]))
    return sorted(found, key=lambda row: -float(row.accuracy))


def cost(card: Mapping[str, Any]) -> str:
    """What a step of a recipe costs in plain ones, and its trainings.

    >>> cost({"cost": {"of_plain": 1.333}, "generations": 2})
    '1.333 x a plain step, 2 trainings'
    """
    several = card["generations"]
    return f"{card['cost']['of_plain']:g} x a plain step, {several} training{'s' if several > 1 else ''}"


def best_baseline(section: str) -> str:
    """The baseline that is best on the validation rows of a setting."""
    (name,) = re.findall(r"The best control, by mean accuracy on the audit split, is `([^`]*)`", section)
    return str(name)


def setting_block(section: str, setting: str, cards: Mapping[str, Mapping[str, Any]]) -> str:
    """A heading, what was measured, and a table of the recipes that beat the best baseline."""
    every = rows(section)
    winners = [row for row in every if row.verdict == "BEATS"]
    about = section.strip().splitlines()[0]
    lines = [f"### {SETTINGS[setting]}", "", about, ""]
    counts = {verdict: sum(row.verdict == verdict for row in every) for verdict in ("BEATS", "TIES", "LOSES")}
    lines += [
        f"The best baseline is `{best_baseline(section)}`. Of {len(every)} recipes {counts['BEATS']} beat it, "
        f"{counts['TIES']} are not told from it, and {counts['LOSES']} are worse.",
        "",
    ]
    if not winners:
        return "\n".join(lines)
    lines += [f"Command: `selfdistill benchmark methods --settings {setting}`", ""]
    lines += ["| recipe | accuracy | to `plain()` | to the best baseline | cost |", "|---|---|---|---|---|"]
    for row in winners[:MOST]:
        card = cards[row.recipe.partition("(")[0]]
        link = f"[`{row.recipe}`](methods.md#{card['name']})"
        lines.append(f"| {link} | {row.accuracy} | {row.to_plain} | {row.to_best} | {cost(card)} |")
    return "\n".join([*lines, ""])


def measured(benchmark: str, cards: Sequence[Mapping[str, Any]]) -> str:
    """All settings of the chooser.

    Args:
        benchmark: The page docs/benchmark.md.
        cards: The cards of the recipes.

    Returns:
        The text between the marks of docs/choose.md.
    """
    by_name = {str(card["name"]): card for card in cards}
    blocks = [setting_block(setting_text(benchmark, name), name, by_name) for name in SETTINGS]
    head = (
        "## What was measured\n\nFrom the [benchmark](benchmark.md): nothing is tuned, and all rows of a setting "
        "spend as many sample passes. Accuracy\nand differences are in points, mean over the seeds ± half of the 95 % "
        "interval; verdicts are corrected for the number of\nrecipes. "
        f"Shown are the {MOST} most accurate recipes that beat the best baseline.\n"
    )
    return "\n".join([head, *blocks])
