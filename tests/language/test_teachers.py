"""The teachers of language models: each is checked against weights that a plain model was given by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from selfdistill.core.logits import dense
from selfdistill.core.memory import FrozenCopy
from selfdistill.core.parts import BindArgs, Teacher
from selfdistill.core.step import Batch, Forward, ForwardPlan, TrainingClock
from selfdistill.errors import DataError
from selfdistill.language.completions import Language
from selfdistill.models.causal_lm import Causal, Pretrained, Swapped, of_model
from selfdistill.teachers import CurrentStudent, Ema, External, Frozen, Generation
from selfdistill.teachers.weights import GeometricMixture
from tests.language.tiny import batch_of, distil, doubled, shaken, spoken, student, tokenizer

PAIRS = [([10, 11, 12], [20, 21, 22, 1]), ([13], [24, 25])]
GIVEN = BindArgs(None, None, None)


def batch() -> Batch:
    return batch_of(PAIRS, context=(PAIRS, [0, 1]))


def holder(state: nn.Module) -> nn.Module:
    """What holds the weights."""
    assert isinstance(state, FrozenCopy)
    return state.module


def ema(rate: float) -> Ema:
    return Ema(1.0 - rate, "context", warm_up=False)


def trust_region(share: float, reference: Teacher = Frozen("context")) -> GeometricMixture:  # noqa: B008
    return GeometricMixture(reference, CurrentStudent("context"), share)


def said(judge: Teacher, state: nn.Module, model: Causal) -> Tensor:
    """What a teacher says of the rows, as log-probabilities (tokens, vocabulary)."""
    forward = Forward(model, batch(), TrainingClock(), ForwardPlan(("x",), ("context",), fused=False)).run()
    target = judge.target(state, forward, distil(judge))
    assert target.valid is not None
    return torch.log_softmax(dense(target.value)[target.valid].detach(), -1)


def close(found: Tensor, lm: Any, model: Causal, tolerance: float = 1e-4) -> None:
    wanted = torch.cat(spoken(lm, PAIRS, model.vocabulary)).detach()
    torch.testing.assert_close(found.double(), wanted, atol=tolerance, rtol=tolerance)


def stepped(judge: Teacher, state: nn.Module, model: Causal, step: int) -> None:
    looked = Forward(model, batch(), TrainingClock(0, 1, 0, 1, step, 100), ForwardPlan(fused=False)).run()
    judge.update(state, [looked], distil(judge))


@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("judge", [Frozen("context"), Generation("context")])
def test_what_training_began_with_stays(judge: Teacher, lora: int) -> None:
    model = student(lora)
    if lora and judge == Generation("context"):
        shaken(model, seed=3)  # a previous generation's adapter
    start = doubled(model)
    state = judge.start(model, GIVEN)
    shaken(model)
    close(said(judge, state, model), start, model)


def test_the_adapter_off_is_the_base_even_where_training_begins_with_an_adapter() -> None:
    model = shaken(student(4))
    state = Frozen("context").start(model, GIVEN)
    assert not holder(state).state_dict()
    lm = doubled(model)
    with lm.disable_adapter():
        close(said(Frozen("context"), state, model), lm, model)
    assert any(p.abs().max() > 0 for n, p in model.learning().items() if "lora_B" in n)


def test_base_holds_what_origin_gives() -> None:
    first = student()
    model = shaken(student())
    model.origin = first.learning
    close(said(Frozen("context"), Frozen("context").start(model, GIVEN), model), doubled(first), model)


def test_previous_is_the_model_that_is_given() -> None:
    model, before = student(), shaken(student(), seed=5)
    state = Generation("context").start(model, BindArgs(before, None, None))
    shaken(before, seed=6)  # it may be reused
    again = shaken(student(), seed=5)
    close(said(Generation("context"), state, model), doubled(again), model)


@pytest.mark.parametrize("lora", [0, 4])
def test_live_is_the_student(lora: int) -> None:
    model = student(lora)
    state = CurrentStudent("context").start(model, GIVEN)
    shaken(model)
    close(said(CurrentStudent("context"), state, model), doubled(model), model)


def test_ema_of_all_weights() -> None:
    model, judge = student(), ema(0.3)
    shaken(model, seed=9)  # as it is passed, not as it came from anywhere
    lm, state = doubled(model), judge.start(model, GIVEN)
    mean = {n: p.detach().double().clone() for n, p in model.lm.named_parameters()}
    for step in range(5):
        shaken(model, seed=step)
        stepped(judge, state, model, step)
        mean = {n: 0.7 * m + 0.3 * dict(model.lm.named_parameters())[n].detach().double() for n, m in mean.items()}
    lm.load_state_dict(mean, strict=False)
    close(said(judge, state, model), lm, model)


def test_ema_of_an_adapter_averages_its_product() -> None:
    model, judge = student(4), ema(0.3)
    shaken(model, 0.2, seed=9)
    state, scale = judge.start(model, GIVEN), 2.0  # alpha is twice the rank

    def updates() -> dict[str, Tensor]:
        own = {n: p.detach().double() for n, p in model.lm.named_parameters()}
        return {n.removesuffix(".lora_A.default.weight"): scale * own[n.replace("lora_A", "lora_B")] @ own[n]
                for n in own if "lora_A" in n}  # fmt: skip

    mean = updates()
    for step in range(5):
        shaken(model, 0.2, seed=step)
        stepped(judge, state, model, step)
        mean = {n: 0.7 * m + 0.3 * updates()[n] for n, m in mean.items()}
    lm = doubled(model)
    with torch.no_grad():
        for n, p in lm.named_parameters():
            if n.endswith("base_layer.weight"):
                p.add_(mean[n.removesuffix(".base_layer.weight")])
    with lm.disable_adapter():
        close(said(judge, state, model), lm, model)
        separate = said(Frozen("context"), Frozen("context").start(model, GIVEN), model)
    assert (said(judge, state, model) - separate).abs().max() > 0.1


@pytest.mark.parametrize("targets", ["all-linear", "wte,c_proj"])
@pytest.mark.parametrize("judge", [ema(0.3), trust_region(0.0, ema(0.3))])
def test_ema_of_an_adapter_on_transposed_weights_and_embeddings(judge: Teacher, targets: str) -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
    shape |= {"vocab_size": len(tokenizer()), "eos_token_id": 1, "bos_token_id": None, "tie_word_embeddings": False}
    config = GPT2Config(**shape)
    model = of_model(GPT2LMHeadModel(config), tokenizer(), Pretrained("tiny", lora=4, targets=targets))
    lm, state = copy.deepcopy(model.lm.get_base_model()).double().eval(), judge.start(model, GIVEN)

    def updates() -> dict[str, Tensor]:  # W (inputs, outputs) <- W + 2 (B A)^T, and so does an embedding (words, width)
        own = {n: p.detach().double() for n, p in model.lm.named_parameters()}
        pairs = [(n, n.replace("_A", "_B")) for n in own if "lora_" in n and "_A" in n]
        return {a.split(".lora_")[0].removeprefix("base_model.model."): 2.0 * (own[b] @ own[a]).T for a, b in pairs}

    mean = {n: torch.zeros_like(u) for n, u in updates().items()}  # B begins with 0
    for step in range(3):
        shaken(model, 0.2, seed=step)
        stepped(judge, state, model, step)
        mean = {n: 0.7 * m + 0.3 * updates()[n] for n, m in mean.items()}
    start = torch.cat(spoken(lm, PAIRS, model.vocabulary)).detach()
    with torch.no_grad():
        for n, p in lm.named_parameters():
            if (name := n.removesuffix(".weight").replace(".base_layer", "")) in mean:
                p.add_(mean.pop(name))
    assert not mean
    found = said(judge, state, model)
    close(found, lm, model)
    assert (found - start).abs().max() > 0.1
    own = said(CurrentStudent("context"), nn.Module(), model)
    assert (found - own).abs().max() > 0.1
    assert not [n for n, m in model.named_modules() if "forward" in vars(m)], "each layer does its own again"


def test_a_bfloat16_student_has_an_average_that_moves() -> None:
    model, judge = student(), ema(0.01)
    model.to(torch.bfloat16)
    state = judge.start(model, GIVEN)
    exact = {n: p.detach().double().clone() for n, p in model.learning().items()}
    start = {n: e.clone() for n, e in exact.items()}
    for step in range(20):
        shaken(model, 0.002, seed=step)
        stepped(judge, state, model, step)
        exact = {n: 0.99 * e + 0.01 * model.learning()[n].detach().double() for n, e in exact.items()}
    assert isinstance(state.module, Swapped)
    held = state.module.weights()
    assert all(w.dtype == torch.float32 for w in held.values())
    error = sum(float((held[n].double() - e).square().sum()) for n, e in exact.items()) ** 0.5
    moved = sum(float((e - start[n]).square().sum()) for n, e in exact.items()) ** 0.5
    assert error < 1e-3 * moved  # an average in bfloat16 misses most of it
    assert said(judge, state, model).isfinite().all()


@pytest.mark.parametrize("lora", [0, 4])
def test_trust_region_mixes_logits(lora: int) -> None:
    model, judge = student(lora), trust_region(0.25)
    start, state = doubled(model), judge.start(model, GIVEN)
    shaken(model)
    with torch.no_grad():
        q, p = (torch.cat(spoken(lm, PAIRS, model.vocabulary)) for lm in (start, doubled(model)))
    wanted = torch.log_softmax(0.75 * q + 0.25 * p, -1)
    torch.testing.assert_close(said(judge, state, model).double(), wanted, atol=1e-4, rtol=1e-4)


def test_the_reference_of_a_trust_region_may_move() -> None:
    model, judge = student(), trust_region(0.0, ema(1.0))
    state = judge.start(model, GIVEN)
    shaken(model)
    stepped(judge, state, model, 0)
    close(said(judge, state, model), doubled(model), model)


def test_external_is_another_model() -> None:
    model, other = student(), student(seed=7, hidden_size=16, num_hidden_layers=1)
    judge = External("context")
    state = judge.start(model, BindArgs(None, other))
    assert not holder(state).state_dict()
    close(said(judge, state, model), doubled(other), model)


def test_external_with_another_tokenizer_is_refused() -> None:
    other = student()
    other.tokenizer = tokenizer("zyxwvu")
    with pytest.raises(DataError, match="another tokenizer"):
        External().start(student(), BindArgs(None, other))


@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize(
    "judge", [Frozen("context"), Generation("context"), ema(0.1), trust_region(0.5), CurrentStudent("context")]
)
def test_nothing_flows_into_a_teacher(judge: Teacher, lora: int) -> None:
    """The gradient is that of a loss whose teacher is a table of numbers."""
    model = student(lora)
    context = [([40, 41, *p], c) for p, c in PAIRS]
    objective = Language({"distil": distil(judge)}).bind(model)
    shaken(model)
    rows = batch_of(PAIRS, context=(context, [0, 1]))
    objective(rows).backward()
    found = {n: p.grad.clone() for n, p in model.learning().items() if p.grad is not None}
    assert all(not b.requires_grad for b in objective.states.buffers())
    assert set(found) == set(model.learning())
    model.zero_grad()
    forward = Forward(model, rows, TrainingClock(), ForwardPlan(("x",), ("context",), fused=False)).run()
    target = judge.target(objective.state_of("distil", judge), forward, distil(judge))
    table = dense(target.value)[target.valid].detach().clone()
    lines = [forward.student("x", "hidden")[i, : len(c)] for i, (_, c) in enumerate(PAIRS)]
    z = nn.functional.linear(torch.cat(lines), model.plain.get_output_embeddings().weight)[:, : model.vocabulary]
    log_q = torch.log_softmax(table[:, : model.vocabulary], -1)
    (log_q.exp() * (log_q - torch.log_softmax(z, -1))).sum(-1).mean().backward()
    for n, p in model.learning().items():
        torch.testing.assert_close(found[n], p.grad, atol=1e-5, rtol=1e-3, msg=n)


def test_an_untied_head_is_put_in_place_too() -> None:
    model = student(tie_word_embeddings=False)
    start, state = doubled(model), Frozen("context").start(model, GIVEN)
    shaken(model)
    close(said(Frozen("context"), state, model), start, model)
