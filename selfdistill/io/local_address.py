"""The address of a page on this machine alone, open before the page is made: a browser that asks early waits."""

from __future__ import annotations

import secrets
import socket
from typing import NamedTuple

from ..errors import DataError


class LocalAddress(NamedTuple):
    """A bound socket on 127.0.0.1 that listens, and the random token below which the page lies."""

    socket: socket.socket
    token: str

    @property
    def url(self) -> str:
        """The address of the page, which nobody can guess."""
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}/{self.token}/"


def open_address(port: int = 0) -> LocalAddress:
    """Open an address.

    Args:
        port: the port, 0 for a free one.

    Raises:
        DataError: the port cannot be used.

    >>> address = open_address()
    >>> address.url.startswith("http://127.0.0.1:")
    True
    >>> address.socket.close()
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise DataError(f"port {port} cannot be used ({error.strerror}); give another --port") from error
    return LocalAddress(listening, secrets.token_urlsafe(24))
