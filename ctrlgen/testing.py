"""What a classifier must do, as a test that anyone's may call: `check_classifier(Rhyme, model)`.

from ctrlgen import from_pretrained
from ctrlgen.testing import check_classifier

def test_rhyme():
    check_classifier(Rhyme, from_pretrained("e2e"), values=["pub", "near"])
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor

from ctrlgen.checkpoint import DiffusionLM
from ctrlgen.controls.classifier import Asks, Classifier, Verdict
from ctrlgen.controls.contract import refuse_incomplete
from ctrlgen.controls.encoded import encode, take_rows, tensors_of
from ctrlgen.controls.language import parse_statement
from ctrlgen.controls.registry import Controls
from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.errors import CtrlgenError

NOISE = 2.0  # sigma/alpha at which heads are read
NEW_WORD = "zorblax"
TOLERANCE = 1e-3  # nats; filling a batch up may change the order of sums
NONSENSE = ("", " ", "☃", "@", '"', "(", "no such value", "0", "-1", "1e999", "a" * 2000)


def check_classifier(
    kind: type[Classifier], model: DiffusionLM, values: Sequence[str] | None = None, name: str | None = None
) -> None:
    """Raises AssertionError that says which part of the contract a classifier breaks.

    A trained kind must have been trained on the model. values: what is asked for, the value of its `example` unless
    given. name: of the control, the kind's own unless given.
    """
    refuse_incomplete(kind.kind, kind)
    name = name or kind.kind
    classifier = load(kind, model, name)
    values = list(values or [parse_statement(kind.example).value])
    check_parsing(classifier, values)
    for target in read(classifier, values):
        lengths = allowed(classifier, target, model)
        check_guide(classifier, model, target, lengths)
        check_oracle(classifier, target, texts_of(model, lengths))
        check_hooks(classifier, target, lengths)
    check_values(classifier, texts_of(model, [3, 4, 5]))


def load(kind: type[Classifier], model: DiffusionLM, name: str) -> Classifier:
    classifier = Controls(model).load(kind, name)
    assert isinstance(classifier, Classifier), f"load() gives a {type(classifier).__name__}, not a Classifier"
    return classifier


def read(classifier: Classifier, values: Sequence[str]) -> list[Any]:
    return [classifier.parse(value) for value in values]


def allowed(classifier: Classifier, target: Any, model: DiffusionLM) -> list[int]:
    """Up to three lengths that the target allows, from the shortest to the longest."""
    every = range(1, model.longest + 1)
    said = {n: classifier.allows_length(target, n) for n in every}
    assert all(isinstance(allows, bool) for allows in said.values()), "allows_length() must give True or False"
    lengths = [n for n in every if said[n]]
    assert lengths, f"allows_length() allows no text of 1 to {model.longest} words"
    return sorted({lengths[0], lengths[len(lengths) // 2], lengths[-1]})


def check_parsing(classifier: Classifier, values: Sequence[str]) -> None:
    """The same value is the same target, whatever was read before; what is none is refused by a UsageError."""
    before, first = dict(vars(classifier)), read(classifier, values)
    for nonsense in NONSENSE:
        refusal = refused(classifier, nonsense)
        assert "\n" not in refusal, f"parse({nonsense[:20]!r}) is refused in more than one line"
    again = read(classifier, list(reversed(values)))[::-1]
    assert first == again, "parse() gives another target for the same value: targets must compare as equal"
    after = vars(classifier)
    changed = sorted(key for key in after if key not in before or before[key] is not after[key])
    assert not changed, f"parse() changes what the classifier holds: {', '.join(changed)}"


def refused(classifier: Classifier, value: str) -> str:
    """What parse() says against a value, "" where it takes it. Raises AssertionError where that is no UsageError."""
    try:
        classifier.parse(value)
    except CtrlgenError as error:
        return str(error)
    except Exception as error:
        raise AssertionError(f"parse({value[:20]!r}) raises {type(error).__name__}, not UsageError") from error
    return ""


def check_guide(classifier: Classifier, model: DiffusionLM, target: Any, lengths: Sequence[int]) -> None:
    """log p has a row for each text, a gradient, and depends on nothing but its own row's words."""
    n, count = max(lengths), len(lengths)
    encoded = encode(classifier, [target] * count, lengths, model.device)
    assert all(len(part) == count for part in tensors_of(encoded)), "encode() must give each target a row"
    with torch.enable_grad():
        x_t = noised(model, n, count).requires_grad_(True)
        denoised = denoise(model, x_t, lengths)
        log_p = classifier.log_prob(denoised, encoded)
        assert log_p.shape == (count,), f"log_prob() gives the shape {tuple(log_p.shape)}, not ({count},)"
        assert log_p.is_floating_point(), f"log_prob() gives {log_p.dtype}"
        assert not log_p.isnan().any(), "log_prob() gives NaN"
        assert (log_p < TOLERANCE).all(), f"log_prob() gives {log_p.tolist()}: a log-probability is at most 0"
        if not classifier.structural:
            (gradient,) = torch.autograd.grad(log_p.sum(), x_t)
            assert gradient.isfinite().all(), "the gradient of log_prob() in x_t is not finite"
            assert (gradient.abs().amax((1, 2)) > 0).any(), "log_prob() does not depend on x_t: nothing can be guided"
    filled = x_t.detach().clone()
    for row, length in enumerate(lengths):
        filled[row, length:] = 3.0
    with torch.no_grad():
        other = classifier.log_prob(denoise(model, filled, lengths), encoded)
        close(log_p, other, "log_prob() reads positions beyond a text's length")
        for row, length in enumerate(lengths):
            alone = denoise(model, x_t[row : row + 1, :length].detach(), [length])
            mine = classifier.log_prob(alone, encode(classifier, [target], [length], model.device))
            close(log_p[row : row + 1], mine, "log_prob() of a text depends on the texts beside it")
        rows = torch.tensor([count - 1], device=model.device)
        part = classifier.log_prob(denoise(model, x_t[-1:].detach(), lengths[-1:]), take_rows(encoded, rows))
        close(log_p[-1:], part, "an encoding's rows cannot be taken apart")
        check_words(classifier, denoised, encoded)
        if model.opens:
            check_new_word(classifier, model.with_words({NEW_WORD: None}), target, x_t.detach(), lengths)


def check_new_word(
    classifier: Classifier, wider: DiffusionLM, target: Any, x_t: Tensor, lengths: Sequence[int]
) -> None:
    """A request may have words that the vocabulary lacks: `wider` has one."""
    classifier, denoised = classifier.for_model(wider), denoise(wider, x_t, lengths)
    encoded = encode(classifier, [target] * len(lengths), lengths, wider.device)
    try:
        log_p = classifier.log_prob(denoised, encoded)
    except RuntimeError as error:
        raise AssertionError(f"log_prob() fails where a request has a new word: {error}") from error
    assert log_p.shape == (len(lengths),), "log_prob() of a request with a new word has another shape"
    check_words(classifier, denoised, encoded)


def check_words(classifier: Classifier, denoised: Denoised, encoded: Any) -> None:
    of_words = classifier.word_log_prob(denoised, encoded)
    if of_words is not None:
        wanted = tuple(denoised.logits.shape)
        assert of_words.shape == wanted, f"word_log_prob() gives the shape {tuple(of_words.shape)}, not {wanted}"
        assert not of_words.isnan().any(), "word_log_prob() gives NaN"


def check_oracle(classifier: Classifier, target: Any, texts: Sequence[Sequence[str]]) -> None:
    """A verdict for each text, in order, always the same, whatever stands beside it."""
    verdicts = classifier.check(texts, [target] * len(texts))
    assert len(verdicts) == len(texts), f"check() gives {len(verdicts)} verdicts on {len(texts)} texts"
    assert all(isinstance(verdict, Verdict) for verdict in verdicts), "check() must give a list of Verdict"
    for words, verdict in zip(texts, verdicts, strict=True):
        assert verdict.success in (True, False, None), f"a verdict's success is {verdict.success!r}"
        assert all(0 <= place < len(words) for place in verdict.failed), "a verdict names positions beyond the text"
        assert classifier.check([words], [target]) == [verdict], "check() of a text depends on the texts beside it"


def check_hooks(classifier: Classifier, target: Any, lengths: Sequence[int]) -> None:
    """What is asked of a target besides: its parts and its opposite can be asked for as well."""
    others = list(classifier.parts_of(target))
    assert others, "parts_of() gives no target: return [target] where there are no parts"
    opposite = classifier.negate(target)
    for other in [*others, *([] if opposite is None else [opposite])]:
        tensors_of(classifier.encode([other], [max(lengths)]))
    asks = classifier.asks(target)
    assert asks is None or isinstance(asks, Asks), "asks() must give an Asks or None"
    prior = classifier.length_prior(target, lengths)
    assert prior is None or len(prior) == len(lengths), "length_prior() must give each length a weight"
    assert classifier.contradiction(target, classifier, target) is None, "contradiction(): a target contradicts itself"


def check_values(classifier: Classifier, texts: Sequence[Sequence[str]]) -> None:
    """What `values_of` and `choices` give can be asked for."""
    values = classifier.values_of(texts, [{}] * len(texts), Random(0))
    assert len(values) == len(texts), f"values_of() gives {len(values)} values of {len(texts)} texts"
    for value in [*values, *classifier.choices()]:
        if value is not None:
            classifier.parse(value)


def texts_of(model: DiffusionLM, lengths: Sequence[int]) -> list[list[str]]:
    """Words of the model's in no order that means anything."""
    rng = Random(0)
    words = [word for word in model.tokenizer.words if word.isalpha()]
    return [[rng.choice(words) for _ in range(length)] for length in lengths]


def noised(model: DiffusionLM, length: int, count: int) -> Tensor:
    """Words of the model's under noise. (count, length, d)"""
    rng = torch.Generator().manual_seed(0)
    embeddings = model.denoiser.embeddings().detach().cpu()
    ids = torch.randint(len(embeddings), (count, length), generator=rng)
    noise = torch.randn(count, length, embeddings.shape[1], generator=rng)
    return ((embeddings[ids] + NOISE * noise) / (1 + NOISE**2) ** 0.5).to(model.device)


def denoise(model: DiffusionLM, x_t: Tensor, lengths: Sequence[int]) -> Denoised:
    """What the denoiser says of texts of these lengths."""
    log_snr = torch.full((1,), -2.0 * float(torch.tensor(NOISE).log()), device=model.device)
    uneven = None if set(lengths) == {x_t.shape[1]} else torch.tensor(list(lengths), device=model.device)
    return model.denoiser(x_t, log_snr, lengths=uneven)


def close(one: Tensor, other: Tensor, message: str) -> None:
    same = (one == other) | ((one - other).abs() <= TOLERANCE * (1 + one.abs()))
    assert same.all(), f"{message}: {one.tolist()} and {other.tolist()}"
