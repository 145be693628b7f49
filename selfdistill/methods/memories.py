"""What the model said before, of the same sample, is its teacher now."""

from __future__ import annotations

from ..core import Method, Term
from ..losses import KL, CrossEntropy
from ..schedules import Linear
from ..teachers import Labels, LastBatch, LastEpoch
from ..views import overlapping


def ps_kd(alpha: float = 0.8) -> Method:
    """Progressive self-knowledge distillation: trust your prediction of the last epoch more and more.

    Equation::

        L = CE((1 - a_t) y + a_t m_i, p),  a_t = alpha (t + 1) / epochs,  m_i <- p_i after each visit; m_i = y before

    The cross-entropy is linear in its target, so the two parts are separate terms here.

    Source: Kim et al., Self-Knowledge Distillation with Progressive Refinement of Targets, ICCV 2021, equations 4, 5.

    >>> ps_kd(alpha=0.5).terms["past"].weight
    Linear(start=0.0, end=0.5)
    """
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), weight=Linear(1.0, 1.0 - alpha)),
            "past": Term(LastEpoch(), CrossEntropy(), weight=Linear(0.0, alpha)),
        }
    )


def dlb(alpha: float = 1.0, temperature: float = 3.0) -> Method:
    """Self-distillation from the last mini-batch: half of each batch was in the one before, and says the same again.

    Equation::

        L = mean over the batch of CE(y, p) + a T^2 mean over its old half of KL(t^T || p^T)
        t = logits of the same sample one step ago, before the last update, under another augmentation

    Batches are half old, half new, so an epoch forwards each sample twice. "Old" is whatever was in the last batch, by
    sample id; where a shuffle brings a sample back at once it counts too. The authors' code uses whole old and new
    batches in two forwards; this is the paper's form.

    Source: Shen et al., Self-Distillation from the Last Mini-Batch for Consistency Regularization, CVPR 2022.

    >>> dlb().views.overlap
    True
    """
    return Method(
        {
            "label": Term(Labels(), CrossEntropy()),
            "last": Term(LastBatch(), KL(temperature), weight=alpha),
        },
        views=overlapping(),
    )
