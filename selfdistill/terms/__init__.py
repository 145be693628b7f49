"""Terms of their own kind: where what is compared is not simply an output of the student and a target for it."""

from .cooling import Cooling, PerRow
from .fairness import Fairness
from .feedback import Feedback
from .perturbed import Perturbed

__all__ = ["Cooling", "Fairness", "Feedback", "PerRow", "Perturbed"]
