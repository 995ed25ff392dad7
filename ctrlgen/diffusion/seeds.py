"""Seeds, and the random generators that they stand for."""

from __future__ import annotations

import torch

SEED_STRIDE = 1 << 20  # candidates of one sample draw from seeds this far from other samples'
READ = 2**32 - 1  # the bits of a seed that torch's generator on a CPU reads
MIX = 0x9E3779B9  # 2^32 over the golden ratio (Knuth, The Art of Computer Programming, volume 3, section 6.4)


def seeded(seed: int) -> torch.Generator:
    """A generator on the CPU in which every bit of a seed counts; below 2^32 it is torch's own of that seed."""
    return torch.Generator().manual_seed((seed ^ (seed >> 32) * MIX) & READ)
