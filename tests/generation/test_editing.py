"""Edits: what obeys comes back as it was, what does not is changed in few words, what must stay stays."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from toy_grammar import toy_sentences

from ctrlgen.errors import UsageError
from ctrlgen.generation.batch import Batch
from ctrlgen.generation.blame import blame, most_to_blame
from ctrlgen.generation.comparing import at_changes, filled, lost
from ctrlgen.generation.editing import Editor, names_of
from ctrlgen.generation.edits import Edited
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.jobs import Job
from ctrlgen.generation.proposals import (
    between,
    clauses,
    deletions,
    drafts,
    exchanges,
    glued,
    insertions,
    rewritings,
    spans,
)
from ctrlgen.settings import Settings

QUICK = Settings(steps=8)
LENGTHS = frozenset(range(1, 13))


@pytest.fixture(scope="module")
def editor(generator: Generator) -> Editor:
    return Editor(generator)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Texts of seven words of the toy grammar."""
    return [" ".join(words) for words, _ in toy_sentences(40, seed=9) if len(words) == 7][:6]


def edited(editor: Editor, text: str, controls: Sequence[str], keep: Sequence[str] = ()) -> Edited:
    (one,) = editor.edit([editor.source(text, controls, keep)], QUICK)
    return one


def word_of(editor: Editor, text: str) -> str:
    """A word in the middle of a text."""
    return editor.model.tokenizer.split(text)[3]


def test_what_a_shorter_text_lost_counts_but_for_what_is_to_blame(editor: Editor, texts: list[str]) -> None:
    words = tuple(editor.model.tokenizer.split(texts[0]))
    (task,) = editor.tasks([editor.source(texts[0], ["length: 7"])])
    task = dataclasses.replace(task, blamed=(2.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0))
    assert lost(task, words) == 0
    assert lost(task, words[1:]) == 0  # the word most to blame
    assert lost(task, words[2:]) == 0.5
    assert lost(task, words[:2]) == 5
    assert lost(task, ("zebra",) * 7) == 0  # as long
    assert lost(task, ("zebra",) * 6) == 1


@pytest.mark.slow
def test_a_text_is_not_better_because_it_is_shorter() -> None:
    editor = Editor(Generator("english"))
    (one,) = editor.edit([editor.source("You should call your mother tonight.", ["mood: question"])])
    assert one.kept > 0.7, one.sample.text


def test_what_obeys_already_comes_back_to_the_character(editor: Editor, texts: list[str]) -> None:
    text = f"  {texts[0]}\t"
    one = edited(editor, text, [f"words: {word_of(editor, text)}", "length: 7"])
    assert one.sample.text == text
    assert (one.kept, one.changes, one.new, one.sample.success) == (1.0, [], set(), True)


@pytest.mark.slow
def test_a_word_to_avoid_is_changed_and_little_else(editor: Editor, texts: list[str]) -> None:
    for text in texts:
        word = word_of(editor, text)
        one = edited(editor, text, [f"not words: {word}"])
        assert one.sample.success
        assert one.kept >= 0.5
        assert word not in one.sample.tokens


def test_a_length_that_is_asked_for_is_kept_to(editor: Editor, texts: list[str]) -> None:
    one = edited(editor, texts[1], ["length: 5"])
    assert len(one.sample.tokens) == 5
    assert one.kept >= 3 / 7


def test_phrases_to_keep_and_unknown_words_stay(editor: Editor, texts: list[str]) -> None:
    words = editor.model.tokenizer.split(texts[2])
    text = " ".join([*words[:2], "Zorkel", *words[2:]])
    for keep in (words[0], " ".join(words[:2])):
        one = edited(editor, text, [f"not words: {words[4]}"], [keep.upper()])
        assert one.sample.text.startswith(keep)
        assert "Zorkel" in one.sample.tokens
        assert one.sample.success


@pytest.mark.slow
def test_edits_do_not_depend_on_their_company(editor: Editor, texts: list[str]) -> None:
    sources = [editor.source(text, [f"not words: {word_of(editor, text)}"], seed=i) for i, text in enumerate(texts)]
    together = [one.sample.text for one in editor.edit(sources, QUICK)]
    assert [editor.edit([source], QUICK)[0].sample.text for source in sources] == together


def test_several_edits_of_one_text(editor: Editor, texts: list[str]) -> None:
    source = editor.source(texts[3], [f"not words: {word_of(editor, texts[3])}"], n=3, seed=5, id="x")
    found = editor.edit([source], QUICK)
    assert [(one.sample.id, one.sample.index, one.sample.seed) for one in found] == [("x", i, 5 + i) for i in range(3)]


def test_the_answer_as_json_says_what_was_changed(editor: Editor, texts: list[str]) -> None:
    word = word_of(editor, texts[4])
    said = edited(editor, texts[4], [f"not words: {word}"]).as_json()
    assert said["source"] == texts[4]
    assert any(word in change["from"] for change in said["changes"])
    assert 0 < said["kept"] < 1


def test_what_cannot_be_edited_is_refused(editor: Editor) -> None:
    with pytest.raises(UsageError, match="no text to edit"):
        editor.source("  ", ["length: 5"])
    with pytest.raises(UsageError, match="has 13 words; this model writes at most 12"):
        editor.source("the " * 13, ["length: 5"])
    with pytest.raises(UsageError, match="'dog' is to be kept, but the text does not have it"):
        editor.source("the cat", ["length: 5"], keep=["dog"])


def test_words_that_speak_against_a_control_are_to_blame(editor: Editor, texts: list[str]) -> None:
    text = texts[0]
    words = editor.model.tokenizer.split(text)
    request = editor.generator.request([f"not words: {words[3]}"])
    batch = Batch(editor.generator.reader, [Job(request, 0, 0, 0, 0, len(words), tuple(words))])
    taken = blame(editor.model, filled(batch), batch.lengths, batch.terms)
    assert taken.shape == (1, len(words))
    assert words[int(taken[0].argmax())] == words[3]
    assert bool((taken >= 0).all())
    assert not blame(editor.model, filled(batch), None, []).any()


def test_little_blame_is_none_and_kept_words_have_none() -> None:
    assert most_to_blame([0.0, 10.0, 0.1, 5.0], set(), set()) == (0.0, 10.0, 0.0, 5.0)
    assert most_to_blame([0.0, 10.0, 0.1, 5.0], {1}, set()) == (0.0, 0.0, 0.0, 5.0)


def test_unknown_words_are_to_blame_only_where_one_of_them_is_most() -> None:
    assert most_to_blame([0.0, 10.0, 0.0, 5.0], set(), {3}) == (0.0, 10.0, 0.0, 0.0)
    assert most_to_blame([0.0, 10.0, 0.0, 5.0], set(), {1, 3}) == (0.0, 10.0, 0.0, 5.0)


def test_a_name_with_an_unknown_word_is_unknown_as_a_whole() -> None:
    assert names_of("at The Zorkel Inn it is Qux".split(), [2, 6]) == {1, 2, 3, 6}
    assert names_of("the zorkel Inn".split(), [1]) == {1}
    assert names_of([], []) == set()


def test_spans_join_across_one_word_that_is_not_fixed() -> None:
    assert spans({1, 2, 4, 7}, set()) == [(1, 5), (7, 8)]
    assert spans({1, 2, 4, 7}, {3}) == [(1, 3), (4, 5), (7, 8)]


def test_rewritings_open_only_words_to_blame_or_beside_the_worst() -> None:
    words = list("abcdef")
    found = rewritings(words, [0, 0, 2.0, 0, 0, 1.0], {1}, LENGTHS)
    assert all(template[:2] == ("a", "b") for template in found)
    assert ("a", "b", None, "d", "e", "f") in found
    assert ("a", "b", None, None, "d", "e", "f") in found
    assert ("a", "b", None, "d", "e", None) in found
    assert rewritings(words, [0.0] * 6, set(), LENGTHS) == []
    assert rewritings(words, [0, 1.0, 0, 0, 0, 0], {0, 2}, frozenset([6])) == [("a", None, "c", "d", "e", "f")]


def test_a_phrase_stands_instead_of_words_to_blame() -> None:
    found = exchanges(list("abcdef"), [0, 0, 2.0, 1.0, 0, 0], {1}, ("x", "y"))
    assert found == [tuple("abxyef"), tuple("abxydef"), tuple("abcxyef")]


def test_what_stands_beside_a_phrase_already_is_not_said_twice() -> None:
    assert between(["at", "The"], ["The", "Mill"], ["."]) == ["Mill"]
    assert between(["is", "5"], ["5", "out", "of", "5"], ["out", "of", "5"]) == []
    assert between(["a"], ["5", "out", "of", "5"], ["out", "of", "5"]) == ["5"]
    assert between([], ["x"], []) == ["x"]


def test_places_are_taken_out_with_words_beside_them() -> None:
    found = deletions(list("abcdef"), [0, 0, 1.0, 0, 0, 0], {0})
    assert tuple("abdef") in found
    assert tuple("aef") in found
    assert tuple("af") in found
    assert all(template[0] == "a" for template in found)


def test_phrases_are_put_in_but_not_into_what_is_fixed() -> None:
    found = insertions(list("abc"), [None], {0, 1})
    assert found == [(None, *"abc"), (*"ab", None, "c"), (*"abc", None)]
    beside = glued(list("ab"), 1, ["x"])
    assert ("a", None, "x", "b") in beside
    assert ("a", "x", None, None, "b") in beside
    assert all(0 < template.count(None) <= 3 for template in beside)
    ends = clauses([*"ab", "."], ["x"], 2)
    assert ("a", "b", None, None, "x", ".") in ends
    assert ("a", "b", ".", None, None, None, "x", None) in ends


@pytest.mark.slow
def test_words_that_are_asked_for_are_put_in(editor: Editor, texts: list[str]) -> None:
    for text in texts:
        have = editor.model.tokenizer.split(text)
        wanted = next(word for word in ("red", "old", "small") if word not in have)
        one = edited(editor, text, [f"words: {wanted}"])
        assert one.sample.success
        assert one.kept >= 6 / 7


def test_drafts_have_about_as_many_words_and_the_fixed_ones_in_place() -> None:
    found = list(drafts(list("abcd"), {0, 3}, 2, LENGTHS))
    assert sorted(map(len, found)) == [3, 4, 5, 6]
    assert all(template[0] == "a" and template[-1] == "d" for template in found)
    assert all(word is None for template in found for word in template[1:-1])
    assert [len(template) for template in drafts(list("abcd"), set(), 4, frozenset([9]))] == [9]


def test_a_model_of_fixed_length_cannot_edit(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(generator.model), "fixed_length", property(lambda model: True))
    with pytest.raises(UsageError, match="one fixed length"):
        Editor(generator)


def test_blame_is_finite_where_rows_differ_in_length(editor: Editor, texts: list[str]) -> None:
    rows = [editor.model.tokenizer.split(text)[:size] for text, size in zip(texts, (7, 5, 6), strict=False)]
    jobs = [
        Job(editor.generator.request([f"not words: {words[0]}"]), i, 0, 0, 0, len(words), tuple(words))
        for i, words in enumerate(rows)
    ]
    batch = Batch(editor.generator.reader, jobs)
    taken = blame(editor.model, filled(batch), batch.lengths, batch.terms)
    assert bool(torch.isfinite(taken).all())
    assert not taken[1, 5:].any()


def test_places_at_changes() -> None:
    source = ("a", "b", "c", "d")
    assert at_changes(source, source) == set()
    assert at_changes(source, ("a", "x", "c", "d")) == {0, 1, 2}
    assert at_changes(source, ("a", "c", "d")) == {0, 1}
    assert at_changes(source, ("a", "b", "c", "d", "x")) == {3, 4}
