"""The language model trained further on controls with their texts: the upper bound that Diffusion-LM compares with
(Li et al. 2022, section 6.1). A control stands before its text as a prompt, its name and the pieces of its value.

The places of a text are counted from one number on, however long its prompt: so the i-th tag of a pattern, or the i-th
leaf of a tree with its brackets, is always as far from the i-th word, and a small model learns to look there.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from operator import itemgetter
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from ctrlgen.checkpoint import DiffusionLM, read_config
from ctrlgen.controls.classifier import Asks
from ctrlgen.controls.language import Control
from ctrlgen.evaluation.baselines.best_of import BestOf, Drawn, Pair, Rank
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
from ctrlgen.evaluation.language_model import LanguageModel, load_causal_lm
from ctrlgen.evaluation.train_language_model import save_lm
from ctrlgen.files import write_text
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.jobs import draw_length
from ctrlgen.generation.request import Request
from ctrlgen.text.tokenizer import WordTokenizer
from ctrlgen.training.batches import LengthBatches
from ctrlgen.training.fit import TrainingConfig
from ctrlgen.training.heads import hold_out

FINETUNING = TrainingConfig(
    steps=2500, tokens_per_batch=4096, lr=0.0015, matrix_lr=0.0, ema=0.995, log_every=20, validate_every=500
)
EXAMPLES = 4  # a text
COMPOSED_SHARE = 0.5  # of the examples, with two controls
TEXT_PLACE = 128  # where a text begins
MOST_PIECES = 2000
PROMPT_STEP = 8  # prompts are filled up to a multiple of this, so that those of one length are drawn for together
TEMPERATURE = 0.7
PROMPTS = "prompts.json"
PIECE = re.compile(r"\w+|[^\w\s]")
LEAF = re.compile(r"[^*]*\*\)*")  # of a tree, with the brackets around it

Span = tuple[int, int, str]  # first word, word after the last, label
Prompted = tuple[list[int], list[int]]  # the ids of a prompt, and of its text


def pieces(value: str, spans: Sequence[Span] = ()) -> list[str]:
    """Words and marks; of a value that asks for spans, written as a tree, its leaves with their brackets."""
    if not spans:
        return PIECE.findall(value)
    tree = value if value.startswith("(") else write_tree(spans)
    return [leaf.replace(" ", "") for leaf in LEAF.findall(tree)]


def spans_of(asks: Asks | None) -> tuple[Span, ...]:
    return asks.spans if asks is not None else ()


def write_tree(spans: Sequence[Span]) -> str:
    """Spans as brackets with open leaves, up to the last word that one of them holds."""
    leaves = []
    for place in range(max(end for _, end, _ in spans)):
        opening = [label for start, end, label in sorted(spans, key=lambda span: -span[1]) if start == place]
        leaves.append("".join(f"({label} " for label in opening) + "*" + ")" * sum(e == place + 1 for _, e, _ in spans))
    return f"(TOP {' '.join(leaves)})"


@dataclass(frozen=True)
class Prompts:
    """Writes controls as ids: a word's own where a piece is one, else ids behind the words'."""

    tokenizer: WordTokenizer
    own: dict[str, int]
    known: Known

    @classmethod
    def learn(cls, corpus: Corpus) -> Prompts:
        tokenizer, known = corpus.generator.model.tokenizer, Known.of(corpus)
        seen = Counter(
            piece
            for name, of_texts in corpus.values.items()
            for value, asks in zip(of_texts, corpus.asks[name], strict=True)
            if value
            for piece in pieces(value, spans_of(asks))
        )
        others = [piece for piece, _ in seen.most_common() if piece not in tokenizer][:MOST_PIECES]
        names = [f"<{name}>" for name in known.kinds]
        return cls(tokenizer, {piece: len(tokenizer) + i for i, piece in enumerate([*names, *others])}, known)

    def ids(self, controls: Mapping[str, Sequence[str]]) -> list[int]:
        """The pieces of values by control name, in whatever order: here the longest is first, the one that says most of
        each word."""
        written = [[*of_value, f"<{name}>"] for name, of_value in sorted(controls.items())]
        in_order = chain(*sorted(written, key=len, reverse=True))
        ids = [self.own.get(piece) or self.tokenizer.ids([piece])[0] for piece in in_order]
        return ids + [self.tokenizer.pad_id] * (-len(ids) % PROMPT_STEP)

    def as_json(self) -> dict[str, Any]:
        return {"own": self.own, "known": asdict(self.known)}


class Finetuned(BestOf):
    """Draws for a request are kept by their likelihood under the same model, as beam search would."""

    name = "finetuned"

    def __init__(self, generator: Generator, lm: LanguageModel, prompts: Prompts):
        super().__init__(generator, lm)
        self.prompts = prompts

    def refuses(self, request: Request) -> str | None:
        return next(filter(None, map(self.refused, request.controls)), None)

    def refused(self, control: Control) -> str | None:
        name = name_of(self.generator, control)
        if control.statement.negated:
            return f"it learned nothing of `not {name}`"
        if name not in self.prompts.known.kinds:
            return f"it did not learn {name}"
        labels = self.prompts.known.labels
        return (
            f"it never saw {control.text}" if name in labels and not self.prompts.known.value(control, name) else None
        )

    def prompt(self, request: Request, seed: int) -> list[int]:
        values: dict[str, str] = {}
        spans: dict[str, tuple[Span, ...]] = {}
        length = draw_length(self.generator.model, self.lengths(request), seed)
        for control in request.controls:
            name = name_of(self.generator, control)
            value = control.classifier.value_at(control.target, length) or control.statement.value
            if name in self.prompts.known.labels:
                value = self.prompts.known.value(control, name) or value
            values[name] = f"{values[name]}, {value}" if name in values else value
            spans[name] = spans.get(name, ()) + spans_of(control.classifier.asks(control.target))
        return self.prompts.ids({name: pieces(value, spans[name]) for name, value in values.items()})

    def draw(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[list[str]]:
        prompts = [self.prompt(request, seed) for request, seed in zip(requests, seeds, strict=True)]
        return self.lm.draw(
            seeds, temperature=TEMPERATURE, adjust=self.ends(requests), max_length=self.longest, prompts=prompts
        )

    def ranks(self, requests: Sequence[Request], drawn: Sequence[Drawn]) -> Mapping[Pair, Rank]:
        examples = [
            (self.prompt(requests[text.request], requests[text.request].seed), self.lm.tokenizer.ids(text.words))
            for text in drawn
        ]
        costs = prompted_costs(ConditionalLoss(self.lm.lm), examples, self.lm.tokenizer.end_id)
        return {(text.request, number): (0.0, -costs[number]) for number, text in enumerate(drawn)}


def places(length: int, starts: Tensor) -> Tensor:
    """Of prompts from 0 on, of texts from TEXT_PLACE on. starts (B,) -> (B, length)"""
    place = torch.arange(length, device=starts.device).expand(len(starts), -1)
    return torch.where(place < starts[:, None], place, place - starts[:, None] + TEXT_PLACE)


class PromptedLM(LlamaForCausalLM):
    """A language model that counts places so when a `LanguageModel` draws from it: a prompt with <end> at once, then
    word by word.
    """

    def forward(self, input_ids: Tensor, past_key_values: Any = None, **more: Any) -> Any:
        written = past_key_values.get_seq_length() if past_key_values is not None else 0
        if written == 0:
            self.prompt_length = input_ids.shape[1] - 1
        starts = torch.full((len(input_ids),), self.prompt_length, device=input_ids.device)
        now = places(written + input_ids.shape[1], starts)[:, written:]
        return super().forward(input_ids=input_ids, position_ids=now, past_key_values=past_key_values, **more)


class ConditionalLoss(nn.Module):
    """Nats a word of a text given its prompt. Without the output layer, which is the embeddings."""

    def __init__(self, lm: LlamaForCausalLM):
        super().__init__()
        self.trunk = lm.model

    def forward(self, tokens: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (B, n): prompt, <end>, text, <end>; starts (B,), where the first <end> is -> (B,), no statistics"""
        tokens_before = tokens[:, :-1]
        hidden = self.trunk(
            input_ids=tokens_before,
            position_ids=places(tokens_before.shape[1], starts),
            attention_mask=torch.ones_like(tokens_before),  # without it a jump of places is taken for a new sequence
            use_cache=False,
        ).last_hidden_state  # (B, n - 1, d)
        logits = F.linear(hidden, self.trunk.embed_tokens.weight).float()
        nats = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view_as(tokens[:, 1:])
        is_text = torch.arange(nats.shape[1], device=nats.device) >= starts[:, None]
        return (nats * is_text).sum(1) / is_text.sum(1), hidden.new_zeros(0)

    def lm(self) -> LlamaForCausalLM:
        """A copy of what has been learned, as the whole model."""
        lm = LlamaForCausalLM(self.trunk.config).to(self.trunk.device)
        lm.model.load_state_dict(self.trunk.state_dict())
        return lm


class FinetuningTask:
    """The `Task` of training further on prompts with texts."""

    def __init__(self, lm: LlamaForCausalLM, prompts: Prompts, examples: Sequence[Prompted], config: TrainingConfig):
        self.prompts, self.end_id = prompts, prompts.tokenizer.end_id
        self.examples, self.held_out = hold_out(examples, text=itemgetter(1))
        self.module = ConditionalLoss(lm)
        self.batches = LengthBatches(joined(self.examples, self.end_id), config.tokens_per_batch, config.seed)

    def steps(self, epoch: int) -> list[list[list[int]]]:
        return self.batches.steps(epoch)

    def batch(self, indices: Sequence[int], rng: torch.Generator, rows: slice) -> tuple[tuple[Tensor, ...], int]:
        tokens = self.batches.tokens(indices)
        starts = torch.tensor([len(self.examples[i][0]) for i in indices])
        return (tokens[rows], starts[rows]), tokens.numel()

    def observe(self, statistics: Tensor) -> None:
        pass

    def validate(self, module: nn.Module) -> dict[str, Any]:
        assert isinstance(module, ConditionalLoss)
        costs = prompted_costs(module, self.held_out, self.end_id)
        return {"validation_cost": sum(costs) / len(costs)}

    def save(self, module: nn.Module, directory: Path, validation: dict[str, Any]) -> None:
        assert isinstance(module, ConditionalLoss)
        save_lm(module.lm(), directory)
        write_text(directory / PROMPTS, json.dumps(self.prompts.as_json()))


def joined(examples: Sequence[Prompted], end_id: int) -> list[list[int]]:
    return [[*prompt, end_id, *text, end_id] for prompt, text in examples]


@torch.no_grad()
def prompted_costs(module: ConditionalLoss, examples: Sequence[Prompted], end_id: int) -> list[float]:
    """Nats a word of each text given its prompt."""
    costs = [0.0] * len(examples)
    batches = LengthBatches(joined(examples, end_id), 4096, seed=0)
    device = module.trunk.device
    for indices in batches.epoch(0):
        starts = torch.tensor([len(examples[i][0]) for i in indices], device=device)
        loss, _ = module(batches.tokens(indices).to(device), starts)
        for index, cost in zip(indices, loss.tolist(), strict=True):
            costs[index] = cost
    return costs


def make_examples(prompts: Prompts, corpus: Corpus) -> list[Prompted]:
    """Each text with some of its controls, one or two at a time, every kind as often as another."""
    rng = Random(SEED)
    kinds, values = corpus.generator.controls.names(), corpus.values
    examples = []
    for number, words in enumerate(corpus.texts):
        by_kind: dict[str, list[str]] = {}
        for name, of_texts in values.items():
            if of_texts[number]:
                by_kind.setdefault(kinds[name], []).append(name)
        for _ in range(EXAMPLES):
            count = min(len(by_kind), 1 + (rng.random() < COMPOSED_SHARE))
            names = [rng.choice(by_kind[kind]) for kind in rng.sample(sorted(by_kind), count)]
            controls = {name: pieces(values[name][number] or "", spans_of(corpus.asks[name][number])) for name in names}
            examples.append((prompts.ids(controls), prompts.tokenizer.ids(words)))
    rng.shuffle(examples)
    return examples


def extended(lm: LlamaForCausalLM, words: int, longest: int) -> LlamaForCausalLM:
    """A copy of a language model with more ids, for sequences of up to `longest`."""
    settings = lm.config.to_dict() | {"vocab_size": words, "max_position_embeddings": longest}
    torch.manual_seed(SEED)
    larger: Any = LlamaForCausalLM(LlamaConfig(**settings))
    weights = larger.model.state_dict()
    for name, known in lm.model.state_dict().items():
        weights[name][: len(known)] = known
    larger.model.load_state_dict(weights)
    return larger.to(lm.device)


def make_finetuned(lm: LanguageModel, corpus: Corpus, follow: Follow = unwatched) -> Finetuned:
    """The language model after training on the texts of a corpus with their controls, now or earlier."""
    made_of = [asdict(FINETUNING), EXAMPLES, COMPOSED_SHARE, TEXT_PLACE, MOST_PIECES, PROMPT_STEP]
    directory = baseline_directory(lm, Finetuned.name, corpus, made_of)

    def task() -> FinetuningTask:
        prompts = Prompts.learn(corpus)
        examples = make_examples(prompts, corpus)
        larger = extended(
            lm.lm, len(lm.tokenizer) + len(prompts.own), TEXT_PLACE + lm.lm.config.max_position_embeddings
        )
        return FinetuningTask(larger, prompts, examples, FINETUNING)

    train_once(task, Finetuned.name, FINETUNING, directory, follow, corpus.generator.model.device)
    return load_finetuned(corpus.generator, directory)


def load_finetuned(generator: Generator, directory: Path) -> Finetuned:
    model: DiffusionLM = generator.model
    read = read_config(directory / PROMPTS)
    loaded = load_causal_lm(str(directory), local_files_only=True)
    with reading(directory):
        prompts = Prompts(model.tokenizer, dict(read["own"]), Known(**read["known"]))
        lm: Any = PromptedLM(loaded.config)
        lm.load_state_dict(loaded.state_dict())
    return Finetuned(generator, LanguageModel(lm.to(model.device), model.tokenizer), prompts)
