"""Teachers: where does the target come from? From labels, from the model itself in one of many guises, or from outside.

Every teacher detaches its target. Teachers that hold weights keep them in a fixed mode and in the objective's
``state_dict``, copies of the student in float32; memories are keyed by sample id.
"""

from .ancestors import Ancestors, Members
from .combined import Combined
from .memories import History, LastBatch, LastEpoch
from .now import Itself, Labels, Peers, Sampled
from .pseudo import Aligned, PseudoLabels
from .relabelled import Ensembled, Refurbished, Relabelled
from .stale import Stale
from .weights import Ema, External, Frozen, Generation, Held

__all__ = [
    "Aligned", "Ancestors", "Combined", "Ema", "Ensembled", "External", "Frozen", "Generation", "Held", "History",
    "Itself", "Labels", "LastBatch", "LastEpoch", "Members", "Peers", "PseudoLabels", "Refurbished", "Relabelled",
    "Sampled", "Stale",
]  # fmt: skip
