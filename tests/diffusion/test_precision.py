"""Which floating-point numbers a device multiplies fast."""

import pytest
import torch

from ctrlgen.diffusion.precision import has_fast_bfloat16


def test_bfloat16_that_a_gpu_emulates_is_not_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a T4 or a V100, of which torch says that they support it."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not has_fast_bfloat16("cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert has_fast_bfloat16("cuda")
