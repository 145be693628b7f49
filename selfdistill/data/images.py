"""Images from IDX files and image files: found, and read as one size and one mode."""

from __future__ import annotations

import csv
import gzip
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .image_store import ImageFile, ImageStore, Skipped, Source, read_all, suffixes

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

    x: Tensor | ImageStore  # (n, channels, height, width) uint8
    y: Tensor  # (n,) int64, -1 for unlabelled images
    classes: tuple[str, ...]
    test: Tensor | None  # sample ids, where the source itself names its test images
    audit: Tensor | None = None  # likewise
    names: tuple[str, ...] = ()  # the file of each, where they are files
    digests: Tensor | None = None  # (n, 16) uint8: equal for equal pixels, where they are files
    gradients: Tensor | None = None  # (n, 32) uint8: nearly equal for images that look alike
    note: str = ""  # what was left out, and why
    rows: Sequence[int] = ()  # the positions of those that could be read, where they are files


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


def find_images(folder: Path) -> list[Path]:
    """All image files below ``folder``, at any depth, in the order of their names; hidden ones are left out.

    Raises:
        DataError: there is none.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images; give the path of an existing one")
    paths = sorted(path for path, reason in _walk(folder) if not reason)
    if not paths:
        others = skip_note(folder, left_out(folder, ()))
        raise DataError(f"{folder}: no image in it{f' ({others})' if others else ''}; add some (.png, .jpg, .tif, ...)")
    return paths


def _walk(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every file below a folder, with the reason why it is no image file; it is empty for those that may be one."""
    endings = suffixes()
    for place, folders, names in os.walk(folder):
        for name in folders:
            path = Path(place, name)
            if name.startswith("."):
                yield path, "hidden"
            elif path.is_symlink():
                yield path, "a link to a folder"
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(place, name)
            if name.startswith("."):
                yield path, "hidden"
            elif path.suffix.lower() not in endings:
                yield path, f"of unknown suffix {path.suffix}".rstrip() if path.suffix else "without a suffix"
            else:
                yield path, "" if path.is_file() else "no regular file"


def left_out(folder: Path, used: Iterable[str]) -> list[Skipped]:
    """The files below a folder that are not ``used``, with the reason of each."""
    rows = set(used)
    return [Skipped(str(path), reason or "not used") for path, reason in sorted(_walk(folder)) if str(path) not in rows]


def skip_note(root: Path, skipped: Sequence[Skipped]) -> str:
    """One line about files that were left out: how many for each reason, with the first few names.

    >>> skip_note(Path("p"), [Skipped("p/.a", "hidden"), Skipped("p/b", "truncated"), Skipped("p/c", "truncated")])
    '3 files were left out: 1 hidden (.a), 2 truncated (b, c)'
    """
    if not skipped:
        return ""
    names = dict[str, list[str]]()
    for path, reason in skipped:
        names.setdefault(reason, []).append(path.removeprefix(f"{root}/"))
    parts = [f"{len(of)} {why} ({', '.join(of[:3])}{', ...' if len(of) > 3 else ''})" for why, of in names.items()]
    files = "1 file was" if len(skipped) == 1 else f"{len(skipped)} files were"
    return f"{files} left out: {', '.join(parts)}"


def read_images(paths: Sequence[Path], shape: tuple[int, int, int]) -> Tensor:
    """Images as (n, channels, height, width) uint8, each resized to ``shape`` = (channels, height, width).

    Raises:
        DataError: an image cannot be read (its path is named), or Pillow is not installed.
    """
    return image_store(paths, shape)[torch.arange(len(paths))]


def image_file(path: Path) -> ImageFile:
    """The image in a file of its own."""
    return ImageFile(path, str(path))


def image_store(paths: Sequence[Path], shape: tuple[int, int, int]) -> ImageStore:
    """Image files, each resized to ``shape`` when it is asked for."""
    return ImageStore([image_file(path) for path in paths], shape)


class Listed(NamedTuple):
    """An image that was found: its label, -1 for none, and the split that its place names, if any."""

    source: Source
    label: int = -1
    split: str = "train"


def read_listed(
    root: Path, listed: Sequence[Listed], classes: tuple[str, ...], size: int, others: Sequence[Skipped] = ()
) -> Pictures:
    """Read the images that were found; those that cannot be read are left out, and told with the ``others``.

    Raises:
        DataError: no image of a class, or none of those without one, can be read.
    """
    reading = read_all([image.source for image in listed], size)
    kept = [listed[row] for row in reading.rows]
    skipped = [*others, *reading.skipped]
    empty = sorted({image.label for image in listed} - {image.label for image in kept})
    if empty:
        kind = f"class '{classes[empty[0]]}'" if empty[0] >= 0 else "the unlabelled rows"
        raise DataError(f"{root}: no image of {kind} can be read ({skip_note(root, skipped)}); repair or remove them")
    names, note = [image.source.name for image in kept], [skip_note(root, skipped)]
    if reading.animated:
        first = reading.animated[0].removeprefix(f"{root}/")
        note.append(f"{len(reading.animated)} with several frames, of which the first is read (such as {first})")

    def ids(name: str) -> Tensor | None:
        rows = [row for row, image in enumerate(kept) if image.split == name]
        return torch.tensor(rows) if rows else None

    return Pictures(
        reading.x,
        torch.tensor([image.label for image in kept]),
        classes,
        ids("test"),
        ids("audit"),
        tuple(names),
        reading.digests,
        reading.gradients,
        "; ".join(filter(None, note)),
        reading.rows,
    )


# ---- tables of paths --------------------------------------------------------------------------------


def path_column(source: str) -> str | None:
    """The column of a CSV or TSV file that holds paths of images, from its first rows; None if there is none."""
    if not source.lower().endswith((".csv", ".tsv")) or not Path(source).is_file():
        return None
    header, rows = read_cells(Path(source), 20)
    for name in header:
        paths = [row[name] for row in rows if row.get(name)]
        if (
            paths
            and all(Path(path).suffix.lower() in PLAIN for path in paths)
            and any(image_path(source, path).is_file() for path in paths)
        ):
            return name
    return None


PLAIN = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".avif", ".ppm", ".pgm"})


def image_path(source: str, path: str) -> Path:
    """The file of a path in a table, which counts from the folder of the table."""
    return Path(source).parent / path  # an absolute path stays


def read_cells(path: Path, most: int | None = None) -> tuple[list[str], list[dict[str, str]]]:
    """The header and the rows of a table of texts; empty where it cannot be read."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=max("\t;,", key=first.count))
            return list(reader.fieldnames or []), list(islice(reader, most))
    except (OSError, ValueError, csv.Error):
        return [], []
