"""Divergences over large vocabularies, computed a block at a time with flat memory."""
