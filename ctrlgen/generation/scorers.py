"""Scorers by name: a Python function, or a label of a `transformers` text classifier. Code that is named is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ctrlgen.controls.oracles import load_function
from ctrlgen.errors import UsageError, did_you_mean, first_line
from ctrlgen.settings import Scorer

CLASSIFIER = "hf:"


def load_scorer(name: str) -> Scorer:
    """`MODULE:FUNCTION` or `hf:MODEL=LABEL`. Raises UsageError."""
    if name.startswith(CLASSIFIER):
        return load_classifier(name.removeprefix(CLASSIFIER))
    if ":" not in name:
        raise UsageError(f"--scorer {name!r}: write MODULE:FUNCTION, or hf:MODEL=LABEL")
    return load_function("--scorer", name)


def load_classifier(name: str) -> Scorer:
    """p(LABEL | text) by a text classifier of `transformers`."""
    model, equals, label = name.rpartition("=")
    if not equals or not model or not label:
        raise UsageError(f"--scorer 'hf:{name}': write hf:MODEL=LABEL")
    from transformers import pipeline

    try:
        classify = pipeline("text-classification", model=model, top_k=None, device="cpu")
    except (OSError, ValueError) as error:
        raise UsageError(f"--scorer 'hf:{name}': {first_line(error)}") from error
    labels = list((classify.model.config.id2label or {}).values())
    if label not in labels:
        known = f" Known are {', '.join(labels)}."
        raise UsageError(f"--scorer 'hf:{name}': {model} has no label {label!r}.{did_you_mean(label, labels) or known}")

    def score(texts: Sequence[str]) -> list[float]:
        answers: Any = classify(list(texts), truncation=True)
        return [next(one["score"] for one in answer if one["label"] == label) for answer in answers]

    return score
