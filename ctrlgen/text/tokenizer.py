"""Words to ids and back, through a word-level `tokenizers` model saved as tokenizer.json.

Words are always what a person would write (`The`, `do`, `n't`); ids may be truecased: the first word of a sentence
then has the id that it has inside one (`the`), and `decode` gives its capital back. Text that arrives already split
by spaces (`family - friendly , £ 20 - 25 .`) is trained on as it stands, raw text (`family-friendly, £20-25.`) is
split as the Penn Treebank does. Either way `split` accepts both, so users can type what they would write, and
`detokenize` (`joining.py`) gives back what they would read. docs/text.md has examples.
"""

import copy
import json
import re
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import Split, WhitespaceSplit

from ctrlgen.errors import CtrlgenError, first_line
from ctrlgen.text.splitting import (
    OLD_PATTERN,
    PATTERN,
    WITHOUT_PENN_CONTRACTIONS,
    Piece,
    capitalized,
    lowered,
    pieces,
    plain,
    sentence_starts,
    splitter,
)

PAD, UNK, END = "<pad>", "<unk>", "<end>"
SPECIAL = (PAD, UNK, END)
START = "<start>"  # in front of the texts of imported models
NEWLINE = "\n"  # imported models may have it as a word, between a text and <end>
RESERVED = (*SPECIAL, START)  # never learned from texts

SAMPLE = 1000  # texts looked at to see whether they are already split
GLUED_END = re.compile(r"\w[.,!?](\s|$)")
SPLIT_END = re.compile(r"(^|\s)[.,!?](\s|$)")
MOSTLY = 0.9  # share of texts that begin with a capital where the case of a first word says little


def is_split(texts: Iterable[str]) -> bool:
    """Whether punctuation already stands apart from words in these texts."""
    sample = list(islice(texts, SAMPLE))
    glued = sum(len(GLUED_END.findall(text)) for text in sample)
    apart = sum(len(SPLIT_END.findall(text)) for text in sample)
    return apart > glued


def begin_with_capitals(texts: Iterable[str]) -> bool:
    """Whether nearly all of these texts begin with a capital, as far as they begin with a letter that has one."""
    letters = [letter for text in texts if (letter := next(filter(str.isalpha, text), "")).swapcase() != letter]
    return sum(letter.isupper() for letter in letters) > MOSTLY * len(letters)


class WordTokenizer:
    """A word-level vocabulary with special tokens <pad>, <unk> and <end> in front, or of an imported model anywhere.

    Ids are stable over save and load, and rise as frequency falls where the vocabulary was learned here. Words outside
    the vocabulary become <unk>.
    """

    def __init__(self, tokenizer: Tokenizer, truecase: bool = False):
        """Takes a word-level tokenizer that splits by whitespace or by a pattern. Raises ValueError for any other."""
        self._tokenizer, self.truecase = tokenizer, truecase
        self._vocabulary = tokenizer.get_vocab()
        self.words = sorted(self._vocabulary, key=self._vocabulary.__getitem__)
        if [self._vocabulary[word] for word in self.words] != list(range(len(self.words))):
            raise ValueError("its ids are not 0, 1, 2, ... with one word each")
        imported = START in self._vocabulary and self._vocabulary.keys() >= set(SPECIAL)
        if not imported and tuple(self.words[: len(SPECIAL)]) != SPECIAL:
            raise ValueError(f"its first words are not {', '.join(SPECIAL)}")
        self.pad_id, self.unk_id, end_id = (self._vocabulary[word] for word in SPECIAL)
        self.opening = [self._vocabulary[word] for word in (START,) if word in self._vocabulary]
        self.closing = [self._vocabulary[word] for word in (NEWLINE,) if word in self._vocabulary] + [end_id]
        self.end_id = self.closing[0]  # what stands after the last word of a text, in a model of fixed length
        self._simple = splitter(OLD_PATTERN)
        how = json.loads(tokenizer.to_str())["pre_tokenizer"] or {}
        match how.get("type"):
            case "WhitespaceSplit":
                self._pattern = None
                isolated = "'t" in self._vocabulary and "n't" not in self._vocabulary  # `isn 't`, not `is n't`
                self._splitter = splitter(WITHOUT_PENN_CONTRACTIONS if isolated else PATTERN)
            case "Split" if "Regex" in how["pattern"]:
                self._pattern = how["pattern"]["Regex"]
                self._splitter = splitter(self._pattern)
            case _:
                raise ValueError("it splits texts neither at spaces nor by a pattern")
        self._by_vocabulary = self._pattern in (None, OLD_PATTERN)  # whether its words decide how a text is split

    @classmethod
    def train(
        cls, texts: Sequence[str], min_count: int = 2, max_size: int = 30_000, truecase: bool | None = None
    ) -> "WordTokenizer":
        """Learn the vocabulary: every word seen at least `min_count` times, at most `max_size`, most frequent first.

        `truecase` None is yes for raw texts that nearly all begin with a capital.
        """
        apart = is_split(texts)
        if truecase is None:
            truecase = not apart and begin_with_capitals(texts)
        find = None if apart else splitter(PATTERN)

        def words_of(text: str) -> list[str]:
            return composed_words(text) if find is None else [plain(word) for word, _ in find.pre_tokenize_str(text)]

        counts = word_counts(occurrence for text in texts for occurrence in placed(words_of(text), truecase))
        words = [*SPECIAL, *most_common(counts, min_count)[: max(0, max_size - len(SPECIAL))]]
        tokenizer = Tokenizer(WordLevel({word: id for id, word in enumerate(words)}, unk_token=UNK))
        tokenizer.normalizer = NFC()
        tokenizer.pre_tokenizer = WhitespaceSplit() if apart else Split(Regex(PATTERN), "removed", invert=True)
        tokenizer.add_special_tokens(list(SPECIAL))
        return cls(tokenizer, truecase)

    @classmethod
    def of_words(cls, words: Sequence[str]) -> "WordTokenizer":
        """A tokenizer of texts split by spaces; a word's id is its place. SPECIAL must be among the words."""
        tokenizer = Tokenizer(WordLevel({word: id for id, word in enumerate(words)}, unk_token=UNK))
        tokenizer.normalizer = NFC()
        tokenizer.pre_tokenizer = WhitespaceSplit()
        return cls(tokenizer)

    @classmethod
    def load(cls, path: Path) -> "WordTokenizer":
        """Raises CtrlgenError, naming the file, for one that is missing or no tokenizer of ours."""
        try:
            text = path.read_text(encoding="utf-8")
            normalizer = json.loads(text)["normalizer"]
            return cls(Tokenizer.from_str(text), bool(normalizer and normalizer.get("truecase")))
        except Exception as error:  # tokenizers raises plain Exception
            raise CtrlgenError(f"{path}: missing or not a tokenizer: {first_line(error)}") from error

    def to_json(self) -> str:
        if not self.truecase:
            return self._tokenizer.to_str(pretty=True)
        file = json.loads(self._tokenizer.to_str())
        file["normalizer"]["truecase"] = True  # a key of ours, which `tokenizers` passes over
        return json.dumps(file, indent=2, ensure_ascii=False)

    def grown(self, texts: Sequence[str], min_count: int, max_size: int) -> "WordTokenizer":
        """This tokenizer with the words of texts that it lacks, seen at least `min_count` times, most frequent first.

        Words that it has keep their ids; it has `max_size` words at most.
        """
        split = map(self.split_training, texts)
        counts = word_counts(
            occurrence
            for words in split
            for occurrence, id in zip(placed(words, self.truecase), self.ids(words), strict=True)
            if id == self.unk_id
        )
        new = most_common(counts, min_count)[: max(0, max_size - len(self))]
        file = json.loads(self.to_json())
        file["model"]["vocab"] |= {word: id for id, word in enumerate(new, len(self))}
        return WordTokenizer(Tokenizer.from_str(json.dumps(file)), self.truecase)

    def with_words(self, words: Sequence[str]) -> "WordTokenizer":
        """The same tokenizer, whose vocabulary has these words as well, with the ids that follow. Not to be saved."""
        wider = copy.copy(self)
        wider.__dict__.pop("folded", None)  # made of fewer words
        wider.words = [*self.words, *words]
        wider._vocabulary = self._vocabulary | {word: id for id, word in enumerate(words, len(self.words))}
        return wider

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        """Whether the model can write the word, if only with a capital at a sentence's start."""
        known = word in self._vocabulary or (self.truecase and lowered(word) in self._vocabulary)
        return known and word not in (*RESERVED, NEWLINE)

    def split(self, text: str) -> list[str]:
        """The words of a text, in the case that they are written in."""
        return [piece.text for piece in self.pieces(text)]

    def pieces(self, text: str) -> list[Piece]:
        """The words of a text, with their offsets in it."""
        found = pieces(text, self._splitter)
        return list(self._as_known(text, found)) if self._by_vocabulary else found

    def _as_known(self, text: str, found: list[Piece]) -> Iterator[Piece]:
        """Pieces, but known chunks stay whole, unknown ones (`3/5`) are split where all parts are known."""
        chunks = list(re.finditer(r"\S+", text))
        starts = [chunk.start() for chunk in chunks]
        for number, group in groupby(found, key=lambda piece: bisect_right(starts, piece.start)):
            chunk, parts = chunks[number - 1], list(group)
            whole = Piece(unicodedata.normalize("NFC", chunk[0]), *chunk.span())
            if self._stays_whole(whole.text, [piece.text for piece in parts]):
                yield whole
            else:
                for part in parts:
                    yield from self._known_parts(text, part)

    def _known_parts(self, text: str, piece: Piece) -> list[Piece]:
        typed = unicodedata.normalize("NFC", text[piece.start : piece.end])
        if typed in self:  # a curly quote that the vocabulary has
            return [Piece(typed, piece.start, piece.end)]
        parts = [
            Piece(plain(part), piece.start + start, piece.start + end)
            for part, (start, end) in self._simple.pre_tokenize_str(text[piece.start : piece.end])
        ]
        return parts if piece.text not in self and all(part.text in self for part in parts) else [piece]

    def _stays_whole(self, chunk: str, parts: list[str]) -> bool:
        """A known chunk such as `St.` stays whole, but not a training typo such as `5.` whose parts are commoner."""
        if chunk not in self._vocabulary or chunk in SPECIAL:
            return False
        id = self._vocabulary[chunk]
        return any(self._vocabulary.get(part, id) >= id for part in parts)

    def encode(self, text: str, whole: bool = True) -> list[int]:
        """Ids of a text's words, as `split` gives them. `whole` is False for a phrase from inside a sentence."""
        return self.ids(self.split(text), whole)

    def encode_training(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts, split exactly as the vocabulary was learned."""
        return [self._training_ids(text) for text in texts]

    def split_training(self, text: str) -> list[str]:
        """The words of one text, split exactly as the vocabulary was learned."""
        if not self._by_vocabulary:
            return [plain(word) for word, _ in self._splitter.pre_tokenize_str(text)]
        if self._pattern is not None:
            return [word for word, _ in self._splitter.pre_tokenize_str(unicodedata.normalize("NFC", text))]
        return composed_words(text)

    def _training_ids(self, text: str) -> list[int]:
        never = {self.pad_id, *self.opening, *self.closing}
        return [self.unk_id if id in never else id for id in self.ids(self.split_training(text))]

    def ids(self, words: Sequence[str], whole: bool = True) -> list[int]:
        """Ids of words. `whole` is False for words from inside a sentence, the first of which begins none."""
        if not self._by_vocabulary:
            words = [word if word in self._vocabulary else plain(word) for word in words]
        known = self.truecased(words, whole) if self.truecase else words
        return [self._vocabulary.get(word, self.unk_id) for word in known]

    @cached_property
    def folded(self) -> dict[str, int]:
        """The id of each word whatever its case: of case variants that of the most frequent."""
        return {word.casefold(): id for id, word in reversed(list(enumerate(self.words)))}

    def truecased(self, words: Sequence[str], whole: bool = True) -> list[str]:
        """Words with those that begin a sentence in the case that is commoner inside one, as the vocabulary has it."""
        starts = sentence_starts(words, whole)
        return [self._true_case(word) if start else word for word, start in zip(words, starts, strict=True)]

    def _true_case(self, word: str) -> str:
        low, last = lowered(word), len(self.words)
        return low if self._vocabulary.get(low, last) < self._vocabulary.get(word, last) else word

    def filled(self, ids: Sequence[int], length: int) -> list[int]:
        """As a model of fixed length sees a text: closed by <end>, then padding."""
        closed = [*ids, *self.closing]
        return closed + [self.pad_id] * (length - len(closed))

    def decode(self, ids: Sequence[int]) -> list[str]:
        """Words of ids, as written; everything from the first <end> on, all padding and every <start> is dropped."""
        words = []
        for id in ids:
            if id in self.closing:
                break
            if id != self.pad_id and id not in self.opening:
                words.append(self.words[id])
        return self.written(words)

    def written(self, words: Sequence[str]) -> list[str]:
        """Truecased words with capitals where sentences begin; words of a model that is not truecased as they are."""
        if not self.truecase:
            return list(words)
        starts = sentence_starts(words)
        return [capitalized(word) if start else word for word, start in zip(words, starts, strict=True)]


def composed_words(text: str) -> list[str]:
    """The words of a text that is split by spaces."""
    return unicodedata.normalize("NFC", text).split()


def placed(words: Sequence[str], truecase: bool) -> Iterator[tuple[str, bool]]:
    """Each word, and whether it begins a sentence, where that is a matter of its case."""
    return zip(words, sentence_starts(words) if truecase else [False] * len(words), strict=True)


def word_counts(occurrences: Iterable[tuple[str, bool]]) -> Counter[str]:
    """How often each word occurs. One that begins a sentence counts in the case that is commoner inside one."""
    inside, first = Counter[str](), Counter[str]()
    for word, starts in occurrences:
        (first if starts else inside)[word] += 1
    counts = inside.copy()
    for word, count in first.items():
        low = lowered(word)
        counts[low if inside[low] and inside[low] >= inside[word] else word] += count
    return counts


def most_common(counts: Mapping[str, int], least: int) -> list[str]:
    """The words that may be learned, seen at least so often, the most frequent first."""
    common = sorted((-count, word) for word, count in counts.items() if count >= least and word not in RESERVED)
    return [word for _, word in common]
