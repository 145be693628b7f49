"""Other people's loops: `huggingface` for transformers' ``Trainer``, `lightning` for PyTorch Lightning.

Each is imported by its own name and needs that package. A loop of one's own needs only ``method.bind(model)``.
"""

from __future__ import annotations
