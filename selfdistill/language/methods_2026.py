"""The methods of 2026 on language models, each as the choices that its paper makes: what its teacher reads, which
tokens count, and how the two are compared."""

from __future__ import annotations

from ..core.parts import BaseTerm, PerView, Term
from ..gates.tokens import AfterTokens, ByWriter, ImportanceWeight, Product, TeacherConfidence, TeacherEntropy
from ..io.expressions import Count, Positive, Size
from ..losses.chunked.definitions import JensenShannon, PartialKL, ReverseKL
from ..losses.chunked.divergences import TokenCrossEntropy, TokenDivergence
from ..losses.chunked.sweep import TopK, Truncated
from ..schedules import Every
from ..teachers import CurrentStudent, Ema, Frozen, Labels
from ..terms.tokens import PerSequence, PerToken, PolicyGradient, TeacherReturns
from . import contexts
from .completions import CONTEXT, Attempts, Language, OnPolicy, named_teacher
from .consensus import Consensus
from .sampling import Sampling

CONCISE = "Answer concisely and correctly: nothing beside the point, and no step that the answer does not need."


def opsdc(instruction: str = CONCISE, every: Count = 50, max_tokens: Size = 1024) -> Language:
    """Compressed reasoning by on-policy self-distillation (OPSDC): answer as the model does when told to be concise.

    Equation::

        L = mean_i mean_t KL(p_t || q_t),  y ~ p(. | x),  q = p_v(. | instruction, x, y_<t),  v <- w every M steps

    Args:
        instruction: What the teacher reads before the prompt.
        every: Steps M after which the teacher takes over the student's weights; a number beyond those of the run keeps
            the pre-trained weights.
        max_tokens: Longest completion that is sampled, in tokens; longer answers are cut, and taught as far as they go.

    Returns:
        The recipe.

    Needs: prompts alone.

    Departs: the paper's instructions speak of mathematical problems; this one, in words of its own, of any.

    Source: OPSDC, arXiv 2603.05433, 2026 (CRISP in its third version), eq. 1 and 2; M 50, rate 1e-6, temperature 1,
    up to 8,192 tokens there.

    >>> opsdc().terms["distil"].loss.divergence
    ReverseKL(temperature=1.0, clip=None)
    """
    teacher = Ema(Every(every, 0.0, 1.0), CONTEXT, warm_up=False)
    term = Term(teacher, TokenDivergence(ReverseKL()), gate=ImportanceWeight(), reduction=PerSequence())
    source, context = OnPolicy(1, Sampling(max_tokens=max_tokens)), contexts.Preface(instruction)
    advice = (("batch_size", 32), ("clip", 1.0), ("lr", 1e-6))
    return Language({"distil": term}, source=source, context=context, advice=advice)


def eopd(
    teacher: str | None = None,
    entropy: Positive = 0.8,
    weight: Positive = 1.0,
    k: Size = 16,
    max_tokens: Size = 1024,
) -> Language:
    """Entropy-aware on-policy distillation (EOPD): a forward KL divergence too, where the teacher is not sure.

    Equation::

        L = mean_t [-sg(log q(y_t) - log p(y_t)) log p(y_t) + a 1[H(q_t) > h] sum_{v in top k of q} q_v log(q_v / p_v)]

    Args:
        teacher: Name or folder of the teacher; without it, the pre-trained weights with the demonstration as context.
        entropy: Entropy h of the teacher's distribution, in nats, above which the second part counts.
        weight: Weight a of the second part.
        k: Number of the teacher's most probable tokens that the second part compares.
        max_tokens: Longest completion that is sampled, in tokens.

    Returns:
        The recipe.

    Needs: a teacher, or a demonstration on each prompt.

    Departs: the paper takes four clipped steps on the same completions; here each step writes its own, so that there
    is nothing to clip. Its teacher is a larger model.

    Source: Jin et al., arXiv 2603.07079, 2026, and audits of the authors' code by others; h 0.8, a 1, k 16, rate 3e-6,
    batches of 128.

    >>> eopd().terms["cover"].gate
    TeacherEntropy(least=0.8)
    """
    judge, context = named_teacher(teacher)
    cover = TokenDivergence(PartialKL(), Truncated(k, "teacher", renormalised=False))
    terms: dict[str, BaseTerm] = {
        "returns": TeacherReturns(judge, immediate=True),
        "cover": Term(judge, cover, gate=TeacherEntropy(entropy), weight=weight),
    }
    source, advice = OnPolicy(1, Sampling(max_tokens=max_tokens)), (("batch_size", 128), ("lr", 3e-6))
    return Language(terms, source=source, context=context, advice=advice)


def lsm(teacher: str | None = None, k: Size = 32, top_p: float = 0.9, max_tokens: Size = 1024) -> Language:
    """Local support matching (LSM): the reverse KL divergence over the teacher's most probable tokens alone.

    Equation::

        L = mean_t KL(P_t || Q_t),  P = p / sum p, Q = q / sum q, both on the top k tokens of q,  y ~ top_p of p

    Args:
        teacher: Name or folder of the teacher; without it, the pre-trained weights with the demonstration as context.
        k: Number of the teacher's most probable tokens.
        top_p: Probability mass that completions are sampled from.
        max_tokens: Longest completion that is sampled, in tokens.

    Returns:
        The recipe.

    Needs: a teacher, or a demonstration on each prompt.

    Departs: the paper leaves out special tokens where student and teacher spell them differently; here both read the
    same token ids.

    Source: Revisiting on-policy distillation, Fu et al., arXiv 2603.25562, 2026, eq. 7 and 8; k 32, top p 0.9, rate
    2e-6. The authors' code takes the value as an advantage in some of its scripts.

    >>> lsm().terms["distil"].loss.support
    Truncated(k=32, of='teacher', renormalised=True)
    """
    judge, context = named_teacher(teacher)
    term = Term(judge, TokenDivergence(ReverseKL(), Truncated(k)), gate=ImportanceWeight())
    source = OnPolicy(1, Sampling(top_p=top_p, max_tokens=max_tokens))
    return Language({"distil": term}, source=source, context=context, advice=(("lr", 2e-6),))


def srpo(samples: Count = 8, rate: float = 0.01, beta: float = 1.0, k: Size = 100, max_tokens: Size = 1024) -> Language:
    """Sample-routed policy optimisation (SRPO): failed attempts learn from the self-teacher, all others by `grpo`.

    Equation::

        L = mean_t [z w_t JS(q_t, p_t) - (1 - z) A r_t],  z = 1 for a wrong attempt with a right sibling,
        q = p_ema(. | x, sibling, y_<t),  w = exp(-b H(q)) over its mean,  A = (reward - mean) / (std + 1e-4)

    Args:
        samples: Completions of each prompt.
        rate: Rate at which the teacher's weights follow the student's.
        beta: How fast b the weight falls with the teacher's entropy; 0 weighs all tokens alike.
        k: Number of the student's most probable tokens that the divergence compares; the rest is one entry.
        max_tokens: Longest completion that is sampled, in tokens.

    Returns:
        The recipe.

    Needs: a checker on each prompt.

    Departs: feedback of the checker teaches too where no sibling is right, as in `sdpo`; the paper has siblings alone.

    Source: Li et al., arXiv 2604.02288, 2026, sec. 3; beta 1, 8 samples, rate 5e-6, batches of 32.

    >>> srpo().terms["advantage"].unless
    'context'
    """
    gate = Product((ImportanceWeight(), TeacherConfidence(beta)))
    loss = TokenDivergence(JensenShannon(0.5), TopK(k, "student"))
    terms: dict[str, BaseTerm] = {
        "distil": Term(Ema(1.0 - rate, CONTEXT, warm_up=False), loss, gate=gate, reduction=PerView()),
        "advantage": PolicyGradient(unless=CONTEXT),
    }
    source, context = OnPolicy(samples, Sampling(max_tokens=max_tokens)), contexts.SiblingAttempts(failed=True)
    return Language(terms, source=source, context=context, advice=(("batch_size", 32), ("clip", 1.0), ("lr", 5e-6)))


def gates(
    samples: Count = 8, agree: Count = 4, on: float = 0.1, clip: Positive = 5.0, max_tokens: Size = 1024
) -> Language:
    """Self-distillation with a consensus gate (GATES): learn what the model, given a document, agrees on.

    Equation::

        y_1..k ~ p(. | document, x);  where at least m of them give the same answer:
        L = -mean_t log p(y_t | x, y_<t) over those that give it
            - a mean_t sg(clip(log p(u_t | document, x, u_<t) - log p(u_t | x, u_<t))) log p(u_t | x, u_<t),
        u ~ p(. | x)

    Args:
        samples: Completions k of each prompt with the document, and as many without it.
        agree: How many m of them must give the same answer.
        on: Weight a of the second part, on the student's own completions; at 0 they are not written.
        clip: Largest size of a log-ratio.
        max_tokens: Longest completion that is sampled, in tokens.

    Returns:
        The recipe.

    Needs: a document (privileged context) or demonstration on each prompt; no answers.

    Departs: answers are compared as texts, and answers that speak of the document have no vote; the paper reads boxed
    answers and has guards of its own against such talk. The size of its clip could not be had.

    Source: GATES, Stein et al., arXiv 2602.20574, 2026, eq. 1 to 4 as quoted by others; 4 of 8, a 0.1, batches of 32,
    one epoch; its rate could not be had.

    >>> gates().source.agree
    4
    """
    terms: dict[str, BaseTerm] = {"label": Term(Labels(), TokenCrossEntropy(), gate=ByWriter(), reduction=PerToken())}
    if on:
        own = ByWriter(tutor=False)
        terms["returns"] = TeacherReturns(
            CurrentStudent(CONTEXT), gate=own, immediate=True, clip=clip, weight=on, reduction=PerToken()
        )
    source = Consensus(samples, agree, samples if on else 0, sampling=Sampling(max_tokens=max_tokens))
    return Language(terms, source=source, context=contexts.document(), advice=(("batch_size", 32), ("epochs", 1)))


def hindsight(skip: int = 2) -> Language:
    """Hindsight from a user's reply: the answers of a log, judged by the model that knows what the user said of them.

    Equation::

        L = -mean_i mean_{t >= skip} sg(log q(y_t) - log p(y_t)) log p(y_t),  q = p(. | x, reply, y_<t),  y from the log

    Args:
        skip: First tokens of an answer that the loss leaves out.

    Returns:
        The recipe.

    Needs: an attempt (the field ``wrong``) and the reply to it (``feedback``) on each prompt.

    Departs: the words around the reply are not the authors'. Their online variant, with a simulated user, is left out.

    Source: Aligning language models from user interactions, Kleine Buening et al., arXiv 2603.12273, 2026, and the
    authors' code; first two tokens left out, rate 2e-6, clip 10, batches of 32, 2 epochs.

    >>> hindsight().needs
    ('wrong', 'feedback')
    """
    gate = AfterTokens(skip)
    term = TeacherReturns(CurrentStudent(CONTEXT), gate=gate, immediate=True, reduction=PerSequence())
    advice = (("batch_size", 32), ("clip", 10.0), ("epochs", 2), ("lr", 2e-6))
    return Language({"returns": term}, source=Attempts(), context=contexts.Hindsight(), advice=advice)


def opsdl(max_tokens: Size = 1024) -> Language:
    """On-policy self-distillation for long contexts (OPSDL): answer to a long text as to the part that matters.

    Equation::

        L = -mean_t sg(log p(y_t | short, x, y_<t) - log p(y_t | long, x, y_<t)) log p(y_t | long, x, y_<t),
        y ~ p(. | long, x)

    Args:
        max_tokens: Longest completion that is sampled, in tokens.

    Returns:
        The recipe.

    Needs: the short text (the field ``privileged_context``) on each prompt; the long one stands in the turns before the
    last, or the short text is the whole prompt made short.

    Departs: the paper makes questions of parts of documents by the model itself; here they are given.

    Source: OPSDL, Zhang et al., arXiv 2604.17535, 2026, eq. 2 and 4 as quoted by others; its rates could not be had.

    >>> opsdl().needs
    ('privileged_context',)
    """
    term = TeacherReturns(CurrentStudent(CONTEXT), immediate=True)
    source = OnPolicy(1, Sampling(max_tokens=max_tokens))
    return Language({"returns": term}, source=source, context=contexts.ShortContext())


def sd_zero(k: Size = 64, max_tokens: Size = 1024) -> Language:
    """Self-distillation zero (SD-Zero): a reviser, told whether the attempt was right, judges each of its tokens.

    Equation::

        L = mean_t KL(p_t || q_t),  y ~ p(. | x),  q = p_0(. | x, y, "right" or "wrong", y_<t), top k of q and tail

    Args:
        k: Number of the teacher's most probable tokens that the divergence compares; the rest is one entry.
        max_tokens: Longest completion that is sampled, in tokens.

    Returns:
        The recipe.

    Needs: a checker on each prompt, and a model that can revise; `selfdistill preflight` tells whether it can.

    Departs: the verdict is a turn of the user; in the paper it is a phrase within the assistant's turn, which its first
    phase, fine-tuning on revisions that came out right, has taught. That phase is not part of this recipe. The
    authors' code takes the mean of both KL divergences by default.

    Source: He et al., arXiv 2604.12002, 2026, sec. 2.2; top 64, rate 5e-6, batches of 128 in the authors' code.

    >>> sd_zero().context.threshold
    1.0
    """
    term = Term(Frozen(CONTEXT), TokenDivergence(ReverseKL(), TopK(k)), gate=ImportanceWeight())
    source, advice = OnPolicy(1, Sampling(max_tokens=max_tokens)), (("batch_size", 128), ("clip", 1.0), ("lr", 5e-6))
    return Language({"distil": term}, source=source, context=contexts.Revision(), advice=advice)
