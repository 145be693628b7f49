"""The package as a command: ``python -m selfdistill``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if sys.path[:1] in ([""], [os.getcwd()]) and not Path(__file__).is_relative_to(Path.cwd()):
    del sys.path[0]  # Python puts the current folder first, where a stranger's torch.py could lie

from .cli import main

main()
