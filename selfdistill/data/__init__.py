"""Data: images, tables, texts and prompts become rows with sample ids, splits and augmentations."""

from __future__ import annotations
