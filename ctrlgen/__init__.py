"""Text under control: a Diffusion-LM steered by attribute classifiers.

    from ctrlgen import Generator, Settings
    generator = Generator("e2e")
    request = generator.request(["pos: DET NOUN AUX DET ADJ NOUN PUNCT"], n=4, seed=1)
    for sample in generator.generate([request]):
        print(sample.text, sample.success)

Names are imported on first use, so that `import ctrlgen` stays free of torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctrlgen.checkpoint import DiffusionLM, from_pretrained, save_pretrained
    from ctrlgen.controls.classifier import Asks, Classifier, Verdict
    from ctrlgen.controls.language import Control
    from ctrlgen.diffusion.denoiser import Denoised
    from ctrlgen.errors import CtrlgenError, UsageError
    from ctrlgen.evaluation.evaluation import Evaluation
    from ctrlgen.evaluation.plan import Plan
    from ctrlgen.generation.editing import Editor
    from ctrlgen.generation.generator import Generator
    from ctrlgen.generation.plans import TextPlan, read_plan
    from ctrlgen.generation.request import Request, Sample
    from ctrlgen.generation.writing import Writer
    from ctrlgen.settings import Guidance, Settings
    from ctrlgen.training.heads import Example, Head, mix_layers
    from ctrlgen.training.trained import Lessons, TrainedClassifier, TrainingData

# Before torch is imported: a matrix product's rows must not depend on how many rows there are, or a text would
# depend on the batch it was drawn in.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

_HOMES = {
    "checkpoint": ("DiffusionLM", "from_pretrained", "save_pretrained"),
    "controls.classifier": ("Asks", "Classifier", "Verdict"),
    "controls.language": ("Control",),
    "diffusion.denoiser": ("Denoised",),
    "errors": ("CtrlgenError", "UsageError"),
    "evaluation.evaluation": ("Evaluation",),
    "evaluation.plan": ("Plan",),
    "generation.editing": ("Editor",),
    "generation.generator": ("Generator",),
    "generation.plans": ("TextPlan", "read_plan"),
    "generation.request": ("Request", "Sample"),
    "generation.writing": ("Writer",),
    "settings": ("Guidance", "Settings"),
    "training.heads": ("Example", "Head", "mix_layers"),
    "training.trained": ("Lessons", "TrainedClassifier", "TrainingData"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Asks",
    "Classifier",
    "Control",
    "CtrlgenError",
    "Denoised",
    "DiffusionLM",
    "Editor",
    "Evaluation",
    "Example",
    "Generator",
    "Guidance",
    "Head",
    "Lessons",
    "Plan",
    "Request",
    "Sample",
    "Settings",
    "TextPlan",
    "TrainedClassifier",
    "TrainingData",
    "UsageError",
    "Verdict",
    "Writer",
    "from_pretrained",
    "mix_layers",
    "read_plan",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("ctrlgen")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'ctrlgen' has no attribute {name!r}")
    return getattr(import_module(f"ctrlgen.{_HOME_OF[name]}"), name)
