"""Files: atomic writes, checkpoints, records of runs, expressions and the store of targets."""
