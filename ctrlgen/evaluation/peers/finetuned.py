"""The language model trained further on controls with their texts: the upper bound that Diffusion-LM compares with
(Li et al. 2022, section 6.1). A control stands before its text as a prompt, its name and the pieces of its value.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from ctrlgen.checkpoint import DiffusionLM
from ctrlgen.control import Control
from ctrlgen.data import LengthBatches
from ctrlgen.evaluation.peers.best_of import BestOf, Drawn, Pair, Rank
from ctrlgen.evaluation.peers.training import (
    SEED,
    Corpus,
    Known,
    held_out,
    is_negated,
    name_of,
    peer_directory,
    train_once,
)
from ctrlgen.files import write_text
from ctrlgen.language_model import LanguageModel, load_causal_lm, save_lm
from ctrlgen.pipeline import Generator, Request
from ctrlgen.tokenizer import WordTokenizer
from ctrlgen.train import TrainingConfig

FINETUNING = TrainingConfig(
    steps=2000, tokens_per_batch=4096, lr=0.001, matrix_lr=0.0, ema=0.995, log_every=20, validate_every=500
)
EXAMPLES = 4  # a text
COMPOSED_SHARE = 1 / 3  # of the examples, with two controls
MOST_PIECES = 2000
TEMPERATURE = 0.7
LENGTH = "length"  # its value is drawn among those that all controls allow
PROMPTS = "prompts.json"
PIECE = re.compile(r"\w+|[^\w\s]")

Prompted = tuple[list[int], list[int]]  # the ids of a prompt, and of its text


@dataclass(frozen=True)
class Prompts:
    """Writes controls as ids: a word's own where a piece is one, else ids behind the words'."""

    tokenizer: WordTokenizer
    own: dict[str, int]
    known: Known

    @classmethod
    def learn(cls, corpus: Corpus) -> Prompts:
        tokenizer, known = corpus.generator.model.tokenizer, Known.of(corpus)
        pieces = Counter(piece for of in corpus.values.values() for v in filter(None, of) for piece in PIECE.findall(v))
        others = [piece for piece, _ in pieces.most_common() if piece not in tokenizer][:MOST_PIECES]
        names = [f"<{name}>" for name in known.names]
        return cls(tokenizer, {piece: len(tokenizer) + i for i, piece in enumerate([*names, *others])}, known)

    def ids(self, controls: Mapping[str, str]) -> list[int]:
        """Values by control name, in whatever order."""
        pieces = [[f"<{name}>", *PIECE.findall(value)] for name, value in sorted(controls.items())]
        return [self.own.get(piece) or self.tokenizer.ids([piece])[0] for piece in chain(*pieces)]

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
        if is_negated(control):
            return f"it learned nothing of `not {name}`"
        if name not in self.prompts.known.names:
            return f"it did not learn {name}"
        labels = self.prompts.known.labels
        return (
            f"it never saw {control.text}" if name in labels and not self.prompts.known.value(control, name) else None
        )

    def prompt(self, request: Request, seed: int) -> list[int]:
        values: dict[str, str] = {}
        for control in request.controls:
            name = name_of(self.generator, control)
            value = control.statement.value
            if control.classifier.kind == LENGTH:
                value = str(self.generator.draw_length(self.lengths(request), seed))
            elif name in self.prompts.known.labels:
                value = self.prompts.known.value(control, name) or value
            values[name] = f"{values[name]}, {value}" if name in values else value
        return self.prompts.ids(values)

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


class ConditionalLoss(nn.Module):
    """Nats a word of a text given its prompt. Without the output layer, which is the embeddings."""

    def __init__(self, lm: LlamaForCausalLM):
        super().__init__()
        self.trunk = lm.model

    def forward(self, tokens: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (B, n): prompt, <end>, text, <end>; starts (B,), where the first <end> is -> (B,), no statistics"""
        hidden = self.trunk(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state  # (B, n - 1, d)
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
        kept = held_out(len(examples))
        self.prompts, self.end_id = prompts, prompts.tokenizer.end_id
        self.held_out, self.examples = examples[:kept], examples[kept:]
        self.module = ConditionalLoss(lm)
        self.batches = LengthBatches(joined(self.examples, self.end_id), config.tokens_per_batch, config.seed)

    def epoch(self, number: int) -> list[list[int]]:
        return self.batches.epoch(number)

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

    def save(self, module: nn.Module, directory: Path) -> None:
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
            controls = {name: values[name][number] or "" for name in names}
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


def make_finetuned(lm: LanguageModel, corpus: Corpus) -> Finetuned:
    """The language model after training on the texts of a corpus with their controls, now or earlier."""
    made_of = [asdict(FINETUNING), EXAMPLES, COMPOSED_SHARE, MOST_PIECES]
    directory = peer_directory(lm, Finetuned.name, corpus, made_of)

    def task() -> FinetuningTask:
        prompts = Prompts.learn(corpus)
        examples = make_examples(prompts, corpus)
        longest = max(len(prompt) + len(text) + 2 for prompt, text in examples)
        larger = extended(lm.lm, len(lm.tokenizer) + len(prompts.own), longest)
        return FinetuningTask(larger, prompts, examples, FINETUNING)

    train_once(task, Finetuned.name, FINETUNING, directory)
    return load_finetuned(corpus.generator, directory)


def load_finetuned(generator: Generator, directory: Path) -> Finetuned:
    model: DiffusionLM = generator.model
    read = json.loads((directory / PROMPTS).read_text(encoding="utf-8"))
    prompts = Prompts(model.tokenizer, read["own"], Known(**read["known"]))
    lm = load_causal_lm(str(directory), local_files_only=True)
    return Finetuned(generator, LanguageModel(lm.to(model.device), model.tokenizer), prompts)
