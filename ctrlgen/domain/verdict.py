"""What came of one's own data, in plain words: cost, slips, oracles, and what more time or more rows would give.

Texts are judged beside those that were held out: by a 5-gram model of the training texts, and by each label's oracle.
Such a model of few texts misses much that a reader sees, so some of the texts are shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ctrlgen.controls.classifier import Classifier
from ctrlgen.controls.language import write_statement
from ctrlgen.domain.making import kind_for_labels, labels_of, split_rows
from ctrlgen.errors import CtrlgenError
from ctrlgen.evaluation.cost_models import NgramModel
from ctrlgen.evaluation.novelty import Training
from ctrlgen.evaluation.slips import Slips
from ctrlgen.evaluation.targets import Words
from ctrlgen.files import from_json, read_lines, write_text
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.request import Request, Sample
from ctrlgen.training.denoising import Recipe
from ctrlgen.training.fit import METRICS
from ctrlgen.training.trained import TrainedClassifier, TrainingData

if TYPE_CHECKING:
    from datasets import Dataset

VERDICT = "verdict.json"
USABLE = "usable"  # with which a good verdict begins
MOST_TRAINING, MOST_HUMAN = 50_000, 1000  # texts that the 5-gram model learns, and that it is asked about
SAMPLES = 6  # texts that people are shown
FREE_SHARE = 0.25  # of the texts, written without a control
GOOD_COST, GOOD_SLIPS, GOOD_GAP = 0.35, 0.12, 0.05  # nats a word above human; share of texts; of success below human
LITTLE_LOSS, LITTLE_ACCURACY = 0.02, 0.01  # gains that promise no more


@dataclass(frozen=True)
class LabelVerdict:
    """How well one label is read and obeyed: shares of texts."""

    oracle: float  # of the held-out texts whose label the oracle reads
    oracle_of_half: float | None  # the same for an oracle of every second row
    guessing: float  # of the held-out texts that have the commonest label
    obeyed: float  # of the texts written for a label, by the oracle
    rows: int  # labelled, to learn from
    human: int  # held-out texts


@dataclass(frozen=True)
class Judged:
    """The whole verdict. Costs are nats a word under the 5-gram model."""

    texts: int
    human_texts: int
    human_cost: float | None = None
    cost: float | None = None  # of controlled texts, or of all where there are no labels
    free_cost: float | None = None  # of texts without a control
    slips: float | None = None
    all_obeyed: float | None = None
    labels: dict[str, LabelVerdict] = field(default_factory=dict)
    losses: list[tuple[int, float]] = field(default_factory=list)  # held-out loss by training step
    samples: list[str] = field(default_factory=list)  # some of the texts, each behind the labels it was asked for

    def lines(self) -> Iterator[str]:
        """What people read."""
        yield from (f"text       {sample}" for sample in self.samples)
        if self.cost is not None and self.human_cost is not None:
            line = f"cost       {self.cost - self.human_cost:+.2f} nats a word above held-out human text"
            if self.free_cost is not None and self.labels:
                line += f", {self.free_cost - self.human_cost:+.2f} without controls"
            yield f"{line} (5-gram model of the training texts; {self.texts} texts, {self.human_texts} human)"
        else:
            yield "cost       not measured: fewer than 20 held-out texts"
        if self.slips is not None:
            yield f"slips      {self.slips:.0%} of the texts have a word that hardly anybody writes there; human 5%"
        for name, label in self.labels.items():
            yield (
                f"{name}: {label.obeyed:.0%} of the texts are as asked; the oracle, which says so, is right about "
                f"{label.oracle:.0%} of {label.human} held-out texts (guessing {label.guessing:.0%})"
            )
        if len(self.labels) > 1 and self.all_obeyed is not None:
            yield f"all labels: {self.all_obeyed:.0%} of the texts are as asked"
        yield from self.curve()
        yield f"verdict    {self.conclusion()}"

    def curve(self) -> Iterator[str]:
        """What more would give, from what half of it gave."""
        if len(self.losses) >= 2:
            half_at, half = self.losses[(len(self.losses) - 1) // 2]
            last_at, last = self.losses[-1]
            said = f"more time  held-out loss {half:.2f} after {half_at:,} steps, {last:.2f} after {last_at:,}: "
            if last - half > LITTLE_LOSS:
                yield f"{said}the texts are being learned by heart, so more rows may help, but more time does not"
            elif half - last > LITTLE_LOSS:
                yield f"{said}twice the minutes may give up to {half - last:.2f} more"
            else:
                yield f"{said}more give little"
        for name, label in self.labels.items():
            if label.oracle_of_half is None:
                continue
            gain = label.oracle - label.oracle_of_half
            yield f"more rows  oracle of {name}: {label.oracle_of_half:.0%} from {label.rows // 2:,} rows, " + (
                f"{label.oracle:.0%} from {label.rows:,}: "
                + (f"twice the rows may give up to {gain:.0%} more" if gain > LITTLE_ACCURACY else "more give little")
            )

    def conclusion(self) -> str:
        missing = self.missing()
        return f"not there yet: {'; '.join(missing)}" if missing else f"{USABLE}, if the texts read well to you"

    def missing(self) -> list[str]:
        """What keeps these texts from being used, in plain words."""
        found = []
        if self.cost is None or self.human_cost is None:
            return ["too few held-out texts to judge; give more rows"]
        if self.cost - self.human_cost > GOOD_COST:
            found.append("the texts read worse than human ones, give more minutes")
        if self.slips is not None and self.slips > GOOD_SLIPS:
            found.append(f"{self.slips:.0%} of the texts have a slip")
        for name, label in self.labels.items():
            if label.oracle <= label.guessing:
                found.append(f"the oracle of {name} is no better than guessing, give more labelled rows")
            elif label.obeyed < label.oracle - GOOD_GAP:
                found.append(f"{name} is obeyed less often than human texts are read right")
        return found


def earlier_doubt(directory: Path | None) -> str | None:
    """What the verdict on a model says, where that is not that it is usable."""
    try:
        said = str(from_json((directory / VERDICT).read_text(encoding="utf-8"))["verdict"]) if directory else USABLE
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if said.startswith(USABLE) else said


def judge(recipe: Recipe, directory: Path, device: torch.device) -> Judged:
    """Write `recipe.heads.judged` texts with the model in `directory` and judge them. Leaves verdict.json there."""
    generator = Generator(str(directory), device)
    columns = recipe.data.labels
    learned, text_column = split_rows(recipe.data, held_out=False)
    human_rows, _ = split_rows(recipe.data, held_out=True) if may_judge(recipe) else (learned.select([]), "")
    human_rows = human_rows.select(range(min(MOST_HUMAN, len(human_rows))))
    split = generator.model.tokenizer.split
    human = [tuple(split(text)) if isinstance(text, str) else () for text in human_rows[text_column]]
    human_labels = labels_of(human_rows, columns) if len(human_rows) else []
    free, asked = write(generator, recipe, columns, human_labels)
    texts = [t for t in learned.select(range(min(MOST_TRAINING, len(learned))))[text_column] if isinstance(t, str)]
    model = NgramModel(generator.model, Training([split(text) for text in texts]))
    slips = Slips.fit(model, human)
    judged = asked or free
    found = Judged(len(judged), len(human), losses=losses(directory), samples=list(map(shown_sample, judged[:SAMPLES])))
    if slips is not None and judged:
        known = [words for words in human if words]
        found = replace(
            found,
            human_texts=len(known),
            human_cost=mean(model.costs(known)),
            cost=mean(model.costs(words_of(judged))),
            free_cost=mean(model.costs(words_of(free))) if free else None,
            slips=mean(slips.found(words_of(judged))),
            all_obeyed=mean([sample.success is True for sample in asked]) if asked else None,
            labels={
                c: judge_label(generator, recipe, c, learned, text_column, human, human_labels, asked) for c in columns
            },
        )
    write_text(directory / VERDICT, json.dumps(asdict(found) | {"verdict": found.conclusion()}, indent=2) + "\n")
    return found


def may_judge(recipe: Recipe) -> bool:
    return bool(recipe.data.validation or recipe.data.held_out)


def write(
    generator: Generator, recipe: Recipe, columns: Sequence[str], human: Sequence[dict[str, str]]
) -> tuple[list[Sample], list[Sample]]:
    """Texts without a control, and texts for the labels that held-out rows have, in their order."""
    count, seed = recipe.heads.judged, recipe.training.seed
    free_count = max(1, round(FREE_SHARE * count)) if columns else count
    requests: list[Request] = []
    for labels in human:
        if len(requests) == count - free_count:
            break
        known = {
            c: value for c, value in labels.items() if target_of(generator.controls.classifier(c), value) is not None
        }
        if columns and len(known) == len(columns):
            controls = [write_statement(c, value) for c, value in known.items()]
            requests.append(generator.request(controls, 1, seed + len(requests)))
    free = generator.generate([Request(n=free_count, seed=seed)])
    return free, generator.generate(requests) if requests else []


def shown_sample(sample: Sample) -> str:
    """A text behind what it was asked for."""
    asked = ", ".join(result.control.text for result in sample.controls)
    return f"{asked}: {sample.text}" if asked else sample.text


def target_of(classifier: Classifier, value: str) -> Any:
    """What a value asks for; None where it was seen too seldom to be learned."""
    try:
        return classifier.parse(value)
    except CtrlgenError:
        return None


def judge_label(
    generator: Generator, recipe: Recipe, column: str, learned: Dataset, text_column: str, human: Sequence[Words],
    labels: Sequence[dict[str, str]], asked: Sequence[Sample],
) -> LabelVerdict:  # fmt: skip
    classifier = generator.controls.classifier(column)
    right = [
        (words, row[column])
        for words, row in zip(human, labels, strict=True)
        if words and column in row and target_of(classifier, row[column]) is not None
    ]
    texts, values = [words for words, _ in right], [value for _, value in right]
    obeyed = [r.verdict.success is True for s in asked for r in s.controls if r.control.statement.name == column]
    half = oracle_of_half(generator, recipe, column, learned, text_column)
    return LabelVerdict(
        accuracy(classifier, texts, values),
        accuracy(half, texts, values) if half is not None else None,
        max((values.count(value) for value in set(values)), default=0) / max(1, len(values)),
        mean(obeyed),
        sum(bool(row) for row in labels_of(learned, [column])),
        len(texts),
    )


def accuracy(classifier: Classifier, texts: Sequence[Words], values: Sequence[str]) -> float:
    """The share of the texts whose value the oracle reads; a value that it never learned is none it reads."""
    asked = [(words, target_of(classifier, value)) for words, value in zip(texts, values, strict=True)]
    known = [(words, target) for words, target in asked if target is not None]
    verdicts = classifier.check([words for words, _ in known], [target for _, target in known])
    return sum(verdict.success is True for verdict in verdicts) / max(1, len(texts))


def oracle_of_half(
    generator: Generator, recipe: Recipe, column: str, rows: Dataset, text_column: str
) -> TrainedClassifier | None:
    """The label's classifier with an oracle of every second row, its head untrained; None where these are too few."""
    kind, model, seed = kind_for_labels(), generator.model, recipe.training.seed
    torch.manual_seed(seed)
    try:
        every_second = rows.select(range(0, len(rows), 2))
        lessons = kind.examples(model, TrainingData(every_second, text_column, column, column, seed))
    except CtrlgenError:
        return None
    described: dict[str, Any] = {"names": list(lessons.names), **lessons.facts, **lessons.networks}
    oracle = kind.make_oracle(model, described)
    if oracle is None:
        return None
    for _ in kind.train_oracle(model, oracle, lessons, described, seed):
        pass
    return kind(model, column, described, kind.make_head(model, described), oracle)


def losses(directory: Path) -> list[tuple[int, float]]:
    """The held-out loss at each validation of the run."""
    if not (directory / METRICS).exists():
        return []
    events = [json.loads(line) for line in read_lines(directory / METRICS)]
    found = [(e["step"], e["validation"].get("validation_loss")) for e in events if e.get("validation")]
    return [(step, loss) for step, loss in islice(found, 1000) if loss is not None]


def words_of(samples: Sequence[Sample]) -> list[Words]:
    return [tuple(sample.tokens) for sample in samples if sample.tokens]


def mean(values: Sequence[float] | Sequence[bool]) -> float:
    return sum(values) / max(1, len(values))
