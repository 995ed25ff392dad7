"""Text to words, as the Penn Treebank splits: `do n't`, `it 's`, `family - friendly`, `$ 5`; each with its offsets.

One regular expression finds the words, a word at each match, its alternatives tried in order. A tokenizer keeps the
expression that it was trained with in its file, so a later change here leaves the ids of older models as they are.
docs/text.md shows the rules by example.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Regex
from tokenizers.pre_tokenizers import PreTokenizer, Split

# Of raw text before Penn contractions: `isn 't`, `a . m .`. Models trained on it keep it.
OLD_PATTERN = r"\d+(?:[.,:]\d+)+|['’]\p{L}+|[\p{L}\p{M}\p{N}_]+|\.{2,}|[^\s]"

NOT_IN_WORD = r"(?<![\p{L}\p{M}\p{N}_])"  # where a word may begin
WORD_ENDS = r"(?![\p{L}\p{M}\p{N}_])"
SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\u30FC\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"  # scripts without spaces
LETTERS = rf"[\p{{L}}\p{{M}}\p{{N}}_\u200C\u200D\u00AD&&[^{SPACELESS}]]"
INVISIBLE = r"\s\u200B\u2060\uFEFF\u00AD"
APOSTROPHE = "['’]"
CLITIC = rf"{APOSTROPHE}(?i:s|t|m|d|ll|re|ve){WORD_ENDS}"
URL_END = r"[^\s<>\"“”.,;:!?)\]'’]"
DOMAINS = "com|org|net|edu|gov|mil|info|io|ai|tv|uk|de|fr|eu|ca|au|nz|ie|jp|cn|ru|br|nl|se|ch|za"  # none that is a word
FILES = "txt|pdf|doc|docx|xls|xlsx|htm|html|csv|json|jsonl|zip|exe|jpg|png|gif|mp3|mp4|py|js"
TITLES = "Mr|Mrs|Ms|Messrs|Mmes|Dr|Drs|St|Ste|Prof|Rev|Fr|Capt|Lt|Col|Sgt|Maj|Gov|Sen|Hon|Jr|Sr|Mt|Ft|Ave|Blvd|Rd"
SHORT = rf"{TITLES}|Inc|Ltd|Corp|Co|Bros|Ph\.D|Jan|Feb|Aug|Sept|Oct|Nov|Dec|vs|etc|approx|ca|cf|al"

BEFORE_CONTRACTIONS = [
    rf"(?:https?|ftp)://[^\s<>\"“”]*{URL_END}",
    rf"{NOT_IN_WORD}www\.[^\s<>\"“”]*{URL_END}",
    rf"{NOT_IN_WORD}[\p{{L}}\p{{N}}._%+-]{{1,64}}@[\p{{L}}\p{{N}}.-]{{1,99}}\.\p{{L}}{{2,}}",  # e-mail
    rf"{NOT_IN_WORD}(?<![-.])(?:[\p{{L}}\p{{N}}-]{{1,63}}\.){{1,9}}(?i:{DOMAINS}|{FILES}){WORD_ENDS}"  # a.org/b
    rf"(?:/(?:[^\s<>\"“”]*{URL_END})?)?",
    rf"{NOT_IN_WORD}[@#][\p{{L}}_][\p{{L}}\p{{N}}_]*",  # @name, #topic
    r"[0-9#*]\uFE0F?\u20E3",  # keycaps
    rf"{NOT_IN_WORD}[:;=]['’]?-?[)(|\\/*DPp3]{WORD_ENDS}|</?3|\^_+\^",  # :-)
    rf"{NOT_IN_WORD}(?:\p{{L}}\.){{2,}}(?:\p{{L}}{WORD_ENDS})?",  # U.S., a.m., U.S.A
    rf"{NOT_IN_WORD}\p{{L}}\.\p{{L}}{WORD_ENDS}",
    rf"{NOT_IN_WORD}(?:{SHORT})\.{WORD_ENDS}",
    rf"{NOT_IN_WORD}No\.(?=\s*\d)",
    rf"{NOT_IN_WORD}(?!I\.)\p{{Lu}}\.(?=\s+\p{{Lu}})",  # J. Smith
    rf"{NOT_IN_WORD}(?:\p{{L}}\+\+|(?i:[cfj])\#){WORD_ENDS}",  # C++, C#
    rf"{NOT_IN_WORD}\p{{Lu}}{{1,3}}&\p{{Lu}}{{1,3}}{WORD_ENDS}",  # AT&T
    rf"{NOT_IN_WORD}\p{{L}}/\p{{L}}{WORD_ENDS}",  # n/a, w/o
    rf"{NOT_IN_WORD}\.(?i:net){WORD_ENDS}",
    r"\d{4}-\d\d-\d\d(?!\d)|(?:\d-)?\d{3}-\d{3}-\d{4}(?!\d)|\d{3}-\d{4}(?!\d)",  # days, telephone numbers
    r"\d+(?:[.,:/]\d+)+|(?<![\p{L}\p{N}.])\.\d+",
    r"\d+(?=[ap]\.m)",
]
PENN_CONTRACTIONS = [
    rf"\p{{L}}+?(?=n{APOSTROPHE}t(?!\p{{L}})|N{APOSTROPHE}T(?!\p{{L}}))",  # do n't
    rf"(?i:n{APOSTROPHE}t)(?!\p{{L}})",
    rf"{NOT_IN_WORD}(?i:can(?=not{WORD_ENDS})|gon(?=na{WORD_ENDS})|wan(?=na{WORD_ENDS})|got(?=ta{WORD_ENDS}))",
    rf"{NOT_IN_WORD}(?i:gim(?=me{WORD_ENDS})|lem(?=me{WORD_ENDS}))",
]
AFTER_CONTRACTIONS = [
    CLITIC,
    rf"{NOT_IN_WORD}{APOSTROPHE}(?i:n{APOSTROPHE}|(?:em|till?|tis|twas|cause|bout|round){WORD_ENDS}|\d\ds?{WORD_ENDS})",
    rf"(?=[{SPACELESS}])\X",
    rf"(?!\u00AD){LETTERS}+(?:(?!{CLITIC}){APOSTROPHE}{LETTERS}+)*",  # o'clock, O'Neill
    r"\.{2,}|[!?]{2,}|-{2,}|''|``",
    r"([=*~+<>|])\1+",
    rf"(?![{INVISIBLE}])\X",  # a mark, or an emoji with all that is joined to it
]
PATTERN = "|".join(BEFORE_CONTRACTIONS + PENN_CONTRACTIONS + AFTER_CONTRACTIONS)
WITHOUT_PENN_CONTRACTIONS = "|".join(BEFORE_CONTRACTIONS + AFTER_CONTRACTIONS)  # `isn 't`, as E2E has it

STRAIGHT = str.maketrans("‘’‛“”„", "'''\"\"\"", "\u00ad")


@dataclass(frozen=True, slots=True)
class Piece:
    """A word, and where it stands in the text that it was found in."""

    text: str  # the word as the model knows it: composed characters, straight quotes
    start: int  # of its first character
    end: int  # behind its last


def splitter(pattern: str) -> PreTokenizer:
    """What finds the words of a text by a pattern. Raises Exception where the pattern is none."""
    return Split(Regex(pattern), behavior="removed", invert=True)


def plain(word: str) -> str:
    """A word in composed characters and with straight quotes: `don’t` is the word `don't`."""
    if word.isascii():
        return word
    return unicodedata.normalize("NFC", word).translate(STRAIGHT)


def pieces(text: str, words: PreTokenizer) -> list[Piece]:
    """The words of a text in order, with their offsets in it."""
    return [Piece(plain(word), start, end) for word, (start, end) in words.pre_tokenize_str(text)]


OPENING = frozenset(["(", "[", "``", "¿", "¡", "-", "--", "–", "—", "*"])
CLOSING = frozenset([")", "]", "''"])
QUOTES = frozenset(['"', "'"])


def sentence_starts(words: Sequence[str], whole: bool = True) -> list[bool]:
    """Whether each word may be the first of a sentence: of the text, if it is `whole`, or after `.`, `!` or `?`.

    Not after a closing quotation mark, since `" Really ? " he asked .` goes on.
    """
    starts, start, quotes = [], whole, set[str]()
    for word in words:
        starts.append(start)
        if word in quotes:  # closes
            quotes.remove(word)
            start = False
        elif start and word in QUOTES:
            quotes.add(word)
        elif word == '"':
            quotes.add(word)
            start = False
        elif not (start and word in OPENING | CLOSING):
            start = word == "." or (word[:1] in ("!", "?") and set(word) <= {"!", "?"})
    return starts


def lowered(word: str) -> str:
    """A word with one capital, its first letter, in small letters; any other as it is."""
    low = word[:1].lower() + word[1:]
    return low if is_plain_word(low) and low.islower() and len(low) == len(word) else word


def capitalized(word: str) -> str:
    """A word of small letters with a capital; any other, such as `iPhone` or `http://a.org`, as it is."""
    return word[:1].upper() + word[1:] if is_plain_word(word) and word.islower() else word


def is_plain_word(word: str) -> bool:
    return word.isalpha() or word.replace("'", "").isalpha()
