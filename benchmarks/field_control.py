"""Control of meaning: every field and value that held-out meaning representations ask for, a few samples each.

    python benchmarks/field_control.py --model e2e --train train.jsonl --test test.jsonl -n 5

Success by the oracle (a classifier of clean texts) and by Diffusion-LM's literal test (the value is a substring),
for samples, for samples without guidance, and for human texts of the same values. Fluency by a Kneser-Ney 5-gram
model of the training texts. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from pos_control import Judge, mean

from classifiers.field import Field, is_literal
from ctrlgen.control import Control
from ctrlgen.data import load_data, read_texts
from ctrlgen.errors import UsageError
from ctrlgen.guidance import STRENGTHS, Guidance
from ctrlgen.pipeline import Generator, Settings

MOST_HUMAN = 50  # texts for each value
Pairs = Sequence[tuple[Control, Sequence[str]]]  # what was asked for, and the words that came


def held_out_values(generator: Generator, source: str) -> dict[str, list[list[str]]]:
    """`field: value` for all that the texts mention and the classifier knows, with the words of texts that have it."""
    data, text_column = load_data(source)
    found: dict[str, list[list[str]]] = defaultdict(list)
    for row, text in zip(Field.read_rows("field", data, text_column, None), data[text_column], strict=True):
        for field, value in row.items():
            found[f"{field}: {value}"].append(
                generator.model.tokenizer.split(text)[: generator.model.config.max_length]
            )
    known = {}
    for control in sorted(found):
        try:
            generator.request([control])
        except UsageError:
            continue
        known[control] = found[control][:MOST_HUMAN]
    return known


def report(pairs: Pairs, judge: Judge) -> dict[str, object]:
    """Success over all pairs and by field, and fluency."""
    by_field: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for control, words in pairs:
        classifier = control.classifier
        assert isinstance(classifier, Field)
        (verdict,) = classifier.check([words], [control.target])
        value = classifier.tokenizer.split(classifier.values[control.target])
        by_field[control.statement.name].append((bool(verdict.success), is_literal(value, words)))
    everything = [outcome for outcomes in by_field.values() for outcome in outcomes]
    return {
        "success": mean([success for success, _ in everything]),
        "literal": mean([literal for _, literal in everything]),
        "by_field": {
            field: {"success": mean([s for s, _ in outcomes]), "literal": mean([x for _, x in outcomes])}
            for field, outcomes in by_field.items()
        },
        **judge.report([words for _, words in pairs]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="e2e")
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("-n", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--strength", type=float, nargs="+", default=[STRENGTHS["gradient"]])
    parser.add_argument("--candidates", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="also print one sample for each value")
    options = parser.parse_args()
    generator = Generator(options.model)
    judge = Judge(generator, read_texts(options.train))
    values = held_out_values(generator, options.test)
    requests = [generator.request([control], options.n, options.seed + 1000 * i) for i, control in enumerate(values)]
    human = [
        (request.controls[0], words)
        for request, texts in zip(requests, values.values(), strict=True)
        for words in texts
    ]
    result: dict[str, object] = {"options": vars(options), "values": len(values), "human": report(human, judge)}
    for strength in (0.0, *options.strength):
        settings = Settings(steps=options.steps, guidance=Guidance(strength=strength), candidates=options.candidates)
        started = time.monotonic()
        samples = generator.generate(requests, settings if strength else replace(settings, candidates=1))
        seconds = time.monotonic() - started
        pairs = [(sample.controls[0].control, sample.tokens) for sample in samples]
        result[f"strength {strength:g}"] = report(pairs, judge) | {"seconds": seconds}
        if options.show:
            result[f"strength {strength:g} samples"] = [
                f"{sample.controls[0].control.text} | {sample.text}" for sample in samples if sample.index == 0
            ]
    print(json.dumps(result, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
