"""``selfdistill preflight``: is it worth the hour?"""

from __future__ import annotations

import json
from typing import Any

import click

from .cli_options import refusing


@click.command()
@click.argument("data", metavar="PROMPTS")
@click.option("--model", default="smollm2", show_default=True, metavar="SPEC", help="A name, or a folder.")
@click.option("--method", metavar="EXPR", help="A recipe for language models [default: by what the prompts have].")
@click.option("--prompts", type=click.IntRange(min=2), default=32, show_default=True, metavar="N", help="To ask.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Tokens of an answer [256].")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", metavar="NAME", help="cpu, cuda [default: a CUDA device if there is one].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@refusing
def preflight(data: str, prompts: int, device: str | None, as_json: bool, **options: Any) -> None:
    """Score the student, the student with the context, and the teacher on a few PROMPTS: go, or no-go (exit code 1)."""
    from .language.door import choose, for_language
    from .language.preflight import preflight as asked
    from .language.preflight import text
    from .loop import choose_device
    from .request import Request

    request = Request(data=data, device=device, **options)
    if not for_language(request):
        from .errors import DataError

        raise DataError(f"{data} holds no prompts; give a .jsonl file with a prompt a line, or reasoning-gym:TASK")
    found = asked(choose(request), prompts, choose_device(device), lambda line: click.echo(line, err=True))
    click.echo(json.dumps(found, sort_keys=True) if as_json else text(found))
    if not found["go"]:
        raise SystemExit(1)
