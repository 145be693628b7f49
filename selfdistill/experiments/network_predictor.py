"""The predictor of a network: a finished model that stays in memory and answers new rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import column_types, tables, text
from ..data.dataset import PREPROCESSOR, unread
from ..data.image_store import ImageStore
from ..data.inputs import network_inputs, source_of
from ..errors import CheckpointError, DataError, SpaceError
from ..evaluation.predict import Predictions, ValuePredictions, predict, with_interval
from ..io.files import DATA_CARD, FORMAT, writable, write
from ..io.run_record import read_record
from ..models import graph, store
from ..models.store import model_card
from ..training import threads
from ..training.task_type import Predictor

CHECKED = 256  # rows at most that a graph is checked on


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

    def export(self, form: str, path: Path, rows: object = None) -> dict[str, Any]:
        """Write the model as a graph, and beside it a JSON file of its preprocessing; see `Predictor.export`."""
        if form not in graph.SUFFIXES:
            raise DataError(f"{form!r} is no format of a graph; give {' or '.join(graph.SUFFIXES)}")
        x, output = self._some_rows(rows), "probabilities" if self.head == "logits" else "values"
        writable(path, "--out")
        with threads.limited_to(1):
            check = graph.write_graph(graph.Answering(self.model, self.head).eval(), x, path, form, output)
        described: dict[str, Any] = {
            "format": FORMAT,
            "graph": path.name,
            "form": form,
            "input": {
                "name": graph.INPUT,
                "dtype": str(x.dtype).removeprefix("torch."),
                "shape": ["rows", *x.shape[1:]],
            },
            "output": {"name": output, "classes": self.classes, "half": self.card.get("half")},
            "preprocessing": self._preprocessing(path.parent),
            "check": {"rows": check.rows, "batches": check.batches, "deviation": check.deviation, "by": check.by},
        }
        write(path.with_suffix(".json"), json.dumps(described, indent=1, ensure_ascii=False) + "\n")
        return described

    def _some_rows(self, rows: object) -> Tensor:
        """At most `CHECKED` rows of the model's input."""
        record = self.folder / "run.json"
        if rows is None and not record.exists():
            raise DataError(
                f"{self.folder} is no run, and names no data; give rows to check the graph on by --rows DATA"
            )
        x = network_inputs(read_record(record)[1].data if rows is None else rows, self.card, self.place)[0]
        return x[:CHECKED] if isinstance(x, Tensor) else x[torch.arange(min(len(x), CHECKED))].float() / 255

    def _preprocessing(self, folder: Path) -> dict[str, Any]:
        """What must be done with a row before the graph reads it; a tokenizer is copied into the folder."""
        kind, shape = self.card["kind"], self.card["shape"]
        if kind == "image":
            mode = "L" if shape[0] == 1 else "RGB"
            size = {"height": shape[1], "width": shape[2]}
            return {"kind": kind, "mode": mode, **size, "resize": "bilinear, as Pillow's", "divide_by": 255}
        if kind == "text":
            reader = text.saved_reader(self.card, self.place)
            shutil.copytree(self.place / text.FOLDER, folder / text.FOLDER, dirs_exist_ok=True)
            padding = int(reader.tokenizer.pad_token_id)
            return {"kind": kind, "tokenizer": text.FOLDER, "length": reader.length, "padding": padding}
        if not (self.place / PREPROCESSOR).exists():
            return {"kind": kind, "columns": [], "steps": []}
        steps = tables.preprocessing_steps(tables.load(self.place / PREPROCESSOR))
        return {"kind": kind, "columns": self.card.get(column_types.RECORD, []), "steps": steps}
