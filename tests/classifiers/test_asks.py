"""What evaluation and its baselines ask a control, by hooks that every classifier has."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ctrlgen.checkpoint import from_pretrained
from ctrlgen.controls.classifier import Asks
from ctrlgen.controls.registry import Controls, classifier_kinds
from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen_classifiers.chart import Labels
from ctrlgen_classifiers.label import Label, Target
from ctrlgen_classifiers.pos import Pos
from ctrlgen_classifiers.tree import Span, Tree


@pytest.fixture
def controls(toy_model: Path) -> Controls:
    return Controls(from_pretrained(str(toy_model)))


@pytest.mark.parametrize(
    ("control", "asks"),
    [
        ("pos: DET * VERB ...", Asks(tags={0: "DET", 2: "VERB"})),
        ("length: 3-5", Asks()),
        ("words: cat", Asks(phrases=(("cat",),))),
        ('words: cat, "red dog"', Asks(phrases=(("cat",), ("red", "dog")))),
        ("words: cat ... dog", None),
        ("not words: cat", None),
        ("starts: the cat", Asks(begins=("the", "cat"))),
        ("starts: (the|a) cat", None),
        ("ends: red dog", None),
        ("like: the cat sees a dog .", None),
    ],
)
def test_a_target_part_by_part(controls: Controls, control: str, asks: Asks | None) -> None:
    (parsed,) = controls.parse([control])
    assert parsed.classifier.asks(parsed.target) == asks


def syntax(kind: type[Tree]) -> Tree:
    model: Any = SimpleNamespace(
        config=SimpleNamespace(layers=1, width=8, max_length=12), device=torch.device("cpu"),
        tokenizer=["cat", "sees"],
    )  # fmt: skip
    head: Any = SimpleNamespace(labels=Labels(["NP", "S", "VP"]))
    parser: Any = None
    return kind(model, kind.kind, {}, head, parser)


def test_spans_and_words_of_syntax() -> None:
    tree = syntax(Tree)
    target = tree.parse("(S (NP * cat) (VP sees))")
    assert tree.asks(target) == Asks(words={1: "cat", 2: "sees"}, spans=((0, 2, "NP"), (0, 3, "S"), (2, 3, "VP")))
    span = syntax(Span)
    assert span.asks(span.parse("NP 1-2, * 4-5")) == Asks(spans=((0, 2, "NP"), (3, 5, "*")))


def test_the_values_of_a_label() -> None:
    label = Label.__new__(Label)
    label.all_values = {"mood": ["bad", "good"]}
    label.answer("mood")
    assert label.choices() == ["bad", "good"]
    assert label.asks(Target(0, 1)) == Asks(value="good")


def test_a_length_of_a_range(controls: Controls) -> None:
    (parsed,) = controls.parse(["length: 3-5"])
    assert parsed.classifier.value_at(parsed.target, 4) == "4"
    (other,) = controls.parse(["pos: DET"])
    assert other.classifier.value_at(other.target, 4) is None


LINES = [
    ({"pos": ["START", "DET", "NOUN", "END"]}, [1, 2], {"pos": "DET NOUN"}),
    ({"spans": [[0, 1, "NP"], [2, 2, "VP"]]}, [], {"span": "NP 1-2, VP 3-3"}),
    ({"tree": "(TOP (S (NP (DT The) (NN cat)) (VP (VBZ sees)) (. \\n)))"}, [],
     {"tree": "(TOP (S (NP * *) (VP *) ))"}),
]  # fmt: skip


@pytest.mark.parametrize(("line", "inside", "values"), LINES)
def test_published_targets(line: dict[str, Any], inside: list[int], values: dict[str, str]) -> None:
    found = {name: kind.published_value(line, inside) for name, kind in classifier_kinds().items()}
    assert {name: value for name, value in found.items() if value is not None} == values


def test_what_evaluation_asks_for() -> None:
    kinds = classifier_kinds()
    suites = {name: kind.suite for name, kind in kinds.items() if kind.suite is not None}
    assert suites == {
        "field": "field", "label": "field", "length": "length", "pos": "pos", "span": "span", "tree": "tree",
        "words": "words",
    }  # fmt: skip
    assert {name for name, kind in kinds.items() if kind.composed_with == ("field",)} == {"pos", "tree"}
    assert {name for name, kind in kinds.items() if kind.enumerable} == {"field", "label"}
    assert Pos.task == "parts of speech"


def test_lengths_and_mask_are_always_there() -> None:
    nothing: Any = None
    even = Denoised(nothing, nothing, torch.zeros(2, 3, 5), nothing, ())
    assert even.lengths.tolist() == [3, 3]
    assert even.mask.tolist() == [[True] * 3] * 2
    uneven = Denoised(nothing, nothing, torch.zeros(2, 3, 5), nothing, (), torch.tensor([1, 3]))
    assert uneven.lengths.tolist() == [1, 3]
    assert uneven.mask.tolist() == [[True, False, False], [True] * 3]
