"""Words that no training text had: a request that names one may have it, and no other request may."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_grammar import toy_sentences

from ctrlgen.checkpoint import DiffusionLM, save_pretrained
from ctrlgen.controls.registry import MOST_HINTS
from ctrlgen.diffusion.denoiser import Denoiser, DenoiserConfig
from ctrlgen.diffusion.schedule import make_schedule
from ctrlgen.errors import UsageError
from ctrlgen.evaluation.evaluation import Evaluation
from ctrlgen.evaluation.plan import Plan
from ctrlgen.generation.generator import Generator
from ctrlgen.settings import Settings
from ctrlgen.text.tokenizer import WordTokenizer

BRIEF = Settings(steps=6)


def make_generator(**output: int | str) -> Generator:
    """A model that has learned how frequent words are and how they are spelled, if that; nothing else."""
    texts = [" ".join(words) for words, _ in toy_sentences(300)]
    tokenizer = WordTokenizer.train(texts)
    config = DenoiserConfig(
        vocab_size=len(tokenizer),
        embedding_dim=8,
        width=16,
        layers=1,
        heads=2,
        max_length=12,
        **output,  # type: ignore[arg-type]
    )
    torch.manual_seed(0)
    denoiser = Denoiser(config).eval().requires_grad_(False)
    if config.output == "tied":
        ids = torch.tensor([id for text in texts for id in tokenizer.encode(text)])
        denoiser.words.learn_spelling(tokenizer.words, torch.bincount(ids, minlength=len(tokenizer)))
    return Generator(DiffusionLM(denoiser, make_schedule("warp"), tokenizer, lengths={7: 3, 9: 2, 11: 1}))


@pytest.fixture(scope="module")
def opened() -> Generator:
    return make_generator(output="tied", output_dim=4, pieces=99)


def texts_of(generator: Generator, *requests: dict[str, object], settings: Settings = BRIEF) -> list[str]:
    asked = [generator.request(n=3, **request) for request in requests]  # type: ignore[arg-type]
    return [sample.text for sample in generator.generate(asked, settings)]


def test_a_word_that_is_nearly_a_known_one_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    opened = make_generator(output="tied", output_dim=4, pieces=99)
    with caplog.at_level("INFO"):
        for control in ("words: hause, rivver", "starts: the hause"):
            assert opened.request([control]).words
        opened.request([], template="the smll dog ___ .")
        for control in ("words: Hause", "words: rivers", "words: quux", "words: hounsel", "words: house, cat"):
            opened.request([control])
        opened.request([f"starts: ({'|'.join(f'{letter}ouse' for letter in 'abcdefgijk')})"])
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == "hause: a new word. Did you mean house? rivver: a new word. Did you mean river?"
    assert told[1] == "smll: a new word. Did you mean small?"
    assert len(told) == 3
    assert told[2].count("a new word") == MOST_HINTS


def test_words_of_data_are_no_mistakes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory, targets = tmp_path / "model", tmp_path / "targets.jsonl"
    save_pretrained(make_generator(output="tied", output_dim=4, pieces=99).model, directory)
    targets.write_text('{"controls": ["words: hause"], "reference": "a hause ."}\n')
    with caplog.at_level("INFO"):
        Evaluation(Plan(str(directory), targets=targets, settings=BRIEF), cost_models=[]).run()
    assert "a new word" not in caplog.text


@pytest.mark.parametrize(
    "control", ["words: Zorblax", "starts: Chez Marcel", "ends: quuxville .", "matches: ... (a|b)lorp ..."]
)
def test_a_named_word_is_written_as_typed(opened: Generator, control: str) -> None:
    request = opened.request([control], n=4)
    assert request.words
    samples = opened.generate([request], BRIEF)
    assert all(sample.success for sample in samples)
    assert all(any(word in sample.tokens for word, _ in request.words) for sample in samples)


@pytest.mark.slow
def test_new_words_stay_with_their_request(opened: Generator) -> None:
    plain, named, other = (
        {"controls": ["words: cat"]},
        {"controls": ["words: Zorblax, dog"]},
        {"controls": ["words: Blick"]},
    )
    together = texts_of(opened, plain, named, other, plain)
    alone = [text for request in (plain, named, other, plain) for text in texts_of(opened, request)]
    assert together == alone
    assert all("Zorblax" in text and "Blick" not in text for text in together[3:6])
    assert not any(word in text for text in [*together[:3], *together[9:]] for word in ("Zorblax", "Blick"))


def test_two_requests_may_give_one_id_to_different_words(opened: Generator) -> None:
    settings = Settings(steps=6, candidates=2, explain=True, until_success=1)
    texts = texts_of(opened, {"controls": ["words: Zorblax"]}, {"controls": ["words: Blick"]}, settings=settings)
    assert all("Zorblax" in text for text in texts[:3])
    assert all("Blick" in text for text in texts[3:])


def test_a_template_keeps_words_that_are_new(opened: Generator) -> None:
    texts = texts_of(opened, {"controls": [], "template": "Wolframina  sees ___ near quuxville!"})
    assert all(text.startswith("Wolframina  sees ") and text.endswith(" near quuxville!") for text in texts)


def test_a_text_to_stay_near_may_have_new_words(opened: Generator) -> None:
    request = opened.request(["like: the dog sees Wolframina ."], n=4)
    assert request.words == (("Wolframina", None),)
    kept = [sample.tokens.count("Wolframina") for sample in opened.generate([request], BRIEF)]
    assert sum(kept) >= 3


def test_words_that_are_known_in_some_case_are_not_new(opened: Generator) -> None:
    assert opened.request(["words: Cat, DOG"]).words == ()
    assert opened.request([], template="The CAT ___ .").words == ()


def test_the_vocabulary_of_the_model_stays(opened: Generator) -> None:
    before = list(opened.model.tokenizer.words)
    texts_of(opened, {"controls": ["words: Zorblax"]})
    assert opened.model.tokenizer.words == before
    assert opened.model.denoiser.embeddings().shape[0] == len(before)


def test_a_model_of_version_0_1_takes_in_no_words() -> None:
    with pytest.raises(UsageError, match="'Zorblax' is not in this model's vocabulary"):
        make_generator().request(["words: Zorblax"])
