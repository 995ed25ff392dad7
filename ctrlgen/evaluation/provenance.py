"""With what an evaluation was made: weights, versions, machine, targets."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

from ctrlgen.checkpoint import DiffusionLM
from ctrlgen.controls.registry import fingerprint, trained_classifiers, weights_fingerprint
from ctrlgen.evaluation.plan import Plan
from ctrlgen.evaluation.targets import Asked

OUTPUTS = (
    "report",
    "comparison",
    "update_card",
    "calibrate",
    "learn_confidence",
)  # of a plan: no figure depends on them
ELSEWHERE = ("model", "device")  # of a plan: the weights and the machine say more


def describe(model: DiffusionLM, plan: Plan, asked: Mapping[str, Asked], cost_models: list[str]) -> dict[str, Any]:
    """All that another person needs to run an evaluation again."""
    return {
        **what_is_evaluated(model, plan),
        "asked": identity_of(asked),
        "cost models": cost_models,
        "versions": {
            "ctrlgen": version("ctrlgen"), "python": platform.python_version(), "torch": torch.__version__,
        },
        "hardware": {
            "processor": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "device": str(model.device),
        },
    }  # fmt: skip


def what_is_evaluated(model: DiffusionLM, plan: Plan) -> dict[str, Any]:
    """The model and the plan, which are known before any data are read."""
    written = {key: value for key, value in asdict(plan).items() if key not in (*OUTPUTS, *ELSEWHERE)} | {
        "targets": str(plan.targets) if plan.targets else None,
        "samples": str(plan.samples) if plan.samples else None,
        "systems": {name: str(path) for name, path in plan.systems},
    }
    return {
        "model": {
            "name": model.directory.name if model.directory else None,
            "weights": weights_fingerprint(model),
            "temperature": model.diffusion.temperature,
            "classifiers": {name: fingerprint(at, "*.*") for name, at in trained_classifiers(model).items()},
        },
        "plan": written,
    }


def identity_of(asked: Mapping[str, Asked]) -> str:
    """Identifies what is asked for, whatever file it was read from."""
    targets = {suite: [asdict(target) for target in of_suite.targets] for suite, of_suite in asked.items()}
    return hashlib.sha256(json.dumps(targets).encode()).hexdigest()[:16]


def peak_memory() -> float:
    """Of this process, in MB; 0 where the system does not say."""
    if resource is None:
        return 0.0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most / 1e3


def processor() -> str:
    """What the machine calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
