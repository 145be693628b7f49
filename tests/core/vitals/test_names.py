"""Every vital has a name, a line in the docs, and a test that builds what it catches."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import selfdistill

ROOT = Path(selfdistill.__file__).parent
TESTS = Path(__file__).parents[2]


def raised() -> set[str]:
    """The first argument of every call of ``fail``, ``_fail`` and ``VitalsError``, where it is a name written out."""
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("fail", "_fail", "VitalsError"):
                first = node.args[0]
                found |= {first.value} if isinstance(first, ast.Constant) and isinstance(first.value, str) else set()
    return found


def test_every_vital_is_in_the_table_and_no_other():
    rows = re.findall(r"^\| `([a-z-]+)` \|", (ROOT.parent / "docs" / "vitals.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(raised())
    assert len(rows) >= 19


def test_every_vital_is_built_in_a_test():
    tested = "".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    assert [name for name in sorted(raised()) if f'"{name}"' not in tested] == []


def test_every_bug_has_its_number():
    tested = "".join(path.read_text() for path in (TESTS / "field_bugs").glob("test_*.py"))
    assert sorted(set(map(int, re.findall(r"^def test_bug_(\d\d)_", tested, re.MULTILINE)))) == list(range(1, 23))
