"""The pieces of a step, of which a teacher may be asked together: the weights that judge them are the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ..core.logits import Projection
from ..core.step import Batch
from ..models.causal_lm import COMPLETION

LOOK = 4096  # tokens that are looked at together, without gradient: activations of one layer are held at a time


class Piece(Batch):
    """One of the batches of a step; it knows all of them, and what was said of each: by whom -> piece -> states.

    What was said is kept as long as the step lasts, in which no weight changes.
    """

    def __init__(self, batch: Batch, step: list[Piece], heads: dict[Hashable, dict[int, Projection]]) -> None:
        super().__init__(batch)
        self.step, self.heads = step, heads

    def head(self, view: str, who: Hashable, says: Callable[[Tensor], Projection]) -> Projection:
        """What ``says`` says of the view's rows (rows, 2, length), of all pieces when one of them is wanted."""
        if (view, who) not in self.heads:
            there = [piece for piece in self.step if view in piece]
            found = zip(there, said([piece[view].x for piece in there], says), strict=True)
            self.heads[view, who] = {id(piece): head for piece, head in found}
        return self.heads[view, who][id(self)]


def pieces(batches: Sequence[Batch]) -> list[Batch]:
    """The batches of a step, which know each other."""
    step, heads = list[Piece](), dict[Hashable, dict[int, Projection]]()
    step += [Piece(batch, step, heads) for batch in batches]
    return list(step)


def said(xs: Sequence[Tensor], says: Callable[[Tensor], Projection]) -> Iterator[Projection]:
    """What is said of each of some batches of rows (rows, 2, length), asked as many together as `LOOK` allows."""
    for few in _looks(xs):
        longest = max(x.shape[-1] for x in few)
        whole = says(torch.cat([nn.functional.pad(x, (0, longest - x.shape[-1])) for x in few]))
        for hidden in whole.hidden.split([int((x[:, 1] == COMPLETION).sum()) for x in few]):
            yield whole._replace(hidden=hidden)


def _looks(xs: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours, until padded to the longest they have more tokens than a look may have."""
    few = list[Tensor]()
    for x in xs:
        if few and sum(map(len, [*few, x])) * max(y.shape[-1] for y in [*few, x]) > LOOK:
            yield few
            few = []
        few.append(x)
    if few:
        yield few
