"""Sentences whose every word has one tag, so that tests know what is right without a tagger."""

import json
from pathlib import Path
from random import Random

WORDS = {
    "DET": ("the", "a"),
    "ADJ": ("red", "small", "old"),
    "NOUN": ("cat", "dog", "river", "house"),
    "VERB": ("sees", "likes", "finds"),
    "ADP": ("near", "by"),
    "PUNCT": (".",),
}
TINY_RECIPE = """
[data]
train = {data}
[model]
embedding_dim = 4
width = 16
layers = 1
heads = 2
max_length = 12
[training]
tokens_per_batch = 256
precision = "float32"
"""
TAG_OF = {word: tag for tag, words in WORDS.items() for word in words}


def toy_sentences(count: int, seed: int = 0) -> list[tuple[list[str], list[str]]]:
    """Words and tags of DET [ADJ] NOUN VERB DET [ADJ] NOUN [ADP DET NOUN] PUNCT, 6 to 11 words."""
    random = Random(seed)
    sentences = []
    for _ in range(count):
        tags = ["DET", *["ADJ"] * random.randint(0, 1), "NOUN", "VERB", "DET", *["ADJ"] * random.randint(0, 1), "NOUN"]
        tags += [*["ADP", "DET", "NOUN"] * random.randint(0, 1), "PUNCT"]
        sentences.append(([random.choice(WORDS[tag]) for tag in tags], tags))
    return sentences


def toy_meaning(words: list[str]) -> dict[str, str]:
    """What a toy sentence says: who does what, and where if it says so."""
    nouns = [word for word in words if TAG_OF[word] == "NOUN"]
    meaning = {"subject": nouns[0], "action": next(word for word in words if TAG_OF[word] == "VERB")}
    return meaning | ({"placeName": nouns[2]} if len(nouns) > 2 else {})


def write_toy_data(path: Path, count: int = 600) -> Path:
    """Toy sentences with a `tags` column, as JSON Lines."""
    rows = [{"text": " ".join(words), "tags": " ".join(tags)} for words, tags in toy_sentences(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
