"""From the command line to a folder that plain transformers load, on a model that knows nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from selfdistill.cli import main
from selfdistill.errors import DataError
from selfdistill.language.recipes import RECIPES
from selfdistill.language.rollouts import Vllm, export
from selfdistill.language.trainer import fit
from tests.language.tiny import prompts, student


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, prompts with demonstrations and checkers, and a suite of prior tasks."""
    folder = tmp_path_factory.mktemp("door")
    export(student(), folder / "tiny")
    words = ["abc", "bcd", "cda", "dab", "acb", "bdc", "cad", "dba", "adc", "bca", "cbd", "dcb"]
    rows = [{"prompt": f"{w} {i}?", "demonstration": w[::-1], "answer": w[::-1], "checker": "exact"}
            for i, w in enumerate(words * 2)]  # fmt: skip
    suite = [{"prompt": f"{i}?", "answer": str(i), "checker": "exact"} for i in range(4)]
    for name, lines in (("p", rows), ("k", suite), ("bare", [{"prompt": r["prompt"]} for r in rows])):
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
        f"{place}/run", "--quiet", "--json",
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
    assert model(**tokenizer("abc", return_tensors="pt")).logits.shape[1] == 3
    assert not list((place / "run").rglob("*.bin"))


def test_predict_vitals_and_report_of_a_run(place: Path, run: dict[str, Any]) -> None:
    code, out, err = call("predict", f"{place}/run", f"{place}/k.jsonl")
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["prompt"] for row in rows] == ["0?", "1?", "2?", "3?"]
    assert all(row["reward"] in (0.0, 1.0) for row in rows)
    code, out, err = call("vitals", f"{place}/run")
    assert code == 0, err
    assert "right when the context is read" in out
    assert "nats a token" in out
    assert "sft(), after 2 steps" in (place / "run" / "README.md").read_text(encoding="utf-8")
    assert "AutoModelForCausalLM" in (place / "run" / "README.md").read_text(encoding="utf-8")
    assert "The product" in (place / "run" / "report.html").read_text(encoding="utf-8")


def test_explain_shows_what_the_teacher_alone_reads(place: Path) -> None:
    code, out, err = call("explain", "sdft()", "--example", f"{place}/p.jsonl")
    assert code == 0, err
    assert "+ user: This is an example for a response to the question:" in out
    assert "  user: " in out
    code, _, err = call("explain", "elr()", "--example", f"{place}/p.jsonl")
    assert (code, err.count("\n")) == (2, 1)


def test_vllm_on_shards_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfdistill.ranks.size", lambda: 2)
    with pytest.raises(
        DataError, match="vLLM cannot be handed weights that FSDP has sharded; leave --parallel or vLLM"
    ):
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


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("run", "p.jsonl", "--method", "elr()"), "holds prompts"),
        (("run", "p.jsonl", "--method", "sdfd()"), "nearest: sdft"),
        (("run", "digits", "--method", "sdft()"), "learns prompts"),
        (("run", "bare.jsonl", "--model", "tiny", "--method", "sdft()"), "needs a demonstration"),
        (("run", "p.jsonl", "--model", "minilm"), "writes none"),
        (("run", "p.jsonl", "--target", "x"), "--target"),
        (("compare", "p.jsonl", "--methods", "sdft()"), "not compared over seeds"),
        (("compare", "digits", "--methods", "sdft()", "--quiet"), "unknown method"),
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
