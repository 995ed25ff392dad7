"""Slips, repeated pairs, the 5-gram cost model that finds them, Wilson's intervals, and the frontier of variety."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ctrlgen.errors import UsageError
from ctrlgen.evaluation import slips
from ctrlgen.evaluation.cost_models import NgramModel
from ctrlgen.evaluation.evaluation import Evaluation
from ctrlgen.evaluation.kneser_ney import KneserNey
from ctrlgen.evaluation.metrics import Estimate, entropy, repeats_a_pair, share
from ctrlgen.evaluation.novelty import Training
from ctrlgen.evaluation.plan import Plan
from ctrlgen.evaluation.report.card import figures
from ctrlgen.evaluation.report.tables import frontier_table
from ctrlgen.evaluation.slips import Slips
from ctrlgen.evaluation.targets import read_examples
from ctrlgen.evaluation.tradeoff import frontier
from ctrlgen.generation.generator import Generator
from ctrlgen.settings import Settings


def by_definition(sentences: Sequence[Sequence[str]], gram: Sequence[str], order: int) -> float:
    """p(last word | those before it), from counts by the book."""
    counts: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(order + 1)]
    for words in sentences:
        padded = ["<s>"] * (order - 1) + list(words) + ["</s>"]
        counts[order].update(tuple(padded[i : i + order]) for i in range(len(padded) - order + 1))
    for n in range(order - 1, 0, -1):
        counts[n].update(found[1:] for found in counts[n + 1])
    p = 1 / (len(counts[1]) + 1)
    for n in range(1, order + 1):
        once, twice = (sum(count == k for count in counts[n].values()) for k in (1, 2))
        discount = once / (once + 2 * twice) if once else 0.5
        *context, _ = tail = tuple(gram[-n:])
        following = [count for found, count in counts[n].items() if found[:-1] == tuple(context)]
        if following:
            kept = max(counts[n][tail] - discount, 0) / sum(following)
            p = kept + discount * len(following) / sum(following) * p
    return p


@pytest.mark.parametrize("order", [2, 5])
def test_the_cost_of_every_word_is_kneser_neys(order: int) -> None:
    rng = Random(0)
    sentences = [[rng.choice("abcdef") for _ in range(rng.randint(1, 8))] for _ in range(40)]
    texts = [[rng.choice("abcdefgh") for _ in range(rng.randint(1, 8))] for _ in range(10)]
    for words, nats in zip(texts, KneserNey(sentences, order).costs(texts), strict=True):
        padded = ["<s>"] * (order - 1) + words + ["</s>"]
        grams = [padded[i : i + order] for i in range(len(words) + 1)]
        assert nats == pytest.approx([-math.log(by_definition(sentences, gram, order)) for gram in grams])


def test_probabilities_sum_to_one() -> None:
    ngrams = KneserNey([text.split() for text in ("the cat sees a dog .", "the cat likes a dog .", "no")])
    words = sorted({*ngrams.id_of})
    for before in ([], ["the", "cat"], ["a", "b", "c", "d"]):
        after = ngrams.costs([[*before, word] for word in [*words, "zebra"]])
        nats = [costs[len(before)] for costs in after]
        end = ngrams.costs([before])[0][-1]
        assert sum(math.exp(-cost) for cost in [*nats, end]) == pytest.approx(1.0)


def test_a_word_that_follows_one_word_only_is_unlikely_elsewhere() -> None:
    """Kneser and Ney's example: `francisco` is as frequent as `cat`, but always follows `san`."""
    texts = ["we like san francisco", "they see san francisco", "the cat", "a cat", "no cat", "i like san francisco"]
    ngrams = KneserNey([text.split() for text in texts], order=2)
    cat, francisco = (ngrams.costs([["zebra", word]])[0][1] for word in ("cat", "francisco"))
    assert francisco > cat + math.log(2)
    assert ngrams.costs([["san", "francisco"]])[0][1] < -math.log(0.7)


NOUNS = ("cat", "dog", "cow", "hen")
HUMAN = [f"the {a} sees the {b} .".split() for a in (*NOUNS, "fox") for b in NOUNS]


@pytest.fixture
def ngrams() -> NgramModel:
    vocabulary: Any = SimpleNamespace(tokenizer={word for words in HUMAN for word in words})
    return NgramModel(vocabulary, Training(HUMAN * 20))


def test_one_odd_word_is_a_slip_though_the_mean_hides_it(ngrams: NgramModel) -> None:
    found = Slips.fit(ngrams, HUMAN)
    assert found is not None
    assert found.human_texts == 20
    assert sum(found.found(list(map(tuple, HUMAN)))) <= 1  # at most 5%
    odd = tuple(("the cat sees the dog . " * 6 + "the the cat sees the dog .").split())
    assert found.found([odd]) == [True]
    assert Slips.fit(ngrams, HUMAN[: slips.FEWEST_TEXTS - 1]) is None


def test_rare_words_are_no_slips_where_the_vocabulary_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """`zebra` is seen once, in a place that any noun takes: dear in itself, but not for so rare a word."""
    shapes = ["the NOUN sleeps ."] * 4 + ["quietly the NOUN sleeps ."] * 3 + ["the NOUN sleeps quietly ."]
    usual = [shape.replace("NOUN", f"noun{i}").split() for i in range(60) for shape in shapes]
    seldom = [["the", noun, "sleeps", "."] for noun in ("zebra", "gnu", "yak", "emu", "emu", "eel", "eel")]
    vocabulary: Any = SimpleNamespace(tokenizer={word for words in usual + seldom for word in words})
    model = NgramModel(vocabulary, Training(usual + seldom))
    human = list(map(tuple, usual))
    rare, wrong = ("the", "zebra", "sleeps", "."), ("the", "sleeps", "noun1", ".")
    small = Slips.fit(model, human)
    assert small is not None
    assert small.found([rare, wrong]) == [True, True]
    monkeypatch.setattr(slips, "LARGE_VOCABULARY", 20)
    large = Slips.fit(model, human)
    assert large is not None
    assert large.found([rare, wrong]) == [False, True]
    assert large.as_json()["unigram cost taken off"]


def test_a_pair_that_stands_twice() -> None:
    assert repeats_a_pair("It is It is near".split())
    assert not repeats_a_pair("is it near it is".split())
    assert not repeats_a_pair(["a"])


def test_entropy_is_of_all_words() -> None:
    assert entropy(["a b".split(), "c d".split()]) == pytest.approx(math.log(4))
    assert entropy(["a a".split()]) == 0
    assert entropy([[]]) is None


def test_ten_of_ten_are_not_certain() -> None:
    assert share([1.0] * 10, [1.0] * 10) == Estimate(1.0, pytest.approx(0.7225, abs=1e-4), 1.0)
    assert share([0.0] * 10, [1.0] * 10) == Estimate(0.0, 0.0, pytest.approx(0.2775, abs=1e-4))
    assert share([1.0] * 8 + [0.0] * 2, [1.0] * 10) == Estimate(
        0.8, pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4)
    )
    assert share([], []) is None


def test_samples_of_one_target_that_agree_count_once() -> None:
    once, five = share([1.0, 0.0, 1.0, 1.0], [1.0] * 4), share([5.0, 0.0, 5.0, 5.0], [5.0] * 4)
    assert five == once
    mixed = share([3.0, 2.0, 4.0, 3.0], [5.0] * 4)
    assert mixed is not None
    assert once is not None
    assert mixed.high - mixed.low < once.high - once.low


def test_wilsons_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    for p in (0.5, 0.9, 0.98):
        drawn = [share((rng.random(40) < p).astype(float).tolist(), [1.0] * 40) for _ in range(400)]
        covered = np.mean([found is not None and found.low <= p <= found.high for found in drawn])
        assert covered > 0.91


@pytest.mark.slow
def test_slips_and_the_frontier_of_an_evaluation(generator: Generator, toy_data: Path, tmp_path: Path) -> None:
    plan = Plan(
        suites=("length",), data=(str(toy_data),), training_data=str(toy_data), limit=5, settings=Settings(steps=4),
        frontier=(0.5, 3.0), report=tmp_path,
    )  # fmt: skip
    results = Evaluation(plan, generator).run()
    human, ours = results.row("length", "human"), results.row("length", "ctrlgen")
    assert human is not None
    assert ours is not None
    assert human.slips is not None
    assert ours.slips is not None
    assert human.slips.high < 1
    assert ours.slips.high - ours.slips.low > 0
    assert results.configuration["slips"]["human texts"] == len(read_examples(generator, plan.data))
    assert results.row("length", "ctrlgen", "temperature=0.5") is None  # the frontier is of unguided texts
    points = frontier(results, "5-gram")
    assert {of.name for of in points} == {"ctrlgen", "temperature=0.5", "temperature=3", "human"}
    assert [of.cost for of in points[:-1]] == sorted(of.cost for of in points[:-1])
    assert points[-1].name == "human"
    table = frontier_table(results)
    assert table is not None
    assert len(table.lines) == 4
    assert "temperature=0.5" in figures(results)
    assert "; human " in figures(results)
    assert "Fluency against variety" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_frontier_needs_held_out_texts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs --data"):
        Plan(targets=tmp_path / "targets.jsonl", frontier=(1.0,))
    with pytest.raises(UsageError, match="temperature"):
        Plan(data=("x",), frontier=(0.0,))
