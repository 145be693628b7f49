"""Tables: their columns in, standardised float32 out; the preprocessing is scikit-learn's, saved by skops.

Numbers: median for the missing, an indicator column where any were missing, mean 0 and deviation 1.
Categories: "missing" is a category of its own, then one column per category, the rare ones beyond 64 sharing
one; a category never seen in training is all zeros.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..io.expressions import one_line
from . import column_types
from .annotators import AnnotatorLabels, take_votes
from .column_types import DISTINCT, INFINITE_REMEDY, USED, Column
from .split_columns import NO_REQUEST, SplitColumns, SplitRequest, append_column, read_further, take_split_columns
from .table_files import Table, pandas, read_table

MOST_CLASSES = DISTINCT  # a numeric target with more distinct values is a value, not a class


MOST_CATEGORIES = 64


# What scikit-learn's imputer stores besides what skops already trusts; nothing else is loaded.
TRUSTED = frozenset({"numpy.dtype"})


class RawTable(NamedTuple):
    """A table as read: features, and the target apart from them."""

    features: Any  # pandas.DataFrame: numbers as float64, categories as object with nan for missing
    y: Tensor  # (n,) int64 with -1, or float32 with nan, where there is no target
    classes: tuple[str, ...]  # empty for regression
    columns: tuple[Column, ...] = ()  # how each column of the file was read
    title: str = ""  # of the report on them: rows and target
    split: SplitColumns = SplitColumns()  # what decides the splits
    counts: tuple[tuple[str, int], ...] = ()  # the rows of its file and of further ones
    votes: AnnotatorLabels | None = None  # the labels of several annotators, of which y is the consensus


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
        frame, classes = library.DataFrame(x, columns=[f"x{i + 1}" for i in range(x.shape[1])]), None
    else:
        bunch = getattr(datasets, f"load_{name.replace('-', '_')}")()
        frame = library.DataFrame(bunch.data, columns=[str(column) for column in bunch.feature_names])
        y, classes = bunch.target, None if name == "diabetes" else tuple(map(str, bunch.target_names))
    specs = tuple(Column(str(column), "numeric", "numbers") for column in frame.columns)
    labels = torch.from_numpy(y.astype(np.float32 if classes is None else np.int64))
    title = _title(name, labels, classes or (), None)
    return RawTable(frame, labels, classes or (), specs, title)


def read(
    path: Path,
    target: str | None,
    unlabelled: Path | None,
    compact: bool = False,
    labelled: bool = True,
    types: Mapping[str, column_types.Kind] | None = None,
    request: SplitRequest = NO_REQUEST,
) -> RawTable:
    """Features and target of a table; the rows of ``unlabelled``, with the same columns, come after its own and those
    of the files of ``request``.

    ``compact`` features have categories in place of text, and no column is held twice while they are made. Unless it
    must be ``labelled``, a table may have no target, or nothing in it; all its labels are -1 then. ``types`` are types
    of columns that a person chose.

    Raises:
        DataError: no such target, no other columns, infinite values, other columns in ``unlabelled``.
    """
    types = dict(types or {})
    literal = [name for name, kind in types.items() if kind != "numeric"]
    literal += [name for name in (request.groups, request.tasks) if name is not None]
    names = target_columns(target, request)
    table = read_table(path, names, literal)
    column_types.requested(types, table.names, str(path))
    further = read_further(request, table, target)
    placed = (
        request.groups or request.time or request.tasks
    )  # otherwise the unlabelled rows are read once, with the types of columns
    extra = read_table(unlabelled, (), literal) if unlabelled is not None and placed else None
    split = take_split_columns(request, table, further, extra, (*names, *types))
    for name in names:
        append_column(table, further, name)
    bare, votes = torch.full((table.rows,), -1), None
    if (
        not labelled
        and not request.annotators
        and (target is None or (target in table.columns and table.columns[target]().isna().all()))
    ):
        if further:
            raise DataError(f"{path}: no row has a label, and nothing can be tested; leave the files of splits out")
        y, classes = bare, tuple[str, ...]()
        table.columns.pop(str(target), None)
    else:
        y, classes, votes = targets(table, target, types, request)
    if not table.columns:
        raise DataError(f"{path}: no column but the target '{', '.join(names)}'; add columns to predict it from")
    specs, features = _infer(table, types, compact)
    title = _title(str(path.name), y, classes, target, len(request.annotators))
    title += f" ({table.note})" if table.note else ""
    counts = [(str(more.path), more.rows) for more in (table, *further)]
    for more in further:
        features = _concatenate(features, prepare(more, specs, compact))
    if unlabelled is not None:
        rows = prepare(read_table(unlabelled, (), literal_names(specs)), specs, compact)
        features = _concatenate(features, rows)
        counts.append((str(unlabelled), len(rows)))
        y = torch.cat([y, y.new_full((len(rows),), torch.nan if y.is_floating_point() else -1)])
        votes = votes.extended(len(rows)) if votes else None
    specs += [*split.columns, *(votes.columns() if votes else [])]
    return RawTable(features, y, classes, tuple(specs), title, split, tuple(counts), votes)


def _title(name: str, y: Tensor, classes: Sequence[str], target: str | None, annotators: int = 0) -> str:
    """Rows and target of a table in a line."""
    missing = int((torch.isnan(y) if y.is_floating_point() else y < 0).sum())
    if missing == len(y):
        return f"{name}: {len(y)} rows without a target"
    some = ", ".join(one_line(c, 20) for c in classes[:6]) + (", ..." if len(classes) > 6 else "")
    what = f"{len(classes)} classes ({some})" if classes else "a number (regression)"
    known = f"the target '{one_line(target, 40)}'" if target is not None else "the target"
    known = f"the target, the consensus of {annotators} annotators," if annotators else known
    return f"{name}: {len(y)} rows; {known} is {what}" + (f"; {missing} rows have none" if missing else "")


def _infer(table: Table, types: Mapping[str, column_types.Kind], compact: bool) -> tuple[list[Column], Any]:
    """The type of every column, and the features.

    Raises:
        DataError: a column cannot be read, or none is left.
    """
    specs, features = list[Column](), dict[str, Any]()
    for name in table.names:
        place, column = f"{table.path}: column '{name}'", table.take(name)
        spec = column_types.infer(name, column, place, table.comma, types.get(name))
        specs.append(spec)
        if spec.type in USED:
            _add(features, spec, column, place, compact)
    if not features:
        told = "; ".join(f"'{one_line(spec.name, 30)}' is {spec.type}" for spec in specs[:4])
        raise DataError(
            f"{table.path}: no column is left to predict from ({told}{'; ...' if len(specs) > 4 else ''}); add some, "
            "use one by --column NAME=categorical, or read a column of texts by --text NAME"
        )
    return specs, pandas().DataFrame(features, copy=False)


def _add(features: dict[str, Any], spec: Column, column: Any, place: str, compact: bool) -> None:
    """Add the features of a column to those of the others."""
    library = pandas()
    for name, values in column_types.convert(spec, column, place).items():
        if name in features:
            raise DataError(f"{place} makes the feature '{name}', and another column has that name; rename one")
        if spec.type != "categorical":
            features[name] = library.Series(values)
        elif compact:
            features[name] = library.Series(_categories(values))
        else:
            features[name] = library.Series(_texts(values), dtype=object)


def prepare(table: Table, specs: Sequence[Column], compact: bool = False) -> Any:
    """The features of a table whose columns are read as those of another one were; further columns are ignored.

    Numbers and dates become float64; categories text with nan where a cell is empty, or ``compact`` categories.

    Raises:
        DataError: a column is missing, or one of numbers has text or an infinite value in a named row.
    """
    features: dict[str, Any] = {}
    names = table.names
    for spec in specs:
        if spec.type not in USED:
            continue
        if spec.name not in table.columns:
            raise DataError(f"{table.path}: column '{spec.name}' is missing; it has: {', '.join(names)}")
        _add(features, spec, table.take(spec.name), f"{table.path}: column '{spec.name}'", compact)
    return pandas().DataFrame(features, copy=False)


def literal_names(specs: Sequence[Column]) -> list[str]:
    """The columns whose cells must be read as they are written."""
    return [spec.name for spec in specs if spec.literal]


def target_columns(target: str | None, request: SplitRequest) -> tuple[str, ...]:
    """The columns that the target is made of: that of labels, or those of annotators.

    Raises:
        DataError: both are asked for.
    """
    if target is None or not request.annotators:
        return request.annotators if target is None else (target,)
    raise DataError(
        f"--annotators gives the target, and so does --target '{one_line(target, 40)}'; leave one of the two out"
    )


def targets(
    table: Table, target: str | None, types: Mapping[str, column_types.Kind], request: SplitRequest
) -> tuple[Tensor, tuple[str, ...], AnnotatorLabels | None]:
    """The target of a table, the names of its classes, and the labels of annotators, where these are the target.

    Args:
        table: as of `labels`.
        target: the column; without one the annotators of the request.
        types: types of columns that a person chose.
        request: it names the annotators.

    Raises:
        DataError: as of `labels` and `take_votes`.
    """
    if not request.annotators:
        kind = types.get(str(target))
        return *labels(table, target, kind if isinstance(kind, str) else None), None
    for name in request.annotators:
        if isinstance(types.get(name), str):
            raise DataError(f"{table.path}: column '{name}' is of an annotator, and has classes; leave --column out")
    votes = take_votes(table, request.annotators)
    return votes.consensus(), votes.classes, votes


def labels(table: Table, target: str | None, kind: str | None = None) -> tuple[Tensor, tuple[str, ...]]:
    """The target of a table and the names of its classes; of values there are none. The column is taken out.

    Args:
        table: it keeps the cells of the target as they are written.
        target: the column.
        kind: "categorical" or "numeric", where a person says which.

    Raises:
        DataError: no such column, or nothing in it.
    """
    names = ", ".join(table.names)
    if target is None:
        raise DataError(
            f"{table.path}: say which column is the target (target=, --target), one of: {names}; without one `run` "
            "learns features, by --method 'byol()' or its like"
        )
    if target not in table.columns:
        raise DataError(f"{table.path}: no column is called '{target}'; choose one of: {names}")
    place = f"{table.path}: column '{target}'"
    if kind not in (None, "categorical", "numeric"):
        raise DataError(f"{place} is the target, and is categorical or numeric, not {kind}; leave --column out for it")
    return _targets(table.take(target), place, table.comma, kind)


def _concatenate(features: Any, extra: Any) -> Any:
    """Two frames as one; categories are those of both."""
    from pandas.api.types import union_categoricals

    columns_ = {}
    for name in features.columns:
        pair = [features[name], extra[name]]
        if str(features[name].dtype) == "category":
            columns_[name] = pandas().Series(union_categoricals(pair, sort_categories=True))
        else:
            columns_[name] = pandas().concat(pair, ignore_index=True)
    return pandas().DataFrame(columns_, copy=False)


def _categories(column: Any) -> Any:
    """The texts of a column as sorted categories; empty cells have none."""
    library = pandas()
    codes, values = library.factorize(column, use_na_sentinel=True)
    texts = np.array([str(value) for value in values], dtype=object)
    names, order = np.unique(texts, return_inverse=True) if len(texts) else (texts, np.zeros(0, dtype=np.int64))
    placed = np.append(order, -1)[codes]  # -1 stays -1
    return library.Categorical.from_codes(placed, categories=names)


def _texts(column: Any) -> np.ndarray[Any, Any]:
    filled = column.notna().to_numpy()
    texts = np.full(len(column), np.nan, dtype=object)
    texts[filled] = [str(value) for value in column[filled]]
    return texts


def _targets(column: Any, place: str, comma: bool, kind: str | None) -> tuple[Tensor, tuple[str, ...]]:
    """Labels and class names as they are written, or values and no names; an empty cell is no label."""
    cells = column_types.cells_of(column, place)
    values = np.full(len(cells.texts), np.nan)
    if kind != "categorical":
        parsed = column_types.parse_numbers(cells.texts, cells.counts, comma)
        values = np.where([text.lower() in ("inf", "-inf", "infinity") for text in cells.texts], np.inf, parsed.values)
        _mostly_numbers(cells, values, place, kind)
    numbers = bool(len(values)) and not np.isnan(values).any()
    if numbers and (len(np.unique(values)) > MOST_CLASSES or kind == "numeric"):
        column_values = cells.spread(values)
        column_types.refuse_infinite(column_values, place)
        return torch.from_numpy(column_values.astype(np.float32)), ()
    if not cells.texts:
        raise DataError(f"{place} is empty in every row; fill in the target of some")
    order = sorted(range(len(cells.texts)), key=lambda i: _rank(cells.texts[i], numbers))
    place_of = np.empty(len(order) + 1, dtype=np.int64)
    place_of[order], place_of[-1] = np.arange(len(order)), -1
    return torch.from_numpy(place_of[cells.codes]), tuple(cells.texts[i] for i in order)


def _rank(text: str, number: bool) -> tuple[Any, str]:
    """The order of class names: numbers by their exact value, others as texts."""
    try:
        return (Decimal(text) if number else 0, text)
    except InvalidOperation:  # 1,5 or 5 kg
        return (Decimal(0), text)


def _mostly_numbers(cells: column_types.Cells, values: np.ndarray[Any, Any], place: str, kind: str | None) -> None:
    """Refuse a column of values with a few cells of text: each of its numbers would be a class of its own."""
    words = {text for text, value in zip(cells.texts, values, strict=True) if np.isnan(value)}
    numbers = len(cells.texts) - len(words)
    if words and (kind == "numeric" or numbers > max(MOST_CLASSES, 9 * len(words))):
        text = next(text for text in cells.texts if text in words)
        row = cells.first(cells.texts.index(text))
        raise DataError(
            f"{place}, row {row} (the first is 1): {one_line(text, 40)!r} is no number, "
            "and the others are; correct the cell or empty it"
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


def feature_names(preprocessor: Any) -> list[str]:
    """The features that this preprocessing was fitted on."""
    return [str(name) for name in preprocessor.feature_names_in_]


def feature_columns(preprocessor: Any) -> list[str]:
    """The column that each feature was made of, in the order of `transform`: numbers, where any were missing, and
    categories one by one."""
    columns: list[str] = []
    for name, pipeline, own in preprocessor.transformers_:
        if name == "numbers":
            indicator = pipeline[0].indicator_
            columns += [*own, *(own[i] for i in (indicator.features_ if indicator is not None else []))]
        elif name == "categories":
            numbered = pipeline[-1].get_feature_names_out([str(i) for i in range(len(own))])
            columns += [own[int(feature.partition("_")[0])] for feature in numbered]
    return [str(column) for column in columns]


def transform(preprocessor: Any, features: Any, place: str = "table") -> Tensor:
    """Model input for features as `prepare` makes them: (n, features) float32.

    Raises:
        DataError: a value is too far from those that the preprocessing was fitted on.
    """
    with warnings.catch_warnings():  # that an unknown category becomes zeros is what was asked for
        warnings.filterwarnings("ignore", message="Found unknown categories")
        values = preprocessor.transform(features[feature_names(preprocessor)])
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


def preprocessing_steps(preprocessor: Any) -> list[dict[str, Any]]:
    """The preprocessing as arithmetic, one mapping for each column of the model's input, so that any language does it.

    A ``number`` is (value - mean) / scale, with ``missing`` in the place of an empty cell. ``is_missing`` is the same
    of 1 where the cell is empty and 0 elsewhere. A ``category`` is 1 where the cell is one of ``values`` and 0
    elsewhere; an empty cell is "missing".

    Args:
        preprocessor: As `fit` makes it.
    """
    steps: list[dict[str, Any]] = []
    for name, pipeline, own in preprocessor.transformers_:
        if name == "numbers":
            imputer, scaler = pipeline
            lacking = imputer.indicator_.features_ if imputer.indicator_ is not None else []
            known = [
                {"feature": feature, "kind": "number", "missing": float(median)}
                for feature, median in zip(own, imputer.statistics_, strict=True)
            ]
            known += [{"feature": own[i], "kind": "is_missing"} for i in lacking]
            steps += [
                {**step, "mean": float(mean), "scale": float(scale)}
                for step, mean, scale in zip(known, scaler.mean_, scaler.scale_, strict=True)
            ]
        elif name == "categories":
            encoder = pipeline[-1]
            for feature, values, infrequent in zip(
                own, encoder.categories_, encoder.infrequent_categories_, strict=True
            ):
                rare = [] if infrequent is None else [str(value) for value in infrequent]
                groups = [[str(value)] for value in values if str(value) not in set(rare)] + ([rare] if rare else [])
                steps += [{"feature": feature, "kind": "category", "values": group} for group in groups]
    return steps
