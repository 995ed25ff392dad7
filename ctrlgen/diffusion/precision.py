"""Which device there is, which floating-point numbers it has, and which of them it multiplies fast."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from ctrlgen.errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")


def has_fast_bfloat16(device: torch.device | str) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 on this device."""
    if torch.device(device).type == "cpu":
        return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def autocast(device: torch.device) -> torch.autocast:
    """Within it matrix products run in bfloat16 where that is faster."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bfloat16(device))


def fast(network: Callable[P, R], device: torch.device) -> Callable[P, R]:
    """The same network in autocast. What is computed from its answer, a gradient as well, stays in float32."""

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with autocast(device):
            return network(*args, **kwargs)

    return call


def precise(x: Tensor) -> Tensor:
    """In float64 where the device has it: a sum then never shows how far other rows of a batch fill it up."""
    return x if x.device.type == "mps" else x.double()


def find_device(name: str | torch.device) -> torch.device:
    """The device called `name`; auto takes the best there is. Raises UsageError for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {str(name)!r} is not available here: use auto or cpu") from error
    return device
