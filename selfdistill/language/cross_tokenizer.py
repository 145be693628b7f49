"""Recipes whose teacher is another model with a tokenizer of its own: it reads the same texts, in other tokens."""

from __future__ import annotations

from ..core.parts import Term
from ..io.expressions import NonNegative, Share, Size
from ..losses.chunked.divergences import TokenCrossEntropy
from ..losses.cross_vocabulary import SharedDivergence, SortedDistance
from ..teachers import Labels
from ..terms.spans import OtherTokens, SpanTerm
from .completions import Demonstrations, Language, MixedPolicy
from .sampling import Sampling


def gold(
    teacher: str | None = None,
    share: Share = 0.5,
    beta: Share = 0.5,
    matched: Share | None = None,
    max_tokens: Size = 512,
) -> Language:
    """General on-policy logit distillation (GOLD): generalised distillation from a teacher with another tokenizer.

    Equation::

        L = mean_y mean_g [s sum_{v shared} JS_b(Q_g(v), P_g(v)) + (1 - s) sum_i |P_(i) - Q_(i)|_{unshared}]
        JS_b(q, p) = b q log(q / m) + (1 - b) p log(p / m),  m = b q + (1 - b) p,  y as in `gkd`
        P_g(v) = prod_{i < a} p(s_i | x, s_<i) p(v | x, s_<a),  Q_g of the teacher's tokens t_1 .. t_b

    A span g of the text is where tokens s_1 .. s_a of the student and t_1 .. t_b of the teacher end together. Tokens
    that spell the same bytes are shared. The teacher reads prompts in its own chat template.

    Args:
        teacher: Name or folder of the teacher; it must be given.
        share: Probability that a batch is written by the student, and not taken from the demonstrations.
        beta: Weight b of the teacher in the mixture of the divergence, between 0 and 1.
        matched: Weight s of the shared tokens; left open, their share of the teacher's vocabulary.
        max_tokens: Longest completion that is sampled, in tokens.

    Returns:
        The recipe, with the term ``distil``.

    Departs: TRL merges spans by the distribution after their first token unless asked for the chain rule, leaves out
    the token that ends an answer, and calls tokens shared whose names are equal. Its rate is 1e-7.

    Needs: a teacher, and a demonstration on each prompt.

    Source: GOLD, Patiño et al., Hugging Face 2025; TRL's GOLDTrainer.

    >>> gold("teacher").terms["distil"].distance
    SharedDivergence(beta=0.5, share=None)
    """
    source = MixedPolicy(1, share, Sampling(0.9, 0.95, 0, max_tokens))
    term = SpanTerm(OtherTokens(source=teacher), SharedDivergence(beta, matched))
    return Language({"distil": term}, source=source, advice=(("lr", 1e-5),))


def uld(teacher: str | None = None, weight: NonNegative = 1.5) -> Language:
    """Universal logit distillation (ULD): demonstrations, and a teacher's sorted probabilities over any tokens.

    Equation::

        L = mean_t -log p(c_t | x, c_<t) + w mean_c mean_{t <= T} sum_i |p_t,(i) - q_t,(i)|

    p_(i) is the i-th largest probability. The t-th tokens of both sides are compared, up to the last T of the shorter
    one, whatever they spell. The teacher reads prompts in its own chat template.

    Args:
        teacher: Name or folder of the teacher; it must be given.
        weight: Weight w of the second part, 0 or more.

    Returns:
        The recipe, with the terms ``label`` and ``distil``.

    Departs: The paper learns answers that the teacher wrote; here the demonstrations are learnt.

    Needs: a teacher, and a demonstration on each prompt.

    Source: Boizard et al., arXiv 2402.12030, TMLR 2025; weight 1.5.

    >>> uld("teacher").terms["distil"].positions
    True
    """
    distil = SpanTerm(OtherTokens(source=teacher), SortedDistance(), positions=True, weight=weight)
    terms = {"label": Term(Labels(), TokenCrossEntropy()), "distil": distil}
    return Language(terms, source=Demonstrations(), advice=(("lr", 2e-5),))
