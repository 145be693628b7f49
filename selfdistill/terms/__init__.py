"""Terms that compute more than one loss between an output of the student and a target."""

from __future__ import annotations

from .regularisers import Cooling, Fairness, Feedback, Perturbed, RowMeanCooling

__all__ = ["Cooling", "Fairness", "Feedback", "Perturbed", "RowMeanCooling"]
