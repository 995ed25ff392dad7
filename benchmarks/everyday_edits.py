"""How a model edits everyday sentences, each under one changed control.

    python benchmarks/everyday_edits.py [--model english]

Prints each edit with the share of the words that it kept and whether it obeys, then the means.
"""

import argparse
from statistics import mean

from ctrlgen import Editor, Generator

SENTENCES = [
    ("I walk to school with my brother every day.", "tense: past"),
    ("She works in a big office near the station.", "tense: past"),
    ("We often eat dinner in the kitchen.", "tense: past"),
    ("He plays football with his friends on Sunday.", "tense: past"),
    ("The children are very tired now.", "tense: past"),
    ("They open the shop at nine.", "tense: past"),
    ("I really like the new teacher.", "person: third"),
    ("We are going to the beach tomorrow.", "person: third"),
    ("I think it will rain soon.", "person: third"),
    ("I lost my keys in the park.", "person: third"),
    ("We need more time for this.", "person: third"),
    ("The food was cold and the waiter was rude.", "sentiment: positive"),
    ("I do not like this film at all.", "sentiment: positive"),
    ("The room was dirty and too small.", "sentiment: positive"),
    ("This is a terrible book with a boring story.", "sentiment: positive"),
    ("The service was slow and the staff were unfriendly.", "sentiment: positive"),
    ("He bought a new car last week.", "words: dog"),
    ("The cat sleeps on the sofa.", "words: dog"),
    ("We walked along the river this morning.", "words: dog"),
    ("My sister is very happy today.", "words: dog"),
    ("My sister is very happy today.", "polarity: negative"),
    ("I know the answer to your question.", "polarity: negative"),
    ("They want to leave early.", "polarity: negative"),
    ("He can swim very well.", "polarity: negative"),
    ("You should call your mother tonight.", "mood: question"),
    ("The train leaves at eight.", "mood: question"),
    ("She is your best friend.", "mood: question"),
    ("You can open the window.", "mood: question"),
    ("I went to the shop and bought some bread.", "tense: present"),
    ("The dog barked at the old man.", "tense: present"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="english")
    editor = Editor(Generator(parser.parse_args().model))
    found = []
    for text, control in SENTENCES:
        (edited,) = editor.edit([editor.source(text, [control])])
        found.append(edited)
        print(f"{edited.kept:4.0%} {edited.sample.success!s:5} {control:20} {text} -> {edited.sample.text}", flush=True)
    kept = [edited.kept for edited in found]
    obey = sum(edited.sample.success is True for edited in found)
    print(f"kept {mean(kept):.1%}; below 60% in {sum(of < 0.6 for of in kept)}; {obey} of {len(found)} read as asked")


if __name__ == "__main__":
    main()
