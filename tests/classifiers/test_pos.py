"""Part of speech: patterns, the head's probabilities, what it learns, and the oracle."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from toy_grammar import TAG_OF, toy_sentences

from ctrlgen.checkpoint import DiffusionLM, from_pretrained
from ctrlgen.controls.classifier import Verdict
from ctrlgen.diffusion.denoiser import Denoised, Denoiser
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.request import Sample
from ctrlgen.settings import Guidance, Settings
from ctrlgen.training.fit import TrainingConfig
from ctrlgen.training.heads import Example
from ctrlgen_classifiers import pos, tagging
from ctrlgen_classifiers.pos import PENN, TAG_COUNT, TAG_IDS, UNIVERSAL, Pattern, Pos, PosHead, judge, parse_pattern

MakeModel = Callable[..., Denoiser]
BRIEF = TrainingConfig(
    steps=4, tokens_per_batch=256, matrix_lr=0.0, precision="float32", log_every=4, checkpoint_every=100,
    validate_every=4,
)  # fmt: skip
UNGUIDED = Settings(guidance=Guidance(strength=0.0))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("DET NOUN AUX", Pattern(("DET", "NOUN", "AUX"), "Universal")),
        ("DT NN VBZ", Pattern(("DT", "NN", "VBZ"), "Penn")),
        ("det Noun aUX", Pattern(("DET", "NOUN", "AUX"), "Universal")),
        ("prp$ nn .", Pattern(("PRP$", "NN", "."), "Penn")),
        ("DET * VERB", Pattern(("DET", "*", "VERB"), "Universal")),
        ("* NN", Pattern(("*", "NN"), "Penn")),
        ("DET NOUN ...", Pattern(("DET", "NOUN"), "Universal", open_end=True)),
        ("NNP …", Pattern(("NNP",), "Penn", open_end=True)),
        ("* ...", Pattern(("*",), "Universal", open_end=True)),
        ("SYM", Pattern(("SYM",), "Universal")),  # in both sets
        ("SYM CD", Pattern(("SYM", "CD"), "Penn")),
        ("DT : `` NN '' , -LRB- $ -RRB- .", Pattern(tuple("DT : `` NN '' , -LRB- $ -RRB- .".split()), "Penn")),
    ],
)
def test_patterns(value: str, expected: Pattern) -> None:
    assert parse_pattern(value) == expected


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("", ["empty"]),
        ("   ", ["empty"]),
        ("...", ["empty"]),
        ("DET NOUNN", ["'NOUNN'", "Did you mean NOUN?"]),
        ("DT NNX", ["'NNX'", "Did you mean NN"]),
        ("det adjective", ["'adjective'", "ADJ"]),
        ("DET 7", ["'7'", "ADJ ADP ADV"]),
        ("DET NN", ["'DET'", "'NN'", "one set"]),
        ("* VBZ * PUNCT", ["'VBZ'", "'PUNCT'", "one set"]),
        ("DET ... NOUN", ["'...'", "only at the end"]),
        ("... NOUN", ["'...'", "only at the end"]),
    ],
)
def test_each_mistake_is_one_line(value: str, parts: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        parse_pattern(value)
    message = str(raised.value)
    assert message.startswith("pos: ")
    assert [part for part in parts if part not in message] == []
    assert "\n" not in message


def test_the_tag_ids_of_both_sets_are_apart_and_leave_0_for_any() -> None:
    ids = [*TAG_IDS["Universal"].values(), *TAG_IDS["Penn"].values()]
    assert ids == list(range(1, TAG_COUNT))
    assert (len(UNIVERSAL), len(PENN)) == (17, 49)


def test_an_open_tail_is_filled_with_any() -> None:
    ids = TAG_IDS["Universal"]
    assert parse_pattern("DET * NOUN ...").ids(5) == [ids["DET"], 0, ids["NOUN"], 0, 0]


TAGGED = (["DET", "NOUN", "VERB", "PUNCT"], ["DT", "NN", "VBZ", "."])
WORDS = ["The", "cat", "sleeps", "."]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("DET NOUN VERB PUNCT", Verdict(True, None, (), 1.0)),
        ("DT NN VBZ .", Verdict(True, None, (), 1.0)),
        ("DET * VERB *", Verdict(True, None, (), 1.0)),
        ("DET NOUN ...", Verdict(True, None, (), 1.0)),
        ("DET NOUN VERB PUNCT ...", Verdict(True, None, (), 1.0)),
        ("DET ADJ VERB PUNCT", Verdict(False, "position 2 'cat': wanted ADJ, got NOUN", (1,), 0.75)),
        ("DT JJ VBZ .", Verdict(False, "position 2 'cat': wanted JJ, got NN", (1,), 0.75)),
        ("* ADJ VERB *", Verdict(False, "position 2 'cat': wanted ADJ, got NOUN", (1,), 0.5)),
        ("DET NOUN", Verdict(False, "4 words instead of 2", (), 1.0)),
        ("DET NOUN VERB ADV PUNCT", Verdict(
            False, "4 words instead of 5; position 4 '.': wanted ADV, got PUNCT", (3,), 0.6)),
        ("DET NOUN VERB PUNCT X ...", Verdict(False, "4 words instead of 5 or more", (), 0.8)),
        ("DET * * * * *", Verdict(False, "4 words instead of 6", (), 1.0)),
    ],
)  # fmt: skip
def test_judge(pattern: str, expected: Verdict) -> None:
    verdict = judge(WORDS, TAGGED, parse_pattern(pattern))
    assert (verdict.success, verdict.detail, verdict.failed) == (expected.success, expected.detail, expected.failed)
    assert verdict.correct == pytest.approx(expected.correct)


@pytest.fixture
def head() -> PosHead:
    """A head with random weights everywhere, for a trunk of 2 layers of width 16 over 11 words."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = PosHead(vocab_size=11, trunk_layers=2, trunk_width=16, width=8).eval()
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        head.lexicon.copy_(torch.rand(11, TAG_COUNT - 1))
    return head.requires_grad_(False)


@pytest.fixture
def denoised(make_model: MakeModel) -> Callable[[int, int], Denoised]:
    """What a denoiser says of one noisy text of n words, repeated over a batch."""
    model = make_model(perturbed=True)

    def denoise(batch: int, length: int) -> Denoised:
        x_t = torch.randn(1, length, 4, generator=torch.Generator().manual_seed(2)).expand(batch, -1, -1)
        with torch.no_grad():
            return model(x_t, torch.full((batch,), 0.3))

    return denoise


@pytest.mark.parametrize(("tagset", "length"), [("Universal", 1), ("Universal", 2), ("Universal", 3), ("Penn", 2)])
def test_the_probabilities_of_all_tag_sequences_sum_to_1(
    head: PosHead, denoised: Callable[[int, int], Denoised], tagset: str, length: int
) -> None:
    every = torch.tensor(list(itertools.product(TAG_IDS[tagset].values(), repeat=length)))
    log_p = head.log_prob(denoised(len(every), length), every)
    assert log_p.shape == (len(every),)
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-5)
    assert log_p.std() > 0.1  # and are not all alike


@pytest.mark.parametrize("where", [0, 1, 2])
def test_an_open_position_counts_nothing(head: PosHead, denoised: Callable[[int, int], Denoised], where: int) -> None:
    tags = TAG_IDS["Universal"].values()
    every = torch.tensor(list(itertools.product(*([[0] if i == where else tags for i in range(3)]))))
    log_p = head.log_prob(denoised(len(every), 3), every)
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_an_open_pattern_is_certain(head: PosHead, denoised: Callable[[int, int], Denoised]) -> None:
    assert torch.equal(head.log_prob(denoised(2, 4), torch.zeros(2, 4, dtype=torch.long)), torch.zeros(2))


def test_an_untrained_head_asks_the_lexicon(denoised: Callable[[int, int], Denoised]) -> None:
    head = PosHead(vocab_size=11, trunk_layers=2, trunk_width=16, width=8).eval()
    head.count([Example([4, 5, 5], Pattern(("DET", "NOUN", "VERB"), "Universal"))])
    said = denoised(1, 3)
    noun = TAG_IDS["Universal"]["NOUN"]
    universal = (said.probs @ head.lexicon)[..., : len(UNIVERSAL)]
    expected = (universal / universal.sum(-1, keepdim=True))[..., noun - 1].log().sum()
    with torch.no_grad():
        assert float(head.log_prob(said, torch.tensor([[noun] * 3]))) == pytest.approx(float(expected), rel=1e-4)


def test_the_lexicon_counts_tags_of_words() -> None:
    head = PosHead(vocab_size=6, trunk_layers=1, trunk_width=8, width=8)
    examples = [
        Example([4, 5, 5], Pattern(("DET", "NOUN", "VERB"), "Universal")),
        Example([5, 4], Pattern(("NOUN", "*"), "Universal")),
        Example([5], Pattern(("NN",), "Penn")),
    ]
    head.count(examples)
    universal, penn = head.lexicon.split([len(UNIVERSAL), len(PENN)], -1)
    torch.testing.assert_close(universal.sum(-1), torch.ones(6))
    torch.testing.assert_close(penn.sum(-1), torch.ones(6))
    smoothed = 3 + pos.SMOOTHING * len(UNIVERSAL)
    assert float(universal[5, UNIVERSAL.index("NOUN")]) == pytest.approx((2 + pos.SMOOTHING) / smoothed)
    assert float(universal[5, UNIVERSAL.index("VERB")]) == pytest.approx((1 + pos.SMOOTHING) / smoothed)
    assert float(universal[3].std()) == pytest.approx(0.0)  # never seen: anything
    assert int(penn[5].argmax()) == PENN.index("NN")


def test_accuracy_counts_the_positions_asked_for(head: PosHead, denoised: Callable[[int, int], Denoised]) -> None:
    said = denoised(1, 3)
    best = torch.zeros(1, 3, dtype=torch.long)
    for i in range(3):  # the head's own greedy answer
        best[0, i] = 1 + head(said)[0, i, : len(UNIVERSAL)].argmax()
    assert head.accuracy(said, best).tolist() == [1.0]
    wrong = best.clone()
    wrong[0, 2] = 1 + (wrong[0, 2] % len(UNIVERSAL))
    assert head.accuracy(said, wrong).tolist() == pytest.approx([2 / 3])
    assert head.accuracy(said, torch.tensor([[int(best[0, 0]), 0, 0]])).tolist() == [1.0]


def test_lengths() -> None:
    untrained = Pos(None, "pos", {}, None)  # type: ignore[arg-type]
    whole, tail = parse_pattern("DET NOUN *"), parse_pattern("DET NOUN * ...")
    assert [n for n in range(1, 7) if untrained.allows_length(whole, n)] == [3]
    assert [n for n in range(1, 7) if untrained.allows_length(tail, n)] == [3, 4, 5, 6]


def test_the_closed_form_reads_the_lexicon(head: PosHead, denoised: Callable[[int, int], Denoised]) -> None:
    encoded = torch.tensor([[TAG_IDS["Universal"]["DET"], 0, TAG_IDS["Penn"]["NN"]]])
    log_p = Pos(None, "pos", {}, head).word_log_prob(denoised(1, 3), encoded)
    assert log_p.shape == (1, 3, 11)
    torch.testing.assert_close(log_p[0, 0], head.lexicon[:, TAG_IDS["Universal"]["DET"] - 1].log())
    assert torch.equal(log_p[0, 1], torch.zeros(11))
    torch.testing.assert_close(log_p[0, 2], head.lexicon[:, TAG_IDS["Penn"]["NN"] - 1].log())


# Trained on the toy sentences


@pytest.fixture
def toy(toy_model: Path) -> DiffusionLM:
    return from_pretrained(str(toy_model))


def test_the_head_learns(toy_model: Path) -> None:
    measured = json.loads((toy_model / "classifiers" / "pos" / "config.json").read_text())["measured"]
    by_noise = measured["accuracy_by_noise"]
    assert set(by_noise) <= {"< 0.5", "0.5-1", "1-2", "2-4", "4-8", "> 8"}
    assert by_noise["1-2"] > 0.95
    assert by_noise["1-2"] > by_noise["> 8"]  # noise hides tags
    assert measured["validation_loss"] < 0.2  # nats a tag


def test_the_guide_knows_the_tags_of_clean_text(generator: Generator) -> None:
    words, tags = next(s for s in toy_sentences(50, seed=9) if len(s[0]) == 6)
    (control,) = generator.request([f"pos: {' '.join(tags)}"]).controls
    (wrong,) = generator.request(["pos: DET NOUN VERB DET NOUN NOUN"]).controls
    ids = torch.tensor([generator.model.tokenizer.ids(words)])
    clean = generator.reader.clean(ids, None)

    def probability(target: Pattern) -> float:
        encoded = control.classifier.encode([target], [6])
        return float(control.classifier.log_prob(clean, encoded).exp().detach())

    assert probability(control.target) > 0.5
    assert probability(wrong.target) < 0.05


@pytest.mark.slow
def test_guided_samples_have_the_pattern(generator: Generator) -> None:
    """Every toy word has one tag, so the pattern can be checked by looking the words up."""
    patterns = ["DET NOUN VERB DET ADJ NOUN PUNCT", "DET ADJ NOUN VERB DET NOUN PUNCT"]  # of one length
    requests = [generator.request([f"pos: {pattern}"], n=12, seed=3) for pattern in patterns]
    wanted = [pattern.split() for pattern in patterns for _ in range(12)]

    def right(samples: list[Sample]) -> float:
        pairs = [
            (TAG_OF.get(word), tag)
            for sample, tags in zip(samples, wanted, strict=True)
            for word, tag in zip(sample.tokens, tags, strict=True)
        ]
        return sum(got == tag for got, tag in pairs) / len(pairs)

    guided, unguided = right(generator.generate(requests)), right(generator.generate(requests, UNGUIDED))
    assert guided > 0.9
    assert guided > unguided + 0.1


Rows = list[dict[str, object]]


def brief_training(model: DiffusionLM, rows: Rows, directory: Path, label: str | None = None) -> None:
    for _ in Pos.train(model, "pos", Dataset.from_list(rows), "text", label, BRIEF, directory):
        pass


@pytest.fixture
def small_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pos, "HEAD_SIZE", {"width": 16})


@pytest.mark.usefixtures("no_spacy", "small_head")
@pytest.mark.parametrize(("column", "listed"), [("tags", False), ("upos", True), ("mine", True)])
def test_given_tags_are_learned_without_spacy(toy: DiffusionLM, tmp_path: Path, column: str, listed: bool) -> None:
    rows = [{"text": " ".join(words), column: tags if listed else " ".join(tags)} for words, tags in toy_sentences(40)]
    brief_training(toy, rows, tmp_path / "pos", column if column == "mine" else None)
    config = json.loads((tmp_path / "pos" / "config.json").read_text())
    assert config["kind"] == "pos"
    assert config["head"] == {"width": 16}
    assert set(config["measured"]) == {"accuracy", "validation_loss", "accuracy_by_noise"}
    assert sorted(path.name for path in (tmp_path / "pos").glob("*.safetensors")) == [
        "model.safetensors", "resume.safetensors",
    ]  # fmt: skip


@pytest.mark.usefixtures("no_spacy")
def test_text_without_tags_needs_spacy_and_says_how_to_get_it(toy: DiffusionLM, tmp_path: Path) -> None:
    rows: Rows = [{"text": " ".join(words)} for words, _ in toy_sentences(40)]
    with pytest.raises(CtrlgenError, match="spaCy is not installed: pip install") as raised:
        brief_training(toy, rows, tmp_path / "pos")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "pos").exists()


@pytest.mark.usefixtures("no_spacy")
def test_without_spacy_nothing_is_claimed() -> None:
    verdicts = Pos(None, "pos", {}, None).check([WORDS, WORDS], [parse_pattern("DET ...")] * 2)  # type: ignore[arg-type]
    assert [verdict.success for verdict in verdicts] == [None, None]
    assert "pip install" in (verdicts[0].detail or "")


def test_data_that_cannot_be_learned_from(toy: DiffusionLM, tmp_path: Path) -> None:
    with pytest.raises(CtrlgenError, match="3 words but 2 tags in 'the cat sees'"):
        brief_training(toy, [{"text": "the cat sees", "tags": "DET NOUN"}], tmp_path / "pos")
    with pytest.raises(UsageError, match="unknown tag 'NUON'"):
        brief_training(toy, [{"text": "the cat", "tags": "DET NUON"}], tmp_path / "pos")
    with pytest.raises(UsageError, match="unknown tag '7'"):  # numbers, as some data sets of the hub have them
        brief_training(toy, [{"text": "the cat", "tags": [7, 3]}], tmp_path / "pos")
    with pytest.raises(CtrlgenError, match="fewer than 20 different usable texts"):
        brief_training(toy, [{"text": "the cat", "tags": "DET NOUN"}] * 3, tmp_path / "pos")
    too_long: dict[str, object] = {"text": "the " * 13, "tags": "DET " * 13}
    with pytest.raises(CtrlgenError, match="30 longer than 12 words: too little is left"):
        brief_training(toy, [too_long] * 30, tmp_path / "pos")
    assert not (tmp_path / "pos").exists()


def test_a_label_column_that_is_not_there(toy: DiffusionLM, tmp_path: Path) -> None:
    with pytest.raises(CtrlgenError, match="'tgas'"):
        brief_training(toy, [{"text": "the cat", "tags": "DET NOUN"}] * 30, tmp_path / "pos", "tgas")


@pytest.mark.parametrize(
    "damage",
    [
        {"head": {"width": 64}},
        {"head": {"width": "wide"}},
        {"head": {}},
        {"head": None},
    ],
)
def test_a_damaged_config_is_one_clear_error(model_copy: Path, damage: dict[str, object]) -> None:
    path = model_copy / "classifiers" / "pos" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(CtrlgenError, match="pos"):
        Generator(str(model_copy)).request(["pos: DET ..."])


# The oracle


@pytest.fixture
def spacy_installed() -> None:
    tagging.tagger.cache_clear()
    try:
        tagging.tagger()
    except ImportError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("spacy_installed")
def test_the_oracle_tags_whole_texts() -> None:
    patterns = [parse_pattern(p) for p in ("DET NOUN VERB PUNCT", "DT JJ VBZ .", "DET ...")]
    first, second, third = Pos(None, "pos", {}, None).check([WORDS, WORDS, ["Cats"]], patterns)  # type: ignore[arg-type]
    assert first == Verdict(True, None, (), 1.0, 4)
    assert second == Verdict(False, "position 2 'cat': wanted JJ, got NN", (1,), 0.75, 4)
    assert third.success is False


@pytest.mark.usefixtures("spacy_installed", "small_head")
def test_text_without_tags_is_tagged_in_both_sets(toy: DiffusionLM) -> None:
    rows = Dataset.from_list([{"text": "the cat sees a dog ."}, {"text": "the cat sees a dog ."}, {"text": None}])
    universal, penn = pos.training_examples(toy, rows, "text", None)
    assert universal.target == Pattern(("DET", "NOUN", "VERB", "DET", "NOUN", "PUNCT"), "Universal")
    assert penn.target == Pattern(("DT", "NN", "VBZ", "DT", "NN", "."), "Penn")
    assert universal.tokens == penn.tokens == toy.tokenizer.ids("the cat sees a dog .".split())
