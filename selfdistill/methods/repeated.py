"""Generation after generation on the labels of the one before: what collapses, and what keeps it from collapsing."""

from __future__ import annotations

from ..carried import Carried
from ..core import Method, Term
from ..losses import CrossEntropy
from ..schedules import ByGeneration
from ..teachers import Labels
from ..views import Look, Views


def self_training(
    generations: int = 11, keep: str = "accumulate", hard: bool = False, fresh: int = 120, weight: float = 1.0
) -> Method:
    """Repeated self-training: each generation starts afresh and learns what the last accepted one said of new rows.

    Equation::

        L = mean over rows of [CE(y, p) where labelled, w CE(t, p) where pseudo-labelled]
        t = last accepted generation on the clean row, eval mode; ``fresh`` new rows are labelled each time
        rows of generation 0: labelled; of later ones, by ``keep``:
            "accumulate"  labelled rows and every pseudo-labelled set so far, as first labelled
            "replace"     the newest set alone, which collapses
            "anchor"      the newest set, and labelled rows repeated to the weight (sqrt(k^2 + 4k) - k) / 2
                          for k labelled rows per new one (0.618 at k = 1)

    Sets share no row; when the pool is exhausted they go round again.

    Source: Gerstgrasser et al., Is Model Collapse Inevitable?, arXiv 2404.01413, 2024 (accumulate, replace); He, Xu &
    Cheng, Golden Ratio Weighting Prevents Model Collapse, arXiv 2502.18049, 2025 (anchor).

    Needs: unlabelled rows.

    >>> self_training(keep="anchor").terms["pseudo"].teacher
    Carried(keep='anchor', hard=False, fresh=120)
    """
    taught = ByGeneration(1.0, 0.0) if keep == "replace" else 1.0  # no labelled row is drawn later: say so
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), weight=taught, mean_over="view"),
            "pseudo": Term(Carried(keep, hard, fresh), CrossEntropy(), weight=weight, mean_over="view"),
        },
        views=Views((Look("x", "chosen"),)),
        generations=generations,
    )
