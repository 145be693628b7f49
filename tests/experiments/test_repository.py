"""Models pushed to a folder of repositories and pulled again, and the calls of the hub's own client."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

import selfdistill
from selfdistill.errors import CheckpointError, DataError
from selfdistill.experiments.repository import FILES, FolderHub, HuggingFaceHub, pull, push
from tests.terminal import passed, refused

SECRET = "a word of the data"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of a table with a column of names, each of one row."""
    folder = tmp_path_factory.mktemp("repository")
    lines = [f"{i},{SECRET} {i},{'yes' if i % 2 else 'no'}" for i in range(60)]
    (folder / "t.csv").write_text("\n".join(["x,name,outcome", *lines]) + "\n")
    made = (folder / "t.csv", "--target", "outcome", "--model", "mlp", "--method", "plain()", "--steps", 2)
    passed("run", *made, "--column", "name=identifier", "--quiet", "--out", folder / "r")
    (folder / "r" / "model" / "notes.csv").write_text(SECRET)
    return folder / "r"


def test_a_pushed_model_comes_back_with_the_same_numbers_and_without_the_data(run: Path, tmp_path: Path) -> None:
    said = passed("push", run, "me/own", "--hub", tmp_path / "hub").stdout
    assert said == f"pushed to {tmp_path}/hub/me/own\n"
    assert (tmp_path / "hub/me/own").stat().st_mode & 0o077 == 0, "private unless --public"
    names = {path.name for path in (tmp_path / "hub/me/own").iterdir()}
    assert names == {"README.md", "config.json", "data.json", "model.safetensors", "preprocessor.skops"}
    for path in (tmp_path / "hub/me/own").iterdir():
        assert SECRET.encode() not in path.read_bytes(), path.name
    card = (tmp_path / "hub/me/own/README.md").read_text()
    assert card.startswith("---\npipeline_tag: tabular-classification\nlibrary_name: selfdistill\n")
    assert not {"name", "fingerprint", "rows"} & set(json.loads((tmp_path / "hub/me/own/data.json").read_text()))
    passed("pull", "me/own", tmp_path / "own", "--hub", tmp_path / "hub")
    table = run.parent / "t.csv"
    assert passed("predict", tmp_path / "own", table).stdout == passed("predict", run, table).stdout
    assert "is not empty" in refused("pull", "me/own", tmp_path / "own", "--hub", tmp_path / "hub")
    assert "cannot be pulled (there is no" in refused("pull", "me/other", tmp_path / "o", "--hub", tmp_path / "hub")
    assert "names no repository" in refused("push", run, "../own", "--hub", tmp_path / "hub")


def test_a_pulled_model_runs_nothing_and_leaves_nothing(run: Path, tmp_path: Path) -> None:
    hub = FolderHub(tmp_path / "hub")
    push(run, "me/evil", hub)
    config = tmp_path / "hub/me/evil/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "spec": "evil.py:build", "options": {}}))
    (tmp_path / "hub/me/evil/evil.py").write_text("raise SystemExit")
    (tmp_path / "hub/me/evil/weights.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="trust"):
        pull("me/evil", tmp_path / "evil", hub)
    assert not (tmp_path / "evil").exists()


def test_learners_go_and_those_that_keep_their_rows_do_not(run: Path, tmp_path: Path) -> None:
    hub, table = FolderHub(tmp_path / "hub"), run.parent / "t.csv"
    for model, stays in (("forest(trees=2)", False), ("neighbours", True)):
        made = (table, "--target", "outcome", "--column", "name=identifier", "--model", model, "--method", "plain()")
        passed("run", *made, "--quiet", "--out", tmp_path / model[:4])
        if stays:
            with pytest.raises(DataError, match="keeps the rows it was fitted on"):
                push(tmp_path / model[:4], "me/own", hub)
        else:
            push(tmp_path / model[:4], "me/forest", hub, public=True)
            place = pull("me/forest", tmp_path / "back", hub)
            expected = selfdistill.load(tmp_path / model[:4]).predict(str(table)).text()
            assert selfdistill.load(place).predict(str(table)).text() == expected


def test_the_client_of_the_hub_is_called_as_it_is_declared(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its three functions keep repositories in a folder here; arguments that they do not have would be refused."""
    calls = []

    def declared(owner: Any, name: str, answer: Any) -> None:
        signature = inspect.signature(getattr(owner, name))

        def call(*given: Any, **named: Any) -> Any:
            arguments = signature.bind(*given, **named).arguments
            calls.append((name, arguments))
            return answer(arguments)

        monkeypatch.setattr(owner, name, call)

    store = tmp_path / "store"
    declared(huggingface_hub.HfApi, "create_repo", lambda given: f"https://hub/{given['repo_id']}")
    declared(
        huggingface_hub.HfApi,
        "upload_folder",
        lambda given: shutil.copytree(given["folder_path"], store / given["repo_id"]),
    )
    declared(
        huggingface_hub,
        "snapshot_download",
        lambda given: shutil.copytree(store / given["repo_id"], given["local_dir"]),
    )
    assert push(run, "me/own", HuggingFaceHub()) == "https://hub/me/own"
    assert selfdistill.load(pull("me/own", tmp_path / "own", HuggingFaceHub())).predict(str(run.parent / "t.csv"))
    assert [name for name, _ in calls] == ["create_repo", "upload_folder", "snapshot_download"]
    assert calls[0][1]["private"] is True
    assert calls[2][1]["allow_patterns"] == list(FILES)
