"""Write the files that are made from the code; a test compares each with it.

python tools/generate.py                          writes them all
python tools/generate.py tests/public_api.txt     writes one
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
FACES: tuple[str, ...] = (
    "",
    ".core.parts",
    ".methods",
    ".losses",
    ".teachers",
    ".gates",
    ".schedules",
    ".views",
    ".terms",
    ".models",
)
FACES += (
    ".estimators",
    ".language.recipes",
    ".language.trainer",
    ".testing",
    ".integrations.huggingface",
    ".integrations.trl",
    ".integrations.alarm_callback",
    ".integrations.lightning",
)

TREE_BEGINS = "<!-- tree: written by `python tools/generate.py docs/design.md` -->\n"
TREE_ENDS = "<!-- end of the tree -->\n"
BENCHMARK_BEGINS = "<!-- benchmark: written by `python tools/generate.py docs/choose.md` -->\n"
BENCHMARK_ENDS = "<!-- end of the benchmark -->\n"


def public_names(module: ModuleType) -> list[str]:
    """The names of ``__all__``; without it, the public functions and classes that the module defines."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    own = inspect.getmembers(module, lambda value: getattr(value, "__module__", None) == module.__name__)
    return sorted(name for name, value in own if not name.startswith("_") and callable(value))


def signature(value: Callable[..., object]) -> str:
    """A signature as it is written in the source, without quotes around its annotations.

    >>> signature(public_names)
    '(module: ModuleType) -> list[str]'
    """
    try:
        text = str(inspect.signature(value))
    except (ValueError, TypeError):
        return "(...)"
    text = re.sub(r"ForwardRef\(('[^']*')\)", r"\1", text)
    text = re.sub(r"((?::|->) )'([^']*)'", r"\1\2", text)
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def members(kind: type) -> Iterator[str]:
    """The public methods and properties that a class has of its own or from a private base, one line each."""
    owners = {base for base in kind.__mro__ if base is kind or base.__name__.startswith("_")}
    owners = {base for base in owners if base.__module__.startswith("selfdistill")}
    for name in sorted({name for base in owners for name in vars(base)}):
        if name.startswith("_") and name != "__call__":
            continue
        raw = inspect.getattr_static(kind, name)
        value = raw.__func__ if isinstance(raw, (classmethod, staticmethod)) else raw
        if isinstance(value, property):
            yield f"    {name}: property"
        elif inspect.isfunction(value):
            yield f"    {name}{signature(value)}"


def bases(kind: type) -> str:
    """The public classes of this package that a class extends, in words; their members are listed with them."""
    names = [base.__name__ for base in kind.__mro__[1:] if base.__module__.startswith("selfdistill")]
    names = [name for name in names if not name.startswith("_")]
    return f", a {names[0]}" if names else ""


def public_api() -> str:
    """Every public name with its signature, module by module."""
    lines = list[str]()
    for face in FACES:
        module = importlib.import_module(f"selfdistill{face}")
        lines += ["", f"[{module.__name__}]"]
        for name in public_names(module):
            value = getattr(module, name)
            if isinstance(value, ModuleType):
                lines.append(f"{name}: module")
            elif isinstance(value, type):
                lines += [f"class {name}{signature(value)}{bases(value)}", *members(value)]
            elif inspect.isfunction(value):
                lines.append(f"{name}{signature(value)}")
            else:
                lines.append(f"{name}: {type(value).__name__}")
    return "\n".join(lines[1:]) + "\n"


def catalogue() -> str:
    """The cards of all recipes, one JSON object a line, for `selfdistill methods`."""
    from selfdistill.experiments.catalogue import live_cards

    return "".join(json.dumps(card, sort_keys=True) + "\n" for card in live_cards())


def methods_page() -> str:
    """The page of all recipes."""
    from selfdistill.experiments.catalogue import live_cards, markdown

    return markdown(live_cards())


def sentence(path: Path) -> str:
    """The first sentence of a module's docstring, in one line."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.?!])\s+(?=[A-Z`])", text, maxsplit=1)[0].rstrip(".")


def tree(folder: Path, indent: str = "") -> list[str]:
    """A line for each module of a folder and, after them, for each folder in it and what that holds."""
    modules = [path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"]
    lines = [f"{indent + path.name:<28} {sentence(path)}".rstrip() for path in modules]
    for below in sorted(path.parent for path in folder.glob("*/__init__.py")):
        lines.append(f"{indent + below.name + '/':<28} {sentence(below / '__init__.py')}".rstrip())
        lines += tree(below, indent + "  ")
    return lines


def design_page() -> str:
    """docs/design.md with the tree of the package as it is now."""
    before, _, rest = (ROOT / "docs/design.md").read_text(encoding="utf-8").partition(TREE_BEGINS)
    after = rest.partition(TREE_ENDS)[2]
    block = "\n".join(["selfdistill/", *tree(ROOT / "selfdistill", "  ")])
    return f"{before}{TREE_BEGINS}\n```text\n{block}\n```\n\n{TREE_ENDS}{after}"


def choose_page() -> str:
    """docs/choose.md with the numbers of the benchmark as they are now."""
    from selfdistill.experiments.catalogue import cards
    from tools.chooser import measured

    before, _, rest = (ROOT / "docs/choose.md").read_text(encoding="utf-8").partition(BENCHMARK_BEGINS)
    after = rest.partition(BENCHMARK_ENDS)[2]
    block = measured((ROOT / "docs/benchmark.md").read_text(encoding="utf-8"), cards())
    return f"{before}{BENCHMARK_BEGINS}\n{block}\n{BENCHMARK_ENDS}{after}"


FILES: dict[str, Callable[[], str]] = {
    "docs/design.md": design_page,
    "docs/methods.md": methods_page,
    "selfdistill/experiments/catalogue.jsonl": catalogue,
    "docs/choose.md": choose_page,  # of the catalogue above
    "tests/public_api.txt": public_api,
}


def main(names: list[str]) -> None:
    """Write the files of these names, or all."""
    for name in names or FILES:
        (ROOT / name).write_text(FILES[name](), encoding="utf-8")
        print(f"wrote {name}")


if __name__ == "__main__":
    main(sys.argv[1:])
