"""Names that no training text had: are they written as typed, and do the other words stay as likely?

    python benchmarks/new_names.py --model e2e --data e2e/train.jsonl --known "The Vaults" --known "Cotto" --field name

Each of 100 invented names of one to three words is asked for once in every way: as a field's value (`--field`), in
`words:`, in `starts:` and in a template. Beside it the same requests name known names in turn. Every name is taken
for the first of `--known` when a 5-gram model of the data measures the texts, so that only the other words differ.
Prints one JSON line a way.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence

from ctrlgen import Generator, Settings
from ctrlgen.data.texts import read_texts
from ctrlgen.evaluation.kneser_ney import KneserNey

COUNT = 100
FIRST = ("Br", "Zor", "Qui", "Vel", "Kra", "Mon", "Ash", "Tul", "Fen", "Dro")
LAST = ("blax", "mere", "ndel", "quist", "bury", "olina", "ick", "estra", "amont", "ux")


def invented(rng: random.Random) -> str:
    """A name of one to three words."""
    return " ".join(rng.choice(FIRST) + rng.choice(LAST) for _ in range(rng.randint(1, 3)))


def ways(field: str | None) -> dict[str, Callable[[str], tuple[list[str], str | None]]]:
    """Each way to ask for a name: its controls and its template."""
    found: dict[str, Callable[[str], tuple[list[str], str | None]]] = {
        "words": lambda name: ([f"words: {name}"], None),
        "starts": lambda name: ([f"starts: {name}"], None),
        "infill": lambda name: ([], f"{name} ___ ."),
    }
    if field is not None:
        found[field] = lambda name: ([f"{field}: {name}"], None)
    return found


def texts_of(
    generator: Generator, way: Callable[[str], tuple[list[str], str | None]], names: Sequence[str], settings: Settings
) -> list[str]:
    requests = []
    for seed, name in enumerate(names):
        controls, template = way(name)
        requests.append(generator.request(controls, seed=seed, template=template))
    return [sample.text for sample in generator.generate(requests, settings)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="e2e")
    parser.add_argument("--data", required=True, help="training texts, for the 5-gram model")
    parser.add_argument("--text-column")
    parser.add_argument("--known", action="append", required=True, help="a name that the texts have; repeatable")
    parser.add_argument("--field", help="a field whose values are names")
    parser.add_argument("--show", type=int, default=0, help="texts to print of each way")
    options = parser.parse_args()

    generator = Generator(options.model)
    split = generator.model.tokenizer.split
    ngrams = KneserNey(split(text) for text in read_texts(options.data, options.text_column))
    rng = random.Random(0)
    new = [invented(rng) for _ in range(COUNT)]
    known = [options.known[i % len(options.known)] for i in range(COUNT)]

    def cost(texts: Sequence[str], names: Sequence[str]) -> float:
        alike = [split(text.replace(name, options.known[0])) for text, name in zip(texts, names, strict=True)]
        return sum(float(nats.mean()) for nats in ngrams.costs(alike)) / len(texts)

    for name, way in ways(options.field).items():
        with_new, with_known = (texts_of(generator, way, names, Settings()) for names in (new, known))
        written = sum(name in text for text, name in zip(with_new, new, strict=True))
        costs = {"cost": cost(with_new, new), "cost_of_known": cost(with_known, known)}
        difference = costs["cost"] - costs["cost_of_known"]
        print(json.dumps({"way": name, "written": written, "of": COUNT, **costs, "difference": difference}), flush=True)
        for text in with_new[: options.show]:
            print("   ", text)


if __name__ == "__main__":
    main()
