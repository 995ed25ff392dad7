"""Sentences whose every word has one tag, so that tests know what is right without a tagger."""

from random import Random

WORDS = {
    "DET": ("the", "a"),
    "ADJ": ("red", "small", "old"),
    "NOUN": ("cat", "dog", "river", "house"),
    "VERB": ("sees", "likes", "finds"),
    "ADP": ("near", "by"),
    "PUNCT": (".",),
}
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
