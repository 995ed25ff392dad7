"""What a key of a recipe is for and which numbers it takes, said where the key is declared.

Recipes are checked by it, `ctrlgen recipe` prints it, and docs/recipes.md has the same.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, get_type_hints

LARGEST = 10**9  # of any number


@dataclass(frozen=True)
class Key:
    """Stands in the annotation of a field: `Annotated[int, Key("blocks", least=1)]`."""

    help: str  # Markdown
    least: float = 0
    most: float = LARGEST

    def allows(self, value: Any) -> bool:
        """Whether a value is within the bounds, which only numbers have."""
        return isinstance(value, bool) or not isinstance(value, int | float) or self.least <= value <= self.most


def keys_of(kind: type) -> dict[str, Key]:
    """The keys of a table, which a dataclass describes, in their order."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: next(e for e in hints[field.name].__metadata__ if isinstance(e, Key)) for field in fields(kind)}
