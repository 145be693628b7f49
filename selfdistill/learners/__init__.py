"""Learners of scikit-learn on tables, by the command line: which ones, how they teach themselves, and their runs.

What teaches them is in `selfdistill.estimators`; here is what `run` and `compare` make of it.
"""
