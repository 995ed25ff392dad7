"""Patterns made from texts, for evaluation: what a text is asked for is something that a person has written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from ctrlgen.text.tokenizer import WordTokenizer
from ctrlgen_classifiers.patterns.syntax import escape

LONGEST_RUN = 4  # words that one gap or count replaces
KINDS = {"word": 10, "slot": 2, "alternatives": 3, "gap": 1, "count": 1, "inflected": 1, "class": 1}  # drawn so often


def pattern_of(
    words: Sequence[str],
    others: Sequence[str],
    tokenizer: WordTokenizer,
    tags_of: Callable[[str], Sequence[str]],
    rng: Random,
) -> str | None:
    """A pattern that a text matches: most words as they are, the others slots, alternatives, gaps, counts, inflections
    and classes.

    others: words that alternatives are taken from. tags_of: the tags that a word may have.
    None for a text of fewer than two words.
    """
    if len(words) < 2 or not others:
        return None
    parts: list[str] = []
    at = 0
    while at < len(words):
        word = words[at]
        (kind,) = rng.choices(list(KINDS), list(KINDS.values())) if word in tokenizer else ["slot"]
        run = min(rng.randint(1, LONGEST_RUN), len(words) - at) if kind in ("gap", "count") else 1
        match kind:
            case "slot":
                parts.append("*")
            case "alternatives":
                parts.append(f"({escape(word)}|{escape(rng.choice(others))})")
            case "gap" if parts[-1:] != ["..."]:
                parts.append("...")
            case "count":
                parts.append(f"*{{{run},{run + 1}}}")
            case "inflected" if word.isalpha():
                parts.append(f"{word}~")
            case "class" if tags := tags_of(word):
                parts.append(f"<{rng.choice(tags)}>")
            case _:
                run = 1
                parts.append(escape(word))
        at += run
    return " ".join(parts)
