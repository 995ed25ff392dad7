"""Targets for `ctrlgen eval --targets`: sets of two to five words of held-out texts, in the texts' order or inflected.

    python benchmarks/keyword_sets.py valid.jsonl keywords.jsonl [--limit 100] [--seed 0] [--model e2e]
    ctrlgen eval --targets keywords.jsonl

Half of them ask for words in order (`words: cheap ... riverside`), the others for any inflection (`words: serve~`).
Each has the text that it is taken from as its reference, so that costs are compared with human text that has the words.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

from ctrlgen.data.texts import read_texts
from ctrlgen.generation.generator import Generator
from ctrlgen.text.joining import detokenize
from ctrlgen.text.tokenizer import WordTokenizer

FEWEST, MOST = 2, 5


def keywords(words: Sequence[str], tokenizer: WordTokenizer, in_order: bool, rng: Random) -> str | None:
    """A control that asks for some of a text's words, None where it has too few that the model knows."""
    places = [
        place for place, word in enumerate(words) if word in tokenizer and word.isalpha() and word not in words[:place]
    ]
    if len(places) < FEWEST:
        return None
    chosen = rng.sample(places, min(len(places), rng.randint(FEWEST, MOST)))
    if in_order:
        return f"words: {' ... '.join(words[place] for place in sorted(chosen))}"
    return f"words: {', '.join(f'{words[place]}~' for place in chosen)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("texts")
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="e2e")
    given = parser.parse_args()
    tokenizer, rng = Generator(given.model).model.tokenizer, Random(given.seed)
    texts = [tokenizer.split(text) for text in dict.fromkeys(read_texts(given.texts))]
    lines: list[str] = []
    for words in rng.sample(texts, len(texts)):
        control = keywords(words, tokenizer, len(lines) % 2 == 0, rng)
        if control is not None and len(lines) < given.limit:
            lines.append(json.dumps({"controls": [control], "reference": detokenize(words)}, ensure_ascii=False))
    given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
