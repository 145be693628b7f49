"""Tables: CSV and Parquet in, standardised float32 out; the preprocessing is scikit-learn's, saved by skops.

Numbers: median for the missing, an indicator column where any were missing, mean 0 and deviation 1.
Categories: "missing" is a category of its own, then one column per category, the rare ones beyond 64 sharing
one; a category never seen in training is all zeros.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")


MOST_CLASSES = 20  # a numeric target with more distinct values is a value, not a class


MOST_CATEGORIES = 64


INFINITE_REMEDY = "remove the row, or leave the cell empty if the value is unknown"


# What scikit-learn's imputer stores besides what skops already trusts; nothing else is loaded.
TRUSTED = frozenset({"numpy.dtype"})


class RawTable(NamedTuple):
    """A table as read: features, and the target apart from them."""

    features: Any  # pandas.DataFrame: numbers as float64, categories as object with nan for missing
    y: Tensor  # (n,) int64 with -1, or float32 with nan, where there is no target
    classes: tuple[str, ...]  # empty for regression


def is_table(source: str) -> bool:
    """Does this name end like a table's?"""
    return source.lower().endswith(SUFFIXES)


def pandas() -> Any:
    """The pandas module, or the name of the extra that brings it."""
    try:
        import pandas as module
    except ImportError:
        raise DataError("reading tables needs pandas: pip install 'selfdistill[tables]'") from None
    return module


def read_frame(path: Path) -> Any:
    """The table in a CSV, TSV or Parquet file as a pandas frame with at least one row.

    Raises:
        DataError: the file is missing, empty, or not of the format its name says.
    """
    library, name = pandas(), path.name.lower()
    if not path.is_file():
        raise DataError(f"{path}: no such table; give the path of an existing {', '.join(SUFFIXES)} file")
    try:
        if name.endswith(".parquet"):
            frame = library.read_parquet(path).reset_index(drop=True)
        else:
            frame = _read_text(path)
    except ImportError:
        raise DataError(f"{path}: Parquet needs pyarrow: pip install 'selfdistill[tables]'") from None
    except (OSError, ValueError, EOFError) as error:  # pandas' and pyarrow's own errors are ValueErrors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{path}: cannot be read as a table ({reason}); repair or export it again") from None
    if frame.empty:
        raise DataError(f"{path}: the table has no rows; add some")
    frame.columns = [str(column) for column in frame.columns]
    if not frame.columns.is_unique:
        duplicate = frame.columns[frame.columns.duplicated()][0]
        raise DataError(f"{path}: two columns are called '{duplicate}'; rename one")
    return frame


def sklearn_table(name: str) -> RawTable:
    """A table that comes with scikit-learn: diabetes (442 rows), breast-cancer (569), wine (178), iris (150), or 600
    rows of friedman1 with noise 1 (Friedman, Multivariate Adaptive Regression Splines, 1991), always the same ones.

    >>> table = sklearn_table("diabetes")
    >>> table.features.shape, table.classes, float(table.y[0])
    ((442, 10), (), 151.0)
    """
    from sklearn import datasets

    library = pandas()
    if name == "friedman1":
        x, y = datasets.make_friedman1(600, noise=1.0, random_state=0)
        frame = library.DataFrame(x, columns=[f"x{i + 1}" for i in range(x.shape[1])])
        return RawTable(frame, torch.from_numpy(y.astype(np.float32)), ())
    bunch = getattr(datasets, f"load_{name.replace('-', '_')}")()
    frame = library.DataFrame(bunch.data, columns=[str(column) for column in bunch.feature_names])
    if name == "diabetes":
        return RawTable(frame, torch.from_numpy(bunch.target.astype(np.float32)), ())
    return RawTable(frame, torch.from_numpy(bunch.target.astype(np.int64)), tuple(map(str, bunch.target_names)))


def _read_text(path: Path, **options: Any) -> Any:
    library, separator = pandas(), "\t" if ".tsv" in path.name.lower() else ","
    with warnings.catch_warnings():
        # A surplus cell would become the row's name or, with index_col=False, be dropped with this warning.
        warnings.simplefilter("error", library.errors.ParserWarning)
        try:
            return library.read_csv(path, sep=separator, low_memory=False, index_col=False, **options)
        except library.errors.ParserWarning:
            raise ValueError("rows have more cells than the header has names") from None


class _OneByOne:
    """A Parquet file whose columns are read one at a time: read at once, it takes three times its size."""

    def __init__(self, path: Path) -> None:
        try:
            from pyarrow.parquet import ParquetFile

            self.file = ParquetFile(path)
        except Exception:  # whatever it is, reading it as a whole says what is wrong and what helps
            read_frame(path)
            raise
        if not self.file.metadata.num_rows:
            read_frame(path)
        schema = self.file.schema_arrow
        index = (schema.pandas_metadata or {}).get("index_columns", [])  # names, or a range that is no column
        self.columns = pandas().Index([str(name) for name in schema.names if name not in index])

    def __getitem__(self, name: str) -> Any:
        from pyarrow import default_memory_pool

        table = self.file.read(columns=[name], use_threads=False)
        column = table.to_pandas(split_blocks=True, self_destruct=True, ignore_metadata=True)[name]
        del table
        default_memory_pool().release_unused()  # it keeps what it has, and that would be a frame more
        return column

    pop = __getitem__


def read(
    path: Path, target: str | None, unlabelled: Path | None, compact: bool = False, labelled: bool = True
) -> RawTable:
    """Features and target of a table; the rows of ``unlabelled``, with the same columns, come after its own.

    ``compact`` features have categories in place of text, and no column is held twice while they are made. Unless it
    must be ``labelled``, a table may have no target, or nothing in it; all its labels are -1 then.

    Raises:
        DataError: no such target, no other columns, infinite values, other columns in ``unlabelled``.
    """
    frame = _OneByOne(path) if compact and path.name.lower().endswith(".parquet") else read_frame(path)
    if not labelled and (target is None or (target in frame.columns and frame[target].isna().all())):
        y, classes = torch.full((len(frame[frame.columns[0]]),), -1), tuple[str, ...]()
    else:
        y, classes = labels(path, frame, target)
    names = [column for column in frame.columns if column != target]
    if not names:
        raise DataError(f"{path}: no column but the target '{target}'; add columns to predict it from")
    numeric = [name for name in names if is_number(frame[name])]
    features = prepare(frame, names, numeric, str(path), compact)
    if unlabelled is not None:
        extra = prepare(read_frame(unlabelled), names, numeric, str(unlabelled), compact)
        features = _concatenate(features, extra)
        y = torch.cat([y, y.new_full((len(extra),), torch.nan if y.is_floating_point() else -1)])
    return RawTable(features, y, classes)


def labels(path: Path, frame: Any, target: str | None) -> tuple[Tensor, tuple[str, ...]]:
    """The target of a table and the names of its classes; of values there are none.

    Raises:
        DataError: no such column, or nothing in it.
    """
    columns = ", ".join(frame.columns)
    if target is None:
        raise DataError(
            f"{path}: say which column is the target (target=, --target), one of: {columns}; without one `run` learns "
            "features, by --method 'byol()' or its like"
        )
    if target not in frame.columns:
        raise DataError(f"{path}: no column is called '{target}'; choose one of: {columns}")
    column = frame[target]
    return _targets(column if is_number(column) else text_column(path, column), f"{path}: column '{target}'")


def text_column(path: Path, column: Any) -> Any:
    """A column of words as it is written: "None" or "NA" may be one of them, and only an empty cell is missing."""
    if path.name.lower().endswith(".parquet"):
        return column
    return _read_text(path, usecols=[column.name], keep_default_na=False, na_values=[""])[column.name]


def _concatenate(features: Any, extra: Any) -> Any:
    """Two frames as one; categories are those of both."""
    from pandas.api.types import union_categoricals

    columns = {}
    for name in features.columns:
        pair = [features[name], extra[name]]
        if str(features[name].dtype) == "category":
            columns[name] = pandas().Series(union_categoricals(pair, sort_categories=True))
        else:
            columns[name] = pandas().concat(pair, ignore_index=True)
    return pandas().DataFrame(columns)


def prepare(frame: Any, names: Sequence[str], numeric: Sequence[str], place: str, compact: bool = False) -> Any:
    """The columns ``names``: the numeric ones as float64, all others as text, nan where a cell is empty.

    ``compact`` makes the others categories, and takes the columns out of ``frame``, which is of no use afterwards.

    Raises:
        DataError: a column is missing, or one of numbers has text or an infinite value in a named row.
    """
    library = pandas()
    absent = [name for name in names if name not in frame.columns]
    if absent:
        raise DataError(f"{place}: column '{absent[0]}' is missing; it has: {', '.join(frame.columns)}")
    columns = {}
    for name in names:
        column = frame.pop(name) if compact else frame[name]
        if name in numeric:
            columns[name] = library.Series(_numbers(column, f"{place}: column '{name}'"))
        elif compact:
            columns[name] = library.Series(_categories(column))
        else:
            columns[name] = library.Series(_texts(column), dtype=object)
    return library.DataFrame(columns, copy=False)


def _categories(column: Any) -> Any:
    """The texts of a column as sorted categories; empty cells have none."""
    library = pandas()
    codes, values = library.factorize(column, use_na_sentinel=True)
    texts = np.array([str(value) for value in values], dtype=object)
    names, order = np.unique(texts, return_inverse=True) if len(texts) else (texts, np.zeros(0, dtype=np.int64))
    placed = np.append(order, -1)[codes]  # -1 stays -1
    return library.Categorical.from_codes(placed, categories=names)


def is_number(column: Any) -> bool:
    """Numbers, decimals and times; also a column with nothing in it."""
    types = pandas().api.types
    if types.is_bool_dtype(column):
        return False
    if types.is_numeric_dtype(column) or types.is_datetime64_any_dtype(column) or column.isna().all():
        return True
    return bool(types.infer_dtype(column, skipna=True) == "decimal")


def _numbers(column: Any, place: str) -> Any:
    library = pandas()
    if library.api.types.is_datetime64_any_dtype(column):  # seconds, so that times can be compared
        column = (column - library.Timestamp(0, tz=column.dt.tz)).dt.total_seconds()
    values = library.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    broken = np.isnan(values) & column.notna().to_numpy()
    if broken.any():
        row = int(broken.argmax())
        raise DataError(f"{place}, row {row + 1}: '{column.iloc[row]}' is no number; correct the cell or empty it")
    _finite(values, place)
    return values


def _finite(values: np.ndarray[Any, Any], place: str) -> None:
    # beyond float32 a value is as good as infinite
    infinite = np.abs(values) > np.finfo(np.float32).max
    if infinite.any():
        row = int(infinite.argmax())
        raise DataError(f"{place}, row {row + 1} (the first is 1): infinite value {values[row]}; {INFINITE_REMEDY}")


def _texts(column: Any) -> np.ndarray[Any, Any]:
    filled = column.notna().to_numpy()
    texts = np.full(len(column), np.nan, dtype=object)
    texts[filled] = [str(value) for value in column[filled]]
    return texts


def _targets(column: Any, place: str) -> tuple[Tensor, tuple[str, ...]]:
    """Labels and class names, or values and no names, by the column's kind; an empty cell is no label."""
    if is_number(column):
        values = _numbers(column, place)
        distinct = np.unique(values[~np.isnan(values)])
        if len(distinct) > MOST_CLASSES:
            return torch.from_numpy(values.astype(np.float32)), ()
        names = [str(int(value)) if value == int(value) else str(value) for value in distinct]
        codes = np.where(np.isnan(values), -1, np.searchsorted(distinct, np.nan_to_num(values)))
    else:
        texts = [value.strip() if isinstance(value, str) else "" for value in _texts(column)]
        names = sorted({text for text in texts if text})
        _mostly_numbers(texts, names, place)
        number = {name: code for code, name in enumerate(names)}
        codes = np.array([number.get(text, -1) for text in texts])
    if not names:
        raise DataError(f"{place} is empty in every row; fill in the target of some")
    return torch.from_numpy(codes.astype(np.int64)), tuple(names)


def _mostly_numbers(texts: list[str], names: list[str], place: str) -> None:
    """Refuse a column of values with a few cells of text: each of its numbers would be a class of its own."""
    values = pandas().to_numeric(pandas().Series(names, dtype=object), errors="coerce").to_numpy(np.float64)
    words = {name for name, broken in zip(names, np.isnan(values), strict=True) if broken}
    if words and len(names) - len(words) > max(MOST_CLASSES, 9 * len(words)):
        row = next(row for row, text in enumerate(texts) if text in words)
        raise DataError(
            f"{place}, row {row + 1} (the first is 1): {texts[row]!r} is no number, and the others are; correct "
            "the cell or empty it"
        )


# ---- preprocessing ---------------------------------------------------------------------------------


def fit(features: Any, train: Tensor) -> Any:
    """Preprocessing for prepared ``features``, learnt from the rows ``train`` (sample ids) alone."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numeric = [name for name in features.columns if features[name].dtype.kind == "f"]
    categorical = [name for name in features.columns if name not in numeric]
    scale = make_pipeline(
        SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True), StandardScaler()
    )
    code = make_pipeline(
        SimpleImputer(strategy="constant", fill_value="missing"),
        OneHotEncoder(handle_unknown="ignore", max_categories=MOST_CATEGORIES, sparse_output=False),
    )
    parts = [("numbers", scale, numeric), ("categories", code, categorical)]
    transformer = ColumnTransformer([part for part in parts if part[2]], sparse_threshold=0.0)
    return transformer.fit(features.iloc[train.numpy()])


def columns(preprocessor: Any) -> tuple[list[str], list[str]]:
    """The columns this preprocessing was fitted on, and those of them that are numbers."""
    numeric = [name for part, _, names in preprocessor.transformers_ if part == "numbers" for name in names]
    return [str(name) for name in preprocessor.feature_names_in_], numeric


def transform(preprocessor: Any, frame: Any, place: str = "table") -> Tensor:
    """Model input for a frame: (n, features) float32; columns it was not fitted on are ignored.

    Raises:
        DataError: a column is missing or holds what cannot be used (as in ``prepare``).
    """
    names, numeric = columns(preprocessor)
    prepared_frame = prepare(frame, names, numeric, place)
    with warnings.catch_warnings():  # that an unknown category becomes zeros is what was asked for
        warnings.filterwarnings("ignore", message="Found unknown categories")
        values = preprocessor.transform(prepared_frame)
    x = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    if not bool(torch.isfinite(x).all()):
        row, column = (int(i) for i in (~torch.isfinite(x)).nonzero()[0])
        name = preprocessor.get_feature_names_out()[column]
        raise DataError(f"{place}, row {row + 1}: '{name}' is too far from the training rows; {INFINITE_REMEDY}")
    return x


def skops() -> Any:
    """The skops.io module, or the name of the extra that brings it."""
    try:
        import skops.io as module
    except ImportError:
        raise DataError("models of tables are saved with skops: pip install 'selfdistill[tables]'") from None
    return module


def save(preprocessor: Any, path: Path) -> None:
    """Write the preprocessing as a skops file: no pickle, loaded again only if every type in it is known."""
    skops().dump(preprocessor, path)


def load(path: Path) -> Any:
    """Read what ``save`` wrote.

    Raises:
        DataError: the file is missing or damaged, or holds anything but known scikit-learn and numpy types.
    """
    library = skops()
    if not path.is_file():
        raise DataError(f"{path}: no preprocessing saved there; give the folder of a model trained on a table")
    try:
        foreign = sorted(set(library.get_untrusted_types(file=path)) - TRUSTED)
        loaded = None if foreign else library.load(path, trusted=sorted(TRUSTED))
    except Exception as error:  # a damaged archive can fail anywhere inside skops
        raise DataError(f"{path}: damaged ({type(error).__name__}); train again, or restore the file") from None
    if foreign:
        raise DataError(f"{path}: holds the foreign type {foreign[0]} and was not loaded; train again")
    if not hasattr(loaded, "feature_names_in_"):
        raise DataError(f"{path}: not a fitted preprocessing of columns; train again")
    return loaded
