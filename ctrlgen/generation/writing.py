"""Longer texts to a plan: sentence after sentence, each under its own controls and with those before it as context.

A sentence that fails is redrawn before the next one is begun (`until_success`), so that no other sentence changes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch

from ctrlgen.controls.classifier import all_of
from ctrlgen.controls.language import Control, fold, parse_statement, write_statement
from ctrlgen.errors import UsageError
from ctrlgen.generation.corpus import Corpus, next_draft
from ctrlgen.generation.edits import near
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.plans import NEAREST, PlannedSentence, TextPlan
from ctrlgen.generation.request import Sample, Watch
from ctrlgen.settings import Settings

SENTENCE_STRIDE = 1 << 40  # the seeds of a text's sentences are this far from each other
DRAFT_WEIGHT = 0.1  # of what a sentence leans to, beside its controls

Carried = dict[str, tuple[str, ...]]  # controls that hold for later sentences as well, by their folded names


@dataclass(frozen=True)
class WrittenText:
    """A text that was written to a plan."""

    plan: TextPlan
    index: int
    seed: int
    sentences: tuple[Sample, ...]
    drafts: tuple[str | None, ...]  # what each sentence leaned to

    @property
    def text(self) -> str:
        """The sentences in a row; where a speaker begins, a line of its own."""
        lines: list[str] = []
        speaker: str | None = None
        for planned, sample in zip(self.plan.sentences, self.sentences, strict=True):
            if planned.speaker is not None and planned.speaker != speaker:
                lines.append(f"{planned.speaker}: {sample.text}")
            elif not lines or planned.speaker != speaker:
                lines.append(sample.text)
            else:
                lines[-1] += f" {sample.text}"
            speaker = planned.speaker
        return "\n".join(lines)

    @property
    def success(self) -> bool | None:
        """Whether every sentence obeys, by the oracles; None where one of them could not be asked."""
        return all_of([sample.success for sample in self.sentences])

    def as_json(self) -> dict[str, Any]:
        """The answer's documented JSON form."""
        parts = zip(self.plan.sentences, self.sentences, self.drafts, strict=True)
        return {
            "index": self.index,
            "text": self.text,
            "seed": self.seed,
            "success": self.success,
            "sentences": [
                {"speaker": planned.speaker, "draft": draft} | sample.as_json() for planned, sample, draft in parts
            ],
        }


class Writer:
    """Writes texts to a plan with a generator's model and guides.

    corpus: texts among which drafts are looked for. Raises UsageError for a plan that the model cannot write.
    """

    def __init__(self, generator: Generator, plan: TextPlan, corpus: Sequence[str] = ()):
        self.generator, self.plan = generator, plan
        self.reads = {fold(name): generator.controls.classifier(name) for name in plan.carry}  # what is carried on
        self.corpus = Corpus(generator, corpus) if corpus else None
        self.ranked: list[list[str]] = []  # of each sentence, the drafts that it may have
        carried: Carried = {}
        for sentence in plan.sentences:
            carried = self.understand(sentence, carried)

    def understand(self, sentence: PlannedSentence, carried: Carried) -> Carried:
        """Check what is asked of a sentence. Raises UsageError naming its entry; returns what later ones carry on."""
        asked = override(carried, sentence.controls)
        try:
            request = self.generator.request(asked)
            if sentence.draft == NEAREST and self.corpus is None:
                raise UsageError("draft = nearest needs --corpus FILE, texts to search")
            if sentence.draft not in (None, NEAREST):
                self.leaning(sentence.draft)
        except UsageError as error:
            raise UsageError(f"{sentence.where}: {error}") from None
        is_looked_for = sentence.draft == NEAREST and self.corpus is not None
        self.ranked.append(self.corpus.ranked(request) if is_looked_for and self.corpus is not None else [])
        return carried | self.stated(asked)

    def stated(self, asked: Sequence[str]) -> Carried:
        """The controls that are carried on among those that a sentence was asked for."""
        found: Carried = defaultdict(tuple)
        for control in asked:
            name = fold(parse_statement(control).name)
            if name in self.reads:
                found[name] += (control,)
        return dict(found)

    def write(
        self,
        n: int = 1,
        seed: int = 0,
        settings: Settings = Settings(),
        watch: Watch | None = None,
        first: int = 0,
    ) -> list[WrittenText]:
        """Texts first ... first + n - 1; of text i, sentence k is drawn from seed + i + k 2^40 alone."""
        texts = [Draft() for _ in range(n)]
        for place, sentence in enumerate(self.plan.sentences):
            requests = []
            for index, text in enumerate(texts, first):
                asked = override(text.carried, sentence.controls)
                text.carried |= self.stated(asked)
                before = [sample.text for sample in text.sentences]
                request = self.generator.request(asked, id=index, before=before)
                request = replace(request, seed=seed + index + place * SENTENCE_STRIDE)
                draft = sentence.draft
                if draft == NEAREST:
                    draft = next_draft(self.ranked[place], set(filter(None, text.drafts)), index)
                text.drafts.append(draft)
                leaning = () if draft is None else (self.leaning(draft),)
                requests.append(replace(request, controls=(*request.controls, *leaning)))
            for text, sample in zip(texts, self.generator.generate(requests, settings, watch), strict=True):
                text.sentences.append(sample)
                text.carried = self.read(sample, text.carried) | text.carried
        return [
            WrittenText(self.plan, index, seed + index, tuple(text.sentences), tuple(text.drafts))
            for index, text in enumerate(texts, first)
        ]

    def read(self, sample: Sample, known: Carried) -> Carried:
        """What the guides read in a sentence of that which is carried on and not known yet."""
        unknown = {name: classifier for name, classifier in self.reads.items() if name not in known}
        if not unknown or not sample.tokens:
            return {}
        reader = self.generator.reader
        clean = reader.clean(
            torch.tensor([reader.model.tokenizer.ids(sample.tokens)], device=reader.model.device), None
        )
        values = {name: classifier.reading(clean)[0] for name, classifier in unknown.items()}
        return {name: (write_statement(name, value),) for name, value in values.items() if value is not None}

    def leaning(self, text: str) -> Control:
        """The control that leans to a draft, which is no matter of success. Raises UsageError where it is too long."""
        words, longest = self.generator.model.tokenizer.split(text), self.generator.model.longest
        if len(words) > longest:
            raise UsageError(f"the draft has {len(words)} words; this model writes at most {longest}")
        return replace(near(self.generator.controls.nearness(), words, DRAFT_WEIGHT), judged=False)


@dataclass
class Draft:
    """A text as far as it is written."""

    sentences: list[Sample] = field(default_factory=list)
    drafts: list[str | None] = field(default_factory=list)
    carried: Carried = field(default_factory=dict)


def override(carried: Carried, controls: Sequence[str]) -> tuple[str, ...]:
    """A sentence's own controls, and what is carried on of others."""
    own = {fold(parse_statement(control).name) for control in controls}
    return (*chain.from_iterable(said for name, said in carried.items() if name not in own), *controls)
