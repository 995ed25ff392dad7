"""Bracketed trees, `(S (NP (DT The) (NN food)) (VP (VBZ is) (ADJP (JJ cheap))) (. .))`, and spans, `NP 1-2, VP 3-4`.

Both are read into constituents. Constituents over the same words are one constituent here, whose labels make a chain
from the top down, written `S+VP`: so every span of words has one chain or none. A root (`TOP`, `ROOT`, or no label) is
no constituent. A bracket around one word alone is left to the caller: a word's tag, as in treebanks, or a constituent.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from ctrlgen.errors import UsageError

Chain = tuple[str, ...]  # from the top down; () asks for any constituent

ANY = "*"
ROOTS = ("TOP", "ROOT", "")
ESCAPES = {"-LRB-": "(", "-RRB-": ")"}
TOKEN = re.compile(r"[()]|[^\s()]+")
SPAN = re.compile(r"(?P<label>\S+)\s+(?P<first>\d{1,9})(?:\s*[-–]\s*(?P<last>\d{1,9}))?")


@dataclass(frozen=True)
class Constituent:
    """Words start to end - 1, counted from 0, under a chain of labels."""

    start: int
    end: int
    chain: Chain

    def crosses(self, other: Constituent) -> bool:
        """Whether they share words and neither holds the other."""
        return self.start < other.start < self.end < other.end or other.start < self.start < other.end < self.end

    def __str__(self) -> str:
        """As in a span control: `NP 1-2`, words counted from 1."""
        last = f"-{self.end}" if self.end > self.start + 1 else ""
        return f"{'+'.join(self.chain) or ANY} {self.start + 1}{last}"


@dataclass(frozen=True)
class Leaf:
    """A word, with the label of the bracket around it alone."""

    word: str
    tag: str | None = None


@dataclass(frozen=True)
class Bracketing:
    leaves: tuple[Leaf, ...]
    constituents: tuple[Constituent, ...]  # top down, left to right


@dataclass
class Opened:
    """A bracket that is being read."""

    position: int  # of its character
    start: int  # its first leaf
    label: str = ""


def read_tree(text: str) -> Bracketing:
    """Raises UsageError that points at the character where the brackets are wrong."""
    leaves: list[Leaf] = []
    chains: dict[tuple[int, int], Chain] = {}
    opened: list[Opened] = []
    before = ""

    def wrong(position: int, what: str) -> UsageError:
        return UsageError(f"tree: {what}: character {position + 1}, {text[position : position + 16]!r}")

    for found in TOKEN.finditer(text):
        token, position = found[0], found.start()
        if not opened and leaves:
            raise wrong(position, "the tree has ended before this" if token != ")" else "this bracket closes nothing")
        if token == "(":
            opened.append(Opened(position, len(leaves)))
        elif not opened:
            raise wrong(position, "a tree begins with a bracket and a label, as in `(S (NP * *) (VP * *))`")
        elif token == ")":
            bracket = opened.pop()
            span, label = (bracket.start, len(leaves)), bracket.label
            if span[0] == span[1]:
                raise wrong(bracket.position, "this bracket holds no word")
            if label not in ROOTS and span[1] - span[0] == 1 and leaves[-1].tag is None:
                leaves[-1] = Leaf(leaves[-1].word, label)
            elif label not in ROOTS:
                chains[span] = labels_of(label) + chains.get(span, ())
        elif before == "(":
            opened[-1].label = token
        else:
            leaves.append(Leaf(ESCAPES.get(token, token)))
        before = token
    if opened:
        raise wrong(opened[-1].position, "this bracket is never closed")
    top_down = sorted(chains, key=lambda span: (span[0], -span[1]))
    return Bracketing(tuple(leaves), tuple(Constituent(*span, chains[span]) for span in top_down))


def read_spans(text: str) -> tuple[Constituent, ...]:
    """`NP 1-2, S+VP 3-9`, words counted from 1. Raises UsageError for spans that cannot be in one tree."""
    spans: dict[tuple[int, int], Constituent] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        match = SPAN.fullmatch(part)
        if match is None:
            raise UsageError(f"span: {part!r} is not a label and the numbers of words; write for example `NP 4-6`")
        first, last = int(match["first"]), int(match["last"] or match["first"])
        if first < 1:
            raise UsageError(f"span: {part!r}: words are counted from 1")
        if last < first:
            raise UsageError(f"span: {part!r} is reversed; write `{match['label']} {last}-{first}`")
        new = Constituent(first - 1, last, labels_of(match["label"]))
        same = spans.setdefault((new.start, new.end), new)
        if same != new:
            chain = "+".join(same.chain + new.chain)
            raise UsageError(f"span: {str(same)!r} and {part!r} hold the same words; write `{chain} {first}-{last}`")
    if not spans:
        raise UsageError("span: no span is given; write for example `NP 4-6`")
    for a, b in combinations(sorted(spans.values(), key=lambda span: span.start), 2):
        if a.crosses(b):
            raise UsageError(f"span: {str(a)!r} and {str(b)!r} cross; one must hold the other or share no word")
    return tuple(spans.values())


def write_tree(constituents: Iterable[Constituent], length: int) -> str:
    """Constituents over `length` words as brackets whose leaves are open: `(S (NP * *) *)`.

    `TOP` holds together what would not be one bracket.
    """
    opening: dict[int, list[str]] = defaultdict(list)
    closing: Counter[int] = Counter()
    for c in sorted(constituents, key=lambda c: (c.start, -c.end)):
        opening[c.start] += [f"({label} " for label in c.chain]
        closing[c.end - 1] += len(c.chain)
    leaves = ["".join(opening[i]) + ANY + ")" * closing[i] for i in range(length)]
    return f"({ROOTS[0]} {' '.join(leaves)})"


def labels_of(text: str) -> Chain:
    """`S+VP` as a chain; `*` is any constituent."""
    return tuple(label for label in text.split("+") if label != ANY)


def parts(chain: Chain) -> set[Chain]:
    """What is there where the chain is: some of its labels in their order."""
    return {part for size in range(len(chain) + 1) for part in combinations(chain, size)}


def missing(wanted: Iterable[Constituent], got: Iterable[Constituent]) -> list[Constituent]:
    """The constituents wanted that are not there."""
    there = {(c.start, c.end): parts(c.chain) for c in got}
    return [c for c in wanted if c.chain not in there.get((c.start, c.end), ())]


def labelled_f1(wanted: Iterable[Constituent], got: Iterable[Constituent]) -> tuple[float, int]:
    """Harmonic mean of labelled precision and recall, each label of a chain one bracket, as EVALB counts; and of how
    many brackets, so that means over texts can be weighted as EVALB's.

    Brackets of one word are left out (they are easy), punctuation counts. A bracket wanted with any label is found
    whatever its label.
    """
    wanted, got = ([c for c in given if c.end - c.start > 1] for given in (wanted, got))
    chains = {(c.start, c.end): c.chain for c in got}
    found = 0
    for c in wanted:
        chain = chains.get((c.start, c.end), ())
        found += (Counter(c.chain) & Counter(chain)).total() if c.chain else bool(chain)
    asked = sum(max(1, len(c.chain)) for c in wanted)
    there = sum(len(c.chain) for c in got)
    return 2 * found / (asked + there) if asked + there else 1.0, asked + there


def frequent_chains(trees: Iterable[Bracketing], least: int) -> list[str]:
    """Chains seen at least so often, as text, in alphabetical order."""
    counts = Counter(c.chain for tree in trees for c in tree.constituents)
    return sorted("+".join(chain) for chain, count in counts.items() if count >= least)


def smallest_around(word: int, constituents: Sequence[Constituent]) -> Constituent | None:
    """The smallest constituent that holds a word, or None."""
    around = [c for c in constituents if c.start <= word < c.end]
    return min(around, key=lambda c: c.end - c.start, default=None)
