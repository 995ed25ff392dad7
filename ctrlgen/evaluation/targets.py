"""What evaluation asks for: controls taken from held-out texts, or from files, each with human texts that have them.

A suite is a control name (`pos`, `span`, `length`, …), several joined by `+` (`pos+field`), or one of

    field       every value of the fields and labels that the data has, instead of one a text
    infill      the middle third of each text taken out
    edit, …     one value of each text changed (`from_text`)
    unguided    no control

and `compose` and `all` stand for several. A file of targets is ours, `{"controls": […], "reference": "…"}` a line, or
one of Diffusion-LM's as published (`pos`, `spans` or `tree` with `words_`, or a list: `["food", ":", "Japanese"]`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from ctrlgen.controls.classifier import Classifier
from ctrlgen.controls.language import write_statement
from ctrlgen.controls.registry import classifier_kinds
from ctrlgen.data.texts import fitting, load_data
from ctrlgen.errors import CtrlgenError, UsageError, did_you_mean
from ctrlgen.files import from_json, read_lines
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.request import Request

Words = tuple[str, ...]

INFILL, UNGUIDED = "infill", "unguided"
FROM_TEXT = ("edit", "edit-add", "edit-remove", "edit-nothing", "paraphrase", "transfer", "write")  # no part of `all`
FRAME = ("START", "END")  # around Diffusion-LM's sentences


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
    source: Words | None = None  # the text to start from
    sentences: tuple[tuple[str, ...], ...] = ()  # the controls of each sentence of a plan
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
    every, composed = suites_of(generator)
    expanded: list[str] = []
    for name in names or ("all",):
        expanded += every if name == "all" else composed if name == "compose" else [name]
    for suite in expanded:
        alone = {INFILL, UNGUIDED, *FROM_TEXT} & set(suite.split("+"))
        if "+" in suite and alone:
            raise UsageError(f"suite {suite!r}: {alone.pop()} cannot be joined with another; repeat --suite")
        unknown = [part for part in suite.split("+") if not (alone or controls_in(part, generator))]
        if unknown:
            known = ["all", "compose", *every, *FROM_TEXT, *generator.controls.names()]
            raise UsageError(f"suite {suite!r}: this model has no control {unknown[0]!r}.{did_you_mean(suite, known)}")
    return list(dict.fromkeys(expanded))


def kinds(generator: Generator) -> dict[str, type[Classifier]]:
    """The kind of every control that the model has, by its name."""
    return {name: classifier_kinds()[kind] for name, kind in generator.controls.names().items()}


def suites_of(generator: Generator) -> tuple[list[str], list[str]]:
    """All suites that the model's controls make, and those of them that ask for two controls at once."""
    present = dict.fromkeys(kinds(generator).values())
    single = list(dict.fromkeys(kind.suite for kind in present if kind.suite is not None))
    composed = [
        f"{kind.suite}+{other}" for kind in present if kind.suite for other in kind.composed_with if other in single
    ]
    return [*single, *composed, INFILL, UNGUIDED], composed


def controls_in(part: str, generator: Generator) -> list[str]:
    """The controls that a part of a suite's name stands for: one of that name, or all whose kinds share this suite."""
    of_model = kinds(generator)
    sharing = [name for name, kind in of_model.items() if kind.suite == part]
    return sharing or [name for name in of_model if name == part]


def make_targets(generator: Generator, suite: str, examples: Sequence[Example], limit: int, seed: int) -> list[Target]:
    """Up to `limit` targets of one suite. The same seed takes the same texts for every suite."""
    rng = Random(seed)
    examples = rng.sample(examples, len(examples))
    if suite == UNGUIDED:
        return [Target((), (e.words,)) for e in examples[:limit]]
    if suite == INFILL:
        return [Target((), (e.words,), without_middle(e.words)) for e in examples if len(e.words) > 2][:limit]
    by_value = [name for name, kind in kinds(generator).items() if kind.suite == suite and kind.enumerable]
    if by_value:
        return targets_by_value(generator, by_value, examples, limit, rng)
    targets: list[Target] = []
    for start in range(0, len(examples), limit):  # some texts have nothing to ask for
        part = examples[start : start + limit]
        columns: list[list[str | None]] = []
        for name in suite.split("+"):
            columns.append(controls_of(generator, name, part, rng, columns))
        for example, controls in zip(part, zip(*columns, strict=True), strict=True):
            if None not in controls:
                targets.append(Target(tuple(filter(None, controls)), (example.words,)))
        if len(targets) >= limit:
            break
    return targets[:limit]


def controls_of(
    generator: Generator,
    name: str,
    examples: Sequence[Example],
    rng: Random,
    taken: Sequence[Sequence[str | None]] = (),
) -> list[str | None]:
    """A control that each text has, of those that this part of a suite stands for, one of them drawn.

    taken: what earlier parts of the suite ask of each text, which is not asked twice: `field+field` is two fields.
    """
    texts, rows = [e.words for e in examples], [e.row for e in examples]
    columns = []
    for control in controls_in(name, generator):
        values = generator.controls.classifier(control).values_of(texts, rows, rng)
        columns.append([asking(generator, control, value) if value else None for value in values])
    drawn: list[str | None] = []
    for place, row in enumerate(zip(*columns, strict=True)):
        present = [control for control in row if control and control not in {of[place] for of in taken}]
        drawn.append(rng.choice(present) if present else None)
    return drawn


def asking(generator: Generator, control: str, value: str) -> str:
    """The control that asks for a value; values of enumerable kinds may hold any characters."""
    return write_statement(control, value) if kinds(generator)[control].enumerable else f"{control}: {value}"


def targets_by_value(
    generator: Generator, names: Sequence[str], examples: Sequence[Example], limit: int, rng: Random
) -> list[Target]:
    """Every value of every one of these controls, with texts that have it, as many in all as there may be targets."""
    texts: dict[str, list[Words]] = {}
    for name in names:
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
    """Requests for targets, n samples each. What the model does not understand is left out and reported."""
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
                targets.append(parse_target(from_json(line), generator))
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
    if not line.keys() & {"controls", "template"}:
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
    """Diffusion-LM's: START and END are part of the lists, and often a newline before END; what else stands there is
    for a control to read.
    """
    words = list(map(str, line.get("words_", ())))
    framing = {place for of in line.values() if isinstance(of, list) for place, x in enumerate(of) if x in FRAME}
    newlines = {place for place, word in enumerate(words) if word and not word.strip()}
    length = max(len(of) for key, of in line.items() if isinstance(of, list) and (key == "words_" or not words))
    inside = [place for place in range(length) if place not in framing | newlines]
    read = {name: kind.published_value(line, inside) for name, kind in classifier_kinds().items()}
    values = [(name, value) for name, value in read.items() if value is not None]
    name, value = values[0]
    reference = tuple(words[place] for place in inside) if words else ()
    return Target((f"{name}: {value}",), (reference,) if reference else (), newline=bool(newlines))
