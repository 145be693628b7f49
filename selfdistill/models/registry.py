"""The registry of models: a name or ``module:function`` with its arguments becomes a factory."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ..errors import RecipeError, SelfdistillError
from ..io.expressions import check_arguments, nearest, one_line, parse_expression
from ..io.files import free_memory
from ..io.trust import require_trust, split_function
from .networks import cnn, mlp, resnet, vit
from .peers import WRAPS

#: The models by name.
MODELS: dict[str, Callable[..., nn.Module]] = {"mlp": mlp, "cnn": cnn, "resnet": resnet, "vit": vit}


_PLACED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Build:
    """A factory of one kind of model: every call makes a fresh one, drawn from torch's global generator.

    ``spec`` is "cnn" or "module:function"; ``shape`` is that of one row of input, ``outputs`` the width of
    the result, ``options`` its further arguments. With ``scale`` (center, scale) the model of a finished run
    gives values in the unit of the target; training uses standardised ones. ``wrap`` names one of `heads.WRAPS`.

    >>> import torch
    >>> build = parse("mlp(width=8)", (4,), 3)
    >>> str(build.having(exits=True)), sorted(build(exits=True)(torch.zeros(1, 4)))
    ('mlp(width=8, exits=True)', ['exits', 'feature', 'features', 'logits'])
    """

    spec: str
    shape: tuple[int, ...]
    outputs: int
    options: tuple[tuple[str, Any], ...] = ()
    scale: tuple[float, float] | None = None
    wrap: str = ""

    def __call__(self, **overrides: Any) -> nn.Module:
        """A fresh model.

        Raises:
            RecipeError: the function does not exist, refuses its arguments, or returns something else.
        """
        if self.wrap:
            return WRAPS[self.wrap](partial(replace(self, wrap=""), **overrides))
        function = function_of(self.spec)
        args = [self.shape, self.outputs] if _takes_shape(function, self.spec) else []
        options = {**dict(self.options), **overrides}
        check_arguments(self.spec, function, args, options)
        try:
            model = function(*args, **options)
        except SelfdistillError:
            raise
        except Exception as error:  # another's code: whatever it raises is about this model
            what = f"{type(error).__name__}: {one_line(error)}"
            raise RecipeError(f"model {self} cannot be built for rows of shape {self.shape} ({what})") from error
        if not isinstance(model, nn.Module):
            raise RecipeError(f"model {self} returned a {type(model).__name__}; it must return a torch.nn.Module")
        return model

    def check_memory(self) -> None:
        """Refuse a model of this package whose weights are larger than the memory; nothing is allocated.

        Raises:
            RecipeError: it is, or its options are out of their range.
        """
        if self.spec not in MODELS:
            return
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = replace(self, wrap="")()
        needed, free = sum(p.numel() * p.itemsize for p in model.parameters()), free_memory()
        if needed > free:
            raise RecipeError(
                f"the weights of {one_line(self, 80)} for rows of shape {self.shape} take {needed / 1e9:,.0f} GB and "
                f"{free / 1e9:,.1f} GB of memory are free; make it smaller"
            )

    def accepts(self, name: str) -> bool:
        """Whether the function has an option of this name; a bare ``**options`` does not count."""
        return name in _options_of(function_of(self.spec), self.spec).parameters

    def default(self, name: str) -> Any:
        """The value of this option."""
        return dict(self.options).get(name, _options_of(function_of(self.spec), self.spec).parameters[name].default)

    def having(self, **options: Any) -> Build:
        """The same factory with these options: what a model built with overrides is saved with."""
        merged = {**dict(self.options), **{name: _tuples(value) for name, value in options.items()}}
        return replace(self, options=tuple(merged.items()))

    def wrapped(self, wrap: str, outputs: int) -> Build:
        """The same factory with ``outputs`` for each one it has now, and something around its models."""
        return replace(self, wrap=wrap, outputs=outputs * self.outputs)

    def __str__(self) -> str:
        options = [f"{k}={v!r}" for k, v in self.options if not isinstance(v, dict)]  # an encoder's config is long
        return self.spec + (f"({', '.join(options)})" if options else "")


def parse(spec: str, shape: Iterable[int], outputs: int) -> Build:
    """Read "mlp", "cnn(width=64)", "module:function", "path/to/file.py:function", or a pretrained encoder of texts or
    images: "gt-minilm", "efficientnet-lite0", the folder of a model of transformers.

    A user's function is called with (shape, outputs) if its signature asks for two positional arguments or
    names them so, otherwise with none. Modules are also looked for in the current folder.

    Raises:
        RecipeError: no such model, module, function or option; the message has the nearest names.
    """
    shape = tuple(int(side) for side in shape)
    foreign = split_function(spec)
    if foreign is None:
        name, options = _read_known(spec)
        build = Build(name, shape, outputs).having(**options)
        build.check_memory()
        return build
    place, function, given = foreign
    name = f"{place}:{function}"
    reader = _Options(_options_of(function_of(name), name))
    options = parse_expression(function + given, {function: reader}, kind="model")
    return Build(name, shape, outputs).having(**options)


def check_source(spec: str, file: Path, folder: Path) -> None:
    """Refuse the ``spec`` of a `Build` that a file names, unless it is a model of this package or trusted.

    Args:
        spec: the model, without options.
        file: the file that names it.
        folder: the run or model folder that the file belongs to.

    Raises:
        CheckpointError: see `io.trust.require_trust`.
    """
    from . import image_encoder, text_encoder

    place, _, name = spec.rpartition(":")
    if place and spec not in (text_encoder.SPEC, image_encoder.SPEC):
        require_trust(place, name, file, folder)


class _Options:
    """Stands in for a model function while its text is read: takes its options and hands them back."""

    def __init__(self, signature: inspect.Signature) -> None:
        self.__signature__ = signature

    def __call__(self, **options: Any) -> dict[str, Any]:
        return options


def _read_known(spec: str) -> tuple[str, dict[str, Any]]:
    name = spec.partition("(")[0].strip()
    from . import image_encoder, text_encoder  # late: nothing that is saved needs it but pretrained models

    if name not in MODELS and (image := image_encoder.named(spec)) is not None:
        return image_encoder.SPEC, image
    if name not in MODELS and (text := text_encoder.named(spec)) is not None:
        return text_encoder.SPEC, text
    if re.search(r"[./\\:]", name):
        raise RecipeError(f"model {one_line(spec, 80)!r} names no function; write module:function or file.py:function")
    readers = {known: _Options(_options_of(function, known)) for known, function in MODELS.items()}
    return name, parse_expression(spec, readers, kind="model")


def _options_of(function: Callable[..., Any], spec: str) -> inspect.Signature:
    """The function's signature without what it is always given; all that is left goes by name."""
    parameters = _signature(function).parameters.values()
    given = [p for p in parameters if p.kind in _PLACED][:2] if _takes_shape(function, spec) else []
    named = [p for p in parameters if p not in given and p.kind in (*_NAMED, inspect.Parameter.VAR_KEYWORD)]
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature([p.replace(kind=keyword) if p.kind in _NAMED else p for p in named])


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except (ValueError, TypeError):
        return inspect.Signature()  # some built-ins do not say: called without arguments


def _takes_shape(function: Callable[..., Any], spec: str) -> bool:
    parameters = _signature(function).parameters.values()
    positional = [p for p in parameters if p.kind in _PLACED]
    required = [p.name for p in positional if p.default is inspect.Parameter.empty]
    any_number = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
    if len(required) == 2 or [p.name for p in positional[:2]] == ["shape", "outputs"]:
        return True
    if any_number and not positional:
        return True
    if required:
        form = f"{spec}({', '.join(required)})"
        raise RecipeError(f"model {form} must take (shape, outputs) or no required positional argument")
    return False


def function_of(spec: str) -> Callable[..., nn.Module]:
    if spec in MODELS:
        return MODELS[spec]
    place, _, name = spec.rpartition(":")
    if not place:
        raise RecipeError(f"unknown model {spec!r}; known: {', '.join(sorted(MODELS))}, or module:function")
    module = load_module(place)
    function = getattr(module, name, None)
    if not callable(function):
        public = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        close = nearest(name, public) or ", ".join(sorted(public)[:8]) or "none"
        raise RecipeError(f"{place} has no function {name!r}; nearest: {close}")
    return function  # type: ignore[no-any-return]


def load_module(place: str) -> ModuleType:
    """The module of a name or of a Python file, found as from a script in the current folder.

    Raises:
        RecipeError: there is none, or it fails while it is loaded.
    """
    return _file_module(Path(place)) if place.endswith(".py") else _named_module(place)


def _named_module(name: str) -> ModuleType:
    with _search(Path.cwd()):
        try:
            return importlib.import_module(name)
        except Exception as error:
            missing = (error.name or "") if isinstance(error, ModuleNotFoundError) else None
            if missing is not None and (name == missing or name.startswith(missing + ".")):
                close = nearest(name, [p.stem for p in Path.cwd().glob("*.py")])
                close = f"; nearest: {close}" if close else ""
                raise RecipeError(f"there is no module {name!r}, installed or in the current folder{close}") from error
            raise RecipeError(_failed(name, error)) from error


def _file_module(path: Path) -> ModuleType:
    """The module of a file, once per version of the file: its name carries a hash of place, time and size."""
    try:
        status = path.resolve().stat()
    except OSError as error:
        close = nearest(path.name, [p.name for p in path.parent.glob("*.py")])
        close = f"; nearest: {close}" if close else ""
        raise RecipeError(f"there is no file {path} with a model (paths start in the current folder){close}") from error
    mark = f"{path.resolve()}|{status.st_mtime_ns}|{status.st_size}"
    name = f"selfdistill_user_{zlib.crc32(mark.encode()):08x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise RecipeError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses in the file look themselves up here
    with _search(path.resolve().parent):
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise RecipeError(_failed(path, error)) from error
    return module


@contextmanager
def _search(folder: Path) -> Iterator[None]:
    """Look for modules in a folder as well, as Python does for the folder of a script."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


def _failed(place: object, error: Exception) -> str:
    return f"{place} failed while it was loaded ({type(error).__name__}: {one_line(error)})"


def _tuples(value: Any) -> Any:
    """Lists as tuples: what JSON gives back equals what was written, and can be hashed."""
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value
