"""Labelled texts from a data set: which values there are, and the examples to learn them from."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from ctrlgen.data.labels import label_key
from ctrlgen.errors import CtrlgenError
from ctrlgen.training.heads import Example
from ctrlgen_classifiers.word_vectors import known_ids, training_ids

if TYPE_CHECKING:
    from ctrlgen.checkpoint import DiffusionLM
    from ctrlgen.text.tokenizer import WordTokenizer

Values = dict[str, list[str]]  # each field's values, in the order of their ids
Row = dict[str, str]  # what one text has: its value in each field
Ids = tuple[int, ...]  # the same as ids, one for each field

OPEN = -1  # a field that is not asked for, or not known
ABSENT = "absent"  # the value of a field that a text does not mention
MIN_COUNT = 5  # a value seen less often cannot be learned
MIN_TEXTS = 40
LEAST_MENTIONED, MOST_BY_OTHERS = 0.5, 0.05  # shares of the texts with and without a value that have its words

log = logging.getLogger("ctrlgen.data.texts")


def learnable_values(rows: Sequence[Row], may_be_absent: bool) -> Values:
    """The fields that are worth learning, with their values as most often written, in alphabetical order."""
    spellings: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for row in rows:
        for field, value in row.items():
            spellings[field][label_key(value)][value] += 1
    fields = {}
    for field, of_field in spellings.items():
        values = sorted(s.most_common(1)[0][0] for s in of_field.values() if s.total() >= MIN_COUNT)
        missing = len(rows) - sum(s.total() for s in of_field.values())
        if len(values) + (may_be_absent and missing >= MIN_COUNT) >= 2 and values:
            fields[field] = [ABSENT, *(v for v in values if v != ABSENT)] if may_be_absent else values
    return fields


def make_examples(
    model: DiffusionLM, texts: Sequence[str], rows: Sequence[Row], values: Values, may_be_absent: bool
) -> tuple[list[Example[Ids]], list[str]]:
    """The texts that fit the model and have something to learn, and their words that its vocabulary lacks.

    The ids of these follow the vocabulary's where the model can make vectors of them (`DiffusionLM.opens`).
    """
    ids = {field: {label_key(value): id for id, value in enumerate(of_field)} for field, of_field in values.items()}
    missing = ABSENT if may_be_absent else ""
    encoded, new_words = training_ids([model.tokenizer.split(text) for text in texts], model, "the data")
    examples, unlabelled = [], 0
    for tokens, row in zip(encoded, rows, strict=True):
        target = tuple(ids[field].get(label_key(row.get(field, missing)), OPEN) for field in values)
        unlabelled += set(target) == {OPEN}
        if 0 < len(tokens) <= model.config.max_length and set(target) != {OPEN}:
            examples.append(Example(tokens, target))
    if unlabelled:
        log.info("the data: %s texts have no value that is seen %d times", f"{unlabelled:,}", MIN_COUNT)
    return examples, new_words


def never_absent(examples: Sequence[Example[Ids]], values: Values) -> list[str]:
    """The fields that hardly any text leaves out: nobody learns from these what a text without them is like."""
    absent = {field: of_field.index(ABSENT) for field, of_field in values.items()}
    counts = Counter(f for e in examples for f, id in zip(values, e.target, strict=True) if id == absent[f])
    return [field for field in values if counts[field] < MIN_COUNT]


def literal_phrases(examples: Sequence[Example[Ids]], values: Values, tokenizer: WordTokenizer) -> list[dict[int, Ids]]:
    """For each field the values that texts mention by name: words that most texts of the value have and few others do.

    By the value's id, the phrase's word ids.
    """
    phrases = []
    for field, of_field in enumerate(values.values()):
        known = [
            (id, tuple(tokenizer.encode(value, whole=False))) for id, value in enumerate(of_field) if value != ABSENT
        ]
        found: dict[int, Ids] = {}
        for id, phrase in known:
            with_value = [e for e in examples if e.target[field] == id]
            others = [e for e in examples if e.target[field] not in (OPEN, id)]
            if (
                tokenizer.unk_id not in phrase
                and share_with(with_value, phrase) >= LEAST_MENTIONED
                and share_with(others, phrase) <= MOST_BY_OTHERS
            ):
                found[id] = phrase
        phrases.append(found)
    return phrases


def forget_contradicted(
    examples: Sequence[Example[Ids]], values: Values, tokenizer: WordTokenizer
) -> list[Example[Ids]]:
    """The same texts, some labels not known: those that call a field absent whose value the text gives by name.

    Every field has ABSENT among its values. A text of which no label is left teaches nothing and is left out.

    People say more than they are asked to: nearly half of the E2E texts without a type of venue call it a restaurant
    (see Dušek et al. 2019), and from them nobody learns what "absent" means. Words that texts without a value have no
    oftener than texts of another value mean something else there, as in "average price", and contradict nothing.
    """
    absent = [of_field.index(ABSENT) for of_field in values.values()]
    said_unasked = [
        said_by_those_without(field, absent[field], examples, of_field, tokenizer)
        for field, of_field in enumerate(values.values())
    ]

    def known(example: Example[Ids], field: int) -> int:
        id = example.target[field]
        if id == absent[field] and any(find(example.tokens, phrase) >= 0 for phrase in said_unasked[field]):
            return OPEN
        return id

    learned = [Example(e.tokens, tuple(known(e, field) for field in range(len(values)))) for e in examples]
    return [e for e in learned if set(e.target) != {OPEN}]


def said_by_those_without(
    field: int, absent: int, examples: Sequence[Example[Ids]], of_field: Sequence[str], tokenizer: WordTokenizer
) -> list[Ids]:
    """The names of a field's values that texts without any value have oftener than texts of another one."""
    groups = [[e for e in examples if e.target[field] == id] for id in range(len(of_field))]
    phrases = []
    for id, value in enumerate(of_field):
        phrase = tuple(tokenizer.encode(value, whole=False))
        if id == absent or tokenizer.unk_id in phrase or share_with(groups[id], phrase) < LEAST_MENTIONED:
            continue
        others = [e for other, group in enumerate(groups) if other not in (id, absent) for e in group]
        if share_with(groups[absent], phrase) > share_with(others, phrase):
            phrases.append(phrase)
    return phrases


def share_with(examples: Sequence[Example[Ids]], phrase: Ids) -> float:
    return sum(find(e.tokens, phrase) >= 0 for e in examples) / max(1, len(examples))


def find(tokens: Sequence[int], phrase: Ids) -> int:
    """Where a phrase stands, or -1."""
    size = len(phrase)
    return next((i for i in range(len(tokens) - size + 1) if tuple(tokens[i : i + size]) == phrase), -1)


def counterfactuals(
    examples: Sequence[Example[Ids]], phrases: Sequence[dict[int, Ids]], seed: int
) -> list[Example[Ids]]:
    """One of each example; none where no value is mentioned by name."""
    rng = Random(seed)
    return [counterfactual(example, phrases, rng) for example in examples] if any(phrases) else []


def counterfactual(example: Example[Ids], phrases: Sequence[dict[int, Ids]], rng: Random) -> Example[Ids]:
    """The text with the values that it mentions by name exchanged for others, each with an even chance, and the labels
    with them: who learns from both reads what is written, not what goes together in the data (Kaushik et al. 2020).
    """
    tokens, target = list(example.tokens), list(example.target)
    for field, of_field in enumerate(phrases):
        phrase = of_field.get(target[field])
        at = find(tokens, phrase) if phrase and len(of_field) > 1 and rng.random() < 0.5 else -1
        if phrase and at >= 0:
            target[field] = rng.choice([id for id in of_field if id != target[field]])
            tokens[at : at + len(phrase)] = of_field[target[field]]
    return Example(tokens, tuple(target))


def halves(
    examples: Sequence[Example[Ids]], seed: int, tokenizer: WordTokenizer
) -> tuple[list[Example[Ids]], list[Example[Ids]]]:
    """The guide's half and the oracle's, without a text in common. Raises CtrlgenError where there are too few.

    Texts that differ in words alone that the vocabulary lacks are one, as the guide reads them.
    """
    keys = [tuple(known_ids(e.tokens, tokenizer)) for e in examples]
    texts = sorted(set(keys))
    if len(texts) < MIN_TEXTS:
        raise CtrlgenError(f"only {len(texts)} usable texts: at least {MIN_TEXTS} are needed, half for the oracle")
    random = Random(seed)
    first = set(random.sample(texts, len(texts) // 2))
    shuffled = random.sample(list(zip(keys, examples, strict=True)), len(examples))
    return [e for key, e in shuffled if key in first], [e for key, e in shuffled if key not in first]
