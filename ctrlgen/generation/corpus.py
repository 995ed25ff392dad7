"""Texts among which a sentence's draft is looked for: that to which the guides hold its controls likeliest."""

from __future__ import annotations

from collections.abc import Sequence, Set

import torch

from ctrlgen.errors import CtrlgenError
from ctrlgen.generation.batch import Batch
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.guidance import joint_log_prob
from ctrlgen.generation.jobs import Job, allowed_lengths, make_batches
from ctrlgen.generation.request import Request

MOST_TEXTS = 2000  # that are read; of a larger corpus as many, evenly spread


class Corpus:
    """Texts whose words a model knows, in order, each once."""

    def __init__(self, generator: Generator, texts: Sequence[str]):
        self.generator = generator
        tokenizer, longest = generator.model.tokenizer, generator.model.longest
        words = {tuple(tokenizer.split(text)): text for text in dict.fromkeys(texts)}
        known = {
            words: text for words, text in words.items()
            if 0 < len(words) <= longest and tokenizer.unk_id not in tokenizer.ids(words)
        }  # fmt: skip
        step = max(1, -(-len(known) // MOST_TEXTS))
        self.texts = dict(list(known.items())[::step])  # by their words
        if not self.texts:
            raise CtrlgenError("the corpus has no text that the model could write")

    @torch.no_grad()
    def ranked(self, request: Request) -> list[str]:
        """The texts of lengths that a request allows, those first of which the guides hold its controls likeliest."""
        lengths = set(allowed_lengths(self.generator.model, request.controls))
        jobs = [
            Job(request, place, 0, 0, 0, len(words), words)
            for place, words in enumerate(self.texts)
            if len(words) in lengths
        ]
        found: list[tuple[float, int]] = []
        for batch_jobs in make_batches(jobs):
            batch = Batch(self.generator.reader, batch_jobs)
            ids = batch.fill({job: batch.model.tokenizer.ids([w for w in job.kept if w]) for job in batch_jobs})
            log_p = joint_log_prob(batch.terms, batch.reader.clean(ids, batch.lengths)).tolist()
            found += [(-score, job.place) for score, job in zip(log_p, batch_jobs, strict=True)]
        texts = list(self.texts.values())
        return [texts[place] for _, place in sorted(found)]


def next_draft(ranked: Sequence[str], used: Set[str], index: int) -> str | None:
    """The draft of text `index`: each text of a plan has another one, and none has one twice."""
    free = [text for text in ranked if text not in used]
    return free[index % len(free)] if free else None
