"""Other people's loops: `huggingface` for transformers' ``Trainer``, `trl` for TRL's, `lightning` for Lightning's.

`alarm_callback` watches a language model in any of the first two.

Each is imported by its own name and needs that package. A loop of one's own needs only ``method.bind(model)``.
"""

from __future__ import annotations
