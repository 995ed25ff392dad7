"""The examples of docs/patterns.md are true."""

import re
from pathlib import Path

import pytest

from ctrlgen.automata.automaton import Automaton
from ctrlgen.checkpoint import from_pretrained
from ctrlgen.controls.language import check
from ctrlgen.controls.registry import Controls
from ctrlgen.errors import UsageError

PAGE = Path(__file__).parents[1] / "docs" / "patterns.md"
CELL = re.compile(r"(?<!\\)\|")


def rows(heading: str) -> list[list[str]]:
    """The cells of the table whose first line reads so."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = lines.index(heading) + 2
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip().replace("\\|", "|").replace("\\<", "<") for cell in CELL.split(line)[1:-1]])
    return table


@pytest.fixture(scope="module")
def controls() -> Controls:
    return Controls(from_pretrained("e2e"))


EXAMPLES = rows("| control | a text that has it | one that has not |")
MISTAKES = rows("| control | message |")


@pytest.mark.parametrize(("control", "has", "has_not"), EXAMPLES)
def test_an_example_is_true(controls: Controls, control: str, has: str, has_not: str) -> None:
    (parsed,) = controls.parse([control.strip("`")])
    yes, no = check([parsed] * 2, [has.split(), has_not.split()])
    assert (yes.success, no.success) == (True, False)
    automaton = parsed.classifier.automaton(parsed.target)
    assert automaton is not None
    tokenizer = controls.model.tokenizer
    assert automaton.accepts(tokenizer.ids(has.split()))
    assert not automaton.accepts(tokenizer.ids(has_not.split()))


@pytest.mark.parametrize(("control", "message"), MISTAKES)
def test_a_mistake_has_its_message(controls: Controls, control: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        compiled(controls, control)
    assert str(raised.value) == message


def compiled(controls: Controls, text: str) -> Automaton | None:
    (parsed,) = controls.parse([text.strip("`")])
    return parsed.classifier.automaton(parsed.target)


def test_tables_are_read() -> None:
    assert len(EXAMPLES) > 10
    assert len(MISTAKES) > 4
