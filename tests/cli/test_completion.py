"""Completion in shells: click's own mechanism, the script in a real bash, and recipes by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from selfdistill.cli import main
from tests.terminal import passed, refused


def completions(args: list[str], incomplete: str) -> list[str]:
    complete = ShellComplete(main, {}, "selfdistill", "_SELFDISTILL_COMPLETE")
    return [item.value for item in complete.get_completions(args, incomplete)]


def test_commands_options_values_and_recipes_complete() -> None:
    assert completions([], "comp") == ["compare", "completion"]
    assert set(completions(["run"], "--label")) == {"--labels", "--label-noise"}
    assert completions(["run", "--optimizer"], "") == ["adamw", "sgd"]
    assert completions(["run", "digits", "--method"], "mean_t") == ["mean_teacher"]
    assert "sdft" in completions(["compare", "p.jsonl", "--methods"], "sd")
    assert completions(["explain"], "nothing") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_asks_this_program(shell: str) -> None:
    script = passed("completion", shell).stdout
    assert f"_SELFDISTILL_COMPLETE={shell}_complete" in script
    assert "selfdistill" in script
    assert "'bash', 'zsh', 'fish'" in refused("completion", "cmd")


def test_bash_completes_by_the_script(tmp_path: Path) -> None:
    command, script = tmp_path / "selfdistill", tmp_path / "completion.sh"
    command.write_text(f"#!{sys.executable}\nfrom selfdistill.cli import main\nmain(prog_name='selfdistill')\n")
    command.chmod(0o755)
    script.write_text(passed("completion", "bash").stdout)
    words = "COMP_WORDS=(selfdistill run --method el); COMP_CWORD=3"
    ask = f'source ./{script.name}; {words}; _selfdistill_completion ./selfdistill; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["elr"], done
