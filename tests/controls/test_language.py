"""The control language: its grammar, and one clear line for everything that is not in it."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ctrlgen.controls.classifier import Classifier, Verdict
from ctrlgen.controls.language import Control, Statement, check, make_control, parse_statement
from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.errors import UsageError


class Starts(Classifier):
    """Texts that start with a word."""

    kind, summary, syntax, example, oracle = "starts", "the first word", "starts: WORD", "starts: The", "string match"

    @classmethod
    def load(cls, model: object, name: str) -> Classifier:
        return cls()

    def parse(self, value: str) -> str:
        return value

    def encode(self, targets: Sequence[Any], lengths: Sequence[int]) -> Tensor:
        raise AssertionError("an oracle does not guide")

    def log_prob(self, denoised: Denoised, encoded: Tensor) -> Tensor:
        raise AssertionError("an oracle does not guide")

    def check(self, texts: Sequence[Sequence[str]], targets: Sequence[str]) -> list[Verdict]:
        return [
            Verdict(text[0] == target, None if text[0] == target else f"starts with {text[0]!r}")
            for text, target in zip(texts, targets, strict=True)
        ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pos: DET NOUN", ("pos", "DET NOUN", 1.0, False, (0.0, 1.0))),
        ("  pos :  DET   NOUN ... ", ("pos", "DET   NOUN ...", 1.0, False, (0.0, 1.0))),
        ("pos:DET", ("pos", "DET", 1.0, False, (0.0, 1.0))),
        ("family friendly: yes", ("family friendly", "yes", 1.0, False, (0.0, 1.0))),
        ("pos: DET @2", ("pos", "DET", 2.0, False, (0.0, 1.0))),
        ("pos: DET @ 0.5", ("pos", "DET", 0.5, False, (0.0, 1.0))),
        ("pos: DET @1e2", ("pos", "DET", 100.0, False, (0.0, 1.0))),
        ("pos: DET @0", ("pos", "DET", 0.0, False, (0.0, 1.0))),
        ("pos: DET @2[0:0.8]", ("pos", "DET", 2.0, False, (0.0, 0.8))),
        ("pos: DET @2 [ 0.1 : 0.8 ] ", ("pos", "DET", 2.0, False, (0.1, 0.8))),
        ("pos: DET @2[:0.8]", ("pos", "DET", 2.0, False, (0.0, 0.8))),
        ("pos: DET @2[0.5:]", ("pos", "DET", 2.0, False, (0.5, 1.0))),
        ("not pos: DET NOUN @3", ("pos", "DET NOUN", 3.0, True, (0.0, 1.0))),
        ("not  words: cheap", ("words", "cheap", 1.0, True, (0.0, 1.0))),
        ("notes: a", ("notes", "a", 1.0, False, (0.0, 1.0))),
        ("pos: DT NN : CD", ("pos", "DT NN : CD", 1.0, False, (0.0, 1.0))),  # the Penn tag for a colon
        ("words: mail me@home", ("words", "mail me@home", 1.0, False, (0.0, 1.0))),
        ("words: pub@2[0:0.8]", ("words", "pub", 2.0, False, (0.0, 0.8))),
        ("pos: DET @[0:0.5]", ("pos", "DET", 1.0, False, (0.0, 0.5))),
        ("NOT words: cheap", ("words", "cheap", 1.0, True, (0.0, 1.0))),
        ("words: a @2 b", ("words", "a @2 b", 1.0, False, (0.0, 1.0))),
        ("words: [a] b", ("words", "[a] b", 1.0, False, (0.0, 1.0))),
    ],
)
def test_grammar(text: str, expected: tuple[str, str, float, bool, tuple[float, float]]) -> None:
    name, value, weight, negated, window = expected
    assert parse_statement(text) == Statement(text.strip(), name, value, weight, negated, window)


words = st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters="@:[]"), min_size=1, max_size=8)
windows = st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda w: w[0] < w[1])


@given(words, st.lists(words, min_size=1, max_size=4), st.floats(0, 1000), st.booleans(), windows)
def test_whatever_is_written_is_read(
    name: str, value: list[str], weight: float, negated: bool, window: tuple[float, float]
) -> None:
    text = f"{'not ' * negated}{name}: {' '.join(value)} @{weight!r}[{window[0]!r}:{window[1]!r}]"
    assert parse_statement(text) == Statement(text, name, " ".join(value), weight, negated, window)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "NAME: VALUE"),
        ("pos", "NAME: VALUE"),
        (": DET", "NAME: VALUE"),
        ("not : DET", "NAME: VALUE"),
        ("pos:", "after the colon"),
        ("pos:   ", "after the colon"),
        ("pos: @2", "after the colon"),
        ("pos: DET @", "weight ''"),
        ("pos: DET @high", "weight 'high'"),
        ("pos: DET @-1", "not"),
        ("pos: DET @nan", "finite"),
        ("pos: DET @inf", "finite"),
        ("pos: DET @1[0.5]", "[FROM:TO]"),
        ("pos: DET @1[]", "[FROM:TO]"),
        ("pos: DET @1[0:1:2]", "[FROM:TO]"),
        ("pos: DET @1[a:1]", "'a'"),
        ("pos: DET @1[0:nan]", "finite"),
        ("pos: DET @1[0.6:0.5]", "[0.6:0.5]"),
        ("pos: DET @1[0.5:0.5]", "[0.5:0.5]"),
        ("pos: DET @1[-0.1:1]", "within 0 and 1"),
        ("pos: DET @1[0:1.5]", "within 0 and 1"),
        ("pos\nof speech", "NAME: VALUE"),
    ],
)
def test_each_mistake_is_one_line(text: str, named: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_statement(text)
    message = str(raised.value)
    assert named in message
    assert repr(text) in message
    assert "\n" not in message


def starts(text: str) -> Control:
    return make_control(parse_statement(text), Starts())


def test_check_asks_each_text_for_its_own_target() -> None:
    verdicts = check([starts("starts: The"), starts("starts: A")], [["The", "cat"], ["The", "dog"]])
    assert verdicts == [Verdict(True), Verdict(False, "starts with 'The'")]


def test_a_negated_control_succeeds_where_the_oracle_finds_nothing() -> None:
    texts = [["The", "cat"], ["A", "dog"]]
    assert check([starts("not starts: The")] * 2, texts) == [Verdict(False, "it is there"), Verdict(True)]


def test_what_could_not_be_checked_stays_unknown_when_negated() -> None:
    unknown = Verdict(None, "not installed")
    assert unknown.negated() == unknown


class Mirror(Starts):
    """Each of its targets has an opposite, whose opposite it is."""

    def negate(self, target: str) -> str:
        return target.removeprefix("-") if target.startswith("-") else f"-{target}"


def test_not_is_decided_once() -> None:
    plain, negated = (make_control(parse_statement(text), Mirror()) for text in ("starts: The", "not starts: The"))
    assert (plain.target, plain.complement) == ("The", False)
    assert (negated.target, negated.complement) == ("-The", False)
    without_opposite = starts("not starts: The")
    assert (without_opposite.target, without_opposite.complement) == ("The", True)


def test_a_classifier_without_training_says_so() -> None:
    with pytest.raises(UsageError, match="needs no training"):
        Starts.train(None, "starts", None, "text", None, None, None)  # type: ignore[arg-type]


def test_by_default_any_length_will_do() -> None:
    assert all(Starts().allows_length("The", n) for n in range(1, 99))
    assert not Starts.structural
