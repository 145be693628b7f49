"""Every recipe for language models against a plain training loop: the same prompts, losses and final weights."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill.language.recipes import RECIPES
from selfdistill.language.sampling import export
from tests.language.replay import record
from tests.language.tiny import foreigner

FOLDER = Path(__file__).parents[1] / "oracles" / "language"
MAKE: dict[str, Any] = dict(RECIPES)
SHORT = {"max_tokens": 5}

#: Arguments with which a tiny model shows what each of them does.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("sft", {}),
    ("mutual_adapters", {"peers": 3, "weight": 0.7}),
    ("sdft", {**SHORT, "rate": 0.3, "skip": 1}),
    ("sdft", {**SHORT, "turns": True, "skip": 0}),
    ("sdft_2024", SHORT),
    ("sdpo", {**SHORT, "samples": 3, "k": 5, "rate": 0.3}),
    ("sdpo", {**SHORT, "samples": 3, "grpo": 0.4, "trust": True, "rate": 0.3}),
    ("opsd", SHORT),
    ("ssd", SHORT),
    ("opcd", {**SHORT, "k": 7}),
    ("opcd", {**SHORT, "instruction": "Be brief."}),
    ("context_distillation", SHORT),
    ("context_distillation", {**SHORT, "instruction": "Be brief.", "hard": True}),
    ("gkd", {**SHORT, "beta": 0.3}),
    ("gold", {**SHORT, "max_tokens": 7, "beta": 0.3}),
    ("gold", {**SHORT, "share": 0.0, "matched": 0.6}),
    ("uld", {"weight": 0.8}),
    ("minillm", SHORT),
    ("minillm", {**SHORT, "share": 0.0}),
    ("star", {**SHORT, "generations": 2}),
    ("rest", {**SHORT, "generations": 2, "samples": 2}),
    ("rft", {**SHORT, "samples": 3}),
    ("spin", {**SHORT, "generations": 2, "lam": 0.5}),
    ("grpo", {**SHORT, "samples": 3}),
    ("opsdc", {**SHORT, "every": 1}),
    ("opsdc", {**SHORT, "instruction": "Brief!"}),
    ("eopd", {**SHORT, "k": 5, "entropy": 3.3, "weight": 0.7}),
    ("lsm", {**SHORT, "k": 5, "top_p": 0.8}),
    ("srpo", {**SHORT, "samples": 3, "k": 5, "rate": 0.3, "beta": 2.0}),
    ("gates", {"max_tokens": 1, "samples": 4, "agree": 2, "on": 0.5, "clip": 1.0}),
    ("gates", {"max_tokens": 1, "samples": 4, "agree": 2, "on": 0.0}),
    ("hindsight", {"skip": 1}),
    ("opsdl", SHORT),
    ("sd_zero", {**SHORT, "k": 5}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_recipe_is_its_plain_training_loop(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if name in ("gold", "uld"):
        export(foreigner(), tmp_path)
        options = {**options, "teacher": str(tmp_path)}
    run = record(MAKE[name](**options), monkeypatch)
    losses, model = importlib.import_module(f"tests.oracles.language.{name}").oracle(run, **options)
    assert run.replayed == len(run.draws)
    torch.testing.assert_close(torch.tensor(run.losses), torch.tensor(losses), atol=1e-5, rtol=1e-4, check_dtype=False)
    begun = dict(run.model().named_parameters())
    for weight, mine in model.named_parameters():
        torch.testing.assert_close(run.weights[weight].double(), mine.detach(), atol=1e-5, rtol=1e-3, msg=weight)
    assert any(not torch.equal(mine, begun[weight]) for weight, mine in model.named_parameters())


def test_every_recipe_has_an_oracle_with_its_arguments_that_imports_nothing_of_the_package() -> None:
    files = {path.stem: path for path in FOLDER.glob("[!_]*.py")}
    assert set(files) == set(RECIPES) == {name for name, _ in CASES}
    for name, path in files.items():
        oracle = importlib.import_module(f"tests.oracles.language.{name}").oracle
        given = {p.name: p.default for p in inspect.signature(oracle).parameters.values() if p.name != "run"}
        assert given == {p.name: p.default for p in inspect.signature(MAKE[name]).parameters.values()}
        modules = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
        assert modules <= {"__future__", "typing", "tests.language.replay"}
