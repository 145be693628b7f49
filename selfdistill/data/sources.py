"""Sources of data: a name or a path becomes inputs and labels, before any split is drawn."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from . import image_lists, images, splits, tables
from .annotators import AnnotatorLabels
from .augment import one_sided
from .column_types import Column, Kind
from .decisions import RowNames
from .image_store import ImageStore
from .split_columns import NO_REQUEST, SplitColumns, SplitRequest, Tasks
from .table_files import HUB, SHOWN, is_table

TABLES = ("diabetes", "friedman1", "breast-cancer", "wine", "iris")  # scikit-learn's, and one made of formulas


NAMES = ("digits", images.FASHION, *TABLES)


IMAGE_SIZE = 32  # pixels per side, for folders of images of many sizes


TEST_SHARE, AUDIT_SHARE = 0.2, 0.15  # of the labelled rows; of what the test leaves


DIGITS_TEST, DIGITS_AUDIT = 500, 200


MOST_AUDIT = 5000  # beyond this, rows teach more than they sharpen a decision


@dataclass(frozen=True, eq=False)
class RawData:
    """Data as read. Images have inputs ``x``; tables ``features``, whose scaling must wait for the splits."""

    name: str
    kind: str  # "image" | "table"
    y: Tensor  # (n,) int64 with -1, or float32 with nan, for no label
    classes: tuple[str, ...]  # empty for regression
    x: Tensor | ImageStore | None = None
    features: Any = None  # pandas.DataFrame
    test: splits.Part = TEST_SHARE
    audit: splits.Part = AUDIT_SHARE
    flips: bool = False
    augment: str = "none"
    white: int = 255
    names: tuple[str, ...] = ()  # of the files that the rows are, if they are files
    bare: bool = False  # no row has a label, and that is as it should be
    columns: tuple[Column, ...] = ()  # of a table: how each was read
    title: str = ""  # of the report on them
    digests: Tensor | None = None  # (n, 16) uint8 of image files: equal for equal pixels
    gradients: Tensor | None = None  # (n, 32) uint8 of image files: nearly equal for images that look alike
    skip_note: str = ""  # files that are no rows, and why
    groups: Any = None  # (n,) rows of one value share a split
    time: Any = None  # (n,) the splits follow it
    tasks: Tasks | None = None  # of a stream
    counts: tuple[tuple[str, int], ...] = ()  # of a table: the rows of its file and of further ones
    votes: AnnotatorLabels | None = None  # of a table: the labels of several annotators

    def split_by(self, split: SplitColumns) -> RawData:
        """The same rows with the splits that columns and files give."""
        test = self.test if split.test is None else split.test
        audit = self.audit if split.audit is None else split.audit
        return replace(self, groups=split.groups, time=split.time, test=test, audit=audit, tasks=split.tasks)

    @property
    def inputs(self) -> Any:
        """What is equal where the inputs of rows are equal: digests of image files, pixels, tokens or features."""
        return next(part for part in (self.digests, self.features, self.x) if part is not None)

    @property
    def row_names(self) -> RowNames:
        """The names of the rows, by which a file of decisions knows them."""
        return RowNames(self.names, self.counts)

    @property
    def task(self) -> str:
        """The task of these rows: classes, values, or features alone."""
        return "features" if self.bare else "classify" if self.classes else "regress"


def read_source(
    source: str,
    *,
    target: str | None,
    unlabelled: Path | None,
    image_size: int | None,
    compact: bool = False,
    labelled: bool = True,
    types: Mapping[str, Kind] | None = None,
    request: SplitRequest = NO_REQUEST,
) -> RawData:
    """The data called ``source``, with the unlabelled rows after the labelled; tables ``compact`` as in `tabular.read`.

    Unless they must be ``labelled``, tables and folders may have no label at all.

    Raises:
        DataError: there is no such data, they cannot be read, or an argument does not apply to them.
    """
    if is_table(source, named=target is not None or bool(request.annotators)):
        if image_size is not None:
            raise DataError(f"{source}: a table has no image size; leave image_size out")
        table = tables.read(existing(source), target, unlabelled, compact, labelled, types, request)
        return _of_table(source, table, labelled).split_by(table.split)
    if types:
        raise DataError(f"{source}: the types of columns are for tables that you have as a file; leave columns out")
    if source in (*NAMES, *TABLES) or images.idx_files(Path(source)):
        request.refuse(source, "its rows have no such columns, and its test split is given")
    if request.annotators:
        raise DataError(
            f"{source}: annotators are columns of a table of cells or texts, and this has images; leave annotators out"
        )
    if source in TABLES:
        return _known_table(source, target, unlabelled, image_size)
    if source in ("digits", images.FASHION) or images.idx_files(Path(source)):
        if target is not None:
            raise DataError(f"{source}: target '{target}' names a column, and images have none; leave target out")
        return _images(source, unlabelled, image_size)
    root = existing(source)
    if root.is_file() and images.path_column(source) is None and not image_lists.archives(root):
        raise DataError(
            f"{root}: neither a folder nor a table; use a folder of images by class, or a table ({SHOWN}; JSON lines "
            "with --target)"
        )
    lists = image_lists.read_list(root, target, unlabelled, _side(source, image_size), labelled, request)
    name = root.resolve().name if root.is_dir() else root.name
    raw = of_pictures(name, lists.pictures, labelled)
    return replace(raw, groups=lists.groups, time=lists.time, tasks=lists.tasks)


def _images(source: str, unlabelled: Path | None, image_size: int | None) -> RawData:
    if source == "digits":
        raw = _digits()
    else:
        raw = _idx(images.fashion_folder() if source == images.FASHION else Path(source))
    if image_size is not None:
        raise DataError(f"{source}: its images have one size already; leave image_size out")
    return _with_images(raw, unlabelled) if unlabelled is not None else raw


def _of_table(source: str, table: tables.RawTable, labelled: bool) -> RawData:
    return RawData(
        Path(source).name,
        "table",
        table.y,
        table.classes,
        features=table.features,
        bare=_is_unlabelled(table, labelled),
        columns=table.columns,
        title=table.title,
        counts=table.counts,
        votes=table.votes,
    )


def _known_table(name: str, target: str | None, unlabelled: Path | None, image_size: int | None) -> RawData:
    for option, value in (("target", target), ("unlabelled", unlabelled), ("image_size", image_size)):
        if value is not None:
            raise DataError(f"{name}: its {option} is given already; leave {option} out")
    table = tables.sklearn_table(name)
    return RawData(
        name, "table", table.y, table.classes, features=table.features, columns=table.columns, title=table.title
    )


def existing(source: str) -> Path:
    """The path ``source``.

    Raises:
        DataError: there is none; the message lists the names that exist and the nearest one.
    """
    path = Path(source)
    if path.exists() or source.startswith(HUB):
        return path
    siblings = [str(entry) for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    matches = difflib.get_close_matches(source, [*NAMES, *siblings], n=1)
    hint = f" (did you mean '{matches[0]}'?)" if matches else ""
    raise DataError(
        f"no data called '{source}'{hint}; use {', '.join(NAMES[:-1])} or {NAMES[-1]}, or the path of a folder of "
        f"images by class, or of a table ({SHOWN})"
    )


def _digits() -> RawData:
    """1,797 handwritten digits of 8 x 8 pixels in 17 shades, from scikit-learn (Alpaydin and Kaynak)."""
    package = find_spec("sklearn")  # its file alone: to import scikit-learn takes longer than to read it
    assert package is not None, "scikit-learn is a dependency"
    assert package.submodule_search_locations is not None, "it is a folder"
    file = Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    cells = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return RawData(
        "digits",
        "image",
        torch.from_numpy(cells[:, -1]).long(),
        tuple(str(digit) for digit in range(10)),
        x=torch.from_numpy(cells[:, :-1].reshape(-1, 1, 8, 8).copy()),
        test=DIGITS_TEST,
        audit=DIGITS_AUDIT,
        white=16,
    )


def _idx(folder: Path) -> RawData:
    """The data of a folder of IDX files; only Fashion-MNIST, known by the folder's name, may be mirrored."""
    pictures = images.read_idx(folder)
    assert pictures.test is not None, "IDX files come with their test split"
    train = len(pictures.y) - len(pictures.test)
    clothes = pictures.classes == images.FASHION_CLASSES
    return RawData(
        folder.resolve().name,
        "image",
        pictures.y,
        pictures.classes,
        x=pictures.x,
        test=pictures.test,
        audit=min(MOST_AUDIT, round(AUDIT_SHARE * train)),
        flips=clothes,
        augment="weak",
    )


def _side(source: str, image_size: int | None) -> int:
    if image_size is not None and image_size < 8:
        raise DataError(f"{source}: images of {image_size} pixels a side are too small; use image_size=8 or more")
    return image_size or IMAGE_SIZE


def of_pictures(name: str, pictures: images.Pictures, labelled: bool) -> RawData:
    """Images that were read, with the splits that they bring."""
    return RawData(
        name,
        "image",
        pictures.y,
        pictures.classes,
        x=pictures.x,
        test=TEST_SHARE if pictures.test is None else pictures.test,
        audit=AUDIT_SHARE if pictures.audit is None else pictures.audit,
        flips=not one_sided(pictures.classes),
        augment="weak",
        names=pictures.names,
        bare=_is_unlabelled(pictures, labelled),
        digests=pictures.digests,
        gradients=pictures.gradients,
        skip_note=pictures.note,
    )


def _is_unlabelled(raw: tables.RawTable | images.Pictures, labelled: bool) -> bool:
    """Whether no row has a label, where none is required."""
    return not labelled and not bool(splits.has_label(raw.y).any())


def _with_images(raw: RawData, folder: Path) -> RawData:
    """Add a folder of images without class, made of the same size, mode and scale."""
    assert isinstance(raw.x, Tensor), "named images are read at once"
    channels, height, width = raw.x.shape[1:]
    extra = images.read_images(images.find_images(folder), (channels, height, width))
    extra = (extra.float() * (raw.white / 255)).round().to(torch.uint8)
    return replace(
        raw,
        x=torch.cat([raw.x, extra]),
        y=torch.cat([raw.y, raw.y.new_full((len(extra),), -1)]),
    )
