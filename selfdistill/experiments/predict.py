"""What a finished run leaves: its model, the card of what it was trained for, and what it says of new rows."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..data.dataset import inputs_for
from ..errors import CheckpointError, DataError, SpaceError
from ..evaluation.predict import Predicted, predict, with_interval
from ..models import store
from ..models.store import ESTIMATOR, model_card


def says(folder: str | Path, source: str, exit_number: int | None = None) -> Predicted:
    """What the model of a finished run says of new data.

    ``exit_number`` counts early exits from 1, the shallowest; without it the deepest one speaks.

    Raises:
        CheckpointError: the run has no model yet.
        DataError: the data do not fit the model, or it has no such exit.
    """
    place = Path(folder) / "model"
    if not place.is_dir():
        raise CheckpointError(f"{folder} has no model yet; finish it by `selfdistill resume {folder}`")
    card = model_card(place)
    if card.get("task") == "features":
        raise DataError(
            f"{folder} was trained without any label and knows no classes; learn some from its layers by `selfdistill "
            f"run LABELLED --init {folder}`"
        )
    if (place / ESTIMATOR).exists():
        if exit_number is not None:
            raise DataError(f"the model of {folder} is a learner and has no early exits; leave out --exit")
        from ..estimators.task import predict as predict_rows

        return predict_rows(place, card, source)
    model = store.load(place)
    x, names = inputs_for(source, place)
    head = "logits" if card["task"] == "classify" else "values"
    said = predict(model, x, head) if exit_number is None else _at_exit(model, x, exit_number, folder, head)
    if head == "values":
        return Predicted(names, *with_interval(said, card.get("half")))
    return Predicted(names, torch.softmax(said, -1), [str(name) for name in card["classes"]])


def _at_exit(model: nn.Module, x: Tensor, number: int, folder: str | Path, head: str) -> Tensor:
    try:
        exits = predict(model, x, "exits" if head == "logits" else "exit_values")  # (rows, exits, components)
    except SpaceError:
        raise DataError(
            f"the model of {folder} has no early exits; leave out --exit, or train by byot() with "
            "--no-control, lest the plain model be the product"
        ) from None
    if not 1 <= number <= exits.shape[1]:
        raise DataError(f"the model of {folder} has exits 1 to {exits.shape[1]}; there is no {number}")
    return exits[:, number - 1]
