"""Does `ctrlgen augment` help a classifier of few texts? Its accuracy on held-out texts, with and without new ones.

    python benchmarks/augmenting.py few.jsonl more.csv test.jsonl --label-column intent

few.jsonl: the labelled texts that there were; more.csv: what `ctrlgen augment` made of them. The classifiers are
logistic regressions on TF-IDF of words and word pairs, and on the sentence vectors of all-MiniLM-L6-v2. Beside the new
texts stand as many edited ones: two words of a text exchanged, or each left out with a probability of 0.1 (of the edits
of Wei and Zou 2019 the two that need no dictionary). Needs scikit-learn and the extra `eval`.
"""

from __future__ import annotations

import argparse
from collections import Counter
from random import Random

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from ctrlgen.data.texts import load_data
from ctrlgen_classifiers.sentence_encoder import sentence_codes

Labelled = list[tuple[str, str]]  # a text and its label
LEAVING_OUT = 0.1


def read(source: str, text_column: str | None, label_column: str) -> Labelled:
    rows, texts = load_data(source, text_column)
    return [(str(row[texts]), str(row[label_column])) for row in rows if row[label_column]]


def edited(rows: Labelled, more: Labelled, rng: Random) -> Labelled:
    """As many edited texts of each label as there are new ones."""
    found = []
    for label, count in sorted(Counter(label for _, label in more).items()):
        texts = [text for text, of in rows if of == label]
        for _ in range(count):
            words = rng.choice(texts).split()
            if rng.random() < 0.5 and len(words) > 1:
                i, j = rng.sample(range(len(words)), 2)
                words[i], words[j] = words[j], words[i]
            else:
                words = [word for word in words if rng.random() >= LEAVING_OUT] or words
            found.append((" ".join(words), label))
    return found


def accuracies(train: Labelled, test: Labelled) -> tuple[float, float]:
    """On TF-IDF, on sentence vectors."""
    (texts, labels), (others, right) = zip(*train, strict=True), zip(*test, strict=True)
    words = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=1000, C=10))
    vectors = LogisticRegression(max_iter=1000, C=10)
    of_words = float(np.mean(words.fit(texts, labels).predict(others) == np.array(right)))
    vectors.fit(sentence_codes(texts).numpy(), labels)
    return of_words, float(np.mean(vectors.predict(sentence_codes(others).numpy()) == np.array(right)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("few")
    parser.add_argument("more")
    parser.add_argument("test")
    parser.add_argument("--label-column", required=True)
    parser.add_argument("--text-column")
    given = parser.parse_args()
    few, more, test = (
        read(source, given.text_column, given.label_column) for source in (given.few, given.more, given.test)
    )
    known = {label for _, label in few}
    test = [(text, label) for text, label in test if label in known]
    print(f"{len(few)} texts, {len(more)} new ones, {len(test)} held out; accuracy on TF-IDF, on sentence vectors")
    for name, train in (
        ("alone", few),
        ("with word edits", few + edited(few, more, Random(0))),
        ("with new texts", few + more),
    ):
        of_words, of_vectors = accuracies(train, test)
        print(f"{name:16} {of_words:.1%}  {of_vectors:.1%}")


if __name__ == "__main__":
    main()
