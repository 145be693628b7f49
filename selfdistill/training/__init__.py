"""The training engine: settings, trainer, callbacks, checkpointing and the preflight checks."""
