"""Autoregressive language models: a small one of the model's own words, and any causal LM by name.

Both say what a text costs, in nats a token, and guide nothing. The small one is a `transformers` Llama over the
diffusion model's vocabulary, kept in `lm/` beside the model; it can also be sampled from, word by word. Where it only
measures, `generation/small_lm.py` has the same numbers without `transformers`.
"""

from __future__ import annotations

import io
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, LlamaConfig, LlamaForCausalLM

from ctrlgen.checkpoint import CONFIG, DiffusionLM
from ctrlgen.diffusion.seeds import seeded
from ctrlgen.errors import CtrlgenError, first_line
from ctrlgen.files import is_path
from ctrlgen.generation.small_lm import find_lm, read_lm_config, vocabulary_fingerprint
from ctrlgen.text.tokenizer import WordTokenizer
from ctrlgen.training.batches import LengthBatches

SIZE = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
SIZE_OF_MANY = {**SIZE, "hidden_size": 128, "intermediate_size": 344}  # so that words do not take more than all else
MANY_WORDS = 8000
SCORED_TOKENS = 2048  # in one batch; with a vocabulary of 50,000 its logits take 400 MB
DRAWN_TEXTS = 256  # in one batch

Adjust = Callable[[Tensor, Tensor, Tensor], Tensor]


class LanguageModel:
    """p(word | words before) over a diffusion model's vocabulary. <end> stands in front of a text and ends it."""

    def __init__(self, lm: LlamaForCausalLM, tokenizer: WordTokenizer):
        self.lm, self.tokenizer = lm.eval(), tokenizer
        words = torch.ones(lm.config.vocab_size, dtype=torch.bool)  # ids behind the tokenizer's are prompts' own
        words[: len(tokenizer)] = False
        words[[tokenizer.pad_id, tokenizer.unk_id]] = True
        self.unspeakable = words.to(lm.device)  # (V,)

    @classmethod
    def load(cls, model: DiffusionLM) -> LanguageModel:
        """The language model trained for this one. Raises CtrlgenError where there is none that fits."""
        directory = find_lm(model)
        try:
            read_lm_config(directory, model.tokenizer)
            lm = load_causal_lm(str(directory), local_files_only=True)
        except CtrlgenError as error:
            raise CtrlgenError(f"{error}; train it again with `ctrlgen train-lm --force`") from error
        return cls(lm.to(model.device), model.tokenizer)

    def costs(self, texts: Sequence[Sequence[str]]) -> list[float]:
        """Nats a token of each text, given as words, its <end> counted as one of them."""
        end = self.tokenizer.end_id
        return mean_costs(self.lm, [[end, *self.tokenizer.ids(words), end] for words in texts])

    @torch.no_grad()
    def draw(
        self,
        seeds: Sequence[int],
        *,
        temperature: float = 1.0,
        max_length: int | None = None,
        adjust: Adjust | None = None,
        prompts: Sequence[Sequence[int]] | None = None,
    ) -> list[list[str]]:
        """A text for each seed, word by word, cut off after `max_length` words. Special tokens are never drawn.

        A text depends on its seed alone, not on its batch. `adjust(words, logits, rows)` may change the
        distribution of the next word: words (B, t) so far, logits (B, V), rows (B,) the places in `seeds`; what it
        returns, (B, V), is drawn from. `prompts` are ids that stand before <end>, for models that were trained so.
        """
        by_length: dict[int, list[int]] = defaultdict(list)
        for row in range(len(seeds)):
            by_length[len(prompts[row]) if prompts else 0].append(row)
        batches = [rows[i : i + DRAWN_TEXTS] for rows in by_length.values() for i in range(0, len(rows), DRAWN_TEXTS)]
        drawn: dict[int, list[str]] = {}
        for rows in batches:
            starts = [[*(prompts[row] if prompts else ()), self.tokenizer.end_id] for row in rows]
            limit = max_length or self.lm.config.max_position_embeddings - 1
            rngs = [seeded(seeds[row]) for row in rows]
            rolls = torch.stack([torch.rand(limit, generator=rng, dtype=torch.float64) for rng in rngs])
            drawn |= self._draw(rows, torch.tensor(starts), rolls, temperature, adjust)
        return [drawn[row] for row in range(len(seeds))]

    def _draw(
        self, rows: Sequence[int], starts: Tensor, rolls: Tensor, temperature: float, adjust: Adjust | None
    ) -> dict[int, list[str]]:
        """starts (B, s), rolls (B, max_length) in [0, 1) -> words by row. A text that has ended leaves the batch."""
        device = self.lm.device
        live, ids = torch.tensor(rows, device=device), starts.to(device)
        words = ids[:, :0]
        cache = DynamicCache(config=self.lm.config)
        drawn: dict[int, list[str]] = {}
        for step in range(rolls.shape[1]):
            logits = self.lm(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            logits = (logits.float() / temperature).masked_fill(self.unspeakable, -torch.inf)  # (B, V)
            if adjust is not None:
                logits = adjust(words, logits, live)
            word = pick(logits.cpu(), rolls[:, step]).to(device)  # not every device has float64
            ended = word == self.tokenizer.end_id
            drawn |= self._texts(live[ended], words[ended])
            words = torch.cat([words, word[:, None]], 1)[~ended]
            live, rolls, ids = live[~ended], rolls[~ended.cpu()], words[:, -1:]
            if len(live) == 0:
                break
            if ended.any():
                cache.batch_select_indices((~ended).nonzero()[:, 0])
        return drawn | self._texts(live, words)

    def _texts(self, rows: Tensor, words: Tensor) -> dict[int, list[str]]:
        return {row: self.tokenizer.decode(ids) for row, ids in zip(rows.tolist(), words.tolist(), strict=True)}


class CausalLM:
    """Any causal LM that `transformers` reads, as a judge of plain text in its own tokens."""

    def __init__(self, lm: Any, tokenizer: Any):
        self.lm, self.tokenizer = lm.eval(), tokenizer

    @classmethod
    def load(cls, name: str, device: str | torch.device = "cpu") -> CausalLM:
        """By hub id, directory, or GGUF file (also a directory that holds one). Raises CtrlgenError in one line."""
        place, options = name, {}
        path = Path(name).expanduser()
        if path.exists():
            place = str(path)
            gguf = [path] if path.is_file() else sorted(path.glob("*.gguf"))
            if gguf and not (path / CONFIG).is_file():
                if len(gguf) > 1:
                    raise CtrlgenError(f"{name}: holds several models; give one: {', '.join(map(str, gguf))}")
                place, options = str(gguf[0].parent), {"gguf_file": gguf[0].name}
        elif is_path(name):
            raise CtrlgenError(f"{name}: no such file or directory")
        lm = load_causal_lm(place, **options)
        try:
            with quietly():
                tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **options)
        except Exception as error:  # transformers raises what its readers raise
            raise CtrlgenError(f"{name}: its tokenizer cannot be loaded: {first_line(error)}") from error
        return cls(lm.to(device), tokenizer)

    def costs(self, texts: Sequence[str]) -> list[float]:
        """Nats a token of each text, in the LM's own tokens. The end is not counted: no end of document is meant."""
        start = self.tokenizer.bos_token_id
        start = self.tokenizer.eos_token_id if start is None else start
        encoded = [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        sequences = [ids if start is None else [start, *ids] for ids in encoded]
        longest = getattr(self.lm.config, "max_position_embeddings", None)
        for text, ids in zip(texts, sequences, strict=True):
            if len(ids) < 2:
                raise CtrlgenError(f"the text {text!r} is too short to have a cost")
            if longest is not None and len(ids) > longest:
                raise CtrlgenError(f"a text has {len(ids)} tokens, more than the {longest} that the LM reads")
        return mean_costs(self.lm, sequences)


@torch.no_grad()
def mean_costs(lm: Any, sequences: Sequence[Sequence[int]]) -> list[float]:
    """Nats a token of each sequence, given its first token."""
    costs = [0.0] * len(sequences)
    for indices in LengthBatches(sequences, SCORED_TOKENS, seed=0).epoch(0):
        tokens = torch.tensor([sequences[i] for i in indices], device=lm.device)  # (B, n)
        logits = lm(input_ids=tokens[:, :-1], use_cache=False).logits  # (B, n - 1, V)
        for index, cost in zip(indices, next_token_costs(logits, tokens[:, 1:]).tolist(), strict=True):
            costs[index] = cost
    return costs


def next_token_costs(logits: Tensor, targets: Tensor) -> Tensor:
    """logits (B, n, V), targets (B, n) -> mean nats of each row's targets (B,)"""
    nats = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return nats.view_as(targets).mean(1)


def pick(logits: Tensor, rolls: Tensor) -> Tensor:
    """The word at which the cumulative probability passes the roll. (B, V), (B,) -> (B,)"""
    cumulative = logits.double().softmax(-1).cumsum(-1)
    threshold = rolls[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp(max=logits.shape[1] - 1)


def load_causal_lm(place: str, **options: Any) -> Any:
    """A causal LM in float32. Raises CtrlgenError in one line, also where weights are missing or do not fit."""
    try:
        with quietly():
            options |= {"dtype": torch.float32, "trust_remote_code": False, "output_loading_info": True}
            loaded: Any = AutoModelForCausalLM.from_pretrained(place, **options)
            lm, report = loaded
    except ImportError as error:
        if "gguf" in str(error).casefold():
            raise CtrlgenError(f"{place}: reading a GGUF file needs `pip install gguf`") from error
        raise CtrlgenError(f"{place}: cannot be loaded: {first_line(error)}") from error
    except Exception as error:  # transformers raises what its readers raise
        if "ignore_mismatched_sizes" in str(error):
            raise CtrlgenError(f"{place}: its weights do not fit its {CONFIG}") from error
        raise CtrlgenError(f"{place}: cannot be loaded as a language model: {first_line(error)}") from error
    if report["missing_keys"]:  # transformers would leave them random
        raise CtrlgenError(f"{place}: its weights lack {min(report['missing_keys'])}, which {CONFIG} asks for")
    return lm.requires_grad_(False)


@contextmanager
def quietly() -> Iterator[None]:
    """No bars, reports or retries of other libraries: what went wrong is said in one line."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def size_of(tokenizer: WordTokenizer) -> dict[str, int]:
    """The sizes of a language model of these words, as LlamaConfig names them."""
    return SIZE if len(tokenizer) < MANY_WORDS else SIZE_OF_MANY


def new_lm(tokenizer: WordTokenizer, max_length: int) -> LlamaForCausalLM:
    """An untrained language model of the tokenizer's words, for texts of up to `max_length` of them."""
    settings: dict[str, Any] = {
        **size_of(tokenizer),
        "vocab_size": len(tokenizer),
        "max_position_embeddings": max_length + 1,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.end_id,
        "eos_token_id": tokenizer.end_id,
        "pad_token_id": tokenizer.pad_id,
        "vocabulary": vocabulary_fingerprint(tokenizer),
    }
    return LlamaForCausalLM(LlamaConfig(**settings))
