"""What texts cost, and which are left out or drawn again for it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import Run

from ctrlgen.checkpoint import from_pretrained
from ctrlgen.evaluation import language_model
from ctrlgen.evaluation.language_model import LanguageModel, new_lm
from ctrlgen.evaluation.train_language_model import save_lm
from ctrlgen.generation.costs import BOUND, DOMAIN_LM
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.request import Sample
from ctrlgen.generation.small_lm import SmallLM
from ctrlgen.settings import Settings

QUICK = Settings(steps=4, redrafts=0, corrections=0)


@pytest.fixture(scope="module")
def with_lm(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model with an untrained language model."""
    directory = Path(shutil.copytree(toy_model, tmp_path_factory.mktemp("with_lm") / "toy"))
    model = from_pretrained(str(directory))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            language_model,
            "SIZE",
            {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
        )
        torch.manual_seed(0)
        lm = new_lm(model.tokenizer, model.config.max_length)
        with torch.no_grad():
            for weights in lm.parameters():
                weights.add_(0.3 * torch.randn_like(weights))
        (directory / "lm").mkdir()
        save_lm(lm, directory / "lm")
    return directory


@pytest.fixture(scope="module")
def measured(with_lm: Path) -> Generator:
    return Generator(str(with_lm))


def drawn(generator: Generator, n: int = 12, controls: tuple[str, ...] = (), **settings: object) -> list[Sample]:
    return generator.generate([generator.request(controls, n=n)], replace(QUICK, **settings))  # type: ignore[arg-type]


def test_costs_are_those_of_the_language_model_in_transformers(with_lm: Path, measured: Generator) -> None:
    samples = drawn(measured)
    theirs = LanguageModel.load(from_pretrained(str(with_lm))).costs([sample.tokens for sample in samples])
    assert [sample.cost for sample in samples] == pytest.approx(theirs, rel=1e-4)
    assert {sample.cost_by for sample in samples} == {DOMAIN_LM}


def test_the_costliest_word_is_the_one_that_costs_most(measured: Generator) -> None:
    lm = SmallLM.of(measured.model)
    assert lm is not None
    for sample in drawn(measured):
        (nats,) = lm.costs([sample.tokens])
        assert sample.cost == pytest.approx(sum(nats) / len(nats))
        worst = sample.costliest_word
        assert worst is not None
        assert (worst.word, worst.cost) == (sample.tokens[worst.position], pytest.approx(max(nats[:-1]), rel=1e-4))


def test_costs_do_not_depend_on_company(measured: Generator) -> None:
    lm = SmallLM.of(measured.model)
    assert lm is not None
    texts = [["the", "dog"], ["a", "cat", "runs", "."], ["the", "cat"], []]
    together = lm.costs(texts)
    assert together == [lm.costs([text])[0] for text in texts]


@pytest.mark.slow
def test_without_a_language_model_the_bound_measures_where_asked(generator: Generator) -> None:
    assert {sample.cost for sample in drawn(generator)} == {None}
    for sample in drawn(generator, cost=True, n=3):
        ids = torch.tensor([generator.model.tokenizer.ids(sample.tokens)])
        expected = -generator.reader.bound(ids, None).item() / len(sample.tokens)
        assert (sample.cost, sample.cost_by) == (pytest.approx(expected, rel=1e-4), BOUND)


def test_a_damaged_language_model_is_told_and_stops_nothing(
    with_lm: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = Path(shutil.copytree(with_lm, tmp_path / "copy"))
    (copy / "lm" / "model.safetensors").write_bytes(b"")
    (sample,) = drawn(Generator(str(copy)), n=1)
    assert sample.cost is None
    assert "train-lm --force" in caplog.text


def test_max_cost_rejects_what_costs_more(measured: Generator) -> None:
    samples = drawn(measured)
    limit = sorted(sample.cost or 0 for sample in samples)[5]
    limited = drawn(measured, max_cost=limit)
    assert [s.text for s in limited] == [s.text for s in samples]
    assert [s.rejected is None for s in limited] == [(s.cost or 0) <= limit for s in samples]
    redrawn = drawn(measured, max_cost=limit, until_success=3)
    assert [s.text for s in redrawn if s.attempts == 1] == [s.text for s in limited if s.rejected is None]
    assert all(s.attempts == 4 for s in redrawn if s.rejected is not None)


@pytest.mark.slow
def test_distinct_texts_are_apart_and_the_same_for_any_number(generator: Generator) -> None:
    asked = ("pos: DET NOUN VERB PUNCT",)
    assert len({s.text for s in drawn(generator, 24, asked)}) < 24
    samples = drawn(generator, 24, asked, distinct=True)
    kept = [s.text for s in samples if s.rejected is None]
    assert len(kept) == len(set(kept))
    assert any(s.attempts > 1 for s in samples)
    assert [s.text for s in drawn(generator, 9, asked, distinct=True)] == [s.text for s in samples[:9]]


def test_the_command_line_leaves_out_and_says_so(with_lm: Path, tmp_path: Path, ctrlgen: Run) -> None:
    model = ("--model", with_lm, "--steps", 4, "--corrections", 0)
    costs = [answer["cost"] for answer in ctrlgen("generate", *model, "-n", 8, "--json").answers]
    limit = sorted(costs)[3]
    found = ctrlgen("generate", *model, "-n", 8, "--json", "--max-cost", limit)
    assert [answer["cost"] for answer in found.answers] == [c for c in costs if c <= limit]
    assert "4 of 8 samples are left out: 4 too costly" in found.err
    batch = tmp_path / "batch.jsonl"
    batch.write_text('{"n": 8}\n{"n": 2, "seed": 3}\n')
    ctrlgen("generate", *model, "--batch", batch, "--out", tmp_path / "out.jsonl", "--max-cost", limit)
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [a["cost"] for a in answers if a["seed"] == a["index"]] == [c for c in costs if c <= limit]
    assert not (tmp_path / "out.jsonl.partial").exists()
    assert all("rejected" not in answer for answer in answers)


def test_costs_are_shown_without_controls_where_asked_for(with_lm: Path, ctrlgen: Run) -> None:
    model = ("--model", with_lm, "--steps", 4, "--corrections", 0)
    assert "cost" not in ctrlgen("generate", *model).out
    heading, row = ctrlgen("generate", *model, "--cost").out.splitlines()[:2]
    assert heading.split() == ["text", "cost"]
    float(row.split()[-1])


@pytest.mark.parametrize("option", [["--max-cost", "2"], ["--distinct"]])
def test_what_needs_every_text_leaves_none_out(option: list[str], ctrlgen: Run) -> None:
    refused = ctrlgen("generate", "-n", 9, "--share", "words: cheap=30%", *option)
    assert refused.code == 2
    assert f"{option[0]} is not for a set with --share" in refused.err
    refused = ctrlgen("write", "plan.toml", *option)
    assert refused.code == 2
    assert f"No such option: {option[0]}" in refused.err
