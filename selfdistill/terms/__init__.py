"""Terms of their own kind: where what is compared is not simply an output of the student and a target for it."""

from __future__ import annotations

from .regularisers import Cooling, Fairness, Feedback, Perturbed, RowMeanCooling

__all__ = ["Cooling", "Fairness", "Feedback", "Perturbed", "RowMeanCooling"]
