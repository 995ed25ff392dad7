"""Words that must, or with `not` must not, occur: anywhere, at the start or at the end of the text.

    words: cheap, city centre      each of them somewhere, in any order; `not words:` none of them
    starts: Located near           the text begins so
    ends: near the river           the text ends so; one closing mark may follow, for few people write it

The guide is no network: an automaton over the denoiser's word probabilities says how probable it is that a text
with these words would pass. The oracle is a plain string match. Case never matters.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, ClassVar

import torch
from torch import Tensor

from ctrlgen.checkpoint import DiffusionLM
from ctrlgen.controls.language import Classifier, Verdict
from ctrlgen.controls.template import Blank
from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.diffusion.precision import precise
from ctrlgen.errors import UsageError, did_you_mean
from ctrlgen.tokenizer import detokenize
from ctrlgen_classifiers.automaton import (
    END,
    IMPOSSIBLE,
    OTHER,
    Automata,
    Automaton,
    Phrase,
    Place,
    Search,
    compile_search,
    have_common_text,
    scatter_logsumexp,
    stack,
)

MOST_DRAWN = 3  # words asked for at once in evaluation
CLOSING = (".", "!", "?")
NO_TEXT, UNKNOWN = 0, -1  # classes of words: <end> and <pad>; one that the vocabulary lacks


@dataclass(frozen=True)
class Wanted:
    """Phrases of folded words."""

    phrases: tuple[Phrase, ...]
    avoided: bool = False


class Words(Classifier):
    kind = "words"
    summary = "words or phrases that occur somewhere"
    syntax = 'words: PHRASE, PHRASE, ... (a phrase with a comma in "quotes"; with not: none of them)'
    example = "words: cheap, city centre"
    oracle = "string match"
    trained: ClassVar[bool] = False
    place: ClassVar[Place] = "anywhere"

    def __init__(self, model: DiffusionLM):
        self.tokenizer = model.tokenizer
        folded = [word.casefold() for word in self.tokenizer.words]
        self.classes = {word: 1 + i for i, word in enumerate(dict.fromkeys(folded))}  # case variants share one
        classes = torch.tensor([self.classes[word] for word in folded])
        classes[[self.tokenizer.pad_id, self.tokenizer.end_id]] = NO_TEXT
        self.class_of = classes.to(model.device)  # (V,)

    @classmethod
    def load(cls, model: DiffusionLM, name: str) -> Words:
        return cls(model)

    def parse(self, value: str) -> Wanted:
        wanted = Wanted(tuple(self.phrase(text) for text in self.listed(value) if text.strip()))
        if not wanted.phrases:
            raise UsageError(f"{self.kind}: no word is given; write for example `{self.example}`")
        return wanted

    def listed(self, value: str) -> list[str]:
        """The phrases of a list, split at commas outside of quotes."""
        try:
            return next(csv.reader([" ".join(value.split())], skipinitialspace=True))
        except csv.Error as error:
            raise UsageError(f"{self.kind}: not a list of phrases: {error}") from error

    def phrase(self, text: str) -> Phrase:
        """A phrase's words, folded. Raises UsageError for those that the model cannot write."""
        words = self.tokenizer.split(text)
        for word in words:
            if word.casefold() not in self.classes:
                hint = did_you_mean(word, self.tokenizer.words, count=3)
                raise UsageError(f"{self.kind}: the word {word!r} is not in this model's vocabulary.{hint}")
        return tuple(word.casefold() for word in words)

    def values_of(
        self, texts: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]], rng: Random
    ) -> list[str | None]:
        return [self.value_of(words, rng) for words in texts]

    def value_of(self, words: Sequence[str], rng: Random) -> str | None:
        """One to three of its words."""
        known = [word for word in dict.fromkeys(words) if word in self.tokenizer and word.isalpha()]
        return ", ".join(rng.sample(known, min(len(known), rng.randint(1, MOST_DRAWN)))) or None

    def negate(self, target: Wanted) -> Wanted:
        return replace(target, avoided=True)

    def parts_of(self, target: Wanted) -> list[Wanted]:
        """Each phrase alone."""
        return [replace(target, phrases=(phrase,)) for phrase in target.phrases]

    def contradiction(self, target: Wanted, other: Classifier, others_target: Any) -> str | None:
        if not isinstance(other, Words) or have_common_text(self.automaton(target), other.automaton(others_target)):
            return None
        return "no text obeys both"

    def automaton(self, target: Wanted) -> Automaton:
        """Raises UsageError where it would be too large."""
        phrases = target.phrases
        if self.place == "end":
            phrases += tuple((*phrase, mark) for phrase in phrases for mark in CLOSING)
        every = self.place == "anywhere" and not target.avoided
        try:
            return compile_search(Search(phrases, self.place, every, target.avoided))
        except ValueError:
            raise UsageError(f"{self.kind}: too many words for one control; give the rest to another -c") from None

    def allows_length(self, target: Wanted, length: int) -> bool:
        return length >= self.automaton(target).shortest

    def allows_parts(self, target: Wanted, parts: Sequence[str | Blank]) -> bool:
        return self.automaton(target).accepts_some([p if isinstance(p, Blank) else p.casefold() for p in parts])

    def encode(self, targets: Sequence[Wanted], lengths: Sequence[int]) -> Tensor:
        """Transition tables (B, 1 + S, K + 1): above them the letters' classes, beside them whether a state accepts."""
        compiled = [self.automaton(target) for target in targets]
        automata = stack(compiled)
        classes = torch.full((len(compiled), 1, automata.moves.shape[2] + 1), UNKNOWN)
        for row, automaton in enumerate(compiled):
            classes[row, 0, END] = NO_TEXT
            for letter, word in enumerate(automaton.words, OTHER + 1):
                classes[row, 0, letter] = self.classes.get(word, UNKNOWN)
        table = torch.cat([automata.moves, automata.accepting[..., None].long()], -1)  # (B, S, K + 1)
        return torch.cat([classes, table], 1).to(self.class_of.device)

    def log_prob(self, denoised: Denoised, encoded: Tensor) -> Tensor:
        log_q, _ = self.letters(denoised, encoded)
        return automata_of(encoded).log_prob(log_q).to(denoised.logits)

    def word_log_prob(self, denoised: Denoised, encoded: Tensor) -> Tensor:
        """log p(target | this word here, the other positions as they are). (B, n, V)"""
        log_q, letter_of = self.letters(denoised, encoded)
        log_p = automata_of(encoded).letter_log_prob(log_q).to(denoised.logits)  # (B, n, K)
        return log_p.gather(-1, letter_of[:, None].expand(-1, log_p.shape[1], -1))

    def letters(self, denoised: Denoised, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """log p of each letter at each position (B, n, K), and each word's letter (B, V)."""
        classes = encoded[:, 0, :-1]  # (B, K)
        is_letter = classes[..., None] == self.class_of  # (B, K, V)
        letter_of = torch.where(is_letter.any(1), is_letter.int().argmax(1), OTHER)
        log_p = denoised.logits.log_softmax(-1)  # (B, n, V)
        log_q = scatter_logsumexp(log_p, letter_of[:, None].expand(log_p.shape), classes.shape[1])
        log_q = precise(log_q)
        if denoised.lengths is not None:
            nothing = torch.full_like(log_q[0, 0], IMPOSSIBLE)
            nothing[END] = 0.0
            position = torch.arange(log_q.shape[1], device=log_q.device)
            log_q = torch.where((position < denoised.lengths[:, None])[..., None], log_q, nothing)
        return log_q, letter_of

    def check(self, texts: Sequence[Sequence[str]], targets: Sequence[Wanted]) -> list[Verdict]:
        return [self.verdict(words, target) for words, target in zip(texts, targets, strict=True)]

    def verdict(self, words: Sequence[str], target: Wanted) -> Verdict:
        found = {detokenize(phrase): (phrase, self.find(words, phrase)) for phrase in target.phrases}
        if target.avoided:
            there = {text: (phrase, at) for text, (phrase, at) in found.items() if at}
            failed = {i + j for phrase, at in there.values() for i in at for j in range(len(phrase))}
            detail = "; ".join(f"{text!r} at position {at[0] + 1}" for text, (_, at) in there.items())
            return Verdict(not there, detail or None, tuple(sorted(failed)), 1 - len(there) / len(found))
        missing = [text for text, (_, at) in found.items() if not at]
        detail = f"missing: {', '.join(map(repr, missing))}"
        return Verdict(not missing, detail if missing else None, correct=1 - len(missing) / len(found))

    def find(self, words: Sequence[str], phrase: Phrase) -> list[int]:
        """Where a phrase stands in a text, at this kind's place."""
        folded = tuple(word.casefold() for word in words)
        size = len(phrase)
        found = [i for i in range(len(folded) - size + 1) if folded[i : i + size] == phrase]
        if self.place == "start":
            return [i for i in found if i == 0]
        if self.place == "end":
            return [i for i in found if i + size == len(folded) or folded[i + size :] in [(mark,) for mark in CLOSING]]
        return found


class Starts(Words):
    kind = "starts"
    summary = "the words that the text begins with"
    syntax = "starts: WORD WORD ..."
    example = "starts: Located near"
    place: ClassVar[Place] = "start"

    def value_of(self, words: Sequence[str], rng: Random) -> str | None:
        """Its first two words."""
        return detokenize(words[:2]) if all(word in self.tokenizer for word in words[:2]) else None

    def listed(self, value: str) -> list[str]:
        return [value[1:-1] if value[0] == value[-1] == '"' else value]


class Ends(Starts):
    kind = "ends"
    summary = "the words that the text ends with; a closing mark may follow"
    syntax = "ends: WORD WORD ..."
    example = "ends: near the river"
    place: ClassVar[Place] = "end"

    def value_of(self, words: Sequence[str], rng: Random) -> str | None:
        """Its last two words before a closing mark."""
        closed = bool(words) and words[-1] in CLOSING
        last = words[-2 - closed : len(words) - closed]
        return detokenize(last) if last and all(word in self.tokenizer for word in last) else None


def automata_of(encoded: Tensor) -> Automata:
    return Automata(encoded[:, 1:, :-1], encoded[:, 1:, -1].bool())
