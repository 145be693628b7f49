"""Teachers: the sources of targets, which are labels, outputs of the student, of a copy of it, or of another model.

Every target is detached. Weights of teachers stay in a fixed mode and are saved in the objective's ``state_dict``,
copies of the student in float32. Memories are keyed by sample id.
"""

from __future__ import annotations

from ..core.memory import FrozenCopy
from .cached import CachedTeacher
from .class_level import BetaRanked, ClassMean, Neighbours, Virtual, WeakRanks, ZipfRanks
from .committee import Combined
from .ema import CentredMomentum, Momentum
from .generations import Extrapolated, GenerationEnsemble, Members, Snapshot
from .labels import CurrentStudent, JointLabels, Labels, MixedLabels, OtherPeers, Sampled
from .memories import History, LastBatch, LastEpoch, Stale
from .pseudo_labels import Aligned, CertainLabels, ClassAligned, PseudoLabels
from .relabelling import Ensembled, Refurbished, Relabelled
from .replay import EarlierTasks, Stored, StoredLabels
from .weights import Ema, External, Frozen, Generation

__all__ = [
    "Aligned",
    "BetaRanked",
    "CachedTeacher",
    "CentredMomentum",
    "CertainLabels",
    "ClassAligned",
    "ClassMean",
    "Combined",
    "CurrentStudent",
    "EarlierTasks",
    "Ema",
    "Ensembled",
    "External",
    "Extrapolated",
    "Frozen",
    "FrozenCopy",
    "Generation",
    "GenerationEnsemble",
    "History",
    "JointLabels",
    "Labels",
    "LastBatch",
    "LastEpoch",
    "Members",
    "MixedLabels",
    "Momentum",
    "Neighbours",
    "OtherPeers",
    "PseudoLabels",
    "Refurbished",
    "Relabelled",
    "Sampled",
    "Snapshot",
    "Stale",
    "Stored",
    "StoredLabels",
    "Virtual",
    "WeakRanks",
    "ZipfRanks",
]
