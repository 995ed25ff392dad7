"""The bundled model as users get it: it obeys, in any company, from its files alone."""

import pytest

from ctrlgen.checkpoint import bundled_models
from ctrlgen.errors import UsageError
from ctrlgen.generation.generator import Generator
from ctrlgen.settings import Guidance, Settings

PATTERN = "pos: DET NOUN AUX DET ADJ NOUN ADP PROPN PROPN PUNCT"
CARD = ("success %", "above human", "distinct-4", "CC BY-SA 4.0")


@pytest.fixture(scope="module")
def bundled() -> Generator:
    return Generator("e2e")


def test_it_is_small_and_has_a_card() -> None:
    for directory in bundled_models().values():
        lm = sum(path.stat().st_size for path in (directory / "lm").glob("*"))
        tree = sum(path.stat().st_size for path in (directory / "classifiers" / "tree").glob("*"))
        assert lm <= 6e6
        assert tree <= 8e6
        assert sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) - lm - tree <= 16e6
        card = (directory / "README.md").read_text(encoding="utf-8")
        assert all(word in card for word in CARD)


def test_it_obeys_a_pattern_that_its_unguided_texts_do_not_have(bundled: Generator) -> None:
    """By the lexicon's commonest tag of each word: the oracle need not be installed for this test."""
    request = bundled.request([PATTERN], n=8)
    (control,) = request.controls
    lexicon = control.classifier.head.lexicon[:, :17]  # type: ignore[attr-defined]

    def right(settings: Settings) -> float:
        shares = []
        for sample in bundled.generate([request], settings):
            tags = lexicon[bundled.model.tokenizer.ids(sample.tokens)].argmax(-1) + 1
            wanted = control.classifier.encode([control.target], [10])[0]
            shares.append(float((tags == wanted).float().mean()))
        return sum(shares) / len(shares)

    assert right(Settings()) > 0.9
    assert right(Settings(guidance=Guidance(strength=0.0))) < 0.5


def test_it_tells_which_control_stood_against_which(bundled: Generator) -> None:
    """A text that serves Japanese food hardly has the word Italian."""
    request = bundled.request(["food: Japanese", "words: Italian food"], n=16)
    plain, explained = (bundled.generate([request], Settings(explain=asked)) for asked in (False, True))
    assert [sample.tokens for sample in plain] == [sample.tokens for sample in explained]
    parts = [part for sample in explained for result in sample.controls for part in result.explanation or ()]
    assert len(parts) == sum(result.verdict.success is False for sample in plain for result in sample.controls) > 0
    assert {"food: Japanese", "words: Italian food"} & {part.pulled_by for part in parts}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("C# 5 - 10 km - see http://a.org/b ", " ."),
        ("“Don’t” eat at the guests' pub: ", " (c++@x.org)."),
        ("At 5 a.m. in the U.S. 'The  Eagle' ", ", 👩‍👩‍👧!"),
    ],
)
def test_given_text_comes_back_to_the_character(bundled: Generator, before: str, after: str) -> None:
    request = bundled.request([], template=f"{before}___{{3}}{after}")
    (sample,) = bundled.generate([request], Settings(steps=4, corrections=0))
    assert sample.text.startswith(before)
    assert sample.text.endswith(after.removeprefix(" ") if after == " ." else after)
    assert [sample.text[start:end] for start, end in sample.offsets][-1] in after


def test_two_values_of_one_field_are_refused(bundled: Generator) -> None:
    with pytest.raises(UsageError, match="'food: French' and 'food: Japanese' contradict each other"):
        bundled.request(["food: French", "food: Japanese"])


def test_its_texts_do_not_depend_on_their_company(bundled: Generator) -> None:
    requests = [bundled.request([PATTERN], n=3), bundled.request(["length: 12-20"], n=5), bundled.request([PATTERN])]
    settings = Settings(steps=8)
    together = [sample.tokens for sample in bundled.generate(requests, settings)]
    apart = [sample.tokens for request in requests for sample in bundled.generate([request], settings)]
    assert together == apart


def test_an_oracle_that_errs_often_is_shown_with_its_accuracy(bundled: Generator) -> None:
    requests = [bundled.request([control], n=1) for control in ("priceRange: cheap", "food: Italian", "words: pub")]
    doubtful = [sample.controls[0].doubtful for sample in bundled.generate(requests, Settings(steps=3))]
    assert doubtful[0] == pytest.approx(0.857, abs=1e-3)
    assert doubtful[1:] == [None, None]
