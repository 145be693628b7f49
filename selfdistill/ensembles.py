"""Several models as one: generations that predict together, and how much of their gain a single model keeps."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import diversity
from .errors import RecipeError
from .evaluate import answers, scored
from .finished import product
from .heads import MOST_MEMBERS, Mean, Peers, Together
from .teachers.ancestors import wanted

if TYPE_CHECKING:
    from .loop import Result
    from .models import Build
    from .prepared import Prepared
    from .tasks.data import Data


def gathered(ready: Prepared, trained: Result) -> tuple[nn.Module, list[int]] | None:
    """What predicts by the mean of several models, and the generations it is made of; None where none does.

    Of a group of peers it is the group, with the head ``ensemble`` as its main one; of a method whose teacher are all
    earlier generations, these (the accepted ones, or all but the last).
    """
    if isinstance(trained.model, Peers) and not hasattr(trained.model, "jointly"):
        return Speaking(trained.model, ready.data.head), [trained.product]
    teacher, last = wanted(ready.method), len(trained.generations) - 1
    if teacher is None:
        return None
    numbers = [g for g, t in enumerate(trained.generations) if t.decision.get("accepted", True)]
    if teacher.at_last:  # the ensemble is what the last one learnt from
        numbers = list(range(min(last, ready.method.generations - 1)))
    if len(numbers) < 2:
        return None
    return Mean([_of(trained, g) for g in numbers], ready.data.task == "regress").eval(), numbers


def _of(trained: Result, generation: int) -> nn.Module:
    model = copy.deepcopy(trained.model)
    model.load_state_dict(trained.generations[generation].weights)
    return model


class Speaking(nn.Module):
    """A group of peers that answers for all of them: its head ``ensemble`` under the name of its main one."""

    def __init__(self, group: Peers, head: str) -> None:
        super().__init__()
        self.group, self.head = group, head

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        said = self.group(x)
        return {self.head: said["ensemble"]}


@torch.no_grad()
def judge(ready: Prepared, trained: Result, plain: dict[str, float] | None) -> dict[str, Any]:
    """The ensemble on the test split, beside the single model that was made with it; empty without one.

    Returns:
        ``of``: the generations, or the number of peers; ``test``: its metrics; ``distance`` and ``disagreement`` of its
        members (see `diversity.pairwise`); ``single``: the metrics of the single model; with the control's metrics
        ``plain``, ``gain`` of the ensemble and ``kept``, the share of it that the single one keeps.
    """
    found, data = gathered(ready, trained), ready.data
    if found is None:
        return {}
    whole, numbers = found
    test = scored(answers(whole, data, data.test), data.y[data.test], data.task)
    group = whole.group if isinstance(whole, Speaking) else whole
    said = diversity.together(group, data, data.test[: diversity.MOST])
    single = _single(ready, trained, data)
    peers = len(group.members) if isinstance(group, Peers) else len(numbers)
    named: dict[str, Any] = {"peers": peers} if isinstance(whole, Speaking) else {"generations": numbers}
    result = {**named, "test": test, "single": single}
    result |= diversity.pairwise(said, data.task) if said is not None else {}
    return result | (gain(test, single, plain) if plain else {})


def _single(ready: Prepared, trained: Result, data: Data) -> dict[str, float]:
    """The single model: a group's product, or the last generation."""
    number = trained.product if isinstance(trained.model, Peers) else len(trained.generations) - 1
    return scored(answers(product(_of(trained, number)), data, data.test), data.y[data.test], data.task)


def gain(ensemble: dict[str, float], single: dict[str, float], plain: dict[str, float]) -> dict[str, float | None]:
    """The ensemble's gain over plain, and the share that the single model keeps; None where there is no gain.

    In accuracy; of values in the root of the squared error, which falls.

    >>> gain({"accuracy": 0.75}, {"accuracy": 0.625}, {"accuracy": 0.5})
    {'gain': 0.25, 'kept': 0.5}
    """
    measure, sign = ("accuracy", 1.0) if "accuracy" in ensemble else ("rmse", -1.0)
    whole, part = (sign * (one[measure] - plain[measure]) for one in (ensemble, single))
    return {"gain": whole, "kept": part / whole if whole > 0 else None}


def added(result: dict[str, Any], ready: Prepared, trained: Result) -> dict[str, Any]:
    """A run's result with what `judge` says of the ensemble; of generations `Together` that is the product's."""
    found = judge(ready, trained, result.get("plain", {}).get("end"))
    if not found:
        return result
    product = isinstance(ready.method.prepare, Together) and result["chosen"] != "plain"
    return {**result, "ensemble": found, **({"test": found["test"]} if product else {})}


def joined(ready: Prepared, trained: Result) -> tuple[nn.Module, Build] | None:
    """The product of a method whose generations predict `Together`, and what builds it; None for others.

    Raises:
        RecipeError: more of them than a model folder can name.
    """
    found = gathered(ready, trained) if isinstance(ready.method.prepare, Together) else None
    if found is None:
        return None
    whole, numbers = found
    if len(numbers) > MOST_MEMBERS:
        raise RecipeError(f"{len(numbers)} generations cannot be one product; train at most {MOST_MEMBERS}")
    values = "_values" if ready.data.task == "regress" else ""
    return whole, ready.build.wrapped(f"mean{len(numbers)}{values}", 1)
