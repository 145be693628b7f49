"""Peers of a language model: adapters of one base, what they cost, how one is chosen, saved, cut and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from selfdistill.errors import RecipeError
from selfdistill.language import evaluation
from selfdistill.language.completions import Language, Writer
from selfdistill.language.recipes import RECIPES, mutual_adapters, sft
from selfdistill.language.sampling import export
from selfdistill.language.trainer import fit
from selfdistill.models.causal_lm import Pretrained, of_model
from selfdistill.models.causal_peers import AdapterPeers, CausalPeers
from tests.language.tiny import doubled, prompts, rows_of, shaken, student, write_prompts
from tests.terminal import passed, refused

PAIRS = [([10, 11, 12], [20, 21, 22, 1]), ([13], [24, 25])]


def peers(number: int = 2, **more: Any) -> CausalPeers:
    """Peers that were moved."""
    made = AdapterPeers(number)(lambda: student(4, **more))()
    shaken(made, 0.2)
    return made.eval()  # type: ignore[no-any-return]


def update(lm: Any, layer: str, adapter: str) -> Tensor:
    """The update s B A of a layer, read from PEFT's own matrices."""
    module = lm.get_submodule(layer)
    found: Tensor = module.scaling[adapter] * module.lora_B[adapter].weight @ module.lora_A[adapter].weight
    return found.detach()


LAYER = "base_model.model.model.layers.1.mlp.up_proj"


def test_a_peer_costs_an_adapter_and_not_a_model() -> None:
    made, one = AdapterPeers(3)(lambda: student(4))(), student(4)
    adapter = sum(p.numel() for p in one.learning().values())
    assert sum(p.numel() for p in made.learning().values()) == 3 * adapter
    frozen = sum(p.numel() for p in made.parameters() if not p.requires_grad)
    assert frozen == sum(p.numel() for p in one.parameters() if not p.requires_grad) + 3 * adapter  # their mean
    assert {name for name in made.state_dict() if name != "chosen"} == set(made.learning())
    starts = [p for n, p in made.learning().items() if LAYER in n and "lora_A" in n]
    assert len({float(p.detach().sum()) for p in starts}) == 3, "peers begin alike"
    again = AdapterPeers(3)(lambda: student(4))().learning()
    assert all(torch.equal(p, again[n]) for n, p in made.learning().items())


def test_the_mean_of_the_peers_has_the_mean_of_their_updates() -> None:
    made = peers(3)
    made.choose(3)
    wanted = sum(update(made.lm, LAYER, name) for name in ("default", "peer1", "peer2")) / 3
    torch.testing.assert_close(update(made.lm, LAYER, "mean"), wanted)
    assert made.adapter_name == "mean"
    x, plain = rows_of(PAIRS), doubled(student())
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            layer = f"base_model.model.{name.removesuffix('.weight')}"
            if hasattr(made.lm.get_submodule(layer), "lora_A"):
                each = [update(made.lm, layer, n) for n in ("default", "peer1", "peer2")]
                weight.add_(torch.stack(each).double().mean(0))
        logits = plain(input_ids=torch.tensor([[*PAIRS[0][0], *PAIRS[0][1]]])).logits[0, 2:-1, : made.vocabulary]
    head = made.plain.get_output_embeddings().weight[: made.vocabulary]
    found = made.hidden_states(x)[0] @ head.detach().T
    torch.testing.assert_close(found.double(), logits, atol=1e-4, rtol=1e-4)


def test_the_best_on_the_validation_split_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers and mean are scored apart; what answers is the first of the best, and a copy of the weights answers so."""
    scores = {"default": [0.5, 0.5], "peer1": [0.0, 0.5], "mean": [0.5, 0.0]}
    monkeypatch.setattr(evaluation, "losses", lambda model, *rest: list(scores[str(model.adapter_name)]))
    result = fit(
        lambda: student(4), prompts(), mutual_adapters(), device="cpu", steps=1, batch_size=6, max_tokens=4, lr=1e-2,
        vitals=False,
    )  # fmt: skip
    model = result.model
    assert isinstance(model, CausalPeers)
    assert (int(model.chosen), model.adapter_name) == (1, "peer1")
    assert result.history[-1]["candidates"] == {"peer 0": 0.5, "peer 1": 0.25, "the mean of the peers": 0.25}
    other = AdapterPeers(2)(lambda: student(4))()
    other.load_state_dict(result.generations[-1].weights)
    assert other.adapter_name == "peer1"
    scores["mean"] = [0.0, 0.0]
    other.choose(0)
    writer = Writer(mutual_adapters(), prompts())
    writer.model = other
    found, means = evaluation.evaluate_best(writer, prompts(12), "peers")
    assert other.adapter_name == "mean"
    assert (found.losses, found.guard, means["the mean of the peers"]) == ([0.0, 0.0], [0.0, 0.0], 0.0)


def test_a_step_counts_the_passes_of_each_peer() -> None:
    options: dict[str, Any] = {"device": "cpu", "steps": 2, "batch_size": 6, "max_tokens": 4, "audit": "off"}
    one, three = (
        fit(lambda: student(4), prompts(), method, vitals=False, **options).passes
        for method in (sft(), mutual_adapters(3))
    )
    assert (three.forward, three.backward, three.teacher) == (3 * one.forward, 3 * one.backward, 0)
    assert three.evaluation == 4 * (one.evaluation - len(prompts().audit)) + len(prompts().audit)  # the model before


def test_peers_at_weight_0_are_trainings_apart() -> None:
    """The first peer then is the model that sft() trains, when no gradient is clipped."""
    options: dict[str, Any] = {"device": "cpu", "steps": 3, "batch_size": 6, "max_tokens": 4, "lr": 1e-2, "clip": 1e9}
    apart = fit(lambda: student(4), prompts(), mutual_adapters(2, 0.0), audit="off", vitals=False, **options)
    alone = fit(lambda: student(4), prompts(), sft(), audit="off", vitals=False, **options)
    weights = apart.generations[-1].weights
    for name, weight in alone.generations[-1].weights.items():
        torch.testing.assert_close(weights[name], weight, atol=1e-6, rtol=1e-5)
    together = fit(lambda: student(4), prompts(), mutual_adapters(2), audit="off", vitals=False, **options)
    assert any(not torch.allclose(w, weights[n]) for n, w in together.generations[-1].weights.items())


def test_all_adapters_are_saved_and_peft_switches_between_them(tmp_path: Path) -> None:
    made = peers()
    student().lm.save_pretrained(tmp_path / "base")
    made.choose(1)
    export(made, tmp_path / "out", "adapter", str(tmp_path / "base"))
    loaded = PeftModel.from_pretrained(student().lm, tmp_path / "out")
    for k, name in enumerate(made.names):
        loaded.load_adapter(tmp_path / "out" / f"peer{k}", f"p{k}")
        torch.testing.assert_close(update(loaded, LAYER, f"p{k}"), update(made.lm, LAYER, name))
    torch.testing.assert_close(update(loaded, LAYER, "default"), update(made.lm, LAYER, "peer1"))
    made.choose(2)
    export(made, tmp_path / "mean", "both", str(tmp_path / "base"))
    of_mean = PeftModel.from_pretrained(student().lm, tmp_path / "mean" / "adapter")
    torch.testing.assert_close(update(of_mean, LAYER, "default"), update(made.lm, LAYER, "mean"))
    merged = type(student().lm).from_pretrained(tmp_path / "mean")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, made.lm(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("lora", "checkpointing", "message"), [(0, False, "give --lora 16"), (4, True, "leave it out")]
)
def test_what_cannot_be_peers_is_refused(lora: int, checkpointing: bool, message: str) -> None:
    how = Pretrained("tiny", lora=lora, checkpointing=checkpointing)
    build = lambda: of_model(student().lm, student().tokenizer, how)
    with pytest.raises(RecipeError, match=message):
        fit(build, prompts(), mutual_adapters(), device="cpu", steps=1)


def test_a_teacher_with_other_weights_is_refused() -> None:
    method = RECIPES["sdft"](max_tokens=4)
    assert isinstance(method, Language)
    with pytest.raises(RecipeError, match="peers teach each other"):
        fit(lambda: student(4), prompts(), replace(method, wrap_model=AdapterPeers(2)), device="cpu", steps=1)


def test_a_run_of_peers_from_the_command_line(tmp_path: Path) -> None:
    write_prompts(tmp_path)
    asked = [f"{tmp_path}/p.jsonl", "--model", tmp_path / "tiny", "--method", "mutual_adapters()", "--steps", 2,
             "--max-tokens", 3, "--batch-size", 6, "--device", "cpu", "--out", tmp_path / "run"]  # fmt: skip
    assert "give --lora 16" in refused("run", *asked, "--lora", 0)
    assert "leave it out" in refused("run", *asked, "--lora", 2, "--checkpointing")
    said = passed("run", *asked, "--lora", 2, "--save", "adapter", "--audit", "off").stdout
    assert "It is peer" in said or "It is the mean of the peers" in said
    config = [json.loads((tmp_path / "run/model" / f"peer{k}/adapter_config.json").read_text()) for k in range(2)]
    assert [one["r"] for one in config] == [2, 2]
