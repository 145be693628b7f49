"""The model folder: safetensors and a small config, saved and loaded without the training code."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..errors import CheckpointError, RecipeError, SelfdistillError
from ..io import trust
from ..io.expressions import Range, one_line
from ..io.files import DATA_CARD, FORMAT, PICKLED, check_format, remove_unfinished
from ..io.schema import Schema, find_fault, read_json, read_regular
from .networks import Scaled
from .peers import WRAPS
from .registry import Build, _tuples, check_source

TENSORS, CONFIG = "model.safetensors", "config.json"


POLICY = "policy.safetensors"  # in a model folder: a policy, which environments alone have a use for


#: Weights that PyTorch saved: they are read as tensors alone, and only where a person names the file.
TORCH_WEIGHTS = (".pt", ".pth")


_CONFIG = {
    "spec": str,
    "shape": [Range(0, 2**31)],
    "outputs": Range(0, 2**24),
    "options": dict,
    "scale?": ([float], None),
    "wrap?": frozenset({"", *WRAPS}),
}


def save(model: nn.Module, folder: Path, build: Build, extra: Mapping[str, object] | None = None) -> None:
    """Write ``model.safetensors`` and ``config.json`` into ``folder``; tied weights are stored once.

    Raises:
        CheckpointError: ``build()`` does not make such a model, ``extra`` is no JSON, or the disk refuses.
    """
    stored = _stored(model)
    build = build.having(**next((vars(m)["kept"] for m in model.modules() if "kept" in vars(m)), {}))
    with torch.random.fork_rng(devices=[]):  # saving must not change what the run draws next
        _compare(build(), stored, f"the model is not what {build} builds; save it with build.having(...)")
    config = {
        "spec": build.spec,
        "shape": build.shape,
        "outputs": build.outputs,
        "options": dict(build.options),
        **({"scale": build.scale} if build.scale else {}),
        **({"wrap": build.wrap} if build.wrap else {}),
    }
    clash = sorted({"format", *config} & set(extra or {}))
    if clash:
        raise CheckpointError(f"{', '.join(clash)} in extra is the model's own; use another key")
    try:
        text = json.dumps({"format": FORMAT, **config, **(extra or {})}, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{CONFIG} cannot hold options or extra of {build} ({one_line(error)})") from error
    folder = Path(folder)
    unfinished = [folder / f".{name}.{os.getpid()}.tmp" for name in (TENSORS, CONFIG)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(folder)
        safetensors.torch.save_file(stored, unfinished[0])
        unfinished[1].write_text(text)
        unfinished[0].chmod(unfinished[1].stat().st_mode & 0o777)  # the safetensors library lets nobody else read it
        for path, name in zip(unfinished, (TENSORS, CONFIG), strict=True):
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            path.replace(folder / name)
    except (OSError, SafetensorError) as error:
        for path in unfinished:
            with suppress(OSError):
                path.unlink()
        raise CheckpointError(
            f"the model cannot be written to {folder} ({one_line(error)}); free space there"
        ) from error


def load(folder: Path | str, trust_code: bool = False) -> nn.Module:
    """The model of a folder, on the CPU and in eval mode; one of values returns them in the unit of the target.

    Args:
        folder: the model folder.
        trust_code: whether a "module:function" that the folder names may be run; code in the folder never is.

    Raises:
        CheckpointError: the folder holds no such model, names code that is not trusted, or holds something foreign,
            damaged or pickled.
    """
    folder = Path(folder)
    with trust.trust_code(trust_code):
        build = read_config(folder)
    tensors = read_tensors(folder)
    try:
        with torch.random.fork_rng(devices=[]):  # nor must loading change it
            model = build()
    except SelfdistillError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    _compare(model, tensors, f"{folder / TENSORS} does not fit {build}")
    check_numbers(model, tensors, folder / TENSORS)
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(kinds) == 1:
        model.to(kinds.pop())  # half or double stays what it was
    model.load_state_dict(tensors, strict=False)  # a tied weight has only one of its names in the file
    return (Scaled(model, *build.scale) if build.scale else model).eval()


def _stored(model: nn.Module) -> dict[str, Tensor]:
    """The state to write: contiguous copies on the CPU, each tied weight under its first name alone."""
    stored, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"state {name!r} of the model is a {type(tensor).__name__}; only tensors are stored")
        place = _place(tensor)
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        stored[name] = tensor.detach().to("cpu", copy=True).contiguous()
    return stored


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Where a tensor's numbers lie; equal for tied weights."""
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _compare(model: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    own = model.state_dict()
    names = {_place(own[name]) for name in tensors.keys() & own.keys()}
    faults = [f"{name} is missing" for name, t in own.items() if name not in tensors and _place(t) not in names]
    faults += [f"{name} is unknown" for name in tensors if name not in own]
    faults += [
        f"{name} has shape {tuple(tensor.shape)}, not {tuple(own[name].shape)}"
        for name, tensor in tensors.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if faults:
        more = f" and {len(faults) - 2} more" if len(faults) > 2 else ""
        raise CheckpointError(f"{what} ({'; '.join(faults[:2])}{more})")


def check_numbers(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse numbers of another kind than the model's, and weights that are no numbers."""
    weights = {name for name, _ in model.named_parameters()}  # a buffer may be infinite: a causal mask
    for name, own in model.state_dict().items():
        tensor = tensors.get(name, own)
        if (tensor.is_floating_point(), tensor.is_complex()) != (own.is_floating_point(), own.is_complex()):
            raise CheckpointError(f"{path}: {name} holds {tensor.dtype}, not {own.dtype}; train that model again")
        if name in weights and not bool(torch.isfinite(tensor.float() if tensor.is_floating_point() else tensor).all()):
            raise CheckpointError(f"{path}: {name} holds a number that is nan or infinite; train that model again")


def read_config(folder: Path) -> Build:
    path = folder / CONFIG
    try:
        config = read_json(path)
    except OSError as error:
        raise CheckpointError(f"{folder} is no model folder: it has no readable {CONFIG} ({error.strerror})") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged or foreign: it is not JSON ({one_line(error, 80)})") from error
    check_format(path, config.get("format") if isinstance(config, dict) else None)
    spec, scale, wrap = config.get("spec"), config.get("scale"), config.get("wrap", "")
    if isinstance(spec, str):
        check_source(spec, path, home(folder))
    fault = find_fault(config, _CONFIG)
    if fault is None and scale is not None and not (len(scale) == 2 and scale[1] > 0):
        fault = "scale is a centre and a positive number"
    if fault:
        raise CheckpointError(f"{path} is damaged or foreign: spec, shape, outputs and options are needed ({fault})")
    build = Build(str(spec), _tuples(config["shape"]), config["outputs"], scale=_tuples(scale), wrap=wrap)
    try:
        build = build.having(**config["options"])
        build.check_memory()
    except RecipeError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return build


def read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / TENSORS
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED)
    if pickled:
        raise CheckpointError(f"{folder} holds pickled content ({pickled[0]}), which can run code; remove it")
    return read_weights(path)


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a file of weights: safetensors, or a state dict that PyTorch saved as ``.pt`` or ``.pth``.

    PyTorch reads the latter with ``weights_only=True``, which builds tensors and plain containers and runs no code.

    Args:
        path: the file; a state dict in it may lie under ``state_dict`` or ``model``.

    Returns:
        The tensors by name, on the CPU.

    Raises:
        CheckpointError: there is no such file, it may not be read, or it holds something else than tensors by name.
    """
    path = Path(path)
    foreign = path.suffix in TORCH_WEIGHTS
    try:
        read_regular(path, 1)  # safetensors says of a file that may not be read that there is none
        return _read_state_dict(path) if foreign else safetensors.torch.load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} has no {path.name}") from error
    except PermissionError as error:
        raise CheckpointError(f"{path} may not be read ({error.strerror}); ask its owner for `chmod a+r`") from error
    except CheckpointError:
        raise
    except Exception as error:  # a foreign pickle raises what it likes: its reader is a small machine of its own
        if foreign:
            raise CheckpointError(
                f"{path} is no state dict of tensors alone ({type(error).__name__}); save one by "
                f"torch.save(model.state_dict(), FILE), or by safetensors"
            ) from error
        raise CheckpointError(
            f"{path} is damaged, pickled or foreign: no safetensors ({one_line(error, 80)})"
        ) from error


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns of a TorchScript archive before it refuses it
        state = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(state, dict):
        state = next((state[key] for key in ("state_dict", "model") if isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{path} holds a {type(state).__name__} without weights; it must hold a state dict")
    for name, tensor in state.items():
        if not (isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout == torch.strided):
            what = "a sparse tensor" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
            raise CheckpointError(
                f"{path}: {one_line(repr(name), 80)} is {what}; a state dict holds dense tensors by name alone"
            )
    return {name: tensor.detach() for name, tensor in state.items()}


ESTIMATOR = "estimator.skops"  # in a model folder: a learner of scikit-learn, which no network's config describes


def load_model(folder: str | Path, trust_code: bool = False) -> nn.Module:
    """The model of a run folder or of its ``model`` folder, in eval mode.

    Args:
        folder: the run folder or the model folder.
        trust_code: whether a "module:function" that the folder names may be run; see `load`.

    Raises:
        CheckpointError: there is no model there, it names code that is not trusted, or it is damaged or of a foreign
            format.
    """
    return load(model_folder(folder), trust_code)


def model_card(folder: str | Path, schema: Schema = Any) -> dict[str, Any]:
    """The description of a model: shape, outputs, classes and, for tables, columns.

    Args:
        folder: the run folder or the model folder.
        schema: what must be in it beside the shape; see `io.schema`.

    Raises:
        CheckpointError: there is no model there, or the description lacks something.
    """
    path = model_folder(folder)
    card: dict[str, Any] = {}
    for name in (DATA_CARD, CONFIG):
        try:
            card |= read_json(path / name, {"format?": Any})
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            why = one_line(error, 120)
            raise CheckpointError(f"{path / name} cannot be read ({why}); train that model again") from error
        check_format(path / name, card.get("format"))
    if "shape" not in card:
        raise CheckpointError(f"{path} holds no model (it has no {CONFIG}); give the folder of a finished run")
    if fault := find_fault(card, {"shape": [Range(0, 2**31)]}) or find_fault(card, schema):
        raise CheckpointError(f"{path / DATA_CARD} is damaged or foreign ({fault}); train that model again")
    return card


def home(folder: Path) -> Path:
    """The run folder that a model folder belongs to; the model folder itself where it is of no run."""
    return folder.parent if (folder.parent / "run.json").exists() else folder


def model_folder(folder: str | Path) -> Path:
    """The model folder of a finished run, or of the path of a model folder itself."""
    path = Path(folder)
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file, which does not say what model it is of; give the folder of a run or model "
            "(`--init FILE --model SPEC` begins from the weights of a file)"
        )
    if not path.is_dir():
        raise CheckpointError(f"there is no folder {path}; give the folder of a finished run, or its model folder")
    if (path / "run.json").exists() and not (path / "model").is_dir():
        raise CheckpointError(f"{path} has no model yet; finish it by `selfdistill resume {path}`")
    place = path / "model" if (path / "model").is_dir() else path
    if (place / POLICY).exists():
        raise CheckpointError(
            f"{path} holds a policy, which environments alone have a use for: `selfdistill predict {path}` plays it, "
            "and --teacher lets it teach"
        )
    return place
