"""`check_classifier` states the contract: our own classifiers keep it, and each way of breaking it is named."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from ctrlgen import Classifier, CtrlgenError, Denoised, DiffusionLM, UsageError, Verdict, from_pretrained
from ctrlgen.controls.registry import classifier_kinds
from ctrlgen.testing import check_classifier


@pytest.fixture(scope="module")
def e2e() -> DiffusionLM:
    return from_pretrained("e2e")


VALUES: dict[str, tuple[str, list[str]]] = {"field": ("food", ["Japanese", "absent"])}
OF_EXAMPLES = ["ends", "length", "like", "matches", "pos", "span", "starts", "tree", "words"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OF_EXAMPLES, *VALUES])
def test_our_own_keep_the_contract(e2e: DiffusionLM, name: str) -> None:
    asked_as, values = VALUES.get(name, (name, None))
    check_classifier(classifier_kinds()[name], e2e, values, asked_as)


def test_every_kind_is_among_them() -> None:
    """`label` is `field` with one column; of it and of `means` (test_means.py) the bundled model has none."""
    assert set(classifier_kinds()) - {*OF_EXAMPLES, *VALUES} == {"label", "means"}


@dataclass(frozen=True)
class Asked:
    ids: Tensor  # (B,)
    nothing: None = None


class First(Classifier):
    """The first word, its targets encoded as a dataclass."""

    summary, syntax, example, oracle, trained = "the first word", "first: WORD", "first: The", "looking", False

    def __init__(self, model: DiffusionLM):
        self.tokenizer = model.tokenizer

    @classmethod
    def load(cls, model: DiffusionLM, name: str) -> Classifier:
        return cls(model)

    def parse(self, value: str) -> Any:
        if value not in self.tokenizer:
            raise UsageError(f"first: {value[:20]!r} is no word of this model")
        return value

    def encode(self, targets: Sequence[Any], lengths: Sequence[int]) -> Any:
        return Asked(torch.tensor([self.tokenizer.ids([target])[0] for target in targets]))

    def log_prob(self, denoised: Denoised, encoded: Any) -> Tensor:
        return denoised.logits[:, 0].log_softmax(-1).gather(-1, encoded.ids[:, None]).squeeze(-1)

    def check(self, texts: Sequence[Sequence[str]], targets: Sequence[Any]) -> list[Verdict]:
        return [Verdict(words[0] == target) for words, target in zip(texts, targets, strict=True)]


class Forgets(First):
    def parse(self, value: str) -> Any:
        self.last = super().parse(value)
        return self.last


class Crashes(First):
    def parse(self, value: str) -> Any:
        return self.tokenizer.words[self.tokenizer.words.index(value)]


class Unequal(First):
    def parse(self, value: str) -> Any:
        return [super().parse(value), object()]

    def encode(self, targets: Sequence[Any], lengths: Sequence[int]) -> Any:
        return super().encode([target[0] for target in targets], lengths)


class OneRow(First):
    def encode(self, targets: Sequence[Any], lengths: Sequence[int]) -> Any:
        return super().encode(targets[:1], lengths)


class Lists(First):
    def encode(self, targets: Sequence[Any], lengths: Sequence[int]) -> Any:
        return self.tokenizer.ids(targets)


class Scalar(First):
    def log_prob(self, denoised: Denoised, encoded: Any) -> Tensor:
        return super().log_prob(denoised, encoded).sum()


class Positive(First):
    def log_prob(self, denoised: Denoised, encoded: Any) -> Tensor:
        return -super().log_prob(denoised, encoded)


class Deaf(First):
    def log_prob(self, denoised: Denoised, encoded: Any) -> Tensor:
        return super().log_prob(denoised, encoded) * 0 - 1


class Beyond(First):
    """Reads the last position of the batch, which may be filling."""

    def log_prob(self, denoised: Denoised, encoded: Any) -> Tensor:
        return denoised.logits[:, -1].log_softmax(-1).gather(-1, encoded.ids[:, None]).squeeze(-1)


class Sociable(First):
    def log_prob(self, denoised: Denoised, encoded: Any) -> Tensor:
        log_p = super().log_prob(denoised, encoded)
        return log_p - log_p.max().detach() - 1 + log_p.min().detach()


class Few(First):
    def check(self, texts: Sequence[Sequence[str]], targets: Sequence[Any]) -> list[Verdict]:
        return super().check(texts, targets)[:1]


class Invents(First):
    def values_of(self, texts: Any, rows: Any, rng: Any) -> list[str | None]:
        return ["qwertz"] * len(texts)


def test_a_strangers_classifier_with_a_dataclass_of_tensors(e2e: DiffusionLM) -> None:
    check_classifier(First, e2e)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Forgets, r"parse\(\) changes what the classifier holds: last"),
        (Crashes, r"parse\(''\) raises ValueError, not UsageError"),
        (Unequal, "targets must compare as equal"),
        (Scalar, r"log_prob\(\) gives the shape \(\), not \(3,\)"),
        (Positive, "a log-probability is at most 0"),
        (Deaf, r"log_prob\(\) does not depend on x_t"),
        (Beyond, r"log_prob\(\) reads positions beyond a text's length|depends on the texts beside it"),
        (Sociable, r"log_prob\(\) of a text depends on the texts beside it"),
        (Few, r"check\(\) gives 1 verdicts on 3 texts"),
    ],
)
def test_each_way_of_breaking_it_is_named(e2e: DiffusionLM, kind: type[Classifier], message: str) -> None:
    kind.kind = kind.__name__.lower()
    with pytest.raises(AssertionError, match=message):
        check_classifier(kind, e2e)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (OneRow, r"onerow: encode\(\) gives 3 targets a first dimension of \{1\}"),
        (Lists, r"lists: encode\(\) gives a list, not a tensor, or a tuple or dataclass of tensors"),
        (Invents, "'qwertz' is no word of this model"),
    ],
)
def test_what_generation_refuses_as_well(e2e: DiffusionLM, kind: type[Classifier], message: str) -> None:
    kind.kind = kind.__name__.lower()
    with pytest.raises(CtrlgenError, match=message):
        check_classifier(kind, e2e)
