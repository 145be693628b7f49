"""Every recipe against its straight-line twin: the same losses and the same weights, across a resume too."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from selfdistill import methods
from selfdistill.core.objective import Method
from selfdistill.errors import SelfdistillError
from selfdistill.views import AUGMENT
from tests import harness
from tests.harness import Recorded, record

RECIPES = methods.recipes()
FOLDER = Path(__file__).parent / "oracles"
LOSS, WEIGHT = 1e-6, 1e-6  # absolute; relative for what is larger than one

# Another setting of a recipe, in which every argument counts within two epochs of a tiny model. A recipe that is
# not here takes OTHER of its oracle's module or, without one, `changed`.
OTHER: dict[str, dict[str, Any]] = {
    "born_again": {"generations": 3, "xi": 0.6, "temperature": 2.0, "loss": "ce", "warm": True},
    "byot": {"alpha": 0.5, "temperature": 2.0, "feature": 0.2},
    "cs_kd": {"weight": 2.0, "temperature": 2.0},
    "curriculum": {"stages": 2, "balanced": False, "hard": False, "confidence": 0.36},
    "distil": {"alpha": 0.5, "temperature": 2.0},
    "dlb": {"alpha": 0.5, "temperature": 2.0},
    "elr": {"weight": 1.5, "decay": 0.9},
    "label_smoothing": {"smoothing": 0.3},
    "mutual": {"peers": 3, "weight": 0.5},
    "noisy_student": {
        "generations": 3,
        "ratio": 2.0,
        "min_confidence": 0.265,
        "hard": True,
        "smoothing": 0.2,
    },
    "plain": {},
    "ps_kd": {"alpha": 0.4},
    "self_adaptive": {"decay": 0.6, "wait": 0.0},
    "tf_kd": {"alpha": 0.5, "temperature": 2.0},
}
each_recipe = pytest.mark.parametrize("name", RECIPES)


def changed(recipe: Callable[..., Method]) -> dict[str, Any]:
    """Another value for each number and switch of a recipe: the first of a few that it takes and that it minds."""
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(recipe).parameters.items():
        for value in candidates(parameter.default):
            try:
                minds = recipe(**{name: value}) != recipe()
                recipe(**found, **{name: value})
            except (SelfdistillError, ValueError):
                continue
            if minds:
                found[name] = value
                break
    return found


def candidates(default: object) -> list[Any]:
    if isinstance(default, bool):
        return [not default]
    if isinstance(default, int):
        return [default + 1, default - 1]
    if isinstance(default, float):
        return [v for v in (default * 0.5, 0.5, (1 + default) / 2, default + 1) if v != default]
    return []


def setting(name: str) -> dict[str, Any]:
    """Another setting of this recipe; by itself where nobody has chosen one."""
    if name in OTHER:
        return OTHER[name]
    own = importlib.import_module(f"tests.oracles.{name}") if (FOLDER / f"{name}.py").exists() else None
    chosen: dict[str, Any] = getattr(own, "OTHER", None) or changed(RECIPES[name])
    return chosen


each_argument = pytest.mark.parametrize(("name", "argument"), [(n, a) for n in RECIPES for a in setting(n)])


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The models are tiny: threads cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def find(name: str) -> Callable[..., tuple[list[float], nn.Module]]:
    if not (FOLDER / f"{name}.py").exists():
        pytest.fail(
            f"the recipe {name} has no oracle: add tests/oracles/{name}.py with"
            " `def oracle(run: Recorded) -> tuple[list[float], nn.Module]`, the method as straight lines"
        )
    oracle: Callable[..., tuple[list[float], nn.Module]]
    oracle = importlib.import_module(f"tests.oracles.{name}").oracle
    return oracle


@functools.cache
def recorded(name: str, settings: tuple[tuple[str, Any], ...] = (), cut: int | None = None) -> Recorded:
    """One real run of the recipe; each is trained once for all the tests that ask for it."""
    with tempfile.TemporaryDirectory() as folder:
        return record(RECIPES[name](**dict(settings)), Path(folder) / "run", cut)


def other(name: str) -> Recorded:
    return recorded(name, tuple(setting(name).items()))


def differences(run: Recorded, losses: list[float], model: nn.Module) -> tuple[float, float]:
    """(worst loss, worst weight), each divided by max(1, its size); infinite where nothing can match."""
    assert run.final is not None
    wanted, got = run.final.state_dict(), model.state_dict()
    if len(losses) != len(run.losses) or wanted.keys() != got.keys():
        return float("inf"), float("inf")
    loss = max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(losses, run.losses, strict=True))
    pairs = [(got[key].double(), wanted[key].double()) for key in wanted]
    weight = max(float(((a - b).abs() / b.abs().clamp(min=1)).max()) for a, b in pairs)
    return loss, weight


def agree(name: str, run: Recorded, losses: list[float], model: nn.Module) -> None:
    loss, weight = differences(run, losses, model)
    assert loss <= LOSS, f"losses differ by {loss}; first at {first(run.losses, losses)}"
    assert weight <= WEIGHT, f"final weights differ by {weight}"


def first(wanted: list[float], got: list[float]) -> str:
    pairs = enumerate(zip(wanted, got, strict=False))
    return next((f"step {i}: {a} and {b}" for i, (a, b) in pairs if abs(a - b) > LOSS * max(1, abs(a))), "?")


def ids(run: Recorded) -> list[list[int]]:
    batches = (batch for g in range(len(run.steps)) for _, batch in run.batches(g))
    return [view.id.tolist() for batch in batches for view in batch.values()]


@each_recipe
def test_recipe_equals_its_oracle_at_the_defaults(name: str) -> None:
    run = recorded(name)
    agree(name, run, *find(name)(run))


@each_recipe
def test_recipe_equals_its_oracle_in_another_setting(name: str) -> None:
    oracle, run = find(name), other(name)
    agree(name, run, *oracle(run, **setting(name)))


@each_recipe
def test_recipe_equals_its_oracle_across_a_resume(name: str) -> None:
    """Cut inside the second epoch, or the second generation; nothing that follows may differ in a single bit."""
    oracle, run = find(name), recorded(name)
    lengths = [len(steps) for steps in run.steps]
    before = lengths[0] if len(lengths) > 1 else 0
    cut = recorded(name, cut=before + 3 * lengths[len(lengths) > 1] // 4)
    assert ids(cut) == ids(run)
    assert cut.losses == run.losses
    agree(name, cut, *oracle(cut))


@each_argument
def test_oracle_with_one_wrong_argument_disagrees(name: str, argument: str) -> None:
    """The comparison can fail, and each argument reaches both the recipe and the oracle."""
    run = other(name)
    wrong = {key: value for key, value in setting(name).items() if key != argument}
    try:
        loss, _ = differences(run, *find(name)(run, **wrong))
    except (AssertionError, IndexError):
        return  # the oracle noticed it by itself: other rows, other generations
    assert loss > 1e-4


def test_plain_oracle_disagrees_with_another_recipe() -> None:
    run = recorded("label_smoothing", (("smoothing", 0.01),))
    assert differences(run, *find("plain")(run))[0] > 1e-4


@each_recipe
def test_oracle_and_recipe_have_the_same_defaults(name: str) -> None:
    """Both were taken from the paper, one by one; a teacher's folder and augmentations are the harness's business."""
    recipe = {key: p.default for key, p in inspect.signature(RECIPES[name]).parameters.items()}
    recipe = {key: value for key, value in recipe.items() if value not in AUGMENT}
    recipe.pop("teacher", None)
    oracle = {key: p.default for key, p in inspect.signature(find(name)).parameters.items()}
    assert oracle.pop("run") is inspect.Parameter.empty
    assert oracle == recipe
    another = setting(name)
    assert set(another) <= set(recipe)
    assert name not in OTHER or set(another) == set(recipe)
    assert all(value != recipe[key] for key, value in another.items())


def test_settings_are_found_for_a_recipe_that_no_table_knows() -> None:
    """A new recipe takes two files; every known one with numbers shows what it would have got."""
    assert changed(RECIPES["elr"]) == {"weight": 1.5, "decay": 0.35}
    assert changed(RECIPES["mutual"])["peers"] == 3
    assert changed(RECIPES["noisy_student"])["hard"] is True
    assert changed(RECIPES["plain"]) == {}
    for name, chosen in OTHER.items():
        open_ones = {key for key, p in inspect.signature(RECIPES[name]).parameters.items() if p.default is None}
        numbers = {key for key, value in chosen.items() if not isinstance(value, str)}
        assert {*changed(RECIPES[name])} == numbers - open_ones


def very_sure(exits: bool = False) -> nn.Module:
    model = harness.TinyNet(exits)
    with torch.no_grad():
        for classifier in model.classifiers:
            classifier.get_parameter("weight").mul_(12)
    return model


def test_elr_equals_its_oracle_where_probabilities_are_clamped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "build", very_sure)
    with tempfile.TemporaryDirectory() as folder:
        run = record(RECIPES["elr"](), Path(folder) / "run")
    with torch.no_grad():
        assert min(float(run.model()(batch["x"].x).softmax(1).min()) for _, batch in run.batches()) < 1e-5
    agree("elr", run, *find("elr")(run))


@pytest.mark.parametrize("name", ["mean_teacher", "pi_model", "temporal_ensembling"])
def test_rows_with_and_without_a_label_in_the_same_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By which rows a mean is divided, and how far unlabelled ones count, shows only there."""
    mixed_data = harness.tiny_data()
    monkeypatch.setattr(harness, "tiny_data", lambda _: mixed_data)
    with tempfile.TemporaryDirectory() as folder:
        run = record(RECIPES[name](), Path(folder) / "run")
    mixed = [bool((batch["x"].y < 0).any()) for _, batch in run.batches()]
    assert sum(mixed) > len(mixed) / 2
    agree(name, run, *find(name)(run))


@pytest.mark.parametrize("name", ["fixmatch", "pseudo_label", "uda"])
def test_thresholds_that_follow_validation_rows(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Renewed after each epoch, across a resume too; pseudo-labels count once the model is right often enough."""
    monkeypatch.setattr(harness, "EPOCHS", 6)
    method = RECIPES[name](max_error=0.6)
    run, cut = record(method, tmp_path / "run"), record(method, tmp_path / "cut", cut=17)
    assert cut.losses == run.losses
    agree(name, run, *find(name)(run, max_error=0.6))
    assert differences(run, *find(name)(run, max_error=1e-9))[0] > 1e-4
    lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    thresholds = [next(iter(line["thresholds"].values())) for line in lines]
    assert thresholds[0] is None
    assert thresholds[-1] is not None


def test_dlb_remembers_the_new_half_of_a_batch_that_has_a_sample_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 42 rows a sample ends one epoch and begins the next, so that both halves of a batch have it."""
    mixed_data = harness.tiny_data()
    monkeypatch.setattr(harness, "tiny_data", lambda _: mixed_data)
    with tempfile.TemporaryDirectory() as folder:
        run = record(RECIPES["dlb"](), Path(folder) / "run")
    assert any(len(set(rows)) < len(rows) for rows in ids(run))
    agree("dlb", run, *find("dlb")(run))


def test_pool_methods_admit_rows_in_the_recorded_runs() -> None:
    """Otherwise their comparison would say nothing about pseudo-labels."""
    taught = {"noisy_student": "unlabelled", "curriculum": "x", "ups": "x"}
    for name, view in taught.items():
        run = other(name)
        counts = [sum(int((b[view].y < 0).sum()) for _, b in run.batches(g)) for g in range(len(run.steps))]
        assert counts[0] == 0
        assert all(count > 0 for count in counts[1:])


def test_oracles_import_nothing_of_the_package() -> None:
    allowed = {"__future__", "collections", "copy", "math", "numpy", "torch", "typing", "tests.harness", "tests.normal"}
    files = sorted(FOLDER.glob("*.py"))
    assert {file.stem for file in files} == {*RECIPES, "__init__"}
    for file in files:
        names: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = ["." * node.level + (node.module or "")]
            elif isinstance(node, ast.Name):
                names.add(node.id)
            for module in modules:
                root = module if module.startswith("tests") else module.partition(".")[0]
                assert root in allowed, f"{file.name} imports {module}"
        assert not names & {"__import__", "exec", "eval"}, file.name
