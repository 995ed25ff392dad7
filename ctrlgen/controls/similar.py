"""The texts of a corpus that are nearest to given ones, by the codes of a classifier that has some: exact search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ctrlgen.controls.classifier import Classifier
from ctrlgen.controls.registry import Controls, classifier_kinds, training_command
from ctrlgen.errors import UsageError, listed

AT_A_TIME = 4096  # texts that are coded together
MOST_TEXTS = 1_000_000


@dataclass(frozen=True)
class Found:
    """A text of a corpus: its place there, from 0, and how near it is, a cosine."""

    place: int
    similarity: float


def coding_control(controls: Controls, name: str | None = None) -> Classifier:
    """The control of this name, or the model's first that has codes. Raises UsageError where it has none."""
    coding = [kind for kind, of in classifier_kinds().items() if of.codes is not Classifier.codes]
    known = [of for of, kind in controls.names().items() if kind in coding]
    if name is not None:
        classifier = controls.classifier(name)
        if classifier.kind not in coding:
            raise UsageError(f"{name}: has no codes by which texts can be compared; use {listed(known or coding)}")
        return classifier
    if not known:
        raise UsageError(
            "no control of this model has codes by which texts can be compared: run "
            f"{training_command(controls.model, (coding or ['KIND'])[0])} first"
        )
    return controls.classifier(known[0])


def nearest(
    classifier: Classifier, queries: Sequence[Sequence[str]], texts: Sequence[Sequence[str]], count: int
) -> list[list[Found]]:
    """For each query the `count` nearest texts, the nearest first, of equally near ones the first. All are compared.

    Queries and texts are words. Raises UsageError for more than MOST_TEXTS texts.
    """
    if len(texts) > MOST_TEXTS:
        raise UsageError(f"{len(texts):,} texts: at most {MOST_TEXTS:,} can be searched")
    wanted = codes_of(classifier, queries)  # (Q, k)
    similarity: np.ndarray = np.zeros((len(queries), 0), dtype=np.float32)
    places: np.ndarray = np.zeros((len(queries), 0), dtype=np.int64)
    for start in range(0, len(texts), AT_A_TIME):
        here = wanted @ codes_of(classifier, texts[start : start + AT_A_TIME]).T
        similarity = np.concatenate([similarity, here], 1)
        numbers = np.broadcast_to(np.arange(start, start + here.shape[1]), here.shape)
        places = np.concatenate([places, numbers], 1)
        best = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
        similarity, places = np.take_along_axis(similarity, best, 1), np.take_along_axis(places, best, 1)
    return [
        [Found(int(place), float(cosine)) for place, cosine in zip(*row, strict=True)]
        for row in zip(places, similarity, strict=True)
    ]


def codes_of(classifier: Classifier, texts: Sequence[Sequence[str]]) -> np.ndarray:
    """(N, k)"""
    codes = classifier.codes(texts)
    assert codes is not None
    return codes.float().cpu().numpy()
