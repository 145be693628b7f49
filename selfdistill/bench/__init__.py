"""Measurements of this package's own cost: ``selfdistill bench steps``, ``bench vitals`` and ``bench divergence``."""
