"""Suites that start from texts: edits."""

from ctrlgen.evaluation.from_text.editing import Adding, Changing, Nothing, Removing
from ctrlgen.evaluation.from_text.task import Task

TASKS: dict[str, Task] = {
    "edit": Changing(),
    "edit-add": Adding(),
    "edit-remove": Removing(),
    "edit-nothing": Nothing(),
}
