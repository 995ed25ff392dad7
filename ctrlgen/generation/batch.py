"""What is built once for a batch of jobs: encoded targets, lengths, given words, noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic

import torch
from torch import Tensor

from ctrlgen.controls.contradiction import automata_of
from ctrlgen.controls.encoded import encode
from ctrlgen.controls.language import Control
from ctrlgen.diffusion.samplers import SeededNoise
from ctrlgen.diffusion.words import NO_ROW
from ctrlgen.generation.guidance import Term
from ctrlgen.generation.jobs import J
from ctrlgen.generation.kept import KeptWords, keep, keep_framed
from ctrlgen.generation.reading import Reader
from ctrlgen.text.context import context_before


class Batch(Generic[J]):
    """Jobs of one `batch_key` as rows of one batch, filled up to the longest, n words."""

    def __init__(self, reader: Reader, jobs: Sequence[J]):
        """`reader`: that of all texts. The batch's own knows its jobs' new words and the words before its texts."""
        own = reader.of(jobs[0].request)
        self.model, self.jobs = own.model, jobs
        self.sizes = [job.length for job in jobs]
        self.text_sizes = [size - len(self.model.tokenizer.opening) for size in self.sizes]  # of what controls read
        uneven = len(set(self.sizes)) > 1
        self.lengths = torch.tensor(self.sizes, device=self.model.device) if uneven else None  # (B,), None if all are n
        self.terms = self.encode()
        self.kept = self.keep()
        self.context = self.read_before()
        self.reader = own.after(self.context)

    def encode(self) -> list[Term]:
        """The controls, each with its targets row by row."""
        terms = []
        composed = sum(not control.classifier.structural for control in self.jobs[0].controls) > 1
        for position, control in enumerate(self.jobs[0].controls):
            controls = [job.controls[position] for job in self.jobs]
            targets = [c.target for c in controls]
            encoded = encode(control.classifier, targets, self.text_sizes, self.model.device)
            own = control.classifier.composed_weight if composed else control.classifier.weight
            said, negated = control.statement, control.complement
            impossible = self.impossible(controls) if negated else None
            automata = automata_of(controls)
            weight = said.weight * own
            terms.append(
                Term(control.classifier, encoded, weight, negated, said.window, impossible, automata, tuple(targets))
            )
        return terms

    def impossible(self, controls: Sequence[Control]) -> Tensor | None:
        """The rows whose length rules out what is asked, so that `not` holds already. bool (B,)"""
        if self.model.fixed_length:
            return None
        allowed = [c.classifier.allows_length(c.target, n) for c, n in zip(controls, self.sizes, strict=True)]
        return ~torch.tensor(allowed, device=self.model.device)

    def keep(self) -> KeptWords | None:
        """The given words, or None where no row has any."""
        if self.model.fixed_length:
            return keep_framed(self.model, [job.kept for job in self.jobs])
        if not any(job.kept for job in self.jobs):
            return None
        rows = [job.kept or (None,) * job.length for job in self.jobs]
        return keep(rows, self.model.tokenizer).to(self.model.device)

    def read_before(self) -> Tensor | None:
        """The words before each text, NO_ROW in front of fewer of them; None where no row has any. (B, m)"""
        if not any(job.request.before for job in self.jobs):
            return None
        tokenizer, most = self.model.tokenizer, self.model.context
        rows = torch.full((len(self.jobs), most), NO_ROW)
        for row, job in zip(rows, self.jobs, strict=True):
            sentences = [tokenizer.ids(words) for words in job.request.before]
            ids = context_before(sentences, len(sentences), most, tokenizer.end_id)
            row[most - len(ids) :] = torch.tensor(ids, dtype=torch.long)
        return rows.to(self.model.device)

    def noise(self) -> SeededNoise:
        """The noise of these jobs from its beginning: each call of it draws (B, n, d)."""
        seeds = [job.noise_seed for job in self.jobs]
        return SeededNoise(seeds, self.sizes, self.model.config.embedding_dim, self.model.device)

    @property
    def changeable(self) -> Tensor:
        """The places whose words may be chosen: within the text and not given. bool (B, n)"""
        place = torch.arange(max(self.sizes), device=self.model.device)
        sizes = torch.tensor(self.sizes, device=self.model.device)
        within = place < sizes[:, None]
        return within if self.kept is None else within & ~self.kept.clean

    def cut(self, ids: Tensor) -> list[list[int]]:
        """Rows (B, n) as word ids without what fills them up."""
        return [row[:size] for row, size in zip(ids.tolist(), self.sizes, strict=True)]

    def fill(self, finished: Mapping[J, list[int]]) -> Tensor:
        """The finished word ids of the jobs, filled up with padding. (B, n)"""
        longest, pad = max(self.sizes), self.model.tokenizer.pad_id
        rows = [finished[job] + [pad] * (longest - job.length) for job in self.jobs]
        return torch.tensor(rows, device=self.model.device)
