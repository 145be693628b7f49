"""A folder of another format is refused in one line that names the file and both numbers, by every command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from selfdistill.io.files import FORMAT
from tests.terminal import passed, refused

RUN = ("run", "digits", "--steps", 2, "--method", "plain()", "--quiet", "--out")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a network, and one of a table."""
    folder = tmp_path_factory.mktemp("format")
    passed(*RUN, folder / "network")
    passed("run", "iris", "--model", "linear", "--method", "plain()", "--quiet", "--out", folder / "table")
    return folder


def older(finished: Path, copy: Path, *files: str) -> Path:
    """A copy of a run whose files state format 1."""
    shutil.copytree(finished, copy)
    for file in files:
        value = json.loads((copy / file).read_text())
        assert value["format"] == FORMAT
        (copy / file).write_text(json.dumps({**value, "format": 1}))
    return copy


@pytest.mark.parametrize("kind", ["network", "table"])
@pytest.mark.parametrize("command", ["resume", "report"])
def test_a_run_of_format_1_is_refused(finished: Path, tmp_path: Path, kind: str, command: str) -> None:
    run = older(finished / kind, tmp_path / "run", "run.json")
    line = refused(command, run)
    assert "run.json is of format 1; this version of selfdistill reads format 2" in line


@pytest.mark.parametrize(
    ("kind", "file"), [("network", "model/config.json"), ("network", "model/data.json"), ("table", "model/data.json")]
)
def test_a_model_of_format_1_answers_nothing(finished: Path, tmp_path: Path, kind: str, file: str) -> None:
    run = older(finished / kind, tmp_path / "run", file)
    source = "digits" if kind == "network" else "iris"
    assert f"{Path(file).name} is of format 1; this version" in refused("predict", run, source)


def test_no_run_starts_from_a_model_of_format_1(finished: Path, tmp_path: Path) -> None:
    run = older(finished / "network", tmp_path / "run", "model/config.json")
    assert "config.json is of format 1; this version" in refused(*RUN, tmp_path / "next", "--init", run)
    assert not (tmp_path / "next").exists()


def test_a_file_that_states_no_format_is_refused(finished: Path, tmp_path: Path) -> None:
    run = older(finished / "network", tmp_path / "run")
    config = json.loads((run / "model/config.json").read_text())
    (run / "model/config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "format"}))
    assert "config.json states no format; this version" in refused("predict", run, "digits")
