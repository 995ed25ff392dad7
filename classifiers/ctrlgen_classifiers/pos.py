"""Part-of-speech control: `pos: DET NOUN VERB ... PUNCT`.

The guide is a head on the denoiser's hidden states; the oracle is spaCy's tagger, which never guides. Universal
tags (https://universaldependencies.org/u/pos) and Penn Treebank tags (as spaCy writes them) are both known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ctrlgen.checkpoint import DiffusionLM
from ctrlgen.controls.classifier import Asks, Classifier, Verdict
from ctrlgen.data.texts import find_text_column, fitting
from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.errors import CtrlgenError, UsageError, did_you_mean
from ctrlgen.training.heads import Example, Head, mix_layers
from ctrlgen.training.trained import Lessons, TrainedClassifier, TrainingData
from ctrlgen_classifiers.tagging import INSTALL_SPACY, tag

if TYPE_CHECKING:
    from datasets import Dataset

UNIVERSAL = tuple("ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X".split())
PENN = tuple(  # as spaCy writes them
    "$ '' , -LRB- -RRB- . : ADD AFX CC CD DT EX FW HYPH IN JJ JJR JJS LS MD NFP NN NNP NNPS NNS PDT POS PRP PRP$ "
    "RB RBR RBS RP SYM TO UH VB VBD VBG VBN VBP VBZ WDT WP WP$ WRB XX ``".split()
)
TAGSETS = {"Universal": UNIVERSAL, "Penn": PENN}
ANY, TAIL = "*", ("...", "…")
ANY_ID = 0  # tag ids: 0 any, then the Universal tags, then the Penn tags
TAG_IDS = {
    "Universal": {tag: 1 + i for i, tag in enumerate(UNIVERSAL)},
    "Penn": {tag: 1 + len(UNIVERSAL) + i for i, tag in enumerate(PENN)},
}
TAG_COUNT = 1 + len(UNIVERSAL) + len(PENN)
TAG_COLUMNS = ("tags", "pos", "upos", "xpos")
HEAD_SIZE = {"width": 128}
SMOOTHING = 0.02  # pseudo-count of each tag in the lexicon
LEAST_SHARE = 0.1  # of a word's occurrences with a tag that it may have


@dataclass(frozen=True)
class Pattern:
    """A tag for each word, `*` for any, from one tagset. With `open_end`, any words may follow."""

    tags: tuple[str, ...]
    tagset: str
    open_end: bool = False

    def ids(self, length: int) -> list[int]:
        """The tags of a text of `length` words; those beyond it are left out."""
        known = TAG_IDS[self.tagset]
        ids = [known.get(tag, ANY_ID) for tag in self.tags[:length]]
        return ids + [ANY_ID] * (length - len(ids))

    def clash(self, other: Pattern) -> str | None:
        """The first position where both cannot be, in words; between tagsets none is known."""
        return clash(self.tags, other.tags) if self.tagset == other.tagset else None


def parse_pattern(value: str) -> Pattern:
    """`DET NOUN ... `, the tagset detected from the tags. Raises UsageError naming what is wrong."""
    words = value.split()
    open_end = bool(words) and words[-1] in TAIL
    if open_end:
        words = words[:-1]
    if not words:
        raise UsageError("pos: the pattern is empty; write tags, for example `pos: DET NOUN VERB ...`")
    for word in words:
        if word in TAIL:
            raise UsageError(f"pos: {word!r} may stand only at the end of a pattern; use {ANY!r} for one open word")
    tags = [word if word == ANY else word.upper() for word in words]
    for word, name in zip(words, tags, strict=True):
        if name != ANY and name not in UNIVERSAL and name not in PENN:
            known = [*UNIVERSAL, *PENN]
            hint = did_you_mean(word, known) or f" Universal tags: {' '.join(UNIVERSAL)}; or Penn tags."
            raise UsageError(f"pos: unknown tag {word!r}.{hint}")
    fitting = [name for name, tagset in TAGSETS.items() if all(tag == ANY or tag in tagset for tag in tags)]
    if not fitting:
        penn_only = next(tag for tag in tags if tag != ANY and tag not in UNIVERSAL)
        universal_only = next(tag for tag in tags if tag != ANY and tag not in PENN)
        raise UsageError(f"pos: {universal_only!r} is a Universal tag and {penn_only!r} a Penn tag; use one set")
    return Pattern(tuple(tags), fitting[0], open_end)


class PosHead(Head):
    """log p(tags | x_t) = sum_i log p(tag_i | x_t).

    An MLP over the denoiser's hidden states corrects the lexicon's estimate sum_w p(w | x_t) p(tag | w).
    """

    lexicon: Tensor

    def __init__(self, vocab_size: int, trunk_layers: int, trunk_width: int, width: int):
        super().__init__()
        self.register_buffer("lexicon", torch.full((vocab_size, TAG_COUNT - 1), 1.0 / TAG_COUNT))
        self.layer_mix = nn.Parameter(torch.zeros(trunk_layers))
        self.hidden = nn.Sequential(nn.Linear(trunk_width, width), nn.GELU(), nn.Linear(width, width), nn.GELU())
        self.output = nn.Linear(width, TAG_COUNT - 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, denoised: Denoised) -> Tensor:
        """log p of every tag of both tagsets at each position. (B, n, TAGS - 1)"""
        mixed = mix_layers(self.layer_mix, denoised)
        logits = (denoised.known_probs @ self.lexicon).clamp(min=1e-6).log() + self.output(self.hidden(mixed))
        universal, penn = logits.split([len(UNIVERSAL), len(PENN)], -1)
        return torch.cat([universal.log_softmax(-1), penn.log_softmax(-1)], -1)

    def log_prob(self, denoised: Denoised, encoded: Tensor) -> Tensor:
        """encoded: tag ids (B, n) -> (B,)"""
        log_p = self(denoised).gather(-1, (encoded - 1).clamp(min=0)[..., None]).squeeze(-1)  # (B, n)
        return (log_p * (encoded != ANY_ID)).sum(-1)

    def accuracy(self, denoised: Denoised, encoded: Tensor) -> Tensor:
        universal, penn = self(denoised).split([len(UNIVERSAL), len(PENN)], -1)
        is_penn = encoded > len(UNIVERSAL)
        guess = torch.where(is_penn, 1 + len(UNIVERSAL) + penn.argmax(-1), 1 + universal.argmax(-1))
        asked = encoded != ANY_ID
        return ((guess == encoded) & asked).sum(-1) / asked.sum(-1).clamp(min=1)

    def encode(self, targets: Sequence[Any], lengths: Sequence[int]) -> Tensor:
        return torch.tensor([pattern.ids(max(lengths)) for pattern in targets])

    def count(self, examples: Sequence[Example[Pattern]]) -> None:
        """p(tag | word), counted in the training texts."""
        counts = torch.full((len(self.lexicon), TAG_COUNT - 1), SMOOTHING)
        for example in examples:
            for word, id in zip(example.tokens, example.target.ids(len(example.tokens)), strict=True):
                if id != ANY_ID:
                    counts[word, id - 1] += 1
        universal, penn = counts.split([len(UNIVERSAL), len(PENN)], -1)
        self.lexicon.copy_(torch.cat([c / c.sum(-1, keepdim=True) for c in (universal, penn)], -1))


class Pos(TrainedClassifier):
    kind = "pos"
    summary = "the part of speech of every word"
    syntax = "pos: TAG TAG ... (Universal or Penn tags; * any one tag; ... any tail)"
    example = "pos: DET NOUN VERB ADJ NOUN PUNCT"
    oracle = "spaCy's tagger"
    suite: ClassVar[str | None] = "pos"
    published_fluency: ClassVar[float] = 0.0005
    composed_with: ClassVar[tuple[str, ...]] = ("field",)
    task: ClassVar[str | None] = "parts of speech"

    head: PosHead

    @classmethod
    def make_head(cls, model: DiffusionLM, config: Mapping[str, Any]) -> PosHead:
        return PosHead(len(model.tokenizer), model.config.layers, model.config.width, **config["head"])

    @classmethod
    def examples(cls, model: DiffusionLM, data: TrainingData) -> Lessons:
        examples = training_examples(model, data.rows, data.text_column, data.label_column)
        return Lessons(examples, networks={"head": HEAD_SIZE})

    def parse(self, value: str) -> Pattern:
        return parse_pattern(value)

    def values_of(
        self, texts: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]], rng: Random
    ) -> list[str | None]:
        """Universal tags, by spaCy."""
        try:
            return [" ".join(universal) for universal, _ in tag(texts)]
        except ImportError as error:
            raise CtrlgenError(f"pos: spaCy is not installed to tag the texts: {INSTALL_SPACY}") from error

    def symbols(self) -> Mapping[str, Sequence[str]]:
        return {f"{name} tags": tags for name, tags in TAGSETS.items()}

    def asks(self, target: Pattern) -> Asks:
        return Asks(tags={place: tag for place, tag in enumerate(target.tags) if tag != ANY})

    @classmethod
    def published_value(cls, line: Mapping[str, Any], inside: Sequence[int]) -> str | None:
        return " ".join(str(line["pos"][place]) for place in inside) if "pos" in line else None

    def parts_of(self, target: Pattern) -> list[Pattern]:
        """A pattern for each tag; the whole where every tag is open."""
        return [
            Pattern((*(ANY,) * place, tag), target.tagset, open_end=True)
            for place, tag in enumerate(target.tags)
            if tag != ANY
        ] or [target]

    def contradiction(self, target: Pattern, other: Classifier, others_target: Any) -> str | None:
        return target.clash(others_target) if isinstance(other, Pos) else None

    def allows_length(self, target: Pattern, length: int) -> bool:
        return length >= len(target.tags) if target.open_end else length == len(target.tags)

    def word_log_prob(self, denoised: Denoised, encoded: Tensor) -> Tensor:
        """log p(tag_i | w) from the lexicon; 0 where the tag is open. (B, n, V)"""
        lexicon = denoised.for_new_words(self.head.lexicon)  # (V, tags)
        log_p = lexicon.clamp(min=1e-6).log().T[(encoded - 1).clamp(min=0)]
        return log_p * (encoded != ANY_ID)[..., None]

    def readings(self) -> dict[str, NDArray[np.bool_]]:
        """The words of the vocabulary (V,) that may have each tag: with a share of LEAST_SHARE in the lexicon."""
        may_be = (self.head.lexicon >= LEAST_SHARE).cpu().numpy()
        known: dict[str, NDArray[np.bool_]] = {}
        for tagset in TAG_IDS.values():
            for name, id in tagset.items():
                known.setdefault(name, may_be[:, id - 1])  # SYM is a tag of both
        return known

    def check(self, texts: Sequence[Sequence[str]], targets: Sequence[Pattern]) -> list[Verdict]:
        try:
            tagged = list(tag(texts))
        except ImportError:
            return [Verdict(None, f"not checked, spaCy is missing: {INSTALL_SPACY}")] * len(texts)
        return [judge(words, tags, pattern) for words, tags, pattern in zip(texts, tagged, targets, strict=True)]


def clash(one: Sequence[str | None], other: Sequence[str | None]) -> str | None:
    """The first position where two patterns ask for different things, in words; None or `*` asks for nothing."""
    for position, (a, b) in enumerate(zip(one, other, strict=False), start=1):
        if a != b and not {a, b} & {None, ANY}:
            return f"position {position} cannot be {a} and {b}"
    return None


def judge(words: Sequence[str], tags: tuple[list[str], list[str]], pattern: Pattern) -> Verdict:
    """Compare a tagged text with a pattern, word by word."""
    got = tags[list(TAGSETS).index(pattern.tagset)]
    wrong_length = len(got) < len(pattern.tags) or (len(got) > len(pattern.tags) and not pattern.open_end)
    failed = tuple(i for i, (want, have) in enumerate(zip(pattern.tags, got, strict=False)) if want not in (ANY, have))
    asked = max(1, sum(want != ANY for want in pattern.tags))
    missing = sum(want != ANY for want in pattern.tags[len(got) :])
    details = [f"position {i + 1} {words[i]!r}: wanted {pattern.tags[i]}, got {got[i]}" for i in failed]
    if wrong_length:
        details.insert(0, f"{len(got)} words instead of {len(pattern.tags)}{' or more' if pattern.open_end else ''}")
    correct = max(0.0, 1.0 - (len(failed) + missing) / asked)
    return Verdict(not details, "; ".join(details) or None, failed, correct, asked)


def training_examples(
    model: DiffusionLM, data: Dataset, text_column: str, label_column: str | None
) -> list[Example[Pattern]]:
    """Texts with their tags: from a column of the data where there is one, else from spaCy, in both tagsets."""
    longest = model.config.max_length
    if label_column is not None:
        find_text_column(data.column_names, label_column, "the data")
    column = label_column or next((name for name in TAG_COLUMNS if name in data.column_names), None)
    if column is not None:
        examples = [tagged_row(model, row, text_column, column) for row in data if row[text_column]]
        fitting([e.tokens for e in examples], 1, longest, model.tokenizer.unk_id, "the data")
        return [example for example in examples if 0 < len(example.tokens) <= longest]
    texts = [text for text in dict.fromkeys(data[text_column]) if isinstance(text, str)]
    split = [model.tokenizer.split(text) for text in texts]
    fitting([model.tokenizer.ids(words) for words in split], 1, longest, model.tokenizer.unk_id, "the data")
    split = [words for words in split if 0 < len(words) <= longest]
    try:
        tagged = list(tag(split))
    except ImportError as error:
        raise CtrlgenError(f"the texts have no tags and spaCy is not installed: {INSTALL_SPACY}") from error
    examples = []
    for words, tags in zip(split, tagged, strict=True):
        ids = model.tokenizer.ids(words)
        examples += [Example(ids, Pattern(tuple(t), name)) for name, t in zip(TAGSETS, tags, strict=True)]
    return examples


def tagged_row(model: DiffusionLM, row: dict[str, Any], text_column: str, column: str) -> Example[Pattern]:
    """A row whose tags are given: a list, or a string of tags separated by spaces, one for each word."""
    words = str(row[text_column]).split()
    tags = list(map(str, row[column])) if isinstance(row[column], list) else str(row[column] or "").split()
    if len(tags) != len(words):
        raise CtrlgenError(f"{len(words)} words but {len(tags)} tags in {' '.join(words)[:60]!r}")
    return Example(model.tokenizer.ids(words), parse_pattern(" ".join(tags)))
