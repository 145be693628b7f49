"""The folder of a run or of a comparison: taken up again by the same request, locked, refused to another one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import CheckpointError, DataError
from ..io.expressions import one_line
from ..io.files import is_temporary


class Folder:
    """A folder whose record file says what it is for.

    Args:
        path: the folder; it need not exist.
        record: the name of the record file.
        noun: what the folder holds, in messages.
    """

    def __init__(self, path: Path, record: str, noun: str) -> None:
        self.path, self.record, self.noun = path, path / record, noun
        self._new: list[Path] | None = None  # the folders that `create` made, the innermost first

    def begun(self) -> bool:
        """Whether the record is there, so that the folder is taken up again.

        Raises:
            DataError: something else lies there, or no folder can.
        """
        if "\x00" in str(self.path):
            raise DataError(f"{one_line(self.path, 80)} has a NUL character in it; give another --out")
        try:
            begun = self.record.exists()
            other = not begun and self.path.exists() and (not self.path.is_dir() or self._foreign())
        except OSError as error:
            why = f"cannot be a folder of a {self.noun} ({error.strerror})"
            raise DataError(f"{one_line(self.path, 80)} {why}; give another --out") from error
        if other:
            raise DataError(f"{self.path} exists and is no {self.noun} of selfdistill; give another --out")
        return begun

    def _foreign(self) -> bool:
        """Whether something lies there that no killed process left as it wrote the record."""
        return any(not is_temporary(path) for path in self.path.iterdir())

    def refuse(self, differences: str) -> None:
        """Refuse a request that is not the one of the record.

        Raises:
            DataError: there are differences.
        """
        if differences:
            raise DataError(f"{self.path} holds a {self.noun} with other settings ({differences}); give another --out")

    def create(self) -> None:
        """Make the folder; what was made here goes again by `withdraw`."""
        if not self.record.exists():
            self._new = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self.path.mkdir(parents=True, exist_ok=True)

    def withdraw(self, *contents: str) -> None:
        """Remove the record, these contents and, where they are empty then, the folders that `create` made.

        A run that is refused before anything is saved leaves nothing behind: the corrected command may use the folder.
        """
        if self._new is None:
            return
        for name in contents:
            shutil.rmtree(self.path / name, ignore_errors=True)
        self.record.unlink(missing_ok=True)
        for path in self._new:
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()


@contextlib.contextmanager
def locked(folder: Path, busy: str | None = None) -> Iterator[None]:
    """Hold a folder's lock, which the system releases when a process dies: two writers would mix their files.

    ``busy`` refuses a folder that another process holds; without it the other process is waited for.

    Raises:
        CheckpointError: another process holds the lock.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
            except BlockingIOError:
                raise CheckpointError(f"{folder}: {busy}") from None
        yield
    finally:
        os.close(handle)
