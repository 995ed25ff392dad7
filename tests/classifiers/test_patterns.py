"""The language of patterns: what is read, what is refused and where, and what the words of a pattern stand for."""

from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlgen.errors import UsageError
from ctrlgen.generation.generator import Generator
from ctrlgen.text.tokenizer import WordTokenizer
from ctrlgen_classifiers.patterns.syntax import MOST_DEEP, Parser, escape
from ctrlgen_classifiers.words import Matches, Wanted, Words

TEXT = 'the The cat cats dog runs ran run is cheap well-known ( ) * | ~ / < 3 . , ? " ... a b km/h say Rain rains'
MODEL: Any = SimpleNamespace(tokenizer=WordTokenizer.train([TEXT], min_count=1))
MATCHES, WORDS = Matches(MODEL), Words(MODEL)


def matches(pattern: str, text: str) -> bool:
    (verdict,) = MATCHES.check([text.split()], [MATCHES.parse(pattern)])
    assert MATCHES.automaton(MATCHES.parse(pattern)).accepts(MODEL.tokenizer.ids(text.split())) is verdict.success
    return verdict.success is True


@pytest.mark.parametrize(
    ("pattern", "texts", "others"),
    [
        ("the cat", ["the cat", "The cat"], ["the dog", "the", "the cat ."]),
        ("the * .", ["the dog ."], ["the .", "the cat dog ."]),
        ("the ... .", ["the .", "the cat dog runs ."], ["the", "the ."[:3]]),
        ("the … .", ["the .", "the cat ."], ["cat ."]),
        ("the (cat|dog runs) .", ["the cat .", "the dog runs ."], ["the dog .", "the cat runs ."]),
        ("cat|the dog", ["cat", "the dog"], ["the cat"]),
        ("the (cat)? runs", ["the runs", "the cat runs"], ["the cat cat runs"]),
        ("(cat|dog)+ runs", ["cat runs", "dog cat runs"], ["runs"]),
        ("(cat dog)* runs", ["runs", "cat dog cat dog runs"], ["cat runs"]),
        ("cat{2}", ["cat cat"], ["cat", "cat cat cat"]),
        ("cat{2,3}", ["cat cat", "cat cat cat"], ["cat", "cat cat cat cat"]),
        ("cat{2,} .", ["cat cat .", "cat cat cat cat ."], ["cat ."]),
        ("cat{,2} .", [".", "cat cat ."], ["cat cat cat ."]),
        ("*{2,3} .", ["a b .", "a b a ."], ["a .", "a b a b ."]),
        ("(the (cat|dog))? runs", ["runs", "the dog runs"], ["the runs"]),
        ("/ca.*/ .", ["cat .", "cats ."], ["the .", "run ."]),
        ("/T.*/ cat", ["The cat"], ["the cat"]),
        ("/(?i)T.*/ cat", ["The cat", "the cat"], ["dog cat"]),
        ("/[^a-z]+/", ["3", "."], ["cat"]),
        ("run~ .", ["run .", "runs .", "ran ."], ["rains .", "cat ."]),
        ("(rain~|cat~) .", ["Rain .", "rains .", "cats ."], ["run ."]),
        ("is it cheap?"[:2] + " cheap?", ["is cheap ?"], ["is cheap", "is"]),
        (r"\( cat \) \* \| \~ \/ \<", ["( cat ) * | ~ / <"], ["( dog ) * | ~ / <"]),
        ("cat / dog < 3", ["cat / dog < 3"], ["cat dog < 3"]),
        ("say...", ["say ..."], ["say", "say cat"]),
        (r"say \...", ["say ..."], ["say cat"]),
        ("cat,", ["cat ,"], ["cat"]),
        ('"cat, dog"', ["cat , dog"], ["cat dog"]),
    ],
)  # fmt: skip
def test_what_a_pattern_means(pattern: str, texts: list[str], others: list[str]) -> None:
    for text in texts:
        assert matches(pattern, text), text
    for text in others:
        assert not matches(pattern, text), text


@pytest.mark.parametrize(
    ("value", "patterns"),
    [
        ("cat, the dog", ["cat", "the dog"]),
        ("cat|dog, run~, cat{2,3}", ["cat|dog", "run~", "cat{2,3}"]),
        ("cat ... dog", ["cat ... dog"]),
        ('"cat, dog" , ,the', ["cat, dog", "the"]),
        ('"say ""cat"""', ['say "cat"']),
        ("(cat, dog)", ["(cat, dog)"]),
        ("/(cat){1,2}/, the", ["/(cat){1,2}/", "the"]),
        (r"cat\, dog", [r"cat\, dog"]),
        ("*, ...", ["*", "..."]),
    ],
)
def test_a_list_is_split_at_its_commas(value: str, patterns: list[str]) -> None:
    assert [pattern.text for pattern in WORDS.parse(value).patterns] == patterns


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("the (cat", "character 5: this bracket is not closed; write \\( for the mark itself: the >(<cat"),
        ("the cat) .", "character 8: this bracket closes nothing; write \\) for the mark itself: the cat>)< ."),
        ("the () cat", "character 5: nothing stands in these brackets; write \\( and \\) for the marks themselves"),
        ("the (cat|) .", "character 9: nothing stands after this bar; write (...)? for what may be left out"),
        ("the (|cat) .", "character 6: nothing stands before this bar"),
        ("(cat)** .", "character 7: a second repetition; put brackets around the first: (cat)*>*< ."),
        ("cat{x}", "character 4: write a count as {2}, {2,3}, {2,} or {,3}, or \\{ for the mark itself: cat>{<x}"),
        ("cat{3,2}", "character 4: the count must rise, to at least 1"),
        ("cat{0}", "character 4: the count must rise, to at least 1"),
        ("the *? .", "character 5: to repeat any word, write (*)?"),
        ("the ...{2}", "character 8: ... is any number of words already; write *{2,3} for 2 to 3"),
        ("the /ca .", "character 5: this expression has no slash at its end; write \\/ for the mark itself: the >/<ca"),
        ("the /c[a/ .", "character 5: not a regular expression: missing ]: [a: the >/<c[a/ ."),
        ("/x+/", "character 1: no word of this model's vocabulary matches /x+/ as a whole; .* stands for any charac"),
        ("cat\\", "character 4: nothing stands after this backslash; write it twice for itself"),
        ("the km-h~", "character 9: 'km-h' is 3 words here; put one, or brackets"),
        ("the\n(cat\t.", "character 5: this bracket is not closed; write \\( for the mark itself: the >(<cat ."),
        ("the kat", "the word 'kat' is not in this model's vocabulary. Did you mean cat?"),
        ("a " * 30 + "(" + " b" * 30, "character 61: this bracket is not closed; write \\( for the mark itself: ..."),
        ("(" * (MOST_DEEP + 1) + "a", f"character {MOST_DEEP + 1}: more than {MOST_DEEP} brackets within each other"),
    ],
)  # fmt: skip
def test_a_mistake_is_pointed_at(value: str, message: str) -> None:
    for kind in (MATCHES, WORDS):
        with pytest.raises(UsageError) as raised:
            kind.parse(value)
        assert str(raised.value).startswith(f"{kind.kind}: {message}")
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a{2001}", "matches: too large (more than 2000 words with its repetitions written out)"),
        ("((a{100}){100}){100}", "matches: too large (more than 2000 words with its repetitions written out)"),
        ("... a *{9}", "matches: too large (more than 512 states)"),
        ("a " * 512, "matches: too large (more than 512 states)"),
        ("... a *{30}", "matches: too large (more than 512 states)"),
    ],
)
def test_an_automaton_is_bounded(value: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        MATCHES.automaton(MATCHES.parse(value))
    assert str(raised.value) == message


def test_long_values_are_read_in_linear_time() -> None:
    """Would never end otherwise."""
    for value in ("(", "a|", "/a", "a{", "~", "*?", '"a'):
        with pytest.raises(UsageError):
            WORDS.parse(5_000 * value + "x")
    assert len(WORDS.parse(5_000 * "a b, ").patterns) == 5_000


PIECES = '( ) | * ... ? + {2} {1,3} { } ~ cat the / /c.*/ < " , .'.split()


def refusal(kind: Words, value: str) -> str | None:
    """What is said of a value that is refused."""
    try:
        kind.automaton(kind.parse(value))
    except UsageError as error:
        return str(error)
    return None


@given(st.lists(st.sampled_from([*PIECES, " ", " ", "\\", "\n", "\0"]), min_size=1, max_size=12).map("".join))
def test_anything_is_read_or_refused_in_one_line(value: str) -> None:
    texts = [["the", "cat", "."], ["cat"], ["the", "the", "cats"]]
    for kind in (MATCHES, WORDS):
        said = refusal(kind, value)
        if said is not None:
            assert "\n" not in said
            continue
        target = kind.parse(value)
        for text, verdict in zip(texts, kind.check(texts, [target] * len(texts)), strict=True):
            assert kind.automaton(target).accepts(MODEL.tokenizer.ids(text)) is verdict.success


def test_a_tag_is_a_set_of_words() -> None:
    tokenizer = MODEL.tokenizer
    kind = Words(MODEL)
    nouns = np.isin(np.arange(len(tokenizer)), tokenizer.ids(["cat", "dog"]))
    kind.words.readings = lambda: {"NOUN": nouns}
    for tag in ("NOUN", "noun"):
        target = kind.parse(f"the <{tag}> runs")
        texts = [["The", "dog", "runs"], ["the", "the", "runs"], ["the", "ox", "runs"]]
        assert [verdict.success for verdict in kind.check(texts, [target] * 3)] == [True, False, False]
        assert kind.automaton(target).accepts(tokenizer.ids(["a", "the", "cat", "runs"]))
        assert not kind.automaton(target).accepts(tokenizer.ids(["a", "the", "a", "runs"]))
    with pytest.raises(UsageError, match=r"character 5: unknown tag 'NUON'\. Did you mean NOUN\?"):
        kind.parse("the <NUON>")


@pytest.mark.parametrize("text", ["the cat", "( cat ) |", '* / < " ... ~ \\', "say ...", "cat{2}", "/cat/"])
def test_an_escaped_text_stands_for_itself(text: str) -> None:
    words = MODEL.tokenizer.split(text)
    pattern = Parser("matches", escape(text), MODEL.tokenizer.split).pattern()
    assert pattern is not None
    (verdict,) = MATCHES.check([words], [Wanted((pattern,))])
    assert verdict.success is True


def test_a_word_that_came_later_is_a_word_of_patterns() -> None:
    """The vocabulary of one request may have more words than the model was trained with."""
    wider: Any = SimpleNamespace(tokenizer=MODEL.tokenizer.with_words(["Zog"]))
    kind = Matches(wider)
    kind.words.readings = lambda: {"NOUN": np.isin(np.arange(len(MODEL.tokenizer)), MODEL.tokenizer.ids(["cat"]))}
    for pattern in ("the (Zog|<NOUN>)", "the zog", "the /Z.*/", "the *"):
        assert kind.automaton(kind.parse(pattern)).accepts(wider.tokenizer.ids(["the", "Zog"]))
    assert not kind.automaton(kind.parse("the <NOUN>")).accepts(wider.tokenizer.ids(["the", "Zog"]))


def test_an_expression_sees_a_sentences_first_word_as_it_is_inside() -> None:
    texts = ["The cat sees the dog.", "The dog sees the cat.", "Mary sees the cat.", "Mary sees the dog."]
    cased: Any = SimpleNamespace(tokenizer=WordTokenizer.train(texts, min_count=1, truecase=True))
    kind = Matches(cased)
    capital, small = kind.parse("/[A-Z].*/ ..."), kind.parse("/[a-z]+/ ...")
    for text, capitalised in (("The cat sees Mary .", False), ("Mary sees the cat .", True)):
        words = text.split()
        verdicts = kind.check([words, words], [capital, small])
        assert [verdict.success for verdict in verdicts] == [capitalised, not capitalised]
        ids = cased.tokenizer.ids(words)
        assert [kind.automaton(target).accepts(ids) for target in (capital, small)] == [capitalised, not capitalised]


def test_a_pattern_taken_from_a_text_matches_it(generator: Generator) -> None:
    classifier = generator.controls.classifier("matches")
    known = [word for word in generator.model.tokenizer.words if word.isalpha() or word == "."]
    rng = Random(0)
    texts = [rng.choices(known, k=rng.randint(2, 12)) for _ in range(60)]
    patterns = classifier.values_of(texts, [{}] * 60, rng)
    for words, pattern in zip(texts, patterns, strict=True):
        assert pattern is not None
        (verdict,) = classifier.check([words], [classifier.parse(pattern)])
        assert verdict.success, pattern
    for mark in ("*", "...", "|", "{", "~", "<"):
        assert any(mark in str(pattern) for pattern in patterns), mark
