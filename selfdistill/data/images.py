"""Images from IDX files, folders, archives and tables of paths: found, labelled, and read as one size and one mode."""

from __future__ import annotations

import csv
import gzip
import json
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .image_store import ImageFile, ImageStore, Skipped, Source, read_all, suffixes

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

    x: Tensor | ImageStore  # (n, channels, height, width) uint8
    y: Tensor  # (n,) int64, -1 for unlabelled images
    classes: tuple[str, ...]
    test: Tensor | None  # sample ids, where the source itself names its test images
    audit: Tensor | None = None  # likewise
    names: tuple[str, ...] = ()  # the file of each, where they are files
    digests: Tensor | None = None  # (n, 16) uint8: equal for equal pixels, where they are files
    gradients: Tensor | None = None  # (n, 32) uint8: nearly equal for images that look alike
    note: str = ""  # what was left out, and why


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


def image_store(paths: Sequence[Path], shape: tuple[int, int, int]) -> ImageStore:
    """Image files, each resized to ``shape`` when it is asked for."""
    return ImageStore([_file(path) for path in paths], shape)


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
    )


# ---- a folder of images by class -------------------------------------------------------------------


def read_folder(
    root: Path, unlabelled: Path | None, size: int, labelled: bool = True, own: Mapping[str, Path | None] | None = None
) -> Pictures:
    """Images by class: each sub-folder is a class; ``train/``, ``test/`` and ``val/`` are splits if present.

    A folder called ``unlabelled`` in or beside ``root`` holds images without a class; ``unlabelled`` names
    another one. Images become RGB unless every one is grey, and ``size`` x ``size`` pixels. Unless they must be
    ``labelled``, the images may lie in ``root`` itself: then no class is known, and all labels are -1. ``own`` are
    folders of images by class for the splits ``test`` and ``audit``.

    Raises:
        DataError: no class folders, images beside them, a split given twice, a class or an unlabelled folder without a
            readable image.
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
    folders = {split: path for split, path in (own or {}).items() if path is not None}
    for split, folder in folders.items():
        if splits[split]:
            raise DataError(f"{root}: it has a folder of the {split} split, and {folder} is given too; leave one out")
        splits[split] = _by_class(folder)
        if not splits[split]:
            raise DataError(f"{folder}: no sub-folder with images in it; put each class into a folder of its own")
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
    images = [Listed(_file(path), label, split) for path, label, split in listed]
    images += [Listed(_file(path)) for path in extra]
    used = [image.source.name for image in images]
    others = left_out(root, used) + (left_out(unlabelled, used) if unlabelled is not None else [])
    others += [skipped for folder in folders.values() for skipped in left_out(folder, used)]
    return read_listed(root, images, classes, size, others)


def _file(path: Path) -> ImageFile:
    return ImageFile(path, str(path))


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _loose(root: Path) -> list[Path]:
    """Images that lie in a folder itself."""
    return [p for p in sorted(root.iterdir()) if p.is_file() and p.suffix.lower() in suffixes() and p.name[0] != "."]


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


# ---- archives ---------------------------------------------------------------------------------------


def archives(source: Path) -> list[Path]:
    """The tar files that a path is, or that a folder holds and nothing else."""
    if source.is_file():
        return [source] if ".tar" in source.suffixes[-2:] or source.suffix == ".tgz" else []
    if not source.is_dir():
        return []
    files = sorted(path for path in source.iterdir() if not path.name.startswith("."))
    return files if files and all(path.is_file() and path.suffix == ".tar" for path in files) else []


def read_archives(paths: Sequence[Path], root: Path, size: int) -> Pictures:
    """Images of tar files in the manner of WebDataset: beside ``key.jpg``, ``key.cls`` or ``key.json`` has the label.

    Without such a file the folder of an image is its class, and without a folder it has none. Files called ``test*``
    and ``val*`` beside ``train*`` are splits. Images stay in their archives.

    Raises:
        DataError: an archive is compressed or damaged, or no image of a class can be read.
    """
    found, labels, skipped = (
        list[tuple[ImageFile, tuple[str, str], str]](),
        dict[tuple[str, str], str](),
        list[Skipped](),
    )
    trained = any(path.name.startswith("train") for path in paths)
    for path in paths:
        split = next((word for word in ("test", *AUDIT) if trained and path.name.startswith(word)), "train")
        for name, offset, length in _members(path, skipped):
            folder, _, base = name.rpartition("/")
            key, _, ending = base.partition(".")
            address = (str(path), f"{folder}/{key}")
            if ending in {"cls", "json"}:
                labels |= {address: label} if (label := _member_label(path, name, ending, offset, length)) else {}
            elif Path(base).suffix.lower() in suffixes():
                file = ImageFile(path, f"{path}/{name}", offset, length)
                found.append((file, address, {"train": "train", "test": "test"}.get(split, "audit")))
            elif ending != "txt":  # a caption
                skipped.append(Skipped(f"{path}/{name}", f"of unknown suffix .{ending}"))
    if not found:
        raise DataError(f"{root}: no image in it; a tar file has members such as 0001.jpg and 0001.cls")
    named = [labels.get(address) or address[1].rpartition("/")[0].rpartition("/")[2] for _, address, _ in found]
    classes = class_names(named)
    number = {label: i for i, label in enumerate(classes)}
    rows = [Listed(file, number.get(label, -1), split) for (file, _, split), label in zip(found, named, strict=True)]
    return read_listed(root, rows, classes, size, skipped)


def _members(path: Path, skipped: list[Skipped]) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of the files of an archive; nothing is unpacked."""
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                if not member.isfile() or Path(member.name).name.startswith("."):
                    skipped.append(Skipped(f"{path}/{member.name}", "hidden" if member.isfile() else "no regular file"))
                    continue
                yield member.name, member.offset_data, member.size
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a readable tar file ({reason}); unpack a compressed one by gunzip") from None


def _member_label(path: Path, name: str, ending: str, offset: int, length: int) -> str:
    with path.open("rb") as file:
        file.seek(offset)
        text = file.read(min(length, 1 << 20)).decode("utf-8", "replace").strip()
    if ending == "cls":
        return text
    try:
        values = json.loads(text)
    except ValueError as error:
        raise DataError(f'{path}/{name}: not JSON ({error}); write {{"label": ...}}') from None
    keys = [key for key in ("label", "cls", "class") if isinstance(values, dict) and key in values]
    return str(values[keys[0]]) if keys else ""


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """The different labels that are not empty: numbers by their value, else in alphabetical order.

    >>> class_names(["10", "9", "", "9"]), class_names(["b", "a", "10"])
    (('9', '10'), ('10', 'a', 'b'))
    """
    names = {label for label in labels if label}
    return tuple(sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names))


# ---- tables of paths --------------------------------------------------------------------------------


def path_column(source: str) -> str | None:
    """The column of a CSV or TSV file that holds paths of images, from its first rows; None if there is none."""
    if not source.lower().endswith((".csv", ".tsv")) or not Path(source).is_file():
        return None
    header, rows = _table(Path(source), 20)
    for name in header:
        paths = [row[name] for row in rows if row.get(name)]
        if (
            paths
            and all(Path(path).suffix.lower() in PLAIN for path in paths)
            and _image_path(source, paths[0]).is_file()
        ):
            return name
    return None


PLAIN = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".avif", ".ppm", ".pgm"})


def _image_path(source: str, path: str) -> Path:
    return Path(source).parent / path  # an absolute path stays


def _table(path: Path, most: int | None = None) -> tuple[list[str], list[dict[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=max("\t;,", key=first.count))
            return list(reader.fieldnames or []), list(islice(reader, most))
    except (OSError, ValueError, csv.Error):
        return [], []


def read_path_table(source: str, target: str | None, size: int) -> Pictures:
    """Images of a table of paths, which count from the folder of the table, and their labels.

    A column ``split`` with ``train``, ``test`` and ``val`` names the split of each; an empty label is none.

    Raises:
        DataError: the column of labels is not given and not the only other one, or no image of a class can be read.
    """
    column, (header, rows) = path_column(source), _table(Path(source))
    others = [name for name in header if name not in {column, "split"}]
    if target is None and len(others) != 1:
        raise DataError(
            f"{source}: which column has the labels ({', '.join(others) or 'there is none'})? Give --target"
        )
    label = others[0] if target is None else target
    if label not in others:
        raise DataError(f"{source}: no column '{label}' beside the paths; use one of {', '.join(others)}")
    named = [(row[label] or "").strip() for row in rows]
    classes = class_names(named)
    number = {name: i for i, name in enumerate(classes)}
    splits = ["audit" if (word := (row.get("split") or "").lower()) in AUDIT else word or "train" for row in rows]
    odd = next((i for i, split in enumerate(splits) if split not in {"train", "test", "audit"}), None)
    if odd is not None:
        raise DataError(f"{source}: row {odd + 1} has the split '{splits[odd]}'; write train, val or test")
    files = [_image_path(source, row[str(column)] or "") for row in rows]
    listed = [
        Listed(_file(path), number.get(name, -1), split) for path, name, split in zip(files, named, splits, strict=True)
    ]
    pictures = read_listed(Path(source), listed, classes, size)
    told = f"images by column '{column}', labels by column '{label}'"
    return pictures._replace(note="; ".join(filter(None, (told, pictures.note))))
