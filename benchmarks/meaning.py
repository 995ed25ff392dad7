"""What the codes of `means:` know: search by meaning, and texts between two texts.

    python benchmarks/meaning.py recall --model e2e --data e2e/test.jsonl --group-column meaning_representation
    python benchmarks/meaning.py between --model e2e --data e2e/test.jsonl --limit 100

`recall`: of 4,000 texts, those of the same group should be among the ten nearest of each text of a sample of 500: by
the codes, by a sentence encoder that this project did not train (extra `eval`), and by words in common.

`between`: texts asked for by two `means:`, at weights that sum to one, of pairs of texts in which the oracles of fields
and labels read at least two values that are the same. Which of these are read in the text that is written?

Prints one JSON line a way, or a weight.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from random import Random

import numpy as np

from ctrlgen import Generator
from ctrlgen.controls.language import write_statement
from ctrlgen.controls.similar import codes_of, coding_control
from ctrlgen.data.labels import read_labels
from ctrlgen.data.texts import load_data
from ctrlgen.evaluation.from_text.editing import enumerable, values_read
from ctrlgen.text.joining import detokenize
from ctrlgen_classifiers.sentence_encoder import is_installed, sentence_codes

CORPUS, QUERIES, FOUND = 4000, 500, 10
WEIGHTS = (0.25, 0.5, 0.75)
LEAST_COMMON = 2  # values that both texts of a pair have


def recall(generator: Generator, options: argparse.Namespace) -> None:
    rows, column = load_data(options.data, options.text_column)
    split = generator.model.tokenizer.split
    unique = {
        tuple(split(text)): group
        for text, group in zip(rows[column], read_labels(rows, options.group_column), strict=True)
    }
    texts = Random(0).sample(list(unique), min(CORPUS, len(unique)))
    groups = np.array([str(unique[text]) for text in texts])
    ways = {"codes": codes_of(coding_control(generator.controls), texts), "words": bags(texts)}
    if is_installed():
        ways["sentence encoder"] = sentence_codes([detokenize(text) for text in texts]).numpy()
    queries = [place for place in range(len(texts)) if (groups == groups[place]).sum() > 1][:QUERIES]
    for name, codes in ways.items():
        similarity = codes[queries] @ codes.T
        similarity[np.arange(len(queries)), queries] = -np.inf
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :FOUND]
        same = groups[nearest] == groups[queries][:, None]
        there = np.array([(groups == groups[place]).sum() - 1 for place in queries])
        shares = same.sum(1) / np.minimum(there, FOUND)
        first = float(same[:, 0].mean())
        counts = {"way": name, "texts": len(texts), "queries": len(queries)}
        print(json.dumps(counts | {"recall": float(shares.mean()), "first": first}))


def bags(texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Which words each text has, rare ones above all, as vectors of length one."""
    words = {word: number for number, word in enumerate(dict.fromkeys(word for text in texts for word in text))}
    found = np.zeros((len(texts), len(words)), dtype=np.float32)
    for row, text in zip(found, texts, strict=True):
        row[[words[word] for word in text]] = 1.0
    found *= np.log(len(texts) / found.sum(0))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def between(generator: Generator, options: argparse.Namespace) -> None:
    rows, column = load_data(options.data, options.text_column)
    split, rng = generator.model.tokenizer.split, Random(0)
    unique = list(dict.fromkeys(tuple(split(text)) for text in rows[column]))
    fitting = [text for text in unique if len(text) <= generator.model.longest]
    texts = rng.sample(fitting, min(4 * options.limit, len(fitting)))
    oracles = {name: generator.controls.classifier(name) for name in enumerable(generator)}
    read = {name: values_read(oracle, texts) for name, oracle in oracles.items()}
    pairs = []
    for one in range(0, len(texts) - 1, 2):
        common = {
            name: str(values[one])
            for name, values in read.items()
            if values[one] == values[one + 1] and values[one] not in (None, oracles[name].nothing)
        }
        if len(common) >= LEAST_COMMON:
            pairs.append((texts[one], texts[one + 1], common))
    pairs = pairs[: options.limit]
    if not pairs:
        raise SystemExit(f"{options.data}: no two texts of a pair have {LEAST_COMMON} values in common")
    coding = coding_control(generator.controls).name
    for weight in WEIGHTS:
        requests = []
        for seed, (one, other, _) in enumerate(pairs):
            weighted = ((one, 1 - weight), (other, weight))
            controls = [f"{write_statement(coding, detokenize(text))} @ {share}" for text, share in weighted]
            requests.append(generator.request(controls, seed=seed))
        samples = list(generator.generate(requests))
        found = {name: values_read(oracle, [tuple(s.tokens) for s in samples]) for name, oracle in oracles.items()}
        kept = [
            [found[name][place] == value for name, value in common.items()] for place, (*_, common) in enumerate(pairs)
        ]
        share = sum(map(sum, kept)) / sum(map(len, kept))
        everything = sum(map(all, kept)) / len(kept)
        print(json.dumps({"weight": weight, "pairs": len(pairs), "kept": share, "all": everything}), flush=True)
        for (one, other, _), sample in list(zip(pairs, samples, strict=True))[: options.show]:
            print(f"    {detokenize(one)}\n    {detokenize(other)}\n  = {sample.text}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("recall", "between"))
    parser.add_argument("--model", default="e2e")
    parser.add_argument("--data", required=True, help="texts that were not trained on")
    parser.add_argument("--text-column")
    parser.add_argument("--group-column", help="equal values mean the same")
    parser.add_argument("--limit", type=int, default=100, help="pairs of texts")
    parser.add_argument("--show", type=int, default=0, help="texts to print for each weight")
    options = parser.parse_args()
    if options.what == "recall" and options.group_column is None:
        parser.error("recall needs --group-column")
    (recall if options.what == "recall" else between)(Generator(options.model), options)


if __name__ == "__main__":
    main()
