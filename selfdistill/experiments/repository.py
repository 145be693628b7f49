"""Repositories of models: a finished model is pushed to the Hugging Face hub, or to a folder in its place, and pulled.

Which files go is a list (`FILES`), so that no row of the data does. The client of the hub was never run against the
real hub here: tests give it one that holds its repositories in a folder.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol

from ..errors import CheckpointError, DataError
from ..io import trust
from ..io.expressions import one_line
from ..io.files import DATA_CARD, remove_unfinished, write
from ..io.schema import read_json
from ..models.store import ESTIMATOR, model_folder
from .run import load

#: what a repository may hold; anything else in a model folder stays where it is, and is not downloaded
FILES = (
    "README.md",
    "config.json",
    "data.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "policy.safetensors",
    "estimator.skops",
    "preprocessor.skops",
    "selfdistill.json",
    "generation_config.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/added_tokens.json",
)

#: what of the card of the data goes: not its name, its fingerprint, or what was found out about its rows
CARD = (
    "format",
    "kind",
    "task",
    "shape",
    "classes",
    "half",
    "flips",
    "augment",
    "text",
    "tokenizer",
    "columns",
    "kinds",
    "column_types",
)

#: learners of scikit-learn that keep the rows they were fitted on
KEEPERS = re.compile(
    rb"sklearn\.(neighbors|gaussian_process|kernel_ridge|semi_supervised\._label_propagation)|"
    rb"\"(Nu)?SV[CR]\"|\"OneClassSVM\""
)

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")

_PURPOSE = {
    ("image", "classify"): "image-classification",
    ("table", "classify"): "tabular-classification",
    ("table", "regress"): "tabular-regression",
    ("text", "classify"): "text-classification",
}


class Hub(Protocol):
    """Where repositories are."""

    def upload(self, folder: Path, name: str, private: bool) -> str:
        """Make the repository, if it is new, and write these files into it; returns its address."""

    def download(self, name: str, folder: Path) -> None:
        """Write those of `FILES` that the repository has into the folder."""


class HuggingFaceHub(Hub):
    """The Hugging Face hub, by its own client, which knows who is logged in.

    Raises:
        DataError: its client is not installed.
    """

    def __init__(self) -> None:
        try:
            import huggingface_hub
        except ImportError:
            raise DataError("push and pull need huggingface_hub: pip install 'selfdistill[language]'") from None
        self.client: Any = huggingface_hub

    def upload(self, folder: Path, name: str, private: bool) -> str:
        api = self.client.HfApi()
        address = str(api.create_repo(name, private=private, exist_ok=True))
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Push a model of selfdistill")
        return address

    def download(self, name: str, folder: Path) -> None:
        self.client.snapshot_download(name, local_dir=folder, allow_patterns=list(FILES))


class FolderHub(Hub):
    """A folder of repositories, such as one on a shared disk: ``owner/name`` is a folder in it."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def upload(self, folder: Path, name: str, private: bool) -> str:
        place = self.root / name
        shutil.copytree(folder, place, dirs_exist_ok=True)
        if private:
            place.chmod(0o700)
        return str(place)

    def download(self, name: str, folder: Path) -> None:
        _copy(self.root / name, folder)


def push(run: str | Path, name: str, hub: Hub, public: bool = False) -> str:
    """Push the final model of a run, private unless ``public``.

    Args:
        run: The run folder or its model folder.
        name: ``owner/name``.
        hub: Where to.
        public: Whether everyone may read it, if the repository is new.

    Returns:
        The address of the repository.

    Raises:
        CheckpointError: there is no model.
        DataError: the name is none, the model keeps rows of its data, or the hub refuses.
    """
    _check_name(name)
    place = model_folder(run)
    if (place / ESTIMATOR).exists() and _keeps_rows(place / ESTIMATOR):
        raise DataError(
            f"{place / ESTIMATOR} holds a learner that keeps the rows it was fitted on, and rows are never pushed; "
            "train another one, such as --model boosting"
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        if not _copy(place, folder):
            raise CheckpointError(f"{place} holds no model; give the folder of a finished run")
        _write_cards(folder)
        try:
            return hub.upload(folder, name, not public)
        except Exception as error:  # the client of the hub has errors of its own, and those of the network
            raise DataError(f"{name} cannot be pushed ({one_line(error, 160)}); is `hf auth login` done?") from error


def pull(name: str, folder: str | Path, hub: Hub) -> Path:
    """Pull a model into a new folder, and load it once, without running any code of it.

    Args:
        name: ``owner/name``.
        folder: The folder to make; `selfdistill.load` and `predict` take it.
        hub: Where from.

    Raises:
        DataError: the folder is not empty, or the hub has no such repository.
        CheckpointError: it holds no model of selfdistill, or one that names code; the folder is removed again.
    """
    _check_name(name)
    place = Path(folder)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise DataError(f"{place} is not empty; give a new folder")
    try:
        hub.download(name, place)
    except Exception as error:  # as above
        raise DataError(f"{name} cannot be pulled ({one_line(error, 160)}); check the name and your access") from error
    shutil.rmtree(place / ".cache", ignore_errors=True)  # of the client
    try:
        with trust.trust_code(False):
            load(place)
    except (CheckpointError, DataError):
        shutil.rmtree(place, ignore_errors=True)
        raise
    return place


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or ".." in name:
        raise DataError(f"{one_line(name, 60)!r} names no repository; give owner/name")


def _copy(source: Path, folder: Path) -> list[str]:
    """Copy those of `FILES` that a folder has, and no links; their names.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"there is no {source}")
    remove_unfinished(source)
    found = []
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.is_file() and not path.is_symlink() and any(fnmatch(name, one) for one in FILES):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
            found.append(name)
    return found


def _write_cards(folder: Path) -> None:
    """Leave of the card of the data what new rows are read with, and name the model's purpose in the model card."""
    purpose = "text-generation"
    if (folder / DATA_CARD).exists():
        card = read_json(folder / DATA_CARD, {"kind?": str, "task?": str})
        write(folder / DATA_CARD, json.dumps({key: card[key] for key in CARD if key in card}, indent=2) + "\n")
        purpose = _PURPOSE.get((card.get("kind", "table"), card.get("task", "")), "other")
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else "---\nlibrary_name: selfdistill\n---\n"
    if text.startswith("---\n") and "\npipeline_tag:" not in text:
        text = text.replace("---\n", f"---\npipeline_tag: {purpose}\n", 1)
    write(readme, text)


def _keeps_rows(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return KEEPERS.search(archive.read("schema.json")) is not None
