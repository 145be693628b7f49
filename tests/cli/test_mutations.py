"""5,000 mutated inputs: no traceback, no hang, one line for each refusal, and none after training.

The seed of a fault is in the message: ``attempt(KIND, SEED)`` of `tests.cli.mutations` repeats it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cli.mutations import KINDS, attempt, fault, prepare

FEW = 6  # of each kind are tried with the usual tests


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with the inputs and runs that are mutated."""
    folder, before = tmp_path_factory.mktemp("bench"), Path.cwd()
    os.chdir(folder)
    prepare(folder)
    yield folder
    os.chdir(before)
    shutil.rmtree(folder)


def faults(kind: str, seeds: range) -> list[str]:
    found = []
    for seed in seeds:
        args, wrong = attempt(kind, seed)
        if wrong is not None:
            found.append(f"attempt({kind!r}, {seed}): {[arg[:60] for arg in args]} {wrong}")
    return found


@pytest.mark.usefixtures("bench")
@pytest.mark.parametrize("kind", KINDS)
def test_a_few_mutated_inputs_are_read_or_refused(kind: str) -> None:
    assert faults(kind, range(FEW)) == []


@pytest.mark.slow
@pytest.mark.usefixtures("bench")
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_inputs_are_read_or_refused_in_one_line(kind: str) -> None:
    assert faults(kind, range(KINDS[kind][1])) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
SETTINGS: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


@pytest.mark.slow
@pytest.mark.usefixtures("bench")
@settings(max_examples=300, **SETTINGS)
@given(st.text(), st.sampled_from(["explain", "run", "report", "resume", "label-errors", "predict", "compare", ""]))
def test_any_words_are_read_or_refused(words: str, command: str) -> None:
    wrong = fault([command, *(["--method"] if command == "run" else []), words])
    assert wrong is None


@pytest.mark.slow
@pytest.mark.usefixtures("bench")
@settings(max_examples=300, **SETTINGS)
@given(st.sampled_from(["run.json", "model/data.json", "model/config.json", "metrics.jsonl"]), JSON, st.booleans())
def test_any_json_in_place_of_a_record_is_read_or_refused(name: str, value: object, learner: bool) -> None:
    shutil.rmtree("m", ignore_errors=True)
    shutil.copytree("learner" if learner else "network", "m")
    Path("m", name).write_text(json.dumps(value))
    for command in (["report", "m"], ["predict", "m", "t.csv"], ["vitals", "m"]):
        assert fault(command) is None
