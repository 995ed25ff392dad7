"""Suites that start from texts, or from plans of them."""

from ctrlgen.evaluation.from_text.editing import Adding, Changing, Nothing, Removing
from ctrlgen.evaluation.from_text.planning import Planning
from ctrlgen.evaluation.from_text.rewording import Deletion, Retrieval, Rewording, Transfer
from ctrlgen.evaluation.from_text.task import Task

TASKS: dict[str, Task] = {
    "edit": Changing(),
    "edit-add": Adding(),
    "edit-remove": Removing(),
    "edit-nothing": Nothing(),
    "paraphrase": Rewording(),
    "transfer": Transfer(),
    "write": Planning(),
}
SYSTEMS = (Retrieval.name, Deletion.name)
