"""``selfdistill push`` and ``selfdistill pull``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .options import echo, one_line_errors

if TYPE_CHECKING:
    from ..experiments.repository import Hub

hub_option = click.option(
    "--hub", "place", metavar="DIR", help="A folder of repositories in the place of the Hugging Face hub."
)


def _hub(place: str | None) -> Hub:
    from ..experiments.repository import FolderHub, HuggingFaceHub

    return HuggingFaceHub() if place is None else FolderHub(place)


@click.command()
@click.argument("run_folder", metavar="RUN")
@click.argument("name", metavar="OWNER/NAME")
@click.option("--public", is_flag=True, help="Let everyone read a new repository [default: private].")
@hub_option
@one_line_errors
def push(run_folder: str, name: str, public: bool, place: str | None) -> None:
    """Push the final model of RUN to the Hugging Face hub, as a private repository.

    The model, its card and what prepares new rows go; rows of the data never do. Log in with `hf auth login` before.
    This was never run against the real hub, only against a folder in its place.
    """
    from ..experiments import repository

    echo(f"pushed to {repository.push(run_folder, name, _hub(place), public)}")


@click.command()
@click.argument("name", metavar="OWNER/NAME")
@click.argument("folder", metavar="DIR")
@hub_option
@one_line_errors
def pull(name: str, folder: str, place: str | None) -> None:
    """Pull a model that `push` wrote into the new folder DIR, which `predict` takes.

    No code of the repository runs, and a model that names some is refused. This was never run against the real hub.
    """
    from ..experiments import repository

    path = repository.pull(name, folder, _hub(place))
    echo(f"{path}: `selfdistill predict {path} DATA` predicts with it")
