"""Comparisons of language models over seeds: the rows are those of runs, matched, resumed exactly, and refused in one
line."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill.data import examples as examples_module
from selfdistill.data import prompts
from selfdistill.data.prompts import load_prompts
from selfdistill.errors import RecipeError
from selfdistill.experiments.compare import judge, runner
from selfdistill.language import completions, sampling
from selfdistill.language.contexts import completed, rendered
from selfdistill.language.sampling import export
from selfdistill.language.task import planned
from selfdistill.models.causal_lm import Pretrained
from selfdistill.training.comparison import ComparisonSettings, Job, cost, fixed_cost
from selfdistill.training.trainer import Trainer
from tests.language.tiny import EOS, student
from tests.terminal import invoke, passed, refused, report

WORDS = ["abc", "bcd", "cda", "dab", "acb", "bdc", "cad", "dba", "adc", "bca", "cbd", "dcb"]
USUAL = ["--lora", "2", "--lr", "0.01", "--max-tokens", "4", "--batch-size", "5", "--device", "cpu"]
SDFT, GRPO = "sdft(max_tokens=4)", "grpo(samples=2, max_tokens=4)"


def greedy(prompt: str) -> str:
    """What the untrained model says, by plain transformers, one prompt at a time."""
    model = student()
    ids = torch.tensor([rendered(model.tokenizer, (("user", prompt),))])
    out = model.lm.generate(input_ids=ids, max_new_tokens=4, do_sample=False, eos_token_id=EOS, pad_token_id=0)
    return str(model.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows nothing, and prompts of which it answers every third as the checker wants."""
    folder = tmp_path_factory.mktemp("prompts")
    export(student(), folder / "tiny")
    asked = [f"{word} {i}?" for i, word in enumerate(WORDS * 2)]
    answers = [greedy(prompt) if i % 3 == 0 else WORDS[i % 12][::-1] for i, prompt in enumerate(asked)]
    rows = [{"prompt": prompt, "demonstration": answer, "answer": answer, "checker": "exact"}
            for prompt, answer in zip(asked, answers, strict=True)]  # fmt: skip
    files = {
        "p": rows,
        "suite": [{"prompt": f"{i}?", "answer": greedy(f"{i}?"), "checker": "exact"} for i in range(3)],
        "checked": [{k: v for k, v in row.items() if k != "demonstration"} for row in rows],
        "shown": [{k: row[k] for k in ("prompt", "demonstration")} for row in rows],
        "bare": [{"prompt": row["prompt"]} for row in rows],
    }
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def _one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other in this process."""
    monkeypatch.setattr(runner, "cores", lambda: 1)


def flags(place: Path, *methods: str, data: str = "p", seeds: int = 3) -> list[Any]:
    asked = [f"{place}/{data}.jsonl", "--model", place / "tiny", *USUAL, "--seeds", seeds]
    return [*asked, "--methods", *methods] if methods else asked


@pytest.fixture(scope="module")
def compared(place: Path) -> Path:
    """SDFT and GRPO, with sft() named among the methods."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "cores", lambda: 1)
        more = ["--keep", place / "suite.jsonl", "--steps", 2, "--out", place / "c", "--json", place / "out.json"]
        said = passed("compare", *flags(place, SDFT, "sft()", GRPO), *more)
    (place / "said.txt").write_text(said.stdout)
    (place / "heard.txt").write_text(said.stderr)
    return place


def found(place: Path, folder: str = "c") -> dict[str, Any]:
    return dict(json.loads((place / folder / "comparison.json").read_text()))


def row(result: dict[str, Any], name: str) -> dict[str, Any]:
    return next(dict(one) for one in result["rows"] if one["name"] == name)


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in result.items() if k not in ("times", "command")}


def test_the_methods_stand_beside_sft_and_the_model_before(compared: Path) -> None:
    result = found(compared)
    assert json.loads((compared / "out.json").read_text()) == result
    assert [(one["name"], one["kind"]) for one in result["rows"]] == [
        (SDFT, "method"), (GRPO, "method"), ("before", "control"), ("sft()", "control"),
    ]  # fmt: skip
    assert set(result["metrics"]) == {"accuracy", "kept", "length"}
    assert [one["steps"] for one in result["rows"]] == [2, 2, 0, 2]
    assert result["budget"] == {"kind": "steps", "amount": 2.0, "unit": "passes"}
    assert "length" not in row(result, SDFT)["against"]["plain"]  # neither more nor less is better
    assert row(result, "before")["passes"]["total"] == 0.0
    assert "3 seeds cannot pass an exact test corrected for 2 methods" in (compared / "heard.txt").read_text()


def test_table_verdicts_and_page_say_what_was_found(compared: Path) -> None:
    said = " ".join((compared / "said.txt").read_text().split())
    assert "…" not in said
    for name in (SDFT, GRPO):
        assert f"{name}: in accuracy, " in said
        assert f"{name}: in accuracy on prior tasks, " in said
    assert all("with the model before, " in line for line in found(compared)["verdict"])
    assert "With so few seeds every verdict is a tie" in said
    page = (compared / "c/report.html").read_text()
    for line in found(compared)["verdict"]:
        assert line in page
    assert "Against the model before, on prior tasks, in points." in page
    assert "completions drawn to learn from" in page
    assert "Against sft(), in points" in page


def test_the_model_before_is_the_one_that_plain_transformers_ask(compared: Path) -> None:
    """How many test prompts are among those whose answer is what the model says?"""
    data = load_prompts(f"{compared}/p.jsonl", seed=1)
    right = [greedy(data.rows[i].prompt) == data.rows[i].answer for i in data.test.tolist()]
    assert 0 < sum(right) < len(right)
    before = row(found(compared), "before")["metrics"]
    assert before["accuracy"]["values"] == [sum(right) / len(right)] * 3
    assert before["kept"]["values"] == [1.0] * 3


def test_a_seeds_rows_are_those_of_the_run_with_that_seed(compared: Path) -> None:
    more = ["--keep", compared / "suite.jsonl", "--steps", 2, "--seed", 1, "--out", compared / "run"]
    alone = report("run", f"{compared}/p.jsonl", "--model", compared / "tiny", *USUAL, "--method", SDFT, *more)
    result = found(compared)
    for name, figures in ((SDFT, alone["test"]), ("sft()", alone["plain"]["end"]), ("before", alone["before"])):
        there = row(result, name)["metrics"]
        assert {metric: there[metric]["values"][1] for metric in figures} == pytest.approx(figures), name
    cells = [json.loads(path.read_text()) for path in (compared / "c/cells").glob("*/1/cell.json")]
    assert {cell["data"]["fingerprint"] for cell in cells} == {alone["data"]["fingerprint"]}
    other = next((compared / "c/cells").glob("*/2/cell.json")).read_text()
    assert json.loads(other)["data"]["fingerprint"] != alone["data"]["fingerprint"]


def test_cut_in_a_training_it_goes_on_and_trains_no_step_twice(compared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, step = Counter[str](), Trainer.step

    def counted(self: Trainer) -> float:
        if sum(steps.values()) == 11 and "cut" not in steps:  # amid a training
            steps["cut"] = 0
            raise KeyboardInterrupt
        loss = step(self)
        steps[str(self.state.folder)] += 1
        return loss

    monkeypatch.setattr(Trainer, "step", counted)
    more = ["--keep", compared / "suite.jsonl", "--steps", 2, "--out", compared / "cut", "--save-steps", 1]
    stopped = invoke("compare", *flags(compared, SDFT, "sft()", GRPO), *more, "--quiet")
    assert stopped.exit_code == 130
    assert "give the same command again to resume" in stopped.stderr
    done = {p: p.stat().st_mtime_ns for p in (compared / "cut/cells").glob("*/*/cell.json")}
    assert done
    passed("compare", *flags(compared, SDFT, "sft()", GRPO), *more, "--quiet")
    del steps["cut"]
    assert set(steps.values()) == {2}
    assert len(steps) == 9
    assert all(p.stat().st_mtime_ns == before for p, before in done.items())
    assert without_times(found(compared, "cut")) == without_times(found(compared))
    assert not list((compared / "cut").glob("cells/*/*/training"))


@pytest.fixture
def rolled(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many completions were drawn, by what for."""
    counts, roll = Counter[str](), sampling.roll

    def counting(model: Any, prompts: Any, sampling: Any, address: Any, *more: Any) -> Any:
        counts[address[1]] += len(prompts)
        return roll(model, prompts, sampling, address, *more)

    monkeypatch.setattr(completions, "roll", counting)
    return counts


def test_equal_completions_are_equal_completions(place: Path, rolled: Counter[str]) -> None:
    passed("compare", *flags(place, SDFT, GRPO), "--steps", 1, "--budget", "completions", "--out", place / "equal")
    result = found(place, "equal")
    assert [(one["name"], one["steps"]) for one in result["rows"]] == [
        (SDFT, 2), (GRPO, 1), ("before", 0), ("sft()", 1), ("sft(), longer", 2),
    ]  # fmt: skip
    drawn = [one["drawn"] for one in result["rows"]]
    assert drawn == [10, 10, 0, 0, 0]  # 15 prompts teach, 5 a step
    assert rolled["rollout"] == 3 * 10 + 3 * 10 + 5  # and the pilot of SDFT
    assert result["budget"] == {"kind": "completions", "amount": 10.0, "unit": "passes"}
    assert set(result["references"]) == {"plain", "before", "best_control"}


def test_equal_tokens_are_tokens_written_and_trained_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written once a generation costs the same at any number of steps; the others' cost grows with theirs."""
    spoken, roll = Counter[str](), sampling.roll

    def counting(model: Any, prompts: Any, sampling: Any, address: Any, *more: Any) -> Any:
        rows = roll(model, prompts, sampling, address, *more)
        spoken[address[1]] += sum(len(one.ids) for one in rows)
        return rows

    monkeypatch.setattr(completions, "roll", counting)
    monkeypatch.setattr(runner, "cores", lambda: 1)
    once = "context_distillation(max_tokens=4)"
    passed("compare", *flags(place, SDFT, once), "--steps", 3, "--match", "tokens", "--out", place / "tokens")
    records = [json.loads(path.read_text()) for path in (place / "tokens/cells").glob("*/*/cell.json")]
    costs = {kind: [one["rows"][one["job"]["name"]]["tokens"] for one in records if one["job"]["name"] == kind]
             for kind in (SDFT, once, "sft()")}  # fmt: skip
    assert sum(cell["written"] for cell in costs[SDFT]) == spoken["rollout"] > 0
    assert sum(cell["once"] for cell in costs[once]) == spoken["written"] > 0
    data = load_prompts(f"{place}/p.jsonl", seed=0)  # three steps of 5 are an epoch of the 15 that teach
    words, rows = student().tokenizer, [data.rows[i] for i in data.labelled.tolist()]
    learnt = sum(len(rendered(words, r.messages)) + len(completed(words, r.demonstration or "")) for r in rows)
    assert next(one for one in records if one["job"]["name"] == "sft()" and not one["job"]["seed"])["rows"]["sft()"][
        "tokens"
    ] == {"once": 0, "written": 0, "read": learnt}
    result = found(place, "tokens")
    for name in (SDFT, once, "sft(), longer"):
        assert sum(row(result, name)["tokens"].values()) == pytest.approx(result["budget"]["amount"], rel=0.2), name


def test_without_demonstrations_the_model_before_is_the_reference(place: Path) -> None:
    passed("compare", *flags(place, GRPO, data="checked"), "--steps", 1, "--out", place / "checked")
    result = found(place, "checked")
    assert [one["name"] for one in result["rows"]] == [GRPO, "before"]
    assert result["references"] == {"plain": "before", "best_control": "before"}
    (line,) = result["verdict"]
    assert line.count("the model before") == 1 + ("keeps the model before" in line)


def test_likelihoods_are_compared_where_nothing_is_checked(place: Path) -> None:
    """And sft() alone is a method."""
    passed("compare", *flags(place, "sft()", data="shown"), "--steps", 2, "--out", place / "shown")
    result = found(place, "shown")
    assert [one["name"] for one in result["rows"]] == ["sft()", "before"]
    assert set(result["metrics"]) == {"nll", "length"}
    ours, before = (row(result, name)["metrics"]["nll"]["mean"] for name in ("sft()", "before"))
    assert ours < before
    assert row(result, "sft()")["against"]["plain"]["nll"]["difference"] == pytest.approx(ours - before)
    assert "NLL by step" in (place / "shown/report.html").read_text()


@pytest.mark.parametrize(
    ("data", "methods", "more", "said"),
    [
        ("checked", ("sft()", GRPO), [], "sft() needs a demonstration on each prompt"),
        ("checked", (SDFT,), [], "sdft() needs a demonstration on each prompt"),
        ("shown", (GRPO,), [], "grpo() needs a checker on each prompt"),
        ("bare", (), [], "no prompt of the audit split of bare.jsonl can be judged"),
        ("p", (SDFT,), ["--seeds", "2"], "2 different seeds allow no verdict"),
        ("p", (SDFT, SDFT), [], "twice"),
        ("p", ("elr()",), [], "elr() learns classes or values"),
        ("p", ("sdfd()",), [], "nearest: sdft"),
        ("p", (SDFT, "rft(max_tokens=4)"), ["--budget", "completions"], "writes once a generation"),
        ("p", ("sft(epochs=2)",), ["--budget", "completions"], "no method draws completions"),
        ("p", (SDFT,), ["--target", "x"], "--target has no meaning for prompts"),
        ("p", (SDFT,), ["--keep", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_what_cannot_be_compared_takes_one_line_and_leaves_nothing(
    data: str, methods: tuple[str, ...], more: list[str], said: str, place: Path, tmp_path: Path
) -> None:
    line = refused(
        "compare", *flags(place, *methods, data=data), "--steps", 1, "--quiet", "--out", tmp_path / "x", *more
    )
    assert said in line
    assert not (tmp_path / "x").exists()


def test_before_a_training_the_file_is_read_twice_whatever_the_seeds(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the door, for the first seed, and for what every seed must have."""
    read, reads = examples_module.read_rows, list[Path]()

    def counting(path: Path, names: Any) -> Any:
        reads.append(path)
        return read(path, names)

    def first(*given: Any) -> None:
        raise RecipeError("the first training")

    monkeypatch.setattr(prompts, "read_rows", counting)
    monkeypatch.setattr(runner, "_work", first)
    more = ["--steps", 1, "--quiet", "--out", tmp_path / "x"]
    assert "the first training" in refused("compare", *flags(place, SDFT, seeds=9), *more)
    assert len(reads) == 2


def test_an_adapter_that_one_recipe_advises_is_asked_for_and_other_budgets_are_of_others(tmp_path: Path) -> None:
    data = tmp_path / "p.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i}", "demonstration": "a"}) + "\n" for i in range(9)))
    line = refused("compare", data, "--methods", "opsd()", "--seeds", 3, "--out", tmp_path / "x")
    assert "opsd() advises an adapter of rank 64" in line
    line = refused("compare", "digits", "--methods", "elr()", "--seeds", 3, "--budget", "completions")
    assert "--match completions is for prompts" in line
    line = refused("compare", "digits", "--methods", "elr()", "--seeds", 3, "--match", "tokens")
    assert "--match tokens is for prompts" in line


# ---- from records alone --------------------------------------------------------------------------------------------


def record(accuracy: float, kept: float, audit: float, **more: Any) -> dict[str, Any]:
    return {
        "metrics": {"accuracy": accuracy, "kept": kept, "length": 5.0}, "audit": {"accuracy": audit}, "decisions": None,
        "passes": {"forward": 1, "total": 3.0}, "with_teacher_training": None, "steps": 10, "generations": 1,
        "curve": [], "drawn": 40, **more,
    }  # fmt: skip


def cells(last: int = 0) -> dict[str, dict[int, dict[str, Any]]]:
    """sdft() is 10 points above sft(), 50 above the model before, and forgets 20 points; ``last``: its last product."""
    return {
        "sdft()": {s: record(0.7 + s / 100, 0.6, 0.5, final_generation=last if s == 5 else 0) for s in range(6)},
        "before": {s: record(0.2 + s / 100, 0.8, 0.1) for s in range(6)},
        "sft()": {s: record(0.6 + s / 100, 0.6, 0.4) for s in range(6)},
    }


def test_verdicts_name_the_model_before_and_prior_tasks() -> None:
    result = judge(cells(), ["sdft()"], task="generate", plain="sft()")
    assert result["verdict"] == [
        "sdft(): in accuracy, BEATS the model before, +50.00 points [+50.00, +50.00], p 0.0312; BEATS sft(), +10.00 "
        "points [+10.00, +10.00], p 0.0312 (Holm over the methods, level 0.05).",
        "sdft(): in accuracy on prior tasks, LOSES to the model before, -20.00 points [-20.00, -20.00], p 0.0312; TIES "
        "with sft(), +0.00 points [+0.00, +0.00], p 1 (Holm over the methods, level 0.05).",
    ]
    assert result["best_control"]["name"] == "sft()"
    assert row(result, "before")["against"]["plain"]["accuracy"]["verdict"] == "LOSES"
    assert row(result, "sdft()")["drawn"] == 40


def test_a_control_for_the_whole_budget_is_a_best_control_of_its_own() -> None:
    made = cells() | {"sft(), longer": {s: record(0.8 + s / 100, 0.6, 0.9) for s in range(6)}}
    result = judge(made, ["sdft()"], task="generate", plain="sft()")
    assert "LOSES to the best control (sft(), longer), -10.00 points" in result["verdict"][0]


def test_products_that_are_the_model_before_are_told() -> None:
    said = judge(cells(last=-1), ["sdft()"], task="generate", plain="sft()")["verdict"]
    assert "in 1 of 6 seeds the final model is the model before training" in said[0]
    assert "keeps the model before" not in said[1]


def test_costs_in_completions_are_what_was_drawn() -> None:
    made = {"rows": {"it": record(0.5, 0.5, 0.5)}}
    assert (cost(made, 2.0, "completions"), cost(made, 2.0, "passes"), cost(made, 2.0, "seconds")) == (40.0, 3.0, 2.0)


def test_passes_are_matched_and_sft_is_given_the_whole_budget() -> None:
    ask = ComparisonSettings(("sdft()", "star()"), (0, 1, 2), "passes")
    amount, jobs = planned(ask, 10, {"sdft()": 400.0, "star()": 100.0, "sft()": 200.0})
    assert (amount, {job.name: job.steps for job in jobs}) == (
        400.0, {"sdft()": 10, "star()": 40, "before": 0, "sft()": 10, "sft(), longer": 20}
    )  # fmt: skip
    assert jobs[-1] == Job("sft(), longer", "language control", 20, 0, expression="sft()")


def test_what_is_written_once_is_no_cost_of_a_step() -> None:
    """640 tokens before the first step and 36 a step: 10 steps come to 1,000, and 60 to 2,800."""
    made = {"rows": {"it": record(0.5, 0.5, 0.5, tokens={"once": 640, "written": 0, "read": 360})}}
    assert (cost(made, 2.0, "tokens"), fixed_cost(made, "tokens"), fixed_cost(made, "passes")) == (1000.0, 640.0, 0.0)
    ask = ComparisonSettings(("sdft()", "rft()"), (0, 1, 2), "tokens")
    jobs = planned(ask, 10, {"sdft()": 2800.0, "rft()": 1000.0}, {"sdft()": 0.0, "rft()": 640.0})[1]
    assert {job.name: job.steps for job in jobs} == {"sdft()": 10, "rft()": 60, "before": 0}


def test_another_models_passes_cost_by_its_parameters(place: Path) -> None:
    """gkd with a teacher of its own: the student's passes 1, the teacher's as many times that as it is larger."""
    export(student(num_hidden_layers=4), place / "large")
    name = f"gkd('{place}/large', share=0.0, max_tokens=4)"
    passed("compare", *flags(place, name), "--steps", 1, "--no-vitals", "--out", place / "gkd")
    sizes = [sum(p.numel() for p in Pretrained(str(place / n))().parameters()) for n in ("large", "tiny")]
    adapter = sum(p.numel() for p in Pretrained(str(place / "tiny"), lora=2)().parameters()) - sizes[1]
    spent = row(found(place, "gkd"), name)["passes"]
    assert spent["teacher"] == 5
    assert spent["total"] == pytest.approx(3 * 5 + 5 * sizes[0] / (sizes[1] + adapter))
