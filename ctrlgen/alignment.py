"""Which words of two texts are the same, in order."""

from collections.abc import Sequence


def common_words(one: Sequence[str], other: Sequence[str]) -> list[tuple[int, int]]:
    """The positions of the longest common subsequence of two texts, whatever the words' case."""
    one, other = [word.casefold() for word in one], [word.casefold() for word in other]
    most = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]  # in common from words i and j on
    for i in reversed(range(len(one))):
        for j in reversed(range(len(other))):
            same = one[i] == other[j]
            most[i][j] = 1 + most[i + 1][j + 1] if same else max(most[i + 1][j], most[i][j + 1])
    pairs, i, j = [], 0, 0
    while i < len(one) and j < len(other):
        if one[i] == other[j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif most[i + 1][j] >= most[i][j + 1]:
            i += 1
        else:
            j += 1
    return pairs
