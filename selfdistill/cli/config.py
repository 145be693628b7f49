"""``--config FILE``: options from a TOML file, below those of the command line."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..errors import SelfdistillError
from ..io.expressions import one_line
from .completion import complete_path

CONFIG, TRUST = "config", "trust_code"
PATH = "selfdistill.config"  # in the meta data of a context


def _names(parameter: click.Parameter) -> list[str]:
    """The keys of a parameter: the long name of an option; of an argument its name and what its help calls it."""
    if isinstance(parameter, click.Option):
        return [option.removeprefix("--") for option in parameter.opts if option.startswith("--")]
    return [parameter.name, *(parameter.metavar or "").lower().split("|")]


def _scalar(value: Any) -> str:
    """A number or text as the command line would have it."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise click.UsageError(f"{one_line(value, 60)} is neither a text nor a number")
    return str(value)


def _value(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """A value of the file as that of a parameter; None where a switch is off that the command line can only put on.

    Raises:
        click.UsageError: it is none.
    """
    found: Any
    if isinstance(parameter, click.Option) and parameter.is_flag:
        if not isinstance(value, bool):
            raise click.UsageError(f"{one_line(value, 60)} is neither true nor false")
        found = value if parameter.is_bool_flag else parameter.flag_value if value else None
    elif isinstance(parameter, click.Option) and parameter.multiple:
        found = tuple(_scalar(one) for one in (value if isinstance(value, list) else [value]))
    else:
        found = _scalar(value)
    if found is not None:
        parameter.type_cast_value(context, found)
    return found


def _read(context: click.Context, option: click.Parameter, path: str | None) -> str | None:
    """Make the values of a file the defaults of a command, so that its command line wins.

    Raises:
        click.UsageError: a key is no option of the command, or a value is none of its option.
    """
    if path is None or context.resilient_parsing:
        return path
    from ..io.run_config import read_config

    own = {key: one for one in context.command.params if one.name not in (CONFIG, TRUST) for key in _names(one)}
    try:
        given = read_config(Path(path))
    except SelfdistillError as error:
        raise click.UsageError(str(error)) from None
    defaults = dict[str, Any]()
    for key, value in given.items():
        parameter = own.get(key)
        if parameter is None:
            raise click.UsageError(_unknown(key, path, list(own)))
        if parameter.name in defaults:
            raise click.UsageError(f"{path}: {key} is there twice, under several names; keep one")
        try:
            found = _value(context, parameter, value)
        except click.UsageError as error:
            raise click.UsageError(f"{path}: {key}: {error.message}") from None
        if found is not None:
            defaults[parameter.name] = found
    context.meta[PATH] = path
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def _unknown(key: str, path: str, names: list[str]) -> str:
    if key == TRUST.replace("_", "-"):
        return f"{path}: {key} is given on the command line alone: a file cannot vouch for the code that it names"
    near = difflib.get_close_matches(key.replace("_", "-"), names, n=1, cutoff=0.0)
    return f"{path}: {key!r} is no option of {click.get_current_context().info_name}; the nearest is {near[0]!r}"


config_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--config",
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=_read,
    shell_complete=complete_path,
    help="Options from a TOML file, by their long names, such as batch-size = 32. The command line comes first. Each "
    "run folder has one, run.toml, which repeats the run.",
)


def configured() -> Path | None:
    """The file of options of the present command; None where it has none."""
    path = click.get_current_context().meta.get(PATH)
    return None if path is None else Path(path)
