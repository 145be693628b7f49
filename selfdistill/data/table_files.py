"""Files of tables: each format is read by the library that people use for it, and columns are taken one at a time.

CSV and TSV (packed too, as pandas reads them), Excel, JSON, JSON lines and NumPy archives; Parquet, Feather and Arrow;
a folder that `datasets.Dataset.save_to_disk` wrote, or ``hf:owner/name`` of the Hugging Face hub.
"""

from __future__ import annotations

import codecs
import csv
import json
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..io.expressions import one_line
from .images import path_column
from .prompt_files import SPLITS

PACKED = ("", ".gz", ".bz2", ".xz", ".zip", ".zst")


TEXT = tuple(name + packed for name in (".csv", ".tsv") for packed in PACKED)


LINES = (".ndjson", ".jsonl")  # .jsonl holds prompts, unless a column is the target


SUFFIXES = (*TEXT, ".parquet", ".feather", ".arrow", ".xlsx", ".json", ".ndjson", ".npz")


SHOWN = "CSV, TSV, Excel, Parquet, Feather, JSON lines or .npz"


HUB = "hf:"


SEPARATORS = ",;\t|"


CHUNK_CELLS = 1_000_000


# Cells that pandas reads as missing. As a target such words are names of classes, and only an empty cell is missing.
MISSING = (
    "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL",
    "NaN", "None", "n/a", "nan", "null", "",
)  # fmt: skip


@dataclass
class Table:
    """A table whose columns are taken out one at a time, so that none is held twice."""

    path: Path
    columns: dict[str, Callable[[], Any]]  # each makes a pandas series
    rows: int
    note: str = ""  # what a person should know of how the file was read
    comma: bool = False  # whether cells are separated by something else, so that a comma is likely in a number

    @property
    def names(self) -> list[str]:
        """The names of the columns that were not taken out yet."""
        return list(self.columns)

    def take(self, name: str) -> Any:
        """A column, which the table then forgets.

        Raises:
            DataError: the file is damaged where the column lies.
        """
        with _readable(self.path, f"column '{one_line(name, 40)}' cannot be read"):
            return self.columns.pop(name)()


def is_table(source: str, named: bool = False) -> bool:
    """Whether a source is a table by its name, or a folder of `datasets`.

    Args:
        source: a path or a name.
        named: whether one of its columns was named, so that JSON lines are rows and no prompts.
    """
    name = source.lower()
    if path_column(source) is not None or dataset_images(source) is not None:
        return False
    return (
        name.endswith(SUFFIXES)
        or (named and name.endswith(LINES))
        or source.startswith(HUB)
        or is_saved_dataset(source)
    )


def is_saved_dataset(source: str | Path) -> bool:
    """Whether a source is a folder that `save_to_disk` of `datasets` wrote."""
    return (
        any(Path(source, name).is_file() for name in ("dataset_dict.json", "state.json"))
        and not Path(source, "run.json").exists()
    )


def dataset_images(source: str | Path) -> str | None:
    """The column of images of a folder that `save_to_disk` wrote; None where it has none, or is no such folder."""
    if not is_saved_dataset(source):
        return None
    for card in sorted(Path(source).glob("**/dataset_info.json")):
        with suppress(OSError, ValueError, AttributeError):
            for name, feature in json.loads(card.read_text(encoding="utf-8"))["features"].items():
                if isinstance(feature, dict) and feature.get("_type") == "Image":
                    return str(name)
    return None


def pandas() -> Any:
    """The pandas module, or the name of the extra that brings it."""
    try:
        import pandas as module
    except ImportError:
        raise DataError("reading tables needs pandas: pip install 'selfdistill[tables]'") from None
    return module


def read_table(path: Path, written: Iterable[str] = (), literal: Iterable[str] = ()) -> Table:
    """The table in a file, with at least one row.

    Args:
        path: of the file or folder; ``hf:owner/name`` is a data set of the hub.
        written: columns whose cells are kept as they are written, with no missing ones but empty ones: the target.
        literal: columns whose cells are kept as they are written, but for missing ones.

    Raises:
        DataError: the file is missing, empty, or not of the format its name says.
    """
    pandas()
    if not path.exists() and not str(path).startswith(HUB):
        raise DataError(f"{path}: no such table; give the path of an existing file ({SHOWN})")
    with _readable(path, "cannot be read as a table"):
        table = _reader(path)(path, frozenset(written), frozenset(literal))
    if not table.rows or not table.columns:
        raise DataError(f"{path}: the table has no rows; add some")
    return table


@contextmanager
def _readable(path: Path, fault: str) -> Iterator[None]:
    """Turn what the library of a format raises into one line."""
    try:
        yield
    except DataError:
        raise
    except ImportError as error:
        raise DataError(f"{path}: {_package(error)}") from None
    except MemoryError:
        raise DataError(f"{path}: the table does not fit into memory; give fewer rows or columns") from None
    except Exception as error:  # each library has errors of its own
        reason = one_line(error, 160) or type(error).__name__
        raise DataError(f"{path}: {fault} ({reason}); repair or export it again") from None


def _package(error: ImportError) -> str:
    """The remedy for a package that is missing."""
    extras = {"datasets": "'selfdistill[datasets]'", "zstandard": "zstandard"}
    for word in (*extras, "openpyxl", "pyarrow"):
        if word in f"{error} {error.name}":
            remedy = extras.get(word, "'selfdistill[tables]'")
            return f"reading it needs {word}: pip install {remedy}"
    return f"reading it needs a package that is missing ({one_line(error, 80)})"


def _reader(path: Path) -> Callable[..., Table]:
    if str(path).startswith(HUB) or path.is_dir():
        return _read_dataset
    name = path.name.lower()
    if name.endswith(TEXT):
        return _read_text
    return {
        ".parquet": _read_parquet,
        ".feather": _read_arrow,
        ".arrow": _read_arrow,
        ".xlsx": _read_excel,
        ".json": _read_json,
        ".ndjson": _read_json,
        ".jsonl": _read_json,
        ".npz": _read_npz,
    }[path.suffix.lower()]


def _unique(path: Path, names: Iterable[Any]) -> list[str]:
    """Names of columns as strings.

    Raises:
        DataError: two are equal.
    """
    texts = [str(name) for name in names]
    seen: set[str] = set()
    for text in texts:
        if text in seen:
            raise DataError(f"{path}: two columns are called '{one_line(text, 40)}'; rename one")
        seen.add(text)
    return texts


def _of_frame(path: Path, frame: Any, note: str = "") -> Table:
    """The columns of a frame."""
    names = _unique(path, frame.columns)
    columns: dict[str, Callable[[], Any]] = {
        name: partial(_same, frame.iloc[:, i].reset_index(drop=True)) for i, name in enumerate(names)
    }
    return Table(path, columns, len(frame), note)


def frame_table(frame: Any, name: str = "frame") -> Table:
    """The table of a frame of pandas, read as a Parquet file of it is.

    Args:
        frame: its columns are left as they are.
        name: what messages call it.

    Raises:
        DataError: it has no rows, no columns, or two columns of one name.
    """
    table = _of_frame(Path(name), frame)
    if not table.rows or not table.columns:
        raise DataError(f"{name}: the table has no rows; add some")
    return table


def _same(column: Any) -> Any:
    return column


# CSV ------------------------------------------------------------------------------------------------------------------


@dataclass
class Dialect:
    """How a text file is written."""

    encoding: str = "utf-8"
    separator: str = ","
    names: tuple[str, ...] = ()


def _read_text(path: Path, written: frozenset[str], literal: frozenset[str]) -> Table:
    """A CSV or TSV file, read by pandas in chunks."""
    dialect = read_dialect(path)
    columns, mixed = _chunks(path, dialect, written, literal)
    if mixed:
        columns |= _chunks(path, dialect, written, literal | mixed, mixed)[0]
    rows = max((len(column) for column in columns.values() if column is not None), default=0)
    separator = {";": "semicolons", "\t": "tabs", "|": "bars"}.get(dialect.separator, "")
    notes = [f"cells separated by {separator}"] if separator and ".tsv" not in path.name.lower() else []
    last = columns.get(dialect.names[-1]) if dialect.names else None
    if last is None or last.isna().any():  # as it is in a row with fewer cells
        notes += _short_rows(path, dialect)
    columns = {name: partial(_same, columns.pop(name)) for name in list(columns)}
    return Table(path, columns, rows, "; ".join(notes), bool(separator))


def _short_rows(path: Path, dialect: Dialect) -> list[str]:
    """A note on rows with fewer cells than the header, which pandas fills up without a word."""
    count = first = 0
    with text_handle(path, dialect.encoding) as handle, suppress(csv.Error):
        reader = csv.reader(handle, delimiter=dialect.separator)
        for row in reader:
            if 0 < len(row) < len(dialect.names):
                count, first = count + 1, first or reader.line_num
    if not count:
        return []
    return [f"{count} rows have fewer cells than the header, first in line {first}: the others count as empty"]


def _chunks(
    path: Path, dialect: Dialect, written: frozenset[str], literal: frozenset[str], only: frozenset[str] | None = None
) -> tuple[dict[str, Any], frozenset[str]]:
    """The columns, and those whose chunks are of different types: they must be read again as they are written."""
    library, names = pandas(), dialect.names
    missing = {name: [""] if name in written else list(MISSING) for name in names}
    parts: dict[str, list[Any]] = {}
    with warnings.catch_warnings():
        # A surplus cell would become the row's name or, with index_col=False, be dropped with this warning.
        warnings.simplefilter("error", library.errors.ParserWarning)
        try:
            reader = library.read_csv(
                path, sep=dialect.separator, encoding=dialect.encoding, low_memory=False, index_col=False,
                dtype=dict.fromkeys(written | literal, str), na_values=missing, keep_default_na=False,
                usecols=None if only is None else [n for n in names if n in only],
                chunksize=max(1000, CHUNK_CELLS // max(len(names), 1)),
            )  # fmt: skip
            with reader:
                for chunk in reader:
                    for name in chunk.columns:  # a copy, or a column would keep its whole chunk
                        parts.setdefault(str(name), []).append(chunk[name].array.copy())
        except library.errors.ParserWarning:
            raise ValueError("rows have more cells than the header has names") from None
    mixed = {n for n, chunks in parts.items() if n not in written | literal and not _one_type(chunks)}
    columns = {name: _joined(parts.pop(name)) for name in list(parts) if name not in mixed}
    return {**dict.fromkeys(names if only is None else [], None), **columns}, frozenset(mixed)


def _one_type(chunks: list[Any]) -> bool:
    """Whether chunks are all numbers or all texts; truth values are none of both."""
    kinds = {chunk.dtype.kind for chunk in chunks}
    return kinds <= set("iuf") or kinds == {"O"}


def _joined(chunks: list[Any]) -> Any:
    library = pandas()
    if len(chunks) == 1:
        return library.Series(chunks[0], copy=False)
    return library.concat([library.Series(chunk, copy=False) for chunk in chunks], ignore_index=True)


@contextmanager
def text_handle(path: Path, encoding: str) -> Iterator[Any]:
    """A text file, also a compressed one, open to read."""
    from pandas.io.common import get_handle

    with get_handle(path, "r", encoding=encoding, compression="infer") as handles:
        yield handles.handle


def read_dialect(path: Path) -> Dialect:
    """Encoding, separator and header of a file.

    Raises:
        DataError: NUL bytes, text that is not UTF-8, two columns of one name, or a last line with too few cells.
    """
    from pandas.io.common import get_handle

    with get_handle(path, "rb", compression="infer", is_text=False) as handles:
        head, last, encoding = _scan(path, handles.handle)
    usual = "\t" if ".tsv" in path.name.lower() else ","
    lines = head.decode(encoding, errors="ignore")
    records = {separator: _records(lines, separator) for separator in dict.fromkeys(usual + SEPARATORS)}
    fitting = [s for s, rows in records.items() if len(rows[0]) > 1 and all(len(row) == len(rows[0]) for row in rows)]
    separator = usual if usual in fitting or not fitting else max(fitting, key=lambda s: len(records[s][0]))
    header = records[separator][0]
    _unique(path, (name for name in header if name))
    ending = last.decode(encoding, errors="ignore")
    cells = len(next(csv.reader([ending], delimiter=separator), []))
    if '"' not in ending and 0 < cells < len(header):
        raise DataError(
            f"{path}: the last line, '{one_line(ending, 60)}', has {cells} of {len(header)} cells; remove it if it is "
            "a footer, or write its empty cells"
        )
    library = pandas()
    options = {"sep": separator, "encoding": encoding, "index_col": False, "nrows": 0}
    return Dialect(encoding, separator, tuple(str(name) for name in library.read_csv(path, **options).columns))


def _records(text: str, separator: str) -> list[list[str]]:
    """The first rows of a text, but for the last, which may be cut off."""
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for row in csv.reader(text.splitlines(), delimiter=separator):
                if row:
                    rows.append(row)
        except csv.Error:
            pass
    return (rows[:-1] if len(rows) > 2 else rows) or [[]]


def _scan(path: Path, handle: Any) -> tuple[bytes, bytes, str]:
    """The first bytes of a file, its last line and its encoding; all of it is checked."""
    head, last, line = handle.read(1 << 16), b"", 1
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return head, b"", "utf-16"
    if head[:2] == b"\x1f\x8b" or head[:4] == b"PK\x03\x04":
        kind = ".csv.gz" if head[:2] == b"\x1f\x8b" else ".csv.zip, or .xlsx if it is from Excel"
        raise DataError(f"{path}: the file is packed; give it the ending {kind}")
    decoder = codecs.getincrementaldecoder("utf-8")()
    block = head
    while block:
        if b"\0" in block:
            line += block[: block.index(b"\0")].count(b"\n")
            raise DataError(f"{path}, line {line}: a NUL byte; export the table again")
        try:
            decoder.decode(block)
        except UnicodeDecodeError as error:
            line += block[: error.start].count(b"\n")
            raise DataError(
                f"{path}, line {line}: cannot be read as a table (byte 0x{block[error.start]:02x} is not UTF-8); "
                "save it as UTF-8"
            ) from None
        line += block.count(b"\n")
        last = (last + block)[-(1 << 16) :]
        block = handle.read(1 << 20)
    ending = last.rstrip(b"\r\n").replace(b"\r", b"\n").rpartition(b"\n")[2]
    return head, ending, "utf-8-sig" if head.startswith(codecs.BOM_UTF8) else "utf-8"


# other formats --------------------------------------------------------------------------------------------------------


def _read_excel(path: Path, written: frozenset[str], literal: frozenset[str]) -> Table:
    """The first sheet that is not empty; cells keep the types that they have in the file."""
    library = pandas()
    with library.ExcelFile(path, engine="openpyxl") as book:
        sheets = list(book.sheet_names)
        for sheet in sheets:
            cells = library.read_excel(book, sheet_name=sheet, header=None, dtype=object)
            if cells.shape[0] > 1:
                break
    cells = cells.dropna(how="all").dropna(axis=1, how="all")
    if cells.empty:
        return Table(path, {}, 0)
    header = [f"Unnamed: {i}" if library.isna(name) else name for i, name in enumerate(cells.iloc[0])]
    frame = cells.iloc[1:].reset_index(drop=True)
    frame.columns = _unique(path, header)
    return _of_frame(path, frame, f"sheet '{sheet}', one of {len(sheets)}" if len(sheets) > 1 else "")


def _read_json(path: Path, written: frozenset[str], literal: frozenset[str]) -> Table:
    """A list of objects, or an object a line: numbers and texts stay what they are."""
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".json":
        rows = json.loads(text)
        rows = rows if isinstance(rows, list) else None
    else:
        rows = [_json_line(path, number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if rows is None or not all(isinstance(row, dict) for row in rows):
        raise ValueError("it is no list of objects, each of which is a row")
    names = dict.fromkeys(name for row in rows for name in row)
    library = pandas()
    columns = {n: partial(_same, library.Series([row.get(n) for row in rows], dtype=object)) for n in names}
    return Table(path, dict(zip(_unique(path, names), columns.values(), strict=True)), len(rows))


def _json_line(path: Path, number: int, line: str) -> Any:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise DataError(f'{path}, line {number}: no JSON object; write one row a line, as {{"column": value}}')
    return row


def _read_npz(path: Path, written: frozenset[str], literal: frozenset[str]) -> Table:
    """Arrays of one length: one of two dimensions is a column for each of its own."""
    library, columns = pandas(), dict[str, Callable[[], Any]]()
    arrays = dict[str, Any]()
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                arrays[member.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{one_line(name, 20)} {length}" for name, length in list(lengths.items())[:4])
        raise DataError(f"{path}: its arrays have different lengths ({told}); save the arrays of one table")
    for name, array in arrays.items():
        if array.ndim > 2:
            raise DataError(
                f"{path}: '{one_line(name, 40)}' has shape {array.shape}; a table has numbers a row; flatten it"
            )
        for i in range(1 if array.ndim == 1 else array.shape[1]):
            label = name if array.ndim == 1 else f"{name}{i}"
            if label in columns:
                raise DataError(f"{path}: two columns are called '{one_line(label, 40)}'; rename one")
            columns[label] = partial(_same, library.Series(array if array.ndim == 1 else array[:, i]))
    return Table(path, columns, next(iter(lengths.values()), 0))


# Arrow ----------------------------------------------------------------------------------------------------------------


def _read_parquet(path: Path, written: frozenset[str], literal: frozenset[str]) -> Table:
    """A Parquet file whose columns are read one at a time: read at once, it takes three times its size."""
    from pyarrow.parquet import ParquetFile

    file = ParquetFile(path)
    schema = file.schema_arrow

    def column(name: str, own: str) -> Any:
        return _arrow_column(file.read(columns=[own], use_threads=False), own, name in written)

    names = _arrow_names(path, schema)
    return Table(path, {n: partial(column, n, own) for n, own in names.items()}, file.metadata.num_rows)


def _arrow_names(path: Path, schema: Any) -> dict[str, str]:
    """The columns of a schema but for the index of a frame, which is no column."""
    index = (schema.pandas_metadata or {}).get("index_columns", [])  # names, or a range that is no column
    own = [name for name in schema.names if name not in index]
    return dict(zip(_unique(path, own), own, strict=True))


def _arrow_column(table: Any, name: str, exact: bool) -> Any:
    """A column of an Arrow table as a series; ``exact`` whole numbers beside missing ones do not become floats."""
    from pyarrow import default_memory_pool

    options = {"split_blocks": True, "self_destruct": True, "ignore_metadata": True, "integer_object_nulls": exact}
    column = table.to_pandas(**options)[name]
    del table
    default_memory_pool().release_unused()  # it keeps what it has, and that would be a frame more
    return column


def _of_arrow(
    path: Path, table: Any, written: frozenset[str], note: str = "", classes: Mapping[str, dict[int, str]] | None = None
) -> Table:
    """The columns of an Arrow table; ``classes`` are names for the numbers of some of them."""

    def column(name: str, own: str) -> Any:
        series = _arrow_column(table.select([own]), own, name in written)
        return series.map(classes[own]).astype(object) if classes and own in classes else series

    names = _arrow_names(path, table.schema)
    return Table(path, {n: partial(column, n, own) for n, own in names.items()}, table.num_rows, note)


def _read_arrow(path: Path, written: frozenset[str], literal: frozenset[str]) -> Table:
    """A Feather or Arrow file, or a stream of Arrow."""
    import pyarrow
    from pyarrow import feather

    try:
        table = feather.read_table(path, memory_map=True)
    except pyarrow.ArrowInvalid:
        with pyarrow.memory_map(str(path)) as source:
            table = pyarrow.ipc.open_stream(source).read_all()
    return _of_arrow(path, table, written)


def _read_dataset(path: Path, written: frozenset[str], literal: frozenset[str]) -> Table:
    """A folder that `save_to_disk` wrote, or a data set of the hub; the column ``split`` names its splits."""
    import datasets
    import pyarrow

    splits, note = dataset_splits(path)
    first = next(iter(splits.values()))
    for column, feature in first.features.items():
        if isinstance(feature, datasets.Image):
            raise DataError(
                f"{path}: column '{one_line(column, 40)}' holds images, which are no cells; write the data set by "
                "save_to_disk and give that folder"
            )
    parts = {name: split.with_format("arrow")[:] for name, split in splits.items()}
    if len(parts) > 1:
        for name, table in parts.items():
            parts[name] = table.append_column("split", pyarrow.array([name] * len(table)))
    return _of_arrow(path, pyarrow.concat_tables(parts.values()), written, note, class_labels(first))


def dataset_splits(path: Path) -> tuple[dict[str, Any], str]:
    """The splits of a folder that `save_to_disk` wrote, or of a data set of the hub, by name.

    Of several those for training, validation and test are read, unless a column ``split`` names those of the rows; a
    split with a hidden label (-1 in every row) is left out.

    Returns:
        The splits, that for training first, and a note on those that are not read.

    Raises:
        DataError: `datasets` is not installed.
    """
    import datasets

    name = str(path)
    if name.startswith(HUB):
        # a hub needs a network, which the tests of this project do not have
        loaded = datasets.load_dataset(name.removeprefix(HUB))
    else:
        datasets.disable_progress_bars()
        loaded = datasets.load_from_disk(name)
    splits = dict(loaded) if isinstance(loaded, dict) else {"": loaded}
    first = "train" if "train" in splits else next(iter(splits))
    parts = {first: splits[first]}
    if first in SPLITS and "split" not in parts[first].column_names:
        for name in (name for name in splits if name in SPLITS and name != first):
            part = splits[name]
            labels = part.select_columns(list(class_labels(part))).with_format("arrow")[:]
            hidden = any(labels[label].unique().to_pylist() == [-1] for label in labels.column_names)
            if part.features == parts[first].features and not hidden:
                parts[name] = part
    left = [name for name in splits if name not in parts]
    return parts, f"splits that are not read: {', '.join(left)}" if left else ""


def class_labels(split: Any) -> dict[str, dict[int, str]]:
    """The names of the classes of a split by column and number."""
    import datasets

    return {n: dict(enumerate(f.names)) for n, f in split.features.items() if isinstance(f, datasets.ClassLabel)}
