"""What two texts have in common, in order, and what one changes in the other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from ctrlgen.text.joining import NONE, Given, Leaning, Written, write
from ctrlgen.text.splitting import Piece
from ctrlgen.text.tokenizer import is_split

MOST_COMBINED = 4  # changes of one text that are combined in every way


@dataclass(frozen=True)
class Change:
    """Words start ... end - 1 of a text become other words: none where they are taken out, or of none, put in."""

    start: int
    end: int
    words: tuple[str, ...]


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


def changes(source: Sequence[str], text: Sequence[str]) -> list[Change]:
    """What makes the text of the source, in order."""
    found, i, j = [], 0, 0
    for after_i, after_j in [*common_words(source, text), (len(source), len(text))]:
        if after_i > i or after_j > j:
            found.append(Change(i, after_i, tuple(text[j:after_j])))
        i, j = after_i + 1, after_j + 1
    return found


def changed(source: Sequence[str], made: Sequence[Change]) -> list[str]:
    """The source with these changes, which are in order."""
    words, done = [], 0
    for change in made:
        words += [*source[done : change.start], *change.words]
        done = change.end
    return words + list(source[done:])


def selections(found: Sequence[Change]) -> Iterator[tuple[Change, ...]]:
    """Some of the changes: in every way where they are few, else all of them, all but one, and one alone."""
    sizes = range(1, len(found) + 1)
    for size in sizes if len(found) <= MOST_COMBINED else (1, len(found) - 1, len(found)):
        yield from combinations(found, size)


def touches(source: str, piece: Piece) -> Leaning:
    """On which sides a mark stands without a space to another word."""
    if piece.text[0].isalnum():
        return NONE
    before, after = source[: piece.start][-1:], source[piece.end :][:1]
    return Leaning(bool(before.strip()), bool(after.strip()))


def written(source: str, pieces: Sequence[Piece], words: Sequence[str]) -> Written:
    """These words as the source has them, to the character, wherever it does. What is new is spaced as the source is.

    pieces: the words of the source, with their offsets.
    """
    usual = " " if is_split([source]) else None
    place = {j: i for i, j in common_words([piece.text for piece in pieces], words)}  # in the source
    given: list[Given | None] = []
    for j, word in enumerate(words):
        i = place.get(j)
        if i is None:
            given.append(Given(word, word, usual) if usual else None)
            continue
        piece = pieces[i]
        follows = i > 0 and place.get(j - 1) == i - 1
        before = source[pieces[i - 1].end : piece.start] if follows else usual
        typed = source[piece.start : piece.end] if piece.text == word else word
        given.append(Given(word, typed, before, touches(source, piece)))
    body = write(words, given)
    lead = source[: pieces[0].start] if place.get(0) == 0 else ""
    tail = source[pieces[-1].end :] if place.get(len(words) - 1) == len(pieces) - 1 else ""
    offsets = tuple((start + len(lead), end + len(lead)) for start, end in body.offsets)
    return Written(lead + body.text + tail, offsets)
