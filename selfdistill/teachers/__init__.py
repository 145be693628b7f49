"""Teachers: each makes a target from the labels, from the student, from a copy of it, or from another model.

Every teacher detaches its target. Teachers that hold weights keep them in a fixed mode and in the objective's
``state_dict``, copies of the student in float32; memories are keyed by sample id.
"""

from __future__ import annotations

from ..core.memory import FrozenCopy
from .cached import Cached
from .class_level import BetaRanked, ClassMean, Neighbours, Virtual, WeakRanks, ZipfRanks
from .committee import Combined
from .ema import CentredMomentum, Momentum
from .generations import Extrapolated, GenerationEnsemble, Members, Snapshot
from .labels import Itself, JointLabels, Labels, MixedLabels, Peers, Sampled
from .memories import History, LastBatch, LastEpoch, Stale
from .pseudo_labels import Aligned, CertainLabels, ClassAligned, PseudoLabels
from .relabelling import Ensembled, Refurbished, Relabelled
from .weights import Ema, External, Frozen, Generation

__all__ = [
    "Aligned",
    "BetaRanked",
    "Cached",
    "CentredMomentum",
    "CertainLabels",
    "ClassAligned",
    "ClassMean",
    "Combined",
    "Ema",
    "Ensembled",
    "External",
    "Extrapolated",
    "Frozen",
    "FrozenCopy",
    "Generation",
    "GenerationEnsemble",
    "History",
    "Itself",
    "JointLabels",
    "Labels",
    "LastBatch",
    "LastEpoch",
    "Members",
    "MixedLabels",
    "Momentum",
    "Neighbours",
    "Peers",
    "PseudoLabels",
    "Refurbished",
    "Relabelled",
    "Sampled",
    "Snapshot",
    "Stale",
    "Virtual",
    "WeakRanks",
    "ZipfRanks",
]
