"""Meaning: networks, training on texts in groups, guidance, the oracle, and search by codes."""

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from command_line import Outcome, Run
from toy_grammar import toy_sentences

from ctrlgen.checkpoint import from_pretrained
from ctrlgen.controls.registry import Controls
from ctrlgen.controls.similar import nearest
from ctrlgen.data.texts import load_data
from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.generation.generator import Generator
from ctrlgen.settings import Settings
from ctrlgen.testing import check_classifier
from ctrlgen.text.alignment import changes
from ctrlgen.training.fit import TrainingConfig
from ctrlgen.training.heads import Example
from ctrlgen.training.trained import TrainingData
from ctrlgen_classifiers import means, means_networks, sentence_encoder
from ctrlgen_classifiers.means import Means
from ctrlgen_classifiers.means_networks import NOTHING, Meaning, MeansHead, Summary, most_alike, rows_of

TRAINING = TrainingConfig(
    steps=120, tokens_per_batch=512, warmup_steps=10, lr=0.005, ema=0.95, precision="float32", validate_every=120,
    checkpoint_every=1000, matrix_lr=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def taught(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    """The toy model with a `means` of its own."""
    directory = Path(shutil.copytree(toy_model, tmp_path_factory.mktemp("means") / "toy"))
    path = directory.parent / "toy.jsonl"
    path.write_text("".join(json.dumps({"text": " ".join(words)}) + "\n" for words, _ in toy_sentences(600)))
    model = from_pretrained(str(directory))
    rows, column = load_data(str(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(means, "HEAD_SIZE", {"width": 32, "size": 16})
        for _ in Means.train(model, "means", rows, column, None, TRAINING, directory / "classifiers" / "means"):
            pass
    return Generator(str(directory))


def the(generator: Generator) -> Any:
    return generator.controls.classifier("means")


# Networks


def test_a_summary_reads_nothing_beyond_a_texts_end() -> None:
    torch.manual_seed(0)
    summary, x = Summary(8), torch.randn(1, 5, 8)
    longer = torch.cat([x, torch.randn(1, 3, 8)], 1)
    mask = torch.arange(8)[None] < 5
    torch.testing.assert_close(summary(longer, mask), summary(x, mask[:, :5]))


def test_words_that_are_certain_are_read_as_clean_ones_and_unlikely_ones_still_pull(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    head = MeansHead(torch.randn(20, 5), 6, 1, 8, width=8, size=4)
    words = torch.tensor([[3, 7, 2]])
    certain = torch.full((1, 3, 20), -200.0).scatter(2, words[..., None], 0.0)

    def reading(logits: torch.Tensor) -> torch.Tensor:
        denoised = Denoised(torch.zeros(1, 3, 4), torch.zeros(1), logits, torch.zeros(1, 3, 4), (torch.zeros(1, 3, 8),))
        return F.normalize(head.reading(denoised), dim=-1)

    torch.testing.assert_close(reading(certain), head.code(words), rtol=1e-4, atol=1e-4)
    doubted = certain.clone()
    doubted[0, 1, 5] = math.log(0.01)  # and a word that says much of every feature
    with torch.no_grad():
        head.vectors[5] = torch.linalg.lstsq(head.from_words.weight, 3 - head.from_words.bias).solution
    with torch.no_grad():
        assert float((reading(doubted) * head.code(words)).sum()) < 0.99
        monkeypatch.setattr(means_networks, "RARE_WORDS", 1e-3)  # about the mean
        assert float((reading(doubted) * head.code(words)).sum()) > 0.99


def test_a_text_is_told_from_others_but_not_from_its_own_group() -> None:
    torch.manual_seed(0)
    head = MeansHead(torch.randn(20, 5), 6, 1, 8, width=8, size=4)
    targets = [Meaning((1, 2, 3), 0, ((9, 8),)), Meaning((4, 5), 1, ((7,),)), Meaning((6,), 0, ((5, 5, 5),))]
    meanings = head.encode(targets, [3, 3, 3])
    assert meanings.words.tolist() == [[1, 2, 3], [4, 5, NOTHING], [6, NOTHING, NOTHING]]
    said = torch.randn(3, 4)
    logits = head.among(said, meanings)
    texts, others = head.code(meanings.words), head.code(rows_of([(9, 8), (7,), (5, 5, 5)]))
    expected = torch.cat([said @ texts.T, (said * others).sum(-1, keepdim=True)], -1)
    expected[0, 2] = expected[2, 0] = -torch.inf
    torch.testing.assert_close(logits, expected)


def test_the_bank_is_of_different_groups_and_texts_speak_against_one_as_much_as_they_differ() -> None:
    torch.manual_seed(0)
    head = MeansHead(torch.randn(40, 5), 6, 1, 8, width=8, size=4)
    head.count([Example([1], Meaning((word, word + 1), word % 5)) for word in range(1, 30)])
    assert head.bank_codes.shape == (5, 4)
    codes = head.code(rows_of([(3, 9), (5, 4, 2), (3, 9), (7, 7), (1, 2), (1, 2)])).unflatten(0, (2, 3))
    directions, bank = head.directions(codes), head.directions(head.bank_codes)
    torch.testing.assert_close(bank.norm(dim=-1), torch.ones(5))
    said = torch.randn(2, 4)
    denoised: Any = None
    head.reading = lambda _: said  # type: ignore[method-assign]
    log_p = head.log_prob(denoised, codes)
    for row in range(2):
        own = (10.0 * said[row] @ codes[row, 0]).exp()
        others = torch.cat([head.bank_codes, codes[row, 1:]])
        unlike = 1 - torch.cat([bank, directions[row, 1:]]) @ directions[row, 0]
        share = own / (own + ((10.0 * others @ said[row]).exp() * unlike.clamp(0, 1)).sum())
        torch.testing.assert_close(log_p[row], share.log(), rtol=1e-3, atol=1e-3)


def test_the_texts_of_the_bank_with_the_most_of_ones_words() -> None:
    head = MeansHead(torch.randn(40, 5), 6, 1, 8, width=8, size=4)
    rows = [[1, 2, 3], [1, 2, 3, 4, 5], [7, 8], [1, 9]]
    head.bank[:4, :5] = torch.tensor([[*row, *[NOTHING] * (5 - len(row))] for row in rows])
    assert head.nearest_in_bank([3, 2, 1, 6], 3) == [[1, 2, 3], [1, 2, 3, 4, 5], [1, 9]]
    assert len(head.nearest_in_bank([1], 9)) == 4


def test_texts_with_much_the_same_words_in_other_groups() -> None:
    texts = [[1, 2, 3], [1, 2, 4], [1, 2, 3, 9], [7, 8], [7, 8, 5]]
    found = most_alike(texts, [0, 0, 1, 2, 3], seed=0, count=1)
    assert found == [[2], [2], [0], [4], [3]]


# Training


def test_texts_of_one_group_are_each_others_targets(toy_model: Path, tmp_path: Path) -> None:
    model = from_pretrained(str(toy_model))
    file = tmp_path / "pairs.jsonl"
    rows = [("the cat sees a dog .", "a"), ("a dog sees the cat .", "a"), ("the old house .", "b"), ("a river .", None)]
    file.write_text("".join(json.dumps({"text": text, "meaning": label}) + "\n" for text, label in rows))
    data, column = load_data(str(file))
    lessons = Means.examples(model, TrainingData(data, column, "meaning", "means", 0))
    ids = [tuple(model.tokenizer.encode(text)) for text, _ in rows]
    assert [e.target.words for e in lessons.guide] == [ids[1], ids[0], ids[2], ids[3]]
    assert [e.target.group for e in lessons.guide] == [0, 0, 1, 2]
    for e in lessons.guide:
        whole, nearer = e.target.others[: -len(e.target.others) // 2], e.target.others[len(e.target.others) // 2 :]
        assert len(whole) == len(nearer)
        assert set(whole) <= set(ids) - {tuple(e.tokens)}
        assert e.target.words not in nearer
    with pytest.raises(UsageError, match="no column"):
        Means.examples(model, TrainingData(data, column, "mening", "means", 0))
    with pytest.raises(CtrlgenError, match="holds no text that fits"):
        Means.examples(model, TrainingData(data.map(lambda row: {"text": ""}), column, None, "means", 0))


def test_it_keeps_the_contract(taught: Generator) -> None:
    check_classifier(Means, taught.model, values=["the cat sees a dog .", "a Zorblax ."])


def test_what_it_learned(taught: Generator) -> None:
    """A clean text is held to say what it says, not what another of its length does."""
    texts = [words for words, _ in toy_sentences(200, seed=5) if len(words) == 7][:20]
    clean = taught.reader.clean(torch.tensor([taught.model.tokenizer.ids(words) for words in texts]), None)
    own = the(taught).log_prob(clean, the(taught).encode(texts, [7] * 20))
    others = the(taught).log_prob(clean, the(taught).encode(texts[1:] + texts[:1], [7] * 20))
    assert int((own > others).sum()) >= 18


def test_texts_are_drawn_to_what_another_says(taught: Generator) -> None:
    texts = [" ".join(words) for words, _ in toy_sentences(40, seed=5)][:8]
    codes = the(taught).codes([text.split() for text in texts])
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(8))

    def nearness(settings: Settings) -> float:
        requests = [taught.request([f"means: {text}"], seed=seed) for seed, text in enumerate(texts)]
        found = the(taught).codes([sample.tokens for sample in taught.generate(requests, settings)])
        return float((found * codes).sum(-1).mean())

    quick = Settings(steps=8)
    unguided = Settings(steps=8, guidance=type(quick.guidance)(strength=0.0))
    assert nearness(quick) > nearness(unguided) + 0.2


@pytest.mark.parametrize(("value", "said"), [("", "no text is given"), ("the " * 13, "has 13 words")])
def test_what_is_no_text(taught: Generator, value: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        the(taught).parse(value)


def test_a_text_is_told_from_ones_that_differ_in_one_place(taught: Generator) -> None:
    own = ("the", "cat", "sees", "a", "dog", ".")
    neighbours = the(taught).neighbours(own)
    assert neighbours
    assert own not in neighbours
    assert all(len(changes(own, other)) <= 2 for other in neighbours)
    codes = the(taught).encode([own, own[:1]], [6, 6])
    torch.testing.assert_close(codes[0, 0], the(taught).coded([own])[0])
    torch.testing.assert_close(codes[0, 1], the(taught).coded([neighbours[0]])[0])


# The oracle


def test_the_oracle_is_asked_only_where_it_is_installed(taught: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(means, "is_installed", lambda: False)
    (verdict,) = the(taught).check([["a", "cat"]], [("a", "dog")])
    assert verdict.success is None
    assert 'pip install -c constraints.txt ".[eval]"' in str(verdict.detail)
    monkeypatch.setattr(means, "is_installed", lambda: True)
    monkeypatch.setattr(means, "similarities", lambda texts, others: [0.7, 0.6])
    first, second = the(taught).check([["a"], ["b"]], [("c",), ("d",)])
    assert (first.success, second.success, second.detail) == (True, False, "similarity 0.60")


@pytest.mark.skipif(not sentence_encoder.is_installed(), reason="needs the extra eval")
def test_the_sentence_encoder_tells_texts_apart() -> None:
    texts = ["A man plays the guitar.", "Somebody is making music.", "The stock market fell."]
    same, other = sentence_encoder.similarities([texts[0]] * 2, texts[1:])
    assert same > other + 0.2
    alone = sentence_encoder.sentence_codes(texts[:1])
    torch.testing.assert_close(alone, sentence_encoder.sentence_codes(texts)[:1], rtol=1e-4, atol=1e-5)


# Search


def test_search_is_exact_whatever_is_coded_together(taught: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [words for words, _ in toy_sentences(50, seed=3)]
    codes = the(taught).codes(texts)
    whole = nearest(the(taught), texts[:3], texts, 5)
    expected = (codes[:3] @ codes.T).topk(5).values
    torch.testing.assert_close(torch.tensor([[one.similarity for one in row] for row in whole]), expected)
    assert all(row[0].place == texts.index(texts[number]) for number, row in enumerate(whole))
    monkeypatch.setattr("ctrlgen.controls.similar.AT_A_TIME", 7)
    parts = nearest(the(taught), texts[:3], texts, 5)
    assert [[one.place for one in row] for row in parts] == [[one.place for one in row] for row in whole]


def test_similar(taught: Generator, toy_model: Path, tmp_path: Path, ctrlgen: Run) -> None:
    file = tmp_path / "texts.txt"
    texts = [" ".join(words) for words, _ in toy_sentences(20, seed=3)]
    file.write_text("\n".join(texts))

    def similar(model: object, *arguments: str) -> Outcome:
        return ctrlgen("similar", *arguments, "--data", file, "-m", model)

    found = similar(taught.model.directory, texts[4], "-n", "3", "--json")
    lines = found.answers
    assert found.code == 0
    assert [line["rank"] for line in lines] == [1, 2, 3]
    assert lines[0]["text"] == texts[4]
    assert all(a["similarity"] >= b["similarity"] for a, b in itertools.pairwise(lines))
    assert similar(taught.model.directory, texts[4], "-n", "1").out == f"1.000  {texts[4]}\n"
    for model, arguments, said in (
        (toy_model, [texts[0]], f"run `ctrlgen train-classifier means --model {toy_model} --data TEXTS` first"),
        ("e2e", [texts[0]], "run `ctrlgen train-classifier means --model e2e --data TEXTS` first"),
        (taught.model.directory, [" "], "there is no text to compare with"),
        (taught.model.directory, ["a", "--by", "pos"], "pos: has no codes"),
    ):
        refused = similar(model, *arguments)
        assert (refused.code, refused.out, len(refused.err.splitlines())) == (2, "", 1)
        assert said in refused.err
    assert Controls(taught.model).names()["means"] == "means"
