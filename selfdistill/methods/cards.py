"""The card of a recipe: its equation, arguments, schedules, views, heads, cost, source, and its code on one page."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..core.mixing import BETWEEN, MIXED
from ..core.objective import Method
from ..core.outputs import MAIN, space_of
from ..core.parts import BaseTerm
from ..core.regression import of_values
from ..core.step import Clock
from ..errors import SpaceError
from ..io.expressions import expression_name
from ..teachers import (
    CertainLabels,
    Ema,
    External,
    Frozen,
    GenerationEnsemble,
    Members,
    PseudoLabels,
    Sampled,
    Snapshot,
    Stale,
)
from ..teachers.cached import pinned
from ..teachers.self_training import InheritedPseudoLabels
from ..views import View, Views
from .registry import recipes
from .validate import check_method

_SECTION = re.compile(r"^(Source|Needs|Departs): (.+?)(?=\n\n|\n[A-Z][a-z]+: |\Z)", re.MULTILINE | re.DOTALL)
_BLOCK = r"^{}\n+((?:    .*\n?|\n)+)"  # a heading and the indented lines below it
_ARGUMENT = re.compile(r"^(\w+): (.+?)(?=\n\w+: |\Z)", re.MULTILINE | re.DOTALL)


def card(name: str) -> dict[str, Any]:
    """A recipe's card: what `described` reads from its docstring, what it can predict, and its cost."""
    method = recipes()[name]()
    return {
        **described(name, recipes()[name]),
        "targets": targets(method),
        "for": "networks",
        "cost": cost(method),
        "generations": method.generations,
    }


def described(name: str, recipe: Callable[..., Any]) -> dict[str, Any]:
    """A recipe's signature and docstring as data.

    Args:
        name: The recipe's name.
        recipe: The function; its docstring has the sections that `selfdistill.methods` lists.

    Returns:
        Signature, summary, equation, arguments (a description of each), needs, departs and source; a section that
        the docstring lacks is empty.

    >>> described("elr", recipes()["elr"])["signature"]
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
        "arguments": {key: " ".join(about.split()) for key, about in _ARGUMENT.findall(_block(text, "Args:"))},
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
    oracle = next((path for path in _oracle_paths(name) if path.is_file()), None)
    return {
        "recipe": "\n\n\n".join(source.strip() for source in sources) + "\n",
        "oracle": None if oracle is None else oracle.read_text(encoding="utf-8"),
    }


def code_text(name: str, recipe: Callable[..., Any]) -> str:
    """What `code` gives, as a page for people."""
    found, about = code(name, recipe), described(name, recipe)
    page = [about["signature"], about["summary"], "", *("    " + line for line in about["equation"].splitlines())]
    page += ["", f"The recipe, of {recipe.__module__}:", "", str(found["recipe"]).rstrip(), ""]
    if found["oracle"] is None:
        return "\n".join([*page, f"There is no oracle page of {name} yet, the same method as a plain training loop."])
    page += [
        "The same method as a plain training loop, its oracle. It imports nothing of selfdistill: ``run`` gives it the",
        "initial weights, the batches and the optimizer of a real run, and a test compares losses and final weights.",
    ]
    return "\n".join([*page, "", found["oracle"].rstrip()])


def _oracle_paths(name: str) -> tuple[Path, Path]:
    """Where the oracle of a recipe lies: in an installed package, and in a checkout."""
    packaged = Path(__file__).with_name("oracles") / f"{name}.py.txt"
    return packaged, Path(__file__).parents[2] / "tests" / "oracles" / f"{name}.py"


def _with_helpers(recipe: Callable[..., Any]) -> list[Any]:
    """A recipe after the functions that it calls: those of its own module and of this folder."""
    home, ordered = __name__.rpartition(".")[0] + ".", dict[Any, None]()

    def visit(function: Any) -> None:
        for name in function.__code__.co_names:
            value = function.__globals__.get(name)
            own = inspect.isfunction(value) and value.__module__.startswith((recipe.__module__, home))
            if own and value is not recipe and value not in ordered:
                visit(value)
        ordered[function] = None

    visit(recipe)
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
    """What a method can predict: classes, values, or both.

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
    return views.ratio if any(v.name == view and v.rows == "unlabelled" for v in views.looks) else 1.0


def cost(method: Method) -> dict[str, float]:
    """Forward and backward passes of a sample, per row of the batch, and the sum in units of a plain step.

    A backward pass counts as two forward ones. A method of several generations costs this in all but the first, which
    has no teacher. A frozen teacher counts as one forward; on a view without randomness its answers are kept, and it
    costs that in the first epoch only; all earlier generations cost one each, told of the last. Early exits are free.

    >>> cost(recipes()["plain"]())
    {'forward': 1.0, 'backward': 1.0, 'of_plain': 1.0}
    """
    graded, quiet = method.student_views()
    if method.mixing is not None:
        graded, quiet = method.mixing.sources(graded), method.mixing.sources(quiet)
    peers = float(method.wrap_model.peers * method.wrap_model.copies) if method.wrap_model else 1.0
    fused = method.forward == "fused"
    with_graph = peers * sum(_rows(method.views, view) for view in (graded + quiet if fused else graded))
    without = 0.0 if fused else peers * sum(_rows(method.views, view) for view in quiet)
    looks = {(t.teacher.key(t), t.teacher.view or t.view): t for t in method.terms.values() if t.teacher}
    held = {look: _held(method, term) for look, term in looks.items()}
    rows_of = partial(_rows, method.views)
    more = [term.further(peers, rows_of) for term in method.terms.values()]
    forward = with_graph + without + sum(held.values()) + sum(passes[0] for passes in more)
    backward = with_graph + sum(passes[1] for passes in more)
    return {"forward": forward, "backward": backward, "of_plain": round((forward + 2.0 * backward) / 3.0, 3)}


def kept(method: Method) -> dict[str, Any] | None:
    """What a step costs once the answers of frozen teachers are kept, and in which epoch that begins; None if none are.

    A view that is augmented ``by_data`` is one whose data may ask for augmentation, and then nothing is kept.

    >>> kept(recipes()["distil"]())
    {'of_plain': 1.0, 'epoch': 2, 'by_data': True}
    """
    looks = {look.name: look for look in pinned(method).looks}
    saved, seen = dict[Any, float](), []
    for term in method.terms.values():
        if term.teacher is None:
            continue
        teacher, look = term.teacher.origin, looks.get(term.teacher.view or term.view)
        if look is None:  # a view that is made anew for each batch
            continue
        still = not look.of and (look.fixed or look.augment in ("default", "none"))
        if isinstance(teacher, Frozen) and not isinstance(teacher, Members) and term.head in MAIN and still:
            saved[term.teacher.key(term)] = _held(method, term)
            seen.append(look)
    if not seen:
        return None
    whole = cost(method)
    forward = whole["forward"] - sum(saved.values())
    return {
        "of_plain": round((forward + 2.0 * whole["backward"]) / 3.0, 3),
        "epoch": 1 + max(look.fixed or 1 for look in seen),
        "by_data": any(look.augment == "default" and not look.fixed for look in seen),
    }


def _held(method: Method, term: BaseTerm) -> float:
    """Forward passes of a teacher with weights of its own; a copy of a group of peers runs them all."""
    teacher = term.teacher and term.teacher.origin
    if not isinstance(teacher, (Ema, Frozen, Sampled, Snapshot, Stale)):
        return 0.0
    members = 1.0 if isinstance(teacher, External) or not method.wrap_model else float(method.wrap_model.peers)
    if isinstance(teacher, Sampled):
        return members * _rows(method.views, term.view) * teacher.passes
    if isinstance(teacher, GenerationEnsemble):
        members *= method.generations - 1
    return members * _rows(method.views, teacher.view or term.view)


def schedule(weight: Any, clock: Clock) -> list[float]:
    """A term's weight at the start, the middle and the end of a generation."""
    values = []
    for share in (0.0, 0.5, 1.0):
        now = clock.at(round(share * (clock.length - 1)))
        values.append(round(weight(now) if callable(weight) else float(weight), 4))
    return values


def terms(method: Method) -> list[dict[str, Any]]:
    """The terms as data: teacher, loss, gate, view, head and weight at 0, 50 and 100 % of the last generation."""
    clock = Clock(method.generations - 1, method.generations, 0, 100, 0, 10)
    return [
        {
            "term": name,
            "teacher": repr(term.teacher),
            "loss": repr(term.loss) + f" {term.told()}".rstrip(),
            "gate": "" if term.gate is None or term.gate.full else repr(term.gate),
            "view": term.view,
            "head": term.head,
            "weight": schedule(term.weight, clock),
        }
        for name, term in method.terms.items()
    ]


def explain(expression: str, method: Method) -> dict[str, Any]:
    """Everything `selfdistill explain` prints, for a recipe's expression and the method it gave."""
    name = expression_name(expression)
    return {
        **card(name),
        "expression": expression,
        "terms": terms(method),
        "views": [_shown(look) for look in method.views.looks] + _mixed_views(method),
        "heads": sorted({term.head for term in method.terms.values()}),
        "forward": method.forward,
        "generations": method.generations,
        "cost": cost(method),
        "cost_kept": kept(method),
        "cost_note": _cost_note(method),
    }


def _mixed_views(method: Method) -> list[str]:
    """The views of mixed rows that the terms look at, in a line each."""
    views = {view for group in method.student_views() for view in group} if method.mixing else set[str]()
    return [f"{view}: mixed rows, default augmentation" for view in (MIXED, BETWEEN) if view in views]


def _shown(look: View) -> str:
    """A view in a line.

    >>> _shown(View("blind", "all", "crop", hidden=0.3, of="x", spread=0.2, whole=0.5))
    'blind: what x shows, less 10 to 50 % of its patches in half of the rows'
    """
    if not look.of:
        return f"{look.name}: {look.rows} rows, {look.augment} augmentation"
    least, most = (round(100 * (look.hidden + by), 1) for by in (-look.spread, look.spread))
    share = f"{least:g} to {most:g} %" if look.spread else f"{most:g} %"
    part = "half" if look.whole == 0.5 else f"{round(100 * (1 - look.whole), 1):g} %"
    return f"{look.name}: what {look.of} shows, less {share} of its patches" + f" in {part} of the rows" * (
        look.whole > 0
    )


def _cost_note(method: Method) -> str:
    """What the passes of a row do not say: how many trainings, and how often a row comes."""
    notes = ["one training"]
    if method.generations > 1:
        notes = [f"{method.generations} trainings one after another, the first of them at 1 x"]
    if any(isinstance(term.teacher, PseudoLabels) for term in method.terms.values()):
        notes.append("one forward pass over the pool before each but the first")
    for passes in {t.teacher.passes for t in method.terms.values() if isinstance(t.teacher, CertainLabels)}:
        notes.append(f"{passes} forward passes over the pool before each but the first")
    for fresh in {
        term.teacher.fresh for term in method.terms.values() if isinstance(term.teacher, InheritedPseudoLabels)
    }:
        notes.append(f"one forward pass over {fresh} unlabelled rows before each but the first")
    for cycles in {term.teacher.cycles for term in method.terms.values() if isinstance(term.teacher, Snapshot)}:
        notes.append(f"without a teacher, at 1 x, in the first of {cycles} cycles")
    if then := kept(method):
        where = ", where the data are not augmented" if then["by_data"] else ""
        notes.append(
            f"{then['of_plain']:g} x from epoch {then['epoch']} on{where}: a frozen teacher's answers are kept"
        )
    if method.views.overlap:
        notes.append("each row comes twice an epoch")
    return "; ".join(notes)


def text(found: dict[str, Any]) -> str:
    """The same for people."""
    last = " in the last generation" if found["generations"] > 1 else ""
    c = found["cost"]
    passes = f"{c['forward']:g} forward + {c['backward']:g} backward passes a row, {c['of_plain']:g} x a plain step"
    lines = [
        found["expression"],
        found["summary"],
        "",
        *("    " + line for line in found["equation"].splitlines()),
        "",
        f"{'term':<12} {'weight at 0, 50, 100 %':<24} teacher, loss, gate{last and f' (weights{last})'}",
    ]
    for t in found["terms"]:
        weight = ", ".join(f"{w:g}" for w in t["weight"])
        gate = f", {t['gate']}" if t["gate"] else ""
        lines.append(f"{t['term']:<12} {weight:<24} {t['teacher']}, {t['loss']}{gate}")
        lines.append(f"{'':<12} {'':<24} on view {t['view']!r}, head {t['head']!r}")
    lines += [
        "",
        "views:       " + ("\n" + " " * 13).join(found["views"]) + f"\n{'':<13}{found['forward']} forward",
        f"heads:       {', '.join(found['heads'])}",
        f"cost:        {passes}; {found['cost_note']}",
        f"needs:       {found['needs']}",
        f"source:      {found['source']}",
        *([f"departs:     {found['departs']}"] if found["departs"] else []),
        *(
            f"{'arguments:' if not i else '':<12} {n}: {about}"
            for i, (n, about) in enumerate(found["arguments"].items())
        ),
    ]
    return "\n".join(lines)
