"""Warm start: a model takes over all layers of another run but the classifier, which is initialised anew."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import DataError
from .feature_taps import last_linear
from .registry import Build
from .store import model_folder, read_config, read_tensors


@dataclass(frozen=True)
class Started(Build):
    """A factory whose models begin with the layers of ``init``, the model folder of a finished run, but one."""

    init: str = ""
    classifier: str = ""  # its name in that run

    def __call__(self, **overrides: Any) -> nn.Module:
        """A fresh model with those layers.

        Raises:
            DataError: the run has a layer that this model lacks, or has in another size.
        """
        model = super().__call__(**overrides)
        if not self.wrap:  # what is wrapped has been begun already
            self._take_over(model)
        return model

    def _take_over(self, model: nn.Module) -> None:
        folder, own = Path(self.init), model.state_dict()
        tensors = {n: t for n, t in read_tensors(folder).items() if n.rpartition(".")[0] != self.classifier}
        for name, tensor in tensors.items():
            if name not in own or own[name].shape != tensor.shape:
                here = f"{tuple(own[name].shape)} here" if name in own else "no such layer here"
                raise DataError(
                    f"--init {folder.parent}: its {name} is {tuple(tensor.shape)}, and there is {here}; leave --model "
                    f"out to take {read_config(folder)}, or give a run on rows of this shape"
                )
        model.load_state_dict(tensors, strict=False)


def spec_of(run: str) -> str:
    """The model of a finished run, as ``--model`` takes it."""
    return str(read_config(model_folder(run)))


def started(build: Build, run: str) -> Started:
    """The same factory, whose models begin with the layers of a finished run.

    Raises:
        CheckpointError: there is no such model.
        DataError: it does not fit.
    """
    folder = model_folder(run)
    told = {field.name: getattr(build, field.name) for field in fields(build)}
    with torch.random.fork_rng(devices=[]):
        whole = read_config(folder)()
        last = last_linear(whole)
        classifier = next(name for name, part in whole.named_modules() if part is last)
        begun = Started(**told, init=str(folder), classifier=classifier)
        begun()  # does it fit?
    return begun
