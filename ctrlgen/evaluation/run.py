"""Runs an evaluation: targets -> texts by every method -> verdicts and costs -> rows of figures.

Everything is computed from records of single texts. They are kept in a directory if one is given, so that an
evaluation that was interrupted continues, and gives the same figures.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch

from ctrlgen.control import Verdict, check
from ctrlgen.data import read_texts
from ctrlgen.diffusion import SCORED_LEVELS
from ctrlgen.errors import CtrlgenError, UsageError, did_you_mean
from ctrlgen.evaluation import metrics
from ctrlgen.evaluation.metrics import Estimate, Training, estimate, mean
from ctrlgen.evaluation.targets import (
    INFILL,
    UNGUIDED,
    Asked,
    Words,
    ask,
    expand_suites,
    make_targets,
    read_examples,
    read_targets,
)
from ctrlgen.files import make_directory, write_text
from ctrlgen.pipeline import Generator, Request, Settings
from ctrlgen.registry import weights_fingerprint
from ctrlgen.tokenizer import detokenize

HUMAN, GIVEN, OURS = "human", "given", "ctrlgen"
RECORDS, RESULTS = "samples.jsonl", "results.json"
CHUNK = 64  # targets that are written between two saves
TARGET_SEED = 0  # which held-out texts are taken; --seeds change the samples
SWEPT = {  # what --sweep may vary, with how its values are read
    "strength": float, "steps": int, "temperature": float, "candidates": int, "time_offset": float, "restart": float,
    "sampler": str, "guidance": str, "select": str,
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What to evaluate. The same plan gives the same figures."""

    suites: tuple[str, ...] = ("all",)
    data: tuple[str, ...] = ()  # held-out texts; several sources are joined by their texts
    training_data: str | None = None  # for what is copied from it
    targets: Path | None = None  # a file of targets instead of suites
    samples: Path | None = None  # texts to evaluate instead of the model's, in the order of targets
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


class Judge(Protocol):
    """A language model that says what texts cost; it guided nothing."""

    name: str

    def costs(self, texts: Sequence[Sequence[str]]) -> list[float]:
        """Nats a token of each text."""
        ...


@dataclass(frozen=True)
class Draft:
    """A text that a writer wrote for a request. Verdicts and scores as far as it knows them."""

    request: int
    index: int
    words: Words
    verdicts: tuple[Verdict, ...] | None = None
    scores: tuple[float, ...] | None = None


class Writer(Protocol):
    """A method that is evaluated."""

    name: str

    def write(self, requests: Sequence[Request], seconds: float | None) -> list[Draft]:
        """n texts for each request, in order. `seconds`: what ctrlgen took for the same requests, if it was asked."""
        ...


class Ours:
    """The diffusion model under guidance."""

    name = OURS

    def __init__(self, generator: Generator, settings: Settings):
        self.generator, self.settings = generator, settings

    def write(self, requests: Sequence[Request], seconds: float | None) -> list[Draft]:
        numbered = [replace(request, id=number) for number, request in enumerate(requests)]
        return [
            Draft(
                sample.id,
                sample.index,
                tuple(sample.tokens),
                tuple(result.verdict for result in sample.controls),
                tuple(result.score for result in sample.controls),
            )
            for sample in self.generator.generate(numbered, self.settings)
        ]


class Given:
    """Texts from elsewhere, in the order of the targets: JSON Lines with `text` or `tokens`, or plain lines."""

    name = GIVEN

    def __init__(self, path: Path, generator: Generator):
        self.path = path
        try:
            lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise CtrlgenError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
        self.texts = [self.words(line, generator) for line in lines]
        self.taken = 0

    def words(self, line: str, generator: Generator) -> Words:
        try:
            read = json.loads(line)
        except ValueError:
            read = line
        if isinstance(read, dict) and isinstance(read.get("tokens"), list):
            return tuple(map(str, read["tokens"]))
        text = read.get("text") if isinstance(read, dict) else line
        if not isinstance(text, str):
            raise UsageError(f"{self.path}: a line has neither `text` nor `tokens`: {line[:60]}")
        return tuple(generator.model.tokenizer.split(text))

    def write(self, requests: Sequence[Request], seconds: float | None) -> list[Draft]:
        places = [(number, index) for number, request in enumerate(requests) for index in range(request.n)]
        texts = self.texts[self.taken : self.taken + len(places)]
        if len(texts) < len(places):
            raise CtrlgenError(f"{self.path}: holds {len(self.texts)} texts, but the targets need more")
        self.taken += len(places)
        return [Draft(*place, words) for place, words in zip(places, texts, strict=True)]


@dataclass(frozen=True)
class Record:
    """One text with its verdicts."""

    suite: str
    method: str
    setting: str
    seed: int
    target: int
    index: int
    tokens: list[str]
    verdicts: list[Verdict]
    scores: list[float] | None = None
    seconds: float = 0.0  # this text's share of the time

    @property
    def group(self) -> tuple[str, str, str]:
        return self.suite, self.method, self.setting

    @property
    def success(self) -> bool | None:
        said = [verdict.success for verdict in self.verdicts]
        return False if False in said else None if None in said or not said else True

    @property
    def text(self) -> str:
        return detokenize(self.tokens)

    @classmethod
    def from_json(cls, line: str) -> Record:
        read = json.loads(line)
        verdicts = [Verdict(**v | {"failed": tuple(v["failed"])}) for v in read.pop("verdicts")]
        return cls(**read, verdicts=verdicts)


@dataclass(frozen=True)
class Row:
    """The figures of one suite under one method and setting."""

    suite: str
    method: str
    setting: str
    targets: int
    samples: int
    success: Estimate | None  # share of texts whose controls all hold
    parts: Estimate | None  # share of words (pos) or labelled F1 (tree), where the oracle counts parts
    by_control: dict[str, Estimate]  # in compositions
    also: dict[str, Estimate]  # further published tests
    unchecked: int  # texts that no oracle could be asked about
    cost: dict[str, Estimate]  # nats a token under each judge
    exp_mean: dict[str, float]  # mean of exp(cost): the perplexity that Diffusion-LM prints
    gap: dict[str, Estimate]  # cost above human text of the same targets
    distinct: dict[str, float]
    self_bleu: float | None
    copies: float | None
    longest_shared: float | None
    bleu: float | None  # against references, infilling only
    rouge_l: float | None
    calibration: metrics.Calibration | None
    seconds_per_sample: float | None
    tokens_per_second: float | None
    evaluations: int | None  # of the denoiser, a sample


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
    directory: Path | None = None,
    watch: Any = None,
) -> Results:
    """Carry out a plan. With a directory its records are kept there, and those it holds already are used.

    Raises UsageError for a plan that this model cannot be asked, CtrlgenError where targets or data cannot be read.
    """
    variants = plan.variants()
    asked = ask_all(generator, plan)
    configuration = describe(generator, plan, judges)
    store = Store(directory, configuration)
    given = Given(plan.samples, generator) if plan.samples is not None else None
    total = sum(len(a.requests) for a in asked.values()) * len(plan.seeds) * max(1, len(variants) + len(peers))
    done = 0
    for suite, of_suite in asked.items():
        store.fill((suite, HUMAN, "", 0, 0), lambda of_suite=of_suite: human_records(of_suite))
        for seed in plan.seeds:
            for start in range(0, len(of_suite.requests), CHUNK):
                writers: list[tuple[str, Writer]] = [(s, Ours(generator, v)) for s, v in variants.items()]
                if given is not None:
                    writers = [("", given)]
                elif suite != UNGUIDED:
                    writers += [("", peer) for peer in peers]
                seconds: float | None = None
                for setting, writer in writers:
                    if watch is not None:
                        watch(Progress(done, total, f"{suite} {writer.name} {setting}".strip()))
                    key = (suite, writer.name, setting, seed, start)
                    records = store.fill(
                        key,
                        lambda w=writer, k=key, o=of_suite, s=seconds: write(w, k, o, s),
                        every_time=writer is given,
                    )
                    if writer.name == OURS and seconds is None:
                        seconds = sum(record.seconds for record in records)
                    done += len(of_suite.requests[start : start + CHUNK])
    texts = read_texts(plan.training_data) if plan.training_data else []
    training = Training(generator.model.tokenizer.split(text) for text in texts) if texts else None
    rows = summarise(store.records, asked, judges, training, variants)
    configuration["peak_memory_mb"] = round(peak_memory())
    notes = [note for of_suite in asked.values() for note in left_out(of_suite)]
    results = Results(configuration, rows, asked, store.records, notes)
    if directory is not None:
        write_text(directory / RESULTS, json.dumps(results.as_json(), ensure_ascii=False, indent=1) + "\n")
    return results


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


Key = tuple[str, str, str, int, int]  # suite, method, setting, seed, first target of the chunk


class Store:
    """Records by chunk, in memory and in a JSON Lines file that a killed run leaves whole but for its last line."""

    def __init__(self, directory: Path | None, configuration: Mapping[str, Any]):
        self.records: list[Record] = []
        self.chunks: dict[Key, list[Record]] = {}
        self.path = None if directory is None else directory / RECORDS
        if self.path is not None:
            make_directory(self.path.parent)
            identity = {key: configuration[key] for key in ("model", "plan")}
            self.load(json.loads(json.dumps(identity)))

    def load(self, identity: dict[str, Any]) -> None:
        assert self.path is not None
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        whole = []
        for line in lines:
            try:
                whole.append(json.loads(line))
            except ValueError:
                break
        if whole and whole[0] != identity:
            raise UsageError(f"{self.path.parent}: holds another evaluation; choose another --report")
        for chunk in whole[1:]:
            key = tuple(chunk["chunk"])
            self.chunks[key] = [Record.from_json(json.dumps(record)) for record in chunk["records"]]
        whole = whole or [identity]
        write_text(self.path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in whole))

    def fill(self, key: Key, work: Any, every_time: bool = False) -> list[Record]:
        """The records of a chunk: from the file if they are there, else by doing the work."""
        if key not in self.chunks or every_time:
            self.chunks[key] = work()
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    records = [asdict(record) for record in self.chunks[key]]
                    file.write(json.dumps({"chunk": list(key), "records": records}, ensure_ascii=False) + "\n")
        self.records += self.chunks[key]
        return self.chunks[key]


def write(writer: Writer, key: Key, asked: Asked, seconds: float | None) -> list[Record]:
    """One chunk by one writer, judged. Sampling seeds move with the evaluation's seed."""
    suite, method, setting, seed, start = key
    requests = [replace(r, seed=r.seed + seed * 1_000_003) for r in asked.requests[start : start + CHUNK]]
    started = time.monotonic()
    drafts = writer.write(requests, seconds)
    share = (time.monotonic() - started) / max(1, len(drafts))
    return [
        Record(
            suite, method, setting, seed, start + draft.request, draft.index, list(draft.words), list(verdicts),
            list(draft.scores) if draft.scores is not None else None, share,
        )
        for draft, verdicts in zip(drafts, judged(requests, drafts), strict=True)
    ]  # fmt: skip


def human_records(asked: Asked) -> list[Record]:
    """The references of every target, under the same oracles."""
    drafts = [
        Draft(number, index, words)
        for number, target in enumerate(asked.targets)
        for index, words in enumerate(target.references)
    ]
    verdicts = judged(asked.requests, drafts)
    return [
        Record(asked.suite, HUMAN, "", 0, draft.request, draft.index, list(draft.words), list(of_draft))
        for draft, of_draft in zip(drafts, verdicts, strict=True)
    ]


def judged(requests: Sequence[Request], drafts: Sequence[Draft]) -> list[tuple[Verdict, ...]]:
    """Every oracle's verdict on every draft; each oracle is asked once about all its texts."""
    verdicts: list[dict[int, Verdict]] = [{} for _ in drafts]
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, draft in enumerate(drafts):
        if draft.verdicts is not None:
            verdicts[number] = dict(enumerate(draft.verdicts))
            continue
        for position, control in enumerate(requests[draft.request].controls):
            groups[position, id(control.classifier)].append(number)
    for (position, _), numbers in groups.items():
        controls = [requests[drafts[number].request].controls[position] for number in numbers]
        for number, verdict in zip(numbers, check(controls, [drafts[n].words for n in numbers]), strict=True):
            verdicts[number][position] = verdict
    for number, draft in enumerate(drafts):
        template = requests[draft.request].template
        if template is not None:
            kept = template.matches(draft.words)
            verdicts[number][len(verdicts[number])] = Verdict(kept, None if kept else "the given words were changed")
    return [tuple(of_draft[position] for position in sorted(of_draft)) for of_draft in verdicts]


def summarise(
    records: Sequence[Record],
    asked: Mapping[str, Asked],
    judges: Sequence[Judge],
    training: Training | None,
    variants: Mapping[str, Settings],
) -> list[Row]:
    """A row for every suite, method and setting."""
    texts = list(dict.fromkeys(tuple(record.tokens) for record in records if record.tokens))
    costs = {judge.name: dict(zip(texts, judge.costs(texts), strict=True)) for judge in judges}
    groups: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.group].append(record)
    return [
        summary(group, groups.get((group[0].suite, HUMAN, ""), []), asked[group[0].suite], costs, training, variants)
        for group in groups.values()
    ]


def summary(
    records: Sequence[Record],
    human: Sequence[Record],
    asked: Asked,
    costs: Mapping[str, Mapping[Words, float]],
    training: Training | None,
    variants: Mapping[str, Settings],
) -> Row:
    suite, method, setting = records[0].group
    texts = [record.tokens for record in records]
    checked = [record for record in records if record.success is not None]
    seconds, is_ours = sum(record.seconds for record in records), method == OURS
    cost = {name: {record_key(r): of[tuple(r.tokens)] for r in records if r.tokens} for name, of in costs.items()}
    return Row(
        suite, method, setting, len(asked.targets), len(records),
        success=estimate_by_target(checked, [float(bool(record.success)) for record in checked]),
        parts=parts_right(checked),
        by_control=success_by_control(records, asked),
        also=further_tests(records, asked),
        unchecked=0 if suite == UNGUIDED else len(records) - len(checked),
        cost={name: e for name, of in cost.items() if (e := estimate(list(of.values())))},
        exp_mean={name: mean(math.exp(value) for value in of.values()) for name, of in cost.items()},
        gap={name: e for name, of in costs.items() if method != HUMAN and (e := gap(records, human, of))},
        distinct={str(n): metrics.distinct(texts, n) for n in (1, 2, 4)},
        self_bleu=optional_self_bleu(texts),
        copies=mean(training.copied(words) for words in texts) if training else None,
        longest_shared=mean(training.longest_shared(words) for words in texts) if training else None,
        bleu=against_references(records, asked, lambda t, r: metrics.sentence_bleu(" ".join(t), [" ".join(r)])),
        rouge_l=against_references(records, asked, metrics.rouge_l),
        calibration=calibration(checked) if is_ours else None,
        seconds_per_sample=seconds / len(records) if seconds else None,
        tokens_per_second=sum(map(len, texts)) / seconds if seconds else None,
        evaluations=evaluations(variants[setting]) if is_ours else None,
    )  # fmt: skip


def record_key(record: Record) -> tuple[int, int, int]:
    return record.seed, record.target, record.index


def estimate_by_target(records: Sequence[Record], values: Sequence[float]) -> Estimate | None:
    """The mean of values with an interval over targets: samples of one target are not independent."""
    sums: dict[int, list[float]] = defaultdict(list)
    for record, value in zip(records, values, strict=True):
        sums[record.target].append(value)
    return estimate([sum(of) for of in sums.values()], [len(of) for of in sums.values()])


def parts_right(records: Sequence[Record]) -> Estimate | None:
    """Share of words (pos) or of brackets (tree) that are right, of oracles that count them."""
    top: dict[int, float] = defaultdict(float)
    bottom: dict[int, float] = defaultdict(float)
    for record in records:
        for verdict in record.verdicts:
            if verdict.correct is not None:
                top[record.target] += verdict.correct * verdict.parts
                bottom[record.target] += verdict.parts
    return estimate(list(top.values()), list(bottom.values()))


def success_by_control(records: Sequence[Record], asked: Asked) -> dict[str, Estimate]:
    """Where several controls are asked for at once, the success of each kind of them."""
    found: dict[str, list[tuple[Record, float]]] = defaultdict(list)
    for record in records:
        controls = asked.requests[record.target].controls
        if len(controls) > 1:
            for control, verdict in zip(controls, record.verdicts, strict=False):
                if verdict.success is not None:
                    found[control.classifier.kind].append((record, float(verdict.success)))
    estimates = {name: estimate_by_target(*zip(*pairs, strict=True)) for name, pairs in found.items()}
    return {name: e for name, e in estimates.items() if e is not None}


def further_tests(records: Sequence[Record], asked: Asked) -> dict[str, Estimate]:
    """Tests beside the oracle's that the field reports."""
    found: dict[str, list[tuple[Record, float]]] = defaultdict(list)
    for record in records:
        for verdict in record.verdicts:
            for name, passed in verdict.also.items():
                found[name].append((record, float(passed)))
    estimates = {name: estimate_by_target(*zip(*pairs, strict=True)) for name, pairs in found.items()}
    ending = [
        r for r in records if asked.targets[r.target].newline and r.verdicts and r.verdicts[0].correct is not None
    ]
    if ending:  # Diffusion-LM counts the newline token as well; no text here ends in one
        right = [(r.verdicts[0].correct or 0.0) * r.verdicts[0].parts for r in ending]
        estimates["with the newline token"] = estimate(right, [r.verdicts[0].parts + 1 for r in ending])
    return {name: e for name, e in estimates.items() if e is not None}


def gap(records: Sequence[Record], human: Sequence[Record], costs: Mapping[Words, float]) -> Estimate | None:
    """Mean cost above human text of the same targets."""
    of_people: dict[int, list[float]] = defaultdict(list)
    for record in human:
        if record.tokens:
            of_people[record.target].append(costs[tuple(record.tokens)])
    with_people = [record for record in records if of_people[record.target] and record.tokens]
    return estimate_by_target(
        with_people, [costs[tuple(record.tokens)] - mean(of_people[record.target]) for record in with_people]
    )


def optional_self_bleu(texts: Sequence[Sequence[str]]) -> float | None:
    try:
        return metrics.self_bleu(texts)
    except CtrlgenError:  # left empty where sacrebleu is not installed, as the install hint of a verdict
        return None


def against_references(records: Sequence[Record], asked: Asked, measure: Any) -> float | None:
    """The mean of a measure of text and reference, for infilling."""
    if asked.suite != INFILL or records[0].method == HUMAN:
        return None
    pairs = [(r.tokens, asked.targets[r.target].references[0]) for r in records if asked.targets[r.target].references]
    try:
        return mean(measure(text, reference) for text, reference in pairs)
    except CtrlgenError:
        return None


def calibration(records: Sequence[Record]) -> metrics.Calibration | None:
    pairs = [
        (score, bool(verdict.success))
        for record in records
        for score, verdict in zip(record.scores or (), record.verdicts, strict=False)
    ]
    return metrics.calibrate([score for score, _ in pairs], [success for _, success in pairs]) if pairs else None


def evaluations(settings: Settings) -> int:
    """Calls of the denoiser for one sample: every step of every candidate, and the levels at which they are scored."""
    scoring = SCORED_LEVELS if settings.candidates > 1 and settings.select == "score" else 0
    return settings.candidates * (settings.steps + scoring)


def peak_memory() -> float:
    """Of this process, in MB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most / 1e3


def describe(generator: Generator, plan: Plan, judges: Sequence[Judge]) -> dict[str, Any]:
    """All that another person needs to run this again."""
    written = asdict(plan) | {
        "targets": str(plan.targets) if plan.targets else None,
        "samples": str(plan.samples) if plan.samples else None,
    }
    where = generator.model.directory
    return {
        "model": {"name": where.name if where else None, "weights": weights_fingerprint(generator.model)},
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


def processor() -> str:
    """What the machine calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
