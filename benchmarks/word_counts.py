"""Targets for `ctrlgen eval --targets`: sentences of just so many words, with a given last word, or both.

    python benchmarks/word_counts.py both test.jsonl targets.jsonl [--limit 200] [--seed 0] [--model english]
    ctrlgen eval --model english --targets targets.jsonl --limit 200

Words are counted as people count them, between spaces, from 2 to 10 alike often: a word is made of letters, and one
closing mark follows the last. The reference is a held-out sentence of that many words, whose last word is given; where
none is so short, the last word is that of a longer one and there is no reference.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path
from random import Random

from ctrlgen.data.texts import read_texts
from ctrlgen.generation.generator import Generator
from ctrlgen.text.joining import detokenize

FEWEST, MOST = 2, 10
SENTENCE = re.compile(r"[A-Za-z]+(?: [A-Za-z]+)*[.!?]")
WORD, CLOSING = "/(?i)[a-z]+/", "(.|!|?)"


def control(task: str, count: int, last: str) -> str:
    """What is asked for: so many words, the last word, or both."""
    match task:
        case "count":
            return f"matches: {WORD}{{{count}}} {CLOSING}"
        case "last":
            return f"ends: {last}"
        case _:
            return f"matches: {WORD}{{{count - 1}}} {last} {CLOSING}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task", choices=("count", "last", "both"))
    parser.add_argument("texts")
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="english")
    given = parser.parse_args()
    tokenizer = Generator(given.model).model.tokenizer
    rng = Random(given.seed)
    by_count: dict[int, list[list[str]]] = defaultdict(list)
    for text in rng.sample(texts := list(dict.fromkeys(read_texts(given.texts))), len(texts)):
        words = tokenizer.split(text)
        if SENTENCE.fullmatch(text) and words[:-1] == text[:-1].split() and all(word in tokenizer for word in words):
            by_count[len(words) - 1].append(words)
    lines = []
    for number in range(given.limit):
        count, turn = FEWEST + number % (MOST - FEWEST + 1), number // (MOST - FEWEST + 1)
        words = by_count[max(count, min(by_count))][turn]
        target: dict[str, object] = {"controls": [control(given.task, count, words[-2])]}
        if len(words) == count + 1:
            target["reference"] = detokenize(words)
        lines.append(json.dumps(target, ensure_ascii=False))
    given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
