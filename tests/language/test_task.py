"""From the command line to a folder that plain transformers load, on a model that knows nothing."""

from __future__ import annotations

import inspect
import itertools
import json
import random
import statistics
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from peft import AutoPeftModelForCausalLM

import selfdistill
from selfdistill.cli import main
from selfdistill.errors import DataError
from selfdistill.language import preflight
from selfdistill.language.recipes import RECIPES
from selfdistill.language.run import paired, spread
from selfdistill.language.sampling import Vllm, export
from selfdistill.language.trainer import fit
from selfdistill.training.settings import Settings
from tests.language.tiny import prompts, student, write_prompts
from tests.terminal import passed


def test_fit_takes_every_field_of_the_settings() -> None:
    """Whoever adds a field to `Settings` adds it here too; of these the method gives advice, or the model."""
    parameters, advised = inspect.signature(fit).parameters, {"epochs", "batch_size", "lr", "clip", "precision"}
    for field in fields(Settings):
        assert parameters[field.name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[field.name].default == (None if field.name in advised else field.default), field.name


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, prompts with demonstrations and checkers, and a suite of prior tasks."""
    folder = tmp_path_factory.mktemp("door")
    export(student(), folder / "tiny")
    words = ["abc", "bcd", "cda", "dab", "acb", "bdc", "cad", "dba", "adc", "bca", "cbd", "dcb"]
    rows = [{"prompt": f"{w} {i}?", "demonstration": w[::-1], "answer": w[::-1], "checker": "exact"}
            for i, w in enumerate(words * 2)]  # fmt: skip
    suite = [{"prompt": f"{i}?", "answer": str(i), "checker": "exact"} for i in range(4)]
    for name, lines in (
        ("p", rows),
        ("few", rows[:5]),
        ("k", suite),
        ("bare", [{"prompt": r["prompt"]} for r in rows]),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def call(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, list(args))
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def run(place: Path) -> dict[str, Any]:
    code, out, err = call(
        "run", f"{place}/p.jsonl", "--model", f"{place}/tiny", "--method", "sdft(max_tokens=4)", "--keep",
        f"{place}/k.jsonl", "--max-tokens", "4", "--steps", "2", "--batch-size", "4", "--lora", "2", "--out",
        f"{place}/run", "--quiet", "--json", "--save", "both", "--dtype", "bfloat16",
    )  # fmt: skip
    assert code == 0, err
    return dict(json.loads(out))


def test_a_run_tells_of_before_the_control_and_the_product(run: dict[str, Any]) -> None:
    assert run["kind"] == "language"
    assert {"accuracy", "kept", "length"} == set(run["before"]) == set(run["test"]) == set(run["plain"]["end"])
    assert run["plain"]["steps"] == run["steps"] == 2
    assert set(run["against"]) == {"before", "sft"}
    assert run["against"]["before"]["kept"]["verdict"] in ("BEATS", "TIES", "LOSES")
    assert run["learning"] < run["parameters"]


def test_the_product_loads_in_plain_transformers(place: Path, run: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(place / "run" / "model")
    tokenizer = AutoTokenizer.from_pretrained(place / "run" / "model")
    assert type(model).__name__ == "LlamaForCausalLM"  # the adapter is merged
    assert model.dtype == torch.bfloat16
    cards = [(place / "run" / "model" / name).read_text() for name in ("README.md", "adapter/README.md")]
    for card, library in zip(cards, ("transformers", "peft"), strict=True):
        assert f"library_name: {library}\nbase_model: {place / 'tiny'}\n" in card
    adapter = AutoPeftModelForCausalLM.from_pretrained(place / "run" / "model" / "adapter")
    merged, ids = adapter.merge_and_unload().eval(), torch.arange(5, 15)[None]
    apart = (merged(ids).logits - model.eval()(ids).logits).float()
    assert apart.square().mean().sqrt() < 0.05  # rounded to bfloat16 in two ways
    assert model(**tokenizer("abc", return_tensors="pt")).logits.shape[1] == 3
    assert not list((place / "run").rglob("*.bin"))


def test_an_update_of_a_language_model_begins_with_it_and_is_judged_on_prior_prompts(
    place: Path, run: dict[str, Any]
) -> None:
    """The same table: new prompts and prior ones, before and after."""
    before = {path: path.read_bytes() for path in (place / "run" / "model").iterdir() if path.is_file()}
    code, out, err = call(
        "update", f"{place}/run", f"{place}/p.jsonl", "--keep", f"{place}/k.jsonl", "--steps", "1", "--batch-size", "4",
        "--out", f"{place}/updated", "--quiet", "--json",
    )  # fmt: skip
    assert code == 0, err
    result = json.loads(out)
    assert (result["kind"], result["method"]) == ("language", "sdft()")
    assert {"accuracy", "kept", "length"} == set(result["before"]) == set(result["test"])
    assert result["before"]["accuracy"] == run["test"]["accuracy"]  # it begins with the final model
    assert (result["learning"], result["model"]) == (run["learning"], f"{place}/run/model, LoRA r2")
    assert before == {path: path.read_bytes() for path in (place / "run" / "model").iterdir() if path.is_file()}
    code, out, err = call("resume", f"{place}/updated", "--json")
    assert json.loads(out)["test"] == result["test"]
    from selfdistill.experiments.run import Run
    from selfdistill.io.run_record import Request

    request = Request(f"{place}/p.jsonl", update=f"{place}/run", steps=1)
    assert "nothing shows whether the model forgets" in Run.create(request, place / "no").task.prepare(request).note


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["update", "run", "p.jsonl", "--model", "tiny"], "leave --model out"),
        (["update", "run", "p.jsonl", "--memory", "5"], "--memory has no meaning for prompts"),
        (["update", "run", "digits"], "run is a run of a language model, and digits holds no prompts"),
        (["adapt", "run", "t.csv"], "run is a language model; give it prompts by `selfdistill update`"),
    ],
)
def test_what_an_update_of_a_language_model_cannot_be(
    words: list[str], fault: str, place: Path, run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    code, _, err = call(*words, "--out", "refused")
    assert (code, fault in err) == (2, True), err
    assert not Path("refused").exists()


@pytest.mark.parametrize(("data", "method"), [("few", "sft()"), ("bare", "ssd(max_tokens=4)")])
def test_a_run_that_can_judge_too_few_prompts_says_so(place: Path, data: str, method: str) -> None:
    code, out, err = call(
        "run", f"{place}/{data}.jsonl", "--model", f"{place}/tiny", "--method", method, "--max-tokens", "4", "--steps",
        "1", "--audit", "off", "--out", f"{place}/{data}", "--quiet", "--json",
    )  # fmt: skip
    assert code == 0, err
    against = json.loads(out)["against"]["before"]["test"]
    assert (against["rows"], against["half"], against["verdict"]) == (int(data == "few"), None, None)
    for page in ("README.md", "report.html"):
        said = (place / data / page).read_text(encoding="utf-8")
        assert "has no verdict against the model before" in said
        assert "and at least 3 show one" in said


def test_predict_vitals_and_report_of_a_run(place: Path, run: dict[str, Any]) -> None:
    code, out, err = call("predict", f"{place}/run", f"{place}/k.jsonl")
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["prompt"] for row in rows] == ["0?", "1?", "2?", "3?"]
    assert all(row["reward"] in (0.0, 1.0) for row in rows)
    answers = selfdistill.load(f"{place}/run").predict([row["prompt"] for row in rows])
    assert [record["completion"] for record in answers.records()] == [row["completion"] for row in rows]
    code, out, err = call("vitals", f"{place}/run")
    assert code == 0, err
    assert "right when the context is read" in out
    assert "nats a token" in out
    assert "sft(), after 2 steps" in (place / "run" / "README.md").read_text(encoding="utf-8")
    assert "AutoModelForCausalLM" in (place / "run" / "README.md").read_text(encoding="utf-8")
    assert "The final model" in (place / "run" / "report.html").read_text(encoding="utf-8")


def test_explain_shows_what_the_teacher_alone_reads(place: Path) -> None:
    code, out, err = call("explain", "sdft()", "--example", f"{place}/p.jsonl")
    assert code == 0, err
    assert "+ user: This is an example for a response to the question:" in out
    assert "  user: " in out
    code, _, err = call("explain", "elr()", "--example", f"{place}/p.jsonl")
    assert (code, err.count("\n")) == (2, 1)


def test_vllm_in_two_processes_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfdistill.core.distributed.size", lambda: 2)
    with pytest.raises(DataError, match="vLLM writes for one process alone; leave torchrun or vLLM away"):
        fit(student, prompts(20), RECIPES["sdft"](), out=tmp_path / "run", device="cpu", parallel="fsdp", engine=Vllm())
    assert not (tmp_path / "run").exists()


def test_preflight_says_no_where_there_is_nothing_to_learn(place: Path) -> None:
    code, out, _ = call(
        "preflight", f"{place}/p.jsonl", "--model", f"{place}/tiny", "--method", "sdft()", "--max-tokens", "4",
        "--prompts", "4", "--device", "cpu", "--json",
    )  # fmt: skip
    found = json.loads(out)
    assert code == int(not found["go"])
    assert found["student"]["accuracy"] == 0.0  # it knows nothing, with the context or without
    assert not found["go"]


def test_preflight_shows_the_attempt_to_a_context_that_reads_it(place: Path) -> None:
    code, out, _ = call(
        "preflight", f"{place}/p.jsonl", "--model", f"{place}/tiny", "--method", "sd_zero(k=5)", "--max-tokens", "4",
        "--prompts", "4", "--device", "cpu", "--json",
    )  # fmt: skip
    found = json.loads(out)
    assert found["student_with_context"]["shown"] > 0  # it may say nothing, and then there is nothing to revise
    assert code == int(not found["go"])


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("run", "p.jsonl", "--method", "elr()"), "holds prompts"),
        (("run", "p.jsonl", "--method", "sdfd()"), "nearest: sdft"),
        (("run", "digits", "--method", "sdft()"), "learns prompts"),
        (("run", "bare.jsonl", "--model", "tiny", "--method", "sdft()"), "needs a demonstration"),
        (("run", "p.jsonl", "--model", "minilm"), "writes none"),
        (("run", "p.jsonl", "--target", "x"), "no column is called"),
        (("compare", "digits", "--methods", "sdft()", "--quiet"), "learns prompts"),
        (("preflight", "digits"), "holds no prompts"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    args: tuple[str, ...], says: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    code, _, err = call(*args)
    assert code == 2, err
    assert says in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize("n", [0, 1, 2])
def test_one_or_two_prompts_beat_nothing(n: int) -> None:
    found = paired([0.0] * n, [1.0] * n)
    assert (found["gain"], found["half"], found["rows"], found["verdict"]) == (float(n > 0), None, n, None)
    json.loads(json.dumps(found, allow_nan=False))


@pytest.mark.parametrize("n", range(3, 12))
def test_rows_that_all_gain_alike_are_judged_as_coins_would_be(n: int) -> None:
    chance = sum(all(coins) or not any(coins) for coins in itertools.product((0, 1), repeat=n)) / 2**n
    assert paired([0.0] * n, [1.0] * n)["verdict"] == ("BEATS" if chance <= 0.05 else "TIES")
    assert paired([1.0] * n, [0.0] * n)["verdict"] == ("LOSES" if chance <= 0.05 else "TIES")
    tied = paired([1.0] * n, [1.0] * n)
    assert tied["verdict"] == "TIES"
    assert (1 - tied["half"]) ** n == pytest.approx(0.025)  # the chance that a share of ``half`` is never met


def test_the_interval_of_right_and_wrong_covers_rare_losses() -> None:
    """Of prompts that all tie but one in fifty, 20 rows mostly see none; an interval of 0 would miss the mean."""
    generator, covered = random.Random(0), 0
    for _ in range(400):
        mean, half = spread([-float(generator.random() < 0.02) for _ in range(20)])
        assert half is not None
        covered += abs(mean + 0.02) <= half
    assert covered >= 380


def test_other_intervals_are_students() -> None:
    gains = [0.1, 0.3, 0.2, 0.5, -0.1]
    half = statistics.stdev(gains) / 5**0.5 * 2.7764451
    for bounded in (True, False):
        assert spread(gains, bounded) == pytest.approx((0.2, half))
    assert spread([0.0] * 3, bounded=False) == (0.0, 0.0)


def test_a_model_ties_itself_for_certain() -> None:
    losses = [0.0, 1.0, 1.0]
    assert paired(losses, losses) == {"gain": 0.0, "half": 0.0, "rows": 3, "verdict": "TIES"}


def test_the_verdict_is_the_side_of_zero_on_which_the_interval_lies() -> None:
    """Whether rows are right or wrong, or have any losses."""
    generator = random.Random(1)
    words = set()
    for rows in (3, 5, 8, 20, 40):
        for share in (0.0, 0.3, 0.6, 1.0):
            for _ in range(20):
                wrong = [float(generator.random() < 0.9) for _ in range(rows)]
                better = [loss * (generator.random() > share) for loss in wrong]
                nats = [loss - share * generator.random() + 0.1 for loss in wrong]
                for ours, bounded in ((better, True), (nats, False)):
                    mean, half = spread([a - b for a, b in zip(wrong, ours, strict=True)], bounded)
                    assert half is not None
                    word = "BEATS" if mean > half else "LOSES" if mean < -half else "TIES"
                    if bounded or half > 1e-9:  # equal gains in nats of a few rows are no proof
                        assert paired(ours, wrong, bounded)["verdict"] == word
                        words.add(word)
    assert words == {"BEATS", "TIES", "LOSES"}


def test_preflight_of_few_prompts_does_not_say_go() -> None:
    found = {"gap": {"mean": 1.0, "half": None, "prompts": 2}, "student": {"accuracy": 0.0}}
    assert preflight._verdict(found, True) == (
        False, "2 prompts are too few to show that the teacher knows more; take more --prompts"
    )  # fmt: skip


def test_auto_of_prompts_is_chosen_by_the_audit_beside_the_model_before(place: Path) -> None:
    code, out, err = call(
        "run", f"{place}/p.jsonl", "--model", f"{place}/tiny", "--method", "auto(most=2)", "--max-tokens", "4",
        "--steps", "1", "--batch-size", "4", "--out", f"{place}/auto", "--json",
    )  # fmt: skip
    assert code == 0, err
    result = json.loads(out)
    assert "auto(): 2 trainings" in err
    assert [trial["method"] for trial in result["auto"]["tried"]] == ["sft()", "ssd()"]
    assert sum(trial["chosen"] for trial in result["auto"]["tried"]) == 1
    code, _, err = call(
        "run", f"{place}/bare.jsonl", "--model", f"{place}/tiny", "--method", "auto()", "--audit", "off"
    )
    assert code == 2
    assert "auto() chooses on the audit prompts" in err


def test_a_budget_takes_steps_of_a_language_model_and_its_control(tmp_path: Path) -> None:
    write_prompts(tmp_path)
    passed(
        "run", tmp_path / "p.jsonl", "--model", tmp_path / "tiny", "--method", "sdft(max_tokens=4)", "--steps", 50,
        "--max-tokens", 4, "--batch-size", 4, "--budget", "2000passes", "--out", tmp_path / "r",
    )  # fmt: skip
    result = json.loads((tmp_path / "r" / "run.json").read_text())["result"]
    assert result["steps"] == result["plain"]["steps"] < 50
    assert result["budget"]["passes"] <= 2000
    assert result["budget"]["cut"]
