"""Do sample ids belong to the samples? A memory keyed by ids that do not is one of other samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..step import Step
from .pulse import fail

MOST = 65536  # ids remembered


class Remembered:
    """The first label seen with each sample id, at looks only."""

    def __init__(self) -> None:
        self.first: dict[int, int] = {}
        self.again, self.other = 0, 0

    def see(self, terms: Mapping[str, Any], step: Step) -> None:
        """Compare the labels of a step with those remembered, where a term asked for ids.

        Raises:
            VitalsError: the same ids come with other labels, about as often as if they were drawn by chance.
        """
        for view in step.keyed:
            rows = step.batch[view]
            if rows.y is None or rows.id is None or rows.y.is_floating_point() or rows.y.dim() != 1:
                continue
            for i, label in zip(rows.id.tolist(), rows.y.tolist(), strict=True):
                if label < 0:
                    continue
                if i in self.first:
                    self.again, self.other = self.again + 1, self.other + (self.first[i] != label)
                elif len(self.first) < MOST:
                    self.first[i] = label
        if self.other < 16:
            return
        counts = Counter(self.first.values())
        chance = 1.0 - sum((n / len(self.first)) ** 2 for n in counts.values())
        if self.other > 0.5 * chance * self.again:  # a label that was corrected in between is no reason
            name = _asking(terms, step)
            fail(
                "ids-misaligned", name, f"{self.other} of {self.again} sample ids that came again had another label, "
                f"{chance:.0%} would by chance", "give each sample one id and shuffle inputs, labels and ids together",
            )  # fmt: skip


def _asking(terms: Mapping[str, Any], step: Step) -> str:
    """The term that needs the ids: one on a view whose ids were asked for, and rather not that of the labels."""
    from ..teachers import Labels

    there = [name for name, term in terms.items() if term.view in step.keyed]
    return next((n for n in there if not isinstance(getattr(terms[n], "teacher", None), Labels)), [*there, *terms][0])
