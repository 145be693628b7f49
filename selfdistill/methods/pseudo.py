"""Labels that the model gives to unlabelled rows."""

from __future__ import annotations

from ..core import Method, Term
from ..gates import Confident
from ..losses import CrossEntropy
from ..schedules import Rise
from ..teachers import Itself, Labels, PseudoLabels
from ..views import Look, Views, weak_strong


def pseudo_label(
    weight: float = 3.0, start: float = 0.1, end: float = 0.6, ratio: float = 8.0, confidence: float = 0.0
) -> Method:
    """Pseudo-label: take your own best class for the label, the more so the longer you have learnt.

    Equation::

        L = CE(y, p(x)) + a(t) mean_u 1[max p >= c] CE(argmax p(u), p(u)),  both from the same forward
        a(t) = 0 until ``start`` of the training, then a line up to ``weight``, reached at ``end`` of it

    The paper has no threshold (c = 0), a(t) from step 100 to 600 (here of 1,000), batches of 32 and 256, and sigmoid
    outputs with a cross-entropy each, where this takes softmax. Common code adds c = .95 and an early ramp.

    Source: Lee, Pseudo-Label, ICML 2013 workshop on Challenges in Representation Learning, equations 15 and 16.

    Needs: unlabelled rows.

    >>> pseudo_label().terms["pseudo"].weight
    Rise(peak=3.0, share=0.6, start=0.1)
    """
    gate, taught = Confident(confidence), CrossEntropy(hard=True)
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), view="labelled"),
            "pseudo": Term(Itself(), taught, view="unlabelled", gate=gate, weight=Rise(weight, end, start)),
        },
        views=Views((Look("labelled"), Look("unlabelled", "unlabelled")), ratio),
    )


def fixmatch(confidence: float = 0.95, weight: float = 1.0, ratio: float = 7.0) -> Method:
    """FixMatch: the confident label of the weak view is the target of the strong one.

    Equation::

        L = CE(y, p(weak x)) + w mean_u 1[max q >= c] CE(argmax q, p(strong u)),  q = sg p(weak u)

    u runs over all unlabelled rows of the batch; those that fail the gate count as zero. All views share one forward.

    Source: Sohn et al., FixMatch, NeurIPS 2020, equations 3 and 4 (c = .95, 7 unlabelled rows per labelled one).

    Needs: unlabelled rows.

    >>> fixmatch(confidence=0.8).terms["pseudo"].gate
    Confident(threshold=0.8)
    """
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), view="labelled"),
            "pseudo": Term(
                Itself(view="weak"), CrossEntropy(hard=True), view="strong", gate=Confident(confidence), weight=weight
            ),
        },
        views=weak_strong(ratio),
    )


def noisy_student(
    generations: int = 4, ratio: float = 1.0, min_confidence: float = 0.3, hard: bool = False, smoothing: float = 0.1
) -> Method:
    """Noisy Student: the last generation labels clean unlabelled rows, a noised fresh student learns them.

    Equation::

        L = CE_e(y, p(strong x)) + r mean CE(t, p(strong u)),  t = last generation on the clean row, eval mode

    Rows below ``min_confidence`` are dropped; every predicted class gets as many rows, the most confident ones,
    repeated where there are too few; ``ratio`` x batch size of them join each batch. e is `label_smoothing`'s;
    pseudo-labels, ``hard`` ones too, are not smoothed (the authors smooth hard ones). ``generations`` counts the
    first teacher. The noise is the strong view and the model's dropout.

    Source: Xie et al., Self-training with Noisy Student improves ImageNet classification, CVPR 2020, algorithm 1.

    Needs: unlabelled rows.

    >>> noisy_student().terms["pseudo"].weight
    1.0
    """
    chosen = PseudoLabels(hard=hard, min_confidence=min_confidence, fill=True)
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(smoothing=smoothing), view="labelled"),
            "pseudo": Term(chosen, CrossEntropy(), view="unlabelled", weight=ratio),
        },
        views=Views((Look("labelled", "labelled", "strong"), Look("unlabelled", "unlabelled", "strong")), ratio),
        generations=generations,
    )


def curriculum(stages: int = 5, balanced: bool = True, hard: bool = True, confidence: float = 0.0) -> Method:
    """Curriculum labelling: take the surest pseudo-labels first, class by class, and start afresh at every stage.

    Equation::

        L = CE(t, p) over labelled rows (t = y) and the chosen ones (t = best class of the last stage's model)
        stage s of S takes the most confident s / S of the pool, as many of each class, of confidence c or more

    Generation 0 learns from labels alone; each stage re-initialises and labels the whole pool again. ``balanced=False``
    is the paper's percentile, over all classes together; the class balance is ours. The paper's comparison with a
    fixed threshold is ``stages=1`` with ``confidence``; ``hard=False`` learns probabilities.

    Source: Cascante-Bonilla et al., Curriculum Labeling, AAAI 2021, algorithm 1 (S = 5).

    Needs: unlabelled rows.

    >>> curriculum(stages=2).terms["label"].teacher.shares
    (0.5, 1.0)
    """
    shares = tuple((s + 1) / stages for s in range(stages))
    chosen = PseudoLabels(hard=hard, shares=shares, min_confidence=confidence, balanced=balanced)
    return Method(
        {"label": Term(chosen, CrossEntropy())},
        views=Views((Look("x", "union"),)),
        generations=stages + 1,
    )
