"""Data without a single label: features are learnt, a run goes on and is begun from, and nothing is scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from selfdistill import fit
from selfdistill.cli import main
from selfdistill.data.dataset import Data, load
from selfdistill.errors import DataError
from selfdistill.experiments.run import Run
from selfdistill.io import checkpoint
from selfdistill.io.run_record import Request
from selfdistill.methods import recipes
from selfdistill.models import registry, store
from selfdistill.training.callbacks import read_vitals
from tests.harness import build

BYOL = "byol(hidden=8, width=4)"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images without classes, and a table whose target is empty everywhere; labelled ones beside them."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for number in range(24):
        picture = Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8))
        for folder in ("photos", f"sorted/{'ab'[number % 2]}"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            picture.save(root / folder / f"{number}.png")
    rows = [f"{rng.normal():.3f},{rng.normal():.3f},{'uv'[i % 2]}" for i in range(30)]
    (root / "none.csv").write_text("a,b,kind,y\n" + "".join(f"{row},\n" for row in rows))
    (root / "plain.csv").write_text("a,b,kind\n" + "".join(f"{row}\n" for row in rows))
    return root


def asked(places: Path, **more: object) -> Request:
    usual = {"data": str(places / "photos"), "image_size": 8, "model": "mlp(width=6)", "method": BYOL, "steps": 6}
    return Request(**{**usual, **more})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def done(places: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "features"
    Run.create(asked(places), folder).execute(warn=lambda line: None)
    return folder


def loose(places: Path) -> Data:
    return load(str(places / "photos"), image_size=8, labelled=False)


@pytest.mark.parametrize(
    ("name", "target", "columns"),
    [("none.csv", "y", ["a", "b", "kind"]), ("plain.csv", None, ["a", "b", "kind"])],
)
def test_tables_without_labels(name: str, target: str | None, columns: list[str], places: Path) -> None:
    """A target that is empty everywhere is no input; without one all columns are, and the note says which."""
    data = load(str(places / name), target=target, labelled=False)
    assert (data.task, data.outputs, len(data.unlabelled)) == ("features", 1, 30)
    assert [len(ids) for ids in (data.labelled, data.audit, data.test)] == [0, 0, 0]
    assert bool((data.y == -1).all())
    assert f"no row has a label (inputs: {', '.join(columns)}); nothing can be scored" in data.note


def test_a_table_with_some_labels_is_split_as_ever(places: Path) -> None:
    one, other = (load(str(places / "plain.csv"), target="kind", labelled=needed) for needed in (True, False))
    assert other.task == "classify"
    assert other.fingerprint == one.fingerprint


def test_images_without_classes(places: Path, tmp_path: Path) -> None:
    """In the folder itself, in one called ``unlabelled``, and in another one; each once, in the order of names."""
    data = loose(places)
    assert (data.task, data.shape, len(data.unlabelled), data.classes) == ("features", (1, 8, 8), 24, ())
    names = sorted(str(path) for path in (places / "photos").iterdir())
    assert list(data.names) == names
    first = torch.from_numpy(np.array(Image.open(names[0])))
    assert data.tensor[0, 0].equal(first)
    (tmp_path / "unlabelled").mkdir()
    Image.open(names[0]).save(tmp_path / "unlabelled" / "x.png")
    assert len(load(str(tmp_path), labelled=False).x) == 1
    both = load(str(places / "photos"), unlabelled=str(tmp_path), image_size=8, labelled=False)
    assert len(both.unlabelled) == 25


def test_a_run_scores_nothing_and_keeps_the_last_weights(places: Path, done: Path) -> None:
    """The final model has the weights that ``fit`` ends with; it has no control, no label errors, no test figures."""
    result = Run.open(done).result()
    assert result is not None
    assert result["test"] == {} == result["generations"][0]["test"] == result["generations"][0]["audit"]
    assert not {"plain", "label_errors", "reliability"} & set(result)
    assert not (done / "control").exists()
    settings = json.loads((done / "run.json").read_text())["settings"]
    built = registry.parse("mlp(width=6)", (1, 8, 8), 1)
    found = fit(built, loose(places), recipes()["byol"](hidden=8, width=4), **settings).generations[-1]
    kept = store.load(done / "model").state_dict()
    assert kept
    assert all(value.equal(found.weights[f"model.{name}"]) for name, value in kept.items())
    assert (
        "nothing was scored or validated, and the last weights are the final model" in (done / "README.md").read_text()
    )
    assert "tested" not in (done / "model" / "README.md").read_text()


def test_a_run_that_was_cut_goes_on(places: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, keep = list[int](), checkpoint.write

    def cut(*args: object, **kwargs: object) -> object:
        found = keep(*args, **kwargs)  # type: ignore[arg-type]
        written.append(1)
        if len(written) == 3:
            raise KeyboardInterrupt
        return found

    request = asked(places, training=(("save_steps", 1),))
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write", cut)
        with pytest.raises(KeyboardInterrupt):
            Run.create(request, tmp_path / "run").execute(warn=lambda line: None)
    Run.open(tmp_path / "run").execute(warn=lambda line: None)
    one, other = (store.load(folder / "model").state_dict() for folder in (done, tmp_path / "run"))
    assert all(value.equal(other[name]) for name, value in one.items())


def test_another_run_begins_with_it(places: Path, done: Path, tmp_path: Path) -> None:
    """All layers but the classifier, whose width is that of the classes now."""
    request = asked(
        places, data=str(places / "sorted"), method="plain()", model=None, steps=1, init=str(done),
        training=(("lr", 1e-30), ("weight_decay", 0.0)),
    )  # fmt: skip
    Run.create(request, tmp_path / "run").execute(warn=lambda line: None)
    before, after = (store.load(folder / "model").state_dict() for folder in (done, tmp_path / "run"))
    assert after["classifier.weight"].shape == (2, 6)
    assert all(value.equal(after[name]) for name, value in before.items() if not name.startswith("classifier"))


def test_the_commands_that_read_a_run_read_it(done: Path) -> None:
    for command in ("report", "vitals", "resume"):
        said = CliRunner().invoke(main, [command, str(done)])
        assert said.exit_code == 0, said.output
    page = (done / "report.html").read_text()
    assert "training loss by step" in page
    assert "by step" in page
    assert "audit accuracy" not in page
    assert "On the test split" not in page
    terms = read_vitals(done)["generations"][0]["terms"]
    assert all(0.0 < value <= 1.0 for term in terms.values() for value in term["spread"])


def refused(*arguments: str) -> str:
    """What the command line says, in one line, with exit code 2."""
    said = CliRunner().invoke(main, list(arguments))
    assert said.exit_code == 2, said.output
    assert said.output.count("\n") == 1
    return said.output


def test_what_needs_labels_is_refused_in_one_line(places: Path, done: Path, tmp_path: Path) -> None:
    photos, out = str(places / "photos"), ["--quiet", "--out", str(tmp_path / "run")]
    features = "`run` learns features, by --method 'byol()' or its like"
    assert f"without classes {features}" in refused("run", photos, "--method", "elr()", *out)
    assert f"without classes {features}" in refused("run", photos, *out)
    assert f"without classes {features}" in refused("compare", photos, "--methods", BYOL, "--seeds", "3", *out)
    assert f"without one {features}" in refused("run", str(places / "plain.csv"), "--method", "plain()", *out)
    assert "is empty in every row" in refused(
        "run", str(places / "none.csv"), "--target", "y", "--method", "elr()", *out
    )
    assert "leave --audit-folds out" in refused("run", photos, "--method", BYOL, "--audit-folds", "3", *out)
    assert "leave --audit-epochs out" in refused("run", photos, "--method", BYOL, "--audit-epochs", "1", *out)
    assert "a number of labels was asked for" in refused("run", photos, "--method", BYOL, "--labels", "4", *out)
    assert "knows no classes" in refused("predict", str(done), photos)
    assert "no label errors to list" in refused("label-errors", str(done))
    assert not (tmp_path / "run").exists()


def test_who_trains_in_python_is_told_too(places: Path) -> None:
    with pytest.raises(DataError, match=r"photos: no row has a label, and this method learns from labels; .* byol\(\)"):
        fit(build, loose(places), recipes()["plain"](), steps=1)
    with pytest.raises(DataError, match="no sub-folder with images"):
        load(str(places / "photos"))


def test_a_table_is_told_of_and_its_result_is_json(places: Path, tmp_path: Path) -> None:
    """Through the command line: the note says what is read, and stdout is the result."""
    place = str(places / "plain.csv")
    options = ["--method", "simsiam(width=8)", "--model", "mlp(width=6)", "--steps", "2"]
    said = CliRunner().invoke(main, ["run", place, *options, "--json", "--out", str(tmp_path / "run")])
    assert said.exit_code == 0, said.output
    assert said.stderr.splitlines()[0] == "plain.csv: 30 rows without a target"
    assert said.stderr.splitlines()[5] == (
        "plain.csv: no row has a label (inputs: a, b, kind); nothing can be scored; the last weights are the "
        "final model"
    )
    found = json.loads(said.stdout)
    assert (found["data"]["task"], found["data"]["classes"], found["probed"]) == ("features", [], True)
