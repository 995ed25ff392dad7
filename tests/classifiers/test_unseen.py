"""Values of a field that no training text had, on the bundled model, whose vocabulary has their words."""

import pytest

from ctrlgen.errors import UsageError
from ctrlgen.generation.generator import Generator
from ctrlgen.settings import Settings
from ctrlgen_classifiers.unseen import UnseenValue, stand_in

BRIEF = Settings(steps=8)


@pytest.fixture(scope="module")
def e2e() -> Generator:
    return Generator("e2e")


@pytest.mark.slow
def test_the_phrase_occurs_and_no_other_value_of_the_field(e2e: Generator) -> None:
    samples = e2e.generate([e2e.request(["name: The Green House", "food: Italian"], n=6)], BRIEF)
    assert all("the green house" in sample.text.lower() for sample in samples)
    others = ("The Vaults", "Blue Spice", "The Mill", "Alimentum", "Zizzi", "Cotto")
    assert not any(other in sample.text for sample in samples for other in others)
    assert all(sample.controls[0].verdict.success for sample in samples)


def test_the_oracle_knows_another_value(e2e: Generator) -> None:
    (control,) = e2e.request(["name: The Green House"]).controls
    texts = ["The Green House is a pub .", "The Vaults is near The Green House .", "The Vaults is a pub ."]
    verdicts = control.classifier.check([text.split() for text in texts], [control.target] * 3)
    assert [verdict.success for verdict in verdicts] == [True, False, False]
    assert verdicts[1].detail == "reads as The Vaults"


@pytest.mark.slow
def test_values_that_contain_each_other_do_not_rule_each_other_out(e2e: Generator) -> None:
    (sample,) = e2e.generate([e2e.request(['name: "The Vaults House"'])], BRIEF)
    assert "the vaults house" in sample.text.lower()


def test_learned_values_stay_what_they_were(e2e: Generator) -> None:
    (control,) = e2e.request(["name: the vaults"]).controls
    assert type(control.classifier).__name__ == "Field"


def test_what_resembles_a_value_is_refused_unless_it_is_quoted(e2e: Generator) -> None:
    with pytest.raises(UsageError, match="Did you mean"):
        e2e.request(["name: The Vault"])


@pytest.mark.slow
def test_not_an_unseen_value(e2e: Generator) -> None:
    samples = e2e.generate([e2e.request(["not name: The Green House"], n=2)], BRIEF)
    assert all("the green house" not in sample.text.lower() for sample in samples)


def test_a_field_has_one_value(e2e: Generator) -> None:
    for pair in (["name: The Green House", "name: Zizzi"], ["name: The Green House", "name: The Blue House"]):
        with pytest.raises(UsageError):
            e2e.request(pair)


@pytest.mark.parametrize(
    "other", ["name: Zizzi", "not name: Zizzi", 'not name: "The Blue House"', 'name: "The Blue House"']
)
def test_a_value_that_is_avoided_contradicts_no_other(e2e: Generator, other: str) -> None:
    for pair in (["not name: The Green House", other], [other, "not name: The Green House"]):
        e2e.request(pair)
    with pytest.raises(UsageError, match="contradict"):
        e2e.request(["not name: The Green House", "name: The Green House"])


def test_too_many_known_values_are_one_line_of_error(e2e: Generator) -> None:
    names = UnseenValue(e2e.model, "name", [f"The {word} pub" for word in e2e.model.tokenizer.words[10:800]])
    with pytest.raises(
        UsageError, match=r"^name: 'Cocum' is new, and the \d+ values that are known are too many to rule out"
    ):
        names.automaton(names.parse("Cocum"))
    assert not names.automaton(names.negate(names.parse("Cocum"))).is_empty  # which rules out nothing else


def test_a_new_value_stands_for_a_known_one_of_as_many_words() -> None:
    values = [["The", "Vaults"], ["Blue", "Spice"], ["Cotto"], ["The", "Rice", "Boat"]]
    assert stand_in(["The", "Zorblax"], values) == ["The", "Vaults"]
    assert stand_in(["Zorblax"], values) == ["Cotto"]
    assert stand_in(["Chez", "Marcel"], values) in (["The", "Vaults"], ["Blue", "Spice"])
    assert stand_in(["One", "Two", "Three", "Four"], values) == [None] * 4
