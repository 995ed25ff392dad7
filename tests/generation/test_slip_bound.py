"""Slips: what counts as one, and that a text which has one gets no tick."""

import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import Run

from ctrlgen.checkpoint import from_pretrained
from ctrlgen.cli.display import ABOUT_SLIPS, html_mark, show_samples
from ctrlgen.controls.classifier import Verdict
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.evaluation.train_language_model import train_lm
from ctrlgen.generation.costs import Costs
from ctrlgen.generation.editing import Editor
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.request import ControlResult, CostlyWord, Request, Sample
from ctrlgen.generation.slips import FEWEST_TEXTS, FILE, LARGE_VOCABULARY, SlipBound, worst_word
from ctrlgen.generation.small_lm import SmallLM
from ctrlgen.settings import Settings
from ctrlgen.training.fit import TrainingConfig

QUICK = Settings(steps=4, redrafts=0, corrections=0)
UNKNOWN = 1


def test_the_worst_word_costs_most_beyond_what_is_usual() -> None:
    ids, nats = [4, 2, UNKNOWN, 3], [5.0, 7.0, 20.0, 6.0]
    assert worst_word(ids, nats, UNKNOWN) == (1, 7.0)
    assert worst_word(ids, nats, UNKNOWN, torch.tensor([0.0, 0.0, 6.5, 3.0, 1.0])) == (0, 4.0)
    assert worst_word(ids, nats, UNKNOWN, given={1}) == (3, 6.0)
    assert worst_word([UNKNOWN], [20.0], UNKNOWN) is None


@pytest.mark.parametrize("words", [10, LARGE_VOCABULARY + 1])
def test_one_human_text_in_twenty_has_a_slip(words: int) -> None:
    """In a large vocabulary a word's frequency is taken off what it costs."""
    counts = torch.arange(words)
    human = [[word % 10] for word in range(200)]
    nats = [[float(place)] for place in range(200)]
    bound = SlipBound.fit(counts, human, nats, unknown=words)
    assert bound is not None
    worst = [worst_word(ids, costs, words, bound.usual) for ids, costs in zip(human, nats, strict=True)]
    assert sum(found is not None and found[1] > bound.bound for found in worst) == 10
    rare, frequent = bound.usual[[0, -1]]
    assert rare > frequent + 5 if words > LARGE_VOCABULARY else rare == frequent == 0
    assert SlipBound.fit(counts, human[: FEWEST_TEXTS - 1], nats[: FEWEST_TEXTS - 1], words) is None


def test_it_is_read_as_it_was_saved(tmp_path: Path) -> None:
    assert SlipBound.load(tmp_path, 3) is None
    SlipBound(torch.tensor([1.0, 2.0, 3.0]), 2.5).save(tmp_path)
    bound = SlipBound.load(tmp_path, 3)
    assert bound is not None
    assert (bound.usual.tolist(), bound.bound) == ([1.0, 2.0, 3.0], 2.5)
    with pytest.raises(CtrlgenError, match="does not fit the language model"):
        SlipBound.load(tmp_path, 4)


@pytest.mark.parametrize("damage", [b"", b"x" * 100])
def test_a_damaged_file_is_one_clear_error(damage: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(damage)
    with pytest.raises(CtrlgenError, match=FILE):
        SlipBound.load(tmp_path, 3)


def sample(success: bool | None, slip: bool | None, generator: Generator) -> Sample:
    (control,) = generator.request(["words: dog"]).controls
    result = ControlResult(control, Verdict(success), 0.9)
    return Sample(
        Request((control,)), 0, "the the dog", ["the", "the", "dog"], 0, (result,),
        cost=3.0, slip=slip, costliest_word=CostlyWord(1, "the", 9.0),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("success", "slip", "shown"),
    [(True, False, "✓"), (True, None, "✓"), (True, True, "~"), (False, True, "✗"), (None, True, "?")],
)
def test_a_text_with_a_slip_gets_no_tick(
    success: bool | None, slip: bool | None, shown: str, generator: Generator
) -> None:
    file = io.StringIO()
    show_samples([sample(success, slip, generator)], file)
    row, *rest = file.getvalue().splitlines()[1:]
    assert shown in row
    assert ("~ 'the' at position 2" in row) is (shown == "~")
    assert [line.strip() for line in rest] == ([ABOUT_SLIPS] if shown == "~" else [])
    assert f">{shown}<" in html_mark(success, slip)


@pytest.fixture(scope="module")
def with_slips(toy_model: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model with a language model of a few steps, and what it takes for slips."""
    directory = Path(shutil.copytree(toy_model, tmp_path_factory.mktemp("slips") / "toy"))
    config = TrainingConfig(steps=4, tokens_per_batch=512, validate_every=4)
    list(train_lm(from_pretrained(str(directory)), str(toy_data), str(toy_data), None, config, directory / "lm"))
    return directory


@pytest.mark.slow
def test_training_a_language_model_learns_what_a_slip_is(
    with_slips: Path, toy_data: Path, tmp_path: Path, ctrlgen: Run
) -> None:
    generator = Generator(str(with_slips))
    lm = generator.costs.lm
    assert lm is not None
    assert lm.slips is not None
    samples = generator.generate([generator.request([], n=8)], QUICK)
    for one in samples:
        (nats,) = lm.costs([one.tokens])
        assert one.slip is (max(nats[:-1]) > lm.slips.bound)
    copy = Path(shutil.copytree(with_slips, tmp_path / "copy"))
    before = (copy / "lm" / FILE).read_bytes()
    (copy / "lm" / FILE).unlink()
    learned = ctrlgen("train-lm", "--model", copy, "--data", toy_data, "--validation", toy_data, "--only-slips")
    assert learned.code == 0, learned.err
    assert (copy / "lm" / FILE).read_bytes() == before


def bounded_at_the_middle(generator: Generator, texts: list[list[str]]) -> SmallLM:
    """Its language model, with a bound that half of the texts pass."""
    lm = generator.costs.lm
    assert lm is not None
    assert lm.slips is not None
    worst = sorted(max(nats[:-1]) for nats in lm.costs(texts))
    lm.slips = SlipBound(lm.slips.usual, worst[len(worst) // 2])
    return lm


@pytest.mark.slow
def test_slips_are_left_out_where_that_is_asked_for(with_slips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Generator(str(with_slips))
    lm = bounded_at_the_middle(generator, [s.tokens for s in generator.generate([generator.request([], n=9)], QUICK)])
    samples = generator.generate([generator.request([], n=9)], replace(QUICK, no_slips=True))
    left_out = [s for s in samples if s.rejected is not None]
    assert [s.slip for s in samples].count(True) == len(left_out) > 0
    assert {s.rejected.by for s in left_out if s.rejected} == {"no_slips"}
    lm.slips = None
    monkeypatch.setattr(generator, "draw", None)  # it is refused before anything is drawn
    with pytest.raises(UsageError, match="train-lm --only-slips"):
        generator.generate([generator.request([])], replace(QUICK, no_slips=True))


@pytest.mark.slow
def test_words_of_a_template_are_no_slips(with_slips: Path) -> None:
    generator = Generator(str(with_slips))
    (free,) = generator.generate([generator.request([])], QUICK)
    lm = bounded_at_the_middle(generator, [free.tokens])
    assert lm.slips is not None
    lm.slips = SlipBound(lm.slips.usual, -1.0)  # every word is one
    (infilled,) = generator.generate([generator.request([], template="the ___ dog .")], QUICK)
    assert infilled.slip is True
    assert infilled.costliest_word is not None
    assert 0 < infilled.costliest_word.position < len(infilled.tokens) - 2


@pytest.mark.slow
def test_what_an_edit_leaves_is_no_slip(with_slips: Path) -> None:
    generator = Generator(str(with_slips))
    lm = bounded_at_the_middle(generator, [["the", "dog", "sees", "a", "cat", "."]])
    assert lm.slips is not None
    lm.slips = SlipBound(lm.slips.usual, -1.0)
    editor = Editor(generator)
    (same,) = editor.edit([editor.source("the dog sees a cat .", ["words: dog"])])
    assert same.sample.slip is False
    (changed,) = editor.edit([editor.source("the dog sees a cat .", ["words: house"])])
    assert changed.sample.costliest_word is not None
    assert changed.sample.costliest_word.position in changed.new


def test_a_damaged_bound_leaves_the_costs(with_slips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    copy = Path(shutil.copytree(with_slips, tmp_path / "copy"))
    (copy / "lm" / FILE).write_bytes(b"x")
    generator = Generator(str(copy))
    (found,) = generator.generate([generator.request([])], QUICK)
    assert (found.cost is not None, found.slip) == (True, None)
    assert "train-lm --only-slips" in caplog.text


def test_without_a_language_model_no_text_is_said_to_have_a_slip(generator: Generator) -> None:
    assert Costs(generator.model).lm is None
    assert [s.slip for s in generator.generate([generator.request([])], QUICK)] == [None]


def test_there_must_be_a_language_model(toy_model: Path, toy_data: Path, ctrlgen: Run) -> None:
    refused = ctrlgen("train-lm", "--model", toy_model, "--data", toy_data, "--only-slips")
    assert refused.code == 2
    assert "holds no language model of yours yet" in refused.err


def test_what_came_with_ctrlgen_is_not_overwritten(toy_data: Path, ctrlgen: Run) -> None:
    refused = ctrlgen("train-lm", "--model", "e2e", "--data", toy_data, "--only-slips")
    assert refused.code == 2
    assert "holds no language model of yours yet" in refused.err


@pytest.mark.parametrize("model", ["e2e", "english"])
def test_bundled_models_know_what_a_slip_is(model: str) -> None:
    lm = SmallLM.of(from_pretrained(model))
    assert lm is not None
    assert lm.slips is not None
