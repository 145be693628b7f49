"""Graphs of finished networks: what another program computes from the file and its description, beside `predict`."""

from __future__ import annotations

import io
import json
import math
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from selfdistill.errors import DataError
from selfdistill.experiments.network_predictor import NetworkPredictor
from selfdistill.models import graph, registry
from tests.terminal import passed, refused, report


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_table(path: Path) -> pandas.DataFrame:
    """Numbers, one column with gaps, and categories of which many are rare and some cells are empty."""
    draw = random.Random(2)
    rows = []
    for i in range(160):
        x = draw.gauss(0, 3)
        city = draw.choice(["Rome", "Oslo", "Bern", ""]) if i % 8 else f"village {i % 40}"
        rows.append((x, "" if i % 9 == 0 else draw.random(), city, "yes" if x > 0 else "no", 2 * x + 1))
    frame = pandas.DataFrame(rows, columns=["x", "gap", "city", "outcome", "value"])
    frame.to_csv(path, index=False)
    return pandas.read_csv(path)


def prepared(frame: pandas.DataFrame, steps: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    """Model input by the description alone: plain arithmetic, no scikit-learn."""
    columns = []
    for step in steps:
        column = []
        for cell in frame[step["feature"]].tolist():
            empty = isinstance(cell, float) and math.isnan(cell)
            if step["kind"] == "category":
                column.append(float(("missing" if empty else cell) in step["values"]))
            elif step["kind"] == "is_missing":
                column.append((float(empty) - step["mean"]) / step["scale"])
            else:
                column.append(((step["missing"] if empty else cell) - step["mean"]) / step["scale"])
        columns.append(column)
    return np.array(columns, dtype=np.float32).T


def test_a_network_of_a_table_is_a_graph_with_its_preprocessing(here: Path) -> None:
    frame = write_table(here / "t.csv")
    made = ("t.csv", "--target", "outcome", "--model", "mlp", "--method", "plain()", "--steps", 40)
    passed("run", *made, "--column", "value=identifier", "--quiet", "--out", "r")
    said = json.loads(passed("export", "r", "--format", "onnx", "--json").stdout)
    assert said == json.loads(Path("r/export/model.json").read_text())
    assert said["check"]["deviation"] < 1e-5
    assert (said["check"]["rows"], said["check"]["batches"]) == (160, [1, 7, 152])
    rows = prepared(frame, said["preprocessing"]["steps"])
    expected = NetworkPredictor("r").predict("t.csv")
    assert said["output"]["classes"] == expected.columns
    session = onnxruntime.InferenceSession("r/export/model.onnx", providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()] == ["probabilities"]
    assert np.allclose(session.run(None, {"input": rows})[0], expected.numbers.numpy(), atol=1e-5)
    (by_reference,) = ReferenceEvaluator("r/export/model.onnx").run(None, {"input": rows[:5]})
    assert np.allclose(by_reference, expected.numbers[:5].numpy(), atol=1e-5)
    assert "is no run" in refused("export", "r/model", "--format", "onnx", "--out", "m.onnx")
    assert sorted(path.name for path in here.iterdir()) == ["r", "t.csv"]


def test_a_graph_that_computes_something_else_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.pt2"

    def write(model: nn.Module, sample: torch.Tensor, place: Path, output: str) -> Any:
        place.write_text("")
        return lambda x: model(x) + 0.01, "a broken exporter"

    monkeypatch.setattr(graph, "_write_program", write)
    with pytest.raises(DataError, match=r"deviates by 0.01 from the model and was removed"):
        graph.write_graph(nn.Linear(2, 2), torch.zeros(3, 2), path, "torch", "values")
    assert not path.exists()


def test_learners_and_foreign_models_have_no_graph(here: Path) -> None:
    passed("run", "iris", "--model", "linear", "--method", "plain()", "--quiet", "--out", "t")
    assert "export is for networks" in refused("export", "t", "--format", "torch")

    class Counted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float(x.sum())

    with pytest.raises(DataError, match="has no graph for any number of rows"):
        graph.write_graph(Counted(), torch.ones(3, 2), here / "m.pt2", "torch", "values")


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["cnn", "resnet(width=4)", "vit", "mlp"])
@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_networks_of_images_have_graphs_for_any_number_of_rows(spec: str, form: str, tmp_path: Path) -> None:
    model = registry.parse(spec, (3, 16, 16), 5)().eval()
    path = tmp_path / f"m{graph.SUFFIXES[form]}"
    check = graph.write_graph(graph.Answering(model, "logits").eval(), torch.rand(40, 3, 16, 16), path, form, "p")
    assert check.deviation < 1e-5
    if form == "onnx":
        run, _ = graph.onnx_runner(path)
        rows = torch.rand(300, 3, 16, 16)
        with torch.no_grad():
            assert torch.allclose(run(rows), model(rows).softmax(1), atol=1e-5)


@pytest.mark.slow
def test_values_keep_their_unit_and_the_program_of_torch_holds_no_row(here: Path) -> None:
    write_table(here / "t.csv")
    made = ("t.csv", "--target", "value", "--model", "mlp", "--method", "plain()", "--steps", 40)
    report("run", *made, "--column", "outcome=identifier", "--out", "r")
    assert "largest deviation from the model" in passed("export", "r", "--format", "torch").stdout
    said = json.loads(Path("r/export/model.json").read_text())
    assert said["output"] == {"name": "values", "classes": [], "half": said["output"]["half"]}
    program = torch.export.load("r/export/model.pt2").module()
    frame = pandas.read_csv("t.csv")
    rows = torch.from_numpy(prepared(frame, said["preprocessing"]["steps"]))
    expected = NetworkPredictor("r").predict(frame).numbers[:, :1]
    assert torch.allclose(program(rows), expected, atol=1e-4)
    with zipfile.ZipFile("r/export/model.pt2") as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".pt"))
        example = torch.load(io.BytesIO(archive.read(name)), weights_only=True)
    assert not any(bool(row.any()) for row in example[0]), "PyTorch keeps the rows it traced: they are none of the data"
