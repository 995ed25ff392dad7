"""The road from requests to samples.

requests -> jobs (one candidate each) -> batches of like length and controls -> drafts, under guidance
         -> choice among candidates by the model's own score -> oracles -> samples, in request order
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from threading import Event, Lock
from types import MappingProxyType
from typing import Any

import torch

from ctrlgen.checkpoint import DiffusionLM, from_pretrained
from ctrlgen.controls.contradiction import refuse_impossible
from ctrlgen.controls.registry import Controls
from ctrlgen.controls.template import new_words, parse_template
from ctrlgen.errors import UsageError, briefly, shown
from ctrlgen.generation.choosing import Texts, choose, redraft
from ctrlgen.generation.confidence import Confidence, Threshold, with_thresholds
from ctrlgen.generation.costs import Costs, to_redraw, with_rejections
from ctrlgen.generation.denoising import published
from ctrlgen.generation.drawing import draw
from ctrlgen.generation.explain import explain
from ctrlgen.generation.jobs import Draws, Job
from ctrlgen.generation.judging import judge, words_of
from ctrlgen.generation.reading import Reader
from ctrlgen.generation.request import Request, Sample, Step, Watch
from ctrlgen.generation.workers import Workers
from ctrlgen.settings import REDRAWS_OF_EQUALS, Settings, check_counts


class Generator:
    """A loaded model that answers requests."""

    def __init__(self, model: str | DiffusionLM, device: str | torch.device = "cpu"):
        self.model = from_pretrained(model, device) if isinstance(model, str) else model
        self.controls = Controls(self.model)
        self.reader = Reader(self.model)
        self.costs = Costs(self.model)
        self.confidence: Confidence | None = None
        self.workers = Workers(self.model.device)

    @briefly()
    def request(
        self,
        controls: Sequence[str],
        n: int = 1,
        seed: int = 0,
        id: Any = None,
        template: str | None = None,
        before: Sequence[str] = (),
    ) -> Request:
        """Parse controls and check that they can hold together. Raises UsageError before anything is sampled.

        A template such as `The Vaults ___ near Café Adriatic .` has its blanks filled. `before`: the sentences before
        the text, which a model with a context reads and others do not.
        """
        if isinstance(controls, str):
            raise UsageError(f"controls are a list of texts: [{shown(controls)}]")
        check_counts(n, seed)
        earlier = [tuple(self.model.tokenizer.split(text)) for text in before if self.model.context]
        words = self.new_words(controls, template, earlier) if self.model.opens else {}
        known = self.controls.with_words(words)
        parsed = known.parse(controls)
        blanks = parse_template(template, known.model.tokenizer) if template is not None else None
        refuse_impossible(parsed, self.model.longest, blanks)
        earlier = [sentence for sentence in earlier if sentence]
        return Request(parsed, n, seed, id, blanks, tuple(words.items()), tuple(earlier))

    def new_words(
        self, controls: Sequence[str], template: str | None, before: Sequence[Sequence[str]]
    ) -> dict[str, str | None]:
        """The words that a request names, or that stand before its text, and the vocabulary lacks: see `Controls`."""
        tokenizer = self.model.tokenizer
        given = new_words(template, tokenizer) if template is not None else []
        earlier = [
            word
            for words in before
            for word, id in zip(words, tokenizer.ids(words), strict=True)
            if id == tokenizer.unk_id
        ]
        return dict.fromkeys([*given, *earlier]) | self.controls.new_words(controls)

    def generate(
        self, requests: Sequence[Request], settings: Settings = Settings(), watch: Watch | None = None
    ) -> list[Sample]:
        """Samples in request order. A seed gives the same text whatever else is drawn with it.

        Those that `max_cost`, `no_slips`, `distinct` or `confidence` leave out are among them, and say why:
        `Sample.rejected`.
        """
        if isinstance(requests, Request):
            raise UsageError("generate() takes a list of requests: [request]")
        thresholds = self.thresholds(requests, settings)
        self.costs.refuse(settings)
        draws = Draws(self.model, requests, settings.candidates)
        texts, samples = self.answer(draws.first(), settings, watch)
        samples = with_rejections(samples, settings)
        most = max(settings.until_success, REDRAWS_OF_EQUALS if settings.distinct else 0)
        for attempt in range(1, most + 1):
            failed = to_redraw(samples, attempt, settings)
            if not failed:
                break
            for job in failed:
                del samples[job]
            redrawn, judged = self.answer(draws.again(failed, attempt), settings, watch)
            texts |= redrawn
            samples = with_rejections(samples | judged, settings)
        samples = with_thresholds(samples, thresholds)
        if settings.explain:
            samples = explain(self.reader, self.workers, samples, texts, settings)
        return [samples[job] for job in sorted(samples, key=lambda job: job.sample)]

    def thresholds(self, requests: Sequence[Request], settings: Settings) -> list[Threshold]:
        """By which `confidence` holds texts of each request back; none where it is not asked for."""
        if settings.confidence is None:
            return []
        self.confidence = self.confidence or Confidence(self.model)
        return [self.confidence.threshold(request, settings) for request in requests]

    def answer(
        self, jobs: Sequence[Job], settings: Settings, watch: Watch | None
    ) -> tuple[dict[Job, list[int]], dict[Job, Sample]]:
        """The chosen candidates' word ids, and the samples made of them."""
        write = partial(self.draw, settings=settings, watch=watch)
        texts = choose(self.reader, self.workers, write(jobs), settings)
        if settings.redrafts and settings.scorer is None and not published(self.model, settings):
            texts = redraft(self.reader, self.workers, texts, write, settings.redrafts)
        return texts, self.judge(texts, settings)

    def judge(
        self, texts: Texts, settings: Settings, given: Mapping[Job, Collection[int]] = MappingProxyType({})
    ) -> dict[Job, Sample]:
        """The samples of finished texts, with verdicts, scores and costs. `given`: the places of a text's words that
        the user wrote, where no template says so."""
        samples = judge(self.reader, texts)
        given = {job: given.get(job, job.given) for job in samples}
        return self.costs.measured(self.reader, self.workers, samples, texts, given, settings)

    def draw(self, jobs: Sequence[Job], settings: Settings, watch: Watch | None) -> dict[Job, list[int]]:
        """The word ids of every job."""
        total = sum(job.length for job in jobs) * settings.steps
        done, lock = 0, Lock()

        def finish(batch_jobs: Sequence[Job], stopped: Event) -> list[list[int]]:
            nonlocal done
            rows: list[list[int]] = []
            for words, rows in draw(self.reader, batch_jobs, settings):
                if stopped.is_set():
                    break
                with lock:
                    done += words
                    if watch is not None:
                        texts = {
                            job.index: words_of(self.reader, job, row)
                            for job, row in zip(batch_jobs, rows, strict=False)
                            if (job.place, job.candidate) == (batch_jobs[0].place, batch_jobs[0].candidate)
                        }
                        watch(Step(done, total, texts))
            return rows

        return self.workers.map(finish, jobs)


def sample_texts(model: DiffusionLM, count: int = 4, seed: int = 0, settings: Settings = Settings()) -> list[str]:
    """Texts without any control, for a look at a model in training."""
    generator = Generator(model)
    return [sample.text for sample in generator.generate([Request(n=count, seed=seed)], settings)]
