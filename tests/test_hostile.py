"""Folders and files of strangers: nothing in them runs, and each is refused in one line."""

from __future__ import annotations

import functools
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import selfdistill
from selfdistill.errors import CheckpointError, SelfdistillError
from selfdistill.io.run_record import write_record
from selfdistill.models import load
from tests.terminal import invoke, passed, refused

CANARY = "canary"  # a file that only code of the stranger would make
PROGRAM = f"open({CANARY!r}, 'w').close()\ndef build(*a, **k):\n    open({CANARY!r}, 'w').close()\n"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a network and one of a learner, with the table of the latter."""
    folder, before = tmp_path_factory.mktemp("originals"), Path.cwd()
    os.chdir(folder)
    try:
        rows = [f"{i % 7},{i % 5},{'yes' if i % 2 else 'no'}" for i in range(90)]
        Path("t.csv").write_text("\n".join(["a,b,y", *rows]) + "\n")
        passed("run", "digits", "--labels", 60, "--steps", 2, "--model", "mlp(width=8)", "--method", "plain()",
               "--no-control", "--out", "net", "--quiet")  # fmt: skip
        passed("run", "t.csv", "--target", "y", "--model", "forest(trees=3)", "--method", "plain()", "--out", "table",
               "--quiet")  # fmt: skip
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def evil(originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy to be changed, in the current folder; whatever is done with it, no code of it runs."""
    shutil.copytree(originals, tmp_path, dirs_exist_ok=True, symlinks=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outside.py").write_text(PROGRAM)
    (tmp_path / "net/model/inside.py").write_text(PROGRAM)
    yield tmp_path
    assert not Path(CANARY).exists()


def edit(path: str, **values: Any) -> None:
    """Change entries of a JSON file; an ellipsis removes one."""
    content = json.loads(Path(path).read_text())
    for name, value in values.items():
        if value is ...:
            content.pop(name, None)
        else:
            content[name] = value
    Path(path).write_text(json.dumps(content))


def forge(change: Callable[[dict[str, Any]], Any], folder: str = "net") -> None:
    """Change run.json as a stranger would, with digests that fit."""
    record = json.loads(Path(folder, "run.json").read_text())
    change(record)
    write_record(Path(folder, "run.json"), record)


# ---- code ------------------------------------------------------------------------------------------

SPECS = {
    "Python's own": "subprocess:call",
    "a shell": "os:system",
    "a built-in": "builtins:exec",
    "beside the folder": "outside:build",
    "a file beside the folder": "outside.py:build",
    "a file in the folder": "net/model/inside.py:build",
    "an odd name": "outside:1x",
}

LOADERS: dict[str, list[Any]] = {
    "predict": ["predict", "net", "digits"],
    "init": ["run", "digits", "--init", "net", "--model", "mlp", "--method", "plain()", "--steps", 2, "--out", "o"],
    "teacher": ["run", "digits", "--method", "distil('net')", "--steps", 2, "--model", "mlp(width=8)", "--out", "o"],
    "targets": ["run", "digits", "--method", "distil('net')", "--targets", "d", "--steps", 2, "--out", "o"],
}


@pytest.mark.parametrize("door", LOADERS)
@pytest.mark.parametrize("name", SPECS)
def test_a_model_that_names_code_is_not_loaded(name: str, door: str, evil: Path) -> None:
    edit("net/model/config.json", spec=SPECS[name], options={})
    line = refused(*LOADERS[door])
    assert SPECS[name].rpartition(":")[0] in line
    assert "--trust-code" in line
    with pytest.raises(SelfdistillError, match=r"trust_code|never run"):
        load("net/model")


@pytest.mark.parametrize("spec", ["subprocess:call", "net/model/inside.py:build", "inside:build"])
def test_some_code_is_never_run(spec: str, evil: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit("net/model/config.json", spec=spec, options={})
    monkeypatch.chdir("net/model")
    with pytest.raises(SelfdistillError):
        load(".", trust_code=True)
    monkeypatch.chdir(evil)
    assert "net" in refused("predict", "net", "digits", "--trust-code")


def test_code_of_ones_own_runs_where_it_is_trusted(evil: Path) -> None:
    layers = "nn.Sequential(nn.Flatten(), nn.Linear(64, outputs))"
    Path("own.py").write_text(f"from torch import nn\ndef net(shape, outputs):\n    return {layers}\n")
    made = ("digits", "--labels", 60, "--steps", 2, "--model", "own:net", "--method", "plain()", "--no-control")
    passed("run", *made, "--out", "mine", "--quiet")
    assert "--trust-code" in refused("predict", "mine", "digits")
    with pytest.raises(CheckpointError, match="trust"):
        selfdistill.load("mine")
    assert passed("predict", "mine", "digits", "--trust-code").stdout.count("\n") > 100
    forge(lambda record: record.pop("result"), "mine")
    shutil.rmtree("mine/model")
    assert "mine/run.json names own:net" in refused("resume", "mine", "--quiet")
    passed("resume", "mine", "--quiet", "--trust-code")
    forge(lambda record: record.pop("result"), "mine")
    passed("run", *made, "--out", "mine", "--quiet")  # what is typed here is one's own


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("sealed", [True, False])
def test_a_record_that_names_code_is_not_resumed(name: str, sealed: bool, evil: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        del record["result"]
        record["request"]["model"] = SPECS[name]

    if sealed:
        forge(change)
    else:
        record = json.loads(Path("net/run.json").read_text())
        change(record)
        Path("net/run.json").write_text(json.dumps(record))
    refused("resume", "net", "--quiet")


def test_a_checker_that_prompts_name_is_not_run(evil: Path) -> None:
    rows = [{"prompt": f"{i}?", "answer": "1", "checker": "outside:build"} for i in range(20)]
    Path("p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = refused("run", "p.jsonl", "--method", "ssd()", "--steps", 1, "--out", "o")
    assert "p.jsonl:1 names outside:build" in line
    assert "--trust-code" in line


@pytest.mark.parametrize("module", ["torch", "numpy", "sklearn", "skops", "pandas", "inside"])
def test_modules_beside_the_data_are_not_imported(module: str, evil: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder is a stranger's: whatever it is called, its program is none of ours."""
    Path("net", f"{module}.py").write_text(PROGRAM)
    monkeypatch.chdir("net")
    passed("predict", ".", "digits")
    assert not Path(CANARY).exists()


def dangerous() -> dict[str, Any]:
    """Estimators that run something as soon as they are asked."""
    import sklearn.utils._testing as helpers
    from sklearn.preprocessing import FunctionTransformer

    script = f"open({CANARY!r}, 'w').close()"
    return {
        "a helper of scikit-learn": FunctionTransformer(
            functools.partial(helpers.assert_run_python_script_without_output, script)
        ),
        "a shell": FunctionTransformer(functools.partial(os.system, f"touch {CANARY}")),
        "a file": FunctionTransformer(functools.partial(np.save, CANARY)),
        "a bound method": FunctionTransformer(np.zeros(3).tofile, kw_args={"sep": ""}),
        "an import": FunctionTransformer(functools.partial(__import__, "outside")),
    }


@pytest.mark.parametrize("name", ["a helper of scikit-learn", "a shell", "a file", "a bound method", "an import"])
def test_an_estimator_that_names_functions_is_not_loaded(name: str, evil: Path) -> None:
    import skops.io
    from sklearn.dummy import DummyClassifier
    from sklearn.pipeline import Pipeline

    try:
        made = Pipeline([("f", dangerous()[name]), ("t", DummyClassifier().fit([[0], [1]], ["no", "yes"]))])
        skops.io.dump(made, "table/model/estimator.skops")
    except Exception as error:  # skops writes no such thing, so nothing has to be refused
        pytest.skip(str(error))
    assert "estimator.skops names" in refused("predict", "table", "t.csv")


def test_trees_that_lead_out_of_their_nodes_are_refused(evil: Path) -> None:
    import skops.io

    from selfdistill.estimators import load as load_estimator
    from selfdistill.estimators.io import TYPES

    estimator = skops.io.load("table/model/estimator.skops", trusted=sorted(TYPES))
    tree = estimator.estimator_.steps[-1][1].estimators_[0].tree_
    state = tree.__getstate__()
    state["nodes"]["left_child"][0] = 10**6
    tree.__setstate__(state)
    skops.io.dump(estimator, "table/model/estimator.skops")
    with pytest.raises(SelfdistillError, match="child that is not there"):
        load_estimator("table/model/estimator.skops")


# ---- records ---------------------------------------------------------------------------------------

DEEP = b"[" * 200_000
DAMAGE: dict[str, bytes] = {
    "deep": DEEP,
    "deep objects": b'{"a":' * 100_000,
    "no UTF-8": b'{"format": 2, "a": "\xff\xfe"}',
    "nan": b'{"format": 2, "shape": [NaN]}',
    "a huge number": b'{"format": 2, "shape": [' + b"9" * 5000 + b"]}",
    "a list": b"[1, 2]",
    "nothing": b"",
    "null": b"null",
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("file", ["run.json", "model/config.json", "model/data.json"])
def test_a_damaged_record_is_named(file: str, how: str, evil: Path) -> None:
    Path("net", file).write_bytes(DAMAGE[how])
    assert f"net/{file}" in refused("predict", "net", "digits") or file == "model/config.json"
    if file == "run.json":
        for command in (["report", "net"], ["resume", "net"], ["vitals", "net"]):
            assert "net/run.json" in refused(*command)


def put(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets an entry of a record."""

    def change(record: dict[str, Any]) -> None:
        for key in path[:-1]:
            record = record[key]
        record[path[-1]] = value

    return change


RECORDS: dict[str, Callable[[dict[str, Any]], None]] = {
    "a result of text": put("result", value="done"),
    "a result of nulls": lambda record: record["result"].update(dict.fromkeys(record["result"])),
    "texts for numbers": lambda record: record["result"].update(dict.fromkeys(record["result"], "x")),
    "generations": put("result", "generations", value="many"),
    "a generation": put("result", "generations", value=[3]),
    "steps": put("result", "steps", value="two"),
    "versions": put("versions", value=3),
    "settings": put("settings", value=3),
    "threads of text": put("threads", value="x"),
    "threads below 1": put("threads", value=-3),
    "a billion threads": put("threads", value=10**9),
    "a seed": put("request", "seed", value=10**400),
    "a batch": put("request", "batch_size", value=10**30),
    "training": put("request", "training", value=[1]),
    "rows": put("data", "rows", value=None),
    "classes": put("data", "classes", value={"a": 1}),
    "a task": put("data", "task", value="fly"),
    "a command": put("command", value="rm"),
}


@pytest.mark.parametrize("how", RECORDS)
def test_a_run_json_of_other_types_is_named(how: str, evil: Path) -> None:
    forge(RECORDS[how])
    for command in (["report", "net"], ["resume", "net", "--quiet"], ["predict", "net", "digits"]):
        assert "net/run.json" in refused(*command)


def test_a_line_that_is_dropped_is_noticed(evil: Path) -> None:
    lines = Path("net/run.json").read_text().splitlines()
    for number in [i for i, line in enumerate(lines) if line.startswith("    ") and line.endswith(",")][::5]:
        changed = "\n".join(lines[:number] + lines[number + 1 :])
        try:
            json.loads(changed)
        except ValueError:
            continue
        Path("net/run.json").write_text(changed)
        assert "net/run.json is damaged or foreign" in refused("report", "net")


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("net/model/config.json", {"shape": ["a"]}),
        ("net/model/config.json", {"shape": [-1]}),
        ("net/model/config.json", {"shape": [10**9, 10**9]}),
        ("net/model/config.json", {"outputs": 10**12}),
        ("net/model/config.json", {"options": {"width": 10**9}}),
        ("net/model/config.json", {"options": {"depth": 10**8}}),
        ("net/model/config.json", {"options": {"width": 10**6, "depth": 9}}),
        ("net/model/config.json", {"options": [1]}),
        ("net/model/config.json", {"scale": [1.0, -1.0]}),
        ("net/model/config.json", {"scale": ["a", "b"]}),
        ("net/model/config.json", {"wrap": "mean1000"}),
        ("net/model/config.json", {"spec": "mlp2"}),
        ("net/model/data.json", {"classes": None}),
        ("net/model/data.json", {"shape": ...}),
        ("net/model/data.json", {"kind": "film"}),
        ("net/model/data.json", {"task": 3}),
    ],
)
def test_a_model_folder_of_other_types_is_named(file: str, values: dict[str, Any], evil: Path) -> None:
    edit(file, **values)
    if "classes" in values:
        edit("net/model/config.json", classes=...)
    assert "net" in refused("predict", "net", "digits")


@pytest.mark.parametrize("values", [{"kinds": ...}, {"kinds": [1]}, {"classes": 3}, {"shape": "x"}])
def test_the_card_of_a_learner_of_other_types_is_named(values: dict[str, Any], evil: Path) -> None:
    edit("table/model/data.json", **values)
    assert "table/model" in refused("predict", "table", "t.csv")


@pytest.mark.parametrize("line", [b"\xff\xfe\n", b"[1]\n", b'{"step": "x"}\n', DEEP[:5000] + b"\n", b"{}\n"])
def test_a_damaged_log_is_named(line: bytes, evil: Path) -> None:
    with Path("net/metrics.jsonl").open("ab") as log:
        log.write(line)
    for command in (["report", "net"], ["vitals", "net"]):
        assert "net/metrics.jsonl, line " in refused(*command) or command[0] == "vitals"


# ---- weights ---------------------------------------------------------------------------------------


def header(content: Any, length: int | None = None) -> bytes:
    """A safetensors file with this header."""
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + b"\0" * 64


ONE = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
WEIGHTS: dict[str, bytes] = {
    "a huge header": header({}, 2**60),
    "overlap": header({"a": ONE, "b": {**ONE, "data_offsets": [8, 24]}}),
    "beyond the end": header({"a": {**ONE, "data_offsets": [0, 2**50]}}),
    "another size": header({"a": {**ONE, "shape": [10**9]}}),
    "no such type": header({"a": {**ONE, "dtype": "F3"}}),
    "nan for a size": header({"a": {**ONE, "shape": [float("nan")]}}),
    "a pickle": b"\x80\x04\x95",
    "deep": header({}, len(DEEP)) + DEEP,
}


@pytest.mark.parametrize("how", WEIGHTS)
def test_odd_weights_are_refused(how: str, evil: Path) -> None:
    Path("net/model/model.safetensors").write_bytes(WEIGHTS[how])
    assert "model.safetensors" in refused("predict", "net", "digits")


@pytest.mark.parametrize("how", ["integers", "nan", "complex", "torch.save"])
def test_weights_of_another_kind_are_refused(how: str, evil: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = Path("net/model/model.safetensors")
    weights = load_file(path)
    name = next(iter(weights))
    if how == "torch.save":
        torch.save(weights, path.with_name("weights.pt"))
    else:
        weights[name] = {
            "integers": weights[name].long(),
            "nan": weights[name] * float("nan"),
            "complex": weights[name].to(torch.complex64),
        }[how]
        save_file(weights, path)
    line = refused("predict", "net", "digits")
    assert name in line or "weights.pt" in line


def test_weights_that_may_not_be_read_are_not_missing(evil: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def refuse(path: Any, *args: Any, **options: Any) -> int:
        if str(path).endswith("model.safetensors"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **options)

    monkeypatch.setattr(os, "open", refuse)
    line = refused("predict", "net", "digits")
    assert "Permission denied" in line
    assert "chmod" in line


# ---- links -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["README.md", "metrics.jsonl", "model", "notes/far"])
def test_a_run_writes_through_no_link(name: str, evil: Path) -> None:
    forge(lambda record: record.pop("result"))
    path, victim = Path("net", name), Path("victim")
    (victim.mkdir if name == "model" else victim.touch)()
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(victim.resolve())
    assert f"net/{name} is a link" in refused("resume", "net", "--quiet")
    assert not (list(victim.iterdir()) if victim.is_dir() else victim.read_text())


def test_a_report_is_written_through_no_link(evil: Path) -> None:
    Path("victim").write_text("mine")
    Path("net/report.html").unlink()
    Path("net/report.html").symlink_to(Path("victim").resolve())
    assert "net/report.html is a link" in refused("report", "net")
    assert Path("victim").read_text() == "mine"


@pytest.mark.parametrize("file", ["run.json", "model/config.json", "model/model.safetensors"])
def test_a_pipe_is_not_waited_for(file: str, evil: Path) -> None:
    Path("net", file).unlink()
    os.mkfifo(Path("net", file))
    assert "regular file" in refused("predict", "net", "digits")


# ---- the log of a run that goes on -----------------------------------------------------------------


def test_a_changed_digit_of_the_log_is_undone(evil: Path) -> None:
    before = Path("net/metrics.jsonl").read_text()
    place = before.index("0.") + 2
    digit = "1" if before[place] != "1" else "2"
    Path("net/metrics.jsonl").write_text(before[:place] + digit + before[place + 1 :])
    forge(lambda record: record.pop("result"))
    result = invoke("resume", "net", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert "metrics.jsonl was changed since it was written" in result.stderr
    assert Path("net/metrics.jsonl").read_text() == before
