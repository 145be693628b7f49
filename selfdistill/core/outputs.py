"""outputs"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SpaceError

#: head -> space. A name that is not here is taken for logits.
SPACE_OF_HEAD: dict[str, str] = {
    "logits": "logits",  # (rows, classes)
    "exits": "logits",  # (rows, exits, classes): shallow classifiers, shallow to deep
    "peers": "logits",  # (rows, peers, classes)
    "ensemble": "logits",  # (rows, classes): log of the peers' mean probability
    "teacher": "logits",  # (rows, classes): of the network that is trained beside the student, and labels for it
    "values": "values",  # (rows, outputs)
    "peer_values": "values",  # (rows, peers, outputs)
    "exit_values": "values",  # (rows, exits, outputs)
    "gaussian": "gaussian",  # (rows, 2): mean and log variance
    "peer_gaussians": "gaussian",  # (rows, peers, 2)
    "ensemble_gaussian": "gaussian",  # (rows, 2): of the peers' mixture, by moment matching
    "ranks": "ranks",  # (rows, 2): of two rows, the softmax of the difference says which has the larger value
    "feature": "features",  # (rows, width): what the deepest classifier sits on
    "features": "features",  # (rows, exits, width)
    "levels": "features",  # (rows, classifiers, width)
    "projection": "features",  # (rows, width): of the features, by layers that are not kept
    "prediction": "features",  # (rows, width): of the projection
    "prototypes": "features",  # (rows, prototypes): scores, of as many as one likes
    "patch_prototypes": "features",  # (rows, patches, prototypes): the same of each patch of an image
    "dense": "logits",  # read from a layer, ``dense:layer``, as is the next; all others say features (`features`)
    "classify": "logits",
}


MAIN = ("logits", "values", "gaussian")


_OWN = ("joint",)  # logits of each copy of a row, of a class and of which copy it is: M classes for each of the data's


_SEVERAL = ("exits", "peers", *_OWN)  # logits of several distributions for a row


#: head of classes -> the same head where the target is a value. A model may call both by the first name.
VALUES = {"logits": "values", "peers": "peer_values", "exits": "exit_values"}


_ALSO = {values: logits for logits, values in VALUES.items()}


class Composite(nn.Module):
    """A module whose forward pass is several: a row goes through ``each`` members, in training in ``copies``."""

    copies: int = 1

    @property
    def forward_passes(self) -> int:
        """How many members a row goes through."""
        return 1


class ModelWrapper:
    """Prepares a model factory for what a method trains: peers, exits, heads beside the model. By default nothing.

    ``maps``: it wants a model whose stages say maps; ``patches``, one that is a transformer on patches of images.
    """

    @property
    def peers(self) -> int:
        """How many networks a row goes through."""
        return 1

    @property
    def copies(self) -> int:
        """In how many ways a row is shown in training."""
        return 1

    @property
    def warm(self) -> bool:
        """Whether a generation begins with the weights of the last one that was accepted."""
        return False

    @property
    def maps(self) -> bool:
        return False

    @property
    def patches(self) -> bool:
        return False

    def __call__(self, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        """The factory of the models that are trained."""
        return build

    def single(self, build: Any) -> Any:
        """The factory of the final model, from the factory that was wrapped."""
        return build

    def of_values(self) -> ModelWrapper:
        """The same for models of values.

        Raises:
            SpaceError: it has none.
        """
        return self

    def lacking(self, model: nn.Module) -> str | None:
        """Why a model that it made has not the heads it is for; None if it has."""
        return None


def space_of(head: str) -> str:
    """The space of a head's output.

    >>> space_of("exits"), space_of("feature"), space_of("vector:layer4")
    ('logits', 'features', 'features')
    """
    how, read, _ = head.partition(":")
    return SPACE_OF_HEAD.get(how, "features" if read else "logits")


def element_shape(output: Tensor) -> torch.Size:
    """Elements of an output: everything but the components, which come last."""
    return output.shape[:-1]


def one_distribution(head: str) -> bool:
    """Does the head say one distribution over the classes for each row?

    >>> one_distribution("logits"), one_distribution("exits"), one_distribution("values")
    (True, False, False)
    """
    return head not in _SEVERAL and space_of(head) == "logits"


def tells_copies(head: str) -> bool:
    """Are its classes others than the data's: a class together with which copy of the row it is?

    >>> tells_copies("joint"), tells_copies("logits")
    (True, False)
    """
    return head in _OWN


def output_of(outputs: Mapping[str, Tensor], head: str) -> Tensor:
    """One head of a model's outputs; a bare tensor (named ``""``) is the main head, whatever it is called."""
    if head in outputs:
        return outputs[head]
    if _ALSO.get(head) in outputs:
        return outputs[_ALSO[head]]
    if head in MAIN and "" in outputs:
        return outputs[""]
    have = ", ".join(name or "one unnamed tensor" for name in outputs)
    raise SpaceError(f"the model has no output {head!r} (it returns: {have}); build it with that head or use another")
