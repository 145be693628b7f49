"""A server that trains in forked children, so that a killed run costs no new start of the interpreter.

Each line on stdin is a JSON object: ``out`` (the run folder), ``announce`` (a file to which the child appends ``saved
GENERATION STEP`` after every checkpoint) and, to be killed at a known place, ``hold``: the name of one of `PLACES`,
``beyond``: the generation and step that a completed checkpoint must have passed first, and ``at``: which visit of the
place from then on. At that visit the child appends ``held PLACE`` and waits for its end. The server prints the
child's pid and, when asked by another line, waits for its end and prints its wait status.

An object with ``words`` has the child run that command line in the folder ``place``, in a session of its own; the
first word may be a "module:function" that is called with the other words. With ``warm`` the server does so itself, so
that its children need not import what the command does.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from selfdistill.core.step import TrainingClock
from selfdistill.io import checkpoint
from selfdistill.training.fit import Stopped
from tests.workers.runs import run

STOPPED = 7  # exit code of a child that was asked to stop and did

# place -> (module, function, a word that the path or file it works on contains, before or after the call)
PLACES: dict[str, tuple[Any, str, str, str]] = {
    "component not flushed": (os, "fsync", ".tmp-ckpt", "before"),
    "component flushed": (os, "fsync", ".tmp-ckpt", "after"),
    "checkpoint not renamed": (os, "rename", ".tmp-ckpt", "before"),
    "checkpoint renamed": (os, "rename", ".tmp-ckpt", "after"),
    "old checkpoint renamed": (os, "rename", "old-ckpt", "after"),
    "old checkpoint removed": (shutil, "rmtree", "old-ckpt", "after"),
    "log not flushed": (os, "fsync", "metrics.jsonl", "before"),
    "log flushed": (os, "fsync", "metrics.jsonl", "after"),
    "generation not renamed": (os, "rename", "generations", "before"),
    "generation renamed": (os, "rename", "generations", "after"),
    "log cut": (os, "truncate", "metrics.jsonl", "after"),
}


def _subject(arguments: tuple[Any, ...]) -> str:
    """The paths that a call is about; a file descriptor is looked up."""
    return " ".join(os.readlink(f"/proc/self/fd/{a}") if isinstance(a, int) else str(a) for a in arguments)


class Announcer:
    """Tells the parent how far the run is, and holds it at one place."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.file, self.order, self.visits = Path(order["announce"]), order, 0
        self.position = [-1, 0]

    def say(self, line: str) -> None:
        handle = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, f"{line}\n".encode())
        os.close(handle)

    def install(self) -> None:
        write = checkpoint.write

        def announced(folder: Path, components: dict[str, Any], **options: Any) -> Path:
            path = write(folder, components, **options)
            clock = TrainingClock(*components["objective"]["_extra_state"].tolist())
            self.position = [clock.generation, clock.step]
            self.say(f"saved {clock.generation} {clock.step}")
            return path

        setattr(checkpoint, "write", announced)  # noqa: B010
        if "hold" in self.order:
            self._hold(*PLACES[self.order["hold"]])

    def _hold(self, module: Any, name: str, word: str, when: str) -> None:
        original: Callable[..., Any] = getattr(module, name)

        def held(*arguments: Any, **options: Any) -> Any:
            here = word in _subject(arguments)
            if here and when == "before":
                self._visit()
            result = original(*arguments, **options)
            if here and when == "after":
                self._visit()
            return result

        setattr(module, name, held)

    def _visit(self) -> None:
        if self.position <= self.order["beyond"]:
            return
        self.visits += 1
        if self.visits == self.order.get("at", 1):
            self.say(f"held {self.order['hold']}")
            while True:
                time.sleep(60)


def _command(order: dict[str, Any]) -> int:
    """Run a command line, or call a function, in a folder."""
    from selfdistill.cli import main as command

    os.chdir(order["place"])
    function, *words = order["words"]
    if ":" in function:
        module, name = function.split(":")
        getattr(importlib.import_module(module), name)(*words)
        return 0
    sys.argv = ["selfdistill", *order["words"]]
    with open(os.devnull, "w", encoding="utf-8") as silent, contextlib.redirect_stdout(silent):
        try:
            command(order["words"], prog_name="selfdistill")
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def _forked(method: str | None = None, get_context: Callable[..., Any] = multiprocessing.get_context) -> Any:
    """Workers as forks: they have the imports already. What they are started with is tested in `test_processes`."""
    return get_context("fork" if method == "spawn" else method)


def _child(order: dict[str, Any]) -> int:
    if "words" in order:
        os.setsid()
        setattr(multiprocessing, "get_context", _forked)  # noqa: B010
        return _command(order)
    Announcer(order).install()
    try:
        run(Path(order["out"]), resume=True, **order.get("options", {}))
    except Stopped:
        return STOPPED
    return 0


def main() -> None:
    """Serve until stdin ends."""
    torch.set_num_threads(1)  # a fork copies one thread only
    with tempfile.TemporaryDirectory() as warm:  # what is imported late is imported here, once for all children
        run(Path(warm), steps=1)
    for line in sys.stdin:
        order = json.loads(line)
        if order.get("warm"):
            print(_command(order), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = _child(order)
            finally:
                sys.stderr.flush()
                os._exit(code)
        print(pid, flush=True)
        sys.stdin.readline()  # until the parent asks, the child stays as a zombie and its pid is nobody else's
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main()
