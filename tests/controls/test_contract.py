"""A class that lacks something is refused in one line when it is registered."""

from collections.abc import Sequence
from typing import Any

import pytest
from torch import Tensor

from ctrlgen import Classifier, CtrlgenError, DiffusionLM, Verdict
from ctrlgen.controls.contract import refuse_incomplete, shortcoming
from ctrlgen.controls.registry import classifier_kinds, installed
from ctrlgen.diffusion.denoiser import Denoised


class Shout(Classifier):
    """The least that a classifier must offer: four texts and five methods."""

    summary, syntax, example, oracle = "capitals", "shout: yes", "shout: yes", "looking"

    @classmethod
    def load(cls, model: DiffusionLM, name: str) -> Classifier:
        return cls()

    def parse(self, value: str) -> str:
        return value

    def encode(self, targets: Sequence[Any], lengths: Sequence[int]) -> Tensor:
        raise NotImplementedError

    def log_prob(self, denoised: Denoised, encoded: Tensor) -> Tensor:
        raise NotImplementedError

    def check(self, texts: Sequence[Sequence[str]], targets: Sequence[Any]) -> list[Verdict]:
        return [Verdict(all(map(str.isupper, words))) for words in texts]


def variant(**changed: Any) -> type[Shout]:
    return type("Shout", (Shout,), changed)


def test_four_texts_and_five_methods_are_enough() -> None:
    assert shortcoming("shout", Shout) is None
    assert Shout.kind == "shout"


def test_our_own_pass() -> None:
    installed.cache_clear()
    assert {name: shortcoming(name, kind) for name, kind in classifier_kinds().items()} == dict.fromkeys(
        classifier_kinds()
    )


class NoTexts(Classifier):
    kind = "shout"
    summary, oracle = "capitals", "looking"

    def parse(self, value: str) -> str:
        return value


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (object(), "is no subclass of ctrlgen.Classifier"),
        (Verdict, "is no subclass of ctrlgen.Classifier"),
        (NoTexts, r"lacks syntax, example, load\(\), encode\(\), log_prob\(\), check\(\)$"),
        (variant(kind="loud"), "calls itself 'loud'"),
        (variant(summary=""), "needs a `summary` of one line, not ''"),
        (variant(oracle=3), "needs a `oracle` of one line, not 3"),
        (variant(syntax="one\ntwo"), "needs a `syntax` of one line"),
        (variant(example="yes"), "has an `example` that cannot be asked for: 'yes' is not a control"),
        (variant(parse="yes"), "has a `parse` that is no method"),
        (variant(load=lambda self, model, name: self), r"needs load\(\) as a class method"),
        (variant(check=classmethod(lambda cls, texts, targets: [])), r"needs check\(\) as a method of its instances"),
        (
            variant(encode=lambda self, targets: None),
            r"has encode\(self, targets\), which cannot be given \(targets",
        ),
        (variant(log_prob=lambda self, a, b, c: None), r"has log_prob\(self, a, b, c\), which cannot be given"),
    ],
)
def test_what_is_missing_or_wrong_is_named(found: Any, message: str) -> None:
    with pytest.raises(CtrlgenError, match=message) as raised:
        refuse_incomplete("shout", found)
    assert str(raised.value).startswith("the classifier 'shout' (")
    assert "\n" not in str(raised.value)


def test_more_parameters_with_defaults_are_welcome() -> None:
    assert shortcoming("shout", variant(check=lambda self, texts, targets, strict=False: [])) is None
