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


def factors_of(lm: Any) -> dict[str, Tensor]:
    return {n: p.detach().double().clone() for n, p in lm.named_parameters() if "lora_" in n and ".held" not in n}


def products(factors: dict[str, Tensor]) -> dict[str, Tensor]:
    """2 B A by the name of A, where alpha is twice the rank."""
    return {n: 2.0 * factors[n.replace("_A", "_B")] @ factors[n] for n in factors if "_A" in n}


def nearest(dense: dict[str, Tensor], rank: int) -> tuple[dict[str, Tensor], float]:
    """Matrices of a rank that are nearest to these, and how much of them is cut off."""
    found, cut = dict[str, Tensor](), 0.0
    for n, whole in dense.items():
        u, s, v = torch.linalg.svd(whole, full_matrices=False)
        found[n], cut = u[:, :rank] * s[:rank] @ v[:rank], cut + float(s[rank:].square().sum())
    return found, cut**0.5


@pytest.mark.parametrize("targets", ["all-linear", "wte,c_proj"])
@pytest.mark.parametrize("judge", [ema(0.3), trust_region(0.0, ema(0.3))])
def test_ema_of_an_adapter_is_the_nearest_adapter_to_the_average_of_products(judge: Teacher, targets: str) -> None:
    """Of linear layers, of GPT-2's transposed ones and of embeddings; the student answers as before afterwards."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
    shape |= {"vocab_size": len(tokenizer()), "eos_token_id": 1, "bos_token_id": None, "tie_word_embeddings": False}
    shape |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(**shape)
    model = of_model(GPT2LMHeadModel(config), tokenizer(), Pretrained("tiny", lora=4, targets=targets))
    lm, state = copy.deepcopy(model.lm.get_base_model()).double().eval(), judge.start(model, GIVEN)
    learning, mean = set(model.learning()), products(factors_of(model.lm))
    for step in range(3):
        shaken(model, 0.2, seed=step)
        stepped(judge, state, model, step)
        now = products(factors_of(model.lm))
        mean, _ = nearest({n: 0.7 * m + 0.3 * now[n] for n, m in mean.items()}, 4)
    updates = {n.split(".lora_")[0].removeprefix("base_model.model."): u.T for n, u in mean.items()}
    start = torch.cat(spoken(lm, PAIRS, model.vocabulary)).detach()
    with torch.no_grad():
        for n, p in lm.named_parameters():  # W (inputs, outputs) <- W + 2 (B A)^T, and so does an embedding
            if (name := n.removesuffix(".weight").replace(".base_layer", "")) in updates:
                p.add_(updates.pop(name))
    assert not updates
    found, own = said(judge, state, model), said(CurrentStudent("context"), nn.Module(), model)
    close(found, lm, model, 1e-3)
    assert (found - start).abs().max() > 0.1
    assert (found - own).abs().max() > 0.1
    assert set(model.learning()) == learning
    close(own, doubled(model), model)


@pytest.mark.parametrize(("rate", "lr"), [(0.01, 1e-3), (0.05, 1e-2)])
def test_the_average_of_an_adapter_costs_an_adapter_and_is_near_the_dense_average(rate: float, lr: float) -> None:
    """It is never further from the dense average than the sum of what its steps cut off, here by 3 % of what the
    average has moved; averages of A and of B are off by several times that.
    """
    model, judge = student(4), ema(rate)
    state, start = judge.start(model, GIVEN), products(factors_of(model.lm))
    assert isinstance(state, FrozenCopy)
    assert isinstance(state.module, Swapped)
    optimizer, dense, apart, bound = (
        torch.optim.AdamW(model.learning().values(), lr=lr),
        start,
        factors_of(model.lm),
        0.0,
    )
    for step in range(60):  # real steps: factors that learn move together
        rows = zip(spoken(model.lm, PAIRS, model.vocabulary), PAIRS, strict=True)
        optimizer.zero_grad()
        torch.stack([-line.gather(1, torch.tensor(c)[:, None]).sum() for line, (_, c) in rows]).sum().backward()
        optimizer.step()
        factors = factors_of(model.lm)
        held, now = products(weights_of(state.module)), products(factors)
        bound = (1 - rate) * bound + nearest({n: (1 - rate) * held[n] + rate * now[n] for n in now}, 4)[1]
        dense = {n: (1 - rate) * dense[n] + rate * now[n] for n in now}
        apart = {n: (1 - rate) * apart[n] + rate * factors[n] for n in factors}
        stepped(judge, state, model, step)
    missed = distance(products(weights_of(state.module)), dense)
    assert missed <= bound + 1e-5
    assert missed < 0.03 * distance(dense, start)
    assert missed < 0.3 * distance(products(apart), dense)
    kept = sum(t.nbytes for n, t in state.state_dict().items() if n.startswith("module."))
    assert kept == sum(p.nbytes for p in model.learning().values())


def weights_of(held: Swapped) -> dict[str, Tensor]:
    return {n.removeprefix("lm."): w.double().clone() for n, w in held.weights().items()}


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return float(torch.cat([(one[n] - other[n]).flatten() for n in one]).norm())


def test_an_average_comes_back_from_its_state_and_leaves_the_student_alone() -> None:
    model, judge = student(4), ema(0.3)
    state = judge.start(model, GIVEN)
    for step in range(3):
        shaken(model, 0.2, seed=step)
        stepped(judge, state, model, step)
    expected, saved = said(judge, state, model), {n: t.clone() for n, t in state.state_dict().items()}
    again = student(4)
    restored = judge.start(again, GIVEN)
    start = said(CurrentStudent("context"), nn.Module(), again)
    restored.load_state_dict(saved)
    assert torch.equal(said(judge, restored, again), expected)
    assert torch.equal(said(CurrentStudent("context"), nn.Module(), again), start)
    assert set(again.state_dict()) == set(student(4).state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        restored.load_state_dict(dict(list(saved.items())[1:]))


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
