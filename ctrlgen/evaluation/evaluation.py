"""Runs an evaluation: targets -> texts by every system -> verdicts and costs -> rows of figures -> what people read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from ctrlgen.data.texts import read_texts
from ctrlgen.diffusion.precision import find_device
from ctrlgen.errors import UsageError
from ctrlgen.evaluation.baselines import BASELINES, Follow, check_baselines, make_baselines, unwatched
from ctrlgen.evaluation.calibration import learn_confidence, recalibrate
from ctrlgen.evaluation.cost_models import CostModel, NgramModel, cost_models_of
from ctrlgen.evaluation.figures import evaluations, summarise
from ctrlgen.evaluation.from_text import SYSTEMS, TASKS
from ctrlgen.evaluation.from_text.task import make_task_targets, with_figures
from ctrlgen.evaluation.novelty import Training
from ctrlgen.evaluation.plan import Plan
from ctrlgen.evaluation.provenance import describe, peak_memory, what_is_evaluated
from ctrlgen.evaluation.records import CHUNK, Record, Store, human_records, refuse_another, write
from ctrlgen.evaluation.report.card import card_path, refuse_to_forget, write_card
from ctrlgen.evaluation.report.page import REPORT, write_report
from ctrlgen.evaluation.report.published import write_comparison
from ctrlgen.evaluation.results import Results
from ctrlgen.evaluation.slips import Slips
from ctrlgen.evaluation.systems import GIVEN, HUMAN, OURS, Given, Ours, System
from ctrlgen.evaluation.targets import (
    UNGUIDED,
    Asked,
    Example,
    Target,
    ask,
    expand_suites,
    make_targets,
    read_examples,
    read_targets,
)
from ctrlgen.files import finite, make_directory, write_text
from ctrlgen.generation.generator import Generator
from ctrlgen.settings import Settings

RESULTS = "results.json"
TARGET_SEED = 0  # which held-out texts are taken; a plan's seeds change the samples


@dataclass(frozen=True)
class Progress:
    """How far an evaluation is."""

    done: int
    total: int
    what: str


Watch = Callable[[Progress], None]


class Evaluation:
    """An evaluation with all that its plan names: the model, what is asked of it, cost models, baselines.

        results = Evaluation(Plan(model="e2e", suites=("pos",), data=("test.jsonl",))).run()

    generator: a model that is loaded already, instead of the plan's.
    cost_models: instead of the plan's.
    follow: shows how the training of a baseline gets on, by consuming its events.

    Raises UsageError for a plan that this model cannot be asked, CtrlgenError where data, targets or models cannot be
    read and where the plan's outputs cannot be written: all of it before any text is sampled.
    """

    def __init__(
        self,
        plan: Plan,
        generator: Generator | None = None,
        cost_models: Sequence[CostModel] | None = None,
        follow: Follow = unwatched,
    ):
        check_baselines(plan.baselines, plan.training_data)
        check_systems([name for name, _ in plan.systems])
        self.plan = plan
        if generator is None:
            generator = Generator(plan.model, find_device(plan.device))
            generator.controls.typed = False
        self.generator = generator
        for control, oracle in plan.oracles:
            self.generator.controls.judge_by(control, oracle)
        self.refuse_to_write()
        self.examples = read_examples(self.generator, plan.data)
        self.asked = ask_all(self.generator, plan, self.examples)
        self.others = {
            suite: TASKS[suite].others(self.generator, asked, self.examples)
            for suite, asked in self.asked.items()
            if suite in TASKS
        }
        self.notes = [note for of_suite in self.asked.values() for note in left_out(of_suite)]
        self.training = read_training(self.generator, plan)
        if cost_models is None:
            cost_models, missing = cost_models_of(self.generator.model, self.training, plan.language_models)
            self.notes += missing
        self.cost_models = cost_models
        self.slips = self.fit_slips()
        self.baselines = make_baselines(self.generator, plan.baselines, plan.training_data, follow)

    def fit_slips(self) -> Slips | None:
        """What is a slip beside the held-out texts, or beside the references of targets from a file."""
        ngrams = next((of for of in self.cost_models if isinstance(of, NgramModel)), None)
        references = [words for of in self.asked.values() for target in of.targets for words in target.references]
        human = [example.words for example in self.examples] or list(dict.fromkeys(references))
        return Slips.fit(ngrams, human) if ngrams is not None else None

    def refuse_to_write(self) -> None:
        """Raises CtrlgenError or UsageError where what the plan writes could not, or should not, be written."""
        plan, model = self.plan, self.generator.model
        if plan.report is not None:
            make_directory(plan.report if plan.report.exists() else plan.report.parent)
            refuse_another(plan.report, what_is_evaluated(model, plan))
        if plan.update_card:
            card_path(model)
            of = [plan.targets.name] if plan.targets is not None else expand_suites(plan.suites, self.generator)
            refuse_to_forget(model, of, plan.limit)
        if plan.comparison is not None:
            make_directory(plan.comparison.parent)

    def run(self, watch: Watch | None = None, command: str = "") -> Results:
        """Carry out the plan, and write what it asks for.

        `command` is what a person would type to run it again.
        """
        plan, model = self.plan, self.generator.model
        names = [cost_model.name for cost_model in self.cost_models]
        configuration = describe(model, plan, self.asked, names)
        store = Store(plan.report, configuration)
        given = self.given_texts()
        self.write_texts(store, given, watch)
        for system in given:
            system.refuse_leftovers()
        variants = plan.variants(is_unguided=True)
        calls = {name: evaluations(settings, model.fixed_length) for name, settings in variants.items()}
        rows = summarise(store.records, self.asked, self.cost_models, self.training, self.slips, calls)
        configuration["slips"] = self.slips.as_json() if self.slips is not None else None
        configuration["command"] = command
        configuration["peak_memory_mb"] = round(peak_memory())
        notes = self.notes + [note for baseline in self.baselines for note in baseline.notes]
        results = Results(configuration, rows, self.asked, store.records, notes)
        self.write_figures(results)
        return results

    def given_texts(self) -> list[Given]:
        """The systems whose texts are in files."""
        named = [*self.plan.systems, *([(GIVEN, self.plan.samples)] if self.plan.samples is not None else [])]
        given = [Given(path, self.generator, name) for name, path in named]
        for system in given:
            system.leave_out(self.asked.values(), self.plan.samples_per_target)
        return given

    def write_texts(self, store: Store, given: Sequence[Given], watch: Watch | None) -> None:
        """Every system's texts for every target, and the human ones, with verdicts."""
        total = sum(
            len(asked.requests) * len(list(self.systems(suite, seed, given)))
            for suite, asked in self.asked.items()
            for seed in self.plan.seeds
        )
        done = 0
        for suite, asked in self.asked.items():
            human = partial(human_records, asked)
            store.fill((suite, HUMAN, "", 0, 0), asked, self.measured(suite, human))
            for seed in self.plan.seeds:
                for start in range(0, len(asked.requests), CHUNK):
                    seconds: float | None = None
                    for setting, system in self.systems(suite, seed, given):
                        if watch is not None:
                            watch(Progress(done, total, f"{suite} {system.name} {setting}".strip()))
                        key = (suite, system.name, setting, seed, start)
                        records = store.fill(
                            key,
                            asked,
                            self.measured(suite, partial(write, system, key, asked, seconds)),
                            every_time=isinstance(system, Given),
                        )
                        if system.name == OURS and seconds is None:
                            seconds = sum(record.seconds for record in records)
                        done += len(asked.requests[start : start + CHUNK])

    def systems(self, suite: str, seed: int, given: Sequence[Given]) -> Iterator[tuple[str, System]]:
        """Who writes texts for a suite with this seed, with the setting. ctrlgen first, for the others get its time."""
        if self.plan.samples is None:
            for setting, settings in self.plan.variants(is_unguided=suite == UNGUIDED).items():
                yield setting, self.ours(suite, settings)
            for other in self.others.get(suite, ()):
                yield "", other
            if suite != UNGUIDED and suite not in TASKS:
                for baseline in self.baselines:
                    yield "", baseline
        if seed == self.plan.seeds[0]:
            for system in given:
                yield "", system

    def ours(self, suite: str, settings: Settings) -> System:
        if suite in TASKS:
            return TASKS[suite].system(self.generator, settings, self.asked[suite])
        return Ours(self.generator, settings)

    def measured(self, suite: str, work: Callable[[], list[Record]]) -> Callable[[], list[Record]]:
        """This work, and what the suite reports of each text beside its verdicts."""
        if suite not in TASKS:
            return work
        return partial(with_figures, TASKS[suite], self.generator, self.asked[suite], work)

    def write_figures(self, results: Results) -> None:
        """The files that the plan asks for."""
        plan, model = self.plan, self.generator.model
        if plan.report is not None:
            write_text(
                plan.report / RESULTS, json.dumps(finite(results.as_json()), ensure_ascii=False, indent=1) + "\n"
            )
            write_report(results, plan.report)
            results.done.append(f"report written to {plan.report / REPORT}")
        if plan.calibrate:
            results.done.extend(recalibrate(results, self.generator))
        if plan.learn_confidence:
            results.done.extend(learn_confidence(results, self.generator, plan.settings))
        if plan.update_card:
            write_card(results, model)
            results.done.append(f"figures written to {card_path(model)}")
        if plan.comparison is not None:
            write_comparison(results, plan.comparison)


def check_systems(names: Sequence[str]) -> None:
    """Raises UsageError where two systems would have one name."""
    taken = {OURS, HUMAN, GIVEN, *SYSTEMS, *BASELINES}
    for name in names:
        if name in taken:
            raise UsageError(f"--system {name}: another system is called {name!r}; choose another name")
        taken.add(name)


def read_training(generator: Generator, plan: Plan) -> Training | None:
    """A plan's training texts, split as the model reads them."""
    if plan.training_data is None:
        return None
    return Training(generator.model.tokenizer.split(text) for text in read_texts(plan.training_data))


def ask_all(generator: Generator, plan: Plan, examples: Sequence[Example]) -> dict[str, Asked]:
    """The targets of every suite of a plan."""
    n = plan.samples_per_target
    if plan.targets is not None:
        targets = read_targets(plan.targets, generator)[: plan.limit]
        return {plan.targets.name: ask(generator, plan.targets.name, targets, n, 0)}
    suites = expand_suites(plan.suites, generator)
    if plan.frontier and UNGUIDED not in suites:
        suites.append(UNGUIDED)
    return {suite: ask(generator, suite, targets_of(generator, suite, examples, plan.limit), n, 0) for suite in suites}


def targets_of(generator: Generator, suite: str, examples: Sequence[Example], limit: int) -> list[Target]:
    if suite in TASKS:
        return make_task_targets(TASKS[suite], generator, examples, limit, TARGET_SEED)
    return make_targets(generator, suite, examples, limit, TARGET_SEED)


def left_out(asked: Asked) -> list[str]:
    if not asked.left_out:
        return []
    return [f"{asked.suite}: {len(asked.left_out)} targets left out, the first because {asked.left_out[0]}"]
