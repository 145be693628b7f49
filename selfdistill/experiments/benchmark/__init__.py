"""The benchmark: every recipe beside controls at matched compute, on small data that anybody can train on.

`settings` says on what, `fitting` which recipes run where and why the others do not, `cells` trains one cell, `running`
all of them, `judging` compares, `page` writes ``docs/benchmark.md``. The command is ``selfdistill benchmark methods``.
"""

from __future__ import annotations
