"""What a finished run leaves: its model, the card of what it was trained for, and what it says of new rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import models
from .errors import CheckpointError, DataError, SpaceError
from .evaluate import predict
from .expressions import one_line
from .features import Extended
from .heads import Peers
from .tasks.data import CARD, inputs_for

ESTIMATOR = "estimator.skops"  # in a model folder: a learner of scikit-learn, which no network's config describes


def product(model: nn.Module) -> nn.Module:
    """The model that a training leaves: of a group of peers the first, or all that predict jointly; without what was
    learnt beside it; else itself."""
    return model.product() if isinstance(model, (Peers, Extended)) else model


def load_model(folder: str | Path) -> nn.Module:
    """The model of a run folder or of its ``model`` folder, in eval mode.

    Raises:
        CheckpointError: there is no model there, or it is damaged or of a foreign format.
    """
    return models.load(model_folder(folder))


def model_card(folder: str | Path) -> dict[str, Any]:
    """What a model was trained for: shape, outputs, classes and, for tables, columns.

    Raises:
        CheckpointError: there is no model there.
    """
    path = model_folder(folder)
    card: dict[str, Any] = {}
    for name in (CARD, models.CONFIG):
        try:
            card |= json.loads((path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError) as error:
            why = one_line(error, 80)
            raise CheckpointError(f"{path / name} cannot be read ({why}); train that model again") from error
    if "shape" not in card:
        raise CheckpointError(f"{path} holds no model (it has no {models.CONFIG}); give the folder of a finished run")
    return card


def model_folder(folder: str | Path) -> Path:
    """Where the model of a finished run, or of its model folder, lies."""
    path = Path(folder)
    if not path.is_dir():
        raise CheckpointError(f"there is no folder {path}; give the folder of a finished run, or its model folder")
    if (path / "run.json").exists() and not (path / "model").is_dir():
        raise CheckpointError(f"{path} has no model yet; finish it by `selfdistill resume {path}`")
    return path / "model" if (path / "model").is_dir() else path


class Predicted(NamedTuple):
    """What a finished run says of rows: their names, numbers (rows, columns), and what the columns are: classes, whose
    probabilities they are, or ``prediction`` and, where the run knows an interval, ``low`` and ``high``."""

    names: list[str]
    numbers: Tensor
    columns: list[str]


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
        from .learners.training import predict as predict_rows

        return predict_rows(place, card, source)
    model = models.load(place)
    x, names = inputs_for(source, place)
    head = "logits" if card["task"] == "classify" else "values"
    said = predict(model, x, head) if exit_number is None else _at_exit(model, x, exit_number, folder, head)
    if head == "values":
        return Predicted(names, *with_interval(said, card.get("half")))
    return Predicted(names, torch.softmax(said, -1), [str(name) for name in card["classes"]])


def with_interval(said: Tensor, half: float | None) -> tuple[Tensor, list[str]]:
    """Values (rows, 1) and, if half of an interval's width is known, its bounds; and the names of these columns."""
    if half is None:
        return said, ["prediction"]
    return torch.cat([said, said - half, said + half], dim=1), ["prediction", "low", "high"]


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
