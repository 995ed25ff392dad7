"""From controls to samples: the only file that knows the whole road.

requests -> jobs (one candidate each) -> batches of like length and controls -> sampler and guidance
         -> candidates -> choice by the model's own score -> oracles -> samples, in request order
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain, repeat
from threading import Event, Lock
from typing import Any, TypeVar

import torch
from torch import Tensor

from ctrlgen.checkpoint import DiffusionLM, from_pretrained
from ctrlgen.controls.contradiction import (
    accepted_lengths,
    automata_of,
    common_automaton,
    common_lengths,
    refuse_impossible,
)
from ctrlgen.controls.filling import Fills
from ctrlgen.controls.language import Control, check
from ctrlgen.controls.registry import Controls
from ctrlgen.controls.template import KeptWords, Template, keep, parse_template
from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.diffusion.precision import has_fast_bfloat16
from ctrlgen.diffusion.process import log_likelihood_bound, q_sample
from ctrlgen.diffusion.rounding import clamp
from ctrlgen.diffusion.samplers import Prediction, SeededNoise, make_sampler
from ctrlgen.diffusion.seeds import MAX_SEED, SEED_STRIDE, seeded
from ctrlgen.errors import UsageError
from ctrlgen.generation.correction import correct
from ctrlgen.generation.explain import explain
from ctrlgen.generation.guarantee import choose_texts, free, possible
from ctrlgen.generation.guidance import MARGIN, Term, active, condition_words, joint_log_prob, refine, steer
from ctrlgen.generation.request import MOST_SAMPLES, ControlResult, Job, Request, Sample, Settings, Step, Watch
from ctrlgen.joining import write

__all__ = ["ControlResult", "Generator", "Request", "Sample", "Settings", "Step", "sample_texts"]

J = TypeVar("J", bound=Job)
T = TypeVar("T")
Observe = Callable[[Callable[[Tensor], Denoised], Tensor, float], None]

MIN_BATCH_TOKENS, MAX_BATCH_TOKENS = 128, 2048
RESTART_SHARE = 0.4
MAX_STRETCH = 1.4  # longest over shortest sentence of a batch
SCORE_SEED = 0
LEAST_DOUBT = 1e-6  # a calibrated score is at least this far from 0 and 1
FORBIDDEN = -1e9  # logit of words that may not be generated


class Generator:
    """A loaded model that answers requests."""

    def __init__(self, model: str | DiffusionLM, device: str | torch.device = "cpu"):
        self.model = from_pretrained(model, device) if isinstance(model, str) else model
        self.controls = Controls(self.model)
        self.embeddings = self.model.denoiser.embeddings()
        type = self.model.device.type
        self.workers = torch.get_num_threads() if type == "cpu" else 1  # later calls may come from threads with one
        self.autocast = partial(torch.autocast, type, torch.bfloat16, enabled=has_fast_bfloat16(type))

    def request(
        self, controls: Sequence[str], n: int = 1, seed: int = 0, id: Any = None, template: str | None = None
    ) -> Request:
        """Parse controls and check that they can hold together. Raises UsageError before anything is sampled.

        A template such as `The Vaults ___ near Café Adriatic .` has its blanks filled.
        """
        if not 1 <= n <= MOST_SAMPLES:
            raise UsageError(f"n must be between 1 and {MOST_SAMPLES}, got {n}")
        if abs(seed) > MAX_SEED:
            raise UsageError(f"the seed must be at most {MAX_SEED} in size, got {seed}")
        parsed = self.controls.parse(controls)
        if template is not None and self.model.fixed_length:
            raise UsageError("this model writes texts of one fixed length and cannot fill blanks")
        blanks = parse_template(template, self.model.tokenizer) if template is not None else None
        refuse_impossible(parsed, self.longest, blanks)
        return Request(parsed, n, seed, id, blanks)

    def lengths(self, controls: Sequence[Control], template: Template | None = None) -> list[int]:
        """The lengths that all controls and the template allow together."""
        lengths = common_lengths(controls, self.longest, template)
        return accepted_lengths(controls, lengths, template) or lengths

    @property
    def longest(self) -> int:
        """How many words a text may have."""
        return self.model.config.max_length - self.model.fixed_length

    def generate(
        self, requests: Sequence[Request], settings: Settings = Settings(), watch: Watch | None = None
    ) -> list[Sample]:
        """Samples in request order. The same seeds give the same texts in any company."""
        if settings.guidance.method == "exact" and self.model.fixed_length:
            raise UsageError("this model predicts no words for exact guidance to correct: use --guidance gradient")
        jobs = [job for number, request in enumerate(requests) for job in self.jobs(number, request, settings)]
        texts = self.choose(self.sample(jobs, settings, watch), settings)
        samples = self.judge(requests, texts)
        for attempt in range(1, settings.until_success + 1):
            failed = [job for job, sample in samples.items() if sample.success is False]
            jobs = [
                again
                for job in failed
                for again in self.jobs(job.request, requests[job.request], settings, attempt, [job.index])
            ]
            if not jobs:
                break
            for job in failed:
                del samples[job]
            redrawn = self.choose(self.sample(jobs, settings, watch), settings)
            texts |= redrawn
            samples |= self.judge(requests, redrawn)
        if settings.explain:
            samples = explain(self, samples, texts, settings)
        return [samples[job] for job in sorted(samples, key=lambda job: (job.request, job.index))]

    def sample(self, jobs: Sequence[Job], settings: Settings, watch: Watch | None) -> dict[Job, list[int]]:
        """The word ids of every job."""
        total = sum(job.length for job in jobs) * settings.steps
        done, lock = 0, Lock()

        def finish(batch: Sequence[Job], stopped: Event) -> list[list[int]]:
            nonlocal done
            rows: list[list[int]] = []
            for ids in self.sample_batch(batch, settings):
                if stopped.is_set():
                    break
                rows = [row[: job.length] for job, row in zip(batch, ids.tolist(), strict=True)]
                with lock:
                    done += sum(job.length for job in batch)
                    if watch is not None:
                        watch(Step(done, total, self.words(batch[0], rows[0])))
            return rows

        return self.on_every_core(finish, jobs)

    def on_every_core(self, work: Callable[[Sequence[J], Event], list[T]], jobs: Sequence[J]) -> dict[J, T]:
        """What `work` makes of each job. It is given batches, and an event that is set when it should stop.

        On a CPU every core has a batch of its own: sentences are too small for cores to share one well.
        """
        batches = make_batches(jobs, self.workers)
        stopped = Event()
        with ThreadPoolExecutor(self.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                results = list(pool.map(work, batches, repeat(stopped)))
            finally:
                stopped.set()
        pairs = (zip(batch, result, strict=True) for batch, result in zip(batches, results, strict=True))
        return dict(chain.from_iterable(pairs))

    def jobs(
        self,
        number: int,
        request: Request,
        settings: Settings,
        attempt: int = 0,
        indices: Iterable[int] | None = None,
    ) -> Iterator[Job]:
        """The candidates of a request's samples, or of those with the indices given, for the first or a later draw."""
        lengths = self.lengths(request.controls, request.template)
        first = attempt * settings.candidates
        for index in range(request.n) if indices is None else indices:
            seed = request.seed + index
            length = self.draw_length(lengths, seed + first * SEED_STRIDE, request.controls)
            for candidate in range(first, first + settings.candidates):
                job = Job(number, index, candidate, seed, length, request.controls, attempt=attempt)
                if request.template is not None:
                    job = replace(job, kept=self.fill(request, length, job.noise_seed))
                yield job

    def fill(self, request: Request, length: int, seed: int) -> tuple[str | None, ...]:
        """The kept words of a request's template, placed so that some text obeys the controls."""
        assert request.template is not None
        automaton = common_automaton(request.controls)
        if automaton is None:
            return request.template.fill(length, seed)
        fills = Fills(request.template, automaton)
        return fills.draw(length, seed) if fills.count(length) else request.template.fill(length, seed)

    def draw_length(self, lengths: Sequence[int], seed: int, controls: Sequence[Control] = ()) -> int:
        """One of the lengths, as the controls prefer them, or else by how often training texts have them.

        Depends on the controls and the seed alone.
        """
        if self.model.fixed_length:
            return self.model.config.max_length
        said = [c.classifier.length_prior(c.target, lengths) for c in controls if not c.complement]
        priors = [torch.tensor(prior) for prior in said if prior is not None]
        if priors:
            weights = torch.stack(priors).sum(0).softmax(0)
        else:
            weights = torch.tensor([float(self.model.lengths.get(n, 0)) for n in lengths])
        if weights.sum() == 0:
            return lengths[0]
        return lengths[int(torch.multinomial(weights, 1, generator=seeded(seed)))]

    @torch.no_grad()
    def sample_batch(
        self, batch: Sequence[Job], settings: Settings, observe: Observe | None = None
    ) -> Iterator[Tensor]:
        """Denoise one batch, yielding the likeliest word ids (B, n) after each step.

        `observe` is given the denoiser of each step, x_t and the progress, from 0 to 1.
        """
        model, guidance = self.model, settings.guidance
        terms = self.terms(batch)
        sizes = [job.length for job in batch]
        lengths = self.row_lengths(batch)
        noise = SeededNoise([job.noise_seed for job in batch], sizes, self.embeddings.shape[1], model.device)
        levels_of_drafts = self.noise_levels(settings)
        log_snrs = torch.cat(levels_of_drafts)
        forbidden = self.forbidden_words()
        kept = self.kept_words(batch)
        denoiser = kept.told(model.denoiser, self.embeddings) if kept is not None else model.denoiser

        def progress_at(log_snr: Tensor) -> float:
            return int((log_snrs < log_snr).sum()) / max(1, len(log_snrs) - 1)

        def predict(last: Tensor, x_t: Tensor, log_snr: Tensor, previous: Prediction | None) -> Prediction:
            progress = progress_at(log_snr)
            acting = active(terms, guidance, progress)
            previous = previous or best
            self_condition = previous.x0_hat if previous is not None else None
            told = log_snr if model.fixed_length else log_snr + settings.time_offset
            with self.autocast():
                if observe is not None:
                    asked = partial(denoiser, log_snr=told[None], self_condition=self_condition, lengths=lengths)
                    observe(asked, x_t, progress)
                denoised, shift = steer(denoiser, x_t, told[None], self_condition, lengths, acting, guidance)
            final = log_snr == last  # the words that this call chooses are final
            jointly = final and (settings.last_temperature > 0 or len(free(acting)) < len(acting))
            jointly = jointly and not self.published(settings)
            if guidance.method == "gradient" and final:
                denoised = condition_words(denoised, free(acting) if jointly else acting)
            logits = denoised.logits + forbidden
            if kept is not None:
                logits = kept.pin(logits)
            if jointly:
                may_stand = possible(denoised.logits, forbidden < 0, kept)
                texts = choose_texts(acting, may_stand, sizes, settings.last_temperature, noise.generators)
                logits = KeptWords(texts).pin(logits)
            x0_hat = denoised.x0_hat
            if model.config.objective == "ce":
                x0_hat = (logits / settings.temperature).softmax(-1) @ self.embeddings
            x0_hat = x0_hat + shift
            return Prediction(x_t, log_snr, clamp(x0_hat, self.embeddings) if settings.clamp else x0_hat, logits)

        def move(x_s: Tensor, mean: Tensor, variance: Tensor, log_snr: Tensor) -> Tensor:
            acting = active(terms, guidance, progress_at(log_snr))
            if not acting:
                return x_s
            with self.autocast():
                return refine(denoiser, x_s, mean, variance, log_snr[None], lengths, acting, guidance)

        refine_draws = move if guidance.method == "paper" and terms else None
        best: Prediction | None = None
        for levels in levels_of_drafts:  # from noise, then from the text so far with noise added (Xu et al. 2023)
            x_t = noise() if best is None else q_sample(best.x0_hat, noise(), levels[0])
            last = levels[-1]
            draw = partial(predict, last)
            for draft in make_sampler(settings.sampler, draw, x_t, levels, noise, settings.eta, refine_draws):
                if draft.log_snr < last:
                    yield draft.logits.argmax(-1)
            acting = active(terms, guidance, progress_at(last))
            best = self.better(best, draft, acting, lengths)
            if levels is not levels_of_drafts[-1]:
                yield best.logits.argmax(-1)
        assert best is not None
        yield self.corrected(best.logits.argmax(-1), kept, lengths, acting, settings)

    def corrected(
        self, ids: Tensor, kept: KeptWords | None, lengths: Tensor | None, terms: Sequence[Term], settings: Settings
    ) -> Tensor:
        """Finished texts (B, n) after the sweeps of correction. Terms: the controls that act at the end."""
        if self.published(settings):
            return ids
        within = torch.arange(ids.shape[1], device=ids.device) < (ids.shape[1] if lengths is None else lengths[:, None])
        changeable = within.expand(ids.shape) if kept is None else within & ~kept.clean
        return correct(self.on_hidden_words, self.on_clean_text, ids, changeable, lengths, terms, settings.corrections)

    def published(self, settings: Settings) -> bool:
        """Whether sampling is Diffusion-LM's own, which knows neither restarts nor corrections."""
        return self.model.fixed_length or settings.guidance.method == "paper"

    def noise_levels(self, settings: Settings) -> list[Tensor]:
        """The log-SNR of each draft's steps, noisiest first: from noise to a text, then of the restart.

        Diffusion-LM's own sampling knows no restart.
        """
        schedule = self.model.schedule
        again = round(RESTART_SHARE * settings.steps)
        if settings.sampler != "ancestral" or self.published(settings) or settings.restart == 0:
            again = 0
        levels = [schedule.steps(settings.steps - again), schedule.steps(again, settings.restart)]
        return [part.to(self.model.device) for part in levels if len(part)]

    def better(
        self, earlier: Prediction | None, later: Prediction, terms: Sequence[Term], lengths: Tensor | None
    ) -> Prediction:
        """Of two drafts, row by row, the later one unless the guides hold the controls likelier in the earlier.

        Terms (the controls that act now) may be none; then no guide chooses.
        """
        if earlier is None or not terms:
            return later
        before, after = (
            joint_log_prob(terms, self.on_clean_text(draft.logits.argmax(-1), lengths)) for draft in (earlier, later)
        )
        return later.where(after > before - MARGIN, earlier)

    def forbidden_words(self) -> Tensor:
        """A logit for each word: 0, or FORBIDDEN for special tokens that are no part of a text. (V,)"""
        tokenizer = self.model.tokenizer
        allowed = {tokenizer.pad_id, tokenizer.end_id} if self.model.fixed_length else set()
        forbidden = torch.zeros(len(tokenizer), device=self.model.device)
        for id in (tokenizer.pad_id, tokenizer.unk_id, tokenizer.end_id):
            if id not in allowed:
                forbidden[id] = FORBIDDEN
        return forbidden

    def kept_words(self, batch: Sequence[Job]) -> KeptWords | None:
        """The given words of a batch, or None where no row has a template."""
        if not any(job.kept for job in batch):
            return None
        rows = [job.kept or (None,) * job.length for job in batch]
        return keep(rows, self.model.tokenizer).to(self.model.device)

    def words(self, job: Job, ids: Sequence[int]) -> list[str]:
        """The words of ids, but the user's own where they are given."""
        words = self.model.tokenizer.decode(ids)
        return [kept or word for kept, word in zip(job.kept, words, strict=True)] if job.kept else words

    def row_lengths(self, batch: Sequence[Job]) -> Tensor | None:
        """How long each row is, or None where all are alike."""
        sizes = [job.length for job in batch]
        return torch.tensor(sizes, device=self.model.device) if len(set(sizes)) > 1 else None

    def terms(self, batch: Sequence[Job]) -> list[Term]:
        """The controls of a batch, their targets encoded row by row."""
        sizes = [job.length for job in batch]
        terms = []
        in_company = sum(not control.classifier.structural for control in batch[0].controls) > 1
        for position, control in enumerate(batch[0].controls):
            encoded = control.classifier.encode([job.controls[position].target for job in batch], sizes)
            said, negated = control.statement, control.complement
            own = control.classifier.weight_in_company if in_company else control.classifier.weight
            weight = said.weight * own
            impossible = self.impossible([job.controls[position] for job in batch], sizes) if negated else None
            automata = automata_of([job.controls[position] for job in batch])
            terms.append(Term(control.classifier, encoded, weight, negated, said.window, impossible, automata))
        return terms

    def impossible(self, controls: Sequence[Control], sizes: Sequence[int]) -> Tensor | None:
        """The rows whose length rules out what is asked, so that `not` holds already. bool (B,)"""
        if self.model.fixed_length:
            return None
        allowed = [c.classifier.allows_length(c.target, size) for c, size in zip(controls, sizes, strict=True)]
        return ~torch.tensor(allowed, device=self.model.device)

    def on_clean_text(self, ids: Tensor, lengths: Tensor | None) -> Denoised:
        """What the denoiser says of finished texts without noise. (B, n)"""
        least_noise = self.model.schedule.log_snr(torch.zeros(1)).to(ids.device)
        x_0 = self.model.denoiser.embed(ids)
        with self.autocast():
            return self.model.denoiser(x_0, least_noise, x_0, lengths=lengths)

    def on_hidden_words(self, terms: Sequence[Term], lengths: Tensor | None, ids: Tensor) -> Tensor:
        """log p(word | the other words, controls) where ids (B, n) are NO_WORD. -> (B, n, V)"""
        noisiest = self.model.schedule.log_snr(torch.ones(1)).to(ids.device)
        noise = self.embeddings.new_zeros(*ids.shape, self.embeddings.shape[1])
        denoiser = KeptWords(ids).told(self.model.denoiser, self.embeddings)
        with self.autocast():
            denoised = condition_words(denoiser(noise, noisiest, lengths=lengths), terms)
        return (denoised.logits.float() + self.forbidden_words()).log_softmax(-1)

    def rows(self, batch: Sequence[J], finished: Mapping[J, list[int]]) -> Tensor:
        """The finished word ids of a batch, filled up with padding. (B, n)"""
        longest, pad = max(job.length for job in batch), self.model.tokenizer.pad_id
        rows = [finished[job] + [pad] * (longest - job.length) for job in batch]
        return torch.tensor(rows, device=self.model.device)

    def choose(self, finished: dict[Job, list[int]], settings: Settings) -> dict[Job, list[int]]:
        """The best candidate of every sample, by the model's and the guides' scores or by MBR; never by an oracle."""
        if settings.candidates == 1:
            return finished
        if settings.select == "mbr":
            scores = self.expected_bleu(finished)
        else:
            scores = self.on_every_core(lambda batch, _: self.scores(batch, finished), list(finished))
        best: dict[tuple[int, int], Job] = {}
        for job, score in scores.items():
            sample = job.request, job.index
            if sample not in best or score > scores[best[sample]]:
                best[sample] = job
        return {job: finished[job] for job in best.values()}

    @torch.no_grad()
    def scores(self, batch: Sequence[Job], finished: dict[Job, list[int]]) -> list[float]:
        """A bound on log p(text) plus the weighted log p(controls | text), for each job of a batch."""
        ids, lengths = self.rows(batch, finished), self.row_lengths(batch)
        sizes = [job.length for job in batch]
        noise = SeededNoise([SCORE_SEED] * len(batch), sizes, self.embeddings.shape[1], self.model.device)
        with self.autocast():
            fluency = log_likelihood_bound(self.model.denoiser, ids, self.model.schedule, noise, lengths)
        control = joint_log_prob(self.terms(batch), self.on_clean_text(ids, lengths))
        return (fluency + control).tolist()

    def expected_bleu(self, finished: dict[Job, list[int]]) -> dict[Job, float]:
        """Mean BLEU of each candidate against the others: minimum Bayes risk (Li et al. 2022, section 5.3)."""
        try:
            from sacrebleu import BLEU
        except ImportError:
            raise UsageError("--select mbr needs sacrebleu: pip install sacrebleu") from None

        bleu = BLEU(effective_order=True, tokenize="none")
        by_sample: dict[tuple[int, int], list[Job]] = defaultdict(list)
        for job in finished:
            by_sample[job.request, job.index].append(job)
        texts = {job: " ".join(self.model.tokenizer.decode(ids)) for job, ids in finished.items()}
        return {
            job: sum(bleu.sentence_score(texts[job], [texts[other]]).score for other in jobs if other is not job)
            for jobs in by_sample.values()
            for job in jobs
        }

    @torch.no_grad()
    def judge(self, requests: Sequence[Request], chosen: dict[Job, list[int]]) -> dict[Job, Sample]:
        """Ask every oracle and every guide about the finished texts."""
        tokens = {job: self.words(job, ids) for job, ids in chosen.items()}
        results: dict[Job, list[ControlResult]] = {job: [] for job in chosen}
        for batch in make_batches(list(chosen)):
            if not batch[0].controls:
                continue
            clean = self.on_clean_text(self.rows(batch, chosen), self.row_lengths(batch))
            for position, term in enumerate(self.terms(batch)):
                controls = [job.controls[position] for job in batch]
                scores = calibrated(term.log_prob(clean).exp(), controls[0].classifier.score_temperature).tolist()
                verdicts = check(controls, [tokens[job] for job in batch])
                for job, *result in zip(batch, controls, verdicts, scores, strict=True):
                    results[job].append(ControlResult(*result))
        return {
            job: Sample(
                request.id,
                job.index,
                text.text,
                tokens[job],
                job.seed,
                tuple(results[job]),
                job.attempt + 1,
                text.offsets,
            )
            for job in chosen
            for request in [requests[job.request]]
            for text in [write(tokens[job], request.template.typed(job.kept) if request.template else ())]
        }


def make_batches(jobs: Sequence[J], workers: int = 1) -> list[list[J]]:
    """Jobs of the same kinds of control and about the same length together, enough batches for all workers."""
    share = sum(job.length for job in jobs) // (2 * workers)
    most = max(MIN_BATCH_TOKENS, min(MAX_BATCH_TOKENS, share))
    groups: dict[tuple[Any, ...], list[J]] = defaultdict(list)
    for job in jobs:
        groups[job.batch_key].append(job)
    batches: list[list[J]] = []
    for group in groups.values():
        batch: list[J] = []
        for job in sorted(group, key=lambda job: job.length):  # the last one of a batch is its longest
            fits = batch and job.length <= MAX_STRETCH * batch[0].length
            if not fits or (len(batch) + 1) * job.length > most:
                batch = []
                batches.append(batch)
            batch.append(job)
    return batches


def calibrated(p: Tensor, temperature: float) -> Tensor:
    """Probabilities with their log-odds divided by a temperature, as `ctrlgen eval --calibrate` fitted it."""
    return p if temperature == 1.0 else p.logit(eps=LEAST_DOUBT).div(temperature).sigmoid()


def sample_texts(model: DiffusionLM, count: int, seed: int = 0, settings: Settings = Settings()) -> list[str]:
    """Texts without any control, for a look at a model in training."""
    generator = Generator(model)
    return [sample.text for sample in generator.generate([Request(n=count, seed=seed)], settings)]
