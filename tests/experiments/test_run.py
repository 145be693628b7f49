"""The run folder: requests, choices left open, honest figures, and the way back in."""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from selfdistill.data.dataset import Data, load
from selfdistill.errors import CheckpointError, DataError, RecipeError, SelfdistillError
from selfdistill.experiments import network_run
from selfdistill.experiments.network_run import prepare
from selfdistill.experiments.run import Run
from selfdistill.io.run_record import Request, differences, write_record
from selfdistill.methods import recipes
from selfdistill.methods.prior import CLASSES, VALUES
from selfdistill.methods.registry import read_method
from selfdistill.models.peers import final_model
from selfdistill.models.store import load_model, model_card
from selfdistill.training.cross_fitting import every_label
from selfdistill.training.fit import fit
from tests.terminal import contents, passed, write_images, write_tables

TINY = Request(steps=3, method="plain()")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def silent(line: str) -> None:
    pytest.fail(f"nothing was to be said, but: {line}")


def done(request: Request, out: str) -> dict[str, Any]:
    return Run.create(request, out).execute(warn=silent)


def test_a_kill_between_result_and_page_is_completed_by_the_same_command() -> None:
    done(TINY, "run")
    before = contents(Path("run"))
    Path("run/report.html").unlink()
    done(TINY, "run")
    assert contents(Path("run")) == before


def test_a_kill_while_the_first_record_is_written_is_completed_by_the_same_command() -> None:
    Path("run").mkdir()
    Path("run/.tmp-run.json").write_text('{"format"')
    Path("run/.report.html.99999999.tmp").write_text("<!doc")
    done(TINY, "run")
    assert [path.name for path in Path("run").rglob(".*")] == []


@pytest.mark.parametrize("part", ["readme", "model_card_text", "write_report"])
def test_a_page_that_fails_costs_one_line_and_no_run(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> str:
        raise ZeroDivisionError("flat\ncurve")

    lines: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(f"selfdistill.experiments.run.{part}", fail)
        result = Run.create(TINY, "run").execute(warn=lines.append)
    assert Run.open("run").result() == result
    assert len(lines) == 1
    assert "(ZeroDivisionError: flat curve)" in lines[0]


def test_the_weights_are_as_readable_as_the_files_beside_them() -> None:
    done(TINY, "run")
    assert len({path.stat().st_mode for path in Path("run").rglob("*") if path.is_file()}) == 1


def test_a_file_that_is_named_by_bytes_is_read_and_recorded() -> None:
    name = os.fsdecode(b"t\xff.csv")
    write_tables(Path.cwd())
    Path("t.csv").rename(name)
    done(replace(TINY, data=name, target="outcome"), "run")
    assert Run.open("run").request.data == name
    assert "t\\udcff.csv" in Path("run/report.html").read_text()


# ---- requests --------------------------------------------------------------------------------------

OTHERS = [
    replace(TINY, data="t.csv", target="outcome"),
    replace(TINY, labels=100, label_noise=0.4),
    replace(TINY, method=None, seed=7),
    replace(TINY, training=(("clip", 1.0), ("lr", 0.01))),
    replace(TINY, control=False, epochs=3, steps=None, batch_size=8, model="cnn(width=4)"),
]


@pytest.mark.parametrize("request_", [TINY, *OTHERS])
def test_a_request_comes_back_from_json_as_it_was(request_: Request) -> None:
    assert Request.from_json(json.loads(json.dumps(request_.to_json()))) == request_


def test_requests_that_differ_have_folders_that_differ() -> None:
    names = {request.name() for request in (TINY, *OTHERS)}
    assert len(names) == 1 + len(OTHERS)
    assert TINY.name() == Request(steps=3, method="plain()").name()
    assert "/" not in replace(TINY, data="a/b/c.csv").name()


@pytest.mark.parametrize(("field", "value"), [("seed", "x"), ("labels", 1.5), ("data", None), ("control", "yes")])
def test_a_request_of_other_kinds_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        Request.from_json({**TINY.to_json(), field: value})


def test_differences_name_what_was_and_what_is_now() -> None:
    assert differences(TINY, replace(TINY, seed=2)) == "seed 0, now 2"
    assert differences(TINY, replace(TINY, training=(("lr", 0.5),))) == "lr None, now 0.5"
    assert (
        differences(replace(TINY, training=(("lr", 0.5),)), replace(TINY, steps=None))
        == "steps 3, now None, lr 0.5, now None"
    )


def test_a_method_is_read_by_its_own_expression_and_nothing_else() -> None:
    for name, recipe in recipes().items():
        assert read_method(name) == read_method(f"{name}()") == recipe()
    with pytest.raises(RecipeError, match="Labels"):
        read_method("Labels()")


# ---- choices left open -----------------------------------------------------------------------------


def test_the_data_choose_method_model_batch_and_length(here: Path) -> None:
    write_tables(here)
    write_images(here / "pets", each=20)
    digits = prepare(Request())
    assert (digits.expression, str(digits.build)) == ("auto()", "mlp")
    assert digits.settings["batch_size"] == 64
    assert digits.settings["epochs"] == 100  # 2,000 steps would be 112 epochs of 18
    few = prepare(Request(labels=100))
    assert (few.expression, few.settings["epochs"]) == ("auto()", 100)
    table = prepare(Request(data="half.csv", target="outcome"))
    assert (table.expression, str(table.build)) == ("auto()", "mlp")
    assert table.settings["batch_size"] == len(table.data.labelled) == 41
    pets = prepare(Request(data="pets", method="plain()"))
    assert str(pets.build) == "cnn"
    assert pets.settings["batch_size"] == len(pets.data.labelled) == 27  # of 40, 8 test and 5 audit


def test_what_is_asked_for_is_taken() -> None:
    ready = prepare(Request(method="dlb(alpha=0.5)", model="mlp(width=8)", batch_size=9, epochs=4, steps=5, seed=3))
    assert ready.method == recipes()["dlb"](alpha=0.5)
    assert str(ready.build) == "mlp(width=8)"
    assert {k: ready.settings[k] for k in ("batch_size", "epochs", "steps", "seed")} == {
        "batch_size": 9, "epochs": 4, "steps": 5, "seed": 3,
    }  # fmt: skip
    assert prepare(Request(augment="strong")).data.augment == "strong"


class Net(nn.Module):
    """The smallest student of the digits that there is."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x.flatten(1))  # type: ignore[no-any-return]


# ---- figures ---------------------------------------------------------------------------------------


def figures(model: nn.Module, data: Data) -> dict[str, float]:
    """Accuracy, NLL and Brier score on the test split, in numpy."""
    with torch.no_grad():
        output = model(data.rows(data.test))
    logits = (output["logits"] if isinstance(output, dict) else output).double().numpy()
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    y = data.y[data.test].numpy()
    hot = np.eye(p.shape[1])[y]
    nll = -np.log(p[np.arange(len(y)), y]).mean()
    return {"accuracy": (p.argmax(1) == y).mean(), "nll": nll, "brier": ((p - hot) ** 2).sum(1).mean()}


@pytest.mark.parametrize("method", ["plain()", "born_again()", "mutual(peers=3)", "byot()"])
def test_the_figures_are_those_of_the_model_in_the_folder(method: str) -> None:
    found = done(replace(TINY, method=method, steps=25), "r")
    assert figures(load_model("r"), load("digits")) == pytest.approx(
        {k: found["test"][k] for k in ("accuracy", "nll", "brier")}, abs=1e-5
    )


def test_the_control_is_the_plain_run_of_as_many_steps() -> None:
    found = done(replace(TINY, method="born_again()", steps=20), "r")
    alone = done(replace(TINY, steps=40), "alone")
    assert found["plain"]["steps"] == alone["steps"] == 40
    assert found["plain"]["end"] == alone["test"] == alone["plain"]["end"]
    assert found["plain"]["early_stopped"] == alone["plain"]["early_stopped"]
    assert (found["plain"]["from"], alone["plain"]["from"]) == ("control", "method")


def test_early_stopping_takes_the_best_epoch_by_the_audit_split_alone() -> None:
    found = done(replace(TINY, steps=90, training=(("lr", 0.05),)), "r")
    lines = [json.loads(line) for line in Path("r/metrics.jsonl").read_text().splitlines()]
    scores = [line["audit"]["accuracy"] for line in lines]
    assert len(scores) == 5
    assert found["plain"]["early_stopped"]["epoch"] == scores.index(max(scores))


def test_the_test_split_has_no_say_in_training() -> None:
    """With every test label and picture changed, the history and the best weights are the same bits."""
    clean = load("digits")
    y, x = clean.y.clone(), clean.tensor.clone()
    y[clean.test] = (y[clean.test] + 1) % 10
    x[clean.test] = x[clean.test].flip(0)
    models, runs = [], []
    for data in (clean, replace(clean, x=x, y=y)):
        runs.append(fit(Net, data, recipes()["plain"](), steps=60, lr=0.05, optimizer="sgd", schedule="constant"))
        models.append(runs[-1].generations[0])
    assert runs[0].history == runs[1].history
    assert len({line["audit"]["accuracy"] for line in runs[0].history}) > 1
    one, other = models
    assert (one.best_epoch, one.audit) == (other.best_epoch, other.audit)
    assert all(value.equal(other.best[name]) for name, value in one.best.items())
    # and what is called the audit score is that: scored here, in numpy, on the rows of the audit split
    net = Net()
    net.load_state_dict(one.best)
    audit = figures(net.eval(), replace(clean, test=clean.audit))["accuracy"]
    assert audit == pytest.approx(runs[0].history[one.best_epoch]["audit"]["accuracy"], abs=1e-6)


def test_noise_reaches_train_and_audit_and_never_the_test_split() -> None:
    found = done(replace(TINY, label_noise=0.4), "r")
    assert found["data"]["noise"] == pytest.approx(0.4, abs=1e-3)
    noisy, clean = load("digits", label_noise=0.4), load("digits")
    assert torch.equal(noisy.y[noisy.test], clean.y[clean.test])
    assert int((noisy.y[noisy.audit] != clean.y[noisy.audit]).sum()) == 80


# ---- the way back in -------------------------------------------------------------------------------


def test_a_finished_run_is_not_trained_again_even_where_its_data_are_gone(here: Path) -> None:
    write_tables(here)
    request = replace(TINY, data="t.csv", target="outcome")
    first = done(request, "r")
    Path("t.csv").unlink()
    before = contents(here / "r")
    assert Run.open("r").execute(warn=silent) == first
    assert contents(here / "r") == before


def test_a_finished_run_that_was_moved_says_where_it_is_now() -> None:
    first = done(TINY, "r")
    shutil.move("r", "elsewhere")
    assert Run.open("elsewhere").result() == {**first, "run": "elsewhere"}


def test_the_record_says_what_was_asked_for_and_with_what() -> None:
    done(replace(TINY, training=(("lr", 0.5),)), "r")
    record = json.loads(Path("r/run.json").read_text())
    assert record["format"] == 2
    assert record["request"] == replace(TINY, training=(("lr", 0.5),)).to_json()
    assert (record["method"], record["model"], record["settings"]["lr"]) == ("plain()", "mlp", 0.5)
    assert record["versions"]["torch"] == torch.__version__
    assert record["data"]["fingerprint"] == load("digits").fingerprint


def test_a_log_that_was_changed_after_the_end_is_told_of() -> None:
    done(TINY, "r")
    said: list[str] = []
    Run.open("r").execute(warn=said.append)
    assert said == []
    log = Path("r/metrics.jsonl")
    log.write_text(log.read_text().replace("0.", "1.", 1))
    Run.open("r").execute(warn=said.append)
    told = "r/metrics.jsonl was changed after the run had ended"
    assert [line.startswith(told) for line in said] == [True]
    passed("report", "r")
    assert told in Path("r/report.html").read_text()


def test_versions_that_changed_are_said_and_the_first_ones_stay() -> None:
    run = Run.create(TINY, "r")
    run._claim(run.task, prepare(TINY), silent)
    path = Path("r/run.json")
    record = json.loads(path.read_text())
    record["versions"]["torch"] = "0.1"
    write_record(path, record)
    said: list[str] = []
    Run.open("r").execute(warn=said.append)
    assert len(said) == 1
    assert "'torch': '0.1'" in said[0]
    assert json.loads(path.read_text())["versions"]["torch"] == "0.1"


def test_a_refused_run_leaves_what_was_there_before(here: Path) -> None:
    """An empty folder stays, and so do the folders above; only what the refused run made goes."""
    Path("mine").mkdir()
    Path("above").mkdir()
    for out in ("mine", "above/new/run"):
        with pytest.raises(DataError, match="batch of 5000"):
            Run.create(replace(TINY, batch_size=5000), out).execute(warn=silent)
    assert sorted(path.name for path in here.rglob("*")) == ["above", "mine"]
    assert done(TINY, "mine")["steps"] == 3


def test_a_run_with_a_checkpoint_is_never_withdrawn(here: Path) -> None:
    run = Run.create(TINY, "r")
    run._claim(run.task, prepare(TINY), silent)
    run._withdraw()
    assert not Path("r/run.json").exists()
    run.execute(warn=silent)
    before = contents(here / "r")
    for name in ("metrics.jsonl", "README.md"):
        Path("r", name).unlink()
    run._withdraw()
    assert contents(here / "r").keys() == before.keys() - {"metrics.jsonl", "README.md"}


def test_a_run_is_trained_by_one_process_at_a_time(here: Path) -> None:
    import fcntl
    import os

    run = Run.create(TINY, "r")
    run._claim(run.task, prepare(TINY), silent)
    before = contents(here / "r")
    handle = os.open("r", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(CheckpointError, match="another process is training this run"):
        run.execute(warn=silent)
    assert contents(here / "r").keys() == before.keys()
    os.close(handle)
    assert run.execute(warn=silent)["steps"] == 3


# ---- models ----------------------------------------------------------------------------------------


def test_a_model_is_found_by_its_run_and_by_its_own_folder() -> None:
    done(TINY, "r")
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(load_model("r")(x), load_model("r/model")(x))
    assert not load_model("r").training
    card = model_card("r")
    assert (card["shape"], card["outputs"], card["classes"]) == ([1, 8, 8], 10, [str(d) for d in range(10)])
    assert model_card("r/model") == card


def test_a_folder_without_a_model_is_named(here: Path) -> None:
    (here / "empty").mkdir()
    for folder, said in (("nowhere", "no folder nowhere"), ("empty", "empty holds no model")):
        with pytest.raises(CheckpointError, match=said):
            model_card(folder)


def test_the_product_of_a_group_is_its_first_peer() -> None:
    from selfdistill.models.peers import PeerModels

    members = [nn.Linear(2, 2) for _ in range(3)]
    assert final_model(PeerModels(list(members))) is members[0]
    assert final_model(members[1]) is members[1]


def test_predictions_have_a_row_a_class_and_probabilities() -> None:
    done(TINY, "r")
    names, p, classes, _ = Run.open("r").predict("digits")
    data = load("digits")
    assert names == [f"test/{i + 1}" for i in data.test.tolist()]
    assert classes == [str(digit) for digit in range(10)]
    assert p.shape == (500, 10)
    assert torch.allclose(p.sum(1), torch.ones(500))
    with torch.no_grad():
        assert torch.allclose(p, load_model("r")(data.rows(data.test)).softmax(1), atol=1e-6)


# ---- auto() --------------------------------------------------------------------------------------------------------


def flower_table(path: Path, rows: int = 90, values: bool = False) -> str:
    """Two classes, or a value, by two columns."""
    draw, lines = random.Random(1), ["x,z,outcome"]
    for i in range(rows):
        x, z = draw.gauss(3 * (i % 2), 1), draw.gauss(0, 1)
        lines.append(f"{x},{z},{x + z if values else 'ab'[i % 2]}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize(("values", "longer"), [(False, 1), (True, 1), (False, 3), (True, 3)])
def test_auto_hands_over_the_candidate_that_its_own_run_would_train(values: bool, longer: int, tmp_path: Path) -> None:
    """Bit for bit: the choice costs the other trainings and changes none of them."""
    request = Request(flower_table(tmp_path / "t.csv", values=values), target="outcome", model="mlp(width=8)", steps=12)
    said: list[str] = []
    auto = replace(request, method=f"auto(longer={longer})")
    result = Run.create(auto, tmp_path / "auto").execute(tell=said.append)
    tried = result["auto"]["tried"]
    candidates, extended = (tried[:-1], tried[-1]) if longer > 1 else (tried, None)
    usual = VALUES if values else CLASSES
    assert {trial["method"] for trial in candidates} == set(usual[: 3 if values else 5]), "no row is unlabelled"
    assert tried[0]["method"] == "plain()"
    assert [trial["method"] for trial in tried if trial["chosen"]] == [result["method"]]
    scores = {trial["method"]: trial["score"] for trial in tried}
    assert scores[result["method"]] == (min if values else max)(scores.values())
    steps = {trial["steps"] for trial in candidates}
    assert steps == {12}, "as many for each, whatever its generations"
    assert result["steps"] == 12 * (len(candidates) + (longer if extended else 0))
    better = min(candidates, key=lambda trial: trial["score"] if values else -trial["score"])
    if extended:
        assert extended["steps"] == 36
        equal = extended["score"] <= better["score"] if values else extended["score"] >= better["score"]
        assert extended["chosen"] == equal, "of equals the longer training"
    assert any("validation rows" in line for line in said)
    assert any(f"candidate 1 of {len(candidates)}, plain(), is trained, about" in line for line in said)
    page, readme = (tmp_path / "auto" / "report.html").read_text(), (tmp_path / "auto" / "README.md").read_text()
    assert "Candidates of auto()" in page
    assert f"| {tried[1]['method']}" in readme
    recipe, _, times = result["method"].partition(", ")
    steps_of_one = (36 if times else 12) // read_method(recipe).generations
    alone = replace(request, method=recipe, steps=steps_of_one, training=(("audit", "off"),))
    Run.create(alone, tmp_path / "alone").execute()
    assert same(tmp_path / "auto" / "model", tmp_path / "alone" / "model")


@pytest.mark.parametrize("method", ["auto(most=2, longer=1)", "born_again(generations=1)"])
def test_refit_trains_the_final_model_on_every_labelled_row(method: str, tmp_path: Path) -> None:
    """The scores stay those of the model before; the saved one is that of a fit on all rows."""
    data = flower_table(tmp_path / "t.csv")
    request = Request(data, target="outcome", model="mlp(width=8)", steps=20, method=method)
    before = Run.create(request, tmp_path / "before").execute()
    after = Run.create(replace(request, refit="all"), tmp_path / "after").execute()
    rows = before["data"]["rows"]
    every = rows["labelled"] + rows["audit"] + rows["test"]
    assert after["test"] == before["test"]
    assert after["refit"]["rows"] == every
    assert not same(tmp_path / "before" / "model", tmp_path / "after" / "model")
    assert f"all {every:,} labelled rows; the scores are of the model" in (tmp_path / "after" / "README.md").read_text()
    ready = prepare(request)
    ready = ready.candidates[0] if isinstance(ready, network_run.AutoRun) else ready
    whole = every_label(ready.data)
    steps = round(20 * every / rows["labelled"])
    alone = fit(ready.build, whole, read_method(after["method"]), **{**ready.settings, "audit": "off", "steps": steps})
    if after["chosen"] == "method":
        saved = load_file(tmp_path / "after" / "model" / "model.safetensors")
        assert all(torch.equal(saved[name], value) for name, value in final_model(alone.model).state_dict().items())


def test_a_quick_effort_is_one_short_training_without_a_baseline(tmp_path: Path) -> None:
    request = Request(flower_table(tmp_path / "t.csv"), target="outcome", model="mlp(width=8)", effort="quick")
    result = Run.create(request, tmp_path / "run").execute()
    assert (result["method"], result["steps"]) == ("elr()", network_run.QUICK_STEPS)
    assert "plain" not in result
    ready = prepare(replace(request, method="plain()", steps=7))
    assert (ready.expression, ready.settings["steps"]) == ("plain()", 7)
    write_images(tmp_path / "photos")
    assert network_run.QUICK_CNN.partition("(")[0] in str(
        prepare(Request(str(tmp_path / "photos"), effort="quick")).build
    )
    learner = Request(flower_table(tmp_path / "v.csv", values=True), target="outcome", effort="quick")
    assert Run.create(learner, tmp_path / "table").execute()["budget"]["bound"] == "1min"


def same(first: Path, second: Path) -> bool:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (first, second))
    return all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


def test_auto_that_was_killed_goes_on_with_the_next_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = flower_table(tmp_path / "t.csv")
    request = Request(data, target="outcome", model="mlp(width=8)", steps=8, method="auto(most=3)")
    whole = Run.create(request, tmp_path / "whole").execute()
    trained: list[str] = []

    def fit_one(*args: Any, out: Path, **options: Any) -> Any:
        trained.append(out.name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return fit(*args, out=out, **options)

    with monkeypatch.context() as patch:
        patch.setattr(network_run, "fit", fit_one)
        with pytest.raises(KeyboardInterrupt):
            Run.create(request, tmp_path / "cut").execute()
    assert trained[0] == "0-plain"
    assert len(trained) == 2
    cut = Run.create(request, tmp_path / "cut").execute()
    for result in (whole, cut):
        for trial in result["auto"]["tried"]:
            del trial["seconds"]
    assert cut["auto"] == whole["auto"]
    assert same(tmp_path / "whole" / "model", tmp_path / "cut" / "model")


def test_early_stopping_is_scored_on_rows_that_did_not_choose_its_epoch(tmp_path: Path) -> None:
    data = flower_table(tmp_path / "t.csv", rows=2000)
    validation = flower_table(tmp_path / "v.csv", rows=401)
    request = Request(
        data, target="outcome", model="mlp(width=4)", validation=validation, method="auto(most=1)", steps=30
    )
    ready = prepare(request)
    assert isinstance(ready, network_run.AutoRun)
    first, apart = ready.candidates[0].data.audit, ready.data.audit[list(ready.apart)]
    assert (len(first), len(apart)) == (201, 200)
    assert sorted([*first.tolist(), *apart.tolist()]) == ready.data.audit.tolist()
    result = Run.create(request, tmp_path / "run").execute()
    stopped = result["auto"]["tried"][1]
    assert (stopped["method"], stopped["rows"], stopped["passes"]) == ("plain(), stopped early", 200, 0)
    few = prepare(Request(flower_table(tmp_path / "f.csv"), target="outcome", model="mlp"))
    assert isinstance(few, network_run.AutoRun)
    assert "too few to choose an epoch" in few.left_out[0]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"audit_folds": 3}, "leave --audit-folds out, or give --method"),
        ({"training": (("audit", "strict"),)}, "audits no generations; leave --audit out"),
        ({"training": (("patience", 2),)}, "leave --patience out"),
        ({"method": "auto(most=0)"}, "most is at least 1"),
        ({"method": "auto(mots=2)"}, "nearest: most"),
        ({"method": "aut()"}, "nearest: auto"),
        ({"method": "auto()", "targets": "t"}, "--targets"),
    ],
)
def test_what_auto_cannot_be_asked_is_refused_before_training(more: dict[str, Any], words: str) -> None:
    with pytest.raises(SelfdistillError, match=words):
        prepare(Request(**more))
