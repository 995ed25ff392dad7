"""Scorers: particles are drawn anew by their scores, texts score higher, patterns still hold, mistakes are told."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.particles import LEVELS, Particles, cost, score, standardised, systematic
from ctrlgen.generation.scorers import load_scorer
from ctrlgen.settings import Settings


def cats(texts: Sequence[str]) -> list[int]:
    return [text.split().count("cat") + text.split().count("river") for text in texts]


def test_systematic_resampling_takes_each_about_as_often_as_its_weight() -> None:
    rng = torch.Generator().manual_seed(0)
    weights = torch.tensor([0.5, 0.25, 0.2, 0.05], dtype=torch.double)
    counts = torch.zeros(4, dtype=torch.double)
    for _ in range(2000):
        drawn = torch.bincount(systematic(weights.log(), rng), minlength=4)
        assert ((drawn - 4 * weights).abs() < 1).all()
        counts += drawn
    assert torch.allclose(counts / counts.sum(), weights, atol=0.01)


def test_equal_scores_change_nothing() -> None:
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        assert systematic(standardised(torch.full((8,), 3.0, dtype=torch.double)), rng).tolist() == list(range(8))


def test_groups_are_drawn_anew_apart_and_when_it_is_due() -> None:
    ids = torch.arange(6)[:, None]
    rngs = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    good = {"0": 9.0, "1": 0.0, "2": 0.0, "3": 0.0, "4": 0.0, "5": 9.0}
    particles = Particles(
        lambda texts: [good[text] for text in texts], 3, 10, lambda ids: [str(int(i)) for i in ids[:, 0]], rngs
    )
    orders = [particles.order(ids) for _ in range(10)]
    due = [order.tolist() for order in orders if order is not None]
    assert len(due) == len(LEVELS)
    for order in due:
        assert set(order[:3]) <= {0, 1, 2}
        assert set(order[3:]) <= {3, 4, 5}
        assert order.count(0) >= 2
        assert order.count(5) >= 2
    assert particles.best(ids, torch.zeros(6)) == [0, 5]
    assert particles.best(ids, torch.tensor([-9.0, 0.0, 0.0, 0.0, 0.0, 0.0]))[0] in (1, 2)


@pytest.mark.slow
def test_texts_score_higher_and_have_their_patterns(generator: Generator) -> None:
    requests = [generator.request(["matches: the ... sees ... ."], n=12, seed=3)]
    plain, steered = (
        generator.generate(requests, settings)
        for settings in (Settings(steps=8), Settings(steps=8, scorer=cats, particles=6))
    )
    assert all(sample.success for sample in steered)
    assert sum(cats([s.text for s in steered])) > sum(cats([s.text for s in plain])) + 6
    request = generator.request(["matches: the ... sees ... ."], seed=5)
    (alone,) = generator.generate([request], Settings(steps=8, scorer=cats, particles=6))
    assert alone.text == steered[2].text


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (lambda texts: [1.0], "the scorer gave 1 numbers for 2 texts"),
        (lambda texts: [1.0, float("nan")], "or one that is not finite"),
        (lambda texts: 1 / 0, "the scorer failed: ZeroDivisionError: division by zero"),
        (lambda texts: ["a", "b"], "the scorer failed: ValueError"),
        (lambda texts: None, "the scorer failed: TypeError"),
    ],
)
def test_what_a_scorer_may_not_do(scorer: object, message: str) -> None:
    with pytest.raises(CtrlgenError, match=message):
        score(scorer, ["one", "two"])  # type: ignore[arg-type]


def test_a_scorer_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_scorers.py").write_text("def length(texts):\n    return [len(text) for text in texts]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    assert load_scorer("my_scorers:length")(["a", "bcd"]) == [1, 3]
    for name, message in (
        ("my_scorers", "write MODULE:FUNCTION"),
        ("my_scorers:width", "my_scorers has no function 'width'"),
        ("no_such_module:width", "no_such_module cannot be imported"),
        ("hf:model", "write hf:MODEL=LABEL"),
    ):
        with pytest.raises(UsageError, match=message):
            load_scorer(name)


def test_a_label_of_a_text_classifier(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"[UNK]": 0, "[PAD]": 1, "cat": 2, "dog": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(tmp_path)
    config = BertConfig(
        vocab_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=32, id2label={0: "tame", 1: "wild"}, label2id={"tame": 0, "wild": 1},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tame, wild = (load_scorer(f"hf:{tmp_path}={label}")(["cat dog", "dog"]) for label in ("tame", "wild"))
    assert [a + b for a, b in zip(tame, wild, strict=True)] == pytest.approx([1.0, 1.0])
    with pytest.raises(UsageError, match=r"has no label 'wlid'\. Did you mean wild"):
        load_scorer(f"hf:{tmp_path}=wlid")
    with pytest.raises(UsageError, match="--scorer 'hf:"):
        load_scorer(f"hf:{tmp_path / 'nothing'}=wild")


def test_its_cost_is_told() -> None:
    assert cost(10, 8) == "scorer: 10 texts of 8 particles each: 8 times the denoising, 400 texts to score"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "ddim"}, "a scorer chooses among ancestral draws"),
        ({"candidates": 2}, "leave out candidates"),
        ({"particles": 1}, "particles must be between 2"),
    ],
)
def test_what_does_not_go_with_a_scorer(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Settings(scorer=cats, **settings)  # type: ignore[arg-type]
