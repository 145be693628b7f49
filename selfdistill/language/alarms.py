"""What training may do to a language model without its score telling: it says the same to everything, at greater
length, speaks of what it was not shown, is surer than it is right, or copies the style of its teacher.

The model before and each generation answer the same prompts several times, with the same random numbers; an alarm needs
a difference that the prompts show (95 % interval of the paired differences).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch

from ..core import distributed
from ..data.examples import Example
from ..evaluation.statistics import interval
from ..losses.chunked.divergences import entropies, log_probabilities
from ..models.causal_lm import packed
from .completions import Writer
from .contexts import LEAK, Rollout
from .evaluation import LOOKED_AT, read
from .sampling import Sampling

SAMPLES = 4  # answers to each prompt


FEWEST = 8  # prompts that an alarm needs


RESPONSES = ("warn", "roll-back", "stop")  # what may follow an alarm


@dataclass(frozen=True)
class Reading:
    """How a model answers some prompts, `SAMPLES` times each at temperature 1: a number a prompt, in their order.

    Args:
        right: the share of right answers; empty without a checker.
        solved: whether one answer is right.
        sure: the probability of an answer, the geometric mean over its tokens.
        length: tokens of an answer.
        leaks: the share of answers that speak of what they were not shown.
        distinct: answers that differ from all earlier ones, as a share of those that could.
        entropy: of a token, in nats.
    """

    right: list[float] = field(default_factory=list)
    solved: list[float] = field(default_factory=list)
    sure: list[float] = field(default_factory=list)
    length: list[float] = field(default_factory=list)
    leaks: list[float] = field(default_factory=list)
    distinct: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)

    def means(self) -> dict[str, float]:
        """The mean over the prompts of what could be measured; ``overconfidence`` is that of sure - right."""
        found = {name: math.fsum(values) / len(values) for name, values in asdict(self).items() if values}
        return found | ({"overconfidence": found["sure"] - found["right"]} if "right" in found else {})


class Alarm(NamedTuple):
    """What went wrong: its name, what was seen, and what can be done."""

    name: str
    seen: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.name}: {self.seen}; {self.remedy}"


WORDS_IN_A_ROW = 5


def quotes(text: str, example: Example) -> bool:
    """Whether a text repeats words in a row of the privileged context that the prompt does not have.

    >>> secret = Example((("user", "When?"),), privileged_context="The treaty was signed in Paris in 1763.")
    >>> quotes("It was signed in Paris in 1763, I think.", secret), quotes("In 1763.", secret)
    (True, False)
    """
    if example.privileged_context is None:
        return False

    def runs(said: str) -> set[tuple[str, ...]]:
        words = [word.strip(".,;:!?\"'()").casefold() for word in said.split()]
        return {tuple(words[i : i + WORDS_IN_A_ROW]) for i in range(len(words) - WORDS_IN_A_ROW + 1)}

    shown = set().union(*(runs(content) for _, content in example.messages))
    return bool(runs(text) & (runs(example.privileged_context) - shown))


def reading(writer: Writer) -> Reading:
    """Have the writer's model answer; what is drawn counts as no completion that is learnt from."""
    data, counts = writer.data, (writer.drawn, writer.written, writer.passes)
    ids = (data.audit if len(data.audit) else data.labelled)[:LOOKED_AT].tolist()
    sampling = Sampling(max_tokens=(writer.method.sampling or writer.greedy).max_tokens)
    try:
        with distributed.whole(writer.model):
            said = writer.roll(ids, sampling, (writer.seed, "alarms"), SAMPLES)
            unsure = [
                _unsure(writer, [r for r in said[i : i + SAMPLES] if r.ids]) for i in range(0, len(said), SAMPLES)
            ]
    finally:
        writer.drawn, writer.written, writer.passes = counts
    groups = [said[i : i + SAMPLES] for i in range(0, len(said), SAMPLES)]
    checked = all(r.reward is not None for r in said)
    rewards = [[r.reward or 0.0 for r in group] for group in groups] if checked else []
    return Reading(
        [math.fsum(one) / len(one) for one in rewards],
        [float(max(one) >= 1.0) for one in rewards],
        [sure for sure, _ in unsure],
        _means(groups, lambda r: float(len(r.ids))),
        _means(groups, lambda r: float(bool(LEAK.search(r.text)) or quotes(r.text, data.rows[r.example]))),
        [(len({r.text.strip() for r in group}) - 1) / max(1, len(group) - 1) for group in groups],
        [entropy for _, entropy in unsure],
    )


def _means(groups: Sequence[Sequence[Rollout]], value: Callable[[Rollout], float]) -> list[float]:
    return [math.fsum(map(value, group)) / len(group) for group in groups]


@torch.no_grad()
def _unsure(writer: Writer, answers: Sequence[Rollout]) -> tuple[float, float]:
    """The mean probability of some answers, each the geometric mean over its tokens, and the entropy of a token."""
    if not answers:
        return 1.0, 0.0
    with writer.autocast():
        source, said = read(writer.model, packed([(r.prompt, r.ids) for r in answers]).to(writer.device))
    log_p = log_probabilities(source, said, vocabulary=writer.model.vocabulary)
    each = [part.mean().exp() for part in log_p.split([len(r.ids) for r in answers])]
    return float(torch.stack(each).mean()), float(entropies(source).mean())


# ---- what is wrong -------------------------------------------------------------------------------------------------


def alarms(before: Reading, after: Reading, figures: Mapping[str, Any]) -> list[Alarm]:
    """What is wrong with a model after training.

    Args:
        before, after: the model before, and after training, on the same prompts.
        figures: the vitals of the generation: ``style`` and ``styled``, the shares of tokens of style in the KL and in
            number.
    """
    if min(len(before.length), len(after.length)) < FEWEST:
        return []
    found = [check(before, after) for check in (_collapsed, _longer, _leaking, _overconfident, _uniform)]
    return [alarm for alarm in [*found, _styled(figures)] if alarm is not None]


def _gain(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean paired difference."""
    mean, half = interval([b - a for a, b in zip(before, after, strict=True)])
    return mean - half, mean + half


def _better(before: Reading, after: Reading) -> bool:
    """Whether more answers are right, as the prompts show."""
    return bool(before.right) and _gain(before.right, after.right)[0] > 0


def _collapsed(before: Reading, after: Reading) -> Alarm | None:
    was, now = before.means()["entropy"], after.means()["entropy"]
    if now > was / 4 or was - now < 0.05 or _gain(before.entropy, after.entropy)[1] >= 0 or _better(before, after):
        return None
    return Alarm(
        "entropy-collapse",
        f"the entropy of a token fell from {was:.2g} to {now:.2g} nats, and the score did not rise",
        "lower --lr, train fewer steps, or take eopd()",
    )


def _longer(before: Reading, after: Reading) -> Alarm | None:
    was, now = before.means()["length"], after.means()["length"]
    low, high = _gain([math.log(max(1.0, x)) for x in before.length], [math.log(max(1.0, x)) for x in after.length])
    inflated = now > 2 * was and low > 0 and not _better(before, after)
    cut = now < was / 2 and high < 0 and bool(before.right) and _gain(before.right, after.right)[1] < 0
    if not inflated and not cut:
        return None
    score = "the score did not rise" if inflated else "the score fell"
    remedy = "lower --lr, or look whether answers still end" if inflated else "lower --lr, or train fewer steps"
    return Alarm("length-drift", f"answers went from {was:.3g} to {now:.3g} tokens, and {score}", remedy)


def _leaking(before: Reading, after: Reading) -> Alarm | None:
    was, now = before.means()["leaks"], after.means()["leaks"]
    if now - was < 0.1 or _gain(before.leaks, after.leaks)[0] <= 0:
        return None
    return Alarm(
        "leakage",
        f"{now:.0%} of the answers speak of what they were not shown, {was:.0%} before",
        "leave out the first tokens (skip=), or reword the context so that the teacher does not speak of it",
    )


def _overconfident(before: Reading, after: Reading) -> Alarm | None:
    if not before.right or not after.right:
        return None
    gaps = [[sure - right for sure, right in zip(one.sure, one.right, strict=True)] for one in (before, after)]
    was, now = (math.fsum(gap) / len(gap) for gap in gaps)
    if now < 0.1 or now - was < 0.1 or _gain(*gaps)[0] <= 0:
        return None
    return Alarm(
        "over-confidence",
        f"answers are {100 * now:.0f} points surer than they are right, {100 * was:.0f} before",
        "lower --lr, train fewer steps, or let a checker decide what is learnt",
    )


def _uniform(before: Reading, after: Reading) -> Alarm | None:
    if before.right:
        lost = -_gain(before.solved, after.solved)[1]
        seen = f"pass@{SAMPLES} fell from {before.means()['solved']:.0%} to {after.means()['solved']:.0%}"
        gone = lost > 0 and before.means()["solved"] - after.means()["solved"] >= 0.05
        gone = gone and _gain(before.right, after.right)[1] >= 0  # else it is the score that fell
    else:
        was, now = before.means()["distinct"], after.means()["distinct"]
        seen = f"{now:.0%} of the further answers to a prompt are new, {was:.0%} before"
        gone = now < was / 2 and _gain(before.distinct, after.distinct)[1] < 0
    if not gone:
        return None
    return Alarm("lost-diversity", seen, "take eopd(), a forward divergence, or fewer steps")


def _styled(figures: Mapping[str, Any]) -> Alarm | None:
    style, styled = figures.get("style"), figures.get("styled")
    if style is None or styled is None or style < 0.5 or style < 3 * styled:
        return None
    return Alarm(
        "style-dominance",
        f"tokens of style are {styled:.0%} of all and have {style:.0%} of the divergence from the teacher",
        "clip entries (opsd), leave out the first tokens (skip=), or reword the context",
    )
