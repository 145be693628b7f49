"""Learners that label for each other: none ever learns a label of its own."""

from __future__ import annotations

from ..core import Method, Term
from ..gates import Bagged, Confident, Unanimous
from ..heads import Group
from ..losses import CrossEntropy
from ..teachers import Labels, Peers
from ..views import Look, Views


def co_training(confidence: float = 0.95, weight: float = 1.0, share: float = 0.632, ratio: float = 7.0) -> Method:
    """Co-training: two networks, and each learns the labels of which the other one is sure.

    Equation::

        L = K mean over drawn (row, k) of CE(y, p_k) + w sum_k mean_u 1[max q_l >= c] CE(argmax q_l, p_k(u))

    l is the other network and q_l what it says, held. The paper has two sets of features that would each do; here the
    two differ by their first weights and by the labelled rows that each sees (a ``share``). The paper moves the surest
    rows into the labelled set, round by round; here the labels are given anew at every step. Rows that fail the gate
    count as zero. The first network is the product.

    Source: Blum and Mitchell, Combining Labeled and Unlabeled Data with Co-Training, COLT 1998.

    Needs: unlabelled rows.

    >>> co_training(confidence=0.8).terms["other"].gate
    Confident(threshold=0.8)
    """
    return _each_other(2, Confident(confidence), weight, share, ratio)


def tri_training(weight: float = 1.0, share: float = 0.632, ratio: float = 7.0) -> Method:
    """Tri-training: three networks, and each learns the labels on which the other two agree.

    Equation::

        L = K mean over drawn (row, k) of CE(y, p_k) + w sum_k mean_u 1[argmax p_i = argmax p_j] CE(argmax p_i, p_k(u))

    i and j are the other two, held. As in the paper the three differ by what they draw of the labels: a bootstrap
    there, here the ``share`` of rows that one would have, fixed for each. The paper refits whole classifiers in rounds
    and takes a round only where the error that it estimates falls; here each step is taken, and the audit judges the
    whole. Rows on which the two differ count as zero. The first network is the product.

    Source: Zhou and Li, Tri-Training: Exploiting Unlabeled Data Using Three Classifiers, IEEE TKDE 2005.

    Needs: unlabelled rows.

    >>> tri_training().prepare
    Group(peers=3)
    """
    return _each_other(3, Unanimous(), weight, share, ratio)


def _each_other(peers: int, gate: Confident | Unanimous, weight: float, share: float, ratio: float) -> Method:
    """Labels on the rows that each has drawn, and of the others on unlabelled rows; a sum over the peers."""
    given, hard = Bagged(share), CrossEntropy(hard=True)
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), "labelled", "peers", given, weight=float(peers), mean_over="kept"),
            "other": Term(Peers(), hard, "unlabelled", "peers", gate, weight=weight, mean_over="rows"),
        },
        views=Views((Look("labelled"), Look("unlabelled", "unlabelled")), ratio),
        prepare=Group(peers),
    )
