"""A checkpoint folder as the original Diffusion-LM writes it, small and untrained, and what its network computes."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEncoder

WORDS = ["START", "END", "UNK", "PAD", *"the . restaurant food is a near cheap pub Japanese serves in It".split()]
DIM, WIDTH, LAYERS, HEADS, INTERMEDIATE, POSITIONS, CHANNELS = 8, 24, 2, 3, 40, 20, 12
SIDE, STEPS = 4, 100  # positions are SIDE squared
ARGUMENTS: dict[str, Any] = {
    "image_size": SIDE, "num_channels": CHANNELS, "dropout": 0.1, "learn_sigma": False, "sigma_small": True,
    "class_cond": False, "diffusion_steps": STEPS, "noise_schedule": "sqrt", "timestep_respacing": "",
    "predict_xstart": True, "rescale_timesteps": True, "model_arch": "transformer", "in_channel": DIM,
    "training_mode": "e2e", "vocab_size": len(WORDS), "config_name": "bert-base-uncased", "experiment_mode": "lm",
    "logits_mode": 1, "padding_mode": "pad", "modality": "e2e-tgt", "use_bert_tokenizer": "no", "ema_rate": "0.9999",
}  # fmt: skip


def make_state(vocab_size: int = len(WORDS), seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the original's names."""
    rng = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng) / math.sqrt(shape[-1])

    def linear(name: str, inputs: int, outputs: int) -> dict[str, Tensor]:
        return {f"{name}.weight": random(outputs, inputs), f"{name}.bias": random(outputs)}

    def norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": 1.0 + 0.1 * random(WIDTH), f"{name}.bias": random(WIDTH)}

    words = F.normalize(torch.randn(vocab_size, DIM, generator=rng), dim=-1) * math.sqrt(DIM)
    state = {"position_ids": torch.arange(POSITIONS)[None], "word_embedding.weight": words}
    state |= {"lm_head.weight": words, "lm_head.bias": random(vocab_size)}
    state |= linear("time_embed.0", CHANNELS, 4 * CHANNELS) | linear("time_embed.2", 4 * CHANNELS, WIDTH)
    state |= linear("input_up_proj.0", DIM, WIDTH) | linear("input_up_proj.2", WIDTH, WIDTH)
    for n in range(LAYERS):
        layer = f"input_transformers.layer.{n}"
        for part in ("query", "key", "value"):
            state |= linear(f"{layer}.attention.self.{part}", WIDTH, WIDTH)
        state |= linear(f"{layer}.attention.output.dense", WIDTH, WIDTH) | norm(f"{layer}.attention.output.LayerNorm")
        state |= linear(f"{layer}.intermediate.dense", WIDTH, INTERMEDIATE)
        state |= linear(f"{layer}.output.dense", INTERMEDIATE, WIDTH) | norm(f"{layer}.output.LayerNorm")
    state |= {"position_embeddings.weight": random(POSITIONS, WIDTH)} | norm("LayerNorm")
    state |= linear("output_down_proj.0", WIDTH, WIDTH) | linear("output_down_proj.2", WIDTH, DIM)
    return state


def write_folder(directory: Path, words: Sequence[str] = WORDS, **changes: Any) -> Path:
    """A whole folder; `changes` are of its training arguments."""
    directory.mkdir(parents=True, exist_ok=True)
    state = make_state(len(words))
    torch.save(state, directory / "ema_0.9999_000100.pt")
    torch.save({"weight": state["word_embedding.weight"]}, directory / "random_emb.torch")
    (directory / "training_args.json").write_text(json.dumps(ARGUMENTS | changes), encoding="utf-8")
    vocabulary = {word: id for id, word in enumerate(words)}
    (directory / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    return directory


def x0_hat(state: dict[str, Tensor], x_t: Tensor, time: Tensor) -> Tensor:
    """What the original's network answers, written from its description. x_t (B, n, d), time (B,)"""
    half = CHANNELS // 2
    angles = time.float()[:, None] * torch.exp(-math.log(10_000) * torch.arange(half) / half)
    emb = torch.cat([angles.cos(), angles.sin()], -1)

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    emb = linear("time_embed.2", F.silu(linear("time_embed.0", emb)))
    h = linear("input_up_proj.2", linear("input_up_proj.0", x_t).tanh())
    h = h + state["position_embeddings.weight"][: x_t.shape[1]] + emb[:, None]
    h = F.layer_norm(h, (WIDTH,), state["LayerNorm.weight"], state["LayerNorm.bias"], 1e-12)
    config = BertConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=INTERMEDIATE,
    )  # fmt: skip
    config._attn_implementation = "sdpa"  # the other one, to compare with
    encoder = BertEncoder(config).eval()
    prefix = "input_transformers."
    encoder.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    with torch.no_grad():
        h = encoder(h).last_hidden_state
    return linear("output_down_proj.2", linear("output_down_proj.0", h).tanh())
