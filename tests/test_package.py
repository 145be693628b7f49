"""The package as a whole: what importing costs, what is public, what a wheel holds, and what the code never does."""

from __future__ import annotations

import ast
import inspect
import json
import os
import shutil
import statistics
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import selfdistill
from selfdistill import methods
from selfdistill.experiments.task_types import TASK_TYPES
from selfdistill.methods import recipes
from tools.generate import public_api

ROOT = Path(selfdistill.__file__).parent
TESTS = Path(__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
HEAVY = ("torch", "numpy", "pandas", "PIL", "sklearn", "skops", "pyarrow", "rich", "safetensors", "torchvision")


def loaded_by(code: str) -> set[str]:
    """Top-level modules in sys.modules after this code, in a process of its own."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
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
        "from click.testing import CliRunner; from selfdistill.cli import main; "
        "assert 'elr(weight' in CliRunner().invoke(main, ['methods']).output",
    ],
    ids=["import", "help", "methods"],
)
def test_importing_helping_and_listing_load_nothing_heavy(code: str) -> None:
    assert loaded_by(code) & set(HEAVY) == set()


def test_the_commands_that_learn_no_table_load_no_scikit_learn() -> None:
    """Every run asks each task type whether the request is its own."""
    code = (
        "from selfdistill.experiments.task_types import TASK_TYPES; from selfdistill.io.run_record import Request; "
        "import selfdistill.experiments.run, selfdistill.report; "
        "assert TASK_TYPES.of_request(Request(data='photos', model='cnn')).name == 'network'"
    )
    assert loaded_by(code) & {"sklearn", "pandas", "scipy", "skops"} == set()


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
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    folders = {name.split(".")[1] for name in ast.literal_eval(done.stdout)}
    assert folders == {"core", "errors", "io", "models"}


def test_the_public_names_and_signatures_are_those_of_the_file() -> None:
    assert public_api() == (TESTS / "public_api.txt").read_text(encoding="utf-8"), (
        "a public name or signature changed; if that is meant, run `python tools/generate.py tests/public_api.txt` and "
        "say so in CHANGELOG.md"
    )


def test_every_public_name_exists_and_an_editor_sees_it() -> None:
    """What the root loads by name is also imported for type checkers, from the same module."""
    tree = ast.parse((ROOT / "__init__.py").read_text())
    (block,) = (n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    homes = {a.name: node.module or "" for node in block.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert sorted(homes) == sorted(selfdistill.__all__)
    assert {name: home for name, home in homes.items() if home} == selfdistill._HOMES
    assert set(selfdistill.__all__) <= set(dir(selfdistill))
    for name in selfdistill.__all__:
        assert getattr(selfdistill, name) is not None
    missing = "fitt"
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        getattr(selfdistill, missing)


def test_every_recipe_is_exported_by_name() -> None:
    """`recipes` finds them by annotation; the exports are written out."""
    assert set(methods.__all__) == {*recipes(), "Recipe", "recipes"}
    assert all(getattr(methods, name) is recipe for name, recipe in recipes().items())


def test_no_module_takes_the_place_of_a_public_function() -> None:
    """Importing a submodule of the same name would turn ``selfdistill.fit`` into a module."""
    modules = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    public = set(selfdistill.__all__) & modules
    assert public == {"gates", "losses", "methods", "schedules", "teachers", "views"}


def _built(source: Path, out: Path, kind: str) -> Path:
    """Build a wheel or a source distribution of a folder."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=True)
    return out / done.stdout.splitlines()[-1]


def test_a_wheel_from_the_source_distribution_prints_the_oracles_and_lists_the_recipes(tmp_path: Path) -> None:
    """They are text there and no modules; the package's own modules are those of the checkout."""
    project, sdist, wheel = (tmp_path / name for name in ("project", "sdist", "wheel"))
    for name in ("selfdistill", "tests/oracles"):
        shutil.copytree(ROOT.parent / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT.parent / name, project / name)
    sdist.mkdir()
    shutil.unpack_archive(_built(project, sdist, "sdist"), sdist)
    (unpacked,) = (path for path in sdist.iterdir() if path.is_dir())
    with zipfile.ZipFile(_built(unpacked, tmp_path, "wheel")) as archive:
        archive.extractall(wheel)
    shipped = {path.relative_to(wheel) for path in (wheel / "selfdistill").rglob("*.py")}
    assert shipped == {path.relative_to(ROOT.parent) for path in FILES}
    oracle = (TESTS / "oracles" / "elr.py").read_text()
    assert (wheel / "selfdistill/methods/oracles/elr.py.txt").read_text() == oracle
    texts = {path.stem.removesuffix(".py") for path in (wheel / "selfdistill/methods/oracles").rglob("*.txt")}
    assert texts == {name for task in TASK_TYPES for name in task.recipes()}
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    for command, expected in ((["explain", "elr", "--code"], oracle.strip()), (["methods"], "elr(weight=3.0")):
        done = subprocess.run(
            [sys.executable, "-m", "selfdistill", *command],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert expected in done.stdout


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
        tensors_alone = {
            node.func
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and ast.unparse(node).endswith("weights_only=True)")
        }
        for node in ast.walk(tree):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            found += [f"{name}: imports {m}" for m in modules if m.split(".")[0] in forbidden_modules]
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in forbidden_calls:
                found.append(f"{name}:{node.lineno} calls {node.func.id}")
            if isinstance(node, ast.Attribute) and ast.unparse(node) in forbidden_names and node not in tensors_alone:
                found.append(f"{name}:{node.lineno} uses {ast.unparse(node)}")
    assert found == []


def test_no_file_speaks_of_one_machine_or_of_unfinished_work() -> None:
    words = (str(ROOT.parent), str(Path.home()), "TODO", "FIXME", "XXX")
    found = [f"{p.relative_to(ROOT)}: {w}" for p in FILES for w in words if w in p.read_text()]
    assert found == []


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring, which is as long as what a caller must know."""
    lines = (node.end_lineno or 0) - node.lineno + 1
    docstring = node.body[0]
    return lines - ((docstring.end_lineno or 0) - docstring.lineno + 1 if ast.get_docstring(node) else 0)


def test_functions_stay_under_60_lines() -> None:
    long = [
        f"{name}: {node.name}"
        for name, tree in _trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _length(node) >= 60
    ]
    assert long == []


def test_most_functions_stay_under_25_lines() -> None:
    lengths = [_length(node) for _, tree in _trees() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert sorted(lengths)[int(0.9 * len(lengths))] < 30
    assert sorted(lengths)[len(lengths) // 2] <= 10


def test_every_recipe_has_an_oracle_and_no_module_hides_a_recipe() -> None:
    modules = {path.stem for path in (ROOT / "methods").glob("*.py")}
    assert modules & set(recipes()) == set()
    oracles = {path.stem for path in (TESTS / "oracles").glob("*.py")} - {"__init__"}
    assert oracles == set(recipes())


def test_a_recipe_is_short() -> None:
    """At most twenty lines of code each and half of them ten or fewer, so that a new one costs little."""
    lines = dict[str, int]()
    for name, recipe in recipes().items():
        tree = ast.parse(Path(inspect.getfile(inspect.unwrap(recipe))).read_text())
        (lines[name],) = (_length(n) for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
    assert {name: n for name, n in lines.items() if n > 20} == {}
    assert statistics.median(lines.values()) <= 10
