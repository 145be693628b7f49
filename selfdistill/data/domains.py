"""Rows of new domains for a trained model: inputs, the labels that there are, and the order in which they come."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..io.expressions import one_line
from . import column_types, image_lists, images, sources
from .dataset import PREPROCESSOR, inputs_for
from .image_store import ImageStore, Source, read_all
from .split_columns import row_order
from .table_files import is_saved_dataset, is_table, read_table

Order = tuple[Any, list[str]]  # the value of each row, (n,), and its text

MOST_DOMAINS = 20  # of the values of a column, beyond which it orders rows and names no domains


FEWEST = 3  # rows of a domain


DOMAINS = 10  # that ordered rows are cut into


class NewRows(NamedTuple):
    """Rows prepared as those of a model were, with the class that the model knows for each label."""

    x: Tensor | ImageStore
    y: Tensor  # (n,) int64, -1 for no label
    domains: Sequence[Tensor] = ()  # their ids, in order
    names: Sequence[str] = ()  # of the domains
    sources: Sequence[Source] = ()  # the files of images
    digests: Tensor | None = None  # of them
    note: str = ""  # files that are no rows, and why


def read_domains(
    source: str, folder: Path, card: Mapping[str, Any], target: str | None, order: str | None, count: int | None
) -> NewRows:
    """The rows of a table, or of images in folders by domain, by a column's order, or by the order of the file.

    Args:
        source: a table, a folder of images, archives or a table of paths.
        folder: of the model.
        card: of the model, with its classes.
        target: the column of labels; without one there is none, or the only column beside the paths of images.
        order: the column of the order; without it sub-folders are the domains, or rows are cut as they come.
        count: how many domains ordered rows make.

    Raises:
        DataError: the rows cannot be read, do not fit the model, have an unknown class, or make no two domains.
    """
    if source in sources.NAMES or images.idx_files(Path(source)):
        raise DataError(f"{source}: its rows come in no order; give a table or a folder of images with one")
    named = target is not None or order is not None
    rows, cells = (_table_rows if is_table(source, named) else _image_rows)(source, folder, card, target, order)
    if isinstance(cells, list) and count is not None:
        raise DataError(f"{source}: its sub-folders are the domains; leave --domains out")
    values, texts = _by_folder(cells) if isinstance(cells, list) else cells
    domains = cut(values, count)
    if len(domains) < 2:
        raise DataError(
            f"{source}: {len(values)} rows make one domain, and adaptation step by step needs two or more; give rows "
            "of the way from the old data to the new, in order"
        )
    sparse = next((k for k, part in enumerate(domains) if len(part) < FEWEST), None)
    if sparse is not None:
        raise DataError(
            f"{source}: domain {sparse + 1} of {len(domains)} has {len(domains[sparse])} of {len(values)} rows, and "
            f"a domain needs {FEWEST} or more; give {'more rows' if isinstance(cells, list) else 'fewer --domains'}"
        )
    spans = [dict.fromkeys((texts[part[0]], texts[part[-1]])) for part in domains]
    unit = "" if isinstance(cells, list) else f"{order} " if order else "rows "
    names = [unit + " to ".join(span) for span in spans]
    return rows._replace(domains=[torch.from_numpy(part) for part in domains], names=names)


def read_labelled(source: str, folder: Path, card: Mapping[str, Any], target: str | None) -> NewRows:
    """The rows of a file or folder that test, each of which has a class of the model.

    Raises:
        DataError: they cannot be read, do not fit the model, or one has no label or an unknown one.
    """
    if is_table(source, named=target is not None):
        rows, _ = _table_rows(source, folder, card, target, None, labelled=True)
    elif card["kind"] != "image":
        raise DataError(f"{source}: the model was trained on a table; give one")
    else:
        listed = image_lists.list_images(sources.existing(source), target)
        rows, _ = _read_rows(source, listed.rows, card, listed.note)
    missing = (rows.y < 0).nonzero()
    if len(missing):
        raise DataError(f"{source}: row {int(missing[0]) + 1} (the first is 1) has no label; label it, or leave it out")
    return rows


def joined(new: NewRows, test: NewRows) -> NewRows:
    """The new rows with those of a test file after them."""
    x: Tensor | ImageStore
    if isinstance(new.x, Tensor) and isinstance(test.x, Tensor):
        x = torch.cat([new.x, test.x])
    else:
        channels, height, width = new.x.shape[1:]
        x = ImageStore([*new.sources, *test.sources], (channels, height, width))
    digests = None if new.digests is None or test.digests is None else torch.cat([new.digests, test.digests])
    note = "; ".join(filter(None, (new.note, test.note)))
    return new._replace(x=x, y=torch.cat([new.y, test.y]), digests=digests, note=note)


def cut(values: Any, count: int | None = None) -> list[Any]:
    """The ids of rows by domain, in the order of their values (n,); rows of one value stay together.

    Few different values are the domains themselves; of many, domains of about equal size are made.

    >>> [part.tolist() for part in cut(np.array([2, 1, 1, 3]))]
    [[1, 2], [0], [3]]
    >>> [len(part) for part in cut(np.arange(100), 3)]
    [33, 34, 33]
    """
    order = np.argsort(values, kind="stable")
    _, starts = np.unique(values[order], return_index=True)
    if count is None and len(starts) <= MOST_DOMAINS:
        return np.split(order, starts[1:])
    wanted = np.linspace(0, len(order), (count or DOMAINS) + 1)[1:-1]
    at = starts[np.minimum(np.searchsorted(starts, wanted - 0.5), len(starts) - 1)]
    return [part for part in np.split(order, np.unique(at)) if len(part)]


def _by_folder(folders: list[str]) -> Order:
    """The rows by their folders: by number where all are numbers, else by name."""
    names = sorted(set(folders))
    with contextlib.suppress(ValueError):  # names of letters stay in alphabetical order
        names.sort(key=float)
    return np.array([names.index(name) for name in folders]), folders


def _in_file(rows: int) -> Order:
    """The rows as they come."""
    return np.arange(rows), [str(i + 1) for i in range(rows)]


def _class_numbers(texts: Sequence[str], codes: Any, card: Mapping[str, Any], place: str) -> Tensor:
    """The class of the model for each label (n,): texts and their codes, -1 for none."""
    known = {name: i for i, name in enumerate(card["classes"])}
    for code, text in enumerate(texts):
        rows = np.flatnonzero(codes == code)
        if text not in known and len(rows):
            raise DataError(
                f"{place}, row {rows[0] + 1} (the first is 1): {one_line(text, 40)!r} is no class of the model "
                f"({', '.join(one_line(name, 20) for name in card['classes'][:6])}"
                f"{', ...' if len(known) > 6 else ''}); empty the cell, or teach the class by `selfdistill update`"
            )
    numbers = np.array([*(known.get(text, -1) for text in texts), -1])
    return torch.from_numpy(numbers[codes])


def _table_rows(
    source: str, folder: Path, card: Mapping[str, Any], target: str | None, order: str | None, labelled: bool = False
) -> tuple[NewRows, Order]:
    """The rows of a table and their order; where they must be ``labelled``, it has a target."""
    if card["kind"] != "table":
        raise DataError(f"{source} is a table, and the model reads images; give images")
    if not (folder / PREPROCESSOR).exists():
        raise DataError(
            f"{source}: the model was trained on tensors, and its inputs have no columns; use "
            "selfdistill.training.stream.fit_adapt"
        )
    path = sources.existing(source)
    table = read_table(path, () if target is None else (target,))
    ordered = _in_file(table.rows) if order is None else row_order(order, table)
    place, y = f"{path}: column '{target}'", torch.full((table.rows,), -1)
    if labelled and target not in table.columns:
        told = f"'{target}', which is the target" if target else "the target (--target)"
        raise DataError(f"{path}: no column is called {told}; it has: {', '.join(table.names)}")
    if target is not None and target in table.columns:
        cells = column_types.cells_of(table.take(target), place)
        y = _class_numbers(cells.texts, cells.codes, card, place)
    return NewRows(inputs_for(source, folder)[0], y), ordered


def _image_rows(
    source: str, folder: Path, card: Mapping[str, Any], target: str | None, order: str | None
) -> tuple[NewRows, Order | list[str]]:
    """The rows of images, and their order, or the sub-folder of each where these are the domains."""
    if card["kind"] != "image":
        raise DataError(f"{source}: the model was trained on a table; give one")
    root = sources.existing(source)
    if root.is_dir() and not image_lists.archives(root) and not is_saved_dataset(root):
        return _folder_rows(root, card, order)
    listed = image_lists.list_images(root, target, False, (order,))
    rows, listed_rows = _read_rows(source, listed.rows, card, listed.note)
    return rows, _in_file(len(rows.y)) if order is None else row_order(order, image_lists.cell_table(root, listed_rows))


def _folder_rows(root: Path, card: Mapping[str, Any], order: str | None) -> tuple[NewRows, Order | list[str]]:
    """Images in a folder for each domain, in folders by class there where they have labels."""
    if order is not None:
        raise DataError(f"{root}: images of a folder have no column '{order}'; give a table of paths, or leave it out")
    known, paths = set(card["classes"]), images.find_images(root)
    parts = [path.relative_to(root).parts[:-1] for path in paths]
    tops = {part[0] if part else "" for part in parts}
    if "" in tops and len(tops) > 1:
        loose = next(path for path, part in zip(paths, parts, strict=True) if not part)
        raise DataError(f"{loose}: an image beside the folders of the domains; move it into one of them")
    if tops <= {*known, *image_lists.UNLABELLED}:
        raise DataError(
            f"{root}: its sub-folders are classes, and adaptation needs an order; give a folder for each domain, with "
            "the classes in it, or a table of paths with --order COL"
        )
    by_class = {part[0] for part in parts if len(part) > 1 and part[-1] in known}  # where folders are classes
    rows = []
    for path, part in zip(paths, parts, strict=True):
        label = part[-1] if len(part) > 1 and part[0] in by_class and part[-1] not in image_lists.UNLABELLED else ""
        rows.append(image_lists.ImageRow(images.image_file(path), label, cells={"domain": part[0] if part else ""}))
    read, kept = _read_rows(str(root), rows, card, "")
    return read, _in_file(len(kept)) if tops == {""} else [row.cells["domain"] for row in kept]


def _read_rows(
    source: str, rows: Sequence[image_lists.ImageRow], card: Mapping[str, Any], note: str
) -> tuple[NewRows, list[image_lists.ImageRow]]:
    """The images that can be read, of the size and channels of the model; the others are told.

    Raises:
        DataError: none can be read, or one has an unknown class.
    """
    channels, height, width = card["shape"]
    reading = read_all([row.source for row in rows], width)
    kept = [rows[i] for i in reading.rows]
    note = "; ".join(filter(None, (note, images.skip_note(Path(source), reading.skipped))))
    if not kept:
        raise DataError(f"{source}: no image can be read ({note}); repair or remove them")
    texts = sorted({row.label for row in kept if row.label})
    y = _class_numbers(texts, np.array([texts.index(row.label) if row.label else -1 for row in kept]), card, source)
    x: Tensor | ImageStore = reading.x
    files = [row.source for row in kept]
    if tuple(x.shape[1:]) != (channels, height, width):
        x = ImageStore(files, (channels, height, width))
    return NewRows(x, y, sources=files, digests=reading.digests, note=note), kept
