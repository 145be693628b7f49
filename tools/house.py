"""Measure the architecture of the package against the targets of its redesign; ends with 1 while any is missed."""

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
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "selfdistill"
Graph = dict[str, set[str]]
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

# What asks which task it is, anywhere but in the modules of the tasks themselves (classes: in isinstance, is, a key):
TASK_MODULE = re.compile(rf"{PACKAGE}\.((language|estimators|learners)\b.*|(.*[._])?task)")
TASK_CLASS = re.compile(
    r".*Task(Type)?|(Network|Table|Language)Run|LanguageTrainer|Language"
)  # in isinstance, is, a key, a case
KINDS = {"language", "learner", "estimator", "estimators", "network", "networks", "tabular", "generate"}
KIND = re.compile("kind|task")  # a comparison with one of KINDS is a question if it names what it compares so
QUESTIONS = {"serves": 1, "holds_prompts": 1}  # calls, by their number of arguments


class Module(NamedTuple):
    """A source file of the package."""

    name: str
    is_package: bool
    text: str
    tree: ast.Module


def read_modules() -> dict[str, Module]:
    """Every module of the package by its dotted name."""
    modules = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        text = path.read_text(encoding="utf-8")
        modules[name] = Module(name, path.stem == "__init__", text, ast.parse(text))
    return modules


def imports(module: Module, modules: dict[str, Module]) -> Iterator[str]:
    """The modules of the package that a module imports explicitly, be it at its top, in a function or for types."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            parents = module.name.split(".")[: None if module.is_package else -1]
            above = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*above, *(node.module or "").split(".")]).rstrip(".")
            for target in (f"{base}.{alias.name}" for alias in node.names):  # a submodule, or a name of the base
                if target in modules or base in modules:
                    yield target if target in modules else base


def reachable(graph: Graph, start: str) -> set[str]:
    """The modules at the end of any path of imports."""
    reach: set[str] = set()
    stack = [start]
    while stack:
        new = graph[stack.pop()] - reach
        reach |= new
        stack += new
    return reach


def circles(graph: Graph) -> list[int]:
    """The sizes of the strongly connected components of more than a module, largest first."""
    reach = {name: reachable(graph, name) for name in graph}
    components = {frozenset(other for other in reach[name] if name in reach[other]) for name in graph}
    return sorted((len(component) for component in components if len(component) > 1), reverse=True)


def layer_figures(graph: Graph) -> list[int]:
    """The pairs of modules that import against the layers, and the ignored imports; nothing without a contract."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    contracts = tool.get("importlinter", {}).get("contracts", [])
    layers = next((contract["layers"] for contract in contracts if "layers" in contract), None)
    if layers is None:
        return []
    rank = {layer.strip(" ()").split(".")[-1]: i for i, row in enumerate(layers) for layer in row.split("|")}
    pairs = [[f"{end}.".split(".")[1] for end in (name, other)] for name in graph for other in graph[name]]
    violations = sum(a != b and a in rank and b in rank and rank[a] >= rank[b] for a, b in pairs)
    return [violations, sum(len(contract.get("ignore_imports", [])) for contract in contracts)]


def _label(node: ast.AST | None) -> str:
    """The last name of a dotted expression."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def asks(node: ast.AST) -> bool:
    """Whether a node of the syntax asks which task it is, by the rules above."""
    classes: list[ast.AST | None] = []
    match node:
        case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, kinds]):
            classes = [*ast.walk(kinds)]
        case ast.Call(func=function, args=arguments):
            return QUESTIONS.get(_label(function)) == len(arguments)
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
    return any(TASK_CLASS.fullmatch(_label(kind)) for kind in classes)


def scopes(node: ast.AST, scope: str) -> Iterator[tuple[str, ast.AST]]:
    """Every node below another, with the dotted name of the function or class around it."""
    for child in ast.iter_child_nodes(node):
        yield scope, child
        yield from scopes(child, f"{scope}.{child.name}" if isinstance(child, Definition) else scope)


def questions(modules: dict[str, Module]) -> list[tuple[str, int, str]]:
    """The functions that ask which task it is, with the lines and the source of the questions."""
    return [
        (scope, getattr(node, "lineno", 0), ast.unparse(node))
        for name, module in modules.items()
        if not TASK_MODULE.fullmatch(name)
        for scope, node in scopes(module.tree, name)
        if asks(node)
    ]


def class_names(module: Module) -> set[str]:
    """The classes at the top of a module."""
    return {node.name for node in module.tree.body if isinstance(node, ast.ClassDef)}


def escapes(module: Module) -> int:
    """The calls of cast and of getattr with a literal name, and the lines that the formatter is told to skip."""
    count = module.text.count("# fmt: skip")
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            literal = len(node.args) > 1 and isinstance(node.args[1], ast.Constant)
            count += _label(node.func) == "cast" or (_label(node.func) == "getattr" and literal)
    return count


def code_lines(module: Module) -> int:
    """The lines without blanks, comments and docstrings."""
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.string.strip() and token.type != tokenize.COMMENT:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Module | Definition) and ast.get_docstring(node, clean=False) is not None:
            code.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(code)


def digits_step() -> Callable[[], object]:
    """The optimizer step of `elr` on digits by an MLP, as `fit` builds its trainer."""
    from selfdistill.core.regression import for_task
    from selfdistill.data.sealed import sealed
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

    def functions() -> set[CodeType]:
        codes: set[CodeType] = set()

        def profile(frame: FrameType, event: str, _: Any) -> None:
            if event == "call" and frame.f_code.co_filename.startswith(str(ROOT / PACKAGE)):
                codes.add(frame.f_code)

        sys.setprofile(profile)
        try:
            step()
        finally:
            sys.setprofile(None)
        return codes

    codes = min((functions() for _ in range(8)), key=len)
    return [len(codes), len({code.co_filename for code in codes})]


def measure(modules: dict[str, Module]) -> list[tuple[str, list[int], list[int]]]:
    """What is measured, its figures now and their targets; circles may be several, and the target is none."""
    graph = {name: set(imports(module, modules)) for name, module in modules.items()}
    loose = [m for m in modules.values() if not m.is_package and m.name.count(".") == 1 and "__main__" not in m.name]
    classes = Counter(name for module in modules.values() for name in class_names(module))
    return [
        ("loose modules at the root", [len(loose)], [6]),
        ("files in import circles, lazy and type-only too", circles(graph) or [0], [0]),
        ("imports against the layers; ignored imports", layer_figures(graph), [0, 0]),
        ("functions that ask which task it is", [len({scope for scope, _, _ in questions(modules)})], [1]),
        ("class names of several modules", [sum(count > 1 for count in classes.values())], [5]),
        ("cast, getattr of a literal, fmt: skip", [sum(map(escapes, modules.values()))], [120]),
        ("modules; lines of code", [len(modules), sum(map(code_lines, modules.values()))], [215, 23_500]),
        ("functions; files in a step of elr", step_figures(digits_step()), [60, 10]),
    ]


def main() -> int:
    """Print the table, or the places that ask which task it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", action="store_true", help="end with 0 though a target is missed")
    parser.add_argument("--places", action="store_true", help="list what asks which task it is, and end")
    options = parser.parse_args()
    modules = read_modules()
    if options.places:
        print("\n".join(f"{scope}:{line}: {source}" for scope, line, source in questions(modules)))
        return 0
    sys.path.insert(0, str(ROOT))  # the package beside this script, not another checkout that is installed
    misses = 0
    print(f"{'what':<48} {'now':>14} {'target':>12}")
    for what, now, target in measure(modules):
        miss = len(now) != len(target) or any(a > b for a, b in zip(now, target, strict=True))
        mark = " + " if "circles" in what else "; "
        left, right = mark.join(f"{n:,}" for n in now) or "-", mark.join(f"{n:,}" for n in target)
        print(f"{what:<48} {left:>14} {right:>12}{'  missed' if miss else ''}")
        misses += miss
    return int(misses > 0 and not options.report)


if __name__ == "__main__":
    sys.exit(main())
