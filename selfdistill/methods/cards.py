"""The card of a recipe: its equation, arguments, schedules, views, heads, cost, source, and its code on one page."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..core.mixing import BETWEEN, MIXED
from ..core.objective import Method
from ..core.outputs import MAIN, space_of
from ..core.parts import BaseTerm
from ..core.regression import of_values
from ..core.step import TrainingClock
from ..errors import SpaceError
from ..io.expressions import expression_name
from ..teachers.cached import fixed_views
from ..views import USUAL_STEPS, View, Views
from .registry import recipes
from .validate import check_method

_SECTION = re.compile(r"^(Source|Needs|Departs): (.+?)(?=\n\n|\n[A-Z][a-z]+: |\Z)", re.MULTILINE | re.DOTALL)
_BLOCK = r"^{}\n+((?:    .*\n?|\n)+)"  # a heading and the indented lines below it
_ARGUMENT = re.compile(r"^(\w+(?:, \w+)*): (.+?)(?=\n\w+(?:, \w+)*: |\Z)", re.MULTILINE | re.DOTALL)


def card(name: str) -> dict[str, Any]:
    """A recipe's card: its docstring by section (`describe`), its kinds of targets, and its cost."""
    method = recipes()[name]()
    return {
        **describe(name, recipes()[name]),
        "targets": targets(method),
        "for": "networks",
        "cost": cost(method),
        "generations": method.generations,
    }


def describe(name: str, recipe: Callable[..., Any]) -> dict[str, Any]:
    """A recipe's signature and docstring as data.

    Args:
        name: The recipe's name.
        recipe: The function; its docstring has the sections that `selfdistill.methods` lists.

    Returns:
        Signature, summary, equation, arguments (a description of each), needs, departs and source; a section that
        the docstring lacks is empty.

    >>> describe("elr", recipes()["elr"])["signature"]
    'elr(weight=3.0, decay=0.7)'
    """
    text = inspect.getdoc(recipe) or ""
    sections = {key.lower(): " ".join(body.split()) for key, body in _SECTION.findall(text)}
    parameters = inspect.signature(recipe).parameters.values()
    return {
        "name": name,
        "signature": f"{name}({', '.join(f'{p.name}={p.default!r}' for p in parameters)})",
        "summary": text.splitlines()[0],
        "equation": _block(text, "Equation::"),
        "arguments": {
            key: " ".join(about.split())
            for keys, about in _ARGUMENT.findall(_block(text, "Args:"))
            for key in keys.split(", ")
        },
        "needs": sections.get("needs", "labelled rows").rstrip("."),
        "departs": sections.get("departs", ""),
        "source": sections.get("source", ""),
    }


def _block(text: str, heading: str) -> str:
    """The indented lines below a heading of a docstring; empty if it has none."""
    match = re.search(_BLOCK.format(heading), text, re.MULTILINE)
    return inspect.cleandoc(match.group(1)) if match else ""


def code(name: str, recipe: Callable[..., Any]) -> dict[str, str | None]:
    """A recipe's source and its oracle: the whole algorithm on one page.

    Args:
        name: The recipe's name.
        recipe: The function.

    Returns:
        ``recipe``, the source of the recipe and of the functions of this package's recipes that it calls, without
        docstrings; and ``oracle``, the same method as a plain training loop, or None if there is none yet.
    """
    sources = [_without_docstring(function) for function in _with_helpers(recipe)]
    oracle = _oracle_path(name, recipe)
    return {
        "recipe": "\n\n\n".join(source.strip() for source in sources) + "\n",
        "oracle": None if oracle is None else oracle.read_text(encoding="utf-8"),
    }


def code_text(name: str, recipe: Callable[..., Any]) -> str:
    """The page of `code` as text."""
    pages, description = code(name, recipe), describe(name, recipe)
    page = [
        description["signature"],
        description["summary"],
        "",
        *("    " + line for line in description["equation"].splitlines()),
    ]
    page += ["", f"The recipe, of {recipe.__module__}:", "", str(pages["recipe"]).rstrip(), ""]
    if pages["oracle"] is None:
        return "\n".join([*page, f"There is no oracle page of {name} yet, the same method as a plain training loop."])
    page += [
        "The same method as a plain training loop, its oracle. It shares no code with the recipe: ``run`` is part of",
        "the tests and gives it the weights and batches of a real run; a test compares losses and final weights.",
    ]
    return "\n".join([*page, "", pages["oracle"].rstrip()])


def _oracle_path(name: str, recipe: Callable[..., Any]) -> Path | None:
    """The path of a recipe's oracle, in an installed package or in a checkout; None if there is none."""
    folder = recipe.__module__.removeprefix("selfdistill.").split(".")[0]  # these have folders of their own
    packaged, checkout = Path(__file__).with_name("oracles"), Path(__file__).parents[2] / "tests" / "oracles"
    below = folder if folder in ("language", "estimators", "control") else ""
    paths = (packaged / below / f"{name}.py.txt", checkout / below / f"{name}.py")
    return next((path for path in paths if path.is_file()), None)


def _with_helpers(recipe: Callable[..., Any]) -> list[Any]:
    """A recipe after the functions that it calls: those of its own module and of this folder."""
    package, ordered = __name__.rpartition(".")[0] + ".", dict[Any, None]()

    def visit(function: Any) -> None:
        for name in function.__code__.co_names:
            value = function.__globals__.get(name)
            local = inspect.isfunction(value) and value.__module__.startswith((recipe.__module__, package))
            if local and inspect.unwrap(value) is not inspect.unwrap(recipe) and value not in ordered:
                visit(value)
        ordered[function] = None

    visit(inspect.unwrap(recipe))
    return list(ordered)


def _without_docstring(function: Callable[..., Any]) -> str:
    """The source of a function without its docstring."""
    source = inspect.getsource(function)
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.FunctionDef)
    if ast.get_docstring(node) is None:
        return source
    lines = source.splitlines(keepends=True)
    return "".join(lines[: node.body[0].lineno - 1] + lines[node.body[0].end_lineno :])


def targets(method: Method) -> str:
    """The kinds of targets that a method can learn: classes, values, or both.

    >>> targets(recipes()["plain"]()), targets(recipes()["elr"]())
    ('classes, values', 'classes')
    """
    if any(space_of(term.head) in ("values", "gaussian") for term in method.terms.values()):
        return "values"
    try:
        check_method(of_values(method))
    except SpaceError:
        return "classes"
    return "classes, values"


def _rows(views: Views, view: str) -> float:
    """Rows of a view for each row of the batch."""
    return views.ratio_at(USUAL_STEPS) if any(v.name == view and v.rows == "unlabelled" for v in views.views) else 1.0


def cost(method: Method) -> dict[str, float]:
    """Forward and backward passes of a sample, per row of the batch, and the sum in units of a plain step.

    A backward pass counts as two forward ones. A method of several generations has this cost in all but the first,
    which has no teacher. A frozen teacher counts as one forward; on a view without randomness its outputs are cached,
    so that it costs this in the first epoch only. All earlier generations as teachers cost one each, counted for the
    last generation. Early exits are free. Each view of stored rows counts as many as the batch has.

    >>> cost(recipes()["plain"]())
    {'forward': 1.0, 'backward': 1.0, 'of_plain': 1.0}
    """
    graded, ungraded = method.student_views()
    if method.mixing is not None:
        graded, ungraded = method.mixing.sources(graded), method.mixing.sources(ungraded)
    peers = float(method.wrap_model.peers * method.wrap_model.copies) if method.wrap_model else 1.0
    fused = method.forward == "fused"
    with_graph = peers * sum(_rows(method.views, view) for view in (graded + ungraded if fused else graded))
    without = 0.0 if fused else peers * sum(_rows(method.views, view) for view in ungraded)
    taught = {(t.teacher.key(t), t.teacher.view or t.view): t for t in method.terms.values() if t.teacher}
    rows_of = partial(_rows, method.views)
    extra = [term.extra_passes(peers, rows_of) for term in method.terms.values()]
    teacher = sum(_teacher_passes(method, term) for term in taught.values())
    forward = with_graph + without + teacher + sum(passes[0] for passes in extra)
    backward = with_graph + sum(passes[1] for passes in extra)
    return {"forward": forward, "backward": backward, "of_plain": round((forward + 2.0 * backward) / 3.0, 3)}


def cached_cost(method: Method) -> dict[str, Any] | None:
    """The cost of a step once the outputs of frozen teachers are cached.

    Returns:
        The cost ``of_plain`` steps, the ``epoch`` in which it begins, and ``by_data``: nothing is cached if the data
        are augmented. None for a method without a frozen teacher on a fixed view.

    >>> cached_cost(recipes()["distil"]())
    {'of_plain': 1.0, 'epoch': 2, 'by_data': True}
    """
    views = {view.name: view for view in fixed_views(method).views}
    saved, reused = dict[Any, float](), list[View]()
    for term in method.terms.values():
        if term.teacher is None:
            continue
        view = views.get(term.teacher.view or term.view)
        if view is None or view.of:  # a view that is made anew for each batch
            continue
        fixed = view.fixed or view.augment in ("default", "none")
        if term.teacher.origin.reusable and term.head in MAIN and fixed:
            saved[term.teacher.key(term)] = _teacher_passes(method, term)
            reused.append(view)
    if not reused:
        return None
    total = cost(method)
    forward = total["forward"] - sum(saved.values())
    return {
        "of_plain": round((forward + 2.0 * total["backward"]) / 3.0, 3),
        "epoch": 1 + max(view.fixed or 1 for view in reused),
        "by_data": any(view.augment == "default" and not view.fixed for view in reused),
    }


def _teacher_passes(method: Method, term: BaseTerm) -> float:
    """Forward passes of a term's teacher, per row of the batch; a copy of a group of peers runs them all."""
    if term.teacher is None:
        return 0.0
    teacher = term.teacher.origin
    peers = float(method.wrap_model.peers) if method.wrap_model else 1.0
    return teacher.forward_passes(peers, method.generations) * _rows(method.views, teacher.view or term.view)


def schedule(weight: Any, clock: TrainingClock) -> list[float]:
    """A term's weight at the start, the middle and the end of a generation."""
    values = []
    for share in (0.0, 0.5, 1.0):
        now = clock.at(round(share * (clock.length - 1)))
        values.append(round(weight(now) if callable(weight) else float(weight), 4))
    return values


def terms(method: Method) -> list[dict[str, Any]]:
    """The terms as data: teacher, loss, gate, view, head and weight at 0, 50 and 100 % of the last generation."""
    clock = TrainingClock(method.generations - 1, method.generations, 0, 100, 0, 10)
    return [
        {
            "term": name,
            "teacher": repr(term.teacher),
            "loss": repr(term.loss) + f" {term.loss_note()}".rstrip(),
            "gate": "" if term.gate is None or term.gate.full else repr(term.gate),
            "view": term.view,
            "head": term.head,
            "weight": schedule(term.weight, clock),
        }
        for name, term in method.terms.items()
    ]


def explain(expression: str, method: Method) -> dict[str, Any]:
    """The data of `selfdistill explain`, for a recipe's expression and its method."""
    name = expression_name(expression)
    return {
        **card(name),
        "expression": expression,
        "terms": terms(method),
        "views": [_view_line(view) for view in method.views.views] + _mixed_views(method),
        "heads": sorted({term.head for term in method.terms.values()}),
        "forward": method.forward,
        "generations": method.generations,
        "cost": cost(method),
        "cost_kept": cached_cost(method),
        "cost_note": _cost_note(method),
    }


def _mixed_views(method: Method) -> list[str]:
    """A line for each view of mixed rows that a term uses."""
    views = {view for group in method.student_views() for view in group} if method.mixing else set[str]()
    return [f"{view}: mixed rows, default augmentation" for view in (MIXED, BETWEEN) if view in views]


def _view_line(view: View) -> str:
    """A view in a line.

    >>> _view_line(View("blind", "all", "crop", hidden=0.3, of="x", spread=0.2, unmasked=0.5))
    'blind: what x shows, less 10 to 50 % of its patches in half of the rows'
    """
    if not view.of:
        return f"{view.name}: {view.rows} rows, {view.augment} augmentation"
    least, most = (round(100 * (view.hidden + offset), 1) for offset in (-view.spread, view.spread))
    share = f"{least:g} to {most:g} %" if view.spread else f"{most:g} %"
    part = "half" if view.unmasked == 0.5 else f"{round(100 * (1 - view.unmasked), 1):g} %"
    return f"{view.name}: what {view.of} shows, less {share} of its patches" + f" in {part} of the rows" * (
        view.unmasked > 0
    )


def _cost_note(method: Method) -> str:
    """Notes on the cost beside the passes of a row: the number of trainings, and passes over other rows."""
    notes = ["one training"]
    if method.generations > 1:
        notes = [f"{method.generations} trainings one after another, the first of them at 1 x"]
    notes += dict.fromkeys(t.teacher.cost_note for t in method.terms.values() if t.teacher and t.teacher.cost_note)
    if cached := cached_cost(method):
        condition = ", where the data are not augmented" if cached["by_data"] else ""
        notes.append(
            f"{cached['of_plain']:g} x from epoch {cached['epoch']} on{condition}: a frozen teacher's answers are kept"
        )
    if method.views.overlap:
        notes.append("each row comes twice an epoch")
    return "; ".join(notes)


def text(data: dict[str, Any]) -> str:
    """The page of `explain` as text."""
    suffix = " in the last generation" if data["generations"] > 1 else ""
    figures = data["cost"]
    passes = (
        f"{figures['forward']:g} forward + {figures['backward']:g} backward passes a row, "
        f"{figures['of_plain']:g} x a plain step"
    )
    lines = [
        data["expression"],
        data["summary"],
        "",
        *("    " + line for line in data["equation"].splitlines()),
        "",
        f"{'term':<12} {'weight at 0, 50, 100 %':<24} teacher, loss, gate{suffix and f' (weights{suffix})'}",
    ]
    for term in data["terms"]:
        weight = ", ".join(f"{w:g}" for w in term["weight"])
        gate = f", {term['gate']}" if term["gate"] else ""
        lines.append(f"{term['term']:<12} {weight:<24} {term['teacher']}, {term['loss']}{gate}")
        lines.append(f"{'':<12} {'':<24} on view {term['view']!r}, head {term['head']!r}")
    lines += [
        "",
        "views:       " + ("\n" + " " * 13).join(data["views"]) + f"\n{'':<13}{data['forward']} forward",
        f"heads:       {', '.join(data['heads'])}",
        f"cost:        {passes}; {data['cost_note']}",
        f"needs:       {data['needs']}",
        f"source:      {data['source']}",
        *([f"departs:     {data['departs']}"] if data["departs"] else []),
        *argument_lines(data["arguments"]),
    ]
    return "\n".join(lines)


def argument_lines(arguments: Mapping[str, str]) -> list[str]:
    """The arguments of a recipe as lines of its page."""
    return [f"{'' if i else 'arguments:':<12} {n}: {about}" for i, (n, about) in enumerate(arguments.items())]
