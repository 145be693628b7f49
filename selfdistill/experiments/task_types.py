"""The task types there are. A new one is a module with a class of the protocol, and its place in this tuple."""

from __future__ import annotations

from ..control.task import ControlTaskType
from ..estimators.task import TableTaskType
from ..language.task import LanguageTaskType
from ..training.task_type import TaskTypes
from .adapt_run import AdaptTaskType
from .network_task import NetworkTaskType
from .stream_run import StreamTaskType, UpdateTaskType

#: the first serves what no other does, and comes first in lists of recipes
TASK_TYPES = TaskTypes(
    (
        NetworkTaskType(),
        TableTaskType(),
        LanguageTaskType(),
        StreamTaskType(),
        UpdateTaskType(),
        AdaptTaskType(),
        ControlTaskType(),
    )
)
