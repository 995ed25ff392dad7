"""Names that no training text had: does an edit of something else keep them?

    python benchmarks/edited_names.py --model e2e --data e2e/test.jsonl --name-field name --field food --limit 200

In texts that say the value of `--name-field` by its own words that value is replaced by an invented name; then another
value of `--field` is asked for, where a text has one. Prints one JSON line: in how many of the edited texts the whole
name is left, how many have the new value by its oracle, and the mean share of the words that are kept.
"""

from __future__ import annotations

import argparse
import json
from random import Random

from new_names import invented

from ctrlgen import Editor, Generator
from ctrlgen.controls.language import write_statement
from ctrlgen.evaluation.from_text.editing import other_values, values_of
from ctrlgen.evaluation.targets import read_examples
from ctrlgen.text.joining import detokenize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="e2e")
    parser.add_argument("--data", required=True, help="texts that were not trained on, with their fields")
    parser.add_argument("--name-field", default="name")
    parser.add_argument("--field", default="food")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--show", type=int, default=0, help="texts to print")
    options = parser.parse_args()

    generator, rng = Generator(options.model), Random(0)
    editor = Editor(generator)
    examples = read_examples(generator, [options.data])
    sources, names = [], []
    for example, values in zip(examples, values_of(generator, examples, rng), strict=True):
        text, known, value = detokenize(example.words), values[options.name_field], values[options.field]
        if known and value and known in text:
            name = invented(rng)
            control = write_statement(options.field, rng.choice(other_values(generator, options.field, value)))
            names.append(name)
            sources.append((text.replace(known, name), control))
    if not sources:
        raise SystemExit(f"{options.data}: no text has its {options.name_field} in it and a {options.field}")
    chosen = sorted(rng.sample(range(len(sources)), min(options.limit, len(sources))))
    edits = editor.edit([editor.source(sources[place][0], [sources[place][1]], seed=place) for place in chosen])
    kept = [names[place] in edit.sample.text for place, edit in zip(chosen, edits, strict=True)]
    obey = [edit.sample.success is True for edit in edits]
    words = sum(edit.kept for edit in edits) / len(edits)
    print(
        json.dumps({"texts": len(edits), "names kept": sum(kept), "new value": sum(obey), "words kept": words}),
        flush=True,
    )
    for edit in edits[: options.show]:
        print(f"    {edit.source.text}\n  = {edit.sample.text}")


if __name__ == "__main__":
    main()
