"""Words, starts and ends: the automaton against enumeration, the oracle, what is refused, and texts made with them."""

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ctrlgen.controls.language import parse_statement
from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.errors import UsageError
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.jobs import allowed_lengths
from ctrlgen.settings import Guidance, Settings
from ctrlgen.text.tokenizer import SPECIAL, WordTokenizer
from ctrlgen_classifiers.patterns.compiling import leaves
from ctrlgen_classifiers.words import Ends, Matches, Starts, Wanted, Words

KINDS = {kind.kind: kind for kind in (Words, Starts, Ends, Matches)}
MODEL: Any = SimpleNamespace(tokenizer=WordTokenizer.train(["a b A . a b"], min_count=1))
VOCABULARY = MODEL.tokenizer.words
WRITTEN = [i for i, word in enumerate(VOCABULARY) if word not in ("<pad>", "<end>")]  # <unk> counts as some word
LENGTH = 4
CONTROLS = [
    "words: a", "words: b a", "words: a, b", "words: a b, b a", "words: a a b", "words: a a, a b a", "words: b, b, .",
    "starts: a", "starts: A b", "starts: a a b", "ends: a", "ends: b a", "ends: a a", "ends: a .", "ends: . b",
    "words: a|b b, b{2}", "words: a ... a", "words: /[ab]/{3}", "words: (a|b)? .", "starts: (a b|b)+ .",
    "ends: * a|b *", "matches: a * ... b", "matches: (a|b b)* (.)?", "matches: *{1,2} (b|.) ...",
    "matches: /[ab.]/ a{,2} (b|a .)+", "not matches: (a|b)* ...", "not words: a * a, b{2}", "not ends: (a|b) .",
    "not words: a", "not words: a b", "not words: b, a .", "not words: a a b, b a", "not starts: a b", "not ends: a",
]  # fmt: skip


def asked(text: str, model: Any = MODEL) -> tuple[Words, Wanted]:
    statement = parse_statement(text)
    classifier = KINDS[statement.name].load(model, statement.name)
    target = classifier.parse(statement.value)
    return classifier, classifier.negate(target) if statement.negated else target


def denoised(logits: Tensor, lengths: Sequence[int] | None = None) -> Denoised:
    """What the denoiser says, where only words matter."""
    nothing = logits.new_zeros(())
    return Denoised(nothing, nothing, logits, nothing, (), None if lengths is None else torch.tensor(lengths))


def random_logits(rows: int, length: int = LENGTH, seed: int = 0) -> Tensor:
    logits = 2.0 * torch.randn(rows, length, len(VOCABULARY), generator=torch.Generator().manual_seed(seed))
    logits = logits.double()
    logits[..., [i for i in range(len(VOCABULARY)) if i not in WRITTEN]] = -1e5  # no part of a text of true length
    return logits


def passing_texts(classifier: Words, target: Wanted, length: int) -> Tensor:
    """The ids of every text of a length that the oracle approves of. (N, length)"""
    texts = list(itertools.product(WRITTEN, repeat=length))
    verdicts = classifier.check([[VOCABULARY[i] for i in text] for text in texts], [target] * len(texts))
    passing = [text for text, verdict in zip(texts, verdicts, strict=True) if verdict.success]
    return torch.tensor(passing, dtype=torch.long).reshape(-1, length)


def probabilities(log_p: Tensor, texts: Tensor) -> Tensor:
    """The probability of each text, its words drawn apart. (n, V), (N, n) -> (N,)"""
    return log_p.gather(1, texts.T).sum(0).exp()


@pytest.mark.parametrize("text", CONTROLS)
def test_the_probability_is_that_of_all_texts_the_oracle_approves_of(text: str) -> None:
    classifier, target = asked(text)
    lengths = [LENGTH, 3, 2]
    logits = random_logits(3)
    log_p = classifier.log_prob(denoised(logits, lengths), classifier.encode([target] * 3, lengths))
    for row, n in enumerate(lengths):
        log_q = logits[row, :n].log_softmax(-1)
        expected = probabilities(log_q, passing_texts(classifier, target, n)).sum()
        assert float(log_p[row].exp()) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("text", CONTROLS)
def test_the_probability_given_each_word(text: str) -> None:
    classifier, target = asked(text)
    logits = random_logits(1, seed=1)
    log_q = logits[0].log_softmax(-1)
    given = classifier.word_log_prob(denoised(logits), classifier.encode([target], [LENGTH]))[0]
    texts = passing_texts(classifier, target, LENGTH)
    p = probabilities(log_q, texts)
    for i, word in itertools.product(range(LENGTH), WRITTEN):
        expected = p[texts[:, i] == word].sum() / log_q[i, word].exp()
        assert float(given[i, word].exp()) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("text", ["words: a b, b a", "starts: a b", "ends: b a", "not words: a, b a"])
def test_the_gradient_is_that_of_finite_differences(text: str) -> None:
    classifier, target = asked(text)
    lengths = [LENGTH, 3]
    encoded = classifier.encode([target] * 2, lengths)
    logits = random_logits(2).clamp(min=-8.0).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: classifier.log_prob(denoised(x, lengths), encoded), (logits,))


def test_rows_of_a_batch_have_targets_of_their_own() -> None:
    classifier, _ = asked("words: a")
    targets = [classifier.parse(value) for value in ("a", "a b, b a, .", "b a")]
    targets.append(classifier.negate(targets[1]))
    logits, lengths = random_logits(4, seed=2), [LENGTH, LENGTH, 3, 2]
    encoded = classifier.encode(targets, lengths)
    together = classifier.log_prob(denoised(logits, lengths), encoded)
    given = classifier.word_log_prob(denoised(logits, lengths), encoded)
    for row, (target, n) in enumerate(zip(targets, lengths, strict=True)):
        alone = denoised(logits[row : row + 1, :n])
        encoded_alone = classifier.encode([target], [n])
        torch.testing.assert_close(together[row], classifier.log_prob(alone, encoded_alone)[0])
        torch.testing.assert_close(given[row, :n], classifier.word_log_prob(alone, encoded_alone)[0])


def test_company_does_not_show_in_the_last_bit() -> None:
    """Values and gradients decide the next x_t: a sample must not depend on the targets of other rows."""

    def guide(logits: Tensor, targets: Sequence[Wanted]) -> tuple[Tensor, Tensor]:
        logits = logits.clone().requires_grad_(True)
        log_p = classifier.log_prob(denoised(logits), classifier.encode(targets, [9] * len(targets)))
        return log_p.detach(), torch.autograd.grad(log_p.sum(), logits)[0]

    names = [chr(ord("a") + i) * 2 for i in range(26)] + [chr(ord("a") + i) * 3 for i in range(26)]
    model: Any = SimpleNamespace(tokenizer=WordTokenizer.train([" ".join(names)], min_count=1))
    classifier, small = asked("words: aa bb, cc, dd, ee ff, gg, hh", model)
    _, large = asked(f"not words: {', '.join(names)}", model)
    for seed in range(20):
        logits = torch.randn(2, 9, len(model.tokenizer), generator=torch.Generator().manual_seed(seed))
        together, alone = guide(logits, [small, large]), guide(logits[:1], [small])
        assert torch.equal(together[0][:1], alone[0])
        assert torch.equal(together[1][:1], alone[1])


def test_a_fixed_length_text_ends_at_its_end() -> None:
    """Diffusion-LM writes <end> and <pad> behind its texts."""
    classifier, target = asked("ends: b a")
    words = ["a", "b", "a", ".", "<end>", "<pad>"]
    for text, log_p in ((words, 0.0), (["b", "a", "b", "<end>", "<pad>", "<pad>"], -100.0)):
        logits = torch.full((1, len(text), len(VOCABULARY)), -100.0)
        logits[0, torch.arange(len(text)), [VOCABULARY.index(word) for word in text]] = 0.0
        assert float(classifier.log_prob(denoised(logits), classifier.encode([target], [6]))) == pytest.approx(
            log_p, rel=0.1, abs=1e-6
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_text_that_is_next_to_impossible_still_has_a_gradient(dtype: torch.dtype) -> None:
    classifier, target = asked("words: b b b")
    b = VOCABULARY.index("b")
    logits = torch.zeros(1, 6, len(VOCABULARY), dtype=dtype)
    logits[..., b] = -60.0
    logits[0, 1:4, b] = -58.0
    logits.requires_grad_(True)
    log_p = classifier.log_prob(denoised(logits), classifier.encode([target], [6]))
    assert -185 < float(log_p.detach()) < -175  # p = 1e-78
    (gradient,) = torch.autograd.grad(log_p.sum(), logits)
    assert torch.isfinite(gradient).all()
    assert (gradient[0, 1:4, b] > 0.8).all()  # where it is least unlikely
    assert (gradient[0, 5, b] < 0.2).all()


def test_a_certain_word_can_still_be_avoided() -> None:
    """log(1 - p) has no gradient in float32 once p rounds to 1; the automaton counts what is left."""
    classifier, target = asked("not words: b")
    logits = torch.zeros(1, 3, len(VOCABULARY))
    logits[0, 1, VOCABULARY.index("b")] = 40.0
    logits.requires_grad_(True)
    log_p = classifier.log_prob(denoised(logits), classifier.encode([target], [3]))
    assert float(log_p.detach()) == pytest.approx(-38.3, abs=0.5)
    (gradient,) = torch.autograd.grad(log_p.sum(), logits)
    assert float(gradient[0, 1, VOCABULARY.index("b")]) == pytest.approx(-1.0, abs=1e-3)


# The oracle


@pytest.mark.parametrize(
    ("control", "text", "success", "detail"),
    [
        ("words: a, b a", "x B A", True, None),
        ("words: b a, .", "b x a", False, "missing: 'b a', '.'"),
        ("starts: a b", "A B x", True, None),
        ("starts: a b", "x a b", False, "missing: 'a b'"),
        ("ends: a b", "x a b", True, None),
        ("ends: a b", "x a b !", True, None),
        ("ends: a b", "x a b . .", False, "missing: 'a b'"),
        ("ends: a b", "a b x", False, "missing: 'a b'"),
        ("ends: b .", "a b .", True, None),
        ("not words: a, b b", "x b .", True, None),
        ("not words: a, b b", "x A b B", False, "'a' at position 2; 'b b' at position 3"),
        ("not starts: a", "b a", True, None),
        ("not ends: a", "b a .", False, "'a' at position 2"),
    ],
)
def test_the_oracle(control: str, text: str, success: bool, detail: str | None) -> None:
    classifier, target = asked(control)
    (verdict,) = classifier.check([text.split()], [target])
    assert (verdict.success, verdict.detail) == (success, detail)


def test_the_oracle_marks_words_to_be_avoided() -> None:
    classifier, target = asked("not words: a b, .")
    (verdict,) = classifier.check([["x", "a", "b", "A", "B"]], [target])
    assert (verdict.failed, verdict.correct) == ((1, 2, 3, 4), 0.5)


# What is asked for


def test_phrases_are_split_at_commas_outside_of_quotes() -> None:
    model: Any = SimpleNamespace(
        tokenizer=WordTokenizer.train(["cheap , cheerful food - shop ."] * 2), device=torch.device("cpu")
    )

    def phrases(text: str) -> list[list[str]]:
        return [[str(word) for word in leaves(pattern.node)] for pattern in asked(text, model)[1].patterns]

    assert phrases('words: Cheap,"cheap, cheerful" ,  food-shop.,') == [
        ["Cheap"], ["cheap", ",", "cheerful"], ["food", "-", "shop", "."]
    ]  # fmt: skip
    for value in ("cheap, cheerful", '"cheap, cheerful"'):
        assert phrases(f"starts: {value}") == [["cheap", ",", "cheerful"]]


@pytest.mark.parametrize(
    ("control", "shortest"),
    [("words: a", 1), ("words: a b, b a", 3), ("words: a, b, .", 3), ("starts: a b a", 3), ("ends: a b", 2),
     ("not words: a, b", 0), ("not starts: a", 0)],
)  # fmt: skip
def test_texts_too_short_for_the_phrases_are_not_allowed(control: str, shortest: int) -> None:
    classifier, target = asked(control)
    assert [classifier.allows_length(target, n) for n in range(1, 5)] == [n >= shortest for n in range(1, 5)]


def test_what_is_asked_for_twice_is_asked_for_once(generator: Generator) -> None:
    (once,) = generator.request(["words: dog, cat"]).controls
    (often,) = generator.request(["words: " + "cat, dog, " * 900]).controls
    assert often.classifier.automaton(often.target).states == once.classifier.automaton(once.target).states == 4


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ("words: rivers, cat", "words: the word 'rivers' is not in this model's vocabulary. Did you mean river?"),
        ("starts: the zzyzx", "starts: the word 'zzyzx' is not in this model's vocabulary."),
        ("not ends: in the hause", "ends: the word 'in' is not in this model's vocabulary."),
        ('words: ,"", ,', "words: no word is given; write for example `words: cheap, city centre`"),
        ('ends: ""', "ends: no word is given; write for example `ends: near the river`"),
        (
            "words: the, a, red, small, old, cat, dog, river, house, sees",
            "words: too many words for one control; give the rest to another -c (more than 512 states)",
        ),
        (
            "words: " + ", ".join(f"cat *{{,{n}}} dog" for n in range(1, 66)),
            "words: too many words for one control; give the rest to another -c (more than 64 patterns)",
        ),
        (
            "words: cat dog cat dog cat dog cat dog cat dog cat dog cat",
            "'words: cat dog cat dog cat dog cat dog cat dog cat dog cat' asks for a length beyond this model, "
            "which writes 1 to 12 words",
        ),
    ],
)
def test_what_cannot_be_asked_for(generator: Generator, control: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        generator.request([control])
    assert str(raised.value) == message


def test_many_words_may_be_avoided(generator: Generator) -> None:
    generator.request(["not words: the, a, red, small, old, cat, dog, river, house, sees, likes, finds"])


def test_lengths_are_long_enough_for_the_words(generator: Generator) -> None:
    request = generator.request(["words: red cat, old dog, small river, red house"])
    assert allowed_lengths(generator.model, request.controls) == [8, 9, 10, 11, 12]


# Texts


EXACT = Settings(guidance=Guidance("exact", strength=1.0))
PAPER = Settings(guidance=Guidance("paper"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("controls", "settings"),
    [
        (["words: red, river"], Settings()),
        (["words: red, river"], EXACT),
        (["words: red, river"], PAPER),
        (["starts: a small dog", "length: 7"], Settings()),
        (["starts: a small dog", "length: 7"], EXACT),
        (["ends: the old cat", "length: 7"], Settings()),
        (["not words: the, house"], Settings()),
        (["not words: the, house"], EXACT),
    ],
)
def test_guided_texts_have_what_was_asked_for(generator: Generator, controls: list[str], settings: Settings) -> None:
    def right(settings: Settings) -> int:
        return sum(
            s.success is True for s in generator.generate([generator.request(controls, n=16, seed=30)], settings)
        )

    by_chance = right(Settings(steps=12, guidance=Guidance(strength=0.0)))
    assert by_chance <= 6
    assert right(settings) >= by_chance + 8


@pytest.mark.slow
def test_words_compose_with_a_pattern(generator: Generator) -> None:
    controls = ["pos: DET ADJ NOUN VERB DET NOUN PUNCT", "words: red dog", "not starts: the"]
    samples = generator.generate([generator.request(controls, n=8)])
    right = [{"red", "dog"} < set(sample.tokens) and sample.tokens[0] == "a" for sample in samples]
    assert sum(right) >= 6
    assert not set(SPECIAL) & {word for sample in samples for word in sample.tokens}


@pytest.mark.slow
def test_the_score_is_the_probability_in_the_finished_text(generator: Generator) -> None:
    for sample in generator.generate([generator.request(["words: red"], n=8)]):
        assert sample.score == pytest.approx(float("red" in sample.tokens), abs=0.05)
