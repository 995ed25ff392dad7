"""Labels and fields: reading them, the head's probabilities, what is learned, the oracle, and what users may write."""

import dataclasses
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import datasets
import pytest
import torch
from command_line import Outcome, Run
from damage import assert_damage_is_one_clear_error
from datasets import ClassLabel, Dataset, Features, Value
from make_toy_model import TOY_TRAINING
from torch import Tensor
from toy_grammar import toy_meaning, toy_sentences

from ctrlgen.checkpoint import DiffusionLM, from_pretrained, read_weights
from ctrlgen.controls.language import parse_statement, write_statement
from ctrlgen.data.labels import label_key, read_labels
from ctrlgen.data.texts import with_class_names
from ctrlgen.diffusion.denoiser import Denoiser
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.jobs import Draws
from ctrlgen.settings import Guidance, Settings
from ctrlgen.training.fit import Progress, TrainingConfig
from ctrlgen.training.heads import Example, load_head
from ctrlgen.training.trained import ORACLE
from ctrlgen_classifiers import label
from ctrlgen_classifiers.field import Field, is_literal, read_meaning
from ctrlgen_classifiers.label import Label
from ctrlgen_classifiers.label_networks import CleanClassifier, Frequencies, LabelHead, likeliest, train_oracle
from ctrlgen_classifiers.labelled import (
    ABSENT,
    OPEN,
    Ids,
    counterfactual,
    forget_contradicted,
    halves,
    learnable_values,
    literal_phrases,
    make_examples,
)
from ctrlgen_classifiers.word_vectors import OwnVectors

MakeModel = Callable[..., Denoiser]
SIZES = [2, 3, 4]
ABSENT_ID = 0
TEACHING = dataclasses.replace(TOY_TRAINING, steps=250, validate_every=250, matrix_lr=0.0)
BRIEF = dataclasses.replace(TEACHING, steps=2, validate_every=2)
UNGUIDED = Settings(guidance=Guidance(strength=0.0))


def write_meaning(meaning: dict[str, str]) -> str:
    return ", ".join(f"{field}[{value}]" for field, value in meaning.items())


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Toy texts with their meaning, and with their verb as a label, some spelled otherwise and some missing."""
    result: list[dict[str, Any]] = []
    for number, (words, _) in enumerate(toy_sentences(count, seed)):
        meaning = toy_meaning(words)
        verb = meaning["action"].upper() if number % 10 == 0 else meaning["action"]
        result.append({"text": " ".join(words), "meaning": write_meaning(meaning), "verb": verb})
    for number in range(0, count, 40):
        result[number]["verb"] = None
    return result


# Reading labels


def test_a_column_as_text() -> None:
    features = Features({"stars": Value("float64"), "mood": ClassLabel(names=["bad", "good"]), "tag": Value("string")})
    columns = {"stars": [1.0, None, 2.5], "mood": [0, 1, -1], "tag": ["  a ", None, ""]}
    data = with_class_names(Dataset.from_dict(columns, features=features))
    assert read_labels(data, "stars") == ["1", "", "2.5"]
    assert read_labels(data, "mood") == ["bad", "good", ""]
    assert read_labels(data, "tag") == ["a", "", ""]
    others = Dataset.from_dict({"yes": [True, False], "list": [["a"], ["b"]], "number": [3, 4]})
    assert read_labels(others, "yes") == ["True", "False"]
    assert read_labels(others, "number") == ["3", "4"]
    with pytest.raises(UsageError, match="column 'list' holds values of type list"):
        read_labels(others, "list")


def test_values_are_joined_whatever_their_case_and_need_to_be_seen_often() -> None:
    given = [{"mood": "Good"}] * 4 + [{"mood": "good"}] * 2 + [{"mood": "bad"}] * 5 + [{"mood": "ugly"}] * 4
    assert learnable_values(given, False) == {"mood": ["Good", "bad"]}
    assert learnable_values(given[:9], False) == {}


def test_a_field_has_its_absence_as_a_value() -> None:
    given = [{"food": "Thai", "kind": "pub"}] * 5 + [{"kind": "pub"}] * 5
    assert learnable_values(given, True) == {"food": [ABSENT, "Thai"]}  # `kind` tells nothing apart
    assert learnable_values(given, False) == {}


def test_meaning_is_read_by_field() -> None:
    text = "name[The Vaults], eatType[pub],priceRange[more than £ 30] , near[Café, by: the sea]"
    assert read_meaning(text) == {
        "name": "The Vaults", "eatType": "pub", "priceRange": "more than £ 30", "near": "Café, by: the sea",
    }  # fmt: skip
    data = Dataset.from_list([{"text": "t", "mr": text, "stars": 3, "note": "see [1] there"}, {"text": "t", "mr": ""}])
    first, second = Field.read_rows("field", data, "text", None)
    assert first == {**read_meaning(text), "stars": "3", "note": "see [1] there"}
    assert second == {}
    assert Field.read_rows("field", data, "text", "stars, note")[0] == {"stars": "3", "note": "see [1] there"}
    with pytest.raises(UsageError, match=r"no column 'star'; columns: .* Did you mean stars\?"):
        Field.read_rows("field", data, "text", "note,star")


@pytest.fixture
def toy(toy_model: Path) -> DiffusionLM:
    return from_pretrained(str(toy_model))


def test_examples_have_an_id_for_each_field(toy: DiffusionLM) -> None:
    values = {"food": [ABSENT, "Thai"], "mood": [ABSENT, "bad", "good"]}
    given = [{"food": "thai"}, {"food": "rare", "mood": "Good"}, {}, {"food": "Thai"}, {"food": "Thai"}]
    texts = ["the cat", "a dog", "the", "", "the " * 13]  # the last two are empty and too long
    targets = [e.target for e in make_examples(toy, texts, given, values, True)[0]]
    assert targets == [(1, 0), (OPEN, 2), (0, 0)]
    assert [e.target for e in make_examples(toy, texts, given, values, False)[0]] == [(1, OPEN), (OPEN, 2)]


def tied_examples(tokenizer: Any) -> list[Example[Ids]]:
    """Texts whose subject and object always go together, with both as fields: cat with house, dog with river."""
    texts = [f"the {adj} {a} {verb} a {b} ." for a, b in (("cat", "house"), ("dog", "river"))
             for adj in ("red", "old", "small") for verb in ("sees", "likes", "finds")]  # fmt: skip
    return [Example(tokenizer.encode(text), (int("dog" in text), int("river" in text))) for text in texts * 3]


TIED_VALUES = {"subject": ["cat", "dog"], "object": ["house", "river"]}


def test_values_that_texts_mention_by_name_are_found(toy: DiffusionLM) -> None:
    examples = tied_examples(toy.tokenizer)
    subject, object = literal_phrases(examples, TIED_VALUES, toy.tokenizer)
    assert subject == {0: tuple(toy.tokenizer.encode("cat")), 1: tuple(toy.tokenizer.encode("dog"))}
    assert set(object) == {0, 1}
    everywhere = {"subject": ["the", "dog"], "object": ["house", "red"]}
    assert [set(found) for found in literal_phrases(examples, everywhere, toy.tokenizer)] == [{1}, {0}]


def test_a_label_that_its_text_contradicts_is_forgotten(toy: DiffusionLM) -> None:
    """Cats are often left out of the labels. `red` means the colour asked for or, in any text, that of a house."""
    values = {"subject": [ABSENT, "cat", "dog"], "colour": [ABSENT, "red", "old"]}
    texts = {
        "the red cat sees a dog .": (1, 1),
        "the red cat finds a dog .": (ABSENT_ID, 1),
        "the old dog sees a house .": (2, 2),
        "the old dog finds a red house .": (2, 2),
        "a dog likes a cat .": (ABSENT_ID, ABSENT_ID),
        "a river likes the house .": (ABSENT_ID, ABSENT_ID),
        "a river likes the small house .": (ABSENT_ID, ABSENT_ID),
        "a river likes the red house .": (ABSENT_ID, ABSENT_ID),
    }
    examples = [Example(toy.tokenizer.encode(text), target) for text, target in texts.items()]
    targets = [e.target for e in forget_contradicted(examples, values, toy.tokenizer)]
    expected = list(texts.values())
    expected[1] = (OPEN, 1)
    expected[4] = (OPEN, ABSENT_ID)
    assert targets == expected


def test_a_text_without_a_label_that_is_left_is_no_example(toy: DiffusionLM) -> None:
    """A field alone, as `train-classifier field --label-column subject`."""
    texts = ("the cat sees a dog .", "the cat finds a house .", "the dog finds a house .", "a cat runs .")
    ids = (1, 1, 2, ABSENT_ID)
    examples = [Example(toy.tokenizer.encode(text), (id,)) for text, id in zip(texts, ids, strict=True)]
    left = forget_contradicted(examples, {"subject": [ABSENT, "cat", "dog"]}, toy.tokenizer)
    assert left == examples[:3]
    LabelHead([3], len(toy.tokenizer), 1, 4, 8).count(left)


def test_what_an_edit_may_put_in_is_words(toy: DiffusionLM) -> None:
    """Unknown words may speak for a value more than any other, as where it goes together with names."""
    sizes = {"head": {"width": 8}, "oracle": {"size": {"dim": 4, "width": 8}}}
    of_subjects = Label.untrained(toy, "subject", {"values": {"subject": ["cat", "dog"]}, **sizes})
    target, tokenizer = of_subjects.parse("cat"), toy.tokenizer
    for strength, word in enumerate(("house", "river", "cat"), 1):
        of_subjects.head.lexicon.data[tokenizer.ids([word])[0], target.value] = float(strength)
    of_subjects.head.lexicon.data[[tokenizer.pad_id, tokenizer.unk_id, tokenizer.end_id], target.value] = 9.0
    assert of_subjects.wordings(target) == [("cat",), ("river",)]


def test_a_counterfactual_has_other_values_and_their_labels(toy: DiffusionLM) -> None:
    examples = tied_examples(toy.tokenizer)
    phrases = literal_phrases(examples, TIED_VALUES, toy.tokenizer)
    seen = set()
    for seed in range(40):
        made = counterfactual(examples[0], phrases, Random(seed))
        words = toy.tokenizer.decode(made.tokens)
        assert made.target == (int("dog" in words), int("river" in words))
        assert [w for w in words if w not in ("cat", "dog", "house", "river")] == ["the", "red", "sees", "a", "."]
        seen.add(made.target)
    assert seen == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_the_oracle_reads_what_is_written_not_what_goes_together(toy: DiffusionLM) -> None:
    examples = tied_examples(toy.tokenizer)
    phrases = literal_phrases(examples, TIED_VALUES, toy.tokenizer)
    torch.manual_seed(0)
    oracle = CleanClassifier([2, 2], OwnVectors(len(toy.tokenizer), 8), 8, 16)
    list(train_oracle(oracle, examples, phrases, 0))
    untied = torch.tensor(
        [toy.tokenizer.encode("the old cat likes a river ."), toy.tokenizer.encode("the red dog sees a house .")]
    )
    assert likeliest(oracle(untied)).tolist() == [[0, 1], [1, 0]]


def test_guide_and_oracle_share_no_text(toy: DiffusionLM) -> None:
    examples = [Example([3 + i % 50 // 10, 3 + i % 10], (i % 2,)) for i in range(120)]
    for_guide, for_oracle = halves(examples, 0, toy.tokenizer)
    assert {tuple(e.tokens) for e in for_guide} & {tuple(e.tokens) for e in for_oracle} == set()
    assert len({tuple(e.tokens) for e in for_guide}) == len({tuple(e.tokens) for e in for_oracle}) == 25
    assert len(for_guide) + len(for_oracle) == 120
    with pytest.raises(CtrlgenError, match="only 39 usable texts: at least 40 are needed"):
        halves(examples[:39], 0, toy.tokenizer)


# The head


@pytest.fixture
def head() -> LabelHead:
    """A head with random weights everywhere, for a trunk of 2 layers of width 16 over 11 words."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = LabelHead(SIZES, vocab_size=11, trunk_layers=2, trunk_width=16, width=8).eval()
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return head.requires_grad_(False)


def draw(batch: int, length: int, seed: int = 2) -> Tensor:
    return torch.randn(batch, length, 4, generator=torch.Generator().manual_seed(seed))


def test_probabilities_sum_to_1_within_each_field(head: LabelHead, make_model: MakeModel) -> None:
    log_p = head(make_model(perturbed=True)(draw(5, 6), torch.linspace(-2, 2, 5)))
    assert [field.shape for field in log_p] == [(5, size) for size in SIZES]
    for field in log_p:
        torch.testing.assert_close(field.exp().sum(-1), torch.ones(5))
        assert field.std(0).min() > 0.01  # and texts differ


def test_fields_add_up_and_those_not_asked_for_count_nothing(head: LabelHead, make_model: MakeModel) -> None:
    denoised = make_model(perturbed=True)(draw(1, 6).expand(3, -1, -1), torch.zeros(3))
    encoded = torch.tensor([[1, OPEN, 3], [1, OPEN, OPEN], [OPEN, OPEN, 3]])
    joint, first, third = head.log_prob(denoised, encoded)
    torch.testing.assert_close(joint, first + third)
    torch.testing.assert_close(first, head(denoised)[0][0, 1])
    assert torch.equal(head.log_prob(denoised, torch.full((3, 3), OPEN)), torch.zeros(3))


def test_accuracy_counts_the_fields_asked_for(head: LabelHead, make_model: MakeModel) -> None:
    denoised = make_model(perturbed=True)(draw(1, 6), torch.zeros(1))
    best = torch.tensor([[int(field.argmax()) for field in head(denoised)]])
    assert head.accuracy(denoised, best).tolist() == [1.0]
    wrong = best.clone()
    wrong[0, 2] = (wrong[0, 2] + 1) % SIZES[2]
    assert head.accuracy(denoised, wrong).tolist() == pytest.approx([2 / 3])
    wrong[0, 0] = OPEN
    assert head.accuracy(denoised, wrong).tolist() == pytest.approx([1 / 2])


def test_padding_changes_nothing(head: LabelHead, make_model: MakeModel) -> None:
    model, x_t, log_snr = make_model(perturbed=True), draw(2, 7), torch.tensor([0.3, -1.0])
    together = head(model(x_t, log_snr, lengths=torch.tensor([4, 7])))
    for row, length in enumerate((4, 7)):
        alone = head(model(x_t[row : row + 1, :length], log_snr[row : row + 1]))
        for padded, own in zip(together, alone, strict=True):
            torch.testing.assert_close(padded[row], own[0], rtol=1e-4, atol=1e-5)


def test_the_gradient_is_that_of_finite_differences(head: LabelHead, make_model: MakeModel) -> None:
    head, model = head.double(), make_model(perturbed=True).double()
    lengths, encoded = torch.tensor([5, 3]), torch.tensor([[1, OPEN, 2], [0, 2, OPEN]])

    def log_prob(x: Tensor) -> Tensor:
        return head.log_prob(model(x, torch.zeros(2).double(), lengths=lengths), encoded).sum()

    x_t = draw(2, 5).double().requires_grad_(True)
    (gradient,) = torch.autograd.grad(log_prob(x_t), x_t)
    direction, step = draw(2, 5, seed=3).double(), 1e-6
    with torch.no_grad():
        difference = (log_prob(x_t + step * direction) - log_prob(x_t - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-5, atol=1e-8)
    assert gradient[0].abs().min() > 0
    assert torch.equal(gradient[1, 3:], torch.zeros(2, 4).double())  # beyond the row's end


def test_the_lexicon_counts_values_of_texts_with_a_word() -> None:
    examples = [Example([4, 5, 5], (0, 1)), Example([5], (0, OPEN)), Example([5, 6], (1, 0)), Example([6], (1, 0))]
    head = LabelHead([2, 2], vocab_size=8, trunk_layers=1, trunk_width=8, width=8)
    head.count(examples)
    frequency, ratio = head.frequency.exp(), head.lexicon.exp()
    torch.testing.assert_close(frequency, torch.tensor([3 / 6, 3 / 6, 3 / 5, 2 / 5]))  # counts and one
    torch.testing.assert_close(
        ratio[5], torch.tensor([(2 + 1) / 5, (1 + 1) / 5, (1 + 1.2) / 4, (1 + 0.8) / 4]) / frequency
    )
    torch.testing.assert_close(ratio[7], torch.ones(4))  # a word never seen says nothing


def test_a_head_starts_from_the_strongest_words(make_model: MakeModel) -> None:
    head = LabelHead([3], vocab_size=11, trunk_layers=2, trunk_width=16, width=8)
    head.lexicon.data.normal_(generator=torch.Generator().manual_seed(0))
    head.frequency.data.copy_(torch.tensor([0.2, 0.3, 0.5]).log())
    denoised = make_model(perturbed=True)(draw(1, 6), torch.zeros(1))
    says = (denoised.probs[0] @ head.lexicon.exp()).log()  # (n, values)
    expected = head.frequency + says.max(0).values + says.min(0).values
    with torch.no_grad():
        torch.testing.assert_close(head(denoised)[0][0], expected.log_softmax(-1))
        head.lexicon.zero_()
        torch.testing.assert_close(head(denoised)[0][0].exp(), torch.tensor([0.2, 0.3, 0.5]))


def test_how_often_the_commonest_value_is_right() -> None:
    examples = [Example([1, 2], (i % 2, 0)) for i in range(6)] + [Example([1, 2], (1, OPEN))]
    assert Frequencies.of(examples, [2, 2]).accuracies() == pytest.approx([4 / 7, 1.0])


def test_what_guessing_costs_is_the_entropy() -> None:
    """5 words a text, 1,000 of either value: log 2 / 5 nats a word."""
    examples = [Example([0] * 5, (i % 2,)) for i in range(2000)]
    assert Frequencies.of(examples, [2]).loss(examples) == pytest.approx(math.log(2) / 5, rel=1e-5)


def test_a_bundled_classifier_is_small() -> None:
    """As trained on E2E: 817 words, 8 fields of 87 values; float16."""
    sizes = [35, 4, 7, 7, 20, 8, 3, 3]
    head = LabelHead(sizes, vocab_size=820, trunk_layers=6, trunk_width=256, **label.HEAD_SIZE)
    oracle = CleanClassifier(sizes, OwnVectors(820, label.ORACLE_SIZE["dim"]), **label.ORACLE_SIZE)
    for network in (head, oracle):
        assert 2 * sum(parameter.numel() for parameter in network.parameters()) < 1_000_000


# Trained on the toy sentences


def teach(
    kind: type[Label],
    model: DiffusionLM,
    name: str,
    data: Sequence[dict[str, Any]],
    column: str | None,
    config: TrainingConfig,
    directory: Path,
) -> list[Progress]:
    return list(kind.train(model, name, Dataset.from_list(list(data)), "text", column, config, directory))


@pytest.fixture(scope="module", autouse=True)
def small_networks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label, "HEAD_SIZE", {"width": 32})
        patch.setattr(label, "ORACLE_SIZE", {"dim": 16, "width": 32})
        yield


@pytest.fixture(scope="module")
def taught(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model with a label `verb` and a field classifier of its sentences' meaning. Not to be changed."""
    directory = Path(shutil.copytree(toy_model, tmp_path_factory.mktemp("taught") / "toy"))
    model, data = from_pretrained(str(directory)), rows(800)
    teach(Label, model, "verb", data, "verb", TEACHING, directory / "classifiers" / "verb")
    teach(Field, model, "meaning", data, "meaning", TEACHING, directory / "classifiers" / "meaning")
    return directory


@pytest.fixture(scope="module")
def generator(taught: Path) -> Generator:
    return Generator(str(taught))


def described(taught: Path, name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((taught / "classifiers" / name / "config.json").read_text())
    return config


def test_guide_and_oracle_learn(taught: Path) -> None:
    verb, meaning = described(taught, "verb"), described(taught, "meaning")
    assert verb["values"] == {"verb": ["finds", "likes", "sees"]}
    assert meaning["values"] == {
        "subject": [ABSENT, "cat", "dog", "house", "river"],
        "action": [ABSENT, "finds", "likes", "sees"],
        "placeName": [ABSENT, "cat", "dog", "house", "river"],
    }
    assert verb["texts"]["skipped"] == 20
    for config in (verb, meaning):
        assert config["names"] == list(config["values"])
        assert min(config["oracle"]["accuracy"].values()) > 0.9
        assert max(config["guessing"]["accuracy"].values()) < 0.6
        by_noise = config["measured"]["accuracy_by_noise"]
        assert by_noise["1-2"] > max(config["guessing"]["accuracy"].values()) + 0.2
        assert config["measured"]["validation_loss"] < 0.85 * config["guessing"]["validation_loss"]


def test_the_guide_reads_what_is_written_not_what_goes_together(toy_model: Path, tmp_path: Path) -> None:
    """Taught by texts whose subject and place always go together, it knows them apart: `name` and `near` in E2E."""
    model = from_pretrained(str(toy_model))
    tied = [
        {"text": f"{first} {adj} {a} {verb} {second} {other} {b} .", "subject": a, "place": b}
        for a, b in (("cat", "house"), ("dog", "river"))
        for first, second in (("the", "a"), ("a", "the"), ("the", "the"))
        for adj, other in itertools.product(("red", "old", "small"), repeat=2)
        for verb in ("sees", "likes", "finds")
    ]
    directory = tmp_path / "tied"
    teach(Field, model, "tied", tied, "subject,place", TEACHING, directory)
    head = LabelHead([3, 3], len(model.tokenizer), model.config.layers, model.config.width, **label.HEAD_SIZE)
    load_head(head, directory)
    untied = ["the red cat sees a old river .", "a small dog likes the red house ."]
    clean = Generator(model).reader.clean(torch.tensor([model.tokenizer.ids(text.split()) for text in untied]), None)
    assert likeliest(head(clean)).tolist() == [[1, 2], [2, 1]]  # 0 is absent


def test_a_head_may_start_from_another_and_keep_its_oracle(taught: Path, tmp_path: Path) -> None:
    model, start = from_pretrained(str(taught)), taught / "classifiers" / "meaning"
    still = dataclasses.replace(TEACHING, steps=1, lr=0.0, init=str(start))
    teach(Field, model, "meaning", rows(800), "meaning", still, tmp_path / "again")
    before, after = read_weights(start / "model.safetensors"), read_weights(tmp_path / "again" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert (tmp_path / "again" / ORACLE).read_bytes() == (start / ORACLE).read_bytes()
    text = (tmp_path / "again" / "config.json").read_text()
    was, config = described(taught, "meaning"), json.loads(text)
    assert config["started_from"] == {"trained_on": was["trained_on"], "training": was["training"]}
    assert config["oracle"] == was["oracle"]
    assert str(tmp_path.parent) not in text  # no path of this machine
    taught_more = dataclasses.replace(TEACHING, steps=20, init=str(start))
    teach(Field, model, "meaning", rows(800), "meaning", taught_more, tmp_path / "more")
    more = json.loads((tmp_path / "more" / "config.json").read_text())
    assert more["measured"]["validation_loss"] < 1.05 * was["measured"]["validation_loss"]


@pytest.mark.parametrize(
    ("kind", "name", "count", "seed", "message"),
    [
        (Field, "meaning", 800, TEACHING.seed + 1, "was trained on other texts or with another seed"),
        (Field, "meaning", 700, TEACHING.seed, "was trained on other texts or with another seed"),
        (Label, "verb", 800, TEACHING.seed, "is no label classifier to start from"),
    ],
)
def test_a_kept_oracle_must_not_have_seen_the_guides_texts(
    taught: Path, tmp_path: Path, kind: type[Label], name: str, count: int, seed: int, message: str
) -> None:
    config = dataclasses.replace(TEACHING, seed=seed, init=str(taught / "classifiers" / "meaning"))
    with pytest.raises(CtrlgenError, match=message):
        teach(kind, from_pretrained(str(taught)), name, rows(count), name, config, tmp_path / "again")
    assert not (tmp_path / "again" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("control", "field", "value"),
    [
        ("verb: sees", "action", "sees"),
        ("action: likes", "action", "likes"),
        ("subject: river", "subject", "river"),
        ("place name: House", "placeName", "house"),
    ],
)
def test_guided_samples_have_the_value(generator: Generator, control: str, field: str, value: str) -> None:
    request = generator.request([control, "length: 9"], n=16, seed=3)

    def share(settings: Settings) -> float:
        samples = generator.generate([request], settings)
        return sum(meaning_of(sample.tokens).get(field) == value for sample in samples) / len(samples)

    assert share(Settings()) > 0.6
    assert share(Settings()) > share(UNGUIDED) + 0.2


def meaning_of(words: Sequence[str]) -> dict[str, str]:
    try:
        return toy_meaning(list(words))
    except (IndexError, StopIteration):
        return {}


def test_fields_compose_and_can_be_avoided(generator: Generator) -> None:
    both = generator.request(["subject: cat", "action: sees"], n=16, seed=5)
    meanings = [meaning_of(sample.tokens) for sample in generator.generate([both])]
    assert sum(m.get("subject") == "cat" and m.get("action") == "sees" for m in meanings) >= 10
    without = generator.request(["not action: sees"], n=16, seed=5)
    assert sum("sees" in sample.tokens for sample in generator.generate([without])) <= 2


def test_fields_of_one_training_share_batches_and_weights(generator: Generator) -> None:
    alone = [generator.request([control], n=4, seed=5) for control in ("subject: cat", "action: sees")]
    jobs = Draws(generator.model, alone).first()
    assert len({job.batch_key for job in jobs}) == 1
    apart = [sample.text for request in alone for sample in generator.generate([request])]
    assert [sample.text for sample in generator.generate(alone)] == apart
    judges = {id(control.classifier.judge) for request in alone for control in request.controls}  # type: ignore[attr-defined]
    assert len(judges) == 1


# The oracle


def test_the_oracle_reads_the_finished_text(generator: Generator) -> None:
    text = "the red cat sees a dog by the river .".split()
    controls = generator.request(["verb: sees", "action: likes", "subject: cat", "place name: absent"]).controls
    verdicts = [control.classifier.check([text], [control.target])[0] for control in controls]
    assert [verdict.success for verdict in verdicts] == [True, False, True, False]
    assert [verdict.detail for verdict in verdicts] == [None, "reads as sees", None, "reads as river"]


def test_what_every_training_text_has_cannot_be_asked_away(generator: Generator, taught: Path) -> None:
    assert described(taught, "meaning")["never_absent"] == ["subject", "action"]
    assert "absent" not in generator.controls.classifier("action").choices()
    assert "absent" in generator.controls.classifier("placeName").choices()
    with pytest.raises(UsageError, match=r"^action: every training text has one, so a text without it cannot"):
        generator.request(["action: absent"])


def test_guide_and_oracle_know_nothing_of_each_other(taught: Path) -> None:
    generator = Generator(str(taught))
    (control,) = generator.request(["action: sees"]).controls
    classifier = control.classifier
    assert isinstance(classifier, Field)
    texts = [words for words, _ in toy_sentences(30, seed=9)]
    ids = torch.tensor([generator.model.tokenizer.ids(words) for words in texts if len(words) == 9])
    clean, encoded = generator.reader.clean(ids, None), classifier.encode([control.target] * len(ids), [9] * len(ids))
    guided, judged = classifier.log_prob(clean, encoded), classifier.check(texts, [control.target] * 30)
    wipe(classifier.head)
    assert classifier.check(texts, [control.target] * 30) == judged
    assert {verdict.success for verdict in judged} == {True, False}
    again = Generator(str(taught)).request(["action: sees"]).controls[0].classifier
    assert isinstance(again, Field)
    wipe(again.judge)
    assert torch.equal(again.log_prob(clean, encoded), guided)
    assert len({verdict.success for verdict in again.check(texts, [control.target] * 30)}) == 1


def wipe(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        parameter.zero_()


def test_a_text_without_words_is_judged_too(generator: Generator) -> None:
    (control,) = generator.request(["action: sees"]).controls
    assert len(control.classifier.check([[]], [control.target])) == 1


def test_literal() -> None:
    assert is_literal(["Fast", "food"], "They serve fast food .".split())
    assert is_literal(["£", "20"], "under £ 20 - 25".split())
    assert not is_literal(["Fast", "food"], "food , fast !".split())


def test_where_the_literal_test_says_otherwise_the_detail_tells(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    (control,) = generator.request(["action: sees"]).controls
    classifier = control.classifier
    texts = [["the", "cat", "sees"], ["the", "cat", "likes"]]
    said = {name: [torch.zeros(1, 5), torch.eye(4)[[i]]] for i, name in enumerate((ABSENT, "finds", "likes", "sees"))}

    def verdicts(read_as: str) -> list[tuple[bool | None, str | None]]:
        monkeypatch.setattr(classifier.judge, "forward", lambda tokens: said[read_as])
        return [(v.success, v.detail) for v in classifier.check(texts, [control.target] * 2)]

    assert verdicts("sees") == [(True, None), (True, None)]
    assert verdicts("likes") == [(False, "reads as likes, though 'sees' is written"), (False, "reads as likes")]


# What users write


@pytest.mark.parametrize("written", ["verb: sees", "Verb: SEES", 'verb: "sees"', "verb: 's e-es' @2[0:0.5]"])
def test_values_match_whatever_their_case_and_marks(generator: Generator, written: str) -> None:
    (control,) = generator.request([written]).controls
    assert control.target.value == 2


@pytest.mark.parametrize("name", ["placeName", "place name", "PLACE-NAME"])
def test_fields_match_whatever_their_case_and_spaces(generator: Generator, name: str) -> None:
    (control,) = generator.request([f"{name}: river"]).controls
    assert control.target.value == 4


def classifier_of(model: DiffusionLM, values: Sequence[str]) -> Label:
    known = {"area": list(values)}
    sizes = {"head": label.HEAD_SIZE, "oracle": {"size": label.ORACLE_SIZE}}
    return Label.untrained(model, "area", {"values": known, **sizes})


def test_marks_count_where_only_they_tell_values_apart(toy: DiffusionLM) -> None:
    values = ["+", "-", "C", "C++", "north, far: out", 'say "no"']
    classifier = classifier_of(toy, values)
    assert [classifier.parse(value).value for value in values] == [0, 1, 2, 3, 4, 5]
    assert classifier.parse('"north, far: out"').value == 4
    for unknown in ("C#", "*", ""):  # C# is as near to C as to C++
        with pytest.raises(UsageError, match="area: unknown value"):
            classifier.parse(unknown)


@pytest.mark.parametrize(
    ("control", "start", "end"),
    [
        ("verb: seas", "verb: unknown value 'seas'; its values are ", "finds, likes, sees. Did you mean sees?"),
        ("place name: x", "placeName: unknown value 'x'; its values are ", "absent, cat, dog, house, river."),
        ("plce name: cat", "unknown control 'plce name': this model knows action, ", " Did you mean placeName?"),
        ("meaning: cat", "unknown control 'meaning': this model knows action, ", "."),  # nor the classifier's own name
        ("field: cat", "unknown control 'field': this model knows action, ", "."),  # nor its kind
    ],
)
def test_unknown_names_and_values(generator: Generator, control: str, start: str, end: str) -> None:
    with pytest.raises(UsageError) as raised:
        generator.request([control])
    message = str(raised.value)
    assert message.startswith(start)
    assert message.endswith(end)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("values", "given", "asked"),
    [
        (["0", "1"], [0, 1, None, 1.0, False], ["0", "1", None, "1", None]),
        (["False", "True"], [False, True, "true", 1], ["False", "True", "true", None]),
        (["1", "10"], ["1.0", "10", 10.0, "100"], ["1.0", "10", "10", None]),
        (["1234567", "1234568"], [1234567.0, None, 1234568], ["1234567", None, "1234568"]),
        (["a@b", "not x@y"], ["a@b", "not x@y", ["a@b"]], ["a@b", "not x@y", None]),
    ],
)
def test_k2_evaluation_asks_for_what_training_learned(
    toy: DiffusionLM, values: list[str], given: list[Any], asked: list[str | None]
) -> None:
    classifier = classifier_of(toy, values)
    found = classifier.values_of([()] * len(given), [{"area": value} for value in given], Random(0))
    assert found == asked
    for value in filter(None, found):
        statement = parse_statement(write_statement("area", value))
        target = classifier.parse(statement.value)
        assert label_key(classifier.written(target)) == label_key(value)


def test_k2_numbers_are_matched_exactly(toy: DiffusionLM) -> None:
    classifier = classifier_of(toy, ["1", "10"])
    assert classifier.written(classifier.parse("1.0")) == "1"
    for value in ("100", "01", "1-0", "1 0"):
        with pytest.raises(UsageError, match="unknown value"):
            classifier.parse(value)


def test_of_many_values_the_first_and_the_nearest_are_named(toy: DiffusionLM) -> None:
    classifier = classifier_of(toy, [f"street {i}" for i in range(100)])
    with pytest.raises(UsageError) as raised:
        classifier.parse("strete 99")
    message = str(raised.value)
    assert "street 11 and 88 more. Did you mean street 99 or street " in message
    assert message.count(" or ") == 2
    assert "street 12," not in message


# Data that cannot be learned from


def refused(kind: type[Label], model: DiffusionLM, data: Sequence[dict[str, Any]], column: str | None, to: Path) -> str:
    with pytest.raises(CtrlgenError) as raised:
        teach(kind, model, "mood", data, column, BRIEF, to / "mood")
    assert not (to / "mood").exists()
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_data_that_cannot_be_learned_from(toy: DiffusionLM, tmp_path: Path) -> None:
    texts = [row["text"] for row in rows(100)]
    one: list[dict[str, Any]] = [{"text": text, "mood": "good"} for text in texts]
    assert refused(Label, toy, one, "mood", tmp_path) == (
        "label: needs two values seen 5 times each; the data has 'good' 100 times"
    )
    assert "the data has nothing" in refused(Label, toy, [{**row, "mood": None} for row in one], "mood", tmp_path)
    empty: list[dict[str, Any]] = [{"text": " ", "mood": f"{i % 2}"} for i in range(100)]
    assert refused(Label, toy, empty, "mood", tmp_path) == "the column 'text' holds no text"
    assert "no column 'moot'; columns: text, mood. Did you mean mood?" in refused(Label, toy, one, "moot", tmp_path)
    assert refused(Label, toy, one, None, tmp_path) == (
        "label: which column holds the labels? Give --label-column: mood"
    )
    few = [{**row, "mood": f"{i % 2}"} for i, row in enumerate(one[:30])]
    assert "usable texts: at least 40 are needed" in refused(Label, toy, few, "mood", tmp_path)
    taken = [{"text": row["text"], "pos": f"{i % 2}"} for i, row in enumerate(one)]
    assert "'pos' is a kind of control already" in refused(Field, toy, taken, None, tmp_path)
    unnameable = [{"text": row["text"], "how\nmany": f"{i % 2}"} for i, row in enumerate(one)]
    assert "'how\\nmany' cannot be the name of a control" in refused(Field, toy, unnameable, None, tmp_path)


def test_what_cannot_steer_is_said_in_words(toy: DiffusionLM, tmp_path: Path) -> None:
    texts = [row["text"] for row in rows(1500)]
    chance = torch.rand(1500, generator=torch.Generator().manual_seed(0)) < 0.5
    coins = [{"text": text, "coin": str(bool(side))} for text, side in zip(texts, chance, strict=True)]
    coins += [{"text": "", "coin": "True"}] * 7
    *_, last = teach(Label, toy, "coin", coins, "coin", dataclasses.replace(TEACHING, steps=40), tmp_path / "coin")
    assert last.validation is not None
    assert last.validation["explained"] < label.LEAST_EXPLAINED
    assert 0.45 <= last.validation["base_rate"] < 0.65
    skipped, *notes = last.validation["notes"]
    assert skipped == "7 rows skipped: no text, no usable label, or too long"
    assert notes[0] == "warning: the head knows no more than how frequent each value is, so it cannot steer"
    assert notes[1].startswith("oracle of coin: accuracy 0.")


def test_damaged_files_are_one_clear_error(taught: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(taught, tmp_path / "copy"))
    damages = [{"values": {}}, {"values": None}, {"head": {"width": "x"}}, {"head": {"breadth": 8}}, {"oracle": {}}]
    assert_damage_is_one_clear_error(copy / "classifiers" / "verb", "label", "verb: sees", damages)


# The command line


def test_from_a_csv_to_samples(
    ctrlgen: Run,
    monkeypatch: pytest.MonkeyPatch,
    toy_data: Path,
    model_copy: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", toy_data.parent / "cache")
    path = tmp_path / "reviews.csv"
    Dataset.from_list(rows(200)).to_csv(str(path))
    teaching = ("train-classifier", "label", "-m", model_copy, "--data", path, "--name", "mood", "--steps", 3)
    outcome = ctrlgen(*teaching, "--label-column", "verb", "--tokens-per-batch", 256)
    directory = model_copy / "classifiers" / "mood"
    assert (outcome.code, outcome.out) == (0, "")
    assert "base rate" in outcome.err
    assert "5 rows skipped" in outcome.err
    assert outcome.err.endswith(f"classifier written to {directory}\n")
    files = ["config.json", "metrics.jsonl", "model.safetensors", ORACLE]
    assert sorted(file.name for file in directory.iterdir()) == files
    outcome = ctrlgen("generate", "-m", model_copy, "-c", "Mood: LIKES", "-n", 2, "--json", "--steps", 4)
    assert outcome.code == 0
    assert [answer["controls"][0]["control"] for answer in outcome.answers] == ["Mood: LIKES"] * 2
    assert ctrlgen(*teaching, "--label-column", "verb", "--init", model_copy, "--force").code == 0
    assert json.loads((directory / "config.json").read_text())["started_from"]["training"]["steps"] == 3
    outcome = ctrlgen(*teaching[:7], "temper", "--label-column", "verb", "--init", model_copy)
    assert outcome == Outcome(1, "", f"ctrlgen: {model_copy}: holds no classifier trained as 'temper'\n")
    columns = ("--label-column", "meaning,verb", "--steps", 3)
    assert ctrlgen("train-classifier", "field", "-m", model_copy, "--data", path, *columns).code == 0
    names = {row["kind"]: row["names"] for row in ctrlgen("controls", "-m", model_copy, "--json").answers}
    assert names["label"] == ["mood"]
    assert sorted(names["field"]) == ["action", "placeName", "subject", "verb"]
    outcome = ctrlgen(*teaching, "--force", "--label-column", "verbs")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "no column 'verbs'" in outcome.err
    assert "Did you mean verb?" in outcome.err
