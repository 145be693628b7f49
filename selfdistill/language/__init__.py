"""Language models that teach themselves."""

from __future__ import annotations
