"""Any label that the user brings: `sentiment: positive`.

The guide is a head on the denoiser's hidden states of noised text. The oracle is another network, trained apart on the
clean texts of the other half of the data; it never guides. Both know several fields at once, each with values of its
own, of which one text may have any; a label is the case of one field, and `classifiers.field` the case of many.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from classifiers.labelled import (
    MIN_COUNT,
    OPEN,
    Ids,
    Row,
    Values,
    counterfactual,
    halves,
    learnable_values,
    literal_phrases,
    make_examples,
    read_column,
)
from ctrlgen.checkpoint import CONFIG, DiffusionLM, write_weights
from ctrlgen.control import Classifier, Verdict
from ctrlgen.data import LengthBatches, find_text_column
from ctrlgen.errors import CtrlgenError, UsageError, did_you_mean
from ctrlgen.heads import Example, Head, load_head, mix_layers, starting_point, train_head
from ctrlgen.model import Denoised
from ctrlgen.registry import check_name, find_trained, fold, weights_fingerprint

if TYPE_CHECKING:
    from datasets import Dataset

    from ctrlgen.fit import Progress, TrainingConfig
    from ctrlgen.heads import Start

MOST_LISTED = 12  # values named in an error
HEAD_SIZE = {"width": 96}
SMOOTHING = 2.0
ORACLE = "oracle.safetensors"
ORACLE_SIZE = {"dim": 32, "width": 128}
ORACLE_EPOCHS, ORACLE_MOST_STEPS, ORACLE_TOKENS, ORACLE_LR = 60, 3000, 1024, 3e-3
ORACLE_HELD_OUT = 0.1
LEAST_EXPLAINED = 0.05  # of the labels' entropy; a head that knows less cannot steer


def by_field(logits: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Log-probabilities that sum to one within each field. (B, values of all fields) -> K times (B, values)"""
    return [part.log_softmax(-1) for part in logits.split(list(sizes), -1)]


def joint_log_prob(log_p: Sequence[Tensor], ids: Tensor) -> Tensor:
    """The sum over the fields asked for; given x_t, fields count as independent. ids (B, K) -> (B,)"""
    each = [field.gather(-1, id.clamp(min=0)[:, None]).squeeze(-1) for field, id in zip(log_p, ids.T, strict=True)]
    return (torch.stack(each, -1) * (ids != OPEN)).sum(-1)


def likeliest(log_p: Sequence[Tensor]) -> Tensor:
    """The best value of each field. (B, K)"""
    return torch.stack([field.argmax(-1) for field in log_p], -1)


class LabelHead(Head):
    """log p(value | x_t) of every field: its frequency, the strongest word for it and the strongest against it.

    What the word at one position says is log sum_w p(w | x_t) p(value | w) / p(value), from a lexicon counted in the
    training texts, corrected by an MLP over the denoiser's hidden states.
    """

    def __init__(self, sizes: Sequence[int], vocab_size: int, trunk_layers: int, trunk_width: int, width: int):
        super().__init__()
        self.sizes = sizes
        self.frequency = nn.Parameter(torch.zeros(sum(sizes)))  # log p(value)
        self.lexicon = nn.Parameter(torch.zeros(vocab_size, sum(sizes)))  # log p(value | word) / p(value)
        self.layer_mix = nn.Parameter(torch.zeros(trunk_layers))
        self.hidden = nn.Sequential(nn.Linear(trunk_width, width), nn.GELU(), nn.Linear(width, width), nn.GELU())
        self.correction = nn.Linear(width, sum(sizes))
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    def evidence(self, denoised: Denoised) -> Tensor:
        """What each position says of each value. (B, n, values of all fields)"""
        mixed = mix_layers(self.layer_mix, denoised)
        of_words = (denoised.probs @ self.lexicon.exp()).clamp(min=1e-6).log()
        return of_words + self.correction(self.hidden(mixed))

    def forward(self, denoised: Denoised) -> list[Tensor]:
        """log p(value | x_t): for each of the K fields, (B, values)."""
        speaks_for = speaks_against = self.evidence(denoised)
        if denoised.lengths is not None:
            position = torch.arange(speaks_for.shape[1], device=speaks_for.device)
            beyond = (position >= denoised.lengths[:, None])[..., None]  # (B, n, 1)
            speaks_for = speaks_for.masked_fill(beyond, -torch.inf)
            speaks_against = speaks_against.masked_fill(beyond, torch.inf)
        return by_field(self.frequency + speaks_for.amax(1) + speaks_against.amin(1), self.sizes)

    @torch.no_grad()
    def count(self, examples: Sequence[Example[Ids]]) -> None:
        """Frequencies and lexicon of the training texts, as if each word had been seen SMOOTHING times more."""
        starts = [sum(self.sizes[:field]) for field in range(len(self.sizes))]
        counts = torch.zeros_like(self.lexicon)
        for example in examples:
            values = [start + id for start, id in zip(starts, example.target, strict=True) if id != OPEN]
            counts[torch.tensor(sorted(set(example.tokens)))[:, None], torch.tensor(values)] += 1
        log_p = Frequencies.of(examples, self.sizes).log_p()
        ratios = []
        for seen, prior in zip(counts.split(list(self.sizes), -1), log_p, strict=True):
            given_word = (seen + SMOOTHING * prior.exp()) / (seen.sum(-1, keepdim=True) + SMOOTHING)
            ratios.append(given_word.log() - prior)
        self.lexicon.copy_(torch.cat(ratios, -1))
        self.frequency.copy_(torch.cat(log_p))

    def log_prob(self, denoised: Denoised, encoded: Tensor) -> Tensor:
        """encoded: value ids (B, K), OPEN where a field is not asked for -> (B,)"""
        return joint_log_prob(self(denoised), encoded)

    def accuracy(self, denoised: Denoised, encoded: Tensor) -> Tensor:
        asked = encoded != OPEN
        right = likeliest(self(denoised)) == encoded
        return (right & asked).sum(-1) / asked.sum(-1).clamp(min=1)

    def encode(self, targets: Sequence[Ids], lengths: Sequence[int]) -> Tensor:
        return torch.tensor(targets)


class CleanClassifier(nn.Module):
    """The oracle: a convolution over words, the strongest answer of each filter, a linear layer (Kim 2014)."""

    def __init__(self, sizes: Sequence[int], vocab_size: int, dim: int, width: int):
        super().__init__()
        self.sizes = sizes
        self.embedding = nn.Embedding(vocab_size, dim)
        self.filters = nn.Conv1d(dim, width, 3, padding=1)
        self.dropout = nn.Dropout(0.3)
        self.output = nn.Linear(width, sum(sizes))

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """log p(value | words), words (B, n): for each of the K fields, (B, values)."""
        h = self.filters(self.embedding(tokens).transpose(1, 2)).relu().amax(-1)  # (B, width)
        return by_field(self.output(self.dropout(h)), self.sizes)


def train_oracle(
    oracle: CleanClassifier, examples: Sequence[Example[Ids]], phrases: Sequence[dict[int, Ids]], seed: int
) -> list[float]:
    """Train on clean texts and on their counterfactuals; the accuracy in each field on texts held out."""
    kept = max(1, int(len(examples) * ORACLE_HELD_OUT))
    held_out, examples, rng = examples[:kept], list(examples[kept:]), Random(seed)
    if any(phrases):
        examples += [counterfactual(example, phrases, rng) for example in examples]
    batches = LengthBatches([e.tokens for e in examples], ORACLE_TOKENS, seed)
    steps = min(ORACLE_MOST_STEPS, ORACLE_EPOCHS * len(batches.epoch(0)))
    order = chain.from_iterable(map(batches.epoch, count()))
    optimizer = torch.optim.AdamW(oracle.parameters(), lr=ORACLE_LR)
    for step, indices in zip(range(steps), order, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = ORACLE_LR * (1.0 - step / steps)
        ids = torch.tensor([examples[i].target for i in indices])  # (B, K)
        optimizer.zero_grad()
        (-joint_log_prob(oracle(batches.tokens(indices)), ids).mean()).backward()
        optimizer.step()
    oracle.eval().requires_grad_(False)
    wanted = torch.tensor([e.target for e in held_out])
    got = torch.cat([likeliest(oracle(torch.tensor([e.tokens]))) for e in held_out])
    asked = wanted != OPEN
    return (((got == wanted) & asked).sum(0) / asked.sum(0).clamp(min=1)).tolist()


@dataclass(frozen=True)
class Frequencies:
    """How often each field has each value: what a guess without reading the text is worth."""

    counts: list[Tensor]  # for each field, (values,)

    @classmethod
    def of(cls, examples: Sequence[Example[Ids]], sizes: Sequence[int]) -> Frequencies:
        ids = torch.tensor([e.target for e in examples])  # (N, K)
        return cls([torch.bincount(id[id != OPEN], minlength=size) for id, size in zip(ids.T, sizes, strict=True)])

    def log_p(self) -> list[Tensor]:
        """Smoothed by one, so that nothing is impossible."""
        return [((seen + 1) / (seen + 1).sum()).log() for seen in self.counts]

    def accuracies(self) -> list[float]:
        """In each field, how often its commonest value is right."""
        return [float(seen.max() / seen.sum().clamp(min=1)) for seen in self.counts]

    def loss(self, examples: Sequence[Example[Ids]]) -> float:
        """Measured as a head's validation loss is: nats a word, averaged over texts."""
        log_p = [field.expand(len(examples), -1) for field in self.log_p()]
        joint = joint_log_prob(log_p, torch.tensor([e.target for e in examples]))
        return float(-(joint / torch.tensor([len(e.tokens) for e in examples])).mean())


@dataclass(frozen=True)
class Target:
    """A value of a field, by their ids."""

    field: int
    value: int


class Label(Classifier):
    kind = "label"
    summary = "any label that your data has"
    syntax = "NAME: VALUE, after `ctrlgen train-classifier label --label-column COLUMN --name NAME`"
    example = "sentiment: positive"
    oracle = "a classifier trained on other, clean texts"
    weight: ClassVar[float] = 3.0
    weight_in_company: ClassVar[float] = 6.0  # one value must hold its own against a tag for every word
    may_be_absent: ClassVar[bool] = False  # whether not being mentioned is a value of its own

    def __init__(self, model: DiffusionLM, name: str, values: Values, head: LabelHead, judge: CleanClassifier):
        self.tokenizer = model.tokenizer
        self.all_values = values
        self.head, self.judge = head, judge
        self.answer(name)

    def answer(self, name: str) -> None:
        """Be the classifier of this field."""
        self.name = name
        self.values, self.field = self.all_values[name], list(self.all_values).index(name)

    def sharing(self, name: str) -> Label | None:
        if name not in self.all_values:
            return None
        other = copy.copy(self)
        other.answer(name)
        return other

    @property
    def group(self) -> int:
        """All fields of one training: its head answers for them at once."""
        return id(self.head)

    @classmethod
    def load(cls, model: DiffusionLM, name: str) -> Label:
        directory, config = find_trained(model, name)
        try:
            values = {field: [str(value) for value in values] for field, values in config["values"].items()}
            head, judge = cls.networks(model, values, config["head"], config["oracle"]["size"])
            classifier = cls(model, name, values, head, judge)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CtrlgenError(f"{directory / CONFIG}: not the settings of a {cls.kind} classifier") from error
        load_head(head, directory).to(model.device)
        load_head(judge, directory, ORACLE)
        return classifier

    @staticmethod
    def networks(
        model: DiffusionLM, values: Values, head: dict[str, int], oracle: dict[str, int]
    ) -> tuple[LabelHead, CleanClassifier]:
        """Guide and oracle, untrained."""
        sizes, trunk = [len(of_field) for of_field in values.values()], model.config
        guide = LabelHead(sizes, len(model.tokenizer), trunk.layers, trunk.width, **head)
        return guide, CleanClassifier(sizes, len(model.tokenizer), **oracle)

    @classmethod
    def read_rows(cls, name: str, data: Dataset, text_column: str, label_column: str | None) -> list[Row]:
        """What each row of the data has; a field without a value is left out."""
        columns = [column for column in data.column_names if column != text_column]
        if label_column is None:
            raise UsageError(f"{cls.kind}: which column holds the labels? Give --label-column: {', '.join(columns)}")
        find_text_column(data.column_names, label_column, "the data")
        return [{name: value} if value else {} for value in read_column(data, label_column)]

    @classmethod
    def train(
        cls,
        model: DiffusionLM,
        name: str,
        data: Dataset,
        text_column: str,
        label_column: str | None,
        config: TrainingConfig,
        directory: Path,
    ) -> Iterator[Progress]:
        torch.manual_seed(config.seed)
        rows = cls.read_rows(name, data, text_column, label_column)
        texts = read_column(data, text_column)
        if not any(texts):
            raise CtrlgenError(f"the column {text_column!r} holds no text")
        values = learnable_values([row for row, text in zip(rows, texts, strict=True) if text], cls.may_be_absent)
        if not values:
            seen = Counter(value for row in rows for value in row.values()).most_common(3)
            listed = ", ".join(f"{value!r} {times} times" for value, times in seen) or "nothing"
            raise CtrlgenError(f"{cls.kind}: needs two values seen {MIN_COUNT} times each; the data has {listed}")
        for field in values:
            check_name(field, cls.kind)
        examples = make_examples(model, texts, rows, values, cls.may_be_absent)
        guides, oracles = halves(examples, config.seed)
        head, judge = cls.networks(model, values, HEAD_SIZE, ORACLE_SIZE)
        head.count(guides)
        frequencies = Frequencies.of(guides, head.sizes)
        guessed = dict(zip(values, frequencies.accuracies(), strict=True))
        counts = {"guide": len(guides), "oracle": len(oracles), "skipped": len(texts) - len(examples)}
        start = starting_point(config, cls.kind)
        if start is None:
            phrases = literal_phrases(oracles, values, model.tokenizer)
            right = dict(zip(values, train_oracle(judge, oracles, phrases, config.seed), strict=True))
        else:  # its oracle reads clean texts, whatever the denoiser
            refuse_other_texts(start, values, counts, config.seed)
            load_head(judge, start.directory, ORACLE)
            right = start.said("oracle", "accuracy")
        description = {
            "kind": cls.kind,
            "names": list(values),
            "head": HEAD_SIZE,
            "oracle": {"size": ORACLE_SIZE, "accuracy": right},
            "guessing": {"accuracy": guessed, "validation_loss": frequencies.loss(guides)},
            "texts": counts,
            "trained_on": weights_fingerprint(model),
            "values": values,
        }
        for progress in train_head(model, head, guides, config, directory, description):
            yield compared_with_guessing(progress, description) if progress.validation else progress
        write_weights(directory / ORACLE, judge.state_dict())

    def parse(self, value: str) -> Target:
        """A value, whatever its case, spaces and hyphens."""
        written = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value
        same = [known for known in self.values if known.casefold() == written.strip().casefold()]
        same = same or [known for known in self.values if fold(known) and fold(known) == fold(written)]
        if len(same) != 1:
            listed = ", ".join(self.values[:MOST_LISTED]) + (", …" if len(self.values) > MOST_LISTED else "")
            hint = did_you_mean(written, self.values, 3)
            raise UsageError(f"{self.name}: unknown value {written!r}; its values are {listed}.{hint}")
        return Target(self.field, self.values.index(same[0]))

    def values_of(
        self, texts: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]], rng: Random
    ) -> list[str | None]:
        """From the data's labels."""
        known = {value.casefold() for value in self.values}
        values = [self.value_in(row) for row in rows]
        return [value if value and value.casefold() in known else None for value in values]

    def value_in(self, row: Mapping[str, Any]) -> str | None:
        """From the column that has this control's name."""
        return next((str(value) for column, value in row.items() if fold(column) == fold(self.name) and value), None)

    def contradiction(self, target: Target, other: Classifier, others_target: Any) -> str | None:
        if other.group != self.group or target.field != others_target.field or target == others_target:
            return None
        return f"a text has one {self.name}, {self.values[target.value]} or {self.values[others_target.value]}"

    def encode(self, targets: Sequence[Target], lengths: Sequence[int]) -> Tensor:
        """(B, K), one field asked for in each row."""
        encoded = torch.full((len(targets), len(self.all_values)), OPEN)
        for row, target in enumerate(targets):
            encoded[row, target.field] = target.value
        return encoded.to(self.head.frequency.device)

    def log_prob(self, denoised: Denoised, encoded: Tensor) -> Tensor:
        return self.head.log_prob(denoised, encoded)

    def check(self, texts: Sequence[Sequence[str]], targets: Sequence[Target]) -> list[Verdict]:
        verdicts = []
        for words, target in zip(texts, targets, strict=True):
            ids = self.tokenizer.ids(words) or [self.tokenizer.pad_id]
            got = Target(target.field, int(self.judge(torch.tensor([ids]))[target.field].argmax()))
            verdicts.append(Verdict(got == target, None if got == target else f"reads as {self.written(got)}"))
        return verdicts

    def written(self, target: Target) -> str:
        return list(self.all_values.values())[target.field][target.value]


def refuse_other_texts(start: Start, values: Values, counts: dict[str, int], seed: int) -> None:
    """The oracle that is kept must never have seen the guide's texts: same data, same halves."""
    if (start.said("values"), start.said("texts"), start.said("training", "seed")) != (values, counts, seed):
        raise CtrlgenError(f"{start.directory}: was trained on other texts or with another seed; train without --init")


def compared_with_guessing(progress: Progress, description: dict[str, Any]) -> Progress:
    """Add what guessing is worth to a validation, and in words at the end what cannot steer or cannot be trusted."""
    measured, guessing = progress.validation or {}, description["guessing"]
    explained = 1.0 - measured["validation_loss"] / guessing["validation_loss"]
    base = sum(guessing["accuracy"].values()) / len(guessing["accuracy"])
    notes = []
    if progress.step == progress.steps:
        if description["texts"]["skipped"]:
            notes.append(f"{description['texts']['skipped']} rows skipped: no text, no usable label, or too long")
        if explained < LEAST_EXPLAINED:
            notes.append("warning: the head knows no more than how frequent each value is, so it cannot steer")
        for field, right in description["oracle"]["accuracy"].items():
            notes.append(f"oracle of {field}: accuracy {right:.3f}, guessing {guessing['accuracy'][field]:.3f}")
            if not right > guessing["accuracy"][field]:
                notes.append(f"warning: the oracle of {field} is no better than guessing; its verdicts mean little")
    return replace(progress, validation=measured | {"base_rate": base, "explained": explained, "notes": notes})
