"""Measurements of this package's own cost: the modules of ``selfdistill bench``."""
