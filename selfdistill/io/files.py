"""Text files written atomically, files of lines that several processes append to, and the pace of progress lines."""

from __future__ import annotations

import csv
import ctypes
import errno
import fcntl
import glob
import io
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ..errors import CheckpointError, DataError
from .expressions import one_line

FORMAT = 2  # of everything that is saved; 1: before the classes had their present names
DATA_CARD = "data.json"  # in a model folder: what new data are read with
PICKLED = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib")  # suffixes of files that may run code


_TEMPORARY = re.compile(r"\.tmp-.+|\..+\.\d+\.tmp")  # a file that is renamed when it is whole: `tensors`, and `write`


def is_temporary(path: Path) -> bool:
    """Whether a file or folder is one that a killed process did not finish.

    >>> is_temporary(Path("run/.tmp-run.json")), is_temporary(Path(".t.csv.77.tmp")), is_temporary(Path("run.json"))
    (True, True, False)
    """
    return _TEMPORARY.fullmatch(path.name) is not None


def sweep(folder: Path) -> None:
    """Remove the unfinished files below a folder that no other process writes to."""
    for path in [path for path in folder.rglob(".*") if is_temporary(path)]:
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def share(folder: Path, beside: str = "config.json") -> None:
    """Make the weights in a folder as readable as a file beside them: the safetensors library lets nobody else read."""
    for path in folder.glob("*.safetensors"):
        with suppress(OSError):
            path.chmod((folder / beside).stat().st_mode & 0o777)


def check_format(path: Path | str, version: object) -> None:
    """Refuse a file of another format than this version of selfdistill writes.

    Args:
        path: the file, for the message.
        version: the number of the format that the file states; None if it states none.

    Raises:
        CheckpointError: the number is not `FORMAT`; the message names both.
    """
    if version != FORMAT:
        stated = "states no format" if version is None else f"is of format {one_line(str(version), 20)}"
        raise CheckpointError(
            f"{path} {stated}; this version of selfdistill reads format {FORMAT}: make it again, in a new folder"
        )


def writable(path: Path, option: str) -> None:
    """Check before the work that its result can be written."""
    parent = path.resolve().parent
    if path.is_dir():
        reason = "it is a folder"
    elif not parent.is_dir():
        reason = "its folder does not exist"
    elif not os.access(path if path.exists() else parent, os.W_OK):
        reason = "not permitted"
    else:
        return
    raise DataError(f"{path} cannot be written ({reason}); give another {option}")


def write(path: Path, content: str | bytes, option: str = "--out") -> None:
    """All of it or nothing: a file that was there before is replaced, never cut short; ``option`` named the file."""
    path = path.resolve()
    remove_unfinished(path.parent, path.name)
    device = path.exists() and not path.is_file()  # a pipe or /dev/null is written to, not replaced
    unfinished = path if device else path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if isinstance(content, str):  # a name of a file need be no Unicode
            content = content.encode("utf-8", errors="backslashreplace")
        unfinished.write_bytes(content)
        if not device:
            unfinished.replace(path)
    except OSError as error:
        if not device:
            with suppress(OSError):
                unfinished.unlink()
        raise DataError(f"{path} cannot be written ({error.strerror}); give another {option}") from error


def refuse_links(folder: Path) -> None:
    """Refuse a folder with links that lead out of it, pipes or devices: writing there would change something else.

    Raises:
        CheckpointError: it has one.
    """
    home = folder.resolve()
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                raise CheckpointError(
                    f"{path} is a link that leads out of {folder}, and what is written there would change other files; "
                    "put a copy in its place"
                )
            if not (path.is_symlink() or path.is_dir() or path.is_file()):
                raise CheckpointError(f"{path} is no regular file (a pipe or a device); remove it")


def trim_memory() -> None:
    """Give freed memory back: glibc keeps what a training or the splits of a million rows took."""
    with suppress(OSError, AttributeError):  # another C library has another way, or none
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def free_memory() -> int:
    """The bytes of memory that a program can have; without such a figure, much.

    >>> free_memory() > 0
    True
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))
    except (OSError, StopIteration, ValueError):
        pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
        return pages * os.sysconf("SC_PAGE_SIZE") if pages > 0 else 1 << 40


def cores() -> int:
    """The processor cores that this process may use, which may be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def remove_unfinished(folder: Path, name: str = "") -> None:
    """Remove what processes that were killed have left of a file in a folder; of all files without a name."""
    for unfinished in folder.glob(f".{glob.escape(name)}*.tmp"):
        number = unfinished.name.split(".")[-2]
        with suppress(OSError):  # there is no such process, or the file is gone
            if number.isdecimal() and not _alive(int(number)):
                unfinished.unlink()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # another user's
    return True


def append_line(path: Path, line: str, option: str = "--out") -> None:
    """Add a line to a file in a single write, under a lock, and wait until it is on the disk.

    Several processes may add to the same file. What an earlier process left of a line that it could not finish is
    removed first.

    Args:
        path: the file; it is made, with the folders above it, where it is missing.
        line: the text, without a line break.
        option: the command-line option that named the file, for the message.

    Raises:
        ValueError: the text has a line break.
        DataError: the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for text in ("one", "two"):
    ...         append_line(Path(folder, "lines.txt"), text)
    ...     Path(folder, "lines.txt").read_text()
    'one\\ntwo\\n'
    """
    if "\n" in line:
        raise ValueError("a line has no line break within; write one line at a time")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # released when the file is closed
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                os.ftruncate(handle, path.read_bytes().rfind(b"\n") + 1)
            data = f"{line}\n".encode(errors="backslashreplace")
            if os.write(handle, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}); give another {option}") from error


def read_lines(path: Path) -> tuple[list[str], bool]:
    """The whole lines of a file, and whether its last line is cut off; no lines where there is no file.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        *lines, tail = path.read_bytes().split(b"\n")
        return [line.decode() for line in lines], bool(tail)
    except FileNotFoundError:
        return [], False
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); repair or remove it") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read (it is not UTF-8); repair or remove it") from error


_FORMULA = re.compile(r"'*[=+\-@\t\r].+|'+[=+\-@\t\r]", re.DOTALL)


def csv_text(rows: Iterable[Iterable[object]], raw: bool = False) -> str:
    """Rows as CSV that no spreadsheet takes for a formula: such a cell begins with an apostrophe.

    Args:
        rows: rows of cells.
        raw: leave all cells as they are.

    >>> csv_text([["=1+1", "-1.5", "+"]]), csv_text([["=1+1"]], raw=True)
    ("'=1+1,-1.5,+\\n", '=1+1\\n')
    """
    lines = io.StringIO(newline="")
    writer = csv.writer(lines, lineterminator="\n")
    for row in rows:
        writer.writerow(row if raw else [escape_formula(str(cell)) for cell in row])
    return lines.getvalue()


def escape_formula(text: str) -> str:
    """A text that no spreadsheet takes for a formula; numbers stay.

    >>> escape_formula("=HYPERLINK(1)"), escape_formula("-1.5e3"), unescape_formula(escape_formula("'=1"))
    ("'=HYPERLINK(1)", '-1.5e3', "'=1")
    """
    if _FORMULA.fullmatch(text) is None:
        return text
    with suppress(ValueError):
        float(text)
        return text
    return f"'{text}"


def unescape_formula(text: str) -> str:
    """The text that `escape_formula` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.fullmatch(text) else text


def line_due(time: float, start: float, previous: float) -> bool:
    """Whether it is time for another line of progress: every 4 s at first, in long work every minute.

    Args:
        time: the time, in seconds.
        start: when the work began.
        previous: when the last line was written; ``-inf`` where there is none.

    >>> line_due(4.0, 0.0, 0.0), line_due(3600.0, 0.0, 3550.0), line_due(3600.0, 0.0, 3540.0)
    (True, False, True)
    """
    return time - previous >= min(60.0, max(4.0, (time - start) / 20))


def seconds_left(seconds: float, finished: float, remaining: float) -> float:
    """The time that remains at the pace so far.

    >>> seconds_left(12.0, finished=3, remaining=5)
    20.0
    """
    return seconds / finished * remaining
