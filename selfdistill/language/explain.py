"""What a recipe for language models is, in words; and what its teacher reads that the student does not."""

from __future__ import annotations

from typing import Any

from ..explain import described
from ..expressions import called
from ..tasks.prompts import Prompts
from .contexts import Nothing, Rollout, difference
from .method import Language
from .recipes import RECIPES


def card(name: str, method: Language | None = None) -> dict[str, Any]:
    """A recipe's docstring and choices as data; of a method that it made, or of what it makes by default."""
    method = method or RECIPES[name]()
    return {
        **described(name, RECIPES[name]),
        "for": "language models",
        "targets": "text",
        "completions": repr(method.source),
        "context": repr(method.context),
        "terms": {name: repr(term) for name, term in method.terms.items()},
        "generations": method.generations,
        "advice": dict(method.advice),
        "cost": {"of_plain": _cost(method)},
    }


def _cost(method: Language) -> float:
    """Passes in units of a step of sft on as many tokens; what sampling takes is not in it."""
    teachers = sum(1 + bool(getattr(t, "contrast", 0)) for t in method.terms.values() if hasattr(t, "teacher"))
    views = len(method.seen()[0])
    return round(views + teachers * views / 3, 3)


def explain(expression: str, method: Language) -> dict[str, Any]:
    """Everything that `selfdistill explain` prints of such a recipe."""
    return {**card(called(expression), method), "expression": expression}


def text(found: dict[str, Any]) -> str:
    """The same for people."""
    advice = ", ".join(f"{name} {value}" for name, value in found["advice"].items())
    lines = [
        found["expression"], found["summary"], "", *("    " + line for line in found["equation"].splitlines()), "",
        *(f"{name:<13}{term}" for name, term in found["terms"].items()),
        f"completions: {found['completions']}",
        f"context:     {found['context']!s:.100}",
        f"settings:    {advice or 'the usual ones'}; {found['generations']} generation(s)",
        f"cost:        {found['cost']['of_plain']:g} x a step of sft(), and sampling",
        f"needs:       {found['needs']}",
        f"source:      {found['source']}",
    ]  # fmt: skip
    return "\n".join(lines)


def example(method: Language, data: Prompts, number: int = 0) -> str:
    """What student and teacher read of one prompt, line by line: + the teacher alone, - the student alone.

    Attempts are made up, one right and one wrong, where the context shows attempts.
    """
    row = data.rows[int(data.labelled[number])]
    right = row.demonstration or row.answer or "(a right attempt)"
    tried = [Rollout(0, (), (), "(a wrong attempt)", 0.0, row.feedback or "(what the checker said of it)"),
             Rollout(0, (), (), right, 1.0)]  # fmt: skip
    writing = getattr(method.source, "context", Nothing())
    shown = method.context if isinstance(writing, Nothing) else writing
    return "\n".join(difference(shown, row, tried, 0))
