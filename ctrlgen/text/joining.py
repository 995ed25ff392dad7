"""Words to text: `do n't` is written `don't`, `family - friendly ,` is written `family-friendly,`.

A word leans to the left or to the right where no space stands on that side. docs/text.md has examples.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Leaning(NamedTuple):
    """On which sides a word stands without a space."""

    left: bool = False
    right: bool = False


LEFT, RIGHT, BOTH, NONE = Leaning(True, False), Leaning(False, True), Leaning(True, True), Leaning()

CLOSING = frozenset([".", ",", ";", ":", "!", "?", ")", "]", "}", "%", "…", "”", "’’", "''", "°", "′", "″"])
OPENING = frozenset(["(", "[", "{", "“", "‘", "``", "¿", "¡"])
CURRENCY = frozenset(["£", "$", "€", "¥"])
JOINERS = frozenset(["-", "/"])
DASHES = JOINERS | {"–", "—"}
SECOND_PARTS = {"not": ("can",), "na": ("gon", "wan"), "ta": ("got",), "me": ("gim", "lem")}  # of one written word
SHORTENED = frozenset(["em", "til", "till", "tis", "twas", "cause", "bout", "round", "n"])  # not leaning: get 'em
DROPPED = frozenset(["o", "th", "t", "y", "ol"])  # words that lost their ends: o' , th'
ENDS = re.compile(r"\.+|[!?]+|…")
IDEOGRAPHIC = re.compile(r"[⺀-鿿豈-﫿＀-￯\U00020000-\U0003ffff]")  # Chinese and Japanese, with their marks
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")  # Thai, Lao, Myanmar, Khmer


@dataclass(frozen=True, slots=True)
class Given:
    """A word that a user has given, and how it was typed."""

    text: str  # as the model knows it
    typed: str
    before: str | None = None  # between it and the given word before it; None where others may stand there
    touches: Leaning = NONE  # on which sides it was typed without a space to what is to be written


@dataclass(frozen=True, slots=True)
class Written:
    """A text, and where each of its words stands in it."""

    text: str
    offsets: tuple[tuple[int, int], ...]  # of each word's first character, and behind its last

    def words(self) -> list[tuple[str, str]]:
        """What stands before each word, and the word as it is written."""
        ends = [0, *(end for _, end in self.offsets)]
        return [
            (self.text[end:start], self.text[start:stop])
            for end, (start, stop) in zip(ends, self.offsets, strict=False)
        ]


def detokenize(words: Sequence[str]) -> str:
    """The text a person would write for these words: `family-friendly, £20-25.`"""
    return write(words).text


def write(words: Sequence[str], given: Sequence[Given | None] = ()) -> Written:
    """The text of words. Those that are given, None where one is not, and the spaces between them are as typed."""
    given = given or [None] * len(words)
    spaces, text, offsets = spacing(words), "", []
    for place, (word, typed) in enumerate(zip(words, given, strict=True)):
        text += gap(given[place - 1], typed, spaces[place]) if place else ""
        start = len(text)
        text += typed.typed if typed else word
        offsets.append((start, len(text)))
    return Written(text, tuple(offsets))


def gap(left: Given | None, right: Given | None, usual: str) -> str:
    """What stands between two words. What was typed goes before what is usual."""
    if left and right and right.before is not None:
        return right.before
    if (left and left.touches.right) or (right and right.touches.left):
        return ""
    if (left and left.text in DASHES) or (right and right.text in DASHES):
        return " "  # after `5 -` or before `- 10`
    return usual


def spacing(words: Sequence[str]) -> list[str]:
    """What stands before each word in the text: a space or nothing."""
    leanings = [leaning(words, place) for place in range(len(words))]
    for place, side in quotation_marks(words).items():
        leanings[place] = side
    spaces = [""] * min(1, len(words))
    for place in range(1, len(words)):
        joined = leanings[place - 1].right or leanings[place].left or unspaced(words[place - 1], words[place])
        spaces.append("" if joined else " ")
    return spaces


def leaning(words: Sequence[str], place: int) -> Leaning:
    """Of a word that is no quotation mark."""
    word = words[place]
    before = words[place - 1] if place else ""
    after = words[place + 1] if place + 1 < len(words) else ""
    if (
        word in CLOSING
        or ENDS.fullmatch(word)
        or is_clitic(word)
        or before.lower() in SECOND_PARTS.get(word.lower(), ())
    ):
        return LEFT
    if word in OPENING or word == "#" or (word == "+" and after[:1].isdigit() and not before[-1:].isdigit()):
        return RIGHT
    if word in CURRENCY:
        return LEFT if before[-1:].isdigit() and not after[:1].isdigit() else RIGHT
    if word == "—":
        return BOTH
    if word == "–" and before[-1:].isdigit() and after[:1].isdigit():
        return BOTH
    if word == "/" and before.lower() == "w":  # w/ milk
        return LEFT
    if word == "/" and before == "]" and (after[:1].isalnum() or after == "["):
        return BOTH
    if word in JOINERS and before[-1:].isalnum():
        hanging = after in ("and", "or") and word == "-" and words[place + 2 : place + 3] != ["-"]  # low- and
        if hanging:
            return LEFT
        return BOTH if after[:1].isalnum() or (before[-1:].isdigit() and after in CURRENCY) else NONE
    return NONE


def is_clitic(word: str) -> bool:
    """`'s`, `n't` and the like."""
    if word.lower() in ("n't", "n’t"):
        return True
    return len(word) > 1 and word[0] in "'’" and word[1:].isalpha() and word[1:].lower() not in SHORTENED


def quotation_marks(words: Sequence[str]) -> dict[int, Leaning]:
    """Which straight marks open (lean right), and which close or are apostrophes (lean left)."""
    double = [place for place, word in enumerate(words) if word == '"']
    single = [place for place, word in enumerate(words) if word in ("'", "’")]
    return pair_double(words, double) | pair_single(words, single)


def pair_double(words: Sequence[str], places: Sequence[int]) -> dict[int, Leaning]:
    """In turn; but the first may close what a sentence before has opened: `Yes , " he said .`"""
    inside = False
    if places and places[0] > 0 and (len(places) % 2 or words[0][:1].isupper()):
        after = words[places[0] + 1 : places[0] + 2]
        inside = ends_speech(words[places[0] - 1]) and (not after or after[0][:1].islower())
    sides = {}
    for number, place in enumerate(places, 1):
        later = places[number] if number < len(places) else None
        after = words[place + 1] if place + 1 < len(words) else ""
        is_odd = (len(places) - number) % 2 == inside  # as a quotation mark, it or a later one would have no partner
        if after and is_measure(words, place) and (is_odd or (not inside and are_measures(words, place, later))):
            sides[place] = LEFT
            continue
        if not inside and place > 0 and ((not after or after in CLOSING) or turns(words, place, later)):
            inside = True  # it closes what nothing has opened
        sides[place] = LEFT if inside else RIGHT
        inside = not inside
    return sides


def turns(words: Sequence[str], place: int, later: int | None) -> bool:
    """Whether one turn of talk ends at a mark and the next begins: `... late ? " " Yes . `"""
    return later == place + 1 and ends_speech(words[place - 1])


def pair_single(words: Sequence[str], places: Sequence[int]) -> dict[int, Leaning]:
    """As double ones, once apostrophes are told from them."""
    sides, inside = {}, False
    for place, later in zip(places, [*places[1:], None], strict=False):
        if inside:
            inside = later is not None and (is_plural(words, place) or is_dropped(words, place))
            sides[place] = LEFT
        elif is_apostrophe(words, place, later) or are_measures(words, place, later):
            sides[place] = LEFT
        else:
            sides[place], inside = RIGHT, True
    return sides


def is_apostrophe(words: Sequence[str], place: int, later: int | None) -> bool:
    """Whether a mark outside quotations opens none; `later` is the place of the next one."""
    before = words[place - 1] if place else ""
    after = words[place + 1] if place + 1 < len(words) else ""
    after_word = before[-1:].isalnum()
    if not after or (after_word and after in CLOSING) or is_dropped(words, place):
        return True
    if later is None:
        return after_word or (ends_speech(before) and (after[:1].islower() or after == "I"))
    return is_plural(words, place) and is_plural(words, later)


def is_measure(words: Sequence[str], place: int) -> bool:
    """Whether the mark there may be one of inches or feet: `24 "`."""
    return place > 0 and words[place - 1][-1:].isnumeric()


def are_measures(words: Sequence[str], place: int, later: int | None) -> bool:
    """Whether this mark and the next may be of inches or feet, as in `24 " x 30 "`, rather than around `Apollo 13`."""
    after = "".join(words[place + 1 : place + 2])
    return later is not None and is_measure(words, place) and is_measure(words, later) and not after[:1].isupper()


def is_dropped(words: Sequence[str], place: int) -> bool:
    return place > 0 and words[place - 1].lower() in DROPPED


def is_plural(words: Sequence[str], place: int) -> bool:
    """Whether the mark there may be the apostrophe of `the guests ' pub`."""
    around = words[max(0, place - 1)], "".join(words[place + 1 : place + 2])
    return around[0][-1:] in tuple("sSxz") and around[1][:1].isalnum()


def ends_speech(word: str) -> bool:
    return word == "," or bool(ENDS.fullmatch(word))


def unspaced(before: str, after: str) -> bool:
    """Whether two words stand together because of their script."""
    left, right = before[-1:], after[:1]
    if IDEOGRAPHIC.match(left) or IDEOGRAPHIC.match(right):
        return not (left in CLOSING and not IDEOGRAPHIC.match(left))
    return bool(UNSPACED.match(left) and UNSPACED.match(right))
