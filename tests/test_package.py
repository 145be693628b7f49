"""The package as a whole: what importing costs, what is public, what the code never does, and how long it may be."""

from __future__ import annotations

import ast
import json
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import selfdistill
from selfdistill.methods import recipes

ROOT = Path(selfdistill.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
HEAVY = ("torch", "numpy", "pandas", "PIL", "sklearn", "skops", "pyarrow", "rich", "safetensors", "torchvision")
PUBLIC = [
    "Batch", "Clock", "Gate", "Method", "Objective", "Result", "Rows", "Run", "SelfdistillError", "Settings", "Step",
    "Tally", "Target", "Teacher", "Term", "fit", "gates", "heads", "load_model", "losses", "methods", "schedules",
    "teachers", "views",
]  # fmt: skip


def loaded_by(code: str) -> set[str]:
    """Top-level modules in sys.modules after this code, in a process of its own."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import selfdistill; assert selfdistill.__version__; assert dir(selfdistill)",
        "from click.testing import CliRunner; from selfdistill.cli import main; "
        "assert 'Usage' in CliRunner().invoke(main, ['--help']).output; "
        "assert '--method' in CliRunner().invoke(main, ['run', '--help']).output; "
        "assert CliRunner().invoke(main, ['run', '--bogus']).exit_code == 2; "
        "assert CliRunner().invoke(main, ['--version']).exit_code == 0",
    ],
    ids=["import", "help"],
)
def test_importing_and_helping_load_nothing_heavy(code: str) -> None:
    assert loaded_by(code) & set(HEAVY) == set()


def test_training_loads_no_torchvision_and_a_model_loads_no_training_code(tmp_path: Path) -> None:
    run = tmp_path / "run"
    names = loaded_by(
        "from click.testing import CliRunner; from selfdistill.cli import main; "
        f"assert CliRunner().invoke(main, ['run', 'digits', '--steps', '1', '--out', {str(run)!r}]).exit_code == 0"
    )
    assert "torch" in names
    assert names & {"torchvision", "PIL", "skops", "transformers", "lightning"} == set()
    script = (
        f"from selfdistill.models import load; import torch; model = load({str(run / 'model')!r}); "
        "assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10); import sys; "
        "print(sorted(name for name in sys.modules if name.startswith('selfdistill.')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    parts = set(ast.literal_eval(done.stdout))
    light = ("models", "errors", "expressions", "heads", "networks", "targets")
    assert parts <= {f"selfdistill.{name}" for name in light}


def test_the_public_names_are_these_and_all_exist() -> None:
    assert sorted(selfdistill.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(selfdistill, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = selfdistill.fitt


def test_no_module_takes_the_place_of_a_public_function() -> None:
    """Importing a submodule of the same name would turn ``selfdistill.fit`` into a module."""
    modules = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    public = {name for name in PUBLIC if name in modules}
    assert public == {"gates", "heads", "losses", "methods", "schedules", "teachers", "views"}


def test_the_version_is_that_of_the_project_file() -> None:
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    assert project["version"] == selfdistill.__version__
    assert project["scripts"]["selfdistill"] == "selfdistill.cli:main"
    assert (ROOT / "py.typed").exists()


def _trees() -> Iterator[tuple[str, ast.Module]]:
    for path in FILES:
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def test_no_file_unpickles_evaluates_or_imports_what_is_broken() -> None:
    """By the syntax tree, so that a comment or a method called ``eval`` is no false alarm."""
    forbidden_modules = {
        "pickle",
        "cPickle",
        "_pickle",
        "dill",
        "joblib",
        "cloudpickle",
        "marshal",
        "shelve",
        "torchvision",
    }
    forbidden_calls = {"eval", "exec", "compile", "__import__"}
    forbidden_names = {"torch.load", "torch.save", "np.load", "numpy.load"}
    found = []
    for name, tree in _trees():
        for node in ast.walk(tree):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            found += [f"{name}: imports {m}" for m in modules if m.split(".")[0] in forbidden_modules]
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in forbidden_calls:
                found.append(f"{name}:{node.lineno} calls {node.func.id}")
            if isinstance(node, ast.Attribute) and ast.unparse(node) in forbidden_names:
                found.append(f"{name}:{node.lineno} uses {ast.unparse(node)}")
    assert found == []


def test_no_file_speaks_of_one_machine_or_of_unfinished_work() -> None:
    words = (str(ROOT.parent), str(Path.home()), "TODO", "FIXME", "XXX")
    found = [f"{p.relative_to(ROOT)}: {w}" for p in FILES for w in words if w in p.read_text()]
    assert found == []


def test_files_stay_under_400_lines_and_functions_under_60() -> None:
    long = [f"{p.relative_to(ROOT)}: {n}" for p in FILES if (n := len(p.read_text().splitlines())) >= 400]
    for name, tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length >= 60:
                    long.append(f"{name}: {node.name} {length}")
    assert long == []


def test_most_functions_stay_under_25_lines() -> None:
    lengths = [
        (node.end_lineno or node.lineno) - node.lineno + 1
        for _, tree in _trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]
    assert sorted(lengths)[int(0.9 * len(lengths))] < 30
    assert sorted(lengths)[len(lengths) // 2] <= 10


def test_the_core_stays_small() -> None:
    """Code lines: without blank ones, comments and docstrings."""
    tree = ast.parse((ROOT / "core.py").read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0] = ast.Pass()
    assert len(ast.unparse(tree).splitlines()) <= 300


def test_every_recipe_has_an_oracle_and_no_module_hides_a_recipe() -> None:
    modules = {path.stem for path in (ROOT / "methods").glob("*.py")}
    assert modules & set(recipes()) == set()
    oracles = {path.stem for path in (Path(__file__).parent / "oracles").glob("*.py")} - {"__init__"}
    assert oracles == set(recipes())


def test_a_recipe_file_is_short() -> None:
    """At most forty lines a method, docstring included, and half of them under 25, so that a new one costs little."""
    lines = list[int]()
    for name, recipe in recipes().items():
        tree = ast.parse(Path(recipe.__code__.co_filename).read_text())
        (node,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
        lines.append((node.end_lineno or 0) - node.lineno + 1)
        assert lines[-1] <= 40, name
    assert statistics.median(lines) < 25
