"""Write the tree of the package into docs/design.md: every file with the first sentence of its docstring."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DESIGN = ROOT / "docs" / "design.md"
BEGIN, END = "<!-- tree: written by `make tree` -->\n", "<!-- end of the tree -->\n"


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


def render() -> str:
    """The page with the tree of the package as it is now."""
    before, _, rest = DESIGN.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    block = "\n".join(["selfdistill/", *tree(ROOT / "selfdistill", "  ")])
    return f"{before}{BEGIN}\n```text\n{block}\n```\n\n{END}{after}"


if __name__ == "__main__":
    sys.exit(DESIGN.write_text(render(), encoding="utf-8") == 0)
