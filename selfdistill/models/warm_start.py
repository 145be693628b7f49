"""Warm start: a model takes over all layers of another run but the classifier, which is initialised anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError
from ..io.expressions import one_line
from .feature_taps import last_linear
from .registry import Build
from .store import check_numbers, model_folder, read_config, read_tensors, read_weights


@dataclass(frozen=True)
class WarmStartBuild(Build):
    """A factory of models that start from the weights of ``init``: a model folder, or a file of weights.

    The last layer, ``classifier``, is initialised anew.
    """

    init: str = ""
    classifier: str = ""  # the name of the last layer of that model

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
        place, own = Path(self.init), model.state_dict()
        stored = _weights_for(own, place) if place.is_file() else read_tensors(place)
        tensors = {n: t for n, t in stored.items() if n.rpartition(".")[0] != self.classifier}
        for name, tensor in tensors.items():
            if name not in own or own[name].shape != tensor.shape:
                here = f"{tuple(own[name].shape)} here" if name in own else "no such layer here"
                if place.is_file():
                    whose, remedy = place, "give the --model that the weights are of"
                else:
                    whose, remedy = place.parent, f"leave --model out to take {read_config(place)}"
                raise DataError(
                    f"--init {whose}: its {one_line(name, 80)} is {tuple(tensor.shape)}, and there is {here}; "
                    f"{remedy}, or give weights for rows of this shape"
                )
        model.load_state_dict(tensors, strict=False)


def spec_of(run: str) -> str | None:
    """The model of a finished run, as ``--model`` takes it; a file of weights does not say which model it is of."""
    return None if Path(run).is_file() else str(read_config(model_folder(run)))


def warm_started(build: Build, run: str) -> WarmStartBuild:
    """The same factory for models that start from the weights of a finished run or of a file.

    Raises:
        CheckpointError: there is no such model or file.
        DataError: it does not fit.
    """
    weights = Path(run) if Path(run).is_file() else None
    place = weights or model_folder(run)
    options = {field.name: getattr(build, field.name) for field in fields(build)}
    with torch.random.fork_rng(devices=[]):
        model = build() if weights else read_config(place)()
        last = last_linear(model)
        classifier = next(name for name, part in model.named_modules() if part is last)
        if weights:
            _check_file(model, weights, classifier)
        warm = WarmStartBuild(**options, init=str(place), classifier=classifier)
        warm()  # does it fit?
    return warm


def _weights_for(own: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The weights of a file by the names of a model, without the prefixes that DDP and `torch.compile` set before."""
    tensors = read_weights(path)
    for prefix in ("module.", "_orig_mod.", "module."):  # a wrapper may be in the other
        if all(name.startswith(prefix) for name in tensors) and not tensors.keys() & own.keys():
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _check_file(model: nn.Module, path: Path, classifier: str) -> None:
    """Refuse weights that are no numbers, or that leave a layer beside the classifier as it was drawn."""
    tensors = _weights_for(model.state_dict(), path)
    check_numbers(model, tensors, path)
    needed = {name for name, _ in model.named_parameters() if name.rpartition(".")[0] != classifier}
    if missing := sorted(needed - tensors.keys()):
        raise DataError(
            f"--init {path}: it has no {missing[0]} (and {len(missing) - 1} more are missing); give the --model that "
            f"the weights are of; the file has {one_line(', '.join(list(tensors)[:3]), 120)}"
        )
