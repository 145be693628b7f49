"""The graph of a model: ONNX, or the program of `torch.export`, for any number of rows, checked against the model.

A graph is written and never read back: the check of ``.pt2`` runs the program in memory.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core.outputs import output_of
from ..errors import DataError
from ..io.expressions import one_line

#: format -> the suffix of its file
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}

INPUT = "input"  # the name of the graph's input
TRACED = 3  # rows that the graph is traced with: 1 would be taken for a constant
TOLERANCE = 1e-3  # of the largest output, and at least of 1: a graph that is further off computes something else


class Check(NamedTuple):
    """How a graph was checked: the largest deviation of its outputs, over so many rows in batches, and what ran it."""

    deviation: float
    rows: int
    batches: list[int]
    by: str


class Answering(nn.Module):
    """A model that returns what `selfdistill predict` does: probabilities (rows, classes) or values (rows, 1).

    Args:
        model: It returns a tensor, or tensors by the names of heads.
        head: The head that answers; of ``logits`` the graph returns probabilities.

    >>> Answering(nn.Identity(), "logits")(torch.zeros(1, 4)).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """

    def __init__(self, model: nn.Module, head: str) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(self, x: Tensor) -> Tensor:
        output = self.model(x)
        answer = output_of(output if isinstance(output, dict) else {"": output}, self.head).float()
        return torch.softmax(answer, -1) if self.head == "logits" else answer


def write_graph(model: nn.Module, x: Tensor, path: Path, form: str, output: str) -> Check:
    """Write the graph of a model in eval mode, and compare it with the model on these rows.

    Args:
        model: It takes rows and returns one tensor.
        x: Real rows (rows, ...) of the model's input, at least one.
        path: The file to write.
        form: ``onnx`` or ``torch``.
        output: The name of the output in the graph.

    Raises:
        DataError: packages are missing, the model has no graph for any number of rows, or the graph computes something
            else.
    """
    write = {"onnx": _write_onnx, "torch": _write_program}[form]
    sample = torch.zeros_like(x[:1]).expand(TRACED, *x.shape[1:]).contiguous()  # a program holds it: no row of the data
    try:
        with _tracing():
            run, by = write(model, sample, path, output)
    except DataError:
        raise
    except Exception as error:  # the exporters have many errors, and some are of foreign models
        raise DataError(f"the model has no graph for any number of rows ({one_line(error, 160)})") from error
    sizes = [size for size in (1, 7, len(x) - 8) if size > 0] if len(x) > 8 else [len(x)]
    largest, scale = 0.0, 1.0
    with torch.no_grad():
        for rows in x.split(sizes):
            expected = model(rows)
            largest = max(largest, float((run(rows) - expected).abs().max()))
            scale = max(scale, float(expected.abs().max()))
    if not largest <= TOLERANCE * scale:
        path.unlink()
        raise DataError(f"the graph deviates by {largest:.2g} from the model and was removed; give another --format")
    return Check(largest, len(x), sizes, by)


@contextlib.contextmanager
def _tracing() -> Iterator[None]:
    """Without the fused layers of eval mode, which have no place in a graph, and the talk of the exporters."""
    fast, talk = torch.backends.mha.get_fastpath_enabled(), logging.getLogger("torch.onnx")
    level = talk.level
    torch.backends.mha.set_fastpath_enabled(False)
    talk.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        talk.setLevel(level)


def _write_program(model: nn.Module, sample: Tensor, path: Path, output: str) -> tuple[Callable[[Tensor], Tensor], str]:
    program = torch.export.export(model, (sample,), dynamic_shapes=_any_rows())
    torch.export.save(program, path)
    found: Callable[[Tensor], Tensor] = program.module()
    return found, f"torch {torch.__version__}"


def _any_rows() -> Any:
    return ({0: torch.export.Dim("rows", min=1)},)


def _write_onnx(model: nn.Module, sample: Tensor, path: Path, output: str) -> tuple[Callable[[Tensor], Tensor], str]:
    if find_spec("onnx") is None or find_spec("onnxscript") is None:
        raise DataError("--format onnx needs onnx and onnxscript: pip install 'selfdistill[export]'")
    names: dict[str, Any] = {"input_names": [INPUT], "output_names": [output]}
    program: Any = torch.onnx.export(model, (sample,), dynamo=True, dynamic_shapes=_any_rows(), verbose=False, **names)
    program.save(path)
    return onnx_runner(path)


def onnx_runner(path: Path) -> tuple[Callable[[Tensor], Tensor], str]:
    """What computes an ONNX file: onnxruntime or, where it is not installed, the reference of onnx; and its name."""
    session: Any
    if find_spec("onnxruntime") is not None:
        import onnxruntime

        session, by = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]), "onnxruntime"
    else:
        from onnx.reference import ReferenceEvaluator

        session, by = ReferenceEvaluator(str(path)), "onnx"
    return lambda x: torch.from_numpy(session.run(None, {INPUT: x.numpy()})[0]), f"{by} {version(by)}"
