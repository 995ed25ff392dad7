"""Infilling: templates, what the denoiser is told, and texts whose given words stay."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ctrlgen.controls.template import NO_WORD, Blank, KeptWords, Template, keep, parse_template
from ctrlgen.diffusion.denoiser import Denoised, Denoiser
from ctrlgen.errors import UsageError
from ctrlgen.generation.generator import Generator, Sample, Settings
from ctrlgen.generation.guidance import Guidance, Term, steer
from ctrlgen.joining import write
from ctrlgen.tokenizer import SPECIAL, WordTokenizer

QUICK = Settings(steps=8)
SIMPLE = "pos: DET NOUN VERB DET NOUN PUNCT"


@pytest.fixture(scope="module")
def tokenizer() -> WordTokenizer:
    return WordTokenizer.train(["The Vaults is near Mary . the"], min_count=1)


# Templates


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("The Vaults ___ near .", ("The", "Vaults", Blank(), "near", ".")),
        ("___", (Blank(),)),
        ("___{3-6} near Mary's pub.", (Blank(3, 6), "near", "Mary", "'s", "pub", ".")),
        ("The_____{4}near___{0 - 2}.", ("The", Blank(4, 4), "near", Blank(0, 2), ".")),
    ],
)
def test_templates(tokenizer: WordTokenizer, text: str, parts: tuple[str | Blank, ...]) -> None:
    assert parse_template(text, tokenizer).parts == parts


TYPED = [
    ("C# 5 - 10 km - see http://a.org/b ___ .", "C# 5 - 10 km - see http://a.org/b x."),
    ("C++ or F# ___, 5 -10 km", "C++ or F# x, 5 -10 km"),
    ("Mail  jo.e@x-y.org, ___!", "Mail  jo.e@x-y.org, x!"),
    ("In the U.S. at 5 a.m. ___", "In the U.S. at 5 a.m. x"),
    ("e.g. J. R. Smith ___ etc.", "e.g. J. R. Smith x etc."),
    ("one - two – ___ — three", "one - two – x — three"),
    ("'hello' she ___, 'bye' ___.", "'hello' she x, 'bye' x."),
    ("the guests' pub ___ the dogs' .", "the guests' pub x the dogs' ."),
    ("👩‍👩‍👧 like ___ 👍🏽🇩🇪", "👩‍👩‍👧 like x 👍🏽🇩🇪"),
    ("“Don’t” ‘go’ ___ ’til ’90s", "“Don’t” ‘go’ x ’til ’90s"),
    ('The CAN\'T-do ___-ness (___) "___"', 'The CAN\'T-do x-ness (x) "x"'),
    ("The ( ___ ) £ ___ family - ___ ___ - friendly", "The (x) £x family - x x - friendly"),
    ("It cannot, can not, gonna ___ do n't", "It cannot, can not, gonna x do n't"),
    ("你好，___ 世界。 ok", "你好，x世界。 ok"),
    ("cafe\u0301\u00a0 in\u00adfo ___", "cafe\u0301\u00a0 in\u00adfo x"),
]


@pytest.mark.parametrize(("template", "text"), TYPED)
@pytest.mark.parametrize("data", [["The Vaults is near Mary . the"], ["I don't go. The U.S. is far."]])
def test_given_text_comes_back_to_the_character(template: str, text: str, data: list[str]) -> None:
    parsed = parse_template(template, WordTokenizer.train(data, min_count=1))
    kept = parsed.fill(len(parsed.parts), seed=0)
    written = write([word or "x" for word in kept], parsed.typed(kept))
    assert written.text == text
    assert "".join(space + word for space, word in written.words()) == text


def test_a_blank_of_no_words_leaves_one_space(tokenizer: WordTokenizer) -> None:
    parsed = parse_template("a ___{0-1} b___{0-1}c ___{0-1} .", tokenizer)
    assert write(["a", "b", "c", "."], parsed.typed(["a", "b", "c", "."])).text == "a bc."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("The Vaults __ near .", "has no blank to fill; write ___"),
        ("", "has no blank to fill"),
        ("The ___{few} .", "'___{few}': write the number of words"),
        ("The ___{} .", "'___{}': write the number of words"),
        ("The ___{6-3} .", "'___{6-3}': the range must rise"),
        ("The ___{0} .", "'___{0}': the range must rise, to at least 1"),
    ],
)
def test_templates_that_make_no_sense(tokenizer: WordTokenizer, text: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_template(text, tokenizer)
    assert message in str(raised.value)


def test_how_long_a_template_may_get() -> None:
    template = Template("", ("a", Blank(2, 3), "b", Blank(0, 4)))
    assert template.lengths(12) == range(4, 10)
    assert template.lengths(6) == range(4, 7)
    assert Template("", (Blank(0, 2),)).lengths(12) == range(1, 3)
    assert Template("", ("a", Blank())).lengths(12) == range(2, 13)
    with pytest.raises(UsageError, match="takes 4 words or more; this model writes at most 3"):
        template.lengths(3)


def test_blanks_fill_the_length_within_their_bounds() -> None:
    template = Template("", ("a", Blank(2, 3), "b", Blank(0, 4), "c"))
    for length in template.lengths(99):
        for seed in range(30):
            words = template.fill(length, seed)
            assert (len(words), words[0], words[-1], words.count("b")) == (length, "a", "c", 1)
            assert words.index("b") - 1 in (2, 3)
            assert words.count(None) == length - 3


def test_every_split_between_open_blanks_is_alike() -> None:
    template = Template("", (Blank(), "a", Blank(), "b", Blank()))
    drawn = Counter(template.fill(9, seed) for seed in range(3000))
    assert len(drawn) == 15  # 4 words beyond the first of each, in 3 blanks
    assert all(count == pytest.approx(200, abs=60) for count in drawn.values())


# What the denoiser is told


def test_words_in_ids(tokenizer: WordTokenizer) -> None:
    """Another case where the vocabulary has only that, <unk> for a name it has never seen."""
    kept = keep([("the", None, "NEAR", "Zed"), ("The", None)], tokenizer)
    ids = tokenizer.ids(["the", "near", "<unk>", "The"])
    assert kept.ids.tolist() == [[ids[0], NO_WORD, ids[1], ids[2]], [ids[3], NO_WORD, NO_WORD, NO_WORD]]
    assert kept.clean.tolist() == [[True, False, True, True], [True, False, False, False]]


IDS = torch.tensor([[3, NO_WORD, 5], [NO_WORD, NO_WORD, NO_WORD]])


def noisy() -> tuple[Tensor, Tensor]:
    x_t = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x_t, torch.full((2,), -0.5, dtype=torch.float64)


def test_kept_words_are_clean_and_certain(make_model: Callable[..., Denoiser]) -> None:
    model = make_model(perturbed=True).double()
    x_t, log_snr = noisy()
    told = KeptWords(IDS).told(model, model.embeddings())(x_t, log_snr, x_t)
    clean_x = x_t.clone()
    clean_x[0, [0, 2]] = model.embeddings()[[3, 5]]
    clean = torch.tensor([[True, False, True], [False] * 3])
    plain = model(clean_x, log_snr, x_t, clean)
    torch.testing.assert_close(told.logits[~clean], plain.logits[~clean])
    torch.testing.assert_close(told.x0_hat[~clean], plain.x0_hat[~clean])
    torch.testing.assert_close(told.hidden[-1], plain.hidden[-1])
    assert (plain.logits - model(x_t, log_snr, x_t).logits)[0, 1].abs().max() > 1e-3  # the kept words matter
    torch.testing.assert_close(told.probs[0, [0, 2]], torch.eye(11, dtype=torch.float64)[[3, 5]])
    torch.testing.assert_close(told.x0_hat[0, [0, 2]], model.embeddings()[[3, 5]])


def test_a_row_without_kept_words_is_as_without_a_template(make_model: Callable[..., Denoiser]) -> None:
    model = make_model(perturbed=True).double()
    x_t, log_snr = noisy()
    told = KeptWords(IDS).told(model, model.embeddings())(x_t, log_snr)
    assert torch.equal(told.logits[1], model(x_t, log_snr).logits[1])


class Certainty:
    """log p of each row's likeliest text: a control that pulls everywhere."""

    def log_prob(self, denoised: Denoised, encoded: Tensor) -> Tensor:
        return denoised.logits.log_softmax(-1).amax(-1).sum(-1)


def test_no_shift_at_kept_words(make_model: Callable[..., Denoiser]) -> None:
    model = make_model(perturbed=True).double()
    x_t, log_snr = noisy()
    terms = [Term(Certainty(), torch.zeros(2))]  # type: ignore[arg-type]
    told = KeptWords(IDS).told(model, model.embeddings())
    _, shift = steer(told, x_t, log_snr, None, None, terms, Guidance())
    assert (shift.norm(dim=-1) > 0).tolist() == [[False, True, False], [True] * 3]


# Texts


def texts(samples: Sequence[Sample]) -> list[list[str]]:
    return [sample.tokens for sample in samples]


METHODS: list[dict[str, Any]] = [
    {}, {"sampler": "ddim"}, {"sampler": "dpm"}, {"guidance": Guidance("exact")}, {"guidance": Guidance("paper")},
    {"candidates": 3}, {"temperature": 4.0},
]  # fmt: skip


@pytest.mark.parametrize("settings", METHODS, ids=str)
def test_the_given_words_stay_and_the_rest_is_written(generator: Generator, settings: dict[str, Any]) -> None:
    """Also against a control that they break, which no request could ask for in words."""
    request = generator.request([], n=6, seed=4, template="The old ___ Zebedee THE ___{2-3} .")
    request = replace(request, controls=generator.request(["not starts: the"]).controls)
    for sample in generator.generate([request], Settings(steps=8, **settings)):
        tokens = sample.tokens
        assert tokens[:2] == ["The", "old"]
        assert tokens[-1] == "."
        at = tokens.index("Zebedee")
        assert tokens[at + 1] == "THE"
        assert at >= 3
        assert len(tokens) - at in (5, 6)
        written = [*tokens[2:at], *tokens[at + 2 :]]
        assert not {*SPECIAL, "Zebedee"} & set(written)
        assert sample.text.startswith("The old ")
        assert sample.success is False


def test_lengths_follow_the_training_texts_less_the_kept_words(generator: Generator) -> None:
    def lengths(template: str, *controls: str) -> set[int]:
        jobs = generator.jobs(0, generator.request(controls, n=80, template=template), QUICK)
        return {job.length for job in jobs}

    assert lengths("the cat ___ .") == {6, 7, 8, 9, 10, 11}
    assert lengths("the cat ___{3-6} .") == {6, 7, 8, 9}
    assert lengths("the cat ___{1} .") == {4}
    assert lengths("the cat ___ .", SIMPLE) == {6}
    assert lengths("the cat ___ .", "length: 8-9") == {8, 9}


def test_the_same_sample_in_any_company(generator: Generator) -> None:
    requests = [
        generator.request([SIMPLE], n=3, seed=5),
        generator.request([SIMPLE], n=3, seed=5, template="the ___ red ___ ."),
        generator.request([], n=2, seed=7, template="___{3-4} the river ___"),
        generator.request([], n=2, seed=7),
    ]
    alone = [sample for request in requests for sample in generator.generate([request], QUICK)]
    assert texts(generator.generate(requests, QUICK)) == texts(alone)
    again = generator.generate([generator.request([], seed=8, template="___{3-4} the river ___")], QUICK)
    assert texts(again) == texts(alone[7:8])


def test_blanks_are_filled_to_suit_the_given_words(generator: Generator) -> None:
    """Sentences of the toy grammar have a noun behind an adjective, and at their ends."""
    nouns = {"cat", "dog", "river", "house"}
    for template, position in (("the red ___{5} .", 2), ("the small dog sees a ___{1} .", 5)):
        samples = generator.generate([generator.request([], n=24, template=template)])
        assert sum(sample.tokens[position] in nouns for sample in samples) >= 20
        assert len({sample.text for sample in samples}) >= 3


def test_controls_compose_with_a_template(generator: Generator) -> None:
    controls = ["words: river, finds", "pos: DET NOUN VERB DET ADJ NOUN PUNCT"]
    request = generator.request(controls, n=12, template="the ___ old ___")
    samples = generator.generate([request])
    assert all(sample.tokens[0] == "the" and "old" in sample.tokens for sample in samples)
    assert sum(sample.controls[0].verdict.success is True for sample in samples) >= 7


@pytest.mark.parametrize(
    ("template", "controls", "message"),
    [
        ("the ___ cat", ["length: 2"], "'the ___ cat' takes 3 to 12 words, which 'length: 2' does not allow"),
        ("___{3-4}", ["length: 7-9"], "'___{3-4}' takes 3 to 4 words, which 'length: 7-9' does not allow"),
        ("a ___{13} b", [], "'a ___{13} b' takes 15 words or more; this model writes at most 12"),
        ("the cat", [], "'the cat' has no blank to fill"),
    ],
)
def test_what_cannot_be_filled(generator: Generator, template: str, controls: list[str], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        generator.request(controls, template=template)
    assert message in str(raised.value)
