"""Runs of learners: cut and resumed, predicted with, read back, and told in the run's own words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from selfdistill.data import frames
from selfdistill.estimators import load, run, save
from selfdistill.estimators.resume import FitProgress
from selfdistill.estimators.wrappers import MeanEnsemble
from selfdistill.experiments.run import Run
from selfdistill.io.run_record import Request
from selfdistill.models.store import model_card
from tests.terminal import passed, refused

BOOSTING = "boosting(iterations=10)"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learner") / "run"
    Run.create(Request("diabetes", labels=60, model=BOOSTING), folder).execute()
    return folder


def test_the_run_has_what_every_run_has(done: Path) -> None:
    names = {"run.json", "run.toml", "README.md", "report.html", "model", "cards.json", "label_errors.csv"}
    assert {p.name for p in done.iterdir()} == names
    assert {p.name for p in (done / "model").iterdir()} == {"estimator.skops", "data.json", "README.md"}
    result = json.loads((done / "run.json").read_text())["result"]
    assert result["test"].keys() == {"rmse", "mae", "r2", "coverage", "width"}
    assert result["plain"]["end"].keys() == result["test"].keys()
    assert result["data"]["rows"] == {"labelled": 60, "unlabelled": 294, "test": 88, "audit": 0}
    assert result["steps"] > 10
    spent, product = result["exploration"], load(done / "model" / "estimator.skops")
    assert spent["trying"] + spent["winner"] == result["steps"]
    assert spent["winner"] == product.trainings_ == len(product.estimator_.weights)  # the learners of the stack
    assert (
        f"exploration: {100 * spent['trying'] / result['steps']:.0f} % of the trainings"
        in (done / "README.md").read_text()
    )
    assert "of the trainings tried something out" in (done / "report.html").read_text()
    readme = (done / "README.md").read_text()
    assert "# auto() on diabetes" in readme
    assert 'load("model/estimator.skops")' in readme
    assert "<svg" in (done / "report.html").read_text()


@pytest.mark.parametrize("rows", [400, 30])
def test_a_run_hands_over_the_learner_alone_where_nothing_helps(rows: int, tmp_path: Path) -> None:
    """Values that are exactly linear, in many rows and in few."""
    x = np.random.default_rng(0).normal(size=(rows, 3))
    pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": x @ [1.0, 2.0, 3.0]}).to_csv(tmp_path / "t.csv")
    request = Request(str(tmp_path / "t.csv"), target="y", model="linear")
    result = Run.create(request, tmp_path / "run").execute()
    assert [trial["method"] for trial in result["auto"]["tried"] if trial["chosen"]] == ["the learner alone"]
    assert result["plain"]["end"]["rmse"] == result["test"]["rmse"]
    assert result["exploration"]["winner"] == 1
    readme = (tmp_path / "run" / "README.md").read_text()
    assert "auto(): nothing helps; the learner alone is the final model" in readme
    assert "RMSE on the test split" in readme
    assert "no later one" not in readme


def test_refit_fits_the_final_model_on_every_labelled_row(done: Path, tmp_path: Path) -> None:
    request = Request("diabetes", labels=60, model=BOOSTING, refit="all")
    result = Run.create(request, tmp_path / "run").execute()
    before = json.loads((done / "run.json").read_text())["result"]
    assert (result["test"], result["refit"]["rows"]) == (before["test"], 148)
    data, models = frames.load("diabetes", labels=60), (done, tmp_path / "run")
    y, rows = data.y[data.test], data.rows(data.test)
    errors = [np.abs(y - load(folder / "model" / "estimator.skops").predict(rows)).mean() for folder in models]
    assert errors[1] < 0.9 * errors[0], "the test rows have taught it"
    assert "the scores are of the model before" in (tmp_path / "run" / "README.md").read_text()


def test_figures_are_those_of_the_model_that_was_saved(done: Path) -> None:
    """Computed again from the file, by numpy."""
    result = json.loads((done / "run.json").read_text())["result"]
    data, model = frames.load("diabetes", labels=60), load(done / "model" / "estimator.skops")
    y, said = data.y[data.test], model.predict(data.rows(data.test))
    assert result["test"]["rmse"] == pytest.approx(np.sqrt(np.mean((y - said) ** 2)))
    low, high = model.predict_interval(data.rows(data.test), 0.9)
    assert result["test"]["coverage"] == pytest.approx(np.mean((low <= y) & (y <= high)))
    assert result["test"]["width"] == pytest.approx(np.mean(high - low))


def test_predictions_come_with_intervals(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = frames.load("diabetes", labels=60)
    data.sample.head(4).to_csv("new.csv", index=False)
    lines = passed("predict", done, "new.csv").stdout.splitlines()
    assert lines[0] == "row,prediction,low,high"
    model = load(done / "model" / "estimator.skops")
    said = np.array([[float(v) for v in line.split(",")[1:]] for line in lines[1:]])
    assert said[:, 0] == pytest.approx(model.predict(data.sample.head(4)), rel=1e-4)
    assert (said[:, 1] < said[:, 0]).all()
    assert "no early exits" in refused("predict", done, "new.csv", "--exit", 1)
    data.sample.head(4).drop(columns="bmi").to_csv("less.csv", index=False)
    assert "'bmi' is missing" in refused("predict", done, "less.csv")
    assert model_card(done)["columns"][0] == "age"


def test_a_run_that_was_cut_ends_as_if_it_had_not_been(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C after the seventh training; the rest is trained later, and nothing twice."""
    whole = FitProgress.report
    trained: list[str] = []

    def cut(self: FitProgress, what: str) -> None:
        whole(self, what)
        trained.append(what)
        if len(trained) == 7:
            raise KeyboardInterrupt

    request, folder = Request("diabetes", labels=60, model=BOOSTING), tmp_path / "run"
    monkeypatch.setattr(run, "KEPT", 0.0)
    monkeypatch.setattr(FitProgress, "report", cut)
    with pytest.raises(KeyboardInterrupt):
        Run.create(request, folder).execute()
    kept = {path.name: path.stat().st_mtime_ns for path in (folder / "fits").glob("*.skops")}
    assert len(kept) >= 6
    monkeypatch.setattr(FitProgress, "report", whole)
    fitted: list[int] = []
    from selfdistill.estimators.generations import RealTargets

    learn = RealTargets.fit

    def counted(self: RealTargets, *given: Any) -> Any:
        fitted.append(1)
        return learn(self, *given)

    monkeypatch.setattr(RealTargets, "fit", counted)
    again = Run.open(folder).execute()
    first = json.loads((done / "run.json").read_text())["result"]
    assert again["test"] == first["test"]
    assert not (folder / "fits").exists()
    assert len(fitted) <= first["steps"] - len(kept) + 1


def test_classes_and_words_and_empty_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    rows = pd.DataFrame(
        {"size": random.normal(size=160), "kind": random.choice(np.array(["a", "b", None], dtype=object), 160)}
    )
    rows["sold"] = np.where(rows["size"].fillna(0) + (rows["kind"] == "a") > 0.3, "yes", "no")
    rows.loc[::5, "size"] = np.nan
    rows.loc[100:, "sold"] = None
    rows.to_csv("t.csv", index=False)
    said = json.loads(
        passed("run", "t.csv", "--target", "sold", "--model", BOOSTING, "--method", "self_trained(generations=2)",
               "--json", "--quiet", "--out", "r").stdout
    )  # fmt: skip
    assert said["test"].keys() == {"accuracy", "nll", "ece", "brier"}
    assert said["data"]["rows"]["unlabelled"] == 60 - 5, "an equal input of the test split does not teach"
    lines = passed("predict", "r", "t.csv").stdout.splitlines()
    assert lines[0] == "row,prediction,p(no),p(yes)"
    assert len(lines) == 161
    card = (tmp_path / "r/model/README.md").read_text()
    assert "Classes: no, yes" in card
    assert "model.predict(frame)  # " in card
    model: Any = load("r/model/estimator.skops")
    assert model.classes_.tolist() == ["no", "yes"]
    assert model.predict(pd.read_csv("t.csv")[["size", "kind"]]).tolist() == [line.split(",")[1] for line in lines[1:]]
    assert "generation 0" in model.report()
    save(model.estimator_, "r/model/estimator.skops")  # as older versions kept it, with numbers for classes
    assert passed("predict", "r", "t.csv").stdout.splitlines() == lines


def test_a_learner_has_no_vitals_and_says_so(done: Path) -> None:
    assert "which has no steps to look at" in refused("vitals", done)


def test_plain_is_the_learner_alone(tmp_path: Path) -> None:
    result = Run.create(Request("iris", model="linear", method="plain()"), tmp_path / "r").execute()
    assert result["plain"]["from"] == "method"
    assert result["plain"]["end"] == result["test"]
    model: Any = load(tmp_path / "r/model/estimator.skops")
    assert type(model.estimator_).__name__ == "Pipeline"
    assert not hasattr(model, "report")


def test_progress_is_told_in_trainings(tmp_path: Path) -> None:
    way = "self_trained(generations=2)"
    said = passed("run", "iris", "--labels", 30, "--model", "linear", "--method", way, "--out", tmp_path / "r").stderr
    assert re.search(r"^at most (\d+) trainings, about \d+ s if all take as long as the first", said, re.MULTILINE)
    assert re.search(r"training \d+ of at most \d+", said)
    assert "fold 1 of 5" in said
    assert "the final model is generation" in said


def test_the_mean_of_members_by_hand() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.tree import DecisionTreeClassifier

    X, y = np.arange(12.0)[:, None], np.array([0, 1, 2] * 4)
    members = [LogisticRegression(), DecisionTreeClassifier(max_depth=1, random_state=0)]
    both = [member.fit(X, y).predict_proba(X) for member in members]
    assert MeanEnsemble(members).fit(X, y).predict_proba(X) == pytest.approx(np.mean(both, axis=0))
    bagged = MeanEnsemble([DecisionTreeClassifier(random_state=0)] * 3, seed=1).fit(X, y)
    random = np.random.RandomState(1)
    wanted = np.zeros((12, 3))
    for _ in range(3):
        places = random.randint(12, size=12)
        one = DecisionTreeClassifier(random_state=0).fit(X[places], y[places])
        wanted[:, one.classes_] += one.predict_proba(X) / 3
    assert bagged.predict_proba(X) == pytest.approx(wanted)


@pytest.mark.filterwarnings("error:The groups parameter")
def test_rows_left_out_are_not_learnt_from() -> None:
    """A tree that remembers would be perfect on rows that it has seen."""
    from sklearn.tree import DecisionTreeRegressor

    from selfdistill.estimators.run import cross_predict, prepare

    choice = prepare(Request("diabetes", labels=80, model=BOOSTING))
    held, outputs = cross_predict(choice, DecisionTreeRegressor(random_state=0), seed=0)
    y = choice.data.y[choice.data.labelled]
    assert held.tolist() == list(range(len(y)))
    assert float(np.mean((outputs.numpy() - y) ** 2)) > 0.3 * y.var()


def test_with_a_time_only_earlier_rows_teach_those_left_out(tmp_path: Path) -> None:
    from selfdistill.estimators.run import cross_predict, folds_of, prepare

    random = np.random.default_rng(0)
    table = pd.DataFrame({"x": random.normal(size=200), "day": np.arange(200) // 4, "who": np.arange(200) // 6})
    table.assign(y=table["x"] + random.normal(size=200)).to_csv(tmp_path / "t.csv", index=False)
    choice = prepare(Request(str(tmp_path / "t.csv"), target="y", time="day", groups="who", model="linear"))
    data = choice.data
    assert data.time is not None
    assert data.groups is not None
    time, groups = data.time[data.labelled], data.groups[data.labelled]
    folds = folds_of(choice, 0)
    assert len(folds) == 5
    for teach, held in folds:
        assert time[teach].max() < time[held].min()
        assert not set(groups[teach]) & set(groups[held])
    held, outputs = cross_predict(choice, choice.learner(0), 0)
    assert len(held) == len(outputs) == sum(len(each) for _, each in folds)
    assert (np.diff(held) > 0).all()
    table.iloc[:20].assign(y=0.5).to_csv(tmp_path / "v.csv", index=False)  # a validation split of a few rows is a fold
    choice = prepare(Request(str(tmp_path / "t.csv"), target="y", validation=str(tmp_path / "v.csv"), model="linear"))
    ((teach, held),) = folds_of(choice, 0)
    assert (len(held), len(teach)) == (20, len(choice.data.labelled) - 20)
