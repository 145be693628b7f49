"""``selfdistill completion``: the script by which a shell completes commands, options, recipes and paths."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files

import click
from click.shell_completion import CompletionItem, get_completion_class

PROGRAM, VARIABLE = "selfdistill", "_SELFDISTILL_COMPLETE"  # by which the script asks the program; click's convention
SHELLS = ("bash", "zsh", "fish")


def _cards() -> Iterator[tuple[str, str]]:
    """Name and summary of each recipe, from the catalogue that is shipped: nothing heavy is imported for a key."""
    shipped = files("selfdistill.experiments").joinpath("catalogue.jsonl").read_text(encoding="utf-8")
    for card in map(json.loads, shipped.splitlines()):
        yield str(card["name"]), str(card["summary"])


def complete_recipe(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The recipes whose name begins so; a name is an expression, and needs no quotes."""
    found = {name: CompletionItem(name, help=about) for name, about in _cards() if name.startswith(incomplete)}
    return [found[name] for name in sorted(found)]


def complete_path(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files and folders, by the shell itself."""
    return [CompletionItem(incomplete, type="file")]


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, /, shell: str) -> None:
    """Print the completion script of a shell: commands, options, their values, recipes and paths.

    \b
    bash:  eval "$(selfdistill completion bash)"        in ~/.bashrc
    zsh:   eval "$(selfdistill completion zsh)"         in ~/.zshrc, after compinit
    fish:  selfdistill completion fish | source         in ~/.config/fish/config.fish
    """
    complete = get_completion_class(shell)
    assert complete is not None  # the choices are click's own
    click.echo(complete(context.find_root().command, {}, PROGRAM, VARIABLE).source())
