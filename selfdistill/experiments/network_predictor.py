"""The predictor of a network: a finished model that stays in memory and answers new rows."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..data.dataset import unread
from ..data.image_store import ImageStore
from ..data.inputs import network_inputs, source_of
from ..errors import CheckpointError, DataError, SpaceError
from ..evaluation.predict import Predictions, ValuePredictions, predict, with_interval
from ..io.files import DATA_CARD
from ..models import store
from ..models.store import model_card
from ..training.task_type import Predictor


class NetworkPredictor(Predictor):
    """The final model of a run of a network.

    Args:
        folder: The run folder or its model folder.

    Raises:
        CheckpointError: there is no model, it is damaged, or it names code that is not trusted.
        DataError: it was trained without labels.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder, self.place = Path(folder), store.model_folder(folder)
        store.read_config(self.place)  # the gravest fault first: a model that is not trusted
        self.card = model_card(self.place, {"kind": str, "task": str, "classes": [str], "half?": (float, None)})
        if self.card["task"] == "features":
            raise DataError(
                f"{folder} was trained without any label and knows no classes; learn some from its layers by "
                f"`selfdistill run LABELLED --init {folder}`"
            )
        self.model = store.load(self.place)

    @property
    def head(self) -> str:
        """The output that answers: ``logits`` of classes, ``values`` in the unit of the target."""
        return "logits" if self.card["task"] == "classify" else "values"

    @property
    def classes(self) -> list[str]:
        """The names of the classes; none of values."""
        return [str(name) for name in self.card["classes"]]

    def predict(self, rows: object, exit_number: int | None = None) -> Predictions:
        """Classes with probabilities, or values with intervals.

        ``exit_number`` counts early exits from 1, the shallowest; without it the deepest one answers.

        Raises:
            DataError: the rows do not fit the model, or it has no such exit.
        """
        x, names = network_inputs(rows, self.card, self.place)
        outputs = predict(self.model, x, self.head) if exit_number is None else self._at_exit(x, exit_number)
        if self.head == "logits" and outputs.shape[-1] != len(self.classes):
            raise CheckpointError(
                f"{self.place / DATA_CARD} has {len(self.classes)} classes and the model {outputs.shape[-1]}; train "
                "it again"
            )
        source = source_of(rows)
        note = unread(source, names) if source is not None and self.card["kind"] == "image" else ""
        if self.head == "values":
            return ValuePredictions(names, *with_interval(outputs, self.card.get("half")), note)
        return Predictions(names, torch.softmax(outputs, -1), self.classes, note)

    def _at_exit(self, x: Tensor | ImageStore, number: int) -> Tensor:
        try:
            exits = predict(self.model, x, "exits" if self.head == "logits" else "exit_values")  # (rows, exits, ...)
        except SpaceError:
            raise DataError(
                f"the model of {self.folder} has no early exits; leave out --exit, or train by byot() with "
                "--no-control, so that the baseline is not the final model"
            ) from None
        if not 1 <= number <= exits.shape[1]:
            raise DataError(f"the model of {self.folder} has exits 1 to {exits.shape[1]}; there is no {number}")
        return exits[:, number - 1]
