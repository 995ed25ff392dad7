"""Plans of dialogues: does each turn do what its plan asks of it, and do the turns belong together?

    python benchmarks/dialogue_plans.py --model DIRECTORY --data dialogues/test.jsonl --control act --limit 50

The model has a context, a control of that name and a language model of several turns in a row (`ctrlgen train-lm`).
Each line of the data has `sentences`, the turns of a dialogue, and `--label-key`, a label for each. Of so many
dialogues, drawn at random, five turns in a row whose labels the control knows become a plan. Prints a JSON line for
the texts that are written and one for the human ones: the share of turns that do what is asked, by the control's
oracle; the mean cost of a turn, in nats a word, after the turn before it and after the other turns of its dialogue; and
how often the former is less.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

from ctrlgen import Generator, Writer
from ctrlgen.controls.language import write_statement
from ctrlgen.evaluation.from_text.planning import SENTENCES, cost_after, costs_less_in_order
from ctrlgen.generation.plans import PlannedSentence, TextPlan
from ctrlgen.generation.small_lm import SmallLM, find_lm

Turns = Sequence[Sequence[str]]  # the turns of a dialogue, each as its words


def plans_of(dialogue: dict[str, Any], labels: str, known: Sequence[str]) -> list[tuple[list[str], list[str]]]:
    """Turns in a row with one label each, one that the control knows; and these labels."""
    if len(dialogue.get(labels) or ()) != len(dialogue["sentences"]):
        return []
    turns = list(zip(dialogue["sentences"], dialogue[labels], strict=True))
    windows = (turns[start : start + SENTENCES] for start in range(len(turns) - SENTENCES + 1))
    return [
        ([text for text, _ in window], [label for _, label in window])
        for window in windows
        if all(isinstance(label, str) and label in known for _, label in window)
    ]


def costs(lm: SmallLM, turns: Turns) -> Iterator[tuple[float, float]]:
    """Nats a word of each turn but the first: after the one before it, and after the others on average."""
    ids = [lm.tokenizer.ids(words) for words in turns]
    for place in range(1, len(ids)):
        after = {
            other: cost_after(lm, [lm.tokenizer.end_id, *ids[other]], ids[place]) / len(ids[place])
            for other in range(len(ids))
            if other != place and len(ids[other]) + len(ids[place]) < lm.longest
        }
        own = after.pop(place - 1, None)
        if own is not None and after:
            yield own, mean(after.values())


def figures(lm: SmallLM, dialogues: Sequence[Turns], obeyed: Sequence[bool]) -> dict[str, float]:
    pairs = [pair for turns in dialogues for pair in costs(lm, turns)]
    if not pairs:
        raise SystemExit("no two turns fit the language model together")
    in_order, shuffled = zip(*pairs, strict=True)
    less = [share for turns in dialogues for share in costs_less_in_order(lm, [tuple(words) for words in turns])]
    return {
        "turns that do what is asked": mean(obeyed),
        "cost in order": mean(in_order),
        "cost after another turn": mean(shuffled),
        "less in order": mean(less),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--control", default="act", help="asks for the label of each turn")
    parser.add_argument("--label-key", default="acts", help="the key of a dialogue's labels")
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--show", type=int, default=0, help="dialogues to print")
    options = parser.parse_args()

    generator, rng = Generator(options.model), Random(0)
    classifier = generator.controls.classifier(options.control)
    lm = SmallLM(find_lm(generator.model), generator.model.tokenizer, generator.model.device)
    lines = options.data.read_text(encoding="utf-8").splitlines()
    found = [plans_of(json.loads(line), options.label_key, classifier.choices()) for line in lines]
    drawn = [rng.choice(of_dialogue) for of_dialogue in found if of_dialogue]
    drawn = rng.sample(drawn, min(options.limit, len(drawn)))
    if not drawn:
        raise SystemExit(
            f"{options.data}: no {SENTENCES} turns in a row have each one label that {options.control} knows"
        )

    texts = []
    for seed, (_, labels) in enumerate(drawn):
        asked = [(write_statement(options.control, label),) for label in labels]
        plan = TextPlan(tuple(PlannedSentence(f"turn {k}", controls) for k, controls in enumerate(asked, 1)))
        texts += Writer(generator, plan).write(seed=seed)
    obeyed = [sample.success is True for text in texts for sample in text.sentences]
    written = figures(lm, [[sample.tokens for sample in text.sentences] for text in texts], obeyed)
    print(json.dumps({"system": "ctrlgen", "dialogues": len(texts), **written}), flush=True)

    human = [[generator.model.tokenizer.split(turn) for turn in turns] for turns, _ in drawn]
    verdicts = [
        classifier.check([words], [classifier.parse(label)])[0].success is True
        for turns, (_, labels) in zip(human, drawn, strict=True)
        for words, label in zip(turns, labels, strict=True)
    ]
    print(json.dumps({"system": "human", "dialogues": len(drawn), **figures(lm, human, verdicts)}))
    for text, (_, labels) in zip(texts[: options.show], drawn, strict=False):
        print(
            *(f"  {label}: {sample.text}" for label, sample in zip(labels, text.sentences, strict=True)), "", sep="\n"
        )


if __name__ == "__main__":
    main()
