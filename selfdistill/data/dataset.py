"""The data set: a name, a folder, a table or two tensors become rows with ids, labels and splits."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..io.expressions import Range, one_line
from ..io.files import DATA_CARD, FORMAT, check_format, write
from ..io.schema import read_json
from ..views import Views
from . import annotators as panel
from . import column_types, image_lists, images, sources, splits, tables
from .augment import Tokens, one_sided, read_parts
from .column_types import Column
from .copies import CopyReport, check_values, notices, row_groups, time_values
from .decisions import RowNames, decide
from .embeddings import Embedding
from .image_store import ImageStore, row_sources
from .sources import NAMES, RawData
from .split_columns import SplitRequest, Tasks
from .table_files import SHOWN, Table, is_saved_dataset, is_table, read_table

PREPROCESSOR = "preprocessor.skops"


@dataclass(frozen=True, eq=False)
class Data:
    """Rows, labels and splits; a sample id is a row's index in ``x``, in every split.

    >>> digits = load("digits")
    >>> digits.shape, len(digits.labelled), len(digits.audit), len(digits.test)
    ((1, 8, 8), 1097, 200, 500)
    """

    name: str
    kind: str  # "image" | "table" | "text" | "embedding"
    task: str  # "classify" | "regress" | "features": no row has a label
    # (n, channels, height, width) uint8 or float32; (n, features) float32; (n, length) int32 of tokens
    x: Tensor | ImageStore
    y: Tensor  # (n,) int64, -1 for no label; or float32, nan for no label
    classes: tuple[str, ...]  # empty for regression
    labelled: Tensor  # sample ids that teach with their label
    unlabelled: Tensor  # that teach without
    audit: Tensor  # labelled, never teach: they accept and choose
    test: Tensor  # labelled, read once at the end
    flips: bool  # is a mirrored image still of its class?
    augment: str  # the default view: "none" or "weak"
    noisy: Tensor  # (n,) bool: the label was made wrong on purpose
    preprocessor: Any = None  # tables: the fitted scikit-learn transformer
    white: int = 255  # the pixel value that stands for 1.0
    center: float = (
        0.0  # values: mean and standard deviation of the labels that teach; models learn (y - center) / scale
    )
    scale: float = 1.0
    reader: Any = None  # texts: a `text.Reader`, with the tokenizer
    cut: int = 0  # texts: rows with more tokens than are read
    names: tuple[str, ...] = ()  # the file of each row, where rows are files
    groups: Tensor | None = None  # (n,) int64: rows of one number share a split; None where every row is alone
    tasks: Tasks | None = None  # of a stream: the task of each row by a column
    copies: CopyReport = CopyReport()
    columns: tuple[Column, ...] = ()  # tables: how each column was read
    title: str = ""  # of the report on them
    digests: Tensor | None = None  # (n, 16) uint8 of image files: equal for equal pixels
    skip_note: str = ""  # files that are no rows, and why
    counts: tuple[tuple[str, int], ...] = ()  # of tables: the rows of each file
    decision_note: str = ""  # what a file of decisions changed
    clean: Tensor = torch.zeros(0, dtype=torch.int64)  # sample ids whose labels are trusted, none of the audit
    before_noise: Tensor | None = None  # (n,) the labels before some were made wrong on purpose
    test_note: str = ""  # that the test split has few rows
    guessed: Tensor = torch.zeros(0, dtype=torch.int64)  # sample ids whose labels a model gave
    votes: panel.AnnotatorLabels | None = None  # the labels of several annotators; y is their consensus
    embedding: Embedding | None = None  # of rows that are features of images by a frozen model

    def rows(self, ids: Tensor) -> Tensor:
        """Model input of these samples: float32, images in [0, 1]; int64 tokens; shape (len(ids), *shape)."""
        return self._as_input(self.x[ids])

    def _as_input(self, values: Tensor) -> Tensor:
        if self.kind == "text":
            return values.long()
        return values.float() / self.white if values.dtype == torch.uint8 else values

    def chunks(self, ids: Tensor, rows: int) -> Iterator[Tensor]:
        """The model input of many samples, ``rows`` at a time; images on disk are read ahead by workers."""
        if isinstance(self.x, ImageStore):
            yield from map(self._as_input, self.x.chunks(ids, rows))
        else:
            yield from map(self.rows, ids.split(rows))

    @property
    def tensor(self) -> Tensor:
        """All inputs (n, ...) as they are kept in memory.

        Raises:
            DataError: they are images on disk.
        """
        if isinstance(self.x, ImageStore):
            raise DataError(f"{self.name} is too large for memory; read it by `rows` or `chunks`")
        return self.x

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one row's input."""
        return tuple(self.x.shape[1:])

    @property
    def head(self) -> str:
        """The model's main head for this task."""
        return "values" if self.task == "regress" else "logits"

    @property
    def outputs(self) -> int:
        """The width of that head."""
        return len(self.classes) or 1

    @property
    def tokens(self) -> Tokens | None:
        """The mask token and the special tokens of the tokenizer; None for other data."""
        return self.reader.tokens if self.reader is not None else None

    @property
    def note(self) -> str:
        """A notice about these rows for the user, to print before training; mostly empty."""
        lines = [column_types.report(self.title, self.columns)] if self.columns else []
        if self.skip_note:
            lines.append(f"{self.name}: {self.skip_note}")
        lines += notices(self.name, self.copies.describe())
        lines += filter(None, (self.decision_note, self.test_note))
        if len(self.clean) and not bool(torch.isin(self.clean, self.labelled).any()):
            lines.append(f"{self.name}: {len(self.clean)} validation rows have the clean labels, and judge no more")
        if self.kind == "image" and self.augment == "weak" and not self.flips and (sign := one_sided(self.classes)):
            lines.append(
                f"{self.name}: the class '{sign}' is a letter or a digit, so images are not mirrored; `--augment "
                "flip,shift` mirrors them"
            )
        if self.task == "features":
            inputs = tables.feature_names(self.preprocessor) if self.preprocessor is not None else []
            told = f" (inputs: {', '.join(inputs[:12])}{', ...' * (len(inputs) > 12)})" if inputs else ""
            lines.append(
                f"{self.name}: no row has a label{told}; nothing can be scored; the last weights are the final model"
            )
        if self.cut:
            lines.append(
                f"{self.name}: {self.cut} of {len(self.x)} texts are longer than {self.shape[0]} tokens and were cut "
                "there"
            )
        return "\n".join(lines)

    @property
    def row_names(self) -> RowNames:
        """The names of the rows, by which a file of decisions knows them."""
        return RowNames(self.names, self.counts)

    def with_augmentation(self, text: str | None) -> Data:
        """The same data with another default view: none, weak, strong, or parts, which say whether images are mirrored.

        Raises:
            RecipeError: there is no such view or part for this kind of data.
        """
        if text is None or text in ("none", "weak", "strong"):
            return replace(self, augment=text or self.augment)
        parts = read_parts(text, self.kind)
        return replace(self, augment=",".join(parts), flips="flip" in parts)

    @cached_property
    def targets(self) -> Tensor:
        """The training targets, (n,): the class of each row, or its standardised value."""
        return (self.y - self.center) / self.scale if self.task == "regress" else self.y

    def in_units(self, outputs: Tensor) -> Tensor:
        """A model's standardised values (rows, 1) in the unit of the target, (rows,)."""
        return self.scale * outputs.squeeze(-1) + self.center

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over inputs, labels and splits: a run resumes on the same data only."""
        digest = hashlib.sha256(repr((self.kind, self.task, self.classes, self.white)).encode())
        inputs = self.digests if self.digests is not None else self.x
        if self.digests is not None:
            digest.update(repr(self.shape).encode())
        assert isinstance(inputs, Tensor), "images on disk have digests"
        more = [*([self.clean] if len(self.clean) else []), *([self.votes.labels] if self.votes else [])]
        for part in (inputs, self.y, self.labelled, self.unlabelled, self.audit, self.test, *more):
            digest.update(repr((part.dtype, tuple(part.shape))).encode())
            digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()

    def describe(self) -> dict[str, object]:
        """The description of the data for a run's record, as JSON values."""
        parts = {name: len(getattr(self, name)) for name in ("labelled", "unlabelled", "audit", "test")}
        parts |= {"clean": len(self.clean)} if len(self.clean) else {}
        wrong = int(self.noisy[self.labelled].sum())
        return {
            "name": self.name,
            "kind": "image" if self.embedding else self.kind,
            "task": self.task,
            "shape": list(self.embedding.shape if self.embedding else self.shape),
            "classes": list(self.classes),
            "rows": parts,
            "noise": wrong / max(parts["labelled"], 1),
            "flips": self.flips,
            "augment": self.augment,
            "fingerprint": self.fingerprint,
            **({"text": self.reader.column, "cut": self.cut} if self.reader is not None else {}),
            **({column_types.RECORD: [column.to_json() for column in self.columns]} if self.columns else {}),
            **({"annotators": list(self.votes.names)} if self.votes else {}),
            **self.copies.describe(),
        }


def load(
    source: str | os.PathLike[str] = "digits",
    *,
    target: str | None = None,
    unlabelled: str | None = None,
    labels: int | None = None,
    label_noise: float = 0.0,
    audit: float | str | Path | None = None,
    test: float | str | Path | None = None,
    seed: int = 0,
    image_size: int | None = None,
    reader: Any = None,
    labelled: bool = True,
    columns: Mapping[str, column_types.Kind] | None = None,
    groups: str | None = None,
    time: str | None = None,
    tasks: str | None = None,
    preprocessor: Any = None,
    taught: Sequence[str] = (),
    decisions: str | Path | None = None,
    raw_csv: bool = False,
    annotators: str | None = None,
) -> Data:
    """The data ``source``: "digits", "fashion-mnist", a folder of images or IDX files, or the file of a table.

    ``target`` names a table's target column; rows without one teach unlabelled, as those of ``unlabelled``.
    ``labels`` keeps that many training labels, ``label_noise`` makes that share of them wrong, ``test`` is a
    share of the labelled rows and ``audit`` one of the rest. The test split does not depend on ``seed``. A
    ``reader`` (`text.reader`) makes token ids of a table's column of texts. Unless they must be ``labelled``, a folder
    may have no classes and a table no target: such data teach features. ``columns`` are the types of a table's columns
    where they are not to be inferred: numeric, categorical, date, text or identifier (both are left out).

    Equal inputs share a split. So do, of a table, the rows of one value of the column ``groups``; by the column
    ``time`` the latest rows test and the earliest teach. ``test`` and ``audit`` may be files or folders with the rows
    of these splits, and a column ``split`` of the words train, validation and test names the split of each row: such
    splits are taken as they are. The column ``tasks`` names the task of each row of a stream. For a model that goes on,
    ``preprocessor`` is that of its table and ``taught`` are its classes, of which the data need no rows that teach.
    ``decisions`` is a file (`data.decisions`; ``raw_csv`` if it was written so) whose labels come to those that teach,
    after the splits were drawn. ``annotators`` names columns with the labels of several annotators, as in ``a,b,c``,
    whose consensus is the target then.

    Raises:
        DataError: anything in the data or the request that cannot be used; the message names it and a remedy.

    >>> load("digits", labels=100, label_noise=0.4).noisy.sum().item()  # 40 of training, 40 of audit
    80
    """
    source = os.fspath(source)
    folder = Path(unlabelled) if unlabelled is not None else None
    options: dict[str, Any] = {"labels": labels, "label_noise": label_noise, "seed": seed}
    options |= {"decisions": decisions, "raw_csv": raw_csv}
    files = [Path(part) if isinstance(part, str | Path) else None for part in (test, audit)]
    test, audit = (None if isinstance(part, str | Path) else part for part in (test, audit))
    request = SplitRequest(groups, time, files[0], files[1], tasks, panel.read_names(annotators, label_noise))
    if reader is None:
        raw = sources.read_source(
            source,
            target=target,
            unlabelled=folder,
            image_size=image_size,
            labelled=labelled,
            types=columns,
            request=request,
        )
        return _assemble(raw, audit, test, preprocessor=preprocessor, taught=taught, **options)
    raw, cut = reader.source(source, target, folder, columns, request)
    return replace(_assemble(raw, audit, test, **options), reader=reader, cut=cut)


def from_tensors(
    x: Tensor,
    y: Tensor,
    classes: Sequence[str] | None = None,
    *,
    name: str = "tensors",
    labels: int | None = None,
    label_noise: float = 0.0,
    audit: float | Tensor | None = None,
    test: float | Tensor | None = None,
    seed: int = 0,
    flips: bool = False,
    augment: str = "none",
    groups: Any = None,
    time: Any = None,
) -> Data:
    """Data from inputs (n, features) or images (n, 1 or 3, height, width), and labels (n,).

    Integer labels are classes, -1 for none; floating labels are values, nan for none. Images are uint8, or
    floating in [0, 1]. ``audit`` and ``test`` are shares (0 for none), sample ids, or masks (n,). Rows with equal
    inputs or one value of ``groups`` (n,) share a split; by ``time`` (n,), numbers or dates, the latest rows test.

    Raises:
        DataError: values that are not finite, labels outside the classes, shapes that do not fit, ids of ``audit``
            and ``test`` that are no rows, come twice, are in both, or have no label.

    >>> data = from_tensors(torch.rand(100, 3), torch.arange(100) % 2)
    >>> data.kind, data.classes, len(data.test)
    ('table', ('0', '1'), 20)
    """
    y = y.float() if y.is_floating_point() else y.long()
    x = x if x.dtype == torch.uint8 and x.ndim == 4 else x.float()
    check_inputs(x, y, name)
    names: tuple[str, ...] = ()
    if not y.is_floating_point():
        names = tuple(classes) if classes is not None else tuple(map(str, range(int(y.max()) + 1)))
    _check_targets(y, names, name)
    kind = "image" if x.ndim == 4 else "table"
    owners = None if groups is None else check_values(groups, len(y), f"{name}: groups")
    moments = None if time is None else time_values(check_values(time, len(y), f"{name}: time"), f"{name}: time")
    raw = RawData(name, kind, y, names, x=x, flips=flips, augment=augment, groups=owners, time=moments)
    return _assemble(raw, audit, test, labels=labels, label_noise=label_noise, seed=seed)


def from_dataset(
    dataset: Any,
    classes: Sequence[str] | None = None,
    *,
    name: str = "dataset",
    image_size: int | None = None,
    labels: int | None = None,
    label_noise: float = 0.0,
    audit: float | Tensor | None = None,
    test: float | Tensor | None = None,
    seed: int = 0,
) -> Data:
    """Data from a `torch.utils.data.Dataset` or any sequence of rows ``(x, y)``, as those of torchvision.

    A row may be a mapping too, with its only image or ``x`` and its ``label``. Pillow's images are those of a folder:
    ``image_size`` pixels a side, and read again in each epoch where they do not fit in memory. Tensors and arrays go
    through `from_tensors`. The data set must not augment: views do.

    Raises:
        DataError: it has no length, its rows are something else, or as `from_tensors`.

    >>> from torch.utils.data import TensorDataset
    >>> data = from_dataset(TensorDataset(torch.rand(100, 3), torch.arange(100) % 2))
    >>> data.kind, len(data.test)
    ('table', 20)
    """
    options: dict[str, Any] = {"labels": labels, "label_noise": label_noise, "seed": seed}
    x, y = row_sources(dataset, name)
    if isinstance(x, Tensor):
        return from_tensors(x, y, classes, name=name, audit=audit, test=test, **options)
    names = tuple(classes) if classes is not None else tuple(map(str, range(int(y.max()) + 1)))
    _check_targets(y, names, name)
    listed = [images.Listed(source, label) for source, label in zip(x, y.tolist(), strict=True)]
    pictures = images.read_listed(Path(name), listed, names, image_size or sources.IMAGE_SIZE)
    raw = sources.of_pictures(name, pictures, True)
    raw = raw if classes is not None else replace(raw, flips=True)  # names that nobody gave tell nothing
    return _assemble(raw, audit, test, **options)


def write_card(data: Data, folder: Path) -> None:
    """Write the card that prepares other inputs the same way: data.json and, for tables, preprocessor.skops."""
    folder.mkdir(parents=True, exist_ok=True)
    card: dict[str, Any] = {"format": FORMAT, **data.describe()}
    if data.preprocessor is not None:
        tables.save(data.preprocessor, folder / PREPROCESSOR)
        card["columns"] = tables.feature_names(data.preprocessor)
    if data.reader is not None:
        card |= data.reader.save(folder)
    write(folder / DATA_CARD, json.dumps(card, indent=2) + "\n")


def inputs_for(source: str, model_folder: Path) -> tuple[Tensor | ImageStore, list[str]]:
    """Model input and a name per row for ``source``, prepared as the training data of ``model_folder`` were.

    ``source`` is a data name or IDX folder (its test images), an image, a folder of images at any depth, a tar archive
    or table of paths of images, or a table; rows are counted from 1 on.

    Raises:
        DataError: no such data, data of another kind or shape, or a model folder without a readable card.
    """
    card = read_card(model_folder / DATA_CARD)
    kind, shape = str(card["kind"]), tuple(card["shape"])
    if kind == "text":
        from . import text

        return text.inputs(source, card, model_folder)
    if is_table(source) and kind != "table":
        raise DataError(
            f"{source}: the model was trained on images; give an image, a folder of images, a tar archive, or a "
            "CSV file with a column of paths to existing images"
        )
    x: Tensor | ImageStore
    if kind == "table" and is_table(source, named=True):
        input_kind, x, names = "table", *_table_inputs(sources.existing(source), model_folder, card)
    elif source in NAMES or len(images.idx_files(Path(source))) == len(images.IDX_STEMS):
        if source in sources.TABLES and kind == "table":
            return _known_inputs(source, model_folder)
        data = load(source)
        input_kind, x, names = data.kind, data.rows(data.test), [f"test/{i + 1}" for i in data.test.tolist()]
    elif kind != "image":
        raise DataError(f"{source}: the model was trained on a table; give one ({SHOWN})")
    else:
        files, names = image_lists.image_sources(sources.existing(source))
        input_kind, x = "image", ImageStore(files, (shape[0], shape[1], shape[2]))
    if (input_kind, tuple(x.shape[1:])) != (kind, shape):
        raise DataError(
            f"{source}: {input_kind} rows of shape {tuple(x.shape[1:])}, but the model was trained on {kind} rows "
            f"of shape {shape}; give data of that shape"
        )
    return x, names


def unread(source: str, names: Sequence[str]) -> str:
    """One line about the files of an image folder that are not among the ``names`` of its rows; mostly empty."""
    root = Path(source)
    if not root.is_dir() or images.idx_files(root) or image_lists.archives(root) or is_saved_dataset(root):
        return ""
    return images.skip_note(root, images.left_out(root, [str(root / name) for name in names]))


# ---- from a source to data -------------------------------------------------------------------------


def _assemble(
    raw: RawData,
    audit: float | Tensor | None,
    test: float | Tensor | None,
    *,
    labels: int | None,
    label_noise: float,
    seed: int,
    preprocessor: Any = None,
    taught: Sequence[str] = (),
    decisions: str | Path | None = None,
    raw_csv: bool = False,
) -> Data:
    """Draw the splits; a table's preprocessing, unless it is given, is then learnt from the training rows alone."""
    column = splits.LabelColumn(raw.name, raw.y, raw.classes, tuple(taught))
    groups = None if raw.bare else row_groups(raw.inputs, raw.groups, raw.time)
    parts = splits.make_splits(
        column,
        test=_requested_split(raw, "test", raw.test, test),
        audit=_requested_split(raw, "audit", raw.audit, audit),
        labels=labels,
        label_noise=label_noise,
        seed=seed,
        bare=raw.bare,
        groups=groups,
    )
    parts, note, guessed = decide(parts, column, raw.row_names, decisions, raw_csv)
    copies = splits.report_copies(column, groups, parts, raw.names)
    if raw.gradients is not None and not raw.bare:
        copies = splits.report_near_copies(copies, raw.gradients, raw.names, parts)
    (center, scale), x = _standard(raw, parts), raw.x
    if raw.features is not None:
        preprocessor = preprocessor or tables.fit(raw.features, torch.cat([parts.labelled, parts.unlabelled]))
        x = tables.transform(preprocessor, raw.features, raw.name)
    assert x is not None, "a source has inputs or features"
    return Data(
        **_taken_over(raw),
        x=x,
        preprocessor=preprocessor,
        center=center,
        scale=scale,
        groups=None if groups is None else groups.groups,
        copies=copies,
        decision_note=note,
        guessed=guessed,
        test_note=splits.notice_of_test(raw.name, raw.test if test is None else test, parts.test),
        votes=raw.votes and raw.votes.decided(raw.y, parts.y),
        **parts._asdict(),
    )


def _taken_over(raw: RawData) -> dict[str, Any]:
    """What data take over from their source as it is."""
    return {
        "name": raw.name,
        "kind": raw.kind,
        "task": raw.task,
        "classes": raw.classes,
        "flips": raw.flips,
        "augment": raw.augment,
        "white": raw.white,
        "names": raw.names,
        "columns": raw.columns,
        "title": raw.title,
        "digests": raw.digests,
        "skip_note": raw.skip_note,
        "tasks": raw.tasks,
        "counts": raw.counts,
    }


def _standard(raw: RawData, parts: splits.Splits) -> tuple[float, float]:
    """Mean and standard deviation of the values that teach; (0, 1) for classes.

    Raises:
        DataError: they are all the same.
    """
    if raw.task != "regress":
        return 0.0, 1.0
    y = parts.y[parts.labelled].double()
    center, scale = float(y.mean()), float(y.std(correction=0))
    if float(y.max()) == float(y.min()):
        raise DataError(
            f"{raw.name}: the target is {center:g} in all {len(y)} rows that teach; there is nothing to learn, "
            "choose another column"
        )
    return center, scale


def _requested_split(raw: RawData, split: str, default: splits.Part, request: float | Tensor | None) -> splits.Part:
    """The requested split, or that of the source itself."""
    if request is None:
        return default
    if isinstance(default, Tensor):
        raise DataError(f"{raw.name}: its {split} rows are given by its files; leave {split} out")
    if isinstance(request, Tensor):
        return splits.row_ids(raw.name, split, request, len(raw.y))
    if not 0 <= request < 1:
        raise DataError(f"{raw.name}: {split} is a share from 0 to below 1, not {request}; try 0.2")
    return float(request)


# ---- checks of tensors -----------------------------------------------------------------------------


def check_inputs(x: Tensor, y: Tensor, name: str) -> None:
    """Refuse inputs that no network of this package reads, or that are not as many as the labels (rows,).

    Raises:
        DataError: their shape, a value that is not finite, or images outside [0, 1].
    """
    if x.ndim not in {2, 4} or not x.numel() or (x.ndim == 4 and x.shape[1] not in {1, 3}):
        raise DataError(f"{name}: inputs of shape {tuple(x.shape)}; give (n, features) or (n, 1 or 3, height, width)")
    if tuple(y.shape) != (len(x),):
        raise DataError(f"{name}: labels of shape {tuple(y.shape)} for {len(x)} rows; give one label per row")
    if x.dtype == torch.uint8:
        return
    broken = (~torch.isfinite(x)).nonzero()
    if len(broken):
        index = broken[0].tolist()
        column = f"column {index[1]}" if x.ndim == 2 else f"channel, y, x = {tuple(index[1:])}"
        raise DataError(f"{name}: {x[tuple(index)].item()} in row {index[0]}, {column} (from 0); remove or fill it")
    if x.ndim == 4 and (float(x.min()) < 0 or float(x.max()) > 1):
        raise DataError(f"{name}: images from {float(x.min()):g} to {float(x.max()):g}; scale them to [0, 1]")


def _check_targets(y: Tensor, classes: tuple[str, ...], name: str) -> None:
    if y.is_floating_point():
        wrong, remedy = torch.isinf(y), "use a finite value, or nan for none"
    else:
        wrong = (y < -1) | (y >= len(classes))
        remedy = f"use 0..{len(classes) - 1}, or -1 for no label"
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise DataError(f"{name}: label {y[row].item()} in row {row} (from 0) is out of range; {remedy}")


# ---- inputs for a trained model --------------------------------------------------------------------


_CARD = {
    "format?": Any,
    "kind": frozenset({"image", "table", "text"}),
    "shape": [Range(1, 2**31)],
    "text?": str,
    "columns?": [str],
}


def read_card(path: Path) -> dict[str, Any]:
    """The card of the data that a model was trained on, which says how other inputs are prepared.

    Raises:
        DataError: it cannot be read, or is no such card.
    """
    try:
        card: dict[str, Any] = read_json(path, _CARD)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else one_line(error, 120)
        raise DataError(f"{path}: cannot be read ({reason}); give the model folder of a finished run") from None
    check_format(path, card.get("format"))
    return card


def saved_column_types(model_folder: Path) -> dict[str, column_types.Kind]:
    """How each column of the table that a model was trained on is read, as `load` takes it."""
    path = model_folder / DATA_CARD
    specs = column_types.from_json(read_card(path).get(column_types.RECORD), str(path))
    return {spec.name: spec if spec.type in column_types.USED else "identifier" for spec in specs}


def _known_inputs(source: str, folder: Path) -> tuple[Tensor, list[str]]:
    """The test rows of a table by name, through the saved preprocessing."""
    table, test = tables.sklearn_table(source), load(source).test
    x = tables.transform(tables.load(folder / PREPROCESSOR), table.features.iloc[test.numpy()], source)
    return x, [f"test/{i + 1}" for i in test.tolist()]


def _table_inputs(path: Path, model_folder: Path, card: dict[str, Any]) -> tuple[Tensor, list[str]]:
    specs = saved_columns(model_folder, card)
    table = read_table(path, (), tables.literal_names(specs))
    names = [str(row + 1) for row in range(table.rows)]
    return table_inputs(table, model_folder, specs), names


def saved_columns(model_folder: Path, card: Mapping[str, Any]) -> list[Column]:
    """The columns that the preprocessing of a model folder reads; none of a model trained on bare tensors."""
    if not (model_folder / PREPROCESSOR).exists():
        return []
    return column_types.from_json(card.get(column_types.RECORD), str(model_folder / DATA_CARD))


def table_inputs(table: Table, model_folder: Path, specs: Sequence[Column]) -> Tensor:
    """Inputs (rows, features) through the saved preprocessing of these columns; a model trained on bare tensors, which
    has none, takes the numbers as they are.

    Raises:
        DataError: the table does not fit the model.
    """
    if (model_folder / PREPROCESSOR).exists():
        features = tables.prepare(table, specs)
        return tables.transform(tables.load(model_folder / PREPROCESSOR), features, str(table.path))
    values = tables.prepare(table, [Column(name, "numeric") for name in table.names]).to_numpy(np.float32)
    x = torch.tensor(values)
    check_inputs(x, torch.zeros(len(x)), str(table.path))
    return x


def with_clean_rows(data: Data, views: Views, seed: int = 0) -> Data:
    """The data with the rows ``clean`` that a method's views name; they are drawn once, and the audit loses them.

    Labels that were made wrong on purpose are put right in them, as if a person had checked these rows.

    Args:
        data: the rows and their splits.
        views: of the method.
        seed: of the draw, which keeps the shares of classes.

    Raises:
        DataError: there are not as many validation rows, or none at all.

    >>> from selfdistill.views import View
    >>> data = with_clean_rows(load("digits", label_noise=0.4), Views((View("x"), View("clean", "clean")), clean=100))
    >>> len(data.clean), len(data.audit), int(data.noisy[data.clean].sum())
    (100, 100, 0)
    """
    checked = data.clean[torch.isin(data.clean, data.labelled)]
    if not views.need_clean() or len(checked) < len(data.clean) or (views.clean is None and len(checked)):
        return data
    share = 0.5 if views.clean is None else views.clean
    number = round(share * len(data.audit)) if share < 1 else int(share)
    if not 0 < number <= len(data.audit):
        raise DataError(
            f"{data.name}: the method takes {number or 'some'} rows with clean labels from {len(data.audit)} "
            "validation rows; give more by --validation, fewer by clean=N, or labels that a person decided by "
            "--labels FILE"
        )
    y, noisy, right = data.y.clone(), data.noisy.clone(), data.y if data.before_noise is None else data.before_noise
    clean = splits.draw(data.audit, right, number, (seed, "clean"), groups=data.groups)
    y[clean], noisy[clean] = right[clean], False
    return replace(data, y=y, noisy=noisy, clean=clean, audit=splits.difference(data.audit, clean))


class Sealed(Data):
    """Data whose test split cannot be read: it has no ids and no labels, and reading its rows is an error.

    >>> from selfdistill.data.dataset import load
    >>> whole = load("digits")
    >>> kept = sealed(whole)
    >>> len(kept.test), kept.fingerprint == whole.fingerprint
    (0, True)
    """

    _test_mask: Tensor  # (n,) bool
    _full: Data

    def rows(self, ids: Tensor) -> Tensor:
        """As in `Data`.

        Raises:
            DataError: some of the rows are of the test split.
        """
        self._refuse_test(ids)
        return self._as_input(self.x[ids])

    def chunks(self, ids: Tensor, rows: int) -> Iterator[Tensor]:
        self._refuse_test(ids)
        return super().chunks(ids, rows)

    def _refuse_test(self, ids: Tensor) -> None:
        if bool(self._test_mask[ids].any()):
            row = int(ids[self._test_mask[ids]][0])
            raise DataError(
                f"{self.name}: row {row} of the test split was asked for during training; what is chosen by it proves "
                "nothing: choose by the audit split, and read the test split once, at the end"
            )

    @property
    def fingerprint(self) -> str:  # that of the whole: it is the same data
        return self._full.fingerprint


def sealed(data: Data) -> Sealed:
    """The same data with the test split out of reach; rows keep their ids."""
    if isinstance(data, Sealed):
        return data
    test_mask = torch.zeros(len(data.y), dtype=torch.bool)
    test_mask[data.test] = True
    values = {f.name: getattr(data, f.name) for f in fields(Data)}
    no_label = torch.tensor(torch.nan if data.y.is_floating_point() else -1, dtype=data.y.dtype)
    values |= {"y": torch.where(test_mask, no_label, data.y), "test": data.test[:0]}
    if data.before_noise is not None:
        values["before_noise"] = torch.where(test_mask, no_label, data.before_noise)
    copy = Sealed(**values)
    object.__setattr__(copy, "_test_mask", test_mask)
    object.__setattr__(copy, "_full", data)
    return copy
