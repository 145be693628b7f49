"""Teachers: where does the target come from? From labels, from the model itself in one of many guises, or from outside.

Every teacher detaches its target. Teachers that hold weights keep them in a fixed mode and in the objective's
``state_dict``, copies of the student in float32; memories are keyed by sample id.
"""

from .aligned import ClassAligned
from .ancestors import Ancestors, Members
from .cached import Cached
from .certain import CertainLabels
from .classes import BetaRanked, ClassMean, Virtual
from .combined import Combined
from .earlier import Beyond, Snapshot
from .memories import History, LastBatch, LastEpoch
from .mixtures import JointLabels, MixedLabels
from .momentum import CentredMomentum, Momentum
from .neighbours import Neighbours
from .now import Itself, Labels, Peers, Sampled
from .pseudo import Aligned, PseudoLabels
from .ranked import WeakRanks, ZipfRanks
from .relabelled import Ensembled, Refurbished, Relabelled
from .stale import Stale
from .weights import Ema, External, Frozen, Generation, Held

__all__ = [
    "Aligned", "Ancestors", "BetaRanked", "Beyond", "Cached", "CentredMomentum", "CertainLabels", "ClassAligned",
    "ClassMean", "Combined", "Ema", "Ensembled", "External", "Frozen", "Generation", "Held", "History", "Itself",
    "JointLabels", "Labels", "LastBatch", "LastEpoch", "Members", "MixedLabels", "Momentum", "Neighbours", "Peers",
    "PseudoLabels", "Refurbished", "Relabelled", "Sampled", "Snapshot", "Stale", "Virtual", "WeakRanks", "ZipfRanks",
]  # fmt: skip
