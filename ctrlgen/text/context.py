"""What stands before a sentence of a longer text, as a model with a context reads it."""

from collections.abc import Sequence


def context_before(sentences: Sequence[Sequence[int]], index: int, most: int, end: int) -> list[int]:
    """The last `most` words before a sentence of a text, the sentences closed by `end`; only whole sentences."""
    words: list[int] = []
    for earlier in reversed(sentences[:index]):
        if len(words) + len(earlier) + 1 > most:
            break
        words = [*earlier, end, *words]
    return words
