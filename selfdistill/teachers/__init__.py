"""Teachers: where does the target come from? From labels, from the model itself in one of many guises, or from outside.

Every teacher detaches its target. Teachers that hold weights keep them in a fixed mode and in the objective's
``state_dict``, copies of the student in float32; memories are keyed by sample id.
"""

from .aligned import ClassAligned
from .certain import CertainLabels
from .memories import History, LastBatch, LastEpoch
from .now import Itself, Labels, Peers, Sampled
from .pseudo import Aligned, PseudoLabels
from .weights import Ema, External, Frozen, Generation, Held

__all__ = [
    "Aligned", "CertainLabels", "ClassAligned", "Ema", "External", "Frozen", "Generation", "Held", "History", "Itself",
    "Labels", "LastBatch", "LastEpoch", "Peers", "PseudoLabels", "Sampled",
]  # fmt: skip
