"""What an evaluation found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ctrlgen.evaluation.figures import Row
from ctrlgen.evaluation.records import Record
from ctrlgen.evaluation.targets import Asked


@dataclass(frozen=True)
class Results:
    """A finished evaluation."""

    configuration: dict[str, Any]  # all that another person needs to run it again
    rows: list[Row]
    asked: dict[str, Asked]  # by suite
    records: list[Record]
    notes: list[str]  # what is missing, and why
    done: list[str] = field(default_factory=list)  # what was written elsewhere

    def row(self, suite: str, system: str, setting: str = "") -> Row | None:
        wanted = (suite, system, setting)
        return next((row for row in self.rows if (row.suite, row.system, row.setting) == wanted), None)

    @property
    def cost_models(self) -> list[str]:
        """The names of the language models that said what these texts cost."""
        return list(dict.fromkeys(name for row in self.rows for name in row.cost))

    def as_json(self) -> dict[str, Any]:
        return {
            "configuration": self.configuration,
            "rows": [asdict(row) for row in self.rows],
            "notes": self.notes,
        }
