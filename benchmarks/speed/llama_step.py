"""What a teacher adds to a training step of a small language model, against the plain step: online, or from a store.

The plain step and the naive one are loops by hand over all logits, as one would write them; ours go through `Objective`
with the terms of `language`, or, for targets that were kept, through `divergence`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed.timing import Call, Spread, in_turns, one_thread, ratio, seconds
from selfdistill.core.logits import SparseLogProbs
from selfdistill.core.parts import Term
from selfdistill.core.step import Batch, Rows
from selfdistill.language.completions import Language
from selfdistill.losses.chunked.definitions import ForwardKL
from selfdistill.losses.chunked.divergences import TokenCrossEntropy, TokenDivergence, divergence
from selfdistill.models.causal_lm import COMPLETION, PROMPT, Causal, completions
from selfdistill.teachers import Frozen, Labels

PLAIN, NAIVE, ONLINE, CACHED, FLOOR = "plain", "naive teacher", "online teacher", "cached top-k", "teacher's pass alone"
#: variant -> what it may cost at most, in plain steps.
TARGETS = {ONLINE: 1.45, CACHED: 1.03}
CLOCK = "cpu"


class Sizes(NamedTuple):
    """Of the model and its batch."""

    vocabulary: int = 32_000
    width: int = 384
    depth: int = 6
    tokens: int = 256
    rows: int = 4
    k: int = 32


class Work:
    """A student, its frozen teacher, an optimizer and the rows they see again and again."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.model = small(sizes)
        self.teacher = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.ids = torch.randint(sizes.vocabulary, (sizes.rows, sizes.tokens))
        roles = torch.full_like(self.ids, COMPLETION)
        roles[:, 0] = PROMPT
        self.x = torch.stack([self.ids, roles], 1)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-5, foreach=True)

    def learn(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def small(sizes: Sizes) -> Causal:
    """A Llama with made-up weights and tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = max(1, sizes.width // 64)
    config = LlamaConfig(
        vocab_size=sizes.vocabulary, hidden_size=sizes.width, intermediate_size=8 * sizes.width // 3,
        num_hidden_layers=sizes.depth, num_attention_heads=heads, num_key_value_heads=heads,
        max_position_embeddings=sizes.tokens, tie_word_embeddings=True,
    )  # fmt: skip
    return Causal(LlamaForCausalLM(config), _Words(sizes.vocabulary)).train()


@dataclass(frozen=True)
class _Words:
    """Stands for a tokenizer of so many words."""

    size: int

    def __len__(self) -> int:
        return self.size


def steps(sizes: Sizes) -> Mapping[str, Call]:
    """Each variant's step, on a model of its own with the same weights."""

    def made(step: Callable[[Work], Tensor | None]) -> Call:
        torch.manual_seed(0)
        work = Work(sizes)

        def call(_: int) -> None:
            loss = step(work)
            if loss is not None:
                work.learn(loss)

        return call

    return {
        PLAIN: made(_plain), NAIVE: made(_naive), ONLINE: _online(sizes), CACHED: _cached(sizes),
        FLOOR: made(_teacher_alone),
    }  # fmt: skip


def _plain(work: Work) -> Tensor:
    logits = work.model.lm(work.ids).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), work.ids[:, 1:].flatten())


def _naive(work: Work) -> Tensor:
    with torch.no_grad():
        theirs = work.teacher.lm(work.ids).logits[:, :-1].flatten(0, 1)
    logits = work.model.lm(work.ids).logits[:, :-1].flatten(0, 1)
    kl = F.kl_div(F.log_softmax(logits, -1), F.log_softmax(theirs, -1), reduction="batchmean", log_target=True)
    return F.cross_entropy(logits, work.ids[:, 1:].flatten()) + kl


def _teacher_alone(work: Work) -> None:
    with torch.no_grad():
        work.teacher.lm.model(work.ids)


def _online(sizes: Sizes) -> Call:
    """KL to the frozen base and cross-entropy, by the terms of `language`."""
    torch.manual_seed(0)
    work = Work(sizes)
    objective = Language(
        {"distil": Term(Frozen("context"), TokenDivergence(ForwardKL())), "label": Term(Labels(), TokenCrossEntropy())}
    ).bind(work.model, vitals=False)
    labels, mask = completions(work.x)
    rows = Rows(work.x, labels, None, None, {"mask": mask})
    batch = Batch({"x": rows, "context": rows._replace(align=torch.arange(sizes.rows))})

    def call(_: int) -> None:
        work.learn(objective(batch))
        objective.update()

    return call


def _cached(sizes: Sizes) -> Call:
    """The same from the k likeliest tokens of the teacher at each place and their true probabilities."""
    torch.manual_seed(0)
    work = Work(sizes)
    said, real = completions(work.x)
    with torch.no_grad():
        top = torch.log_softmax(work.teacher.lm(work.ids).logits[:, :-1][real], -1).topk(sizes.k)
    kept, labels = SparseLogProbs(top.indices, top.values), said[real]

    def call(_: int) -> None:
        student = work.model.source(work.model(work.x)["hidden"][real])
        work.learn(divergence(student, kept, ForwardKL(), labels=labels).mean)

    return call


def run(sizes: Sizes, rounds: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Seconds of each variant, and ratios to the plain step of the same round."""
    with one_thread(), torch.random.fork_rng(devices=[]):
        calls = steps(sizes)
        taken = in_turns([calls], rounds, 1, partial(_said, tell, rounds))
    found: dict[str, Any] = {
        name: {"seconds": _shown(seconds(taken, name)[CLOCK]), "ratio": _shown(ratio(taken, name, PLAIN)[CLOCK])}
        for name in calls
    }
    for name, most in TARGETS.items():
        found[name] |= {"at_most": most, "met": found[name]["ratio"]["median"] <= most}
    return {"sizes": sizes._asdict(), "variants": found}


def _said(tell: Callable[[str], None], rounds: int, done: int) -> None:
    tell(f"steps of a small model: {done} of {rounds} rounds")


def _shown(spread: Spread) -> dict[str, float]:
    return {name: round(value, 4) for name, value in spread._asdict().items()}
