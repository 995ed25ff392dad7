"""Targets for `ctrlgen eval --targets`: patterns of whole held-out texts of 5 to 25 words.

    python benchmarks/patterns.py test.jsonl patterns.jsonl [--limit 150] [--seed 0] [--model e2e]
    ctrlgen eval --targets patterns.jsonl --limit 150

About half of a text's words stay as they are. The others become slots, alternatives, gaps, counts, inflections and
classes (`ctrlgen_classifiers.patterns.sampled`). Each pattern has the text that it is made of as its reference.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random

from ctrlgen.data.texts import read_texts
from ctrlgen.generation.generator import Generator
from ctrlgen.text.joining import detokenize

SHORTEST, LONGEST = 5, 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("texts")
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="e2e")
    given = parser.parse_args()
    generator, rng = Generator(given.model), Random(given.seed)
    texts = [generator.model.tokenizer.split(text) for text in dict.fromkeys(read_texts(given.texts))]
    texts = [words for words in texts if SHORTEST <= len(words) <= LONGEST]
    texts = rng.sample(texts, min(given.limit, len(texts)))
    patterns = generator.controls.classifier("matches").values_of(texts, [{} for _ in texts], rng)
    lines = [
        json.dumps({"controls": [f"matches: {pattern}"], "reference": detokenize(words)}, ensure_ascii=False)
        for words, pattern in zip(texts, patterns, strict=True)
    ]
    given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
