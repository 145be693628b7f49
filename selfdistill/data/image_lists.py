"""Lists of images: folders by class, tar archives and tables of paths; each row has a label, a split and cells."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError
from .image_store import DatasetImage, ImageFile, Skipped, Source, open_image, suffixes
from .images import (
    Listed,
    Pictures,
    find_images,
    image_file,
    image_path,
    left_out,
    path_column,
    read_cells,
    read_listed,
)
from .prompt_files import SPLITS
from .split_columns import COLUMN, SplitColumns, SplitRequest, Tasks, group_codes, row_tasks, row_times
from .table_files import Table, class_labels, dataset_images, dataset_splits, pandas

UNLABELLED = ("unlabelled", "unlabeled")


LABEL_FIELDS = ("label", "cls", "class")  # of the JSON file beside an image in an archive


class ImageRow(NamedTuple):
    """An image that is listed; an empty label is none."""

    source: Source
    label: str = ""
    split: str = "train"
    cells: Mapping[str, Any] = {}  # of its other columns or fields


class ImageList(NamedTuple):
    """The images of a source, and the files beside them that are none."""

    rows: list[ImageRow]
    skipped: Sequence[Skipped] = ()
    note: str = ""
    folder: bool = False  # classes are its sub-folders


class SplitPictures(NamedTuple):
    """Images that were read, and what keeps them together and orders them."""

    pictures: Pictures
    groups: Any = None  # (n,)
    time: Any = None  # (n,) float64
    tasks: Tasks | None = None


def read_list(
    source: Path, target: str | None, unlabelled: Path | None, size: int, labelled: bool, request: SplitRequest
) -> SplitPictures:
    """Images of a folder by class, of tar archives or of a table of paths, with the splits of the request.

    Images become RGB unless every one is grey, and ``size`` x ``size`` pixels. Its files of test and validation rows,
    and that of ``unlabelled`` images, may be of any of these kinds. Unless they must be ``labelled``, no image needs a
    class.

    Raises:
        DataError: a list cannot be read or has no image, a split is given twice, no image of a class can be read, a
            column of groups or times is missing.
    """
    placed = (request.groups, request.time, request.tasks)
    main = list_images(source, target, labelled, placed)
    lists = [(source, main)]
    for split, path in (("test", request.test), ("audit", request.validation)):
        if path is not None:
            if any(row.split == split for row in main.rows):
                raise DataError(f"{source}: it has rows of the {split} split, and {path} is given too; leave one out")
            further = list_images(path, target, True, placed)
            lists.append((path, further._replace(rows=[row._replace(split=split) for row in further.rows])))
    if target is not None and all(each.folder for _, each in lists):
        raise DataError(f"{source}: target '{target}' names a column, and images have none; leave target out")
    if unlabelled is not None or (main.folder and any(row.label for row in main.rows)):
        images_ = image_sources(unlabelled)[0] if unlabelled else map(image_file, _unlabelled_images(source))
        extra = [ImageRow(image) for image in images_]
        lists.append((unlabelled or source, ImageList(extra, folder=unlabelled is not None)))
    placing = _placed(
        lists, len(lists) > 1 + sum(path is not None for path in (request.test, request.validation)), request
    )
    rows = [row for _, each in lists for row in each.rows]
    used = [row.source.name for row in rows]
    skipped = [skip for path, each in lists for skip in (left_out(path, used) if each.folder else each.skipped)]
    names = [row.label for row in rows]
    classes = tuple(sorted({label for label in names if label})) if main.folder else class_names(names)
    number = {label: i for i, label in enumerate(classes)}
    listed = [Listed(row.source, number.get(row.label, -1), row.split) for row in rows]
    pictures = read_listed(source, listed, classes, size, skipped)
    pictures = pictures._replace(note="; ".join(filter(None, (main.note, pictures.note))))
    at = np.array(pictures.rows, dtype=np.int64)
    groups, time = (None if values is None else values[at] for values in (placing.groups, placing.time))
    tasks = placing.tasks
    if tasks is not None:
        tasks = tasks._replace(numbers=tasks.numbers[at.tolist()])
    return SplitPictures(pictures, groups, time, tasks)


def list_images(
    source: Path, target: str | None = None, labelled: bool = True, placed: Sequence[str | None] = ()
) -> ImageList:
    """The images of a folder by class, of tar archives or of a table of paths.

    Args:
        source: the folder or file.
        target: the column, or field, of labels.
        labelled: whether they must have one.
        placed: columns that are no labels.

    Raises:
        DataError: there is no such source, or no image in it.
    """
    if not source.exists():
        raise DataError(f"{source}: no such file or folder of images; give the path of an existing one")
    if path_column(str(source)) is not None:
        return _list_table(str(source), target, labelled, placed)
    if (column := dataset_images(source)) is not None:
        return _list_dataset(source, column, target, labelled, placed)
    if shards := archives(source):
        return _list_archives(shards, source, target)
    if not source.is_dir():
        raise DataError(
            f"{source}: no list of images; give a folder of images by class, a tar archive, or a CSV file with a "
            "column of paths to existing images"
        )
    return _list_folder(source, labelled)


def image_sources(source: Path) -> tuple[list[Source], list[str]]:
    """All images of a file, a folder at any depth, tar archives or a table of paths, and a name for each.

    Raises:
        DataError: an archive is damaged, or there is no image in it.
    """
    column = path_column(str(source))
    if column is not None:
        names = [row[column] or "" for row in read_cells(source)[1]]
        return [image_file(image_path(str(source), name)) for name in names], names
    if (column := dataset_images(source)) is not None:
        rows = _list_dataset(source, column, None, False, ()).rows
        return [row.source for row in rows], [row.source.name.removeprefix(f"{source}/") for row in rows]
    if shards := archives(source):
        files: list[Source] = [row.source for row in _list_archives(shards, source, None).rows]
        return files, [file.name.removeprefix(f"{source}/") for file in files]
    paths = [source] if source.is_file() else find_images(source)
    return [image_file(path) for path in paths], [
        path.name if path == source else path.relative_to(source).as_posix() for path in paths
    ]


def _placed(lists: Sequence[tuple[Path, ImageList]], unlabelled: bool, request: SplitRequest) -> SplitColumns:
    """The groups, times and tasks of all rows, by their cells; the last list may be of unlabelled rows."""
    columns = request._replace(test=None, validation=None)
    if columns == SplitRequest():
        return SplitColumns()
    tables = [cell_table(path, each.rows) for path, each in lists]
    if not tables[0].names:
        columns.refuse(str(lists[0][0]), "its images have no columns or fields")
    main, *rest = tables
    groups = None if request.groups is None else group_codes(request.groups, main, rest, ())
    time = None if request.time is None else row_times(request.time, main, rest, ())
    if request.tasks is None:
        return SplitColumns(groups=groups, time=time)
    further, last = (rest[:-1], rest[-1]) if unlabelled else (rest, None)
    return SplitColumns(groups=groups, time=time, tasks=row_tasks(request, main, further, last, ()))


def cell_table(source: Path, rows: Sequence[ImageRow]) -> Table:
    """The cells of images as a table."""
    present = dict.fromkeys(name for row in rows for name in row.cells)
    columns: dict[str, Callable[[], Any]] = {n: partial(_column, rows, n) for n in present}
    return Table(source, columns, len(rows))


def _column(rows: Sequence[ImageRow], name: str) -> Any:
    return pandas().Series([row.cells.get(name) for row in rows], dtype=object).replace("", None)


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """The different labels that are not empty: numbers by their value, else in alphabetical order.

    >>> class_names(["10", "9", "", "9"]), class_names(["b", "a", "10"])
    (('9', '10'), ('10', 'a', 'b'))
    """
    names = {label for label in labels if label}
    return tuple(sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names))


# ---- a folder of images by class -------------------------------------------------------------------


def _list_folder(root: Path, labelled: bool) -> ImageList:
    """Images by class: each sub-folder is a class; ``train/``, ``test/`` and ``val/`` are splits if present.

    Unless they must be ``labelled``, the images may lie in ``root`` itself: then no class is known.
    """
    splits = {"train": _by_class(root / "train"), "test": {}, "audit": {}}
    if splits["train"]:
        _fill_splits(root, splits)
    else:
        splits["train"] = _by_class(root)
    if not splits["train"]:
        extra = list(dict.fromkeys([*_loose(root), *_unlabelled_images(root)]))
        if labelled or not extra:
            raise DataError(
                f"{root}: no sub-folder with images in it; put each class into a folder of its own"
                + ("; without classes `run` learns features, by --method 'byol()' or its like" if extra else "")
            )
        return ImageList([ImageRow(image_file(path)) for path in extra], folder=True)
    names = sorted(set().union(*splits.values()))
    if len(names) == 1 and len(_by_class(root / names[0])) > 1:
        raise DataError(
            f"{root}: the labelled rows have only the class '{names[0]}', a folder that holds folders of images "
            f"itself; did you mean {root / names[0]}?"
        )
    rows = [
        ImageRow(image_file(path), label, split)
        for split, labels in splits.items()
        for label, paths in labels.items()
        for path in paths
    ]
    return ImageList(rows, folder=True)


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
        split = SPLITS.get(folder.name, "train")
        if split == "train" or splits[split]:
            raise DataError(f"{folder}: beside train/ only test/, val/ and unlabelled/ have a meaning; move it")
        splits[split] = _by_class(folder)


def _unlabelled_images(root: Path) -> list[Path]:
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


def _list_archives(paths: Sequence[Path], root: Path, target: str | None) -> ImageList:
    """Images of tar files in the manner of WebDataset: beside ``key.jpg``, ``key.cls`` or ``key.json`` has the label.

    Without such a file the folder of an image is its class, and without a folder it has none. Files called ``test*``
    and ``val*`` beside ``train*`` are splits. Images stay in their archives. ``target`` is the field of labels.
    """
    images, fields = list[tuple[ImageFile, tuple[str, str], str]](), dict[tuple[str, str], dict[str, Any]]()
    skipped = list[Skipped]()
    trained = any(path.name.startswith("train") for path in paths)
    for path in paths:
        split = next((word for word in SPLITS if trained and path.name.startswith(word)), "train")
        for name, offset, length in _members(path, skipped):
            folder, _, base = name.rpartition("/")
            key, _, ending = base.partition(".")
            address = (str(path), f"{folder}/{key}")
            if ending in {"cls", "json"}:
                fields.setdefault(address, {}).update(_member_fields(path, name, ending, offset, length))
            elif Path(base).suffix.lower() in suffixes():
                file = ImageFile(path, f"{path}/{name}", offset, length)
                images.append((file, address, SPLITS[split]))
            elif ending != "txt":  # a caption
                skipped.append(Skipped(f"{path}/{name}", f"of unknown suffix .{ending}"))
    if not images:
        raise DataError(f"{root}: no image in it; a tar file has members such as 0001.jpg and 0001.cls")
    if target is not None and not any(target in row for row in fields.values()):
        raise DataError(
            f"{root}: no .json file in it has the field '{target}'; leave target out where .cls files or folders are "
            "the labels"
        )
    rows = []
    for file, address, split in images:
        cells = fields.get(address, {})
        own = next((str(cells[n]) for n in (LABEL_FIELDS if target is None else (target,)) if n in cells), "")
        folder = "" if target is not None else address[1].rpartition("/")[0].rpartition("/")[2]
        rows.append(ImageRow(file, own or folder, split, cells))
    return ImageList(rows, skipped)


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


def _member_fields(path: Path, name: str, ending: str, offset: int, length: int) -> dict[str, Any]:
    """What the file beside an image says: a label, or the fields of an object."""
    with path.open("rb") as file:
        file.seek(offset)
        text = file.read(min(length, 1 << 20)).decode("utf-8", "replace").strip()
    if ending == "cls":
        return {"cls": text}
    try:
        values = json.loads(text)
    except ValueError as error:
        raise DataError(f'{path}/{name}: not JSON ({error}); write {{"label": ...}}') from None
    return values if isinstance(values, dict) else {}


# ---- tables of paths --------------------------------------------------------------------------------


def _list_table(source: str, target: str | None, labelled: bool, placed: Sequence[str | None]) -> ImageList:
    """Images of a table of paths, which count from the folder of the table, and their labels.

    A column ``split`` with ``train``, ``test`` and ``val`` names the split of each; an empty label is none.
    """
    column, (header, rows) = str(path_column(source)), read_cells(Path(source))
    label = _label_column(source, [name for name in header if name not in {column, COLUMN, *placed}], target, labelled)
    listed = []
    for i, row in enumerate(rows):
        file = image_file(image_path(source, row[column] or ""))
        listed.append(ImageRow(file, (row[label] or "").strip() if label else "", _split_of(source, i, row), row))
    return ImageList(listed, note=_columns_note(column, label))


def _label_column(source: str, others: Sequence[str], target: str | None, labelled: bool) -> str | None:
    if target is None and len(others) != 1 and (labelled or others):
        raise DataError(
            f"{source}: which column has the labels ({', '.join(others) or 'there is none'})? Give --target"
        )
    label = target if target is not None else others[0] if others else None
    if label is not None and label not in others:
        raise DataError(f"{source}: no column '{label}' beside the images; use one of {', '.join(others)}")
    return label


def _split_of(source: str, number: int, row: Mapping[str, Any]) -> str:
    word = str(row.get(COLUMN) or "train").strip()
    if word.lower() not in SPLITS:
        raise DataError(f"{source}: row {number + 1} has the split '{word}'; write train, val or test")
    return SPLITS[word.lower()]


def _columns_note(column: str, label: str | None) -> str:
    return f"images by column '{column}', " + (f"labels by column '{label}'" if label else "without labels")


# ---- data sets of Hugging Face ----------------------------------------------------------------------


def _list_dataset(
    source: Path, column: str, target: str | None, labelled: bool, placed: Sequence[str | None]
) -> ImageList:
    """Images of a folder that `save_to_disk` wrote, with their labels and splits; they stay in its files."""
    from datasets import Image

    splits, note = dataset_splits(source)
    first, encoded = (
        next(iter(splits.values())),
        Image(decode=False),
    )  # Pillow reads them, by formats that run no program
    classes = class_labels(first)
    others = [name for name in first.column_names if name not in {column, COLUMN, *placed}]
    only = next(iter(classes)) if target is None and len(classes) == 1 else target
    label = _label_column(str(source), others, only, labelled)
    names = classes.get(label or "", {})
    listed = []
    for name, split in splits.items():
        read = partial(_stored_image, split.select_columns([column]).cast_column(column, encoded), column)
        cells = split.remove_columns([column]).to_list() if len(split.column_names) > 1 else [{}] * len(split)
        for i, row in enumerate(cells):
            cell = None if label is None else row[label]
            word = "" if cell in (None, -1) else names.get(cell, str(cell))
            place = _split_of(str(source), i, {COLUMN: name} if len(splits) > 1 else row)
            listed.append(ImageRow(DatasetImage(f"{source}/{name or 'rows'}[{i}]", i, read), word, place, row))
    return ImageList(listed, note="; ".join(filter(None, (_columns_note(column, label), note))))


def _stored_image(rows: Any, column: str, number: int) -> Any:
    """The image of a row, opened: its bytes, or a file beside the data set; nothing is fetched.

    Raises:
        DataError: the row has neither.
    """
    cell = rows[number][column] or {}
    if cell.get("bytes"):
        return open_image(cell["bytes"])
    if cell.get("path") and Path(cell["path"]).is_file():
        return image_file(Path(cell["path"])).read()
    raise DataError("no image in the row")
