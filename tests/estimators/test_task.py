"""Which tables are learnt by learners, by which, and what is refused with the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from selfdistill.data import frames
from selfdistill.errors import DataError, RecipeError, SelfdistillError
from selfdistill.estimators import base_learners
from selfdistill.estimators.recipes import read_recipe
from selfdistill.estimators.recipes import recipes as estimator_recipes
from selfdistill.estimators.run import prepare
from selfdistill.estimators.task import TableTaskType
from selfdistill.experiments.run import Run
from selfdistill.io.run_record import Request
from selfdistill.methods import recipes
from tests.terminal import passed, refused

MINE = """
from sklearn.linear_model import Ridge, LogisticRegression
def ridge(alpha=1.0):
    return Ridge(alpha)
def logistic():
    return LogisticRegression()
def broken():
    raise ValueError("no luck")
"""


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    random = np.random.default_rng(0)
    rows = pd.DataFrame(
        {"size": random.normal(size=120).round(3), "kind": random.choice(np.array(["a", "b", None], dtype=object), 120)}
    )
    rows["price"] = 3 * rows["size"] + (rows["kind"] == "a") + random.normal(size=120)
    rows["sold"] = np.where(rows["price"] > 0, "yes", "no")
    rows.loc[::7, "size"] = np.nan
    rows.drop(columns="sold").to_csv(tmp_path / "t.csv", index=False)
    rows.drop(columns="price").to_csv(tmp_path / "c.csv", index=False)
    rows.drop(columns=["price", "sold"]).head(30).to_csv(tmp_path / "more.csv", index=False)
    rows[["size"]].to_csv(tmp_path / "narrow.csv", index=False)
    rows.drop(columns="sold").assign(price=4.5).to_csv(tmp_path / "flat.csv", index=False)
    rows.drop(columns="price").assign(sold="yes").to_csv(tmp_path / "one.csv", index=False)
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        (Request("diabetes"), True),
        (Request("t.csv", target="price"), True),
        (Request("diabetes", model="boosting(iterations=5)"), True),
        (Request("diabetes", method="self_distilled()"), True),
        (Request("diabetes", model="forest", method="plain()"), True),
        (Request("diabetes", model="mine.py:ridge"), True),
        (Request("diabetes", method="plain()"), False),
        (Request("diabetes", model="mlp"), False),
        (Request("diabetes", method="born_again(xi=0.5)"), False),
        (Request("digits"), False),
    ],
)
def test_tables_are_learnt_by_learners_unless_a_network_is_named(tables: Path, request_: Request, wanted: bool) -> None:
    assert TableTaskType().serves(request_) is wanted


REFUSED = {
    "a recipe of networks for a learner": ("diabetes --model boosting --method ps_kd()", ["ps_kd", "--model mlp"]),
    "a way of learners for a network": (
        "diabetes --model mlp --method self_distilled()", ["mlp is a network", "boosting"]),
    "a way that is misspelt": ("diabetes --method self_distiled()", ["'self_distiled'", "nearest: self_distilled"]),
    "a learner for images": ("digits --model boosting", ["digits", "CSV", "Parquet"]),
    "a way for images": ("digits --method self_distilled()", ["digits", "CSV", "Parquet"]),
    "steps of a learner": ("diabetes --steps 5", ["--steps is for networks", "--model mlp"]),
    "no cache of a learner": ("diabetes --no-cache", ["--no-cache is for networks", "--model mlp"]),
    "learning rate of a learner": ("diabetes --lr 0.1", ["--lr is for networks", "--model mlp"]),
    "values without confidence": ("diabetes --labels 50 --method self_trained()", ["confidence", "peer_taught()"]),
    "no unlabelled rows": ("diabetes --method peer_taught()", ["unlabelled", "--labels N", "self_distilled()"]),
    "xi of classes": ("iris --method self_distilled(xi=1.5)", ["1.5", "no minimum", "without bound", "auto"]),
    "xi is a word": ("iris --method self_distilled(xi='much')", ["xi", "'much'"]),
    "an option that is none": ("diabetes --model boosting(leaves=3)", ["leaves", "iterations"]),
    "a regressor for classes": ("iris --model mine.py:ridge", ["Ridge", "no classifier"]),
    "a learner that fails": ("diabetes --model mine.py:broken", ["mine.py:broken", "no luck"]),
    "a constant target": ("flat.csv --target price", ["only the class '4.5'", "two classes"]),
    "one class": ("one.csv --target sold", ["only the class 'yes'", "two classes"]),
    "other columns": ("t.csv --target price --unlabelled narrow.csv", ["narrow.csv", "'kind' is missing"]),
    "no weights": (
        "iris --model neighbours --method self_distilled(xi=0.5,peers=None)", ["neighbours", "sample_weight"]),
    "audit of another kind": ("diabetes --audit-level 0.1", ["--audit-level is for networks"]),
    "a known table has its target": ("diabetes --target x", ["target is given already"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line_and_leaves_nothing(tables: Path, name: str) -> None:
    arguments, words = REFUSED[name]
    before = sorted(p.name for p in tables.iterdir())
    said = refused("run", *arguments.split(), "--out", "r", "--quiet")
    assert all(word in said for word in words), said
    assert sorted(p.name for p in tables.iterdir() if p.name != "__pycache__") == before


def test_a_target_of_one_value_is_nothing_to_learn(tables: Path) -> None:
    random = np.random.default_rng(1)
    rows = pd.DataFrame({"a": random.normal(size=90), "y": [7.0] * 60 + [*random.normal(size=30)]})
    rows.to_csv("often.csv", index=False)
    assert frames.load("often.csv", target="y").task == "regress"
    with pytest.raises(DataError, match=r"in all rows that teach; there is nothing to learn"):
        frames.load("often.csv", target="y", labels=1)


@pytest.mark.parametrize(
    "spec", [*base_learners.LEARNERS, "forest(trees=7)", "mine.py:ridge", "mine.py:ridge(alpha=3.0)"]
)
def test_learners_take_raw_tables(tables: Path, spec: str) -> None:
    """Words, empty cells, and at prediction a word never seen."""
    data = frames.load("t.csv", target="price")
    if ":" in spec:
        made = base_learners.learner(spec, False, data.sample)
        assert made.get_params()["alpha"] in (1.0, 3.0)
        return
    made = base_learners.learner(spec, False, data.sample, 80)
    new = data.sample.head(5).astype({"kind": object})
    new.loc[0, "kind"] = "never seen"
    fitted = made.fit(data.rows(data.labelled), data.y[data.labelled])
    assert np.isfinite(fitted.predict(new)).all()
    assert base_learners.grid(spec, made).keys() <= made.get_params().keys()
    assert base_learners.grid(spec, made)


def test_few_rows_get_small_leaves() -> None:
    data = frames.load("iris", labels=30)
    few, many = (base_learners.learner("boosting", True, data.sample, rows) for rows in (30, 3000))
    assert few.get_params()[base_learners.full_name(few, "min_samples_leaf")] == 2
    assert many.get_params()[base_learners.full_name(many, "min_samples_leaf")] == 20


def test_recipes_read_back_and_fit_their_estimators() -> None:
    assert sorted(estimator_recipes()) == ["auto", "peer_taught", "plain", "self_distilled", "self_trained"]
    assert dict(read_recipe("self_distilled(xi=-0.5)").options) == {"generations": 2, "xi": -0.5, "peers": "usual"}
    with pytest.raises(RecipeError, match="no argument 'alpha'"):
        read_recipe("self_distilled(alpha=1)")
    for request in (Request("diabetes", labels=60), Request("iris", labels=30)):
        for recipe in set(estimator_recipes()) - set(recipes()):
            if recipe == "self_trained" and request.data == "diabetes":
                continue
            choice: Any = prepare(Request(**{**request.to_json(), "method": f"{recipe}()", "training": ()}))
            model = choice.estimator(0)
            assert model.get_params()["random_state"] == 0
            assert model.audit == "safe"


def test_methods_and_explain_know_the_recipes() -> None:
    said = passed("methods").stdout
    assert "self_distilled(generations=2, xi='auto', peers='usual')" in said
    assert "for learners, classes, values" in said
    page = passed("explain", "peer_taught(generations=3)").stdout
    assert "Krogh" in page
    assert "generations = 3" in page


def test_an_index_in_a_parquet_file_is_no_column(tmp_path: Path) -> None:
    rows = pd.DataFrame({"a": np.arange(60.0), "y": np.arange(60) * 1.5})
    for name, index in (("none", None), ("row", 7 * np.arange(60) % 61), ("range", range(60))):
        kept = rows if index is None else rows.set_index(pd.Index(index, name=name))
        kept.to_parquet(tmp_path / f"{name}.parquet")
        found = frames.load(str(tmp_path / f"{name}.parquet"), target="y")
        assert list(found.sample.columns) == ["a"]
        assert found.fingerprint == frames.load(str(tmp_path / "none.parquet"), target="y").fingerprint


def test_the_frame_keeps_categories_and_splits_like_networks_do(tables: Path) -> None:
    from selfdistill.data.dataset import load

    frame, data = frames.load("t.csv", target="price", seed=3), load("t.csv", target="price", seed=3)
    assert str(frame.sample["kind"].dtype) == "category"
    assert frame.kinds() == {"size": "number", "kind": "category"}
    assert frame.test.tolist() == data.test.tolist()  # the same rows are never trained on
    assert set(frame.labelled) | set(frame.test) == set(range(120))
    both = frames.load("t.csv", target="price", unlabelled="more.csv")
    inputs = [tuple(row) for row in pd.read_csv("t.csv")[["size", "kind"]].astype(str).to_numpy()]
    held_out = {inputs[row] for row in both.test}
    copies = sum(row in held_out for row in inputs[:30])
    assert copies > 0, "a copy of a test row does not teach"
    assert len(both.unlabelled) == 30 - copies
    assert both.fingerprint != frame.fingerprint
    assert both.fingerprint == frames.load("t.csv", target="price", unlabelled="more.csv").fingerprint
    with pytest.raises(SelfdistillError, match="images"):
        frames.load("digits")


@pytest.mark.parametrize("filled", [[], [7]])
def test_a_column_that_is_empty_or_nearly_so_never_ends_a_run(tmp_path: Path, filled: list[int]) -> None:
    """Histograms of boosting find no bins in a column that is empty in a fold."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"a": random.normal(size=80).round(3), "void": None, "t": ["no", "yes"] * 40})
    frame.loc[filled, "void"] = 5
    frame.to_csv(tmp_path / "t.csv", index=False)
    for model in ("boosting(iterations=5)", "forest(trees=5)", "linear"):
        method = None if model.startswith("boosting") else "plain()"
        request = Request(str(tmp_path / "t.csv"), target="t", model=model, method=method)
        result = Run.create(request, tmp_path / model.partition("(")[0]).execute(tell=print)
        kinds = {column["name"]: column["type"] for column in result["data"]["column_types"]}
        assert kinds == {"a": "numeric", "void": "numeric" if filled else "empty"}


def test_folds_are_those_that_leave_labelled_rows_out(tables: Path) -> None:
    """--folds K sets the folds of the audit and of label errors."""
    import numpy as np

    from selfdistill.estimators.run import folds_of, prepare

    ready = prepare(Request(data="iris", model="linear", method="self_distilled()", folds=3))
    assert ready.estimator(0).audit_folds == 3
    folds = folds_of(ready, 0)
    assert len(folds) == 3
    assert np.concatenate([held for _, held in folds]).size == len(ready.data.labelled)
    assert len(folds_of(prepare(Request(data="iris", model="linear", method="plain()")), 0)) == 5
