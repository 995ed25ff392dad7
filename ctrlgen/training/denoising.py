"""Training the denoiser on sentences: `ctrlgen train`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.fx.experimental._config
import torch.nn.functional as F
from torch import Tensor, nn

from ctrlgen.checkpoint import DiffusionConfig, DiffusionLM, from_pretrained, save_pretrained
from ctrlgen.controls.registry import take_over_classifiers, trained_classifiers
from ctrlgen.data.texts import fitting, read_sentences, read_split, texts_fingerprint
from ctrlgen.diffusion.denoiser import Denoiser, DenoiserConfig, ModelConfig
from ctrlgen.diffusion.losses import cross_entropy_loss, sampled_cross_entropy_loss, simple_loss
from ctrlgen.diffusion.precision import find_device
from ctrlgen.diffusion.process import Noise, draw_noise
from ctrlgen.diffusion.schedule import Schedule, WarpSchedule, make_schedule
from ctrlgen.diffusion.words import spell
from ctrlgen.directories import claimed
from ctrlgen.errors import CtrlgenError, UsageError, listed
from ctrlgen.keys import Key
from ctrlgen.text.context import context_before
from ctrlgen.text.tokenizer import SPECIAL, WordTokenizer
from ctrlgen.training.batches import LengthBatches
from ctrlgen.training.candidates import Candidates, CandidateSampler, places
from ctrlgen.training.fit import Progress, TrainingConfig, fit, prepare_directory
from ctrlgen.training.starting import start_from_neighbours, starting_model, take_weights

log = logging.getLogger(__name__)

VALIDATION_SENTENCES = 2048
VALIDATION_LEVELS = 4  # noise levels seen by each validation sentence

Show = Callable[[DiffusionLM], list[str]]  # texts of the model so far


@dataclass(frozen=True)
class DataConfig:
    """Where the texts are (path or hub id) and how they become token ids."""

    train: Annotated[str, Key("training texts: a file or a hub id")]
    validation: Annotated[str | None, Key("held-out texts, which measure the loss and are never learned from")] = None
    text_column: Annotated[str | None, Key("the column that holds the text")] = None
    min_count: Annotated[int, Key("a word seen less often is not in the vocabulary")] = 2
    max_vocab: Annotated[int, Key("the most words of the vocabulary, special tokens included", least=1)] = 30_000
    min_length: Annotated[int, Key("a shorter text is left out, in words")] = 2
    documents: Annotated[list[str], Key("files of texts as lists of sentences, for a model with `context`")] = field(
        default_factory=list
    )
    leave_out: Annotated[
        dict[str, list[str]], Key('`{column = ["value", …]}`: rows with one of these values are not read')
    ] = field(default_factory=dict)
    held_out: Annotated[
        float,
        Key("share of the training texts held out, where validation names none; equal texts stay together", most=1),
    ] = 0.0
    labels: Annotated[list[str], Key("columns of labels, each of which becomes a control")] = field(
        default_factory=list
    )


@dataclass(frozen=True)
class HeadsConfig:
    """How long the heads of `data.labels` are trained, and how many texts are judged at the end."""

    steps: Annotated[int, Key("training steps of each head that reads a column of labels", least=1)] = 500
    tokens_per_batch: Annotated[int, Key("words of a step", least=1)] = 2048
    judged: Annotated[int, Key("texts written for the verdict at the end; 0 judges nothing")] = 120


@dataclass(frozen=True)
class Recipe:
    """A whole training run, as written in a TOML file."""

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)


class DenoisingLoss(nn.Module):
    """The denoiser with its loss, as one module, so that distributed training sees a single forward pass."""

    def __init__(self, denoiser: Denoiser, schedule: Schedule, steps: int):
        super().__init__()
        self.denoiser, self.schedule, self.steps = denoiser, schedule, steps

    def forward(self, tokens: Tensor, *drawn: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (B, n) -> loss (B,), the warp's statistics (2, bins), empty for a fixed schedule.

        drawn: the parts of `Noise`; then, where words are sampled, the context (B, m) and the parts of `Candidates`.
        """
        noise, sampled = Noise(*drawn[:5]), drawn[5:]
        if sampled:
            loss, log_snr = self.sampled_loss(tokens, noise, sampled[0], Candidates(*sampled[1:]))
        elif self.denoiser.config.objective == "mse":
            loss, log_snr = simple_loss(self.denoiser, self.schedule, tokens, noise, self.steps)
        else:
            loss, log_snr = cross_entropy_loss(self.denoiser, self.schedule, tokens, noise)
        if isinstance(self.schedule, WarpSchedule):
            return loss, self.schedule.bin_sums(log_snr, loss.detach().float())
        return loss, loss.new_zeros(0)

    def sampled_loss(
        self, tokens: Tensor, noise: Noise, context: Tensor, candidates: Candidates
    ) -> tuple[Tensor, Tensor]:
        words = self.denoiser.words.vectors(candidates.own, candidates.spelling, candidates.log_prior)
        before = places(context, candidates.ids) if context.shape[1] else None
        return sampled_cross_entropy_loss(
            self.denoiser, self.schedule, places(tokens, candidates.ids), noise, words, candidates.log_chance, before
        )


class DenoisingTask:
    """Training the denoiser on sentences: the `Task` behind `ctrlgen train`."""

    def __init__(self, recipe: Recipe, show: Show | None = None):
        self.recipe, self.show = recipe, show
        data, model, learn = recipe.data, recipe.model, recipe.training.learn
        if learn != "all" and not (self.tied and recipe.training.init):
            raise UsageError(f'training.learn = "{learn}" needs model.output = "tied" and training.init, to go on from')
        texts, held_out = read_split(data.train, data.validation, data.held_out, data.text_column, data.leave_out)
        sources = data.documents if model.context else []
        documents = [text for source in sources for text in read_sentences(source, leave_out=data.leave_out)]
        start = starting_model(recipe.training.init, asdict(model), recipe.diffusion)
        everything = [*texts, *chain.from_iterable(documents)]
        if start is None:
            self.tokenizer = WordTokenizer.train(everything, data.min_count, data.max_vocab)
            if len(self.tokenizer) == len(SPECIAL):
                raise CtrlgenError(f"{data.train}: no word is seen {data.min_count} times")
        elif self.tied:
            self.tokenizer = start.tokenizer.grown(
                everything, data.min_count, max(data.max_vocab, len(start.tokenizer))
            )
        else:
            self.tokenizer = start.tokenizer
        self.rare: dict[str, int] = {}  # ids of words that are too rare for the vocabulary, from its size on
        self.sentences = self.prepare(texts, data.train)
        self.lengths = dict(Counter(map(len, self.sentences)))
        contexts = self.add_documents(documents)
        training = recipe.training
        self.batches = LengthBatches(
            self.sentences, training.tokens_per_batch, training.seed, contexts, model.context, training.context_share
        )
        self.held_out = self.judgeable(held_out, data.validation or "held out") if held_out else []
        self.module = DenoisingLoss(self.make_denoiser(start), self.make_schedule(start), recipe.diffusion.steps)

    def texts_fingerprint(self) -> str:
        texts = chain(self.sentences, self.batches.contexts.values())
        return texts_fingerprint(texts, [*self.tokenizer.words, *self.rare])

    def judgeable(self, held_out: Sequence[str], source: str) -> list[list[int]]:
        """Held-out texts; a tied output is judged by those whose words it all knows."""
        texts = self.prepare(held_out, source)
        known = [ids for ids in texts if max(ids) < len(self.tokenizer)]
        if len(known) < len(texts):
            log.warning("%s: %s of %s texts have words too rare to judge", source, len(texts) - len(known), len(texts))
        return known

    @property
    def tied(self) -> bool:
        return self.recipe.model.output == "tied"

    def make_denoiser(self, start: DiffusionLM | None) -> Denoiser:
        training = self.recipe.training
        torch.manual_seed(training.seed)
        try:
            denoiser = Denoiser(DenoiserConfig(vocab_size=len(self.tokenizer), **asdict(self.recipe.model)))
        except RuntimeError as error:  # torch's allocator
            raise CtrlgenError("a model of these sizes does not fit into memory") from error
        if self.tied:
            self.learn_words(denoiser, start)
            if start is None and training.counted_vectors:
                start_from_neighbours(denoiser.words, self.sentences)
        if start is not None:
            take_weights(denoiser, start)
        if training.learn == "pieces":
            denoiser.requires_grad_(False).words.pieces.requires_grad_(True)
            denoiser.words.fix()
        elif training.learn == "network":
            denoiser.words.requires_grad_(False)
        if training.compile:
            torch.fx.experimental._config.use_duck_shape = False  # a length equal to a width is no rule
            for module in denoiser.blocks if self.tied else [denoiser]:
                module.compile(dynamic=True, options={"fallback_random": True})  # inductor's own dropout is slow
        return denoiser

    def learn_words(self, denoiser: Denoiser, start: DiffusionLM | None) -> None:
        """Spellings and counts of the vocabulary. Those of a model to start from weigh as much as the texts' own."""
        words, vocab_size, training = [*self.tokenizer.words, *self.rare], len(self.tokenizer), self.recipe.training
        counts = torch.bincount(torch.tensor(list(chain.from_iterable(self.sentences))), minlength=len(words))
        known = counts[:vocab_size]
        if start is not None and start.opens:
            assert isinstance(start.denoiser, Denoiser)
            earlier = F.pad(start.denoiser.words.counts, (0, vocab_size - len(start.tokenizer)))
            known = earlier + (known * (earlier.sum() / known.sum().clamp(min=1))).round().long()
        denoiser.words.learn_spelling(self.tokenizer.words, known)
        log_prior = F.pad(denoiser.words.log_prior(), (0, len(self.rare)), value=denoiser.words.log_prior_of_new())
        spelling, sampled = spell(words, self.recipe.model.pieces), training.sampled_words or len(words)
        self.sampler = CandidateSampler(counts, log_prior, spelling, vocab_size, sampled, training.own_dropout)

    def make_schedule(self, start: DiffusionLM | None = None) -> Schedule:
        diffusion = self.recipe.diffusion
        schedule = make_schedule(diffusion.schedule, diffusion.min_noise, diffusion.max_noise)
        if start is not None:
            schedule.load_state_dict(start.schedule.state_dict())
        return schedule

    def prepare(self, texts: Sequence[str], source: str) -> list[list[int]]:
        """Token ids of the texts that fit; of fixed length with <end> and <pad> under `mse`."""
        data, model, tokenizer = self.recipe.data, self.recipe.model, self.tokenizer
        most = model.max_length if model.objective == "ce" else model.max_length - 1
        encoded = [self.ids(text) for text in texts] if self.tied else tokenizer.encode_training(texts)
        sentences = fitting(encoded, data.min_length, most, tokenizer.unk_id, source)
        return sentences if model.objective == "ce" else [tokenizer.filled(s, model.max_length) for s in sentences]

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, where every word has one: those that the vocabulary lacks are numbered as they come."""
        known, rare = self.tokenizer, self.rare
        words = known.split_training(text)
        return [
            id if id > known.end_id else rare.setdefault(word, len(known) + len(rare))
            for word, id in zip(words, known.ids(words), strict=True)
        ]

    def add_documents(self, documents: Sequence[Sequence[str]]) -> dict[int, list[int]]:
        """Add the sentences that have others before them. Returns these, by index of the sentence."""
        data, model = self.recipe.data, self.recipe.model
        contexts = {}
        for document in documents:
            sentences = [self.ids(text) for text in document]
            for index, ids in enumerate(sentences):
                before = context_before(sentences, index, model.context, self.tokenizer.end_id)
                if before and data.min_length <= len(ids) <= model.max_length:
                    contexts[len(self.sentences)] = before
                    self.sentences.append(ids)
        return contexts

    def steps(self, epoch: int) -> list[list[list[int]]]:
        return self.batches.steps(epoch)

    def batch(self, indices: Sequence[int], rng: torch.Generator, rows: slice) -> tuple[tuple[Tensor, ...], int]:
        tokens = self.batches.tokens(indices)  # (B, n)
        noise = self.draw(tokens, rng)
        parts = (tokens[rows], *noise.rows(rows).tensors())
        if not self.tied:
            return parts, tokens.numel()
        context = self.batches.context(indices)
        everything = torch.cat([context, tokens], 1)
        return (*parts, context[rows], *self.sampler.draw(everything, rng)), everything.numel()

    def draw(self, tokens: Tensor, rng: torch.Generator) -> Noise:
        recipe = self.recipe
        batch, length = tokens.shape
        discrete = recipe.diffusion.steps if recipe.model.objective == "mse" else None
        rate = 0.0 if discrete else recipe.training.span_mask_rate
        dim, spans = recipe.model.embedding_dim, recipe.training.mask_spans
        return draw_noise(batch, length, dim, rng, rate, discrete, spans)

    def observe(self, statistics: Tensor) -> None:
        if isinstance(self.module.schedule, WarpSchedule):
            self.module.schedule.observe(statistics)

    @torch.no_grad()
    def validate(self, module: nn.Module) -> dict[str, Any]:
        """Mean held-out loss and a few samples. The noise is the same at every call: the warp has not moved it."""
        assert isinstance(module, DenoisingLoss)
        results: dict[str, Any] = {}
        if self.show is not None:
            results["samples"] = self.show(self.model(module))
        if self.held_out:
            loss = self.loss_of_all_words(module.denoiser)
            rng = torch.Generator().manual_seed(0)
            batches = LengthBatches(self.held_out[:VALIDATION_SENTENCES], 512 if self.tied else 4096, seed=0)
            losses = []
            for indices in batches.epoch(0):
                tokens = batches.tokens(indices).repeat(VALIDATION_LEVELS, 1)
                losses.append(self.costs(loss, tokens, rng))
            results["validation_loss"] = float(torch.cat(losses).mean())
        return results

    def loss_of_all_words(self, denoiser: Denoiser) -> DenoisingLoss:
        """The loss with none sampled, under a warp that training has not moved."""
        return DenoisingLoss(denoiser, self.make_schedule(), self.recipe.diffusion.steps).to(denoiser.device)

    def costs(self, loss: DenoisingLoss, tokens: Tensor, rng: torch.Generator) -> Tensor:
        """The loss of texts (B, n) at noise that is drawn here, on the denoiser's device. (B,)"""
        device = loss.denoiser.device
        return loss(tokens.to(device), *(part.to(device) for part in self.draw(tokens, rng).tensors()))[0]

    def model(self, module: DenoisingLoss) -> DiffusionLM:
        return DiffusionLM(module.denoiser, module.schedule, self.tokenizer, self.recipe.diffusion, self.lengths)

    def save(self, module: nn.Module, directory: Path, validation: dict[str, Any]) -> None:
        assert isinstance(module, DenoisingLoss)
        if self.tied:
            module.denoiser.words.settle()
        save_pretrained(self.model(module), directory)


def train(
    recipe: Recipe,
    directory: Path,
    *,
    resume: bool = False,
    log_with: str | None = None,
    show: Show | None = None,
    device: str | torch.device = "auto",
) -> Iterator[Progress]:
    """Train a denoiser as `recipe` says. Yields progress; the model is in `directory` when it ends.

    `show` makes the samples that a validation reports, if any, of the model so far.
    """
    on = find_device(device)
    with claimed(directory):
        prepare_directory(directory, resume)
        task = DenoisingTask(recipe, show)
        made_of = {
            "sentences": len(task.sentences),
            "texts": task.texts_fingerprint(),
            "model": asdict(recipe.model),
            "diffusion": {key: of for key, of in asdict(recipe.diffusion).items() if key != "temperature"},
        }
        options: dict[str, Any] = {"resume": resume, "log_with": log_with, "fingerprint": made_of, "device": on}
        yield from fit(task, recipe.training, directory, **options)
        if recipe.training.init is not None:
            earlier = from_pretrained(recipe.training.init)
            if recipe.training.learn != "all":
                take_over_classifiers(earlier, directory)
            elif left := trained_classifiers(earlier):
                again = f"ctrlgen train-classifier KIND --model {directory} --init {recipe.training.init}"
                log.info("classifiers stay with their model (%s); to train them anew: %s", listed(left), again)
