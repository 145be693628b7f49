"""The columns of a table: the type of each, the reason, and the numbers or categories that its cells become.

Types: numeric, categorical, date; text and identifier (mostly different strings), constant and empty columns are left
out. A type that was found on the training table is a record (`Column`), by which later tables are read.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..io.display import plural
from ..io.expressions import nearest, one_line

TYPES = ("numeric", "categorical", "date", "text", "identifier")  # those that a person may choose


USED = ("numeric", "categorical", "date")  # the others are left out


# What people write for a value that they do not have.
MARKS = frozenset((
    "?", "-", "--", "---", ".", "..", "*", "/", "n/a", "na", "n.a.", "#n/a", "none", "null", "nil", "nan", "unknown",
    "missing",
))  # fmt: skip


LEAST_ROWS = 10  # with fewer filled rows, different strings are categories


MOSTLY = 0.8  # of the cells: the others are taken for mistakes


RECORD = "column_types"  # the key of the record in run.json and in the card of a model


WORDS = 3.0  # the mean number of words from which on different strings are texts


DISTINCT = 20  # a column of more different numbers is one of numbers, however many words are in it


INFINITE_REMEDY = "remove the row, or leave the cell empty if the value is unknown"


_CELL = re.compile(
    r"([+\-\u2212]?)(\D{0,4}?)\s*([+\-\u2212]?)\s*((?:\d[\d.,' ]*)?[.,]?\d[.,]?(?:[eE][+\-]?\d+)?)\s*(\D{0,12})"
)


_PLAIN = r"\d+\.?\d*(?:[eE][+\-]?\d+)?|\.\d+(?:[eE][+\-]?\d+)?"


#: decimal and thousands mark, and what a number looks like with them
_FORMATS = {
    (".", ""): re.compile(_PLAIN),
    (".", ","): re.compile(rf"[1-9]\d{{0,2}}(?:,\d{{3}})+(?:\.\d*)?|{_PLAIN}"),
    (",", "."): re.compile(r"[1-9]\d{0,2}(?:\.\d{3})+(?:,\d*)?|\d*,\d+|\d+,?"),
    (".", " "): re.compile(rf"[1-9]\d{{0,2}}(?: \d{{3}})+(?:\.\d*)?|{_PLAIN}"),
    (",", " "): re.compile(r"[1-9]\d{0,2}(?: \d{3})+(?:,\d*)?|\d*,\d+|\d+,?"),
    (".", "'"): re.compile(rf"[1-9]\d{{0,2}}(?:'\d{{3}})+(?:\.\d*)?|{_PLAIN}"),
}


_TIMES = ("", " %H:%M", " %H:%M:%S")


_DAYS = ("%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%d-%m-%Y", "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y")


PATTERNS = ("ISO8601", *(day + time for day in _DAYS for time in _TIMES))


_NORMAL = str.maketrans({"\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u2019": "'", "\u2212": "-"})


@dataclass(frozen=True)
class Column:
    """How a column is read, as a run records it.

    >>> Column("size", "numeric", decimal=",", unit="kg").to_json()["unit"]
    'kg'
    """

    name: str
    type: str
    why: str = ""
    decimal: str = "."
    thousands: str = ""
    unit: str = ""
    pattern: str = ""  # of dates: ISO8601, or as of strptime
    parts: tuple[str, ...] = ()  # of dates: what becomes a feature beside the time
    lenient: bool = False  # a cell that does not fit is missing, and not an error

    def to_json(self) -> dict[str, Any]:
        """The record, without what is as usual."""
        usual = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if name == "why" or value != usual[name]}

    @property
    def literal(self) -> bool:
        """Whether its cells must be read as they are written: "01" is another category than "1", "1,5" no number."""
        return self.type in ("categorical", "date") or (self.decimal, self.thousands) != (".", "")


Kind = str | Column  # a type by name, or how a column was read before


def from_json(record: Any, place: str) -> list[Column]:
    """The columns that a model's card records.

    Raises:
        DataError: they are missing or damaged.
    """
    try:
        columns = [Column(**{**entry, "parts": tuple(entry.get("parts", ()))}) for entry in record]
        kinds = {"lenient": bool, "parts": tuple}
        for column in columns:
            broken = [f.name for f in fields(column) if not isinstance(getattr(column, f.name), kinds.get(f.name, str))]
            if broken or column.type not in (*TYPES, "constant", "empty") or not set(column.parts) <= _PARTS.keys():
                raise ValueError(column.name)
        return columns
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{place}: the record of its columns is damaged ({one_line(error, 60)}); train again") from None


def requested(pairs: Iterable[tuple[str, Kind]] | Mapping[str, Kind] | None, names: Sequence[str], place: str) -> Any:
    """The types that a person chose, or that a model's record has, by column.

    Raises:
        DataError: there is no such column or type.
    """
    chosen = dict(pairs or {})
    for name, kind in chosen.items():
        if isinstance(kind, Column):
            if name not in names and kind.type in USED:
                raise DataError(f"{place}: column '{one_line(name, 60)}' is missing, and the model was trained on it")
            continue
        if name not in names:
            close = nearest(str(name), list(names))
            hint = f"nearest: {close}" if close else f"it has: {', '.join(names)}"
            raise DataError(f"{place}: no column is called '{one_line(str(name), 60)}' (--column); {hint}")
        check_type(str(kind))
    return chosen


def check_type(kind: str) -> str:
    """Check the name of a type; that of a date may have a pattern, as in ``date:%d/%m/%Y``.

    Raises:
        DataError: there is no such type.
    """
    word, _, pattern = kind.partition(":")
    if word not in TYPES or (pattern and word != "date"):
        raise DataError(
            f"no type of columns is called '{one_line(kind, 40)}'; give {', '.join(TYPES)}, or date:%d/%m/%Y"
        )
    return kind


# cells ----------------------------------------------------------------------------------------------------------------


class Cells(NamedTuple):
    """The cells of a column: the index (rows,) of each among the different ``texts``, -1 where it is empty."""

    codes: NDArray[np.int64]
    texts: list[str]

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many cells have each text."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.texts))

    def spread(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values of the texts as values of the cells."""
        return np.append(values, np.nan)[self.codes]

    def first(self, number: int) -> int:
        """The row, from 1, that is the first with a text."""
        return int((self.codes == number).argmax()) + 1


def cells_of(column: Any, place: str) -> Cells:
    """The stripped texts of a column.

    Raises:
        DataError: its cells are lists or other things that are no values.
    """
    import pandas

    try:
        codes, values = pandas.factorize(column, use_na_sentinel=True)
    except (TypeError, ValueError):
        raise DataError(
            f"{place}: its cells are lists, records or arrays; spread them over columns, or leave the column out by "
            "--column NAME=identifier"
        ) from None
    texts, index = list[str](), dict[str, int]()
    numbers = np.empty(len(values) + 1, dtype=np.int64)
    for number, value in enumerate(values):
        text = str(value).strip()
        numbers[number] = index.setdefault(text, len(index)) if text else -1
    texts, numbers[-1] = list(index), -1
    return Cells(numbers[codes], texts)


class Parsed(NamedTuple):
    """The values of texts, nan where a text has none."""

    values: NDArray[np.float64]
    decimal: str = "."
    thousands: str = ""
    unit: str = ""
    bare: NDArray[np.bool_] | None = None  # numbers without the unit


def _split_number(text: str) -> tuple[str, str, str]:
    """Sign, digits and unit of a text; no digits where it is no number."""
    match = _CELL.fullmatch(text.translate(_NORMAL))
    if match is None:
        return "", "", ""
    sign, before, second, body, after = match.groups()
    before, after = before.strip(), after.strip()
    currency = before == "" or re.fullmatch(r"[A-Z]{2,3}", before) or _is_currency(before[-1])
    unit = after == "" or after[0].isalpha() or after[0] in "%°‰" or _is_currency(after[0])
    if not currency or not unit or (sign and second) or (before and after):
        return "", "", ""
    return sign or second, body, before or after


def _is_currency(character: str) -> bool:
    return unicodedata.category(character) == "Sc"


def parse_numbers(texts: Sequence[str], counts: NDArray[np.int64], comma: bool) -> Parsed:
    """The texts as numbers in the format and with the unit that most of them have.

    Args:
        texts: different texts.
        counts: the number of cells of each.
        comma: whether "1,234" is more likely 1.234 than 1234.

    >>> parse_numbers(["1.234,5 kg", "7 kg", "old"], np.ones(3, dtype=np.int64), False)[:4]
    (array([1234.5,    7. ,    nan]), ',', '.', 'kg')
    """
    nothing = np.full(len(texts), np.nan)
    sample = [bool(_split_number(text)[1]) for text in texts[:1000]]
    if not any(sample) or (len(sample) > DISTINCT and np.mean(sample) < 0.3):
        return Parsed(nothing)
    parts = [_split_number(text) for text in texts]
    best, masks = None, {}
    # "480" beside "1,060" is a whole number: with three decimals it would be "480,000"
    comma = comma and all("," in body for _, body, _ in parts if body)
    order = sorted(_FORMATS, key=lambda f: (f != (".", ""), comma and f[0] != ","))
    for marks in order:
        masks[marks] = np.array([bool(body) and _FORMATS[marks].fullmatch(body) is not None for _, body, _ in parts])
        if best is None or counts[masks[marks]].sum() > counts[masks[best]].sum():
            best = marks
    assert best is not None
    weight: dict[str, int] = {}
    for (_, _, unit), fits, count in zip(parts, masks[best], counts.tolist(), strict=True):
        if fits:
            weight[unit] = weight.get(unit, 0) + count
    unit = max((name for name in weight if name), key=lambda name: weight[name], default="")
    values, bare = nothing, np.zeros(len(texts), dtype=bool)
    for i, (sign, body, own) in enumerate(parts):
        if masks[best][i] and own in ("", unit):
            values[i] = _to_number(sign, body, *best)
            bare[i] = own != unit
    return Parsed(values, *best, unit, bare)


def _to_number(sign: str, body: str, decimal: str, thousands: str) -> float:
    plain = body.replace(thousands, "") if thousands else body
    return float(plain.replace(decimal, ".")) * (-1.0 if sign == "-" else 1.0)


def read_numbers(column: Column, texts: Sequence[str]) -> NDArray[np.float64]:
    """Texts as numbers in the format that a column has; nan where one is none.

    >>> read_numbers(Column("a", "numeric", decimal=",", thousands="."), ["1.000,5", "1.5"]).tolist()
    [1000.5, nan]
    """
    shape, values = _FORMATS[column.decimal, column.thousands], np.full(len(texts), np.nan)
    for i, text in enumerate(texts):
        sign, body, unit = _split_number(text)
        if body and shape.fullmatch(body) and unit in ("", column.unit):
            values[i] = _to_number(sign, body, column.decimal, column.thousands)
    return values


def read_dates(pattern: str, texts: Sequence[str]) -> NDArray[np.float64]:
    """Texts as seconds since 1970 (UTC), nan where one is no such date.

    >>> read_dates("%d.%m.%Y", ["02.01.1970", "soon"]).tolist()
    [86400.0, nan]
    """
    import pandas

    try:
        times = pandas.to_datetime(pandas.Series(list(texts), dtype=object), format=pattern, errors="coerce", utc=True)
    except ValueError:  # a pattern that is none
        raise DataError(f"'{one_line(pattern, 40)}' is no pattern of dates; give one such as %d/%m/%Y") from None
    return np.asarray((times - pandas.Timestamp(0, tz="UTC")).dt.total_seconds().to_numpy(np.float64))


def find_pattern(texts: Sequence[str]) -> str:
    """The pattern of dates that most of a few texts have; "" where most have none.

    >>> find_pattern(["2024-01-05"]), find_pattern(["25/12/2024", "01/02/2024"]), find_pattern(["x1"])
    ('ISO8601', '%d/%m/%Y', '')
    """
    sample = [text for text in texts[:2000] if 6 <= len(text) <= 35 and re.search(r"\d.*[-/., ].*\d", text)]
    if len(sample) < MOSTLY * min(len(texts), 2000):
        return ""
    shares = {pattern: float(np.isfinite(read_dates(pattern, sample)).mean()) for pattern in PATTERNS}
    best = max(shares, key=lambda pattern: shares[pattern])
    return best if shares[best] >= MOSTLY else ""


# types ----------------------------------------------------------------------------------------------------------------


def infer(name: str, column: Any, place: str, comma: bool = False, kind: Kind | None = None) -> Column:
    """The type of a column and the reason.

    Args:
        name: of the column.
        column: a pandas series.
        place: file and column, for messages.
        comma: as of `parse_numbers`.
        kind: the type that a person chose, or the record of a column that is read as it was.

    Raises:
        DataError: most cells are numbers or dates and some are not, or none is what it should be.

    >>> import pandas as pd
    >>> infer("size", pd.Series(["1,5", "2", None]), "t.csv").why
    "numbers with a decimal comma ('1,5' is 1.5); 1 empty"
    >>> infer("size", pd.Series(["007", "01"]), "t.csv", kind="categorical").type
    'categorical'
    """
    if isinstance(kind, Column):
        return kind
    if kind in ("text", "identifier"):
        return Column(name, kind, f"as asked for{_hint(kind)}")
    guess = None if kind else _of_dtype(name, column)
    if guess is not None:
        return guess
    word, _, pattern = (kind or "").partition(":")
    if word != "categorical" and not word.startswith("date") and _is_numeric(column):
        return Column(name, "numeric", "numbers, as asked for")
    cells = cells_of(column, place)
    empty = int((cells.codes < 0).sum())
    rest = f"; {empty} empty" if empty else ""
    if word == "categorical":
        return Column(name, word, f"{len(cells.texts)} different values, as asked for{rest}")
    if not cells.texts:
        return Column(name, "empty", "no value in any row; left out")
    if len(cells.texts) == 1 and not empty and not word:
        return Column(name, "constant", f"'{one_line(cells.texts[0], 40)}' in every row; left out")
    for attempt in (_as_numbers, _as_dates):
        spec = attempt(name, cells, place, comma, word, pattern)
        if spec is not None:
            return replace(spec, why=spec.why + rest)
    return _as_strings(name, cells, rest)


def _of_dtype(name: str, column: Any) -> Column | None:
    """The type of a column whose values are no strings; None where they must be looked at."""
    import pandas

    types, filled = pandas.api.types, int(column.notna().sum())
    if not filled:
        return Column(name, "empty", "no value in any row; left out")
    rest = f"; {len(column) - filled} empty" if filled < len(column) else ""
    if _is_numeric(column):
        if filled == len(column) and column.min() == column.max():
            return Column(name, "constant", f"{column.iloc[0]} in every row; left out")
        if re.fullmatch(r"Unnamed: \d+", name) and not rest and (np.diff(column.to_numpy(np.float64)) == 1).all():
            return Column(name, "identifier", "row numbers without a name; left out")
        return Column(name, "numeric", f"numbers{rest}")
    if types.is_datetime64_any_dtype(column) or types.infer_dtype(column, skipna=True) in ("date", "datetime"):
        return _dated(name, "", _seconds(column), f"dates{rest}")
    if isinstance(column.dtype, pandas.CategoricalDtype):
        number = int(column.nunique())
        if number == 1 and filled == len(column):
            return Column(name, "constant", f"'{column.iloc[0]}' in every row; left out")
        return Column(name, "categorical", f"{number} categories of the file{rest}")
    return None


def _is_numeric(column: Any) -> bool:
    """Numbers, decimals and durations; not truth values."""
    import pandas

    types = pandas.api.types
    if types.is_bool_dtype(column):
        return False
    if types.is_numeric_dtype(column) or types.is_timedelta64_dtype(column):
        return True
    kinds = ("integer", "floating", "mixed-integer-float", "decimal")
    return column.dtype == object and types.infer_dtype(column, skipna=True) in kinds


def _as_numbers(name: str, cells: Cells, place: str, comma: bool, word: str, pattern: str) -> Column | None:
    if word.startswith("date"):
        return None
    parsed, counts = parse_numbers(cells.texts, cells.counts, comma), cells.counts
    stray = np.isnan(parsed.values)
    numbers = int(counts[~stray].sum())
    if word == "numeric" and not numbers:
        raise DataError(f"{place}: no cell of it is a number; give another type")
    spec = Column(name, "numeric", "", parsed.decimal, parsed.thousands, parsed.unit)
    first = next((text for text, no in zip(cells.texts, stray, strict=True) if not no), "")
    told = [_format_text(spec, [t for t, no in zip(cells.texts, stray, strict=True) if not no] or [first])]
    if parsed.bare is not None and parsed.bare[~stray].any() and parsed.unit:
        told.append(f"{plural(int(counts[parsed.bare & ~stray].sum()), 'cell')} without it")
    if stray.any():
        if not word and not _is_mostly(numbers, int((~stray).sum()), int(counts[stray].sum())):
            return None
        strays = [text for text, no in zip(cells.texts, stray, strict=True) if no]
        if not word and not all(text.lower() in MARKS for text in strays):
            worst = next(text for text in strays if text.lower() not in MARKS)
            _refuse(place, cells, worst, int(counts[stray].sum()), numbers, "number", parsed.unit)
        told.append(f"{plural(int(counts[stray].sum()), 'cell')} such as '{one_line(strays[0], 30)}' read as missing")
        spec = replace(spec, lenient=bool(word))
    return replace(spec, why="; ".join(told) + (", as asked for" if word else ""))


def stray_cell(cells: Cells) -> int | None:
    """The row, from 1, of the first cell that is no number in a column where nearly all are; None in others.

    >>> stray_cell(Cells(np.array([0, 0, 0, 0, 1]), ["1.5", "total"])), stray_cell(Cells(np.array([0, 1]), ["a", "1"]))
    (5, None)
    """
    stray, counts = np.isnan(parse_numbers(cells.texts, cells.counts, False).values), cells.counts
    if not stray.any() or not _is_mostly(int(counts[~stray].sum()), int((~stray).sum()), int(counts[stray].sum())):
        return None
    return min(cells.first(int(number)) for number in np.flatnonzero(stray))


def _format_text(spec: Column, examples: Sequence[str]) -> str:
    """The format of numbers in words, with an example."""
    marks = {",": "comma", ".": "point", " ": "space", "'": "apostrophe"}
    told = (
        [f"a thousands {marks[spec.thousands]}"] if any(spec.thousands in e for e in examples if spec.thousands) else []
    )
    if spec.decimal == "," and any("," in example for example in examples):
        told.append("a decimal comma")
    if spec.unit:
        told.append(f"the unit '{one_line(spec.unit, 20)}'")
    if not told:
        return "numbers"
    shown = next(
        (e for e in examples if any(mark in e for mark in (spec.thousands, ",", spec.unit) if mark)), examples[0]
    )
    return f"numbers with {' and '.join(told)} ('{one_line(shown, 30)}' is {read_numbers(spec, [shown])[0]:.10g})"


def _is_mostly(fitting: int, distinct: int, strays: int) -> bool:
    """Whether a column is one of numbers or dates with a few cells that are none."""
    few = strays <= max(2, 0.02 * (fitting + strays))
    return fitting >= MOSTLY * (fitting + strays) and (distinct > DISTINCT or few)


def _refuse(place: str, cells: Cells, stray: str, number: int, fitting: int, what: str, unit: str = "") -> None:
    name, kind = place.rpartition("column '")[2].rstrip("'"), "numeric" if what == "number" else "date"
    row = cells.first(cells.texts.index(stray))
    known = f" in {unit}" if unit else ""
    others = f", nor are {number - 1} further cells" if number > 1 else ""
    raise DataError(
        f"{place}, row {row} (the first is 1): '{one_line(stray, 40)}' is no {what}{known}{others}, and {fitting} "
        f"cells are; correct the cell, empty it, or delete the row (as of a footer with totals); or give --column "
        f"'{name}={kind}' to read such cells as missing, '{name}=categorical', or '{name}=identifier' to leave it out"
    )


def _as_dates(name: str, cells: Cells, place: str, comma: bool, word: str, pattern: str) -> Column | None:
    pattern = pattern or find_pattern(cells.texts)
    if not pattern:
        if word:
            raise DataError(f"{place}: no pattern of dates fits it; give it, as in date:%d/%m/%Y")
        return None
    values = read_dates(pattern, cells.texts)
    stray, counts = np.isnan(values), cells.counts
    dates = int(counts[~stray].sum())
    if word and not dates:
        raise DataError(f"{place}: no cell of it is a date as in {pattern}; give the pattern, as in date:%d/%m/%Y")
    told = "dates" if pattern == "ISO8601" else f"dates as in {pattern}"
    twin = {"%m/%d/%Y": "%d/%m/%Y", "%d-%m-%Y": "%m-%d-%Y"}.get(pattern.partition(" ")[0])
    if (
        twin
        and not word
        and not np.isnan(read_dates(pattern.replace(pattern.partition(" ")[0], twin), cells.texts)).any()
    ):
        told += f", which {twin} would fit too: give --column '{name}=date:{twin}' if it is meant"
    if stray.any():
        if not word and not _is_mostly(dates, int((~stray).sum()), int(counts[stray].sum())):
            return None
        strays = [text for text, no in zip(cells.texts, stray, strict=True) if no]
        worst = next((text for text in strays if text.lower() not in MARKS), None)
        if worst is not None and not word:
            _refuse(place, cells, worst, int(counts[stray].sum()), dates, "date")
        told += f"; {plural(int(counts[stray].sum()), 'cell')} such as '{one_line(strays[0], 30)}' read as missing"
    return replace(_dated(name, pattern, cells.spread(values), told), lenient=bool(word))


_PARTS = {"month": "month", "weekday": "day_of_week", "hour": "hour"}


def _dated(name: str, pattern: str, seconds: NDArray[np.float64], told: str) -> Column:
    """A column of dates; month, weekday and hour become features where they vary."""
    parts = tuple(part for part in _PARTS if len(np.unique(_part(part, seconds)[np.isfinite(seconds)])) > 1)
    return Column(name, "date", f"{told}; features: {', '.join(('time', *parts))}", pattern=pattern, parts=parts)


def _part(part: str, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    import pandas

    times = pandas.to_datetime(pandas.Series(seconds), unit="s")
    return np.asarray(getattr(times.dt, _PARTS[part]).to_numpy(np.float64))


def _seconds(column: Any) -> NDArray[np.float64]:
    """Times in seconds since 1970, so that they can be compared."""
    import pandas

    if not pandas.api.types.is_datetime64_any_dtype(column):
        column = pandas.to_datetime(column, errors="coerce", utc=True)
    return np.asarray((column - pandas.Timestamp(0, tz=column.dt.tz)).dt.total_seconds().to_numpy(np.float64))


def _as_strings(name: str, cells: Cells, rest: str) -> Column:
    filled, number = int((cells.codes >= 0).sum()), len(cells.texts)
    if filled >= LEAST_ROWS and 2 * number > filled:
        words = float(np.mean([len(text.split()) for text in cells.texts[:2000]]))
        kind = "text" if words >= WORDS else "identifier"
        return Column(name, kind, f"{number} different strings in {filled} rows{rest}; left out{_hint(kind)}")
    return Column(name, "categorical", f"{number} different values{rest}")


def _hint(kind: str) -> str:
    return " (--text reads such a column)" if kind == "text" else ""


# values ---------------------------------------------------------------------------------------------------------------


def convert(spec: Column, column: Any, place: str) -> dict[str, Any]:
    """The features of a column by name: float64 values, or the column itself where it is categorical.

    Raises:
        DataError: a cell is not what the column is made of, or infinite.
    """
    if spec.type == "categorical":
        return {spec.name: column}
    if spec.type == "numeric":
        values = number_values(spec, column, place)
        refuse_infinite(values, place)
        return {spec.name: values}
    seconds = _date_values(spec, column, place)
    return {spec.name: seconds, **{f"{spec.name} ({part})": _part(part, seconds) for part in spec.parts}}


def number_values(spec: Column, column: Any, place: str) -> NDArray[np.float64]:
    """A column's numbers (rows,), nan where there are none.

    Raises:
        DataError: a cell has text.
    """
    import pandas

    if pandas.api.types.is_timedelta64_dtype(column):
        return np.asarray(column.dt.total_seconds().to_numpy(np.float64))
    if column.isna().all():
        return np.full(len(column), np.nan)
    if _is_numeric(column):
        return np.asarray(pandas.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan))
    cells = cells_of(column, place)
    values = read_numbers(spec, cells.texts)
    _check_strays(spec, cells, values, place, "number")
    return cells.spread(values)


def _date_values(spec: Column, column: Any, place: str) -> NDArray[np.float64]:
    import pandas

    types = pandas.api.types
    if types.is_datetime64_any_dtype(column) or types.infer_dtype(column, skipna=True) in ("date", "datetime"):
        return _seconds(column)
    cells = cells_of(column, place)
    values = read_dates(spec.pattern or find_pattern(cells.texts) or "ISO8601", cells.texts)
    _check_strays(spec, cells, values, place, "date")
    return cells.spread(values)


def _check_strays(spec: Column, cells: Cells, values: NDArray[np.float64], place: str, what: str) -> None:
    for text, value in zip(cells.texts, values.tolist(), strict=True):
        if np.isnan(value) and not spec.lenient and text.lower() not in MARKS:
            row = cells.first(cells.texts.index(text))
            raise DataError(
                f"{place}, row {row}: '{one_line(text, 40)}' is no {what}{_shape_text(spec)}; correct the cell or "
                "empty it"
            )


def _shape_text(spec: Column) -> str:
    if spec.type == "date":
        return f" as in {spec.pattern}" if spec.pattern not in ("", "ISO8601") else ""
    told = [f"'{spec.decimal}' before decimals"] if (spec.decimal, spec.thousands) != (".", "") else []
    told += [f"unit {spec.unit}"] if spec.unit else []
    return f" ({', '.join(told)})" if told else ""


def refuse_infinite(values: NDArray[np.float64], place: str) -> None:
    """Refuse values that float32 cannot hold.

    Raises:
        DataError: there is one; the message names its row.
    """
    infinite = np.abs(values) > np.finfo(np.float32).max
    if infinite.any():
        row = int(infinite.argmax())
        raise DataError(f"{place}, row {row + 1} (the first is 1): infinite value {values[row]}; {INFINITE_REMEDY}")


# report ---------------------------------------------------------------------------------------------------------------


def report(title: str, columns: Sequence[Column]) -> str:
    """How a table was read, in lines: each column with type and reason, and plain columns together.

    >>> print(report("t.csv: 3 rows", [Column("a", "numeric", "numbers"), Column("b", "constant", "5 in every row")]))
    t.csv: 3 rows
      a  numeric   numbers
      b  constant  5 in every row
    --column NAME=TYPE overrules a type (numeric, categorical, date, text, identifier)
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for column in columns:
        groups.setdefault((column.type, column.why), []).append(column.name)
    if len(groups) > MOST_LINES:
        groups = {}
        for column in columns:
            groups.setdefault((column.type, ""), []).append(column.name)
    lines = []
    for (kind, why), names in groups.items():
        if len(names) < FEW:
            lines += [(one_line(name, 40), kind, why) for name in names]
        else:
            lines.append((f"{one_line(names[0], 30)} to {one_line(names[-1], 30)}, {len(names)} columns", kind, why))
    widths = [max((len(line[i]) for line in lines), default=0) for i in range(2)]
    body = [f"  {name:<{widths[0]}}  {kind:<{widths[1]}}  {reason}".rstrip() for name, kind, reason in lines]
    return "\n".join([title, *body, f"--column NAME=TYPE overrules a type ({', '.join(TYPES)})"])


MOST_LINES = 40


FEW = 5  # from so many on, columns of one type and reason share a line
