"""Where a text may be changed: templates of rewritings, in which only the words to blame are open, and of drafts, in
which all words are but those that must stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set

LONGER = 2  # words that a rewritten place may gain
MOST_SIZES = 5  # of a rewritten place
DRAFTS = 4  # lengths of drafts
BESIDE = 2  # words that may be taken out on each side of a place to blame
GLUE = 3  # words that may be written beside a phrase that is put in

Span = tuple[int, int]  # places start ... end - 1
Template = tuple[str | None, ...]  # None is a word to be written


def spans(places: Set[int], fixed: Set[int]) -> list[Span]:
    """Places in a row, or with one other between them that is not fixed."""
    found: list[Span] = []
    for place in sorted(places):
        if found and (place == found[-1][1] or (place == found[-1][1] + 1 and place - 1 not in fixed)):
            found[-1] = found[-1][0], place + 1
        else:
            found.append((place, place + 1))
    return found


def rewritings(words: Sequence[str], blamed: Sequence[float], fixed: Set[int], lengths: Set[int]) -> list[Template]:
    """The words with those to blame taken out: of the worst place alone, in several sizes, and of all places.

    blamed: how much each word is to blame, 0 where it is not. `lengths`: those that the whole text may have.
    """
    found = spans({place for place, much in enumerate(blamed) if much > 0}, fixed)
    if not found:
        return []
    worst = max(found, key=lambda span: sum(blamed[span[0] : span[1]]))
    wide = max(0, worst[0] - 1), min(len(words), worst[1] + 1)
    templates = [opened(words, [worst], worst, n) for n in sizes_near(worst, MOST_SIZES)]
    if not fixed & set(range(*wide)):
        templates += [opened(words, [wide], wide, n) for n in sizes_near(wide, 3)]
    if len(found) > 1:
        templates += [opened(words, found, worst, n) for n in sizes_near(worst, 3)]
    return [template for template in templates if len(template) in lengths]


def sizes_near(span: Span, most: int) -> list[int]:
    """The span's size, and those next to it."""
    size = span[1] - span[0]
    return sorted(range(max(1, size - LONGER), size + LONGER + 1), key=lambda n: abs(n - size))[:most]


def opened(words: Sequence[str], found: Sequence[Span], worst: Span, size: int) -> Template:
    """The words with these spans to be written, each in its own size but the worst."""
    template: list[str | None] = []
    done = 0
    for start, end in found:
        template += [*words[done:start], *[None] * (size if (start, end) == worst else end - start)]
        done = end
    return (*template, *words[done:])


def exchanges(words: Sequence[str], blamed: Sequence[float], fixed: Set[int], phrase: Sequence[str]) -> list[Template]:
    """The words with a phrase instead of words to blame: of one place, or of one word in it."""
    found, single = places_to_blame(blamed, fixed)
    return [
        (*words[:start], *between(words[:start], phrase, words[end:]), *words[end:]) for start, end in found + single
    ]


def places_to_blame(blamed: Sequence[float], fixed: Set[int]) -> tuple[list[Span], list[Span]]:
    """The places to blame, and each single word of those that have several."""
    found = spans({place for place, much in enumerate(blamed) if much > 0}, fixed)
    return found, [(place, place + 1) for start, end in found if end - start > 1 for place in range(start, end)]


def deletions(words: Sequence[str], blamed: Sequence[float], fixed: Set[int]) -> list[Template]:
    """The words without a place to blame, or one word of it, and without up to BESIDE words on each side of it."""
    found, single = places_to_blame(blamed, fixed)
    taken = single + [
        (max(0, start - left), end + right)
        for start, end in found
        for left in range(BESIDE + 1)
        for right in range(BESIDE + 1)
    ]
    return [(*words[:start], *words[end:]) for start, end in taken if not fixed & set(range(start, end))]


def between(before: Sequence[str], phrase: Sequence[str], after: Sequence[str]) -> Sequence[str]:
    """A phrase without what stands on its sides already: `The` of `The Mill` behind another `The`."""
    said = max((k for k in range(len(phrase) + 1) if tuple(before[len(before) - k :]) == tuple(phrase[:k])), default=0)
    phrase = phrase[said:]
    follows = max(k for k in range(len(phrase) + 1) if tuple(after[:k]) == tuple(phrase[len(phrase) - k :]))
    return phrase[: len(phrase) - follows]


def insertions(words: Sequence[str], phrase: Sequence[str | None], fixed: Set[int] = frozenset()) -> list[Template]:
    """The words with a phrase put in at each place in turn, but not between two fixed words."""
    return [(*words[:gap], *phrase, *words[gap:]) for gap in range(len(words) + 1) if not {gap - 1, gap} <= fixed]


def glued(words: Sequence[str], gap: int, phrase: Sequence[str]) -> list[Template]:
    """The words with a phrase at a gap, and up to GLUE words to be written on its sides."""
    return [
        (*words[:gap], *[None] * left, *phrase, *[None] * right, *words[gap:])
        for left in range(GLUE + 1)
        for right in range(GLUE + 1)
        if 0 < left + right <= GLUE
    ]


def clauses(words: Sequence[str], phrase: Sequence[str], end: int) -> list[Template]:
    """The words with a phrase at the end, before a closing mark and behind it, and several words before the phrase."""
    lead: list[tuple[int, int]] = [(end, size) for size in (2, 4)] + [(len(words), size) for size in (3, 5)]
    return [
        (*words[:gap], *[None] * size, *phrase, *(() if gap == end < len(words) else (None,)), *words[gap:])
        for gap, size in lead
    ]


def drafts(words: Sequence[str], fixed: Set[int], pivot: int, lengths: Set[int]) -> Iterator[Template]:
    """Texts of about as many words, all to be written but the fixed ones, which stand as far from an end as they did.

    Words are added, or taken out, at the pivot.
    """
    nearest = sorted(lengths, key=lambda n: abs(n - len(words) - 0.5))
    for length in nearest[:DRAFTS]:
        more = length - len(words)
        template: list[str | None] = [None] * length
        places = [place if place < pivot else place + more for place in sorted(fixed)]
        if all(0 <= place < length for place in places) and len(set(places)) == len(places):
            for place, old in zip(places, sorted(fixed), strict=True):
                template[place] = words[old]
            yield tuple(template)
