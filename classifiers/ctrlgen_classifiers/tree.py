"""Syntax: `tree: (S (NP * *) (VP serves (NP * NN)) .)` and `span: NP 4-6, VP 3-9` (words counted from 1).

A tree fixes the length by its leaves: a word, a tag in capitals (the model's `pos` classifier guides and checks it), a
word in quotes if it would be taken for a tag, or `*`. Treebank notation, `(DT The)` or `(DT *)`, is read as well. The
label of a bracket may be `*`: some constituent. Labels over the same words make a chain, `S+VP` (see
`classifiers.brackets`); where VP is asked for, S+VP is right. What a tree does not name should not be there: the guide
presses for that more weakly, and the oracle's F1 counts it, but success asks only for what is named.

The guide is a chart head on the denoiser's hidden states: given x_t, spans count as independent. The oracle is a parser
of clean text, another network trained apart on the same trees, which are as good as the parser that made them.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ctrlgen.checkpoint import DiffusionLM
from ctrlgen.controls.classifier import Asks, Classifier, Verdict, both
from ctrlgen.controls.registry import trained_classifiers
from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.errors import CtrlgenError, UsageError, did_you_mean
from ctrlgen.training.trained import Lessons, TrainedClassifier, TrainingData
from ctrlgen_classifiers.brackets import (
    ANY,
    Chain,
    Constituent,
    frequent_chains,
    labelled_f1,
    labels_of,
    missing,
    parts,
    read_spans,
    read_tree,
    smallest_around,
    write_tree,
)
from ctrlgen_classifiers.chart import Labels, fill_chart
from ctrlgen_classifiers.other_parsers import Parses, load_parser
from ctrlgen_classifiers.parser import CleanParser, train_parser
from ctrlgen_classifiers.pos import PENN, UNIVERSAL, Pattern, Pos, clash, parse_pattern
from ctrlgen_classifiers.tree_head import TreeHead
from ctrlgen_classifiers.treebank import open_leaves, training_examples, tree_of
from ctrlgen_classifiers.word_vectors import make_averaged, make_vectors, source_for, with_known_ids

if TYPE_CHECKING:
    from ctrlgen.training.fit import Progress

MIN_COUNT = 5  # a chain seen less often is taken for its beginning
HEAD_SIZE = {"width": 128, "layers": 1}
ORACLE_SIZE = {"dim": 64, "width": 128}
TAGS = frozenset(UNIVERSAL + PENN)
EMPTY_WEIGHT = 0.1  # of a span that should be no constituent, where 1 is that of a constituent
NO_WORD = -1  # a leaf that may be any word
MOST_LISTED = 3  # missing constituents named in a verdict


@dataclass(frozen=True)
class Syntax:
    """What is asked for: constituents, and for a tree its leaves (None for any), of which there are `length`."""

    constituents: tuple[Constituent, ...]
    length: int | None = None
    words: tuple[str | None, ...] = ()
    tags: Pattern | None = None


@dataclass(frozen=True)
class EncodedSyntax:
    """A batch of targets. n words at most."""

    chart: Tensor  # asks, see `Labels` (B, n, n)
    words: Tensor  # ids, NO_WORD for any (B, n)
    tags: Tensor | None = None  # ids (B, n), where any row asks for tags


class Tree(TrainedClassifier):
    kind = "tree"
    summary = "the syntax tree of the whole text"
    syntax = "tree: (LABEL ... ) with words, POS tags or * as leaves, and * as any label"
    example = "tree: (S (NP * *) (VP serves (NP * food)) .)"
    oracle = "a parser trained apart, on clean texts"
    trained_as: ClassVar[str | None] = "tree"
    names: ClassVar[tuple[str, ...]] = ("tree", "span")  # one training serves both
    suite: ClassVar[str | None] = "tree"
    published_fluency: ClassVar[float] = 0.0005
    composed_with: ClassVar[tuple[str, ...]] = ("field",)
    task: ClassVar[str | None] = "syntax tree"

    head: TreeHead
    judge: CleanParser

    def __init__(self, model: DiffusionLM, name: str, config: Mapping[str, Any], head: TreeHead, judge: CleanParser):
        super().__init__(model, name, config, head, judge)
        self.labels = head.labels
        self.parses: Parses = lambda texts: judge.parse_texts(texts, self.tokenizer)
        self.tagger = cache(partial(Pos.load, model, Pos.kind))  # for tags at leaves

    @classmethod
    def make_head(cls, model: DiffusionLM, config: Mapping[str, Any]) -> TreeHead:
        trunk, head = model.config, config["head"]
        words = make_averaged(model, head)
        return TreeHead(Labels.of(config), trunk.layers, trunk.width, words, head["width"], head["layers"])

    @classmethod
    def make_oracle(cls, model: DiffusionLM, config: Mapping[str, Any]) -> CleanParser:
        words, size = make_vectors(model, config["oracle"]), config["oracle"]["size"]
        return CleanParser(Labels.of(config), words, model.tokenizer.unk_id, **size)

    @classmethod
    def examples(cls, model: DiffusionLM, data: TrainingData) -> Lessons:
        examples, new_words = training_examples(model, data.rows, data.label_column)
        chains = frequent_chains((e.target for e in examples), MIN_COUNT)
        if not chains:
            raise CtrlgenError(f"tree: no label is seen {MIN_COUNT} times in the trees that fit the model")
        skipped = len(data.rows) - len(examples)
        words = {"words": source_for(model)}
        return Lessons(
            [with_known_ids(example, model.tokenizer) for example in examples],
            examples,
            networks={"head": HEAD_SIZE | words, "oracle": {"size": ORACLE_SIZE} | words, "chains": chains},
            new_words=new_words,
            facts={"trees": len(examples)},
            names=cls.names if data.name in cls.names else (),
            notes=[f"{skipped} rows skipped: no tree, or longer than the model's texts"] if skipped else [],
        )

    @classmethod
    def train_oracle(
        cls, model: DiffusionLM, oracle: CleanParser, lessons: Lessons, config: Mapping[str, Any], seed: int
    ) -> Generator[Progress, None, dict[str, Any]]:
        measured = yield from train_parser(oracle.with_words(lessons.new_words), lessons.oracle, seed)
        return {"measured": measured, "accuracy": measured["f1"]}

    @classmethod
    def report(cls, validation: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        of_oracle = config["oracle"]["measured"]
        note = f"oracle: labelled F1 {of_oracle['f1']:.3f} on {of_oracle['sentences']} trees held out"
        return {}, [note]

    def parse(self, value: str) -> Syntax:
        tree = read_tree(value)
        chains = {(c.start, c.end): c.chain for c in tree.constituents}
        words: list[str | None] = []
        tags = []
        for place, leaf in enumerate(tree.leaves):
            label, word = leaf.tag, leaf.word
            if label is not None and self.is_tag(label):
                tags.append(label)
            else:
                if label is not None:  # a constituent of one word
                    span = (place, place + 1)
                    chains[span] = chains.get(span, ()) + labels_of(label)
                is_tag = word in TAGS and word[0].isalpha()
                tags.append(word if is_tag else ANY)
                word = ANY if is_tag else word
            words.append(None if word == ANY else self.known_word(word))
        constituents = tuple(Constituent(*span, self.known_chain(chain)) for span, chain in sorted(chains.items()))
        return Syntax(constituents, len(words), tuple(words), self.pattern(tags))

    def symbols(self) -> Mapping[str, Sequence[str]]:
        return {"labels": sorted(self.labels.names.values()), "Universal tags": UNIVERSAL, "Penn tags": PENN}

    def is_tag(self, label: str) -> bool:
        """Whether the label of a bracket around one word is its tag, not a constituent."""
        return label.upper() in TAGS and label.casefold() not in self.labels.names

    def known_chain(self, chain: Chain) -> Chain:
        """The chain as the labels are written here. Raises UsageError for a label, or several together, never seen."""
        for label in chain:
            if label.casefold() not in self.labels.names:
                known = sorted(self.labels.names.values())
                raise UsageError(
                    f"{self.kind}: unknown label {label!r}; known are {', '.join(known)}.{did_you_mean(label, known)}"
                )
        chain = tuple(self.labels.names[label.casefold()] for label in chain)
        if chain not in self.labels.asks_for:
            raise UsageError(f"{self.kind}: {'+'.join(chain)}: these labels never stand over the same words")
        return chain

    def known_word(self, word: str) -> str:
        word = word[1:-1] if len(word) > 2 and word[0] == word[-1] == '"' else word
        if word not in self.tokenizer:
            any_word = " A tree has no `...`; write * for each word."
            hint = any_word if word == "..." else did_you_mean(word, self.tokenizer.words, count=3)
            raise UsageError(f"{self.kind}: the word {word!r} is not in this model's vocabulary.{hint}")
        return word

    def pattern(self, tags: Sequence[str]) -> Pattern | None:
        """Tags at some leaves, for the model's POS classifier. Raises UsageError where it has none."""
        asked = [tag for tag in tags if tag != ANY]
        if not asked:
            return None
        if Pos.kind not in trained_classifiers(self.model):
            raise UsageError(
                f"{self.kind}: the tag {asked[0]!r} needs the model's pos classifier: "
                "run `ctrlgen train-classifier pos` first, or write `*`"
            )
        return parse_pattern(" ".join(tags))

    def values_of(
        self, texts: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]], rng: Random
    ) -> list[str | None]:
        """From the data's trees where it has them, else from the oracle's."""
        given = [tree_of(row, words) for row, words in zip(rows, texts, strict=True)]
        parsed = self.parses(texts)
        trees = [parsed_tree if tree is None else tree for tree, parsed_tree in zip(given, parsed, strict=True)]
        return [self.value_of(tree, len(words), rng) for tree, words in zip(trees, texts, strict=True)]

    def value_of(self, tree: Sequence[Constituent], length: int, rng: Random) -> str | None:
        """All constituents of two words or more, the leaves open. None where a chain of labels is not known."""
        several = [c for c in tree if c.end - c.start > 1]
        if not several or any(c.chain not in self.labels.asks_for for c in several):
            return None
        return write_tree(several, length)

    def asks(self, target: Syntax) -> Asks:
        return Asks(
            tags={place: tag for place, tag in enumerate(target.tags.tags if target.tags else ()) if tag != ANY},
            words={place: word for place, word in enumerate(target.words) if word is not None},
            spans=tuple((c.start, c.end, "+".join(c.chain) or ANY) for c in target.constituents),
        )

    @classmethod
    def published_value(cls, line: Mapping[str, Any], inside: Sequence[int]) -> str | None:
        return open_leaves(str(line["tree"])) if "tree" in line else None

    def parts_of(self, target: Syntax) -> list[Syntax]:
        """Each constituent, each word and each tag alone; the whole where a tree has none."""
        constituents = [Syntax((c,)) for c in target.constituents]
        words = [
            Syntax((), words=(*(None,) * place, word)) for place, word in enumerate(target.words) if word is not None
        ]
        tags = [] if target.tags is None else self.tagger().parts_of(target.tags)
        return [*constituents, *words, *(Syntax((), tags=part) for part in tags)] or [target]

    def contradiction(self, target: Syntax, other: Classifier, others_target: Any) -> str | None:
        if isinstance(other, Pos):
            return target.tags.clash(others_target) if target.tags is not None else None
        if not isinstance(other, Tree):
            return None
        for a, b in product(target.constituents, others_target.constituents):
            if a.crosses(b):
                return f"{a} and {b} cross; one must hold the other or share no word"
            same_words = (a.start, a.end) == (b.start, b.end)
            if same_words and not any({a.chain, b.chain} <= parts(chain) for chain in self.labels.chains):
                return f"{a} and {b} never stand over the same words"
        tags, others_tags = target.tags, others_target.tags
        return clash(target.words, others_target.words) or (tags.clash(others_tags) if tags and others_tags else None)

    def allows_length(self, target: Syntax, length: int) -> bool:
        if target.length is not None:
            return length == target.length
        return length >= max(c.end for c in target.constituents)

    def encode(self, targets: Sequence[Syntax], lengths: Sequence[int]) -> EncodedSyntax:
        n = max(lengths)
        cells = [[(c.start, c.end, self.labels.asks_for[c.chain]) for c in target.constituents] for target in targets]
        chart = fill_chart(cells, [target.length or 0 for target in targets], n)
        words = torch.full((len(targets), n), NO_WORD)
        for row, target in zip(words, targets, strict=True):
            for place, word in enumerate(target.words[:n]):
                if word is not None:
                    row[place] = self.tokenizer.ids([word], whole=place == 0)[0]
        if all(target.tags is None for target in targets):
            return EncodedSyntax(chart, words)
        tags = [[0] * n if target.tags is None else target.tags.ids(n) for target in targets]
        return EncodedSyntax(chart, words, torch.tensor(tags))

    def log_prob(self, denoised: Denoised, encoded: EncodedSyntax) -> Tensor:
        log_p = self.head.log_prob(denoised, encoded.chart, EMPTY_WEIGHT)
        ids = encoded.words.clamp(min=0)
        log_words = denoised.logits.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)  # (B, n)
        log_p = log_p + (log_words * (encoded.words != NO_WORD)).sum(-1)
        return log_p if encoded.tags is None else log_p + self.tagger().log_prob(denoised, encoded.tags)

    def judged_by(self, oracle: str) -> Tree:
        other = copy(self)
        other.parses = load_parser(oracle)
        return other

    def check(self, texts: Sequence[Sequence[str]], targets: Sequence[Syntax]) -> list[Verdict]:
        parsed = self.parses(texts)
        return [
            both(self.judge_syntax(words, got, target), self.judge_tags(words, target))
            for words, got, target in zip(texts, parsed, targets, strict=True)
        ]

    def judge_syntax(self, words: Sequence[str], got: Sequence[Constituent], target: Syntax) -> Verdict:
        """The verdict on constituents and words."""
        lacking = missing(target.constituents, got)
        details = []
        if target.length not in (None, len(words)):
            details.append(f"{len(words)} words instead of {target.length}")
        if lacking:
            more = f" and {len(lacking) - MOST_LISTED} more" if len(lacking) > MOST_LISTED else ""
            details.append(f"missing: {', '.join(map(str, lacking[:MOST_LISTED]))}{more}")
        pairs = enumerate(zip(words, target.words, strict=False))
        wrong = [place for place, (word, wanted) in pairs if wanted not in (None, word)]
        details += [f"position {place + 1} {words[place]!r}: wanted {target.words[place]!r}" for place in wrong]
        failed = {i for i in range(len(words)) if smallest_around(i, target.constituents) in lacking}.union(wrong)
        return Verdict(not details, "; ".join(details) or None, tuple(sorted(failed)), *self.share(target, got))

    def share(self, target: Syntax, got: Sequence[Constituent]) -> tuple[float, int]:
        """What is right, and of how many brackets that is a share."""
        return labelled_f1(target.constituents, got)

    def judge_tags(self, words: Sequence[str], target: Syntax) -> Verdict:
        return Verdict(True) if target.tags is None else self.tagger().check([words], [target.tags])[0]


class Span(Tree):
    kind = "span"
    summary = "constituents over given words"
    syntax = "span: LABEL FROM-TO, ... (words counted from 1; * any label)"
    example = "span: NP 1-2, VP 3-9"
    suite: ClassVar[str | None] = "span"
    published_fluency: ClassVar[float] = 0.1
    composed_with: ClassVar[tuple[str, ...]] = ()
    task: ClassVar[str | None] = "syntax spans"

    def symbols(self) -> Mapping[str, Sequence[str]]:
        return {"labels": super().symbols()["labels"]}

    @classmethod
    def published_value(cls, line: Mapping[str, Any], inside: Sequence[int]) -> str | None:
        if "spans" not in line:
            return None
        return ", ".join(f"{label} {start + 1}-{end + 1}" for start, end, label in line["spans"])

    def parse(self, value: str) -> Syntax:
        spans = read_spans(value)
        longest = self.model.config.max_length
        for span in spans:
            if span.end > longest:
                raise UsageError(f"span: {str(span)!r} is beyond the model's longest text of {longest} words")
        return Syntax(tuple(replace(span, chain=self.known_chain(span.chain)) for span in spans))

    def share(self, target: Syntax, got: Sequence[Constituent]) -> tuple[float, int]:
        asked = len(target.constituents)
        return 1.0 - len(missing(target.constituents, got)) / asked, asked

    def value_of(self, tree: Sequence[Constituent], length: int, rng: Random) -> str | None:
        """One of its constituents of two words or more, but not the whole text."""
        inner = [c for c in tree if 1 < c.end - c.start < length and c.chain in self.labels.asks_for]
        return str(rng.choice(inner)) if inner else None
