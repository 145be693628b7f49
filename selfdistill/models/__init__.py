"""Models: factories by name or by ``module:function``, the model folder, and the modules put around a network.

`parse` makes a factory, `save` and `load` keep a model as safetensors with a small config. Loading a model imports none
of the training code.
"""

from .networks import cnn, mlp, resnet, vit
from .registry import MODELS, Build, parse
from .store import load, save

__all__ = ["MODELS", "Build", "cnn", "load", "mlp", "parse", "resnet", "save", "vit"]
