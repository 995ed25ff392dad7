"""The prefix classifier of FUDGE (Yang and Klein 2021, section 3.1): p(control | words so far, next word).

A small network on the frozen language model's hidden state and the next word's embedding, with outputs for each kind of
control: tags of the next words, values of labels, words still to come, how many words are left, and whether a
constituent will stand at given places. It is trained at every word of texts whose controls are known.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrlgen.checkpoint import CONFIG, WEIGHTS, write_weights
from ctrlgen.controls.classifier import Asks
from ctrlgen.evaluation.baselines.training import SEED, Corpus, Known
from ctrlgen.evaluation.language_model import LanguageModel
from ctrlgen.files import write_text
from ctrlgen.text.tokenizer import WordTokenizer
from ctrlgen.training.batches import LengthBatches
from ctrlgen.training.fit import TrainingConfig
from ctrlgen.training.heads import hold_out

LOOKAHEAD = 4  # tags foreseen: the next word's and those behind it
SPANS = 8  # that hold and that do not, a text, when training
SPAN_SHARE, TO_COME_SHARE = 0.5, 0.25  # of their sums in the loss, so that no output outweighs the others
UNKNOWN = -1  # an id that is not known or not asked for
END_TAG = 0  # what stands where the text has ended


@dataclass(frozen=True)
class Outputs:
    """What the classifier knows of, in the order of its outputs."""

    known: Known
    tags: list[str]  # behind END_TAG
    labels: list[str]  # names of the controls whose values are few
    chains: list[str]  # labels of constituents

    @classmethod
    def of(cls, corpus: Corpus) -> Outputs:
        known = Known.of(corpus)
        asked = [asks for of_texts in corpus.asks.values() for asks in of_texts if asks is not None]
        tags = {tag for asks in asked for tag in asks.tags.values()}
        chains = {chain for asks in asked for *_, chain in asks.spans}
        return cls(known, sorted(tags), list(known.labels), sorted(chains))

    def sizes(self) -> list[int]:
        return [len(self.known.labels[name]) for name in self.labels]


class PrefixClassifier(nn.Module):
    """log p(c | words so far, next word) for each kind of control, from an LM's hidden state and word embedding."""

    def __init__(self, outputs: Outputs, lm_width: int, vocab_size: int, longest: int, width: int, span_width: int):
        super().__init__()
        self.sizes, self.longest = outputs.sizes(), longest
        self.evidence, self.strongest = nn.Linear(lm_width, width), nn.Linear(width, width, bias=False)
        self.prefix, self.word = nn.Linear(lm_width, width), nn.Linear(lm_width, width, bias=False)
        self.hidden = nn.Linear(width, width)
        self.remaining = nn.Linear(width, longest + 1)
        self.tags = nn.Linear(width, LOOKAHEAD * (1 + len(outputs.tags)))
        self.labels = nn.Linear(width, max(1, sum(self.sizes)))
        self.to_come = nn.Linear(width, lm_width)
        self.to_come_bias = nn.Parameter(torch.full((vocab_size,), -4.0))
        self.span_input = nn.Linear(width, span_width)
        self.span_label = nn.Embedding(max(1, len(outputs.chains)), span_width)
        self.span_start = nn.Embedding(2 * longest + 1, span_width)
        self.span_end = nn.Embedding(2 * longest + 1, span_width)
        self.span_output = nn.Linear(span_width, 1)

    def features(self, hidden: Tensor, evidence: Tensor, next_words: Tensor) -> Tensor:
        """hidden (..., d) after the words so far, evidence (..., width), the strongest of each of them, next_words
        (..., d), embedded -> (..., width)
        """
        next_words = F.layer_norm(next_words, next_words.shape[-1:])
        h = F.gelu(self.prefix(hidden) + self.strongest(evidence) + self.word(next_words))
        return h + F.gelu(self.hidden(h))

    def log_remaining(self, features: Tensor) -> Tensor:
        """log p of how many words will follow the next one. (..., longest + 1)"""
        return self.remaining(features).log_softmax(-1)

    def log_tags(self, features: Tensor) -> Tensor:
        """log p of the tags of the next word and those behind it. (..., LOOKAHEAD, tags)"""
        return self.tags(features).unflatten(-1, (LOOKAHEAD, -1)).log_softmax(-1)

    def log_labels(self, features: Tensor) -> list[Tensor]:
        """log p of the values of each label. K times (..., values)"""
        return [part.log_softmax(-1) for part in self.labels(features)[..., : sum(self.sizes)].split(self.sizes, -1)]

    def words_to_come(self, features: Tensor, words: Tensor, embeddings: Tensor) -> Tensor:
        """The log-odds that a word will stand behind the next one. words (..., M) -> (..., M)"""
        wanted = F.layer_norm(embeddings[words], embeddings.shape[-1:])  # (..., M, d)
        return (wanted @ self.to_come(features)[..., None])[..., 0] + self.to_come_bias[words]

    def spans(self, features: Tensor, chains: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
        """The log-odds that constituents will stand there; places are counted from the next word. (..., C)"""
        h = self.span_input(features)[..., None, :] + self.span_label(chains)
        h = h + self.span_start(self.place(starts)) + self.span_end(self.place(ends))
        return self.span_output(F.gelu(h))[..., 0]

    def place(self, distance: Tensor) -> Tensor:
        return (distance + self.longest).clamp(0, 2 * self.longest)


@dataclass(frozen=True)
class Lesson:
    """A training text with what is true of it."""

    ids: list[int]
    tags: list[int]
    labels: list[int]
    spans: list[tuple[int, int, int]]  # start, end, chain


class PrefixLoss(nn.Module):
    """A classifier's loss at every word of a text, the language model frozen."""

    def __init__(self, classifier: PrefixClassifier, lm: LanguageModel):
        super().__init__()
        self.classifier = classifier
        self._lm = (lm,)  # hidden from parameters(): it is neither trained nor saved

    def features(self, tokens: Tensor) -> Tensor:
        """Before each word and before <end>. tokens (B, n) -> (B, n + 1, width)"""
        (lm,) = self._lm
        end = tokens.new_full((len(tokens), 1), lm.tokenizer.end_id)
        with torch.no_grad():
            hidden = lm.lm.model(input_ids=torch.cat([end, tokens], 1), use_cache=False).last_hidden_state
            next_words = lm.lm.model.embed_tokens(torch.cat([tokens, end], 1))
        evidence = self.classifier.evidence(hidden.float()).cummax(1).values
        return self.classifier.features(hidden.float(), evidence, next_words.float())

    def forward(
        self, tokens: Tensor, tags: Tensor, labels: Tensor, spans: Tensor, holds: Tensor
    ) -> tuple[Tensor, Tensor]:
        """tokens (B, n), tags (B, n + LOOKAHEAD), labels (B, K), spans (B, C, 3), holds (B, C) -> loss (B,)

        UNKNOWN tags, labels and `holds` are passed over.
        """
        features = self.features(tokens)  # (B, n + 1, width)
        parts = [self.remaining_loss(features), self.to_come_loss(features, tokens)]
        if (tags != UNKNOWN).any():
            parts.append(self.tag_loss(features, tags))
        if (labels != UNKNOWN).any():
            parts.append(self.label_loss(features, labels))
        if (holds != UNKNOWN).any():
            parts.append(self.span_loss(features, spans, holds))
        return sum(parts, features.new_zeros(len(tokens))), features.new_zeros(0)

    def remaining_loss(self, features: Tensor) -> Tensor:
        words = features.shape[1] - 1
        left = torch.arange(words - 1, -1, -1, device=features.device)  # behind each word
        log_p = self.classifier.log_remaining(features[:, :words])
        return -log_p.gather(-1, left.expand(len(features), -1)[..., None])[..., 0].mean(1)

    def tag_loss(self, features: Tensor, tags: Tensor) -> Tensor:
        ahead = tags.unfold(1, LOOKAHEAD, 1)  # (B, n + 1, LOOKAHEAD)
        known = ahead != UNKNOWN
        log_p = self.classifier.log_tags(features).gather(-1, ahead.clamp(min=0)[..., None])[..., 0]
        return -(log_p * known).sum((1, 2)) / features.shape[1]

    def label_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        total = features.new_zeros(len(features))
        for log_p, label in zip(self.classifier.log_labels(features), labels.T, strict=True):
            of_label = log_p[torch.arange(len(label)), :, label.clamp(min=0)]  # (B, n + 1)
            total = total - of_label.mean(1) * (label != UNKNOWN)
        return total

    def to_come_loss(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Over the words that the batch has, for those of a large vocabulary are too many."""
        (lm,) = self._lm
        words = tokens.unique()  # (M,)
        is_word = F.pad(tokens[:, 1:, None] == words, (0, 0, 0, 2))  # behind the next word (B, n + 1, M)
        comes = is_word.flip(1).cumsum(1).flip(1) > 0
        embeddings = F.layer_norm(lm.lm.model.embed_tokens.weight.detach()[words], (features_width(lm),))
        odds = self.classifier.to_come(features) @ embeddings.T + self.classifier.to_come_bias[words]
        return (
            F.binary_cross_entropy_with_logits(odds, comes.to(odds), reduction="none").sum(-1).mean(1) * TO_COME_SHARE
        )

    def span_loss(self, features: Tensor, spans: Tensor, holds: Tensor) -> Tensor:
        place = torch.arange(features.shape[1], device=features.device)[:, None]  # (n + 1, 1)
        starts, ends, chains = (part[:, None] for part in spans.unbind(-1))  # (B, 1, C)
        odds = self.classifier.spans(features, chains, starts - place, ends - place)  # (B, n + 1, C)
        wanted = holds.clamp(min=0)[:, None].expand_as(odds).to(odds)
        nats = F.binary_cross_entropy_with_logits(odds, wanted, reduction="none")
        counts = (holds != UNKNOWN)[:, None] & (place < ends)  # nothing is learned of what is over
        return (nats * counts).sum((1, 2)) / features.shape[1] * SPAN_SHARE / SPANS


def features_width(lm: LanguageModel) -> int:
    return int(lm.lm.config.hidden_size)


class PrefixTask:
    """The `Task` of training a prefix classifier."""

    def __init__(
        self,
        classifier: PrefixClassifier,
        lm: LanguageModel,
        outputs: Outputs,
        lessons: Sequence[Lesson],
        config: TrainingConfig,
    ):
        self.outputs = outputs
        self.lessons, self.held_out = hold_out(lessons, text=attrgetter("ids"))
        self.module = PrefixLoss(classifier, lm)
        self.batches = LengthBatches([lesson.ids for lesson in self.lessons], config.tokens_per_batch, config.seed)
        self.all_spans = [span for lesson in self.lessons for span in lesson.spans]

    def steps(self, epoch: int) -> list[list[list[int]]]:
        return self.batches.steps(epoch)

    def batch(self, indices: Sequence[int], rng: torch.Generator, rows: slice) -> tuple[tuple[Tensor, ...], int]:
        seed = int(torch.randint(1 << 31, (1,), generator=rng))
        tensors = self.tensors([self.lessons[i] for i in indices], Random(seed))
        return tuple(tensor[rows] for tensor in tensors), tensors[0].numel()

    def tensors(self, lessons: Sequence[Lesson], rng: Random) -> tuple[Tensor, ...]:
        """What `PrefixLoss` is given, of texts of one length."""
        tags = [[*lesson.tags, END_TAG, *[UNKNOWN] * (LOOKAHEAD - 1)] for lesson in lessons]
        spans = [self.some_spans(lesson, rng) for lesson in lessons]
        return (
            torch.tensor([lesson.ids for lesson in lessons]),
            torch.tensor(tags),
            torch.tensor([lesson.labels for lesson in lessons]),
            torch.tensor([[span for span, _ in of] for of in spans]),
            torch.tensor([[holds for _, holds in of] for of in spans]),
        )

    def some_spans(self, lesson: Lesson, rng: Random) -> list[tuple[tuple[int, int, int], int]]:
        """SPANS of the text's own, and as many that it has not: others' labels, places beside, other texts' spans."""
        if not lesson.spans:
            return [((0, 0, 0), UNKNOWN)] * (2 * SPANS)
        own = set(lesson.spans)
        chosen = []
        for _ in range(SPANS):
            start, end, chain = rng.choice(lesson.spans)
            chosen.append(((start, end, chain), 1))
            other = rng.choice(self.all_spans)
            moved = (max(0, start + rng.randint(-2, 2)), max(1, end + rng.randint(-2, 2)), chain)
            wrong = rng.choice([other, moved, (start, end, other[2])])
            chosen.append((wrong, int(wrong in own)))
        return chosen

    def observe(self, statistics: Tensor) -> None:
        pass

    @torch.no_grad()
    def validate(self, module: nn.Module) -> dict[str, Any]:
        """The held-out loss, and how often the next tag, and at the end the labels, are right."""
        assert isinstance(module, PrefixLoss)
        batches = LengthBatches([lesson.ids for lesson in self.held_out], 4096, seed=0)
        found: dict[str, list[float]] = defaultdict(list)
        for indices in batches.epoch(0):
            tensors = self.tensors([self.held_out[i] for i in indices], Random(SEED))
            tokens, tags, labels, spans, holds = (t.to(module._lm[0].lm.device) for t in tensors)
            found["validation_loss"] += module(tokens, tags, labels, spans, holds)[0].tolist()
            features = module.features(tokens)
            guess = module.classifier.log_tags(features)[:, :-1, 0].argmax(-1)
            at = tags[:, : guess.shape[1]]
            found["tag_accuracy"] += (guess == at)[at != UNKNOWN].float().tolist()
            for log_p, label in zip(module.classifier.log_labels(features[:, -1]), labels.T, strict=True):
                found["label_accuracy"] += (log_p.argmax(-1) == label)[label != UNKNOWN].float().tolist()
        return {name: sum(of) / len(of) for name, of in found.items() if of}

    def save(self, module: nn.Module, directory: Path, validation: dict[str, Any]) -> None:
        assert isinstance(module, PrefixLoss)
        write_weights(directory / WEIGHTS, module.classifier.state_dict())
        write_text(directory / CONFIG, json.dumps(asdict(self.outputs)))


def make_lessons(tokenizer: WordTokenizer, outputs: Outputs, corpus: Corpus) -> list[Lesson]:
    """The texts with their tags, labels and constituents, as far as they have them."""
    values = corpus.values
    tag_ids = {tag: 1 + i for i, tag in enumerate(outputs.tags)}
    chain_ids = {chain: i for i, chain in enumerate(outputs.chains)}
    label_ids = [{value: i for i, value in enumerate(outputs.known.labels[name])} for name in outputs.labels]
    lessons = []
    for number, words in enumerate(corpus.texts):
        of_text = [of_texts[number] or Asks() for of_texts in corpus.asks.values()]
        tags = dict(chain.from_iterable(asks.tags.items() for asks in of_text))
        spans = max((asks.spans for asks in of_text), key=len, default=())
        lessons.append(
            Lesson(
                tokenizer.ids(words),
                [tag_ids[tags[place]] if len(tags) == len(words) else UNKNOWN for place in range(len(words))],
                [
                    ids.get(values[name][number] or "", UNKNOWN)
                    for ids, name in zip(label_ids, outputs.labels, strict=True)
                ],
                [(start, end, chain_ids[labels]) for start, end, labels in spans],
            )
        )
    return lessons
