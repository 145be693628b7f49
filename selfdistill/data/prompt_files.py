"""Files of prompts: JSON lines, JSON, CSV, Parquet, Arrow and saved data sets become records, each with its place."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ..errors import DataError
from ..io.display import plural
from ..io.expressions import one_line

#: Files that hold prompts, and those that may hold prompts or a table.
PROMPT_SUFFIXES = (".jsonl", ".jsonl.gz")
JSON_SUFFIXES = (".json", ".ndjson")
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".feather", ".arrow")


SPLITS = {
    "train": "train", "training": "train", "test": "test", "audit": "audit", "validation": "audit", "valid": "audit",
    "val": "audit", "dev": "audit",
}  # fmt: skip


_DATA_SET = ("dataset_info.json", "dataset_dict.json")  # written by `save_to_disk` of the library datasets


class Place(NamedTuple):
    """Where a record stands: its file, and its line (of a Parquet or Arrow file its row), from 1."""

    path: Path
    line: int

    def refuse(self, fault: str) -> NoReturn:
        """Refuse the record.

        Raises:
            DataError: always; the message begins with file and line.
        """
        raise DataError(f"{self.path}:{self.line}: {fault}")


class Record(NamedTuple):
    """The fields of a row, its place, and the split that its data set puts it in."""

    place: Place
    fields: dict[str, Any]
    split: str | None = None


def is_file_of_prompts(source: str) -> bool:
    """Whether a name ends like a file that holds prompts unless it is said otherwise."""
    return source.lower().endswith(PROMPT_SUFFIXES)


def may_hold_prompts(source: str) -> bool:
    """Whether a name is that of a table, a JSON file or a saved data set, which may hold prompts."""
    return source.lower().endswith((*JSON_SUFFIXES, *TABLE_SUFFIXES)) or is_data_set(Path(source))


def is_data_set(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of the library datasets."""
    return any((path / name).is_file() for name in _DATA_SET)


def columns(source: str) -> tuple[str, ...]:
    """The names of the columns of a table or a saved data set, or of the first record of a file of JSON; none if they
    cannot be read.

    Args:
        source: The path of the table or the folder.
    """
    path, name = Path(source), source.lower()
    try:
        if name.endswith((".csv", ".tsv")):
            with path.open(encoding="utf-8-sig") as opened:
                header = opened.readline()
            return tuple(cell.strip() for cell in next(csv.reader([header], delimiter=_delimiter(header, name))))
        if path.is_dir():
            infos = sorted(path.glob("**/dataset_info.json"))
            return tuple(json.loads(infos[0].read_text(encoding="utf-8"))["features"]) if infos else ()
        if name.endswith((*JSON_SUFFIXES, *PROMPT_SUFFIXES)):
            return tuple(next(record.fields for record in read_records(path)))
        return tuple(_arrow_schema(path).names)
    except (OSError, ValueError, csv.Error, KeyError, TypeError, StopIteration, DataError):
        return ()


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file or a saved data set, in their order.

    Args:
        path: The file, or the folder that `save_to_disk` wrote.

    Raises:
        DataError: The file is missing, of another kind, or damaged; file, line and remedy are named.
    """
    name = path.name.lower()
    if is_data_set(path):
        yield from _data_set(path)
    elif path.is_dir() or not name.endswith((*PROMPT_SUFFIXES, *JSON_SUFFIXES, *TABLE_SUFFIXES)):
        raise DataError(
            f"{path}: prompts are read from a .jsonl file, one JSON object a line; write one, or give a "
            f"{', '.join((*JSON_SUFFIXES, *TABLE_SUFFIXES))} file or a folder that datasets' save_to_disk wrote"
        )
    elif name.endswith((".csv", ".tsv")):
        yield from _csv(path)
    elif name.endswith(TABLE_SUFFIXES):
        _bytes(path, only_check=True)
        for number, fields in enumerate(_arrow_rows(path), 1):
            yield Record(Place(path, number), {key: value for key, value in fields.items() if value is not None})
    else:
        content = _bytes(path)
        is_list = name.endswith(".json") and content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
        yield from _json_list(path, content) if is_list else _json_lines(path, content)


# ---- bytes and lines -------------------------------------------------------------------------------


def _bytes(path: Path, only_check: bool = False) -> bytes:
    try:
        with path.open("rb") as opened:
            content = b"" if only_check else opened.read()
        return gzip.decompress(content) if path.suffix.lower() == ".gz" else content
    except FileNotFoundError:
        candidates = [str(entry) for entry in path.parent.glob(f"*{path.suffix}")]
        matches = difflib.get_close_matches(str(path), candidates, n=1)
        hint = f" (did you mean '{matches[0]}'?)" if matches else ""
        raise DataError(f"no prompts called '{path}'{hint}; give the path of a {path.suffix} file") from None
    except (OSError, EOFError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or one_line(error, 80)
        raise DataError(f"{path}: cannot be read ({reason}); check its permissions, or write it again") from None


def _text(path: Path, content: bytes) -> str:
    """The content as text, without a byte order mark."""
    content = content.removeprefix(b"\xef\xbb\xbf")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        place = Place(path, content.count(b"\n", 0, error.start) + 1)
        place.refuse(f"byte {content[error.start]:#04x} is not UTF-8; save the file as UTF-8")


# ---- JSON ------------------------------------------------------------------------------------------


def _json_lines(path: Path, content: bytes) -> Iterator[Record]:
    """The object of each line that is not blank; only a line feed ends one, whatever else JSON text may hold."""
    for number, line in enumerate(_text(path, content).split("\n"), 1):
        if line.strip():
            place = Place(path, number)
            yield Record(place, _object(place, _decode(place, line.strip(), 0)[0]))


def _json_list(path: Path, content: bytes) -> Iterator[Record]:
    """The objects of a list, each with the line that it begins on."""
    text = _text(path, content)
    at = _skip(text, text.index("[") + 1)
    while at < len(text) and text[at] != "]":
        place = Place(path, text.count("\n", 0, at) + 1)
        value, at = _decode(place, text, at)
        yield Record(place, _object(place, value))
        at = _skip(text, at)
    if at >= len(text):
        Place(path, text.count("\n") + 1).refuse("the list is not closed by ]; write the file again")


def _skip(text: str, at: int) -> int:
    """Where the next value of a list begins."""
    while at < len(text) and text[at] in ", \t\r\n":
        at += 1
    return at


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, whose keys differ.

    Raises:
        KeyError: One is there twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise KeyError(next(name for name in names if names.count(name) > 1))
    return found


def _decode(place: Place, text: str, at: int) -> tuple[Any, int]:
    """The JSON value that begins at a place of a text, and where it ends; a line holds one value alone."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    try:
        value, end = decoder.raw_decode(text, at)
        if at == 0 and text[end:].strip():
            raise json.JSONDecodeError("Extra data", text, len(text) - len(text[end:].lstrip()))
        return value, end
    except KeyError as error:
        place.refuse(f'the key "{one_line(error.args[0], 40)}" is there twice in one object; keep one of the two')
    except ValueError as error:
        reason = one_line(error.msg if isinstance(error, json.JSONDecodeError) else error, 80)
        column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        place.refuse(f'not JSON ({reason}{column}); write one object a line, such as {{"prompt": "..."}}')
    except RecursionError:
        place.refuse("nested too deeply; write one flat object a line")


def _object(place: Place, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        place.refuse(f'{kind_of(value)} instead of an object; write one a line, such as {{"prompt": "..."}}')
    return value


_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    str: "text",
    type(None): "null",
}


def kind_of(value: Any) -> str:
    """The kind of a value, in words."""
    return _KINDS.get(type(value), f"a {type(value).__name__}")


# ---- tables ----------------------------------------------------------------------------------------


def _delimiter(header: str, name: str) -> str:
    """What separates the cells: a tab in .tsv files, else what the header has most of."""
    return "\t" if name.endswith(".tsv") else max(",;\t|", key=header.count)


def _csv(path: Path) -> Iterator[Record]:
    """The rows of a table of text, whose cells stay the strings they are; an empty cell is no field."""
    text = _text(path, _bytes(path))
    delimiter = _delimiter(text.split("\n", 1)[0], path.name.lower())
    csv.field_size_limit(1 << 30)  # the library's own limit is 131,072 characters
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line, header = 1, list[str]()
    try:
        for cells in reader:
            place, line = Place(path, line), reader.line_num + 1
            if not cells:
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                if len(set(header)) < len(header):
                    twice = next(name for name in header if header.count(name) > 1)
                    place.refuse(f'two columns are called "{one_line(twice, 40)}"; rename one')
                continue
            if len(cells) != len(header):
                place.refuse(
                    f"{plural(len(cells), 'cell')}, and the header has {len(header)}; quote texts with commas in them"
                )
            yield Record(place, {name: cell for name, cell in zip(header, cells, strict=True) if cell.strip()})
    except csv.Error as error:
        Place(path, line).refuse(f"no row of a table ({one_line(error, 80)}); quote the cell, and double quotes in it")


def _arrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.feather
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path}: reading it needs pyarrow: pip install 'selfdistill[tables]'") from None
    return pyarrow


def _arrow_schema(path: Path) -> Any:
    library = _arrow(path)
    if path.suffix.lower() == ".parquet":
        return library.parquet.read_schema(path)
    return _arrow_table(library, path).schema


def _arrow_table(library: Any, path: Path) -> Any:
    """The table of an Arrow file, also of the stream of batches that the library datasets writes."""
    try:
        return library.feather.read_table(path)
    except library.ArrowInvalid:
        if path.suffix.lower() != ".arrow":
            raise
        with library.memory_map(str(path)) as opened:
            return library.ipc.open_stream(opened).read_all()


def _arrow_rows(path: Path) -> list[dict[str, Any]]:
    library = _arrow(path)
    try:
        if path.suffix.lower() == ".parquet":
            return list(library.parquet.read_table(path).to_pylist())
        return list(_arrow_table(library, path).to_pylist())
    except (OSError, ValueError, library.ArrowException) as error:
        raise DataError(f"{path}: cannot be read ({one_line(error, 100)}); write the file again") from None


def _data_set(path: Path) -> Iterator[Record]:
    """The rows of a saved data set; its splits train, validation and test stay what they are."""
    try:
        import datasets
    except ImportError:
        raise DataError(f"{path}: a saved data set needs the library datasets: pip install datasets") from None
    try:
        loaded = datasets.load_from_disk(str(path))
        parts: dict[str | None, Any] = dict(loaded) if isinstance(loaded, dict) else {None: loaded}
        rows = {name: part.to_list() for name, part in parts.items()}
    except Exception as error:  # the library raises all kinds
        raise DataError(f"{path}: the data set cannot be read ({one_line(error, 100)}); save it again") from None
    names: Sequence[str] = [name for name in rows if name is not None and name not in SPLITS]
    if names:
        raise DataError(
            f"{path}: the splits of a data set are train, validation and test, and it has {', '.join(names[:5])}; "
            "save the split that you mean alone"
        )
    whole = len(rows) == 1  # a data set of one split says nothing of the others
    for name, part in rows.items():
        folder = path if name is None else path / name
        for number, fields in enumerate(part, 1):
            given = {key: value for key, value in fields.items() if value is not None}
            yield Record(Place(folder, number), given, None if name is None or whole else SPLITS[name])
