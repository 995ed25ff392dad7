"""Templates: words and blanks in order, how long they may get, and how a length is split among blanks."""

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlgen.controls.template import Blank, Template, parse_template
from ctrlgen.errors import UsageError
from ctrlgen.text.joining import write
from ctrlgen.text.tokenizer import WordTokenizer


@pytest.fixture(scope="module")
def tokenizer() -> WordTokenizer:
    return WordTokenizer.train(["The Vaults is near Mary . the"], min_count=1)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("The Vaults ___ near .", ("The", "Vaults", Blank(), "near", ".")),
        ("___", (Blank(),)),
        ("___{3-6} near Mary's pub.", (Blank(3, 6), "near", "Mary", "'s", "pub", ".")),
        ("The_____{4}near___{0 - 2}.", ("The", Blank(4, 4), "near", Blank(0, 2), ".")),
    ],
)
def test_templates(tokenizer: WordTokenizer, text: str, parts: tuple[str | Blank, ...]) -> None:
    assert parse_template(text, tokenizer).parts == parts


TYPED = [
    ("C# 5 - 10 km - see http://a.org/b ___ .", "C# 5 - 10 km - see http://a.org/b x."),
    ("C++ or F# ___, 5 -10 km", "C++ or F# x, 5 -10 km"),
    ("Mail  jo.e@x-y.org, ___!", "Mail  jo.e@x-y.org, x!"),
    ("In the U.S. at 5 a.m. ___", "In the U.S. at 5 a.m. x"),
    ("e.g. J. R. Smith ___ etc.", "e.g. J. R. Smith x etc."),
    ("one - two – ___ — three", "one - two – x — three"),
    ("'hello' she ___, 'bye' ___.", "'hello' she x, 'bye' x."),
    ("the guests' pub ___ the dogs' .", "the guests' pub x the dogs' ."),
    ("👩‍👩‍👧 like ___ 👍🏽🇩🇪", "👩‍👩‍👧 like x 👍🏽🇩🇪"),
    ("“Don’t” ‘go’ ___ ’til ’90s", "“Don’t” ‘go’ x ’til ’90s"),
    ('The CAN\'T-do ___-ness (___) "___"', 'The CAN\'T-do x-ness (x) "x"'),
    ("The ( ___ ) £ ___ family - ___ ___ - friendly", "The (x) £x family - x x - friendly"),
    ("It cannot, can not, gonna ___ do n't", "It cannot, can not, gonna x do n't"),
    ("你好，___ 世界。 ok", "你好，x世界。 ok"),
    ("cafe\u0301\u00a0 in\u00adfo ___", "cafe\u0301\u00a0 in\u00adfo x"),
]


@pytest.mark.parametrize(("template", "text"), TYPED)
@pytest.mark.parametrize("data", [["The Vaults is near Mary . the"], ["I don't go. The U.S. is far."]])
def test_given_text_comes_back_to_the_character(template: str, text: str, data: list[str]) -> None:
    parsed = parse_template(template, WordTokenizer.train(data, min_count=1))
    kept = parsed.fill(len(parsed.parts), seed=0)
    written = write([word or "x" for word in kept], parsed.typed(kept))
    assert written.text == text
    assert "".join(space + word for space, word in written.words()) == text


def test_a_blank_of_no_words_leaves_one_space(tokenizer: WordTokenizer) -> None:
    parsed = parse_template("a ___{0-1} b___{0-1}c ___{0-1} .", tokenizer)
    assert write(["a", "b", "c", "."], parsed.typed(["a", "b", "c", "."])).text == "a bc."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("The Vaults __ near .", "has no blank to fill; write ___"),
        ("", "has no blank to fill"),
        ("The ___{few} .", "'___{few}': write the number of words"),
        ("The ___{} .", "'___{}': write the number of words"),
        ("The ___{6-3} .", "'___{6-3}': the range must rise"),
        ("The ___{0} .", "'___{0}': the range must rise, to at least 1"),
    ],
)
def test_templates_that_make_no_sense(tokenizer: WordTokenizer, text: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_template(text, tokenizer)
    assert message in str(raised.value)


def test_how_long_a_template_may_get() -> None:
    template = Template("", ("a", Blank(2, 3), "b", Blank(0, 4)))
    assert template.lengths(12) == range(4, 10)
    assert template.lengths(6) == range(4, 7)
    assert Template("", (Blank(0, 2),)).lengths(12) == range(1, 3)
    assert Template("", ("a", Blank())).lengths(12) == range(2, 13)
    with pytest.raises(UsageError, match="takes 4 words or more; this model writes at most 3"):
        template.lengths(3)


def test_blanks_fill_the_length_within_their_bounds() -> None:
    template = Template("", ("a", Blank(2, 3), "b", Blank(0, 4), "c"))
    for length in template.lengths(99):
        for seed in range(30):
            words = template.fill(length, seed)
            assert (len(words), words[0], words[-1], words.count("b")) == (length, "a", "c", 1)
            assert words.index("b") - 1 in (2, 3)
            assert words.count(None) == length - 3


@pytest.mark.slow
def test_every_split_between_open_blanks_is_alike() -> None:
    template = Template("", (Blank(), "a", Blank(), "b", Blank()))
    drawn = Counter(template.fill(9, seed) for seed in range(3000))
    assert len(drawn) == 15  # 4 words beyond the first of each, in 3 blanks
    assert all(count == pytest.approx(200, abs=60) for count in drawn.values())


STRETCH = st.text(st.sampled_from("aB.'’“\" -–,n't$£/:@#+C19é你ทำ👩🇩()\u0301\t"), max_size=12)


@given(st.lists(STRETCH, min_size=2, max_size=4))
def test_given_stretches_come_back_whatever_they_are(tokenizer: WordTokenizer, stretches: list[str]) -> None:
    parsed = parse_template("___{1}".join(stretches), tokenizer)
    kept = parsed.fill(len(parsed.parts), seed=0)
    text = write([word or "x" for word in kept], parsed.typed(kept)).text
    assert re.fullmatch(r" ?x ?".join(re.escape(stretch.strip()) for stretch in stretches), text)
