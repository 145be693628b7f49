"""What a recipe is, in words: equation, schedules, views, heads, what it costs, and where it comes from."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from typing import Any

from .core import Always, Method
from .methods import recipes
from .step import Clock
from .teachers import Ema, Frozen, PseudoLabels
from .views import Views

_SECTION = re.compile(r"^(Source|Needs): (.+?)(?=\n\n|\n[A-Z][a-z]+: |\Z)", re.MULTILINE | re.DOTALL)


def card(name: str) -> dict[str, Any]:
    """A recipe's docstring as data: signature, summary, equation, needs, source."""
    recipe = recipes()[name]
    text = inspect.getdoc(recipe) or ""
    sections = {key.lower(): " ".join(body.split()) for key, body in _SECTION.findall(text)}
    block = re.search(r"Equation::\n\n((?:    .*\n?|\n)+)", text)
    parameters = inspect.signature(recipe).parameters.values()
    return {
        "name": name,
        "signature": f"{name}({', '.join(f'{p.name}={p.default!r}' for p in parameters)})",
        "summary": text.splitlines()[0],
        "equation": inspect.cleandoc(block.group(1)) if block else "",
        "needs": sections.get("needs", "labelled rows").rstrip("."),
        "source": sections.get("source", ""),
        "cost": cost(recipe()),
        "generations": recipe().generations,
    }


def _rows(views: Views, view: str) -> float:
    """Rows of a view for each row of the batch."""
    look = next(look for look in views.looks if look.name == view)
    return views.ratio if look.rows == "unlabelled" else 1.0


def cost(method: Method) -> dict[str, float]:
    """Sample passes per row of the batch, in the later generations: forward 1 each, backward 2 each forward with graph.

    A frozen teacher counts as one forward; on a view without randomness it is cached, and costs that only once.

    >>> cost(recipes()["plain"]())
    {'forward': 1.0, 'backward': 2.0, 'of_plain': 1.0}
    """
    graded, quiet = method.seen()
    copies = float(getattr(method.prepare, "peers", 1))
    with_graph = sum(_rows(method.views, v) for v in (graded + quiet if method.forward == "fused" else graded))
    without = sum(_rows(method.views, v) for v in quiet) if method.forward == "separate" else 0.0
    teachers = {t.teacher.key(t): _rows(method.views, t.teacher.view or t.view) for t in method.terms.values()
                if isinstance(t.teacher, (Ema, Frozen))}  # fmt: skip
    forward = copies * (with_graph + without) + sum(teachers.values())
    backward = copies * 2.0 * with_graph
    return {"forward": forward, "backward": backward, "of_plain": round((forward + backward) / 3.0, 3)}


def schedule(weight: Any, clock: Clock) -> list[float]:
    """A term's weight at the start, the middle and the end of a generation."""
    values = []
    for share in (0.0, 0.5, 1.0):
        now = replace(clock.at(round(share * (clock.length - 1))))
        values.append(round(weight(now) if callable(weight) else float(weight), 4))
    return values


def terms(method: Method) -> list[dict[str, Any]]:
    """The terms as data: teacher, loss, gate, view, head and weight at 0, 50 and 100 % of the last generation."""
    clock = Clock(method.generations - 1, method.generations, 0, 100, 0, 10)
    return [
        {
            "term": name,
            "teacher": repr(term.teacher),
            "loss": repr(term.loss),
            "gate": "" if isinstance(term.gate, Always) else repr(term.gate),
            "view": term.view,
            "head": term.head,
            "weight": schedule(term.weight, clock),
        }
        for name, term in method.terms.items()
    ]


def explain(expression: str, method: Method) -> dict[str, Any]:
    """Everything `selfdistill explain` prints, for a recipe's expression and the method it gave."""
    name = expression.split("(")[0].strip()
    generations = method.generations
    labelling = any(isinstance(t.teacher, PseudoLabels) for t in method.terms.values())
    return {
        **card(name),
        "expression": expression,
        "terms": terms(method),
        "views": [f"{look.name}: {look.rows} rows, {look.augment} augmentation" for look in method.views.looks],
        "heads": sorted({term.head for term in method.terms.values()}),
        "forward": method.forward,
        "generations": generations,
        "cost": cost(method),
        "cost_note": (
            f"{generations} trainings one after another" if generations > 1 else "one training"
        ) + (", and one forward pass over the pool before each but the first" if labelling else ""),
    }  # fmt: skip


def text(found: dict[str, Any]) -> str:
    """The same for people."""
    lines = [
        found["expression"],
        found["summary"],
        "",
        *("    " + line for line in found["equation"].splitlines()),
        "",
        f"{'term':<12} {'weight at 0, 50, 100 %':<24} teacher, loss, gate",
    ]
    for t in found["terms"]:
        weight = ", ".join(f"{w:g}" for w in t["weight"])
        gate = f", {t['gate']}" if t["gate"] else ""
        lines.append(f"{t['term']:<12} {weight:<24} {t['teacher']}, {t['loss']}{gate}")
        lines.append(f"{'':<12} {'':<24} on view {t['view']!r}, head {t['head']!r}")
    c = found["cost"]
    lines += [
        "",
        "views:       " + ("\n" + " " * 13).join(found["views"]) + f"\n{'':<13}{found['forward']} forward",
        f"heads:       {', '.join(found['heads'])}",
        f"cost:        {c['forward']:g} forward + {c['backward']:g} backward passes a row, {c['of_plain']:g} x plain; {found['cost_note']}",
        f"needs:       {found['needs']}",
        f"source:      {found['source']}",
    ]
    return "\n".join(lines)
