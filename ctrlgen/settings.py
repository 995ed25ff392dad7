"""Names that options accept, importable without torch."""

from typing import Literal

SamplerName = Literal["ancestral", "ddim", "dpm"]
GuidanceMethod = Literal["gradient", "exact", "paper"]
Selection = Literal["score", "mbr"]
