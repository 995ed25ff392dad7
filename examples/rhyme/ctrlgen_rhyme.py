"""`rhyme: pub`: the last word is spelled like the given one from its last vowels on, and is another word."""

import re

import torch

from ctrlgen import Classifier, UsageError, Verdict


def rhymes(word, target):
    one, other = (re.search(r"[aeiouy]+[^aeiouy]*e?$", text.casefold()) for text in (word, target))
    return word.isalpha() and word.casefold() != target and bool(one and other) and one[0] == other[0]


class Rhyme(Classifier):
    summary, syntax, example = "the last word rhymes, by its spelling", "rhyme: WORD", "rhyme: clear"
    oracle, trained = "comparing the letters", False

    def __init__(self, words, device):
        self.words = words
        self.marks = torch.tensor([not word.isalpha() for word in words], device=device)  # (V,)

    @classmethod
    def load(cls, model, name):
        return cls(model.tokenizer.words, model.device)

    def parse(self, value):
        target = value.strip().casefold()
        if not any(rhymes(word, target) for word in self.words):
            raise UsageError(f"rhyme: no word of this model rhymes with {value[:40]!r}")
        return target

    def encode(self, targets, lengths):
        return torch.tensor([[rhymes(word, target) for word in self.words] for target in targets])  # (B, V)

    def log_prob(self, denoised, rhyming):
        """log(p(it stands at the end) + p(a mark stands there, and it before))."""
        p, rows, last = denoised.known_probs, torch.arange(len(rhyming)), denoised.lengths - 1
        at_end, before = p[rows, last], p[rows, (last - 1).clamp(min=0)]  # (B, V)
        closed = (at_end * self.marks).sum(-1) * (before * rhyming).sum(-1) * (last > 0)
        return ((at_end * rhyming).sum(-1) + closed).clamp(min=1e-9).log()

    def check(self, texts, targets):
        lasts = [next((word for word in reversed(words[-2:]) if word.isalpha()), "") for words in texts]
        return [Verdict(rhymes(last, target), f"ends in {last!r}") for last, target in zip(lasts, targets, strict=True)]
