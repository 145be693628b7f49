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
class WarmStartBuild(Build):
    """A factory of models that start from the weights of ``init``, the model folder of a finished run.

    The last layer, ``classifier``, is initialised anew.
    """

    init: str = ""
    classifier: str = ""  # the name of the last layer in that run

    def __call__(self, **overrides: Any) -> nn.Module:
        """A new model with those weights.

        Raises:
            DataError: the run has a layer that this model lacks, or has in another size.
        """
        model = super().__call__(**overrides)
        if not self.wrap:  # inside a wrapper the weights are already loaded
            self._load_layers(model)
        return model

    def _load_layers(self, model: nn.Module) -> None:
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


def warm_started(build: Build, run: str) -> WarmStartBuild:
    """The same factory for models that start from the weights of a finished run.

    Raises:
        CheckpointError: there is no such model.
        DataError: it does not fit.
    """
    folder = model_folder(run)
    options = {field.name: getattr(build, field.name) for field in fields(build)}
    with torch.random.fork_rng(devices=[]):
        model = read_config(folder)()
        last = last_linear(model)
        classifier = next(name for name, part in model.named_modules() if part is last)
        warm = WarmStartBuild(**options, init=str(folder), classifier=classifier)
        warm()  # does it fit?
    return warm
