"""Texts that the model doubts are written anew, and the better one is kept."""

from dataclasses import replace

import pytest
import torch

from ctrlgen.generation import choosing
from ctrlgen.generation.choosing import Reading, readings
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.jobs import Draws
from ctrlgen.settings import Settings

SIMPLE = "pos: DET NOUN VERB DET NOUN PUNCT"
QUICK = Settings(steps=4, restart=0.0, corrections=0, redrafts=0)


def texts(generator: Generator, settings: Settings, n: int = 6) -> list[str]:
    return [sample.text for sample in generator.generate([generator.request([SIMPLE], n=n, seed=3)], settings)]


def test_what_no_one_doubts_stays(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "LEAST_TYPICAL", -1e9)
    assert texts(generator, replace(QUICK, redrafts=3)) == texts(generator, QUICK)


def test_of_what_is_doubted_the_better_draft_is_kept(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "LEAST_TYPICAL", 1e9)
    request = generator.request([SIMPLE], n=6, seed=3)
    first = Draws(generator.model, [request]).first()
    second = [job.redraft(1) for job in first]
    ids = generator.draw([*first, *second], QUICK, None)
    read = readings(generator.reader, generator.workers, ids)
    better = [max(pair, key=lambda job: read[job].score) for pair in zip(first, second, strict=True)]
    assert set(first) & set(better)
    assert set(second) & set(better)
    samples = generator.generate([request], replace(QUICK, redrafts=1))
    assert [generator.model.tokenizer.ids(sample.tokens) for sample in samples] == [ids[job] for job in better]


@pytest.mark.slow
def test_a_redraft_does_not_depend_on_other_texts(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "LEAST_TYPICAL", -2.0)
    settings = replace(QUICK, redrafts=2)
    together = texts(generator, settings)
    alone = [
        sample.text
        for index in range(6)
        for sample in generator.generate([generator.request([SIMPLE], seed=3 + index)], settings)
    ]
    assert together == alone


def test_no_two_drafts_have_the_same_noise(generator: Generator) -> None:
    (job,) = Draws(generator.model, [generator.request([SIMPLE])]).first()
    seeds = [job.noise_seed, *(job.redraft(number).noise_seed for number in range(1, 11))]
    assert len(set(seeds)) == len(seeds)
    worst = job  # each redraft is kept and doubted
    for number in range(1, 11):
        worst = worst.redraft(number)
    assert worst.noise_seed < 2**62


def test_two_untypical_words_are_doubted() -> None:
    assert Reading(-4.1, 0.0).doubted
    assert not Reading(-3.9, -20.0).doubted
    assert Reading(-5.0, -2.0).score == -7.0


def test_given_words_are_no_reason_to_doubt(generator: Generator) -> None:
    (job,) = Draws(generator.model, [generator.request([], template="the the ___{1} dog .")]).first()
    (ids,) = generator.draw([job], QUICK, None).values()
    (reading,) = readings(generator.reader, generator.workers, {job: ids}).values()
    of_words = generator.reader.typicality(torch.tensor([ids]), None)[0]
    assert reading.worst == pytest.approx(min(0.0, float(of_words[2])), abs=1e-4)
    assert of_words.min() < min(0.0, float(of_words[2]))
