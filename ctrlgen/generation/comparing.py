"""How good versions of a text are, by the model and the guides; by an oracle only where it is a rule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ctrlgen.controls.classifier import Classifier
from ctrlgen.controls.language import check
from ctrlgen.controls.template import word_ids
from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.generation.batch import Batch
from ctrlgen.generation.blame import blame
from ctrlgen.generation.edits import Task, Version, Words, near
from ctrlgen.generation.guidance import joint_log_prob
from ctrlgen.generation.jobs import Job
from ctrlgen.generation.judging import calibrated
from ctrlgen.generation.reading import Reader
from ctrlgen.generation.workers import Workers
from ctrlgen.text.alignment import common_words

HELD = 0.5  # a guide's least probability of a control that a text obeys
GIVEN_HELD = 0.3  # the same of a given text, where a control has several values: another is rarely likelier then
SEVERAL = 3
MOST_READ = 8  # versions of a text whose own probability is asked for
FLUENCY = 3.0  # weight of log p(text)
BESIDE = 3.0  # of what else the source says

Beside = tuple[Tensor | None, ...]  # what each group of classifiers reads in a text, encoded (...)


def read(reader: Reader, jobs: Sequence[Job]) -> list[tuple[bool, list[float], Beside]]:
    """Of each finished text: whether it obeys, what each word takes from the controls in nats, what else it says."""
    batch = Batch(reader, jobs)
    ids = filled(batch)
    clean = batch.reader.clean(ids, batch.lengths)
    taken = blame(batch.model, ids, batch.lengths, batch.terms).tolist()
    rows = zip(obeying(batch, clean, GIVEN_HELD), taken, batch.sizes, read_beside(batch, clean), strict=True)
    return [(obeys, nats[:size], beside) for obeys, nats, size, beside in rows]


def ids_of(reader: Reader, job: Job) -> list[int]:
    """The ids of a finished text's words."""
    return word_ids(complete(job), reader.of(job.request).model.tokenizer)


def filled(batch: Batch[Job]) -> Tensor:
    """The ids of finished texts, filled up with padding. (B, n)"""
    return batch.fill({job: ids_of(batch.reader, job) for job in batch.jobs})


def complete(job: Job) -> Words:
    """The words of a job that has none left to write."""
    return tuple(word for word in job.kept if word is not None)


@torch.no_grad()
def obeying(batch: Batch[Job], clean: Denoised, held_of_several: float = HELD) -> list[bool]:
    """Whether each text obeys all controls but nearness to a text, by the guides or by an exact rule."""
    held = [True] * len(batch.jobs)
    for position, term in enumerate(batch.terms):
        controls = [job.controls[position] for job in batch.jobs]
        if controls[0].classifier.value_near(()) is not None:
            continue
        if term.classifier.trained:
            least = held_of_several if len(term.classifier.choices()) >= SEVERAL else HELD
            holds = (calibrated(term.log_prob(clean).exp(), term.classifier.score_temperature) > least).tolist()
        else:
            holds = [verdict.success is True for verdict in check(controls, [complete(job) for job in batch.jobs])]
        held = [one and other for one, other in zip(held, holds, strict=True)]
    return held


@torch.no_grad()
def read_beside(batch: Batch[Job], clean: Denoised) -> list[Beside]:
    """What each text says beside the controls' targets, by each group of classifiers."""
    columns = []
    for classifier in groups(batch):
        targets = [
            [c.target for c in job.controls if c.classifier.group == classifier.group and not c.complement]
            for job in batch.jobs
        ]
        encoded = classifier.aside(clean, targets)
        columns.append([None] * len(targets) if encoded is None else list(encoded))
    return list(zip(*columns, strict=True)) if columns else [()] * len(batch.jobs)


def groups(batch: Batch[Job]) -> list[Classifier]:
    """One classifier of each group."""
    return list({c.classifier.group: c.classifier for c in batch.jobs[0].controls}.values())


def best_versions(reader: Reader, workers: Workers, found: Mapping[Task, Iterable[Words]]) -> dict[Task, Version]:
    """Of each source's versions the likeliest of those that obey, or of all where none does."""
    tasks = {
        task.job(words, more=[near(task.source.nearness, task.source.words)]): task
        for task in found
        for words in found[task]
    }
    likely = workers.map(lambda jobs, _: likelihoods(reader, jobs, tasks), list(tasks))
    of_task: dict[Task, list[Job]] = defaultdict(list)
    for job, task in tasks.items():
        of_task[task].append(job)
    short = [
        job for jobs in of_task.values() for job in sorted(jobs, key=lambda job: likely[job], reverse=True)[:MOST_READ]
    ]
    sources = [task.given for task in of_task]
    fluent = workers.map(lambda jobs, _: fluencies(reader, jobs), [*short, *sources])
    best: dict[Task, Version] = {}
    for job in short:
        task, words, (obeys, log_p, beside) = tasks[job], complete(job), likely[job]
        worst = min((fluent[job][place] for place in at_changes(task.source.words, words)), default=0.0)
        usual = sum(fluent[task.given]) / len(fluent[task.given])
        likely_text = sum(fluent[job]) + usual * lost(task, words)
        version = Version(words, obeys, log_p + FLUENCY * likely_text, worst, beside)
        best[task] = max(best.get(task, version), version, key=lambda v: (v.obeys, v.score))
    return best


def lost(task: Task, words: Words) -> float:
    """How many words a text has less than its source, those to blame counted as far as others are more to blame.

    A text is no likelier for saying less: what it lost counts as much as a usual word of the source.
    """
    source = task.source.words
    kept = {old for old, _ in common_words(source, words)}
    most = max(task.blamed) or 1.0
    gone = sum(1 - task.blamed[place] / most for place in range(len(source)) if place not in kept)
    return max(0.0, min(gone, len(source) - len(words)))


def at_changes(source: Words, words: Words) -> set[int]:
    """The places of new words, and of those beside which something was changed."""
    old = {new: place for place, new in common_words(source, words)} | {-1: -1, len(words): len(source)}
    return {
        new
        for new in range(len(words))
        if new not in old or old.get(new - 1) != old[new] - 1 or old.get(new + 1) != old[new] + 1
    }


@torch.no_grad()
def likelihoods(reader: Reader, jobs: Sequence[Job], tasks: Mapping[Job, Task]) -> list[tuple[bool, float, float]]:
    """Whether each text obeys, and the sum of log p(controls | text), weighted, log p(source | text) and
    log p(what the source says beside | text), the last by itself as well."""
    batch = Batch(reader, jobs)
    clean = batch.reader.clean(filled(batch), batch.lengths)
    log_p = joint_log_prob(batch.terms, clean)
    said = torch.zeros_like(log_p)
    for place, classifier in enumerate(groups(batch)[:-1]):  # the last is nearness to the source
        encoded = [tasks[job].beside[place] for job in jobs]
        known = [row for row in encoded if row is not None]
        if known:
            said = said + classifier.log_prob(clean, torch.stack(known))
    return list(zip(obeying(batch, clean), (log_p + BESIDE * said).tolist(), said.tolist(), strict=True))


@torch.no_grad()
def fits(reader: Reader, jobs: Sequence[Job], hidden: Mapping[Job, Words]) -> list[float]:
    """Mean log p(word | the others) of these words, hidden together where a text is open for them."""
    batch = Batch(reader, jobs)
    assert batch.kept is not None
    log_p = batch.reader.hidden(batch.kept.ids, batch.lengths)  # (B, n, V)
    found = []
    for row, job in enumerate(jobs):
        places = [place for place, word in enumerate(job.kept) if word is None]
        ids = word_ids(hidden[job], batch.model.tokenizer)
        found.append(float(log_p[row, places, ids].mean()))
    return found


@torch.no_grad()
def fluencies(reader: Reader, jobs: Sequence[Job]) -> list[list[float]]:
    """log p(word | the others) of each text's words, 0 for a word that the model does not know."""
    batch = Batch(reader, jobs)
    ids = filled(batch)
    fluent = batch.reader.given_others(ids, batch.lengths)
    return [row[:size] for row, size in zip(fluent.tolist(), batch.sizes, strict=True)]
