"""POS control and fluency of a model on held-out sentences.

    python benchmarks/pos_control.py --model e2e --train train.jsonl --test test.jsonl --limit 200

Patterns are the Universal tags of held-out sentences; success is judged by spaCy, fluency by a Kneser-Ney
5-gram model of the training texts, always beside the human sentences of the same patterns. Without reranking
unless --candidates asks for it. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from kneser_ney import KneserNey

from ctrlgen.data import read_texts
from ctrlgen.guidance import Guidance
from ctrlgen.pipeline import Generator, Sample, Settings

UNKNOWN = "<unk>"


def distinct(texts: Sequence[Sequence[str]], n: int) -> float:
    """Share of distinct n-grams."""
    grams = [tuple(words[i : i + n]) for words in texts for i in range(len(words) - n + 1)]
    return len(set(grams)) / max(1, len(grams))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


class Judge:
    """Costs and diversity under a 5-gram model of the training texts, over the model's vocabulary."""

    def __init__(self, generator: Generator, train: Sequence[str]):
        self.tokenizer = generator.model.tokenizer
        sentences = [self.known(text.split()) for text in train]
        self.language_model = KneserNey(sentences)
        self.training = {tuple(sentence) for sentence in sentences}

    def known(self, words: Sequence[str]) -> list[str]:
        return [word if word in self.tokenizer else UNKNOWN for word in words]

    def report(self, texts: Sequence[Sequence[str]]) -> dict[str, float]:
        texts = [self.known(words) for words in texts]
        return {
            "cost": mean([self.language_model.cost(words) for words in texts]),
            "distinct_4": distinct(texts, 4),
            "copies": mean([tuple(words) in self.training for words in texts]),
        }


def controlled(
    generator: Generator, judge: Judge, human: Sequence[Sequence[str]], settings: Settings, seed: int
) -> dict[str, float]:
    from classifiers.pos import tag

    patterns = [" ".join(universal) for universal, _ in tag(human)]
    requests = [generator.request([f"pos: {p}"], 1, seed + 1000 * i) for i, p in enumerate(patterns)]
    started = time.monotonic()
    samples = generator.generate(requests, settings)
    seconds = time.monotonic() - started
    human_cost = judge.report(human)["cost"]
    report = judge.report([sample.tokens for sample in samples])
    return report | success(samples) | {
        "human_cost": human_cost, "gap": report["cost"] - human_cost, "seconds": seconds,
    }  # fmt: skip


def success(samples: Sequence[Sample]) -> dict[str, float]:
    """Per word and per pattern."""
    verdicts = [result.verdict for sample in samples for result in sample.controls]
    words = sum(len(sample.tokens) for sample in samples)
    failed = sum(len(verdict.failed) for verdict in verdicts)
    return {"per_token": 1 - failed / words, "whole_pattern": mean([bool(v.success) for v in verdicts])}


def unguided(
    generator: Generator, judge: Judge, human: Sequence[Sequence[str]], settings: Settings, seed: int
) -> dict[str, float]:
    """As many samples as human sentences, lengths from the model's prior."""
    samples = generator.generate([generator.request([], len(human), seed)], replace(settings, candidates=1))
    report, by_people = judge.report([sample.tokens for sample in samples]), judge.report(human)
    return report | {
        "human_cost": by_people["cost"],
        "gap": report["cost"] - by_people["cost"],
        "human_distinct_4": by_people["distinct_4"],
        "mean_length": mean([len(sample.tokens) for sample in samples]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="e2e")
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--unguided", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--temperature", type=float, default=Settings.temperature)
    parser.add_argument("--strength", type=float)
    parser.add_argument("--guidance", default=Guidance.method)
    parser.add_argument("--sampler", default=Settings.sampler)
    parser.add_argument("--candidates", type=int, default=1)
    options = parser.parse_args()
    settings = Settings(
        steps=options.steps,
        sampler=options.sampler,
        temperature=options.temperature,
        guidance=Guidance(method=options.guidance, strength=options.strength),
        candidates=options.candidates,
    )
    generator = Generator(options.model)
    judge = Judge(generator, read_texts(options.train))
    held_out = list(dict.fromkeys(read_texts(options.test)))
    texts = [text.split() for text in held_out if len(text.split()) <= generator.model.config.max_length]
    random.Random(options.seed).shuffle(texts)
    result: dict[str, object] = {"options": vars(options)}
    if options.limit:
        result["pos"] = controlled(generator, judge, texts[: options.limit], settings, options.seed)
    if options.unguided:
        result["unguided"] = unguided(generator, judge, texts[: options.unguided], settings, options.seed)
    counts = Counter(len(text) for text in texts[: options.limit])
    result["lengths"] = {"mean": mean(list(counts.elements())), "most": max(counts, default=0)}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
