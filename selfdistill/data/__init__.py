"""Doors for real data: images and tables become tensors with sample ids, splits and augmentations."""

from __future__ import annotations
