"""All that a training run needs to continue bit for bit, and what keeps one from continuing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ctrlgen.checkpoint import save_tensors
from ctrlgen.errors import CtrlgenError, UsageError


class RunState:
    """All that a run needs to continue: weights, average, optimizers and step, in one safetensors file."""

    def __init__(
        self,
        module: nn.Module,
        average: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        fingerprint: dict[str, Any],
    ):
        self.module, self.average, self.optimizers = module, average, optimizers
        self.fingerprint = json.dumps(fingerprint, sort_keys=True)
        self.recent: list[float] = []  # losses since the last log

    def tensors(self) -> dict[str, Tensor]:
        tensors = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, values in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{index}.{k}": torch.as_tensor(v) for k, v in values.items()}
        return tensors

    def save(self, path: Path, step: int) -> None:
        recent = json.dumps(self.recent)
        save_tensors(path, self.tensors(), {"step": str(step), "recent": recent, "fingerprint": self.fingerprint})

    def load(self, path: Path) -> int:
        """Restore everything and return the number of steps done.

        Raises CtrlgenError where the file is damaged, UsageError where it is of another recipe or other texts.
        """
        try:
            with safe_open(str(path), "pt") as file:
                metadata = file.metadata()
                step = int(metadata["step"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
            was, recent = json.loads(metadata.get("fingerprint", "{}")), json.loads(metadata.get("recent", "[]"))
        except Exception as error:  # safetensors raises its own, other files have no step
            raise CtrlgenError(f"{path}: truncated or not a checkpoint") from error
        now = json.loads(self.fingerprint)
        if "texts" not in was:  # version 0.1 counted them only
            now.pop("texts", None)
        if was != now:
            changed = differing_keys(was, now)
            raise UsageError(f"{path}: {why_not_resumed(changed)}")

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.module.load_state_dict(part("module."))
        self.average.load_state_dict(part("average."))
        for number, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in part(f"optimizer.{number}.").items():
                index, key = name.split(".", 1)
                state.setdefault(int(index), {})[key] = value
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        self.recent += recent
        return step


def why_not_resumed(changed: Sequence[str]) -> str:
    if "texts" in changed or "sentences" in changed:
        return "was made with other texts; go on with those, or start anew with another --out"
    hint = "; for more steps start another run from its weights, with --init" if "training.steps" in changed else ""
    return f"was made with another recipe ({', '.join(changed)} changed){hint}"


def differing_keys(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the settings that differ."""
    changed = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            changed += differing_keys(a, b, f"{prefix}{key}.")
        elif a != b:
            changed.append(f"{prefix}{key}")
    return changed
