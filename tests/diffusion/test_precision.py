"""Which floating-point numbers a device has, and which it multiplies fast."""

from typing import NoReturn

import pytest
import torch
from torch import Tensor

from ctrlgen.automata.automaton import any_text
from ctrlgen.automata.paths import best_path
from ctrlgen.diffusion import words
from ctrlgen.diffusion.precision import has_fast_bfloat16
from ctrlgen.diffusion.words import WordTable


def test_bfloat16_that_a_gpu_emulates_is_not_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a T4 or a V100, of which torch says that they support it."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not has_fast_bfloat16("cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert has_fast_bfloat16("cuda")


def test_a_device_without_float64_has_words_and_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apple's: there `double` raises, and `precise` leaves numbers as they are."""
    table = WordTable(3, 4, 2, 8)
    table.counts.copy_(torch.tensor([1, 2, 5]))
    expected = table.log_prior()

    def refuse(x: Tensor) -> NoReturn:
        raise TypeError("the MPS framework doesn't support float64")

    monkeypatch.setattr(Tensor, "double", refuse)
    monkeypatch.setattr(words, "precise", lambda x: x)
    torch.testing.assert_close(table.log_prior(), expected)
    assert best_path(torch.eye(3), any_text(3)) == [0, 1, 2]
