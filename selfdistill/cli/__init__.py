"""The command `selfdistill`: its options, its commands and their progress."""

from .commands import main

__all__ = ["main"]
