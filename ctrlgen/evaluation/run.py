"""Runs an evaluation: targets -> texts by every method -> verdicts and costs -> rows of figures."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ctrlgen.controls.registry import fingerprint, trained_classifiers, weights_fingerprint
from ctrlgen.data import read_texts
from ctrlgen.errors import UsageError, did_you_mean
from ctrlgen.evaluation.figures import Judge, Row, evaluations, summarise
from ctrlgen.evaluation.metrics import Training
from ctrlgen.evaluation.records import CHUNK, HUMAN, Record, Store, human_records, write
from ctrlgen.evaluation.systems import OURS, Given, Ours, Writer
from ctrlgen.evaluation.targets import UNGUIDED, Asked, ask, expand_suites, make_targets, read_examples, read_targets
from ctrlgen.files import finite, write_text
from ctrlgen.generation.generator import Generator, Settings

RESULTS = "results.json"
TARGET_SEED = 0  # which held-out texts are taken; --seeds change the samples
SWEPT = {  # what --sweep may vary, with how its values are read
    "strength": float, "steps": int, "temperature": float, "candidates": int, "time_offset": float, "restart": float,
    "corrections": int, "sampler": str, "guidance": str, "select": str,
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What to evaluate. The same plan gives the same figures."""

    suites: tuple[str, ...] = ("all",)
    data: tuple[str, ...] = ()  # held-out texts; several sources are joined by their texts
    training_data: str | None = None  # for what is copied from it
    targets: Path | None = None  # a file of targets instead of suites
    samples: Path | None = None  # texts to evaluate instead of the model's, in the order of targets
    systems: tuple[tuple[str, Path], ...] = ()  # texts of other systems to evaluate beside the model's, by name
    limit: int = 50
    samples_per_target: int = 1
    seeds: tuple[int, ...] = (0,)
    settings: Settings = field(default_factory=Settings)
    sweep: tuple[tuple[str, tuple[str, ...]], ...] = ()
    baselines: tuple[str, ...] = ()

    def variants(self) -> dict[str, Settings]:
        """The settings to be tried, by what they are called; "" is the plan's own."""
        if not self.sweep:
            return {"": self.settings}
        keys = [key for key, _ in self.sweep]
        return {
            ", ".join(f"{key}={value}" for key, value in zip(keys, values, strict=True)): vary(
                self.settings, dict(zip(keys, values, strict=True))
            )
            for values in itertools.product(*(values for _, values in self.sweep))
        }


def vary(settings: Settings, changes: Mapping[str, str]) -> Settings:
    """Settings with some of them changed, values as written. Raises UsageError for what cannot be varied."""
    read: dict[str, Any] = {}
    for key, value in changes.items():
        if key not in SWEPT:
            raise UsageError(f"--sweep {key!r}: use {', '.join(SWEPT)}.{did_you_mean(key, SWEPT)}")
        try:
            read[key] = SWEPT[key](value)
        except ValueError:
            raise UsageError(f"--sweep {key}: {value!r} is not a number") from None
    guided = {"strength": "strength", "guidance": "method"}
    guidance = replace(settings.guidance, **{guided[key]: value for key, value in read.items() if key in guided})
    return replace(settings, guidance=guidance, **{key: value for key, value in read.items() if key not in guided})


@dataclass(frozen=True)
class Progress:
    """How far an evaluation is."""

    done: int
    total: int
    what: str


@dataclass(frozen=True)
class Results:
    """A finished evaluation."""

    configuration: dict[str, Any]
    rows: list[Row]
    asked: dict[str, Asked]
    records: list[Record]
    notes: list[str]

    def row(self, suite: str, method: str, setting: str = "") -> Row | None:
        wanted = (suite, method, setting)
        return next((row for row in self.rows if (row.suite, row.method, row.setting) == wanted), None)

    def as_json(self) -> dict[str, Any]:
        return {
            "configuration": self.configuration,
            "rows": [asdict(row) for row in self.rows],
            "notes": self.notes,
        }


def evaluate(
    generator: Generator,
    plan: Plan,
    judges: Sequence[Judge],
    peers: Sequence[Writer] = (),
    training: Training | None = None,
    directory: Path | None = None,
    watch: Callable[[Progress], None] | None = None,
    command: str = "",
) -> Results:
    """Carry out a plan. With a directory its records are kept there, and those it holds already are used.

    `training` is what the plan's training data hold, read here if it is not given (see `read_training`).
    `command` is what a person would type to run it again. Raises UsageError for a plan that this model cannot be asked,
    CtrlgenError where targets or data cannot be read.
    """
    variants = plan.variants()
    asked = ask_all(generator, plan)
    configuration = describe(generator, plan, judges) | {"asked": identity_of(asked)}
    store = Store(directory, configuration)
    given = [Given(path, generator, name) for name, path in plan.systems]
    if plan.samples is not None:
        given.append(Given(plan.samples, generator))
    for system in given:
        system.leave_out(asked.values(), plan.samples_per_target)
    writing = 0 if plan.samples is not None else len(variants) + len(peers)
    total = sum(len(a.requests) for a in asked.values()) * (len(plan.seeds) * writing + len(given))
    done = 0
    for suite, of_suite in asked.items():
        store.fill((suite, HUMAN, "", 0, 0), of_suite, lambda of_suite=of_suite: human_records(of_suite))
        for seed in plan.seeds:
            for start in range(0, len(of_suite.requests), CHUNK):
                writers: list[tuple[str, Writer]] = []
                if plan.samples is None:
                    writers += [(s, Ours(generator, v)) for s, v in variants.items()]
                    writers += [("", peer) for peer in peers if suite != UNGUIDED]
                if seed == plan.seeds[0]:
                    writers += [("", system) for system in given]
                seconds: float | None = None
                for setting, writer in writers:
                    if watch is not None:
                        watch(Progress(done, total, f"{suite} {writer.name} {setting}".strip()))
                    key = (suite, writer.name, setting, seed, start)
                    records = store.fill(
                        key,
                        of_suite,
                        lambda w=writer, k=key, o=of_suite, s=seconds: write(w, k, o, s),
                        every_time=isinstance(writer, Given),
                    )
                    if writer.name == OURS and seconds is None:
                        seconds = sum(record.seconds for record in records)
                    done += len(of_suite.requests[start : start + CHUNK])
    for system in given:
        system.refuse_leftovers()
    training = training or read_training(generator, plan)
    calls = {name: evaluations(settings, generator.model.fixed_length) for name, settings in variants.items()}
    rows = summarise(store.records, asked, judges, training, calls)
    configuration["command"] = command
    configuration["peak_memory_mb"] = round(peak_memory())
    notes = [note for of_suite in asked.values() for note in left_out(of_suite)]
    notes += [note for peer in peers for note in peer.notes]
    results = Results(configuration, rows, asked, store.records, notes)
    if directory is not None:
        write_text(directory / RESULTS, json.dumps(finite(results.as_json()), ensure_ascii=False, indent=1) + "\n")
    return results


def read_training(generator: Generator, plan: Plan) -> Training | None:
    """A plan's training texts, split as the model reads them; the n-gram judge needs them as well."""
    if plan.training_data is None:
        return None
    return Training(generator.model.tokenizer.split(text) for text in read_texts(plan.training_data))


def ask_all(generator: Generator, plan: Plan) -> dict[str, Asked]:
    """The targets of every suite of a plan."""
    n = plan.samples_per_target
    if plan.targets is not None:
        targets = read_targets(plan.targets, generator)[: plan.limit]
        return {plan.targets.name: ask(generator, plan.targets.name, targets, n, 0)}
    if not plan.data:
        raise UsageError("give --data, held-out texts from which targets are taken, or --targets")
    suites = expand_suites(plan.suites, generator)
    examples = read_examples(generator, plan.data)
    return {
        suite: ask(generator, suite, make_targets(generator, suite, examples, plan.limit, TARGET_SEED), n, 0)
        for suite in suites
    }


def left_out(asked: Asked) -> list[str]:
    if not asked.left_out:
        return []
    return [f"{asked.suite}: {len(asked.left_out)} targets left out, the first because {asked.left_out[0]}"]


def peak_memory() -> float:
    """Of this process, in MB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most / 1e3


def describe(generator: Generator, plan: Plan, judges: Sequence[Judge]) -> dict[str, Any]:
    """All that another person needs to run this again."""
    written = asdict(plan) | {
        "targets": str(plan.targets) if plan.targets else None,
        "samples": str(plan.samples) if plan.samples else None,
        "systems": {name: str(path) for name, path in plan.systems},
    }
    where = generator.model.directory
    return {
        "model": {
            "name": where.name if where else None,
            "weights": weights_fingerprint(generator.model),
            "classifiers": {name: fingerprint(at, "*.*") for name, at in trained_classifiers(generator.model).items()},
        },
        "plan": written,
        "judges": [judge.name for judge in judges],
        "versions": {
            "ctrlgen": version("ctrlgen"), "python": platform.python_version(), "torch": torch.__version__,
        },
        "hardware": {
            "processor": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "device": str(generator.model.device),
        },
    }  # fmt: skip


def identity_of(asked: Mapping[str, Asked]) -> str:
    """Identifies what is asked for, whatever file it was read from."""
    targets = {suite: [asdict(target) for target in of_suite.targets] for suite, of_suite in asked.items()}
    return hashlib.sha256(json.dumps(targets).encode()).hexdigest()[:16]


def processor() -> str:
    """What the machine calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
