"""Images from IDX files and from folders: read, made one size and one mode, as uint8 tensors."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif"})


UNLABELLED = ("unlabelled", "unlabeled")


AUDIT = ("audit", "val", "valid", "validation")


FASHION = "fashion-mnist"


FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


DEBIAN = Path("/usr/share/datasets")  # where the package dataset-fashion-mnist puts its folder


IDX_STEMS = ("train-images", "train-labels", "t10k-images", "t10k-labels")


class Pictures(NamedTuple):
    """Images and labels as read, before any split is drawn."""

    x: Tensor  # (n, channels, height, width) uint8
    y: Tensor  # (n,) int64, -1 for unlabelled images
    classes: tuple[str, ...]
    test: Tensor | None  # sample ids, where the source itself names its test images
    audit: Tensor | None = None  # likewise
    names: tuple[str, ...] = ()  # the file of each, where they are files


# ---- IDX files -------------------------------------------------------------------------------------


def idx_files(folder: Path) -> dict[str, Path]:
    """Those of the four IDX files that ``folder`` holds, packed or not, by stem ("train-images", ...)."""
    files: dict[str, Path] = {}
    for stem in IDX_STEMS:
        digit = 3 if stem.endswith("images") else 1
        for end in (f"-idx{digit}-ubyte", f".idx{digit}-ubyte"):
            for packed in ("", ".gz"):
                path = folder / f"{stem}{end}{packed}"
                if path.is_file():
                    files.setdefault(stem, path)
    return files


def fashion_folder() -> Path:
    """Where Fashion-MNIST lies: under $SELFDISTILL_DATA, else where Debian's package puts it.

    Raises:
        DataError: neither holds all four files.
    """
    root = os.environ.get("SELFDISTILL_DATA")
    folders = [Path(root) / FASHION] if root else []
    folders.append(DEBIAN / FASHION)
    for folder in folders:
        if len(idx_files(folder)) == len(IDX_STEMS):
            return folder
    raise DataError(
        f"{FASHION}: no four IDX files in {' or '.join(map(str, folders))}; install the Debian package "
        f"dataset-fashion-mnist, or set SELFDISTILL_DATA to the folder that holds {FASHION}/"
    )


def read_idx(folder: Path) -> Pictures:
    """The images of four IDX files; the t10k files are the test split (format: LeCun et al., MNIST).

    Raises:
        DataError: a file is missing, damaged, or its labels do not match its images.
    """
    files = idx_files(folder)
    missing = [stem for stem in IDX_STEMS if stem not in files]
    if missing:
        raise DataError(f"{folder}: no file {missing[0]}-idx*-ubyte(.gz); all four IDX files are needed")
    images, labels = [], []
    for part in ("train", "t10k"):
        images.append(_read_idx(files[f"{part}-images"], dimensions=3))
        labels.append(_read_idx(files[f"{part}-labels"], dimensions=1))
        if len(images[-1]) != len(labels[-1]):
            raise DataError(
                f"{files[f'{part}-labels']}: {len(labels[-1])} labels for {len(images[-1])} images; "
                "fetch both files again"
            )
    if images[0].shape[1:] != images[1].shape[1:]:
        raise DataError(f"{folder}: training and test images differ in size; fetch the files again")
    x = torch.from_numpy(np.concatenate(images))[:, None]
    y = torch.from_numpy(np.concatenate(labels)).long()
    is_fashion = folder.resolve().name == FASHION and int(y.max()) < len(FASHION_CLASSES)
    classes = FASHION_CLASSES if is_fashion else tuple(str(label) for label in range(int(y.max()) + 1))
    return Pictures(x, y, classes, torch.arange(len(images[0]), len(y)))


def _read_idx(path: Path, dimensions: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch the file again") from None
    start = 4 + 4 * dimensions
    if raw[:4] != bytes([0, 0, 8, dimensions]) or len(raw) < start:
        raise DataError(f"{path}: not an IDX file of bytes in {dimensions} dimension(s); fetch the file again")
    shape = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, start, 4)]
    if len(raw) - start != int(np.prod(shape)) or 0 in shape:
        raise DataError(f"{path}: {len(raw) - start} bytes where {shape} are announced; fetch the file again")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


# ---- folders of image files ------------------------------------------------------------------------


def pillow() -> Any:
    """Pillow's Image module, or the name of the extra that brings it."""
    try:
        from PIL import Image
    except ImportError:
        raise DataError("reading images needs Pillow: pip install 'selfdistill[images]'") from None
    return Image


def find_images(folder: Path) -> list[Path]:
    """All image files below ``folder``, at any depth, in the order of their names; hidden ones are left out.

    Raises:
        DataError: there is none.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images; give the path of an existing one")
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not paths:
        raise DataError(f"{folder}: no image in it; add some ({', '.join(sorted(SUFFIXES))})")
    return paths


def read_images(paths: Sequence[Path], shape: tuple[int, int, int]) -> Tensor:
    """Images as (n, channels, height, width) uint8, each resized to ``shape`` = (channels, height, width).

    Raises:
        DataError: an image cannot be read (its path is named), or Pillow is not installed.
    """
    library = pillow()
    channels, height, width = shape
    pixels = np.empty((len(paths), height, width, channels), np.uint8)
    for row, path in enumerate(paths):
        with _open(library, path) as image:
            picture = _upright(image, "L" if channels == 1 else "RGB", path)
            picture = picture.resize((width, height), library.Resampling.BILINEAR)
            pixels[row] = np.asarray(picture).reshape(height, width, channels)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def all_grey(paths: Sequence[Path]) -> bool:
    """True if not one of these images has colour, by its mode; files are opened but not decoded."""
    library = pillow()
    for path in paths:
        with _open(library, path) as image:
            if image.mode not in {"1", "L", "LA"} and not image.mode.startswith("I"):
                return False
    return True


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(f"{path}: not a readable image ({reason}); repair or remove it")


def _open(library: Any, path: Path) -> Image.Image:
    try:
        image: Image.Image = library.open(path)
    except (OSError, ValueError, SyntaxError, library.DecompressionBombError) as error:
        raise _unreadable(path, error) from None
    return image


def _upright(image: Image.Image, mode: str, path: Path) -> Image.Image:
    """The decoded first frame, turned as its EXIF tag says, in the wanted mode."""
    from PIL import Image, ImageOps

    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip, not scale
            upright = Image.fromarray((np.asarray(upright).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
        return upright.convert(mode)
    except (OSError, ValueError, SyntaxError) as error:
        raise _unreadable(path, error) from None


# ---- a folder of images by class -------------------------------------------------------------------


def read_folder(root: Path, unlabelled: Path | None, size: int, labelled: bool = True) -> Pictures:
    """Images by class: each sub-folder is a class; ``train/``, ``test/`` and ``val/`` are splits if present.

    A folder called ``unlabelled`` in or beside ``root`` holds images without a class; ``unlabelled`` names
    another one. Images become RGB unless every one is grey, and ``size`` x ``size`` pixels. Unless they must be
    ``labelled``, the images may lie in ``root`` itself: then no class is known, and all labels are -1.

    Raises:
        DataError: no class folders, images beside them, an unreadable image, no unlabelled image.
    """
    splits = {"train": _by_class(root / "train"), "test": {}, "audit": {}}
    if splits["train"]:
        _fill_splits(root, splits)
    else:
        splits["train"] = _by_class(root)
    if not splits["train"]:
        extra = list(dict.fromkeys([*_loose(root), *_unlabelled_images(root, unlabelled)]))
        if labelled or not extra:
            raise DataError(
                f"{root}: no sub-folder with images in it; put each class into a folder of its own"
                + ("; without classes `run` learns features, by --method 'byol()' or its like" if extra else "")
            )
    classes = tuple(sorted(set().union(*splits.values())))
    if len(classes) == 1 and len(_by_class(root / classes[0])) > 1:
        raise DataError(
            f"{root}: the labelled rows have only the class '{classes[0]}', a folder that holds folders of images "
            f"itself; did you mean {root / classes[0]}?"
        )
    number = {label: i for i, label in enumerate(classes)}
    listed = [
        (path, number[label], split)
        for split, labels in splits.items()
        for label, paths in labels.items()
        for path in paths
    ]
    if splits["train"]:
        extra = _unlabelled_images(root, unlabelled)
    paths = [path for path, _, _ in listed] + extra
    x = read_images(paths, (1 if all_grey(paths) else 3, size, size))
    y = torch.tensor([label for _, label, _ in listed] + [-1] * len(extra))

    def ids(name: str) -> Tensor | None:
        rows = [row for row, (_, _, split) in enumerate(listed) if split == name]
        return torch.tensor(rows) if rows else None

    return Pictures(x, y, classes, ids("test"), ids("audit"), tuple(map(str, paths)))


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _loose(root: Path) -> list[Path]:
    """Images that lie in a folder itself."""
    return [p for p in sorted(root.iterdir()) if p.is_file() and p.suffix.lower() in SUFFIXES and p.name[0] != "."]


def _by_class(root: Path) -> dict[str, list[Path]]:
    """Images of each class folder in ``root``; empty if ``root`` is no folder or has no sub-folders."""
    if not root.is_dir():
        return {}
    folders = [path for path in _folders(root) if path.name not in UNLABELLED]
    loose = _loose(root)
    if folders and loose:
        raise DataError(f"{loose[0]}: an image beside the class folders; move it into one of them")
    return {folder.name: find_images(folder) for folder in folders}


def _fill_splits(root: Path, splits: dict[str, dict[str, list[Path]]]) -> None:
    """Read the splits beside ``train/``; a folder that is none of them must not be lost in silence."""
    for folder in _folders(root):
        if folder.name in {"train", *UNLABELLED}:
            continue
        split = "test" if folder.name == "test" else "audit" if folder.name in AUDIT else ""
        if not split or splits[split]:
            raise DataError(f"{folder}: beside train/ only test/, val/ and unlabelled/ have a meaning; move it")
        splits[split] = _by_class(folder)


def _unlabelled_images(root: Path, folder: Path | None) -> list[Path]:
    if folder is not None:
        return find_images(folder)
    for parent in (root, root / "train", root.resolve().parent):
        for name in UNLABELLED:
            if (parent / name).is_dir():
                return find_images(parent / name)
    return []
