"""The bundled models as users get them: they obey, in any company, from their files alone."""

import pytest

from ctrlgen.checkpoint import bundled_models
from ctrlgen.errors import UsageError
from ctrlgen.generation.generator import Generator
from ctrlgen.settings import Guidance, Settings

PATTERN = "pos: DET NOUN AUX DET ADJ NOUN ADP PROPN PROPN PUNCT"
MOST_BYTES = {"e2e": 20e6, "english": 40e6}
CARD = ("success %", "above human", "distinct-4", "CC BY-SA 4.0")


@pytest.fixture(scope="module")
def bundled() -> Generator:
    return Generator("e2e")


def test_they_are_small_and_have_a_card() -> None:
    models = bundled_models()
    assert set(models) == set(MOST_BYTES)
    for name, directory in models.items():
        assert sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) <= MOST_BYTES[name]
        card = (directory / "README.md").read_text(encoding="utf-8")
        assert all(word in card for word in CARD)


def test_a_name_that_no_text_had_stands_where_a_known_one_would(bundled: Generator) -> None:
    samples = bundled.generate([bundled.request(["name: Chez Marcel"], n=8)])
    assert all("Chez Marcel" in sample.text and sample.success for sample in samples)
    assert sum(sample.text.startswith("Chez Marcel") for sample in samples) >= 2  # as most names of restaurants do


def test_what_every_training_text_has_cannot_be_asked_away(bundled: Generator) -> None:
    with pytest.raises(UsageError, match=r"^name: every training text has one, so a text without it cannot be asked"):
        bundled.request(["name: absent"])
    assert "absent" not in bundled.controls.classifier("name").choices()
    samples = bundled.generate([bundled.request([f"{field}: absent"], n=4) for field in ("food", "area", "near")])
    assert sum(sample.success is True for sample in samples) >= 11


def test_a_blank_takes_the_value_asked_for(bundled: Generator) -> None:
    request = bundled.request(["food: Italian"], n=8, template="The Eagle is a ___ restaurant near the river .")
    texts = [sample.text for sample in bundled.generate([request])]
    assert sum("Italian" in text for text in texts) >= 6
    assert all(text.startswith("The Eagle is a ") and text.endswith("restaurant near the river .") for text in texts)


def test_english_obeys_controls_on_everyday_words() -> None:
    english = Generator("english")
    controls = ["words: quixling", "length: 6-9"]
    samples = english.generate([english.request(controls, n=4), english.request(["mood: question"], n=4)])
    assert all("quixling" in sample.text and sample.success for sample in samples[:4])
    assert sum(sample.text.endswith("?") for sample in samples[4:]) >= 3
    with pytest.raises(UsageError, match="unknown value"):
        english.request(["mood: purple"])  # no text says its mood, so none can be asked for in words


def test_english_reads_trees_and_labels_of_words_that_it_does_not_know() -> None:
    """Its oracles read new words by their spelling."""
    english = Generator("english")
    (control,) = english.request(["tree: (S (NP * *) (VP * (NP * *)) *)"]).controls
    texts = ["The man opened the door .", "The blorker opened the quixling ."]
    verdicts = control.classifier.check([text.split() for text in texts], [control.target] * 2)
    assert [verdict.success for verdict in verdicts] == [True, True]
    (control,) = english.request(["tense: past"]).controls
    texts = ["She zorbled the apples .", "She is zorbling the apples ."]
    verdicts = control.classifier.check([text.split() for text in texts], [control.target] * 2)
    assert [verdict.success for verdict in verdicts] == [True, False]


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
