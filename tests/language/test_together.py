"""Student and teacher write together: against the mixture of what two plain models say, in float64, without a cache."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from selfdistill.core.parts import BindArgs, Teacher
from selfdistill.errors import DataError, RecipeError
from selfdistill.language.completions import Language, TeacherMixed
from selfdistill.language.recipes import minillm
from selfdistill.language.sampling import MixingTeacher, Sampling, Vllm, by_transformers, roll
from selfdistill.language.trainer import LanguageTask, fit
from selfdistill.losses.chunked.definitions import ReverseKL
from selfdistill.models.causal_lm import Causal, ModelView
from selfdistill.teachers import CurrentStudent, Ema, External, Frozen
from selfdistill.teachers.weights import GeometricMixture
from selfdistill.training.settings import Settings
from selfdistill.training.trainer import Trainer
from tests.language.test_terms import CONTEXT, PAIRS, ROWS, bound, judged
from tests.language.tiny import agree, batch_of, distil, doubled, prompts, shaken, spoken, student, tokenizer

ASKED = [(7, [10, 11, 12, 13, 14]), (3, [15]), (5, [16, 17, 18])]
READ = [[30], [31, 32, 33, 34, 35, 36, 37], [38, 39, 40]]  # what the teacher reads of each
HALF = Ema(0.5, warm_up=False)


def mixed(model: Any, other: Any, prompt: Sequence[int], read: Sequence[int], said: Sequence[int], a: float) -> Tensor:
    """m of every token of the vocabulary at every token of a completion."""
    (p,), (q,) = (spoken(lm, [(start, said)], len(tokenizer())) for lm, start in ((model, prompt), (other, read)))
    return (a * q.exp() + (1 - a) * p.exp()).detach()


def view(state: Any) -> ModelView:
    assert isinstance(state.module, ModelView)
    return state.module


def taught(lora: int, judge: Teacher) -> tuple[Causal, MixingTeacher, Any, Any]:
    """A student that has moved away from its teacher; who writes beside it; and both as plain models."""
    model = student(lora)
    outside = student(seed=8) if isinstance(judge, External) else None
    state, other = judge.start(model, BindArgs(None, outside)), doubled(outside or model)
    shaken(model, 0.2)
    return model, MixingTeacher(view(state), 0.3, READ), doubled(model), other


@pytest.mark.parametrize(("lora", "judge"), [(0, Frozen()), (4, Frozen()), (0, HALF), (4, HALF), (0, External())])
def test_the_known_probabilities_are_those_of_the_mixture(lora: int, judge: Teacher) -> None:
    model, by, lm, other = taught(lora, judge)
    found = roll(model, ASKED, Sampling(max_tokens=9), (0, "m"), by=by)
    assert [r.example for r in found] == [7, 3, 5]
    assert max(len(r.ids) for r in found) > 4
    for r, (_, prompt), read in zip(found, ASKED, READ, strict=True):
        m = mixed(lm, other, prompt, read, r.ids, 0.3)[range(len(r.ids)), r.ids]
        torch.testing.assert_close(torch.tensor(r.log_probs).double(), m.log(), atol=1e-4, rtol=1e-4)
        alone = mixed(lm, other, prompt, read, r.ids, 0.0)[range(len(r.ids)), r.ids]
        assert (m - alone).abs().max() > 1e-3
    assert model.training
    assert not [n for n, m in model.named_modules() if "forward" in vars(m)]


def test_two_tokens_are_drawn_as_the_mixture_says() -> None:
    """Over many draws, the second token after each first one too: the teacher reads what the student does."""
    model, by, lm, other = taught(0, Frozen())
    draws, prompt, read = 6000, ASKED[2][1], READ[2]
    found = roll(model, [(0, prompt)] * draws, Sampling(max_tokens=2), (5,), by=replace(by, prompts=[read] * draws))
    first = Counter(r.ids[0] for r in found)
    m = mixed(lm, other, prompt, read, [0], 0.3)[0]
    assert chi_square(first, m, draws) < 6
    top = first.most_common(1)[0][0]
    second = Counter(r.ids[1] for r in found if r.ids[0] == top and len(r.ids) == 2)
    assert second.total() > 300
    assert chi_square(second, mixed(lm, other, prompt, read, [top, 0], 0.3)[1], second.total()) < 6
    assert chi_square(first, mixed(lm, other, prompt, read, [0], 0.0)[0], draws) > 20, "not the student alone"


def chi_square(seen: Counter[int], p: Tensor, draws: int) -> float:
    """How far counts lie from what is expected, in standard deviations of chi-square; rare tokens count as one."""
    often = [i for i in range(len(p)) if draws * float(p[i]) >= 5]
    cells = [(seen[i], draws * float(p[i])) for i in often]
    rest = draws - sum(e for _, e in cells)
    cells += [(draws - sum(n for n, _ in cells), rest)] if rest >= 1 else []
    found, free = sum((n - e) ** 2 / e for n, e in cells), len(cells) - 1
    return (found - free) / math.sqrt(2 * free)


def test_what_is_drawn_depends_on_the_address_alone() -> None:
    model, by, _, _ = taught(0, Frozen())
    one = roll(model, ASKED, Sampling(max_tokens=8), (1, "a"), by=by)
    torch.manual_seed(5)
    assert roll(model, ASKED, Sampling(max_tokens=8), (1, "a"), by=by) == one
    assert [r.ids for r in roll(model, ASKED, Sampling(max_tokens=8), (1, "b"), by=by)] != [r.ids for r in one]


def test_the_loss_weighs_each_token_by_student_over_mixture() -> None:
    model = student()
    base = doubled(model)
    objective = bound(model, **minillm().terms)
    lm = doubled(model)
    drawn = torch.zeros(3, 5)
    values, weights = [], list[float]()
    for (q, p), i in zip(judged(lm, base, model), ROWS, strict=True):
        said = PAIRS[i][1]
        now, theirs = p[range(len(said)), said], q[range(len(said)), said]
        m = 0.2 * theirs.exp() + 0.8 * now.detach().exp()
        drawn[i, : len(said)] = m.log().float()
        for t in range(len(said)):
            w = float(now[t].detach().exp() / m[t])
            later = (theirs - now)[t + 1 :].detach().mean() if t + 1 < len(said) else 0.0
            values.append(w * ((p[t].exp() * (p[t] - q[t])).sum() - later * now[t]))
            weights.append(w)
    assert max(weights) <= 1.25
    assert max(weights) - min(weights) > 0.05
    agree(model, objective(batch_of(PAIRS, drawn=drawn, context=(CONTEXT, ROWS))), lm, torch.stack(values).mean())


def test_the_recipe_brings_the_mixture_into_its_batches() -> None:
    """Each prompt's teacher has read its own demonstration, and the batch knows m."""
    method = minillm(max_tokens=6)
    task = LanguageTask(student, prompts(30), method, seed=2)
    writer, state = task.writer, Trainer(task, method, Settings(audit="off", batch_size=4, seed=2)).state
    writer.model = shaken(student(), 0.2)
    writer.model.origin = lambda: student().learning()
    writer.objective = method.bind(writer.model, vitals=False)
    examples, lm, other = [3, 9, 9, 1], doubled(writer.model), doubled(student())
    found = method.source.rollouts(writer, examples, writer.objective.clock)
    batch = task.batch(state, found)
    for row, (r, i) in enumerate(zip(found, examples, strict=True)):
        read = writer.prompt(i, method.context)
        assert list(r.prompt) == writer.prompt(i) != read
        m = mixed(lm, other, r.prompt, read, r.ids, 0.2)[range(len(r.ids)), r.ids]
        torch.testing.assert_close(
            batch["x"].extra["log_prob"][row, : len(r.ids)].double(), m.log(), atol=1e-4, rtol=1e-4
        )


def test_what_cannot_write_together_is_refused() -> None:
    for share in (0.0, 1.0, -0.5):
        with pytest.raises(RecipeError, match="share lies between 0 and 1"):
            TeacherMixed(share=share)
    for sampling in (Sampling(0.0), Sampling(top_k=5), Sampling(top_p=0.9)):
        with pytest.raises(RecipeError, match="drawn as it is"):
            TeacherMixed(sampling=sampling)
    assert TeacherMixed(sampling=Sampling(max_tokens=7)).sampling.max_tokens == 7
    two = Language({"a": distil(), "b": distil(Ema(0.9, "context"), ReverseKL())}, source=TeacherMixed())
    with pytest.raises(RecipeError, match="has 2 teachers that read a context; give it one"):
        fit(student, prompts(20), two, device="cpu", steps=1)
    with pytest.raises(DataError, match="by transformers alone"):
        fit(student, prompts(20), minillm(), device="cpu", steps=1, engine=Vllm())
    mixture = GeometricMixture(Frozen("context"), CurrentStudent("context"))
    with pytest.raises(RecipeError, match="GeometricMixture cannot write"):
        fit(student, prompts(20), Language({"a": distil(mixture)}, source=TeacherMixed()), device="cpu", steps=1)
    state = External().start(student(), BindArgs(None, student(context=16)))
    by = MixingTeacher(view(state), 0.2, [[5] * 12])
    with pytest.raises(DataError, match="what the teacher reads has 12 tokens"):
        by_transformers(student(), [[5]], Sampling(max_tokens=6), 0, by)
