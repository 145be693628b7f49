"""Measurements of this package's own cost: ``selfdistill bench steps`` and ``bench vitals``."""
