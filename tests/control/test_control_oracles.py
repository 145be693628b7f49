"""Every recipe for policies against a plain training loop: the same losses, and the same weights at the end."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfdistill.control.recipes import RECIPES
from tests.control.replay import record

FOLDER = Path(__file__).parents[1] / "oracles" / "control"
MAKE: dict[str, Any] = dict(RECIPES)

#: Arguments with which a tiny training shows what each of them does.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("kickstart", {"release": 0.8, "steps": 4}),
    ("kickstart", {"weight": 0.4, "release": 1.0, "steps": 3, "temperature": 0.5, "value": 0.3, "warm_up": 2}),
    ("privileged", {"steps": 4}),
    ("privileged", {"weight": 2.0, "release": 0.9, "steps": 3, "temperature": 1.0, "warm_up": 1}),
    ("policy_distillation", {"steps": 3, "temperature": 0.3}),
    ("policy_distillation", {"steps": 3, "states": "mixed", "loss": "nll"}),
    ("policy_distillation", {"steps": 2, "states": "teacher", "loss": "mse"}),
    ("dagger", {"share": 0.6, "steps": 3}),
    ("born_again_policy", {"generations": 3, "release": 0.7, "steps": 3}),
    ("iter_policy", {"generations": 3}),
    ("iter_policy", {"value": 0.0}),
    ("self_imitation", {"weight": 0.5, "steps": 4, "rows": 32, "value": 0.2}),
    ("self_imitation", {"steps": 2, "value": 0.0}),
    ("policy_peers", {"members": 2, "release": 0.8, "steps": 3}),
    ("restarted", {}),
    ("continued", {}),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{name}{place}" for place, (name, _) in enumerate(CASES)])
def test_a_recipe_is_its_plain_training_loop(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = record(MAKE[name], options, monkeypatch)
    losses, networks = importlib.import_module(f"tests.oracles.control.{name}").oracle(run, **options)
    ours, theirs = ([loss for loss in some if loss] for some in (run.losses, losses))
    np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=1e-4)
    assert (len(ours) > 6) == (name not in ("restarted", "continued"))
    for training, network in zip(run.trainings, networks, strict=True):
        for weight, mine in network.policy.state_dict().items():
            torch.testing.assert_close(training.final[weight], mine, atol=2e-5, rtol=1e-3, msg=weight)


def test_every_recipe_has_an_oracle_with_its_arguments_that_imports_nothing_of_the_package() -> None:
    files = {path.stem: path for path in FOLDER.glob("[!_]*.py")}
    assert set(files) == set(RECIPES) == {name for name, _ in CASES}
    for name, path in files.items():
        oracle = importlib.import_module(f"tests.oracles.control.{name}").oracle
        given = {p.name: p.default for p in inspect.signature(oracle).parameters.values() if p.name != "run"}
        assert given == {p.name: p.default for p in inspect.signature(MAKE[name]).parameters.values()}
        nodes = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        modules = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in nodes}
        assert modules <= {"__future__", "copy", "typing", "torch", "tests.control.replay"}
