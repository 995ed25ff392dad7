"""Controls that no text can obey together are refused, naming both."""

from functools import cache
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ctrlgen.controls.classifier import Classifier
from ctrlgen.controls.contradiction import refuse_contradictions
from ctrlgen.controls.language import Control, make_control, parse_statement
from ctrlgen.errors import UsageError
from ctrlgen.generation.generator import Generator
from ctrlgen.text.tokenizer import WordTokenizer
from ctrlgen_classifiers.brackets import Constituent
from ctrlgen_classifiers.label import Label
from ctrlgen_classifiers.tree import Span, Tree
from ctrlgen_classifiers.words import Ends, Matches, Starts, Wanted, Words


@pytest.fixture(scope="module")
def classifiers(generator: Generator) -> dict[str, Classifier]:
    """Every kind that the toy model has, and untrained ones of the others."""
    model = generator.model
    oracle = {"size": {"dim": 4, "width": 8}}
    chains = {"chains": ["NP", "S+VP", "VP"], "head": {"width": 8, "layers": 1}, "oracle": oracle}
    values = {"food": ["French", "Thai"], "area": ["city", "river"]}
    with torch.random.fork_rng(devices=[]):
        tree, span = (kind.untrained(model, kind.kind, chains) for kind in (Tree, Span))
        fields = Label.untrained(model, "food", {"values": values, "head": {"width": 8}, "oracle": oracle})
    found: dict[str, Classifier] = {field: fields.sharing(field) or fields for field in values}
    found |= {"tree": tree, "span": span}
    return found | {name: generator.controls.classifier(name) for name in ("pos", "words", "starts", "ends", "length")}


def read(classifiers: dict[str, Classifier], *texts: str) -> list[Control]:
    controls = []
    for text in texts:
        statement = parse_statement(text)
        controls.append(make_control(statement, classifiers[statement.name]))
    return controls


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        ("span: NP 1-3", "span: VP 2-5", "NP 1-3 and VP 2-5 cross; one must hold the other or share no word"),
        ("span: NP 5-6, NP 1-3", "span: VP 2-4", "NP 1-3 and VP 2-4 cross; one must hold the other or share no word"),
        ("span: NP 2-3", "tree: (S (NP * *) (VP * *))", "NP 2-3 and NP 1-2 cross; one must hold the other or share"),
        ("tree: (NP (VP * *) *)", "tree: (NP * (VP * *))", "VP 1-2 and VP 2-3 cross"),
        ("span: NP 1-2", "span: VP 1-2", "NP 1-2 and VP 1-2 never stand over the same words"),
        ("tree: (S the (VP * *))", "tree: (S a *  *)", "position 1 cannot be the and a"),
        ("tree: (S DET (VP * *))", "tree: (S NOUN * *)", "position 1 cannot be DET and NOUN"),
        ("tree: (S * NOUN)", "pos: DET VERB", "position 2 cannot be NOUN and VERB"),
        ("pos: * VERB", "tree: (S DET NOUN)", "position 2 cannot be NOUN and VERB"),
        ("pos: DET NOUN ...", "pos: * VERB ...", "position 2 cannot be NOUN and VERB"),
        ("pos: DT NN VBZ ...", "pos: DT NN VBD @2[0:0.5]", "position 3 cannot be VBZ and VBD"),
        ("food: French", "food: Thai", "a text has one food, French or Thai"),
        ("food: French", "not food: french", "one asks for what the other avoids"),
        ("not pos: DET NOUN", "pos: DET NOUN", "one asks for what the other avoids"),
        ("starts: the cat", "starts: a", "no text obeys both"),
        ("ends: the cat", "ends: the dog", "no text obeys both"),
    ],
)
def test_both_are_named_with_the_reason(classifiers: dict[str, Classifier], one: str, other: str, reason: str) -> None:
    for first, second in ((one, other), (other, one)):
        with pytest.raises(UsageError) as raised:
            refuse_contradictions(read(classifiers, "length: 3-5", first, second))
        assert str(raised.value).startswith(f"{first!r} and {second!r} contradict each other: ")
    with pytest.raises(UsageError) as raised:
        refuse_contradictions(read(classifiers, one, other))
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    "controls",
    [
        ("span: NP 1-3", "span: VP 4-5", "span: NP 1-2", "span: * 1-3"),
        ("span: VP 1-2", "span: S+VP 1-2", "tree: (S (VP * *) *)"),
        ("span: NP 1-3", "not span: VP 2-5"),
        ("tree: (S the *)", "tree: (S * cat)", "pos: DT NN", "starts: the cat"),
        ("pos: DET NOUN ...", "pos: DET * VERB ...", "pos: DT NN", "not pos: DET VERB ..."),
        ("food: French", "area: city", "food: french"),
        ("food: French", "not food: Thai"),
        ("not food: French", "not food: Thai"),
        ("starts: the cat", "starts: the", "words: dog", "words: cat, the"),
        ("ends: cat", "ends: the cat .", "starts: the cat"),
        ("length: 3", "length: 3-4"),
    ],
)
def test_what_can_hold_together_is_not_refused(classifiers: dict[str, Classifier], controls: tuple[str, ...]) -> None:
    refuse_contradictions(read(classifiers, *controls))


@pytest.mark.parametrize(
    ("template", "control", "possible"),
    [
        ("the cat ___ .", "not words: cat", False),
        ("The Cat ___ .", "not words: cat", False),
        ("the cat ___ .", "not words: cat sees", True),
        ("the cat ___{1} dog", "words: cat dog", True),
        ("the cat ___{1} dog", "not words: cat", False),
        ("the ___{2} dog", "words: cat sees dog", True),
        ("the ___{1} dog", "words: cat sees dog", False),
        ("the ___{1-2} dog", "words: cat sees dog", True),
        ("the ___ dog", "words: river, red, house", True),
        ("the ___{2} dog", "words: river, red, house", False),
        ("the cat ___", "starts: the dog", False),
        ("the ___ cat", "starts: the dog", True),
        ("___ cat .", "ends: dog", False),
        ("___ .", "ends: dog", True),
        ("the ___ zebra", "words: cat", True),
    ],
)
def test_a_templates_own_words_may_contradict(
    generator: Generator, template: str, control: str, possible: bool
) -> None:
    if possible:
        generator.request([control], template=template)
        return
    with pytest.raises(UsageError, match="contradict each other, whatever fills the blanks"):
        generator.request([control], template=template)


def test_a_request_is_refused_before_anything_is_sampled(generator: Generator) -> None:
    for controls in (["pos: DET NOUN ...", "pos: VERB ..."], ["starts: the cat", "not words: cat"]):
        with pytest.raises(UsageError, match=f"'{controls[0]}' and '{controls[1]}' contradict each other"):
            generator.request(controls)
    with pytest.raises(UsageError, match="they allow no common length"):  # which says more
        generator.request(["pos: DET NOUN", "pos: VERB VERB VERB"])


@pytest.mark.parametrize("place", ["words", "starts", "ends", "matches"])
@pytest.mark.parametrize("other_place", ["words", "starts", "ends", "matches"])
def test_a_common_text_is_found_where_there_is_one(place: str, other_place: str) -> None:
    """Against the oracle's verdict on every text of up to four words."""
    model: Any = SimpleNamespace(tokenizer=WordTokenizer.train(["a b x"], min_count=1))
    texts = [text for n in range(5) for text in product("abx", repeat=n)]
    values = ("a", "b a", "a b", "(a|b)* x")
    kinds = {kind.kind: kind(model) for kind in (Words, Starts, Ends, Matches)}

    @cache
    def accepted(kind: Words, target: Wanted) -> set[tuple[str, ...]]:
        verdicts = kind.check(texts, [target] * len(texts))
        return {text for text, verdict in zip(texts, verdicts, strict=True) if verdict.success}

    one, other = kinds[place], kinds[other_place]
    for value, others_value in product(values, values):
        target, others_target = one.parse(value), other.parse(others_value)
        for first, second in product((target, one.negate(target)), (others_target, other.negate(others_target))):
            common = bool(accepted(one, first) & accepted(other, second))
            assert (one.contradiction(first, other, second) is None) is common, (first, second)


def test_crossing() -> None:
    def crosses(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return Constituent(*a, ()).crosses(Constituent(*b, ()))

    assert crosses((0, 3), (1, 4))
    assert crosses((1, 4), (0, 3))
    for a, b in (((0, 3), (3, 5)), ((0, 3), (1, 3)), ((0, 3), (0, 2)), ((0, 3), (0, 3)), ((0, 9), (2, 4))):
        assert not crosses(a, b)
        assert not crosses(b, a)
