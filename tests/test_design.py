"""The walk through one run and one batch in docs/design.md: each hop exists, and is called where the page says."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import pytest
from click.testing import CliRunner

from selfdistill.cli import main

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "selfdistill"
HOP = re.compile(r"^(\d+)\. `(\w+(?:/\w+)*\.py)` `([\w.]+)`: ([^:]+\.)$")


class Hop(NamedTuple):
    """A function of a file, by its name within the package."""

    file: str
    function: str


class Walk(NamedTuple):
    """A command without its first word, and the numbered lines of what it calls."""

    command: list[str]
    lines: list[str]

    def hops(self) -> list[Hop]:
        return [Hop(*match.group(2, 3)) for line in self.lines if (match := HOP.match(line))]


def read_walks(page: str) -> dict[str, Walk]:
    """The walks of the section, by their titles."""
    (section,) = re.findall(r"^## Follow one batch and one run\n(.*?)^## ", page, re.MULTILINE | re.DOTALL)
    walks = {}
    for part in section.split("\n### ")[1:]:
        title, _, text = part.partition("\n")
        (command,) = re.findall(r"`selfdistill ([^`]+)`", text.partition("\n1. ")[0])
        items = re.findall(r"^\d+\. .*(?:\n +\S.*)*", text, re.MULTILINE)
        walks[title] = Walk(shlex.split(command), [" ".join(item.split()) for item in items])
    return walks


WALKS = read_walks((ROOT / "docs" / "design.md").read_text(encoding="utf-8"))
HOPS = [hop for walk in WALKS.values() for hop in walk.hops()]


def defined(file: str) -> set[str]:
    """The functions of a file and the methods of its classes, by their dotted names."""
    names = set()
    for node in ast.parse((PACKAGE / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return names


def first_calls(command: list[str], within: Hop) -> list[Hop]:
    """The functions that a command calls while the first call of ``within`` runs, in the order of their first calls."""
    calls: dict[Hop, None] = {}
    files: dict[str, str] = {}
    outer: list[FrameType] = []
    prefix = f"{PACKAGE}/"

    def watch(frame: FrameType, event: str, argument: object) -> None:
        if event == "return" and outer == [frame]:
            outer.append(frame)  # it has ended: two entries
        if event != "call" or len(outer) > 1:
            return
        path = frame.f_code.co_filename
        file = files.setdefault(path, path.removeprefix(prefix) if path.startswith(prefix) else "")
        hop = Hop(file, frame.f_code.co_qualname)
        if not outer and hop == within:
            outer.append(frame)
        if outer and file:
            calls.setdefault(hop)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        done = CliRunner().invoke(main, command, catch_exceptions=False)
    finally:
        sys.setprofile(before)
    assert done.exit_code == 0, done.output
    return list(calls)


def test_the_walks_are_two_of_at_most_thirty_hops_together() -> None:
    assert list(WALKS) == ["One run", "One batch"]
    assert all(len(walk.hops()) >= 10 for walk in WALKS.values())
    assert len(HOPS) == len(set(HOPS)) + 1, "the step alone is a hop of both"
    assert len(HOPS) <= 30


@pytest.mark.parametrize("title", WALKS)
def test_each_hop_is_a_numbered_line_with_one_sentence(title: str) -> None:
    lines = WALKS[title].lines
    assert [line for line in lines if not HOP.match(line)] == []
    assert [int(line.partition(".")[0]) for line in lines] == list(range(1, len(lines) + 1))
    assert [line for line in lines if re.search(r"\. [A-Z]", line.partition(": ")[2])] == []


@pytest.mark.parametrize("hop", sorted(set(HOPS)), ids=lambda hop: f"{hop.file}:{hop.function}")
def test_the_function_of_a_hop_is_defined_in_its_file(hop: Hop) -> None:
    assert hop.function in defined(hop.file)


@pytest.mark.parametrize("title", WALKS)
def test_a_run_of_two_steps_calls_the_hops_in_their_order(title: str, tmp_path: Path) -> None:
    command, hops = WALKS[title].command, WALKS[title].hops()
    calls = first_calls([*command, "--steps", "2", "--quiet", "--out", str(tmp_path / "run")], hops[0])
    assert [hop for hop in hops if hop not in calls] == [], "these are not called"
    assert sorted(hops, key=calls.index) == hops
