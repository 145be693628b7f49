"""What is put around any model: heads that read its layers, and what learns beside it. The product is the model alone.

Each is prepared by a frozen value, the ``prepare`` of a method: `Features`, `Levels`, `Projectors`, `Rotations`,
`SelfTeacher`.
"""

from .levels import Levels, Several
from .projected import Projected, Projectors
from .pyramid import SelfTaught, SelfTeacher
from .reading import Extended, Featured, Features, Reading, width_of
from .rotated import Rotated, Rotations

__all__ = [
    "Extended", "Featured", "Features", "Levels", "Projected", "Projectors", "Reading", "Rotated", "Rotations",
    "SelfTaught", "SelfTeacher", "Several", "width_of",
]  # fmt: skip
