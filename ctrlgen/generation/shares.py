"""A set, not a sentence: of N texts, given shares have a control, exactly so many as the oracle counts.

tense: past=30%        three texts of ten are asked for it, the others to avoid it
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from random import Random

from ctrlgen.errors import UsageError
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.request import Request, Sample

LEAST_REDRAWS = 3  # of a text whose oracle counts it on the wrong side
SHARE = re.compile(r"(?P<control>.*\S)\s*=\s*(?P<percent>\d{1,3}(?:\.\d+)?)\s*%", re.DOTALL)


@dataclass
class Share:
    """How many of the texts are to have a control, and how many do."""

    control: str
    part: float
    texts: frozenset[int] = frozenset()  # those that are asked for it
    having: int = 0
    unjudged: int = 0

    @property
    def opposite(self) -> str:
        """The control that asks to avoid it."""
        said = re.match(r"not\s+", self.control, re.IGNORECASE)
        return self.control[said.end() :] if said else f"not {self.control}"

    def line(self, n: int) -> str:
        """What was asked for and what came of it."""
        said = f"{self.control!r}: {self.having} of {n} texts, {self.having / n:.1%}, asked for {self.part:.1%}"
        return said + (f"; {self.unjudged} could not be judged" if self.unjudged else "")


def parse_share(text: str) -> Share:
    """`CONTROL=PERCENT%`. Raises UsageError."""
    found = SHARE.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"--share {text!r}: write CONTROL=PERCENT%, such as 'words: cheap=30%'")
    part = float(found["percent"]) / 100
    if part > 1:
        raise UsageError(f"--share {text!r}: a share is at most 100%")
    return Share(found["control"], part)


@dataclass
class Shares:
    """The shares of one set of `n` texts."""

    generator: Generator
    controls: Sequence[str]  # of every text
    shares: Sequence[Share]
    n: int
    seed: int = 0
    excluding: set[frozenset[str]] = field(default_factory=set)  # pairs of controls that no text can have together

    def requests(self) -> list[Request]:
        """A request for each text. Raises UsageError where the shares cannot be had."""
        for share in self.shares:
            self.generator.request([*self.controls, share.control])
        self.excluding = {
            frozenset((one.control, other.control))
            for one, other in combinations(self.shares, 2)
            if not self.possible([one.control, other.control])
        }
        self.assign()
        asked = [tuple(self.asked(text)) for text in range(self.n)]
        parsed = {controls: self.generator.request([*self.controls, *controls]) for controls in set(asked)}
        return [replace(parsed[asked[text]], seed=self.seed + text, id=text) for text in range(self.n)]

    def possible(self, controls: Sequence[str]) -> bool:
        try:
            self.generator.request([*self.controls, *controls])
        except UsageError:
            return False
        return True

    def exclude(self, one: Share, other: Share) -> bool:
        return frozenset((one.control, other.control)) in self.excluding

    def assign(self) -> None:
        """Draw the texts of each share from the seed, none of which has another share that excludes it.

        Raises UsageError where too few texts are left for one. Shares that many others exclude are drawn first.
        """
        rng = Random(self.seed)
        excluded = {
            share.control: [other for other in self.shares if other is not share and self.exclude(share, other)]
            for share in self.shares
        }
        for share in sorted(self.shares, key=lambda share: -len(excluded[share.control])):
            others = excluded[share.control]
            free = sorted(set(range(self.n)).difference(*(other.texts for other in others)))
            count = round(share.part * self.n)
            if count > len(free):
                names = " and ".join(repr(s.control) for s in (*others, share))
                left = f"{len(free)} of {self.n} texts are left for {share.control!r}, which needs {count}"
                raise UsageError(f"--share: no text can have {names} together; {left}")
            share.texts = frozenset(rng.sample(free, count))

    def asked(self, text: int) -> list[str]:
        """The controls of one text: those of its shares, and not those of the others, unless that follows."""
        having = [share for share in self.shares if text in share.texts]
        avoided = [share for share in self.shares if share not in having]
        needed = [share for share in avoided if not any(self.exclude(share, other) for other in having)]
        return [*(share.control for share in having), *(share.opposite for share in needed)]


def count_shares(shares: Sequence[Share], samples: Iterable[Sample]) -> None:
    """Count the samples that have each share's control, by its oracle."""
    for sample in samples:
        verdicts = {result.control.text: result.verdict.success for result in sample.controls}
        for share in shares:
            has: bool | None = False  # where the text was asked for what excludes it
            if share.control in verdicts:
                has = verdicts[share.control]
            elif share.opposite in verdicts:
                avoided = verdicts[share.opposite]
                has = None if avoided is None else not avoided
            share.having += has is True
            share.unjudged += has is None
