"""What evaluation asks for: controls taken from held-out texts, or from files, each with human texts that have them.

A suite is a control name (`pos`, `span`, `length`, …), several joined by `+` (`pos+field`), or one of

    field       every field and value that the data has, instead of one a text
    infill      the middle third of each text taken out
    unguided    no control

and `compose` and `all` stand for several. A file of targets is ours, `{"controls": […], "reference": "…"}` a line, or
one of Diffusion-LM's as published (`pos`, `spans` or `tree` with `words_`, or a list: `["food", ":", "Japanese"]`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from ctrlgen.controls.language import write_statement
from ctrlgen.data import fitting, load_data
from ctrlgen.errors import CtrlgenError, UsageError, did_you_mean
from ctrlgen.files import read_lines
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.request import Request

Words = tuple[str, ...]

FIELD, INFILL, UNGUIDED = "field", "infill", "unguided"
LABEL_KINDS = ("field", "label")  # asked for value by value
COMPOSED = ("pos+field", "tree+field")
SUITES = ("pos", "tree", "span", "length", "words", FIELD, *COMPOSED, INFILL, UNGUIDED)
FRAME = ("START", "END")  # around Diffusion-LM's sentences
PRETERMINAL = re.compile(r"\([^\s()]+\s+(?:[^\s()]+|\\n)\s*\)")


@dataclass(frozen=True)
class Example:
    """A held-out text with its row of data."""

    words: Words
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """What is asked for, and human texts that have it."""

    controls: tuple[str, ...] = ()
    references: tuple[Words, ...] = ()
    template: str | None = None
    newline: bool = False  # whether the published target ends in a newline token, which no text here has


@dataclass(frozen=True)
class Asked:
    """A suite's targets as the generator understands them."""

    suite: str
    targets: list[Target]
    requests: list[Request]
    left_out: list[str] = field(default_factory=list)  # why others were not understood
    understood: list[bool] = field(default_factory=list)  # of every target in order, whether it is among `targets`


def read_examples(generator: Generator, sources: Sequence[str]) -> list[Example]:
    """The different texts of all sources that fit the model; rows of one text are joined."""
    tokenizer, longest = generator.model.tokenizer, generator.model.longest
    rows: dict[Words, dict[str, Any]] = {}
    for source in sources:
        data, column = load_data(source)
        texts = [tuple(tokenizer.split(text)) if isinstance(text, str) else () for text in data[column]]
        fitting([tokenizer.ids(words) for words in texts], 1, longest, tokenizer.unk_id, source)
        for words, row in zip(texts, data, strict=True):
            if 0 < len(words) <= longest:
                known = {key: value for key, value in rows.get(words, {}).items() if value is not None}
                rows[words] = row | known
    return [Example(words, row) for words, row in rows.items()]


def expand_suites(names: Sequence[str], generator: Generator) -> list[str]:
    """The suites meant, all without a name; those of `all` that this model has no classifier for are left out.

    Raises UsageError for a suite that does not exist or that the model lacks.
    """
    expanded: list[str] = []
    for name in names or ("all",):
        if name == "all":
            expanded += [suite for suite in SUITES if not lacking(suite, generator)]
        elif name == "compose":
            expanded += COMPOSED
        else:
            expanded.append(name)
    for suite in expanded:
        alone = {INFILL, UNGUIDED} & set(suite.split("+"))
        if "+" in suite and alone:
            raise UsageError(f"suite {suite!r}: {alone.pop()} cannot be joined with another; repeat --suite")
        unknown = lacking(suite, generator)
        if unknown:
            known = ["all", "compose", *SUITES, *generator.controls.names()]
            raise UsageError(f"suite {suite!r}: this model has no control {unknown[0]!r}.{did_you_mean(suite, known)}")
    return list(dict.fromkeys(expanded))


def lacking(suite: str, generator: Generator) -> list[str]:
    """The parts of a suite that this model has no control for."""
    if suite in (INFILL, UNGUIDED):
        return []
    names = generator.controls.names()
    return [part for part in suite.split("+") if part not in names and not (part == FIELD and labels(generator))]


def labels(generator: Generator) -> list[str]:
    """The controls that are fields or labels."""
    return [name for name, kind in generator.controls.names().items() if kind in LABEL_KINDS]


def make_targets(generator: Generator, suite: str, examples: Sequence[Example], limit: int, seed: int) -> list[Target]:
    """Up to `limit` targets of one suite. The same seed takes the same texts for every suite."""
    rng = Random(seed)
    examples = rng.sample(examples, len(examples))
    if suite == UNGUIDED:
        return [Target((), (e.words,)) for e in examples[:limit]]
    if suite == INFILL:
        return [Target((), (e.words,), without_middle(e.words)) for e in examples if len(e.words) > 2][:limit]
    if suite == FIELD:
        return field_targets(generator, examples, limit, rng)
    targets: list[Target] = []
    for start in range(0, len(examples), limit):  # some texts have nothing to ask for
        part = examples[start : start + limit]
        columns = [controls_of(generator, name, part, rng) for name in suite.split("+")]
        for example, controls in zip(part, zip(*columns, strict=True), strict=True):
            if None not in controls:
                targets.append(Target(tuple(filter(None, controls)), (example.words,)))
        if len(targets) >= limit:
            break
    return targets[:limit]


def controls_of(generator: Generator, name: str, examples: Sequence[Example], rng: Random) -> list[str | None]:
    """A control of this name that each text has; for `field` one of its fields, drawn."""
    texts, rows = [e.words for e in examples], [e.row for e in examples]
    names = labels(generator) if name == FIELD else [name]
    columns = []
    for control in names:
        values = generator.controls.classifier(control).values_of(texts, rows, rng)
        columns.append([asking(generator, control, value) if value else None for value in values])
    return [rng.choice(present) if (present := list(filter(None, row))) else None for row in zip(*columns, strict=True)]


def asking(generator: Generator, control: str, value: str) -> str:
    """The control that asks for a value; those of labels and fields may hold any characters."""
    return write_statement(control, value) if control in labels(generator) else f"{control}: {value}"


def field_targets(generator: Generator, examples: Sequence[Example], limit: int, rng: Random) -> list[Target]:
    """Every value of every field, with texts that have it, as many in all as there may be targets."""
    texts: dict[str, list[Words]] = {}
    for name in labels(generator):
        classifier = generator.controls.classifier(name)
        values = classifier.values_of([e.words for e in examples], [e.row for e in examples], rng)
        for example, value in zip(examples, values, strict=True):
            if value:
                texts.setdefault(write_statement(name, value), []).append(example.words)
    chosen = rng.sample(sorted(texts), min(limit, len(texts)))
    references = max(1, limit // max(1, len(chosen)))
    return [Target((control,), tuple(texts[control][:references])) for control in chosen]


def without_middle(words: Words) -> str:
    """A template whose middle third is a blank of just as many words."""
    third = max(1, len(words) // 3)
    start = (len(words) - third) // 2
    return " ".join([*words[:start], f"___{{{third}}}", *words[start + third :]])


def ask(generator: Generator, suite: str, targets: Iterable[Target], n: int, seed: int) -> Asked:
    """Requests for targets, n samples each. What the model does not understand is left out and told."""
    asked = Asked(suite, [], [])
    for target in targets:
        try:
            number = len(asked.requests)
            request = generator.request(target.controls, n, seed + n * number, number, target.template)
        except UsageError as error:
            asked.left_out.append(str(error))
            asked.understood.append(False)
            continue
        asked.targets.append(target)
        asked.requests.append(request)
        asked.understood.append(True)
    if not asked.targets:
        reason = asked.left_out[0] if asked.left_out else "the data has nothing to ask for"
        raise CtrlgenError(f"suite {suite!r}: no target for this model: {reason}")
    return asked


def read_targets(path: Path, generator: Generator) -> list[Target]:
    """Targets of a file, ours or Diffusion-LM's. Raises CtrlgenError without any, UsageError for a wrong line."""
    try:
        lines = read_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise CtrlgenError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    targets = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                targets.append(parse_target(json.loads(line), generator))
            except (ValueError, KeyError, TypeError, IndexError):
                raise UsageError(
                    f"{path}, line {number}: no target; write "
                    '{"controls": ["pos: DET NOUN"], "reference": "…"}, or one of Diffusion-LM\'s formats'
                ) from None
    if not targets:
        raise CtrlgenError(f"{path}: holds no targets")
    return targets


def parse_target(line: Any, generator: Generator) -> Target:
    """One line of a target file. Raises ValueError, KeyError, TypeError or IndexError where it is none."""
    if not isinstance(line, (list, dict)):
        raise TypeError(line)
    if isinstance(line, list):  # ["food", ":", "Japanese"]
        name, _, value = " ".join(line).partition(":")
        if not value.strip():
            raise ValueError(line)
        return Target((f"{name.strip()}: {value.strip()}",))
    if "words_" in line or "pos" in line or "tree" in line:
        return published_target(line)
    references = line.get("references", [line["reference"]] if line.get("reference") else [])
    split = generator.model.tokenizer.split
    controls, template = line.get("controls", []), line.get("template") or None
    if not (controls or template) or not isinstance(controls, list):
        raise ValueError(line)
    if not all(isinstance(said, str) for said in (*controls, template or "")):
        raise TypeError(line)
    return Target(tuple(controls), tuple(tuple(split(text)) for text in references), template)


def published_target(line: Mapping[str, Any]) -> Target:
    """Diffusion-LM's: START and END are part of the lists, and often a newline before END; spans are counted from 0
    without START, their end inclusive.
    """
    words = list(map(str, line.get("words_") or [""] * len(line.get("pos", ()))))
    inside = [i for i, word in enumerate(words) if word not in FRAME and not (word and not word.strip())]
    newline = any(word and not word.strip() for word in words)
    reference = tuple(words[i] for i in inside if words[i])
    if "pos" in line:
        tags = [line["pos"][i] for i in inside]
        control = f"pos: {' '.join(str(tag) for tag in tags if tag not in FRAME)}"
    elif "spans" in line:
        control = "span: " + ", ".join(f"{label} {start + 1}-{end + 1}" for start, end, label in line["spans"])
    else:
        tree = re.sub(r"\([^\s()]+\s*\\?n?\s*\)", "", str(line["tree"]))  # the newline's own leaf
        control = f"tree: {PRETERMINAL.sub('*', tree)}"
    return Target((control,), (reference,) if reference else (), newline=newline)
