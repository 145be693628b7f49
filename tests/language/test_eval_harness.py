"""Tasks of lm-eval on models in memory: the scores that plain transformers give, in a run, comparison and report."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfdistill.errors import DataError
from selfdistill.experiments.compare import runner
from selfdistill.io.trust import trust_code
from selfdistill.language.eval_harness import HarnessTasks
from tests.language.tiny import student, write_prompts
from tests.terminal import passed, refused

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval, the extra of that name, is not installed"
)
DOCUMENTS = [{"q": f"{i}+1=", "choices": [str(i + 1), str(i + 2), "a"], "label": i % 3} for i in range(24)]
CHOICES = """task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_target: label
doc_to_choice: choices
metric_list: [{metric: acc}]
"""
WRITTEN = """task: written
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["."], max_gen_toks: 3}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A model, prompts, and two tasks on 24 documents, of choices and of answers that are written."""
    write_prompts(tmp_path)
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DOCUMENTS))
    for name, text in (("choices", CHOICES), ("written", WRITTEN)):
        (tmp_path / f"{name}.yaml").write_text(text % (tmp_path / "d.jsonl"))
    return tmp_path


def likeliest(folder: Path) -> list[float]:
    """1 where a model of a folder finds the right choice the likeliest, as the assistant's turn; by transformers."""
    model, words = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = list[float]()
    for row in DOCUMENTS:
        asked = words.apply_chat_template(
            [{"role": "user", "content": str(row["q"])}], add_generation_prompt=True, tokenize=False
        )
        sums = []
        for choice in row["choices"]:  # type: ignore[attr-defined]
            prompt = words(asked, add_special_tokens=False)["input_ids"]
            ids = words(asked + choice, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            sums.append(sum(float(log_p[t - 1, ids[t]]) for t in range(len(prompt), len(ids))))
        found.append(float(max(range(3), key=sums.__getitem__) == row["label"]))
    return found


def test_without_lm_eval_one_line_says_what_to_install(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    asked = ["--model", place / "tiny", "--method", "sft()", "--eval-tasks", place / "choices.yaml"]
    line = refused("run", place / "p.jsonl", *asked, "--out", place / "run")
    assert "--eval-tasks needs lm-eval: pip install 'selfdistill[lm-eval]'" in line
    assert not (place / "run" / "checkpoints").exists()
    assert "--eval-tasks has a meaning for prompts alone" in refused("run", "digits", "--eval-tasks", "choices.yaml")


@needs_harness
@pytest.mark.slow
def test_a_run_scores_the_models_that_it_compares(place: Path) -> None:
    """The scores in run.json are those of plain transformers, of the model before and of the folder that is saved."""
    given = [flag for name in ("choices", "written") for flag in ("--eval-tasks", place / f"{name}.yaml")]
    usual = ["--model", place / "tiny", "--method", "sft()", "--lr", "0.01", "--steps", "12", "--audit", "off"]
    untrusted = refused("run", place / "p.jsonl", *usual, *given, "--device", "cpu", "--out", place / "no")
    assert "choices.yaml is code" in untrusted
    assert "--trust-code" in untrusted
    said = passed("run", place / "p.jsonl", *usual, *given, "--device", "cpu", "--trust-code", "--out", place / "run")
    result = json.loads((place / "run/run.json").read_text())["result"]
    (choices, written) = result["eval_tasks"]
    before, after = likeliest(place / "tiny"), likeliest(place / "run/model")
    assert before != after
    assert (choices["task"], choices["metric"], choices["rows"]) == ("sums", "acc", 24)
    assert choices["before"] == pytest.approx(sum(before) / 24)
    assert choices["after"] == pytest.approx(sum(after) / 24)
    assert choices["gain"] == pytest.approx((sum(after) - sum(before)) / 24)
    assert (written["task"], written["metric"]) == ("written", "exact_match")
    assert result["test"]["tasks"] == pytest.approx((choices["after"] + written["after"]) / 2)
    assert "the model before on tasks of lm-eval" in " ".join(said.stdout.split())
    assert "Tasks of lm-eval" in (place / "run/report.html").read_text()


@needs_harness
@pytest.mark.slow
def test_a_comparison_has_a_verdict_on_them(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "cores", lambda: 1)
    usual = ["--model", place / "tiny", "--lr", "0.01", "--steps", "2", "--max-tokens", "4", "--batch-size", "4"]
    tasks = ["--eval-tasks", place / "choices.yaml", "--trust-code", "--device", "cpu", "--seeds", "3"]
    more = ["--methods", "sdft(max_tokens=4)", "--out", place / "c", "--json", place / "c.json"]
    passed("compare", place / "p.jsonl", *usual, *tasks, *more)
    found: dict[str, Any] = json.loads((place / "c.json").read_text())
    rows = {row["name"]: row["metrics"]["tasks"]["values"] for row in found["rows"]}
    assert rows["before"] == [pytest.approx(sum(likeliest(place / "tiny")) / 24)] * 3
    assert any("in score on tasks of lm-eval, " in line for line in found["verdict"])


@needs_harness
@pytest.mark.slow
def test_what_cannot_be_evaluated_is_said_in_one_line(place: Path) -> None:
    text = (place / "choices.yaml").read_text()
    cases = {
        "less is better": text.replace("metric: acc", "metric: perplexity"),
        r"cannot load it \(Unable to find": text.replace("d.jsonl", "missing.jsonl"),
        "unexpected end of template": text.replace("{{q}}", "{{q"),
        "Unknown config shape": "a: 1\n",
    }
    with trust_code():
        for number, (message, broken) in enumerate(cases.items()):
            (place / f"{number}.yaml").write_text(broken)
            with pytest.raises(DataError, match=message):
                HarnessTasks([str(place / f"{number}.yaml")])
        with pytest.raises(DataError, match="a task 'sums' was given before"):
            HarnessTasks([str(place / "choices.yaml")] * 2)
        scores = HarnessTasks([str(place / "choices.yaml")])
        own, adapted = student(), student(2)
        assert scores.scores(own) == scores.scores(adapted) == scores.scores(own)  # an adapter begins at nothing
