"""Editing: a given text is changed as little as its controls ask.

What already obeys, by the guides or an exact rule, is given back. Else the words that speak against the controls
(`blame.py`) are written anew and all others kept; where no text obeys then, all words may change under `like:`. Of the
changes so proposed (`proposals.py`) every combination is a text of its own. The likeliest is chosen as through a noisy
channel (`comparing.py`): by log p(text) + log p(source | text) + log p(controls | text).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, groupby
from typing import Any

from ctrlgen.controls.template import word_ids
from ctrlgen.errors import UsageError
from ctrlgen.generation.blame import most_to_blame
from ctrlgen.generation.comparing import best_versions, fits, ids_of, read
from ctrlgen.generation.edits import Edited, Source, Task, Version, Words, near
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.jobs import Job, allowed_lengths
from ctrlgen.generation.judging import words_of
from ctrlgen.generation.proposals import Template, clauses, deletions, drafts, exchanges, glued, insertions, rewritings
from ctrlgen.generation.request import Sample, Watch
from ctrlgen.settings import Settings
from ctrlgen.text.alignment import changed, changes, common_words, selections, written
from ctrlgen.text.tokenizer import WordTokenizer

REWRITING_STEPS, DRAFT_STEPS = 1 / 4, 1 / 2  # of those of a text without a source
DRAFTS = ((1.0, 0.4), (0.5, 0.8))  # weight of the source beside the controls, share of the strength, until one obeys
MOST_PROPOSALS = 64  # of one attempt
MOST_GAPS, MOST_GLUED = 6, 2  # places at which phrases are put in: as they are, and with other words beside them
LEAST_FIT = -3.0  # mean log p of a phrase's words, hidden together, where it may stand without others beside it
FIRST_GLUED = 32  # the number of the first such proposal

Propose = Callable[[Task], list[Job]]
Gap = tuple[int, Words]  # where a phrase is put in


class Editor:
    """Edits texts with a generator's model and guides."""

    def __init__(self, generator: Generator):
        self.generator, self.model = generator, generator.model
        if self.model.fixed_length:
            raise UsageError("this model writes texts of one fixed length and cannot edit")

    def source(
        self, text: str, controls: Sequence[str], keep: Sequence[str] = (), n: int = 1, seed: int = 0, id: Any = None
    ) -> Source:
        """Parse what is asked. Raises UsageError where no text can obey, or the text lacks a phrase to be kept."""
        pieces, longest = tuple(self.model.tokenizer.pieces(text)), self.model.longest
        if not pieces:
            raise UsageError("there is no text to edit")
        if len(pieces) > longest:
            raise UsageError(f"the text has {len(pieces)} words; this model writes at most {longest}")
        words = [piece.text for piece in pieces]
        request, known = self.generator.request(controls, n, seed, id), self.generator.controls
        if self.model.opens:  # the text's own words that the vocabulary lacks are taken in
            more = dict.fromkeys(unknown_words(words, self.model.tokenizer).values()) | dict(request.words)
            known = known.with_words(more)
            request = replace(request, controls=known.parse(controls), words=tuple(more.items()))
        found = {phrase: self.places(phrase, words) for phrase in keep}
        for phrase, places in found.items():
            if not places:
                raise UsageError(f"{phrase!r} is to be kept, but the text does not have it")
        return Source(
            text,
            pieces,
            request,
            kept=frozenset(chain.from_iterable(found.values())),
            unknown=names_of(words, unknown_words(words, self.model.tokenizer)),
            lengths=frozenset(allowed_lengths(self.model, request.controls)),
            nearness=known.nearness(),
        )

    def has(self, phrase: str, text: str) -> bool:
        """Whether a text has the words of a phrase, whatever their case."""
        return bool(self.places(phrase, self.model.tokenizer.split(text)))

    def places(self, phrase: str, words: Sequence[str]) -> list[int]:
        """Where a phrase stands, whatever its case."""
        wanted = [word.casefold() for word in self.model.tokenizer.split(phrase)]
        folded = [word.casefold() for word in words]
        size = len(wanted)
        starts = [i for i in range(len(words) - size + 1) if folded[i : i + size] == wanted] if wanted else []
        return [start + i for start in starts for i in range(size)]

    def edit(
        self, sources: Sequence[Source], settings: Settings = Settings(), watch: Watch | None = None
    ) -> list[Edited]:
        """Each source's texts, in order. The same seeds give the same texts, whatever else is edited with them."""
        tasks = self.tasks(sources)
        samples = self.judged({task: task.source.words for task in tasks if task.obeys}, settings)
        waiting = [task for task in tasks if not task.obeys]
        for attempt in range(1 + settings.until_success):
            samples |= self.judged(self.rewritten(waiting, attempt, settings, watch), settings, attempt)
            waiting = [task for task in waiting if samples[task].success is False]
        return [Edited(task.source, samples[task]) for task in tasks]

    def tasks(self, sources: Sequence[Source]) -> list[Task]:
        """One for each of the sources' texts, with what is read in the source."""
        given = {
            Job(s.request, place, index, 0, s.request.seed + index, len(s.pieces), s.words): s
            for place, s in enumerate(sources)
            for index in range(s.request.n)
        }
        known = self.generator.workers.map(lambda jobs, _: read(self.generator.reader, jobs), list(given))
        tasks = []
        for job, source in given.items():
            obeys, taken, beside = known[job]
            tasks.append(Task(source, job, obeys, most_to_blame(taken, source.kept, source.unknown), beside))
        return tasks

    def shortened(self, sources: Sequence[Source]) -> list[Words]:
        """Each source without the words that speak against its controls: word deletion, which evaluation compares with.

        Of a source that would be empty the first word stays.
        """
        found = []
        for task in self.tasks(sources):
            left = tuple(w for w, nats in zip(task.source.words, task.blamed, strict=True) if not nats)
            found.append(task.source.words if task.obeys else left or task.source.words[:1])
        return found

    def rewritten(
        self, tasks: Sequence[Task], attempt: int, settings: Settings, watch: Watch | None
    ) -> dict[Task, Words]:
        """The best version of each source; the source itself where nothing could be proposed."""
        best, gaps = self.worded(tasks)
        rewritten = lighter(settings, REWRITING_STEPS)
        stages: list[tuple[Propose, Settings]] = [
            (self.rewritings, rewritten),
            (lambda task: self.glued(task, gaps.get(task, [])), rewritten),
        ]
        for weight, strength in DRAFTS:
            stages.append((partial(self.drafts, weight=weight), lighter(settings, DRAFT_STEPS, strength)))
        for propose, lighter_settings in stages:
            proposed = {
                replace(job, candidate=job.candidate + (attempt * settings.candidates + again) * MOST_PROPOSALS): task
                for task in tasks
                if task not in best or not best[task].settled
                for again in range(settings.candidates)
                for job in propose(task)
            }
            drawn = self.generator.draw(list(proposed), lighter_settings, watch)
            found: dict[Task, dict[Words, None]] = defaultdict(dict)  # in order, each once
            for job, task in proposed.items():
                found[task] |= dict.fromkeys(versions(task.source, words_of(self.generator.reader, job, drawn[job])))
            for task, version in best_versions(self.generator.reader, self.generator.workers, found).items():
                best[task] = max(best.get(task, version), version, key=lambda v: (v.obeys, v.score))
        return {task: best[task].words if task in best else task.source.words for task in tasks}

    def worded(self, tasks: Sequence[Task]) -> tuple[dict[Task, Version], dict[Task, list[Gap]]]:
        """The best texts without words to blame, with phrases that make them obey instead, or put in; and where phrases
        may be put in."""
        reader, workers = self.generator.reader, self.generator.workers
        asked: dict[Job, tuple[Task, int, Words]] = {}
        found: dict[Task, dict[Words, None]] = defaultdict(dict)
        for task in tasks:
            words = task.source.words
            shorter = map(whole, deletions(words, task.blamed, task.fixed))
            found[task] |= dict.fromkeys(v for v in shorter if len(v) in task.source.lengths)
            for phrase in phrases_of(task):
                exchanged = exchanges(words, task.blamed, task.fixed, phrase)
                found[task] |= dict.fromkeys(v for v in map(whole, exchanged) if len(v) in task.source.lengths)
                if len(words) + len(phrase) in task.source.lengths:
                    for template in insertions(words, [None] * len(phrase), task.fixed):
                        asked[task.job(template)] = task, template.index(None), phrase
        hidden = {job: phrase for job, (_, _, phrase) in asked.items()}
        fit = workers.map(lambda jobs, _: fits(reader, jobs, hidden), list(asked))
        gaps: dict[Task, list[Gap]] = defaultdict(list)
        for job in sorted(fit, key=lambda job: fit[job], reverse=True):
            task, gap, phrase = asked[job]
            if len(gaps[task]) < MOST_GAPS:
                gaps[task].append((gap, phrase))
                if fit[job] > LEAST_FIT:
                    words = task.source.words
                    found[task][*words[:gap], *phrase, *words[gap:]] = None
        return best_versions(reader, workers, found), gaps

    def glued(self, task: Task, gaps: Sequence[Gap]) -> list[Job]:
        """Texts with a phrase put in, and words to be written on its sides."""
        words = task.source.words
        templates = [t for gap, phrase in gaps[:MOST_GLUED] for t in glued(words, gap, phrase)]
        if gaps:
            templates += clauses(words, gaps[0][1], task.end)
        fitting = [template for template in templates if len(template) in task.source.lengths]
        return [task.job(template, FIRST_GLUED + candidate) for candidate, template in enumerate(fitting)]

    def rewritings(self, task: Task) -> list[Job]:
        """Texts in which only words to blame are to be written."""
        source = task.source
        templates = rewritings(source.words, task.blamed, task.fixed, source.lengths)
        return [task.job(template, candidate) for candidate, template in enumerate(templates)]

    def drafts(self, task: Task, weight: float) -> list[Job]:
        """Texts like the source, but for the words to blame."""
        source = task.source
        words = [None if nats else word for word, nats in zip(source.words, task.blamed, strict=True)]
        templates = drafts(source.words, task.fixed, task.pivot, source.lengths)
        return [
            task.job(kept, candidate, [near(source.nearness, words, weight)])
            for candidate, kept in enumerate(templates)
        ]

    def judged(self, texts: Mapping[Task, Words], settings: Settings, attempt: int = 0) -> dict[Task, Sample]:
        """The oracles' and the guides' opinion of texts, which are written as their sources are."""
        jobs = {task: replace(task.job(words), attempt=attempt) for task, words in texts.items()}
        ids = {job: ids_of(self.generator.reader, job) for job in jobs.values()}
        given = {jobs[task]: {j for _, j in common_words(task.source.words, words)} for task, words in texts.items()}
        samples = self.generator.judge(ids, settings, given)
        as_given = {task: written(task.source.text, task.source.pieces, words) for task, words in texts.items()}
        return {
            task: replace(samples[job], text=as_given[task].text, offsets=as_given[task].offsets)
            for task, job in jobs.items()
        }


def phrases_of(task: Task) -> list[Words]:
    """Phrases that may make a source obey, which it does not have: of each control that is asked for."""
    text = " ".join(task.source.words).casefold()
    found = [
        tuple(phrase)
        for control in task.given.request.controls
        if not control.statement.negated
        for phrase in control.classifier.wordings(control.target)
    ]
    return [phrase for phrase in dict.fromkeys(found) if " ".join(phrase).casefold() not in text]


def whole(template: Template) -> Words:
    """The words of a template that has none left to write."""
    return tuple(word for word in template if word is not None)


def unknown_words(words: Sequence[str], tokenizer: WordTokenizer) -> dict[int, str]:
    """The words that the vocabulary lacks in any case, by their places."""
    ids = word_ids(words, tokenizer)
    return {place: words[place] for place, id in enumerate(ids) if id == tokenizer.unk_id}


def names_of(words: Sequence[str], unknown: Iterable[int]) -> frozenset[int]:
    """The places of unknown words, and of the words with capitals beside one that has a capital: `Zorkel Inn`."""
    found = set(unknown)
    for capital, group in groupby(range(len(words)), key=lambda place: words[place][0].isupper()):
        run = set(group)
        if capital and run & found:
            found |= run
    return frozenset(found)


def versions(source: Source, words: Sequence[str]) -> list[Words]:
    """The source with some of the changes that make these words of it, of the lengths that are allowed."""
    found = (tuple(changed(source.words, some)) for some in selections(changes(source.words, words)))
    return [version for version in found if len(version) in source.lengths]


def lighter(settings: Settings, steps: float, strength: float = 1.0) -> Settings:
    """For one of many proposals: a share of the steps and of the strength, without restart and corrections."""
    return replace(
        settings,
        steps=max(1, round(steps * settings.steps)),
        restart=0.0,
        corrections=0,
        guidance=replace(settings.guidance, strength=strength * settings.guidance.scale),
    )
