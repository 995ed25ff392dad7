"""FUDGE: future discriminators for generation (Yang and Klein 2021).

    p(w | words so far, c) ∝ p(w | words so far) p(c | words so far, w)^λ                                  (equation 2)

The prefix classifier is in `prefix.py`. A tree counts as the sum of its constituents, a pattern of tags as the product
over its places, of which the next few are foreseen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ctrlgen.checkpoint import CONFIG, read_config
from ctrlgen.controls.language import Control
from ctrlgen.evaluation.baselines.best_of import BestOf, Drawn, Pair, Rank
from ctrlgen.evaluation.baselines.prefix import (
    END_TAG,
    LOOKAHEAD,
    SPANS,
    UNKNOWN,
    Outputs,
    PrefixClassifier,
    PrefixTask,
    make_lessons,
)
from ctrlgen.evaluation.baselines.training import (
    SEED,
    Corpus,
    Follow,
    Known,
    baseline_directory,
    name_of,
    reading,
    train_once,
    unwatched,
)
from ctrlgen.evaluation.language_model import LanguageModel
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.request import Request
from ctrlgen.training.fit import TrainingConfig
from ctrlgen.training.heads import load_head

FUDGE_TRAINING = TrainingConfig(
    steps=2000, tokens_per_batch=4096, lr=0.002, matrix_lr=0.0, ema=0.99, log_every=20, validate_every=500
)
SIZE = {"width": 256, "span_width": 128}
TAG_STRENGTH = LENGTH_STRENGTH = WORD_STRENGTH = SPAN_STRENGTH = 2.0  # λ, of each kind of output
LABEL_STRENGTH, ONE_SPAN_STRENGTH = 3.0, 4.0
CANDIDATES = 100  # of the next word, the likeliest
OPEN = (UNKNOWN, 0.0)  # what is not asked for, with its weight


@dataclass
class Asking:
    """What one request asks of the classifier, each part with its weight."""

    tags: dict[int, tuple[int, float]] = field(default_factory=dict)  # by place
    labels: dict[int, tuple[int, float]] = field(default_factory=dict)  # values, by label
    words: list[tuple[list[int], float]] = field(default_factory=list)  # the ids of a word in any case
    spans: list[tuple[tuple[int, int, int], float]] = field(default_factory=list)  # start, end, chain
    begins: list[list[int]] = field(default_factory=list)  # the first words, each in any case

    def at_places(self, lengths: Sequence[int]) -> dict[int, tuple[int, float]]:
        """The tags, and that the text ends where it must."""
        return self.tags | ({lengths[0]: (END_TAG, TAG_STRENGTH)} if self.tags and len(lengths) == 1 else {})


class CannotAskError(Exception):
    """Why a control is beyond this baseline."""


class Fudge(BestOf):
    """Draws word by word; of what it has drawn for a request the guides keep the best."""

    name = "fudge"

    def __init__(self, generator: Generator, lm: LanguageModel, outputs: Outputs, classifier: PrefixClassifier):
        super().__init__(generator, lm)
        self.outputs, self.classifier = outputs, classifier
        self.variants: dict[str, list[int]] = defaultdict(list)
        for id, word in enumerate(lm.tokenizer.words):
            self.variants[word.casefold()].append(id)

    def refuses(self, request: Request) -> str | None:
        try:
            self.asking(request)
        except CannotAskError as reason:
            return str(reason)
        return None

    def draw(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[list[str]]:
        future = Future(self, [self.asking(request) for request in requests], [self.lengths(r) for r in requests])
        ends = self.ends(requests)
        with future.watching(self.lm):
            return self.lm.draw(
                seeds,
                adjust=lambda words, logits, rows: future(words, ends(words, logits, rows), rows),
                max_length=self.longest,
            )

    def ranks(self, requests: Sequence[Request], drawn: Sequence[Drawn]) -> Mapping[Pair, Rank]:
        return self.guided_ranks(requests, drawn, [(text.request, number) for number, text in enumerate(drawn)])

    def asking(self, request: Request) -> Asking:
        """Raises CannotAskError."""
        asking = Asking()
        for control in request.controls:
            self.ask(control, asking)
        return asking

    def ask(self, control: Control, asking: Asking) -> None:
        """Add one control."""
        name, classifier = name_of(self.generator, control), control.classifier
        if control.statement.negated and not classifier.structural:
            raise CannotAskError(f"it knows no `not {name}`")
        asks, factor = classifier.asks(control.target), control.statement.weight
        if asks is None:
            if not classifier.structural:  # lengths are asked of every request
                raise CannotAskError(f"it has no output for {classifier.kind}")
            return
        if asks.words:
            raise CannotAskError(f"it foresees constituents, not the leaf {next(iter(asks.words.values()))!r}")
        asking.tags |= {place: (self.tag(tag), factor * TAG_STRENGTH) for place, tag in asks.tags.items()}
        asking.words += [(self.single_word(phrase), factor * WORD_STRENGTH) for phrase in asks.phrases]
        asking.begins += [self.variants[word.casefold()] for word in asks.begins]
        strength = factor * (ONE_SPAN_STRENGTH if len(asks.spans) == 1 else SPAN_STRENGTH)
        asking.spans += [(self.span(span), strength) for span in asks.spans]
        if asks.value is not None:
            label, value = self.label(control, name)
            asking.labels[label] = (value, factor * LABEL_STRENGTH)

    def tag(self, tag: str) -> int:
        if tag not in self.outputs.tags:
            raise CannotAskError(f"it learned no tag {tag!r}")
        return 1 + self.outputs.tags.index(tag)

    def single_word(self, phrase: Sequence[str]) -> list[int]:
        if len(phrase) > 1:
            raise CannotAskError("it foresees words, not phrases")
        return self.variants[phrase[0].casefold()]

    def span(self, span: tuple[int, int, str]) -> tuple[int, int, int]:
        start, end, chain = span
        if chain not in self.outputs.chains:
            raise CannotAskError(f"it learned no constituent {chain!r}")
        return start, end, self.outputs.chains.index(chain)

    def label(self, control: Control, name: str) -> tuple[int, int]:
        """The numbers of a label and of its value."""
        known = self.outputs.known.value(control, name) if name in self.outputs.labels else None
        if known is None:
            raise CannotAskError(f"it never saw {control.text}")
        return self.outputs.labels.index(name), self.outputs.known.labels[name].index(known)


class Future:
    """An `Adjust`: the reweighting of one batch of draws. Row r of the batch asks what `asking[r]` does."""

    def __init__(self, baseline: Fudge, asking: Sequence[Asking], lengths: Sequence[Sequence[int]]):
        self.classifier = baseline.classifier
        self.embeddings, self.end_id = baseline.lm.lm.model.embed_tokens.weight, baseline.lm.tokenizer.end_id
        self.hidden = self.embeddings[:0]  # the LM's, after the words so far, see `watching`
        device = self.embeddings.device
        self.evidence = torch.full((len(asking), SIZE["width"]), -torch.inf, device=device)  # the strongest so far
        self.lengths = torch.full((len(asking), 2 * baseline.longest + 2), -torch.inf, device=device)  # 0 where allowed
        for row, allowed in enumerate(lengths):
            self.lengths[row, list(allowed)] = 0.0
        places, labels = range(baseline.longest + LOOKAHEAD), range(len(baseline.outputs.labels))
        of_places = [asked.at_places(allowed) for asked, allowed in zip(asking, lengths, strict=True)]
        self.tags = torch.tensor([[of.get(i, OPEN)[0] for i in places] for of in of_places], device=device)
        self.tag_weights = torch.tensor([[of.get(i, OPEN)[1] for i in places] for of in of_places], device=device)
        self.labels = torch.tensor([[a.labels.get(i, OPEN)[0] for i in labels] for a in asking], device=device)
        self.label_weights = torch.tensor([[a.labels.get(i, OPEN)[1] for i in labels] for a in asking], device=device)
        self.words = padded([[ids for ids, _ in asked.words] for asked in asking], device)  # (R, M, cases)
        self.word_weights = padded([[[weight] for _, weight in asked.words] for asked in asking], device, 0.0)[..., 0]
        self.begins = padded([asked.begins for asked in asking], device)  # (R, words, cases)
        self.spans = padded([[span for span, _ in asked.spans] for asked in asking], device, 0, 3)  # (R, C, 3)
        self.span_weights = padded([[[weight] for _, weight in asked.spans] for asked in asking], device, 0.0)[..., 0]

    @contextmanager
    def watching(self, lm: LanguageModel) -> Iterator[None]:
        """Takes note of the language model's last hidden state at each of its calls."""

        def note(module: Any, inputs: Any, output: Any) -> None:
            self.hidden = output.last_hidden_state[:, -1]

        hook = lm.lm.model.register_forward_hook(note)
        try:
            yield
        finally:
            hook.remove()

    def __call__(self, words: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        """words (B, t), logits (B, V), rows (B,) -> (B, V)"""
        logits = self.begun(words, logits, rows)
        candidates = logits.topk(min(CANDIDATES, logits.shape[1])).indices  # (B, k)
        return reweight(logits, candidates, self.log_prob(words, candidates, rows))

    def begun(self, words: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        """Only the words that the text is to begin with, where it is to."""
        written = words.shape[1]
        if written >= self.begins.shape[1]:
            return logits
        wanted = self.begins[rows, written]  # (B, cases)
        allowed = (torch.arange(logits.shape[1], device=logits.device) == wanted[..., None]).any(1)
        allowed |= (wanted == UNKNOWN).all(1, keepdim=True)
        return logits.masked_fill(~allowed, -torch.inf)

    def log_prob(self, words: Tensor, candidates: Tensor, rows: Tensor) -> Tensor:
        """λ log p(controls | words so far, candidate). words (B, t), candidates (B, k) -> (B, k)"""
        written = words.shape[1]
        self.evidence[rows] = self.evidence[rows].maximum(self.classifier.evidence(self.hidden.float()))
        after = self.hidden[:, None].float(), self.evidence[rows, None]
        features = self.classifier.features(*after, self.embeddings[candidates].float())
        lengths = self.lengths[rows, written + 1 : written + 2 + self.classifier.longest]
        log_p = LENGTH_STRENGTH * (self.classifier.log_remaining(features) + lengths[:, None]).logsumexp(-1)
        log_p = log_p.masked_fill(candidates == self.end_id, 0.0)  # it is allowed here or not a candidate
        log_p = log_p + self.of_tags(features, written, rows) + self.of_labels(features, rows)
        return log_p + self.of_words(features, words, candidates, rows) + self.of_spans(features, written, rows)

    def of_tags(self, features: Tensor, written: int, rows: Tensor) -> Tensor:
        tags = self.tags[rows, written : written + LOOKAHEAD]  # (B, LOOKAHEAD)
        if (tags == UNKNOWN).all():
            return features.new_zeros(features.shape[:2])
        wanted = tags.clamp(min=0)[:, None, :, None].expand(-1, features.shape[1], -1, -1)
        log_p = self.classifier.log_tags(features).gather(-1, wanted)[..., 0]  # (B, k, LOOKAHEAD)
        return (log_p * self.tag_weights[rows, None, written : written + LOOKAHEAD]).sum(-1)

    def of_labels(self, features: Tensor, rows: Tensor) -> Tensor:
        total = features.new_zeros(features.shape[:2])
        asked = (self.labels[rows] != UNKNOWN).any(0)
        for place, log_p in enumerate(self.classifier.log_labels(features) if asked.any() else ()):
            wanted = self.labels[rows, place].clamp(min=0)[:, None, None].expand(-1, features.shape[1], -1)
            total = total + log_p.gather(-1, wanted)[..., 0] * self.label_weights[rows, place, None]
        return total

    def of_words(self, features: Tensor, words: Tensor, candidates: Tensor, rows: Tensor) -> Tensor:
        """Words that stand already ask for nothing more."""
        wanted = self.words[rows]  # (B, M, cases)
        if wanted.shape[1] == 0:
            return features.new_zeros(features.shape[:2])
        is_written = (words[:, None, None] == wanted[..., None]).any(-1).any(-1)  # (B, M)
        is_next = (candidates[..., None, None] == wanted[:, None]).any(-1)  # (B, k, M)
        each = wanted.clamp(min=0)[:, None].expand(-1, features.shape[1], -1, -1)  # (B, k, M, cases)
        odds = self.classifier.words_to_come(features, each.flatten(2), self.embeddings).view(each.shape)
        log_p = odds.masked_fill(wanted[:, None] == UNKNOWN, -torch.inf).amax(-1).sigmoid().clamp(min=1e-9).log()
        log_p = log_p.masked_fill(is_written[:, None] | is_next, 0.0)
        return (log_p * self.word_weights[rows, None]).sum(-1)

    def of_spans(self, features: Tensor, written: int, rows: Tensor) -> Tensor:
        starts, ends, chains = self.spans[rows].unbind(-1)  # (B, C)
        weights = self.span_weights[rows] * (ends > written)
        total = features.new_zeros(features.shape[:2])
        for place in (weights != 0).any(0).nonzero()[:, 0].tolist():  # one by one: a tree has many
            asked = [part[:, place, None, None] for part in (chains, starts - written, ends - written)]
            log_p = torch.nn.functional.logsigmoid(self.classifier.spans(features, *asked))[..., 0]
            total = total + log_p * weights[:, place, None]
        return total


def reweight(logits: Tensor, candidates: Tensor, log_p: Tensor) -> Tensor:
    """Bayes' rule among the candidates (equation 2).

    logits (B, V), candidates (B, k), log_p (B, k), of the control given each candidate -> (B, V)
    """
    kept = logits.gather(1, candidates) + log_p
    return torch.full_like(logits, -torch.inf).scatter(1, candidates, kept.to(logits))


def padded(
    lists: Sequence[Sequence[Sequence[Any]]], device: torch.device, fill: float = UNKNOWN, width: int = 1
) -> Tensor:
    """Rows of lists of lists, filled up: (rows, most, widest), `width` where there are none."""
    most = max(map(len, lists), default=0)
    widest = max((len(inner) for outer in lists for inner in outer), default=width)
    empty = [fill] * widest
    full = [[*([*inner, *empty[len(inner) :]] for inner in outer), *[empty] * (most - len(outer))] for outer in lists]
    return torch.tensor(full, device=device).view(len(lists), most, widest)


def make_fudge(lm: LanguageModel, corpus: Corpus, follow: Follow = unwatched) -> Fudge:
    """FUDGE with a prefix classifier trained on a corpus, now or earlier."""
    generator = corpus.generator
    directory = baseline_directory(lm, Fudge.name, corpus, [asdict(FUDGE_TRAINING), SIZE, LOOKAHEAD, SPANS])

    def task() -> PrefixTask:
        outputs = Outputs.of(corpus)
        torch.manual_seed(SEED)
        classifier = new_classifier(outputs, lm, generator)
        return PrefixTask(classifier, lm, outputs, make_lessons(lm.tokenizer, outputs, corpus), FUDGE_TRAINING)

    train_once(task, Fudge.name, FUDGE_TRAINING, directory, follow, generator.model.device)
    read = read_config(directory / CONFIG)
    with reading(directory):
        outputs = Outputs(Known(**read.pop("known")), **read)
        classifier = new_classifier(outputs, lm, generator)
    return Fudge(generator, lm, outputs, load_head(classifier, directory).to(generator.model.device))


def new_classifier(outputs: Outputs, lm: LanguageModel, generator: Generator) -> PrefixClassifier:
    config = lm.lm.config
    longest = generator.model.config.max_length
    return PrefixClassifier(outputs, config.hidden_size, config.vocab_size, longest, **SIZE)
