"""What oracles know of words: the model's vectors, new words, and folders from before there was a choice."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from make_toy_model import TOY_TRAINING
from toy_grammar import toy_sentences

from ctrlgen.checkpoint import DiffusionLM, from_pretrained, read_weights, save_pretrained
from ctrlgen.diffusion.denoiser import Denoiser, DenoiserConfig
from ctrlgen.errors import CtrlgenError
from ctrlgen.training.heads import Example
from ctrlgen.training.trained import ORACLE
from ctrlgen_classifiers.label import Label
from ctrlgen_classifiers.label_networks import CleanClassifier, train_oracle
from ctrlgen_classifiers.labelled import halves, make_examples
from ctrlgen_classifiers.tree import Tree
from ctrlgen_classifiers.word_vectors import (
    AveragedVectors,
    ModelVectors,
    OwnVectors,
    ids_with_new,
    known_ids,
    source_for,
)

BRIEF = dataclasses.replace(TOY_TRAINING, steps=2, validate_every=2, matrix_lr=0.0)
DIM = 6


@pytest.fixture
def opened(toy_model: Path, tmp_path: Path) -> DiffusionLM:
    """An untrained model with a tied output and the toy model's words, on disk."""
    toy = from_pretrained(str(toy_model))
    words = len(toy.tokenizer)
    config = DenoiserConfig(
        vocab_size=words, embedding_dim=8, width=16, layers=2, heads=2, max_length=12, output="tied", output_dim=5,
        pieces=99,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = Denoiser(config)
    denoiser.words.learn_spelling(toy.tokenizer.words, torch.arange(words, 0, -1))
    save_pretrained(dataclasses.replace(toy, denoiser=denoiser), tmp_path / "opened")
    return from_pretrained(str(tmp_path / "opened"))


def rows(count: int) -> list[dict[str, str]]:
    sentences = [" ".join(words) for words, _ in toy_sentences(count)]
    return [{"text": text, "animal": "cat" if "cat" in text else "none"} for text in sentences]


def teach(model: DiffusionLM, directory: Path) -> None:
    data = Dataset.from_list(rows(80))
    for _ in Label.train(model, "animal", data, "text", "animal", BRIEF, directory / "classifiers" / "animal"):
        pass


def test_a_projection_is_all_that_an_oracle_learns_of_words(opened: DiffusionLM) -> None:
    oracle = CleanClassifier([2], ModelVectors(opened, DIM), DIM, 4)
    learned = {name: parameter.shape for name, parameter in oracle.named_parameters() if "embedding" in name}
    assert learned == {"embedding.projection.weight": (DIM, 8 + 5), "embedding.projection.bias": (DIM,)}
    ids = torch.tensor([[3, 4, 5]])
    of_words = opened.denoiser.vocabulary()
    both = torch.cat([of_words.embedding, of_words.output], -1)[ids]
    torch.testing.assert_close(oracle.vectors(ids), oracle.embedding.projection(both))


def test_the_mean_over_certain_words_is_their_vector(opened: DiffusionLM) -> None:
    vectors, averaged = ModelVectors(opened, DIM), AveragedVectors(opened, DIM)
    averaged.load_state_dict(vectors.state_dict())
    ids = torch.tensor([[3, 9], [4, 3]])
    certain = torch.nn.functional.one_hot(ids, len(opened.tokenizer)).float()
    torch.testing.assert_close(averaged(certain), vectors(ids))


def test_new_words_have_ids_of_their_own(opened: DiffusionLM) -> None:
    size, unknown = len(opened.tokenizer), opened.tokenizer.unk_id
    texts = [["the", "zebra", "sees", "a", "quagga"], ["a", "zebra", "<unk>"]]
    ids, new = ids_with_new(texts, opened.tokenizer)
    assert new == ["zebra", "quagga"]
    assert [ids[0][1], ids[0][4], ids[1][1], ids[1][2]] == [size, size + 1, size, unknown]
    assert [known_ids(of_text, opened.tokenizer) for of_text in ids] == [opened.tokenizer.ids(text) for text in texts]


def test_a_new_word_is_read_by_its_spelling(opened: DiffusionLM) -> None:
    """As the denoiser itself reads it; a matrix of its own knows no such word."""
    torch.manual_seed(0)
    oracle = CleanClassifier([2], ModelVectors(opened, DIM), DIM, 4).eval()
    texts = [["the", "zebra", "sees"], ["the", "quagga", "sees"], ["the", "cat", "sees"]]
    reading, ids = oracle.reading(texts, opened.tokenizer)
    zebra, quagga, cat = (reading(torch.tensor([of_text]))[0] for of_text in ids)
    assert not torch.allclose(zebra, quagga)
    wider = opened.with_words({"quagga": None}).denoiser.vocabulary()
    of_quagga = torch.cat([wider.embedding[-1], wider.output[-1]])
    torch.testing.assert_close(reading.vectors(torch.tensor([ids[1]]))[0, 1], oracle.embedding.projection(of_quagga))
    assert torch.equal(cat, oracle(torch.tensor([opened.tokenizer.ids(texts[2])]))[0])  # whatever stands beside it
    own = CleanClassifier([2], OwnVectors(len(opened.tokenizer), DIM), DIM, 4).eval()
    reading, ids = own.reading(texts, opened.tokenizer)
    assert ids[0] == ids[1]
    assert reading is own


def test_an_oracle_learns_from_new_words(opened: DiffusionLM) -> None:
    """Texts that differ in nothing else."""
    sentences = [" ".join(words) for words, _ in toy_sentences(60) if "cat" in words]
    texts = [sentence.replace("cat", animal) for sentence in sentences for animal in ("zebra", "quagga")]
    labelled = [{"animal": "zebra" if "zebra" in text else "quagga"} for text in texts]
    examples, new = make_examples(opened, texts, labelled, {"animal": ["quagga", "zebra"]}, False)
    assert sorted(new) == ["quagga", "zebra"]
    torch.manual_seed(0)
    oracle = CleanClassifier([2], ModelVectors(opened, 16), 16, 16)
    list(train_oracle(oracle.with_words(new), examples, [{}], 0))
    reading, ids = oracle.reading([["the", "small", "zebra", "."], ["the", "small", "quagga", "."]], opened.tokenizer)
    assert [int(reading(torch.tensor([of_text]))[0].argmax()) for of_text in ids] == [1, 0]


def test_halves_share_no_text_as_the_guide_reads_it(opened: DiffusionLM) -> None:
    """New words are unknown to it."""
    size = len(opened.tokenizer)
    examples = [Example([3 + i % 45 // 9, 4 + i % 9, size + i % 7], (i % 2,)) for i in range(400)]
    for_guide, for_oracle = halves(examples, 0, opened.tokenizer)
    assert len(for_guide) + len(for_oracle) == 400
    assert {tuple(e.tokens[:2]) for e in for_guide} & {tuple(e.tokens[:2]) for e in for_oracle} == set()


def test_a_trained_classifier_says_what_it_reads_and_loads_the_same(opened: DiffusionLM, tmp_path: Path) -> None:
    assert opened.directory is not None
    teach(opened, opened.directory)
    folder = opened.directory / "classifiers" / "animal"
    assert json.loads((folder / "config.json").read_text())["oracle"]["words"] == "model"
    weights = read_weights(folder / ORACLE)
    assert all(len(opened.tokenizer) not in tensor.shape for tensor in weights.values())
    loaded, again = (Label.load(from_pretrained(str(opened.directory)), "animal") for _ in range(2))
    texts = [row["text"].split() for row in rows(20)] + [["the", "zebra", "sees", "a", "cat", "."]]
    reading, ids = loaded.judge.reading(texts, opened.tokenizer)
    other, _ = again.judge.reading(texts, opened.tokenizer)
    for of_text in ids:
        assert torch.equal(reading(torch.tensor([of_text]))[0], other(torch.tensor([of_text]))[0])
    target = loaded.parse("cat")
    assert loaded.check(texts, [target] * len(texts)) == again.check(texts, [target] * len(texts))


def test_an_oracle_is_kept_with_the_model_whose_vectors_it_reads(opened: DiffusionLM, tmp_path: Path) -> None:
    """Of another denoiser's it would read nonsense."""
    assert opened.directory is not None
    teach(opened, opened.directory)
    start = opened.directory / "classifiers" / "animal"
    again = dataclasses.replace(BRIEF, init=str(start))
    data = Dataset.from_list(rows(80))
    list(Label.train(opened, "animal", data, "text", "animal", again, tmp_path / "same"))
    assert (tmp_path / "same" / ORACLE).read_bytes() == (start / ORACLE).read_bytes()
    with torch.no_grad():
        opened.denoiser.words.own.mul_(-1.0)
    save_pretrained(opened, tmp_path / "changed")
    changed = from_pretrained(str(tmp_path / "changed"))
    list(Label.train(changed, "animal", data, "text", "animal", again, tmp_path / "other"))
    assert (tmp_path / "other" / ORACLE).read_bytes() != (start / ORACLE).read_bytes()


def test_a_folder_that_says_nothing_has_a_matrix_of_its_own(opened: DiffusionLM) -> None:
    """As every folder before there was a choice."""
    config = {"values": {"animal": ["cat", "none"]}, "oracle": {"size": {"dim": 4, "width": 4}}}
    oracle = Label.make_oracle(opened, config)
    assert set(oracle.state_dict()) == {
        "embedding.weight", "filters.weight", "filters.bias", "output.weight", "output.bias",
    }  # fmt: skip
    config = {"chains": ["NP", "S"], "head": {"width": 8, "layers": 1}, "oracle": {"size": {"dim": 4, "width": 4}}}
    assert Tree.make_head(opened, config).state_dict()["words.weight"].shape == (8, len(opened.tokenizer))
    assert Tree.make_oracle(opened, config).embedding.weight.shape == (len(opened.tokenizer), 4)


def test_a_model_without_such_vectors_is_told(toy_model: Path, opened: DiffusionLM) -> None:
    toy = from_pretrained(str(toy_model))
    assert (source_for(toy), source_for(opened)) == ("own", "model")
    with pytest.raises(ValueError, match="tied"):
        ModelVectors(toy, DIM)
    assert opened.directory is not None
    teach(opened, opened.directory)
    path = opened.directory / "classifiers" / "animal" / "config.json"
    config = json.loads(path.read_text())
    config["oracle"]["words"] = "dictionary"
    path.write_text(json.dumps(config))
    with pytest.raises(CtrlgenError, match="not the settings of a label classifier"):
        Label.load(opened, "animal")


def test_what_reads_the_vectors_of_a_tied_output_is_no_start_for_another(
    toy_model: Path, opened: DiffusionLM, tmp_path: Path
) -> None:
    assert opened.directory is not None
    teach(opened, opened.directory)
    again = dataclasses.replace(BRIEF, init=str(opened.directory / "classifiers" / "animal"))
    toy = from_pretrained(str(toy_model))
    with pytest.raises(CtrlgenError, match=r"tied output has vectors of words; train without --init"):
        list(Label.train(toy, "animal", Dataset.from_list(rows(80)), "text", "animal", again, tmp_path / "again"))
