"""Measure the architecture of the package against its targets; ends with 1 while one is missed, without --report."""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import grimp

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "selfdistill"
Modules = dict[str, tuple[str, ast.Module]]  # by dotted name
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

# What asks which task it is, anywhere but in the modules of the tasks themselves (classes: in isinstance, is, a key):
TASK_MODULE = re.compile(rf"{PACKAGE}\.((language|estimators|learners|control)\b.*|(.*[._])?task)")
TASK_CLASS = re.compile(
    r".*Task(Type)?|(Network|Table|Language)Run|LanguageTrainer|Language"
)  # in isinstance, is, a key, a case
KINDS = {"language", "learner", "estimator", "estimators", "network", "networks", "tabular", "generate"}
KIND = re.compile("kind|task")  # a comparison with one of KINDS is a question if it names what it compares so
QUESTIONS = {"serves": 1, "holds_prompts": 1}  # calls, by their number of arguments


def read_modules() -> Modules:
    """The text and the syntax of every module."""
    paths = sorted((ROOT / PACKAGE).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    return {name: (text, ast.parse(text)) for name, text in zip(names, texts, strict=True)}


def import_figures() -> tuple[list[int], list[int]]:
    """The sizes of the circles of imports, largest first; the imports against the layers and the ignored ones."""
    graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=False, cache_dir=None)
    below = {name: graph.find_upstream_modules(name) for name in graph.modules}
    circles = {frozenset(other for other in below[name] if name in below[other]) | {name} for name in below}
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract["layers"] for contract in contracts if "layers" in contract)
    rank = {layer.strip(): i for i, row in enumerate(layers) for layer in row.split("|")}
    pairs = [
        (f"{a}.".split(".")[1], f"{b}.".split(".")[1])
        for a in below
        for b in graph.find_modules_directly_imported_by(a)
    ]
    against = sum(a != b and a in rank and b in rank and rank[a] >= rank[b] for a, b in pairs)
    ignored = sum(len(contract.get("ignore_imports", [])) for contract in contracts)
    return sorted((len(circle) for circle in circles if len(circle) > 1), reverse=True), [against, ignored]


def last_name(node: ast.AST | None) -> str:
    """The last name of a dotted expression."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def asks(node: ast.AST) -> bool:
    """Whether a node of the syntax asks which task it is, by the rules above."""
    classes: list[ast.AST | None] = []
    match node:
        case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, kinds]):
            classes = [*ast.walk(kinds)]
        case ast.Call(func=function, args=arguments):
            return QUESTIONS.get(last_name(function)) == len(arguments)
        case ast.Name(id="RECIPES", ctx=ast.Load()) | ast.Attribute(attr="RECIPES"):
            return True
        case ast.Compare(left=left, comparators=comparators):
            strings = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
            if strings & KINDS and KIND.search(ast.unparse(node)):
                return True
            classes = [left, *comparators]
        case ast.Dict(keys=keys):
            classes = [*keys]
        case ast.MatchClass(cls=kind):
            classes = [kind]
        case ast.MatchValue(value=ast.Constant(value=text)):
            return text in KINDS
    return any(TASK_CLASS.fullmatch(last_name(kind)) for kind in classes)


def questions(node: ast.AST, scope: str) -> Iterator[tuple[str, str]]:
    """Below a node, the functions and classes that ask which task it is, each with the place and its source."""
    for child in ast.iter_child_nodes(node):
        if asks(child):
            yield scope, f"{scope}:{getattr(child, 'lineno', 0)}: {ast.unparse(child)}"
        yield from questions(child, f"{scope}.{child.name}" if isinstance(child, Definition) else scope)


def escapes(text: str, tree: ast.Module) -> int:
    """The calls of cast and of getattr with a literal name, and the lines that the formatter is told to skip."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    literal = [call for call in calls if len(call.args) > 1 and isinstance(call.args[1], ast.Constant)]
    casts = sum(last_name(call.func) == "cast" for call in calls)
    return casts + sum(last_name(call.func) == "getattr" for call in literal) + text.count("# fmt: skip")


def code_lines(text: str, tree: ast.Module) -> int:
    """The lines without blanks, comments and docstrings."""
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.string.strip() and token.type != tokenize.COMMENT:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | Definition) and ast.get_docstring(node, clean=False) is not None:
            code.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(code)


def digits_step() -> Callable[[], object]:
    """The optimizer step of `elr` on digits by an MLP, as `fit` builds its trainer."""
    from selfdistill.core.regression import for_task
    from selfdistill.data.dataset import sealed
    from selfdistill.experiments.network_run import prepare
    from selfdistill.io.run_record import Request
    from selfdistill.methods.validate import check_method
    from selfdistill.training.settings import Settings
    from selfdistill.training.supervised import NetworkTask
    from selfdistill.training.trainer import Trainer

    ready = prepare(Request(data="digits", method="elr()", model="mlp"))
    method = for_task(ready.method, ready.data.task)
    check_method(method, ready.data)
    trainer = Trainer(NetworkTask(ready.build, sealed(ready.data), method), method, Settings(**ready.settings))
    trainer.begin(0)
    return trainer.step


def step_figures(step: Callable[[], object]) -> list[int]:
    """The functions and files of the package in the least of eight steps: the vitals skip most, and look at few."""
    least: set[CodeType] = set()
    for _ in range(8):
        codes: set[CodeType] = set()

        def profile(frame: FrameType, event: str, _: Any, codes: set[CodeType] = codes) -> None:
            if event == "call" and frame.f_code.co_filename.startswith(str(ROOT / PACKAGE)):
                codes.add(frame.f_code)

        sys.setprofile(profile)
        try:
            step()
        finally:
            sys.setprofile(None)
        least = min(least or codes, codes, key=len)
    return [len(least), len({code.co_filename for code in least})]


def measure(modules: Modules) -> list[tuple[str, list[int], list[int]]]:
    """What is measured, its figures now and their targets; circles may be several, and the target is none."""
    circles, layers = import_figures()
    loose = {f"{PACKAGE}.{path.stem}" for path in (ROOT / PACKAGE).glob("[!_]*.py")}
    classes = Counter(node.name for _, tree in modules.values() for node in tree.body if isinstance(node, ast.ClassDef))
    return [
        ("loose modules at the root", [len(loose)], [6]),
        ("files in import circles, lazy and type-only too", circles or [0], [0]),
        ("imports against the layers; ignored imports", layers, [0, 0]),
        ("functions that ask which task it is", [len(dict(all_questions(modules)))], [1]),
        ("class names of several modules", [sum(count > 1 for count in classes.values())], [5]),
        ("cast, getattr of a literal, fmt: skip", [sum(escapes(*module) for module in modules.values())], [120]),
        ("modules; lines of code", [len(modules), sum(code_lines(*m) for m in modules.values())], [215, 23_500]),
        ("functions; files in a step of elr", step_figures(digits_step()), [60, 10]),
    ]


def all_questions(modules: Modules) -> list[tuple[str, str]]:
    """The questions of all modules that are no task's own."""
    return [q for name, (_, tree) in modules.items() if not TASK_MODULE.fullmatch(name) for q in questions(tree, name)]


#: rows whose target is missed, and what they have reached: they may come nearer to it, and not go back
REACHED = {
    "modules; lines of code": [301, 47_600],
    "functions; files in a step of elr": [60, 15],
}


def _exceeds(now: list[int], bound: list[int]) -> bool:
    return len(now) != len(bound) or any(a > b for a, b in zip(now, bound, strict=True))


def main() -> int:
    """Print the table, or the places that ask which task it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", action="store_true", help="end with 0 though a target is missed")
    parser.add_argument("--places", action="store_true", help="list what asks which task it is, and end")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))  # the package beside this script, not another checkout that is installed
    modules = read_modules()
    if options.places:
        print("\n".join(place for _, place in all_questions(modules)))
        return 0
    regressions = 0
    print(f"{'what':<48} {'now':>14} {'target':>12}")
    for what, now, target in measure(modules):
        miss = _exceeds(now, target)
        mark = " + " if "circles" in what else "; "
        left, right = mark.join(f"{n:,}" for n in now), mark.join(f"{n:,}" for n in target)
        print(f"{what:<48} {left:>14} {right:>12}{'  missed' if miss else ''}")
        regressions += _exceeds(now, REACHED.get(what, target))
    return int(regressions > 0 and not options.report)


if __name__ == "__main__":
    sys.exit(main())
