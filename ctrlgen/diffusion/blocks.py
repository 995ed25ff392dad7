"""The denoiser's blocks: attention with rotary positions and an MLP, both modulated by the time."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TIME_FEATURES = 64
LEAST_WIDTH = 16  # words; a CPU adds up fewer numbers than a vector register holds in another order


class Block(nn.Module):
    """Pre-norm attention and MLP, both modulated by the time."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        if min(width, heads) < 1 or width % heads or (width // heads) % 2:
            raise ValueError(f"width {width} must be an even multiple of heads {heads}")
        self.heads = heads
        self.modulation = nn.Linear(TIME_FEATURES, 4 * width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        for zero in (self.modulation.weight, self.modulation.bias, self.attention_out.weight, self.mlp_out.weight):
            nn.init.zeros_(zero)

    def forward(self, h: Tensor, time: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """h (B, n, width), time (B, TIME_FEATURES), mask: bool (B, 1, 1, n) or None -> (B, n, width)"""
        scale_1, shift_1, scale_2, shift_2 = self.modulation(time)[:, None].chunk(4, -1)  # each (B, 1, width)
        h = h + self.dropout(self.attend(modulate(h, scale_1, shift_1), rotation, mask))
        return h + self.dropout(self.mlp_out(F.gelu(self.mlp_in(modulate(h, scale_2, shift_2)))))

    def attend(self, h: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        batch, length, width = h.shape
        q, k, v = self.qkv(h).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, n, head_dim)
        q, k = rotate(q, rotation), rotate(k, rotation)
        # Written out: for sentences of tens of words this is faster on a CPU than the fused kernel, whose
        # backward pass alone costs as much as the rest of the block.
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (B, heads, n, n)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        if not self.training:  # whole vector registers, or the gradient's last bit depends on the batch's longest
            scores = F.pad(scores, (0, -length % LEAST_WIDTH), value=-torch.inf)
        weights = scores.softmax(-1)[..., :length].to(v.dtype)
        return self.attention_out((weights @ v).transpose(1, 2).reshape(batch, length, width))


def modulate(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Adaptive normalisation (adaLN): normalised h, scaled and shifted by the time."""
    return torch.addcmul(shift, F.layer_norm(h, h.shape[-1:]), 1.0 + scale)


def rotary(length: int, dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary position embedding (Su et al. 2021), each (length, dim), of `like`'s type."""
    frequency = 1000.0 ** (-torch.arange(0, dim, 2) / dim)
    angle = torch.outer(torch.arange(length), frequency).repeat(1, 2)
    return angle.cos().to(like), angle.sin().to(like)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotation
    first, second = x.chunk(2, -1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], -1) * sin.to(x.dtype)
