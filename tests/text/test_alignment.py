"""What texts have in common, what one changes in another, and texts written as their sources are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlgen.text.alignment import Change, changed, changes, common_words, selections, written
from ctrlgen.text.tokenizer import WordTokenizer

WORDS = st.lists(st.sampled_from(["a", "b", "c", "B"]), max_size=7)
TOKENIZER = WordTokenizer.train(["The pub isn't near, it is (quite) far - £20."], min_count=1)


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        ("a b c", "a b c", [(0, 0), (1, 1), (2, 2)]),
        ("a b c d", "x b d y", [(1, 1), (3, 2)]),
        ("The pub", "a the PUB", [(0, 1), (1, 2)]),
        ("a b", "c", []),
    ],
)
def test_common_words(one: str, other: str, common: list[tuple[int, int]]) -> None:
    assert common_words(one.split(), other.split()) == common


@given(WORDS, WORDS)
def test_changes_make_the_text_of_the_source(source: list[str], text: list[str]) -> None:
    found = changes(source, text)
    assert list(map(str.casefold, changed(source, found))) == list(map(str.casefold, text))
    assert changed(source, []) == source


@pytest.mark.slow
@given(WORDS, WORDS)
def test_selections_are_some_of_the_changes_in_order(source: list[str], text: list[str]) -> None:
    found = changes(source, text)
    some = list(selections(found))
    assert len(set(some)) == len(some)
    assert all(list(few) == [change for change in found if change in few] for few in some)
    if found:
        assert tuple(found) in some
        assert {(change,) for change in found} <= set(some)


def test_few_changes_are_combined_in_every_way() -> None:
    assert len(list(selections([Change(i, i + 1, ()) for i in range(4)]))) == 15


def edit(source: str, old: str, new: str) -> str:
    """The source as `written` gives it after one word was exchanged for others."""
    pieces = TOKENIZER.pieces(source)
    words = [word for piece in pieces for word in (new.split() if piece.text == old else [piece.text])]
    text = written(source, pieces, words)
    assert len(text.offsets) == len(words)
    return text.text


@pytest.mark.parametrize(
    "source",
    [
        "  The   pub, isn't\tnear. ",
        "“The pub”—it’s near!",
        "The pub ( near ) , £ 20 - 25 .",
        "http://a.org/b is C++ 😀",
        "pub",
    ],
)
def test_what_is_not_changed_comes_back_to_the_character(source: str) -> None:
    assert edit(source, "never there", "") == source


@pytest.mark.parametrize(
    ("source", "old", "new", "expected"),
    [
        ("The  pub isn't near, it’s far!", "near", "cheap", "The  pub isn't cheap, it’s far!"),
        ("The pub is near.", "near", "far away", "The pub is far away."),
        ("The pub is near.", "is", "", "The pub near."),
        ("The pub , near .", "near", "far away", "The pub , far away ."),  # spaced as the source is
        (" The pub.\n", "The", "A", "A pub.\n"),
        ("The family-friendly pub", "family", "child", "The child-friendly pub"),
    ],
)
def test_what_is_changed_is_spaced_as_the_source_is(source: str, old: str, new: str, expected: str) -> None:
    assert edit(source, old, new) == expected
