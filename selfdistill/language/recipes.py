"""The published methods on language models, each as the choices that its paper makes, and its controls.

What a recipe for language models is, in words; and what its teacher reads that the student does not.
"""

from __future__ import annotations

import itertools
from typing import Any

from ..core.parts import BaseTerm, Teacher, Term
from ..data.prompts import Prompts
from ..gates.tokens import AfterTokens, ImportanceWeight, Product
from ..io.expressions import Count, NonNegative, Positive, Size, checked, expression_name
from ..losses.chunked.definitions import ForwardKL, JensenShannon, ReverseKL
from ..losses.chunked.divergences import TokenCrossEntropy, TokenDivergence
from ..losses.chunked.sweep import TopK
from ..methods.cards import argument_lines, describe
from ..models.causal_peers import AdapterPeers
from ..teachers import CurrentStudent, Ema, Frozen, Generation, Labels
from ..teachers.weights import GeometricMixture
from ..terms.tokens import PerSequence, PolicyGradient, PreferenceTerm, TeacherReturns
from . import contexts
from .completions import (
    CONTEXT,
    Demonstrations,
    Language,
    MixedPolicy,
    OncePerGeneration,
    OnPolicy,
    TeacherMixed,
    named_teacher,
)
from .contexts import NoContext, Rollout, difference
from .cross_tokenizer import gold, uld
from .methods_2026 import eopd, gates, hindsight, lsm, opsdc, opsdl, sd_zero, srpo
from .sampling import Sampling


def _likelihood() -> Term:
    """The likelihood of each token of a completion."""
    return Term(Labels(), TokenCrossEntropy())


def sft(epochs: Count = 1) -> Language:
    """Supervised fine-tuning: cross-entropy on the tokens of the demonstrations. The usual baseline.

    Equation::

        L = -mean_t log p(c_t | x, c_<t)

    Args:
        epochs: Passes over the demonstrations, where the run names neither steps nor epochs.

    Returns:
        The recipe.

    Needs: a demonstration on each prompt.

    Source: maximum likelihood.

    >>> list(sft().terms)
    ['label']
    """
    return Language({"label": _likelihood()}, source=Demonstrations(), advice=(("epochs", epochs), ("lr", 2e-5)))


def mutual_adapters(peers: Size = 2, weight: NonNegative = 1.0, epochs: Count = 1) -> Language:
    """Deep mutual learning of language models: adapters of one frozen base that learn together and teach each other.

    Equation::

        L = sum_k mean_t [-log p_k(c_t | x, c_<t) + w / (K - 1) sum_{l != k} KL(sg p_l,t || p_k,t)]

    Each peer begins with an adapter drawn by another seed, and all read the same batch. The final model is the peer
    with the smallest mean loss on the validation split, or the mean of their updates where that is better there.

    Args:
        peers: Number K of adapters, 2 to 16.
        weight: Weight w of what the others teach, 0 or more; at 0 the peers learn apart.
        epochs: Passes over the demonstrations, where the run names neither steps nor epochs.

    Returns:
        The recipe, with the terms ``label0``, ``label1``, ``peer0_1`` (what peer 1 teaches peer 0) and ``peer1_0``.

    Departs: The paper trains whole networks, and takes the mean over peers. Rank and learning rate are this package's.

    Needs: a demonstration on each prompt.

    Source: Zhang et al., Deep Mutual Learning, CVPR 2018, equations 4 and 7.

    >>> mutual_adapters(3).wrap_model
    AdapterPeers(peers=3)
    """
    group, divergence = AdapterPeers(peers), TokenDivergence(ForwardKL())
    heads = [f"peer{k}" for k in range(group.peers)]
    terms = {f"label{k}": Term(Labels(), TokenCrossEntropy(), head=head) for k, head in enumerate(heads)}
    for k, other in itertools.permutations(range(peers), 2):
        w = weight / (peers - 1)
        terms[f"peer{k}_{other}"] = Term(CurrentStudent(head=heads[other]), divergence, head=heads[k], weight=w)
    advice = (("epochs", epochs), ("lora", 16), ("lr", 1e-4))
    return Language(terms, source=Demonstrations(), wrap_model=group, advice=advice)


def sdft(rate: float = 0.01, skip: int = 3, turns: bool = False, max_tokens: Size = 1024) -> Language:
    """Self-distillation fine-tuning (SDFT): own answers, taught by the student's average that reads a demonstration.

    Equation::

        L = mean_i mean_{t >= skip} KL(q_t || p_t),  y ~ p(.|x),  q = p_ema(. | x, c, y_<t),  ema <- (1 - r) ema + r w

    Args:
        rate: Rate at which the teacher's weights follow the student's; 0 keeps the pre-trained weights as the teacher.
        skip: First tokens of a completion that the loss leaves out.
        turns: Show the demonstration as an earlier turn of the conversation, which small models follow better, and not
            by the paper's template.
        max_tokens: Longest completion that is sampled, in tokens.

    Returns:
        The recipe.

    Needs: a demonstration on each prompt.

    Source: SDFT, arXiv 2601.19897, 2026. Eq. 1 has KL(p || q); all results were made with KL(q || p).

    >>> sdft().terms["distil"].reduction
    PerSequence()
    """
    teacher: Teacher = Ema(1.0 - rate, CONTEXT, warm_up=False) if rate else Frozen(CONTEXT)
    gate = Product((AfterTokens(skip), ImportanceWeight(per="sequence")))
    term = Term(teacher, TokenDivergence(ForwardKL()), gate=gate, reduction=PerSequence())
    source = OnPolicy(1, Sampling(max_tokens=max_tokens))
    context = contexts.FewShotTurns() if turns else contexts.Demonstration()
    advice = (("batch_size", 32), ("clip", 1.0), ("lr", 2e-5))
    return Language({"distil": term}, source=source, context=context, advice=advice)


def sdft_2024(max_tokens: Size = 512) -> Language:
    """Self-distillation before fine-tuning: learn the demonstrations as the model itself rewrites them.

    Equation::

        y ~ p_0(. | x, c);  y := c if the checker refuses y;  L = -mean_t log p(y_t | x, y_<t)

    Args:
        max_tokens: Longest completion that is sampled, in tokens.

    Returns:
        The recipe.

    Needs: a demonstration on each prompt; a checker and an answer decide what is kept.

    Source: Self-Distillation Bridges Distribution Gap, arXiv 2402.13669, 2024.

    >>> sdft_2024().source.instead
    True
    """
    source = OncePerGeneration(1, Sampling(max_tokens=max_tokens), contexts.rewriting(), 1.0, instead=True)
    advice = (("batch_size", 8), ("epochs", 2), ("lora", 8), ("lr", 1e-4))
    return Language({"label": _likelihood()}, source=source, advice=advice)


def sdpo(
    samples: Count = 8,
    rate: float = 0.01,
    k: Size = 100,
    grpo: float = 0.0,
    trust: bool = False,
    max_tokens: Size = 1024,
) -> Language:
    """Self-distillation policy optimisation: own answers, taught by the model that reads a right one or feedback.

    Equation::

        L = (1 - g) mean_t JS(q_t, p_t) + g L_GRPO,  q = p_ema(. | x, solution or feedback, y_<t), top k of p and tail

    Args:
        samples: Completions of each prompt.
        rate: Rate at which the teacher's weights follow the student's.
        k: Number of the student's most probable tokens that the divergence compares; the rest is one entry.
        grpo: Weight g of the policy-gradient term of `grpo`, from 0 to 1.
        trust: Mix the teacher's distribution with the pre-trained model's, in place of averaging weights.
        max_tokens: Longest completion that is sampled, in tokens.

    Returns:
        The recipe.

    Needs: a checker on each prompt.

    Source: SDPO, arXiv 2601.20802, 2026; JS at 1/2 in its experiments, the reverse KL in eq. 1; ``grpo``: sec. 4.5.

    >>> sdpo().terms["distil"].loss.support
    TopK(k=100, of='student')
    """
    teacher: Teacher = Ema(1.0 - rate, CONTEXT, warm_up=False)
    if trust:
        teacher = GeometricMixture(Frozen(CONTEXT), CurrentStudent(CONTEXT), rate)
    loss = TokenDivergence(JensenShannon(0.5), TopK(k, "student"))
    terms: dict[str, BaseTerm] = {"distil": Term(teacher, loss, gate=ImportanceWeight(), weight=1.0 - grpo)}
    if grpo:
        terms["advantage"] = PolicyGradient(weight=grpo)
    source, context = OnPolicy(samples, Sampling(max_tokens=max_tokens)), contexts.SiblingAttempts()
    return Language(terms, source=source, context=context, advice=(("batch_size", 32), ("clip", 1.0), ("lr", 1e-5)))


def opsd(clip: float = 0.05, max_tokens: Size = 1024) -> Language:
    """On-policy self-distillation: own solutions, taught by the pre-trained weights that read the reference solution.

    Equation::

        L = mean_t sum_v min(q_v (log q_v - log p_v), c),  q = p_0(. | x, reference, y_<t),  y ~ p at T 1.1

    Args:
        clip: Largest contribution c of a vocabulary entry to the divergence.
        max_tokens: Longest completion that is sampled, in tokens.

    Returns:
        The recipe.

    Needs: a demonstration (the reference solution) on each prompt.

    Source: OPSD, arXiv 2601.18734 v3, 2026.

    >>> opsd().terms["distil"].loss.divergence.clip
    0.05
    """
    source = OnPolicy(1, Sampling(1.1, 0.95, 20, max_tokens))
    advice = (("batch_size", 32), ("clip", 0.1), ("lora", 64), ("lr", 5e-6), ("steps", 100))
    term = Term(Frozen(CONTEXT), TokenDivergence(ForwardKL(clip=clip)), gate=ImportanceWeight())
    return Language({"distil": term}, source=source, context=contexts.reference(), advice=advice)


def ssd(temperature: Positive = 1.6, top_k: int = 20, top_p: float = 0.8, max_tokens: Size = 1024) -> Language:
    """Simple self-distillation: cross-entropy on own samples, drawn once at high temperature with truncation.

    Equation::

        y ~ truncate(p_0(. | x)^(1/T));  L = -mean_t log p(y_t | x, y_<t)

    Args:
        temperature: Sampling temperature T.
        top_k: Number of most probable tokens that are sampled from; 0 is all.
        top_p: Probability mass that is sampled from.
        max_tokens: Longest completion that is sampled, in tokens.

    Returns:
        The recipe.

    Needs: prompts alone.

    Source: simple self-distillation, arXiv 2604.01193, 2026.

    >>> ssd().source.sampling.top_k
    20
    """
    source = OncePerGeneration(1, Sampling(temperature, top_p, top_k, max_tokens))
    return Language({"label": _likelihood()}, source=source, restart=True, advice=(("lr", 5e-6),))


def opcd(instruction: str | None = None, k: Size = 100, max_tokens: Size = 512) -> Language:
    """On-policy context distillation: answer without an instruction or demonstration as the model does with it.

    Equation::

        L = mean_t KL(p_t || q_t),  y ~ p(. | x),  q = p_0(. | context, x, y_<t), top k of the student and tail

    Args:
        instruction: System text that the teacher reads; without it, each prompt's demonstration.
        k: Number of the student's most probable tokens that the divergence compares; the rest is one entry.
        max_tokens: Longest completion that is sampled, in tokens.

    Returns:
        The recipe.

    Needs: an instruction, or a demonstration on each prompt.

    Source: on-policy context distillation, arXiv 2602.12275, 2026.

    >>> opcd("Answer in rhyme.").needs
    ()
    """
    context = contexts.Demonstration() if instruction is None else contexts.Instruction(instruction)
    loss, source = TokenDivergence(ReverseKL(), TopK(k, "student")), OnPolicy(1, Sampling(max_tokens=max_tokens))
    term = Term(Frozen(CONTEXT), loss, gate=ImportanceWeight())
    return Language({"distil": term}, source=source, context=context, advice=(("lr", 1e-5),))


def context_distillation(instruction: str | None = None, hard: bool = False, max_tokens: Size = 512) -> Language:
    """Context distillation: learn the answers that the model wrote with an instruction or demonstration.

    Equation::

        y ~ p_0(. | c, x);  soft: L = mean_t KL(p_0(. | c, x, y_<t) || p_t);  hard: L = -mean_t log p(y_t | x, y_<t)

    Args:
        instruction: System text that the teacher reads; without it, each prompt's demonstration.
        hard: Learn the tokens of the answers, and not the teacher's distributions of them.
        max_tokens: Longest completion that is sampled, in tokens.

    Returns:
        The recipe.

    Needs: an instruction, or a demonstration on each prompt.

    Source: Snell, Klein and Zhong, arXiv 2209.15189, 2022; Askell et al., arXiv 2112.00861, 2021.

    >>> context_distillation("Be brief.", hard=True).terms["label"].loss
    TokenCrossEntropy()
    """
    context = contexts.Demonstration() if instruction is None else contexts.Instruction(instruction)
    source = OncePerGeneration(1, Sampling(max_tokens=max_tokens), context)
    distil = Term(Frozen(CONTEXT), TokenDivergence(ForwardKL()), gate=ImportanceWeight())
    terms = {"label": _likelihood()} if hard else {"distil": distil}
    return Language(terms, source=source, context=context, advice=(("lr", 1e-5),))


def gkd(teacher: str | None = None, share: float = 0.5, beta: float = 0.5, max_tokens: Size = 512) -> Language:
    """Generalised knowledge distillation (GKD): divergence from a teacher on the student's own answers.

    Equation::

        L = mean_t JS_beta(q_t, p_t),  y ~ p with probability lambda, else from the data

    Args:
        teacher: Name or folder of the teacher; without it, the pre-trained weights with the demonstration as context.
        share: Probability lambda that a batch is written by the student, and not taken from the demonstrations.
        beta: Weight of the teacher in the mixture of the divergence, between 0 and 1.
        max_tokens: Longest completion that is sampled, in tokens.

    Returns:
        The recipe.

    Needs: a demonstration on each prompt.

    Source: GKD, Agarwal et al., ICLR 2024. JS is divided by beta (1 - beta) here, which scales the learning rate alone.

    >>> gkd().source.share
    0.5
    """
    judge, context = named_teacher(teacher)
    source = MixedPolicy(1, share, Sampling(max_tokens=max_tokens))
    term = Term(judge, TokenDivergence(JensenShannon(beta)), gate=ImportanceWeight())
    return Language({"distil": term}, source=source, context=context, advice=(("lr", 1e-5),))


def minillm(teacher: str | None = None, share: float = 0.2, max_tokens: Size = 512) -> Language:
    """MiniLLM: policy gradient of the reverse KL divergence from a teacher, over whole answers.

    Equation::

        L = mean_t w_t [KL(p_t || q_t) - sg(R_t) log p(y_t)],  R_t = mean_{s > t} log q_s(y_s) / p_s(y_s),
        y ~ m = a q + (1 - a) p token by token,  w_t = sg(p(y_t) / m(y_t))

    Args:
        teacher: Name or folder of the teacher; without it, the pre-trained weights with the demonstration as context.
        share: Share a of the teacher in each sampled token; at 0 the student samples alone.
        max_tokens: Longest completion that is sampled, in tokens.

    Returns:
        The recipe.

    Needs: a teacher, or a demonstration on each prompt.

    Source: MiniLLM, Gu et al., ICLR 2024, eq. 3 to 6. Its clip bounds several steps on the same samples; here each
    step writes its own, so that there is nothing to clip. Its loss on a pre-training corpus is left out.

    >>> minillm("smollm2").terms["distil"].loss.divergence
    ReverseKL(temperature=1.0, clip=None)
    """
    judge, context = named_teacher(teacher)
    sampling = Sampling(max_tokens=max_tokens)
    terms: dict[str, BaseTerm] = {
        "distil": Term(judge, TokenDivergence(ReverseKL()), gate=ImportanceWeight()),
        "returns": TeacherReturns(judge),
    }
    source = TeacherMixed(1, share, sampling) if share else OnPolicy(1, sampling)
    return Language(terms, source=source, context=context, advice=(("lr", 5e-6),))


def star(generations: Count = 3, max_tokens: Size = 512) -> Language:
    """Self-taught reasoner (STaR): fine-tuning on own reasoning that led to the right answer, over generations.

    Equation::

        y ~ p_k(. | x), or p_k(. | x, answer) if wrong; keep the right ones; p_{k+1} = CE from p_0 on them

    Args:
        generations: Number of rounds of sampling and training.
        max_tokens: Longest completion that is sampled, in tokens.

    Returns:
        The recipe.

    Needs: an answer and a checker on each prompt.

    Source: STaR, Zelikman et al., NeurIPS 2022, algorithm 1.

    >>> star().restart
    True
    """
    source = OncePerGeneration(1, Sampling(max_tokens=max_tokens), threshold=1.0, rescue=contexts.Hint())
    return Language({"label": _likelihood()}, generations=generations, source=source, restart=True)


def rest(generations: Count = 3, samples: Count = 4, max_tokens: Size = 512) -> Language:
    """Reinforced self-training (ReST): fine-tuning on own samples above a reward threshold that rises by generation.

    Equation::

        y ~ p_k(. | x);  keep r(y) >= tau_k, tau = 0.5, 0.75, 1;  p_{k+1} = CE from p_k on them

    Args:
        generations: Number of rounds of sampling and training.
        samples: Completions of each prompt.
        max_tokens: Longest completion that is sampled, in tokens.

    Returns:
        The recipe.

    Needs: a checker on each prompt.

    Source: ReST, Gulcehre et al., arXiv 2308.08998, 2023.

    >>> rest().source.least(5)
    1.0
    """
    source = OncePerGeneration(samples, Sampling(max_tokens=max_tokens), threshold=(0.5, 0.75, 1.0))
    return Language({"label": _likelihood()}, generations=generations, source=source)


def rft(samples: Count = 8, temperature: Positive = 0.7, max_tokens: Size = 512) -> Language:
    """Rejection-sampling fine-tuning (RFT): fine-tuning on the distinct right answers among many own samples.

    Equation::

        y_1..k ~ p_0(. | x)^(1/T);  L = -mean_t log p(y_t | x, y_<t) over the distinct right ones

    Args:
        samples: Completions of each prompt.
        temperature: Sampling temperature T.
        max_tokens: Longest completion that is sampled, in tokens.

    Returns:
        The recipe.

    Needs: a checker on each prompt.

    Source: RFT, Yuan et al., arXiv 2308.01825, 2023; T 0.7 there, with 100 samples a prompt.

    >>> rft().source.samples
    8
    """
    source = OncePerGeneration(samples, Sampling(temperature, max_tokens=max_tokens), threshold=1.0)
    return Language({"label": _likelihood()}, source=source, restart=True)


def spin(lam: float = 0.1, generations: Count = 3, max_tokens: Size = 256) -> Language:
    """Self-play fine-tuning (SPIN): a preference loss for demonstrations over the previous generation's answers.

    Equation::

        L = mean log(1 + exp(-lam (log p(c)/p_k(c) - log p(y')/p_k(y')))),  y' ~ p_k(. | x)

    Args:
        lam: Scale of the log-ratios.
        generations: Number of rounds of sampling and training.
        max_tokens: Longest completion that is sampled, in tokens.

    Returns:
        The recipe.

    Needs: a demonstration on each prompt.

    Source: SPIN, Chen et al., ICML 2024, eq. 4.7; lam 0.1.

    >>> spin().terms["preferred"].lam
    0.1
    """
    source, advice = OncePerGeneration(1, Sampling(max_tokens=max_tokens)), (("epochs", 2), ("lr", 5e-7))
    terms = {"preferred": PreferenceTerm(Generation(), lam)}
    return Language(terms, generations=generations, source=source, advice=advice)


def grpo(samples: Count = 8, clip: float = 0.2, max_tokens: Size = 512) -> Language:
    """Group relative policy optimisation (GRPO): policy gradient with rewards. The baseline without a teacher.

    Equation::

        L = -mean_t min(r A, clip(r, 1 - e, 1 + e) A),  A = (reward - mean) / (std + 1e-4) over the samples of a prompt

    Args:
        samples: Completions of each prompt, whose rewards are compared with each other.
        clip: How far e the probability ratio may move.
        max_tokens: Longest completion that is sampled, in tokens.

    Returns:
        The recipe.

    Needs: a checker on each prompt.

    Source: DeepSeekMath, Shao et al., arXiv 2402.03300, 2024; no KL term.

    >>> grpo().source.samples
    8
    """
    terms = {"advantage": PolicyGradient(clip=clip)}
    return Language(terms, source=OnPolicy(samples, Sampling(max_tokens=max_tokens)), advice=(("lr", 1e-6),))


RECIPES = {f.__name__: checked(f) for f in (
    context_distillation, eopd, gates, gkd, gold, grpo, hindsight, lsm, minillm, mutual_adapters, opcd, opsd, opsdc,
    opsdl, rest, rft, sd_zero, sdft, sdft_2024, sdpo, sft, spin, srpo, ssd, star, uld,
)}  # fmt: skip


def card(name: str, method: Language | None = None) -> dict[str, Any]:
    """A recipe's docstring and choices as data; of a method that it made, or of what it makes by default."""
    method = method or RECIPES[name]()
    return {
        **describe(name, RECIPES[name]),
        "for": "language models",
        "targets": "text",
        "completions": repr(method.source),
        "context": repr(method.context),
        "terms": {name: repr(term) for name, term in method.terms.items()},
        "generations": method.generations,
        "advice": dict(method.advice),
        "cost": {"of_plain": _cost(method)},
    }


def _cost(method: Language) -> float:
    """Passes in units of a step of sft on as many tokens; what sampling takes is not in it."""
    asked = {term.teacher for term in method.terms.values() if term.teacher and not term.teacher.labels}
    teachers = len([teacher for teacher in asked if teacher.view or not isinstance(teacher, CurrentStudent)])
    views, peers = len(method.student_views()[0]), method.wrap_model.peers if method.wrap_model else 1
    return round(peers * views + teachers * views / 3, 3)


def explain(expression: str, method: Language) -> dict[str, Any]:
    """Everything that `selfdistill explain` prints of such a recipe."""
    return {**card(expression_name(expression), method), "expression": expression}


def text(found: dict[str, Any]) -> str:
    """The same for people."""
    advice = ", ".join(f"{name} {value}" for name, value in found["advice"].items())
    lines = [
        found["expression"], found["summary"], "", *("    " + line for line in found["equation"].splitlines()), "",
        *(f"{name:<13}{term}" for name, term in found["terms"].items()),
        f"completions: {found['completions']}",
        f"context:     {found['context']!s:.100}",
        f"settings:    {advice or 'the usual ones'}; {found['generations']} generation(s)",
        f"cost:        {found['cost']['of_plain']:g} x a step of sft(), and sampling",
        f"needs:       {found['needs']}",
        f"source:      {found['source']}",
        *argument_lines(found["arguments"]),
    ]  # fmt: skip
    return "\n".join(lines)


def example(method: Language, data: Prompts, number: int = 0) -> str:
    """What student and teacher read of one prompt, line by line: + the teacher alone, - the student alone.

    Attempts are made up, one right and one wrong, where the context shows attempts.
    """
    row = data.rows[int(data.labelled[number])]
    right = row.demonstration or row.answer or "(a right attempt)"
    tried = [Rollout(0, (), (), "(a wrong attempt)", 0.0, row.feedback or "(what the checker said of it)"),
             Rollout(0, (), (), right, 1.0)]  # fmt: skip
    writing = next(iter(method.source.contexts), NoContext())
    shown = method.context if isinstance(writing, NoContext) else writing
    return "\n".join(difference(shown, row, tried, 0))
