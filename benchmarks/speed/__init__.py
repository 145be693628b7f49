"""Measurements of this package's own cost: the modules of ``python -m benchmarks.speed``."""
