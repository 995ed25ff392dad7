"""Words to ids and back, over raw text and over text already split."""

from itertools import chain, pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ctrlgen.tokenizer import END, PAD, SPECIAL, UNK, WordTokenizer, detokenize, is_split

SPLIT = [
    "The Vaults is a family - friendly pub near St. James , £ 20 - 25 .",
    'Café Rouge \'s food is " great " ( they say ) ... at £ 5. near St. James .',
    "It does n't cost 5 pounds . The pub 's rating is 5 out of 5 .",
]
RAW = [
    "The Vaults is a family-friendly pub, £20-25.",
    "Café Rouge's food is \"great\" (they say)... The pub isn't cheap!",
]
SENTENCES = [
    ("family - friendly", "family-friendly"),
    ("£ 20 - 25 .", "£20-25."),
    ("£ 20 - £ 25", "£20-£25"),
    ("The pub 's food", "The pub's food"),
    ("They 're here , are n't they ?", "They're here, are n't they?"),
    ("It isn 't", "It isn't"),
    ('He said " no " , twice .', 'He said "no", twice.'),
    ("a pub ( near the river ) .", "a pub (near the river)."),
    ("one [ two ] three ; four : five !", "one [two] three; four: five!"),
    ("well ... yes", "well... yes"),
    ("well … yes", "well… yes"),
    ("50 % off and / or free", "50% off and/or free"),
    ("“ Café ” is open", "“Café” is open"),
    ("Rouge ’s bar", "Rouge’s bar"),
    ("- a list item", "- a list item"),
    ("1,200 people at 5.30", "1,200 people at 5.30"),
]


def train(texts: list[str], min_count: int = 1, max_size: int = 30_000) -> WordTokenizer:
    return WordTokenizer.train(texts, min_count, max_size)


@pytest.fixture(scope="module")
def raw_tokenizer() -> WordTokenizer:
    return train(RAW)


@pytest.mark.parametrize(("words", "text"), SENTENCES)
def test_detokenize_writes_what_a_person_would(words: str, text: str) -> None:
    assert detokenize(words.split()) == text


def test_detokenize_of_no_words_is_empty() -> None:
    assert detokenize([]) == ""


@pytest.mark.parametrize("words", [words for words, _ in SENTENCES if "n't" not in words])
@pytest.mark.parametrize("trained_on", [SPLIT, RAW], ids=["split", "raw"])
def test_split_undoes_detokenize(words: str, trained_on: list[str]) -> None:
    assert train(trained_on).split(detokenize(words.split())) == words.split()


WORD = st.sampled_from("pub family café 20 25 5.30 naïve Zürich".split())
PIECE = st.one_of(
    WORD,
    WORD,
    st.sampled_from(", . ; : ! ? ) ] % ( [ £ $ - / ... … 's 're ’s".split()),
    st.text("abcdefgéüñ", min_size=1, max_size=5),
    st.integers(0, 9999).map(str),
)


@given(st.lists(PIECE, min_size=1, max_size=12))
def test_split_undoes_detokenize_of_any_words(raw_tokenizer: WordTokenizer, words: list[str]) -> None:
    assume(not any(set(a + b) == {"."} for a, b in pairwise(words)))  # two runs of dots become one
    assert raw_tokenizer.split(detokenize(words)) == words


@given(st.text(max_size=40))
def test_split_loses_no_character_and_is_stable(raw_tokenizer: WordTokenizer, text: str) -> None:
    words = raw_tokenizer.split(text)
    assert "".join(words) == "".join(text.split())
    assert raw_tokenizer.split(" ".join(words)) == words


@given(st.lists(st.sampled_from("The pub 's café is near £ 20 . , unseen".split()), max_size=10))
def test_decode_undoes_ids_but_for_unknown_words(raw_tokenizer: WordTokenizer, words: list[str]) -> None:
    expected = [word if word in raw_tokenizer else UNK for word in words]
    assert raw_tokenizer.decode(raw_tokenizer.ids(words)) == expected


def test_raw_and_split_text_are_told_apart() -> None:
    assert is_split(SPLIT)
    assert not is_split(RAW)


@pytest.mark.parametrize("trained_on", [SPLIT, RAW], ids=["split", "raw"])
def test_users_may_type_raw_or_split_text(trained_on: list[str]) -> None:
    tokenizer = train(trained_on)
    raw = 'Café Rouge\'s "family-friendly" pub, £20-25.'
    split = 'Café Rouge \'s " family - friendly " pub , £ 20 - 25 .'
    assert tokenizer.split(raw) == tokenizer.split(split) == split.split()


def test_training_ids_of_split_text_are_its_chunks() -> None:
    tokenizer = train(SPLIT)
    assert tokenizer.encode_training(SPLIT) == [tokenizer.ids(text.split()) for text in SPLIT]
    assert "5." in tokenizer
    assert "n't" in tokenizer


def test_training_ids_of_raw_text_are_its_encoding() -> None:
    tokenizer = train(RAW)
    assert tokenizer.encode_training(RAW) == [tokenizer.encode(text) for text in RAW]
    assert tokenizer.unk_id not in chain(*tokenizer.encode_training(RAW))


def test_a_known_abbreviation_stays_whole_and_a_typo_does_not() -> None:
    """`St.` is in the vocabulary and `St` is not; `5.` was seen once, `5` and `.` more often."""
    assert train(SPLIT).split("St. James costs 5.") == ["St.", "James", "costs", "5", "."]


def test_the_vocabulary_starts_with_the_special_tokens_and_falls_in_frequency() -> None:
    tokenizer = train(["b b b a a c"])
    assert tokenizer.words == [*SPECIAL, "b", "a", "c"]
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.end_id) == (0, 1, 2)
    assert len(tokenizer) == 6
    assert "b" in tokenizer
    assert "d" not in tokenizer
    assert not any(token in tokenizer for token in SPECIAL)


def test_rare_words_are_unknown() -> None:
    tokenizer = train(["pub pub bar"], min_count=2)
    assert tokenizer.words == [*SPECIAL, "pub"]
    assert tokenizer.encode("pub bar") == [3, tokenizer.unk_id]
    assert tokenizer.encode_training(["bar pub"]) == [[tokenizer.unk_id, 3]]


def test_the_vocabulary_has_a_largest_size() -> None:
    assert train(["c c c b b a"], max_size=5).words == [*SPECIAL, "c", "b"]


def test_decode_stops_at_the_end_and_drops_padding() -> None:
    tokenizer = train(["a b"])
    a, b = tokenizer.ids(["a", "b"])
    assert tokenizer.decode([tokenizer.pad_id, a, tokenizer.end_id, b]) == ["a"]
    assert tokenizer.decode([a, tokenizer.pad_id, b]) == ["a", "b"]
    assert tokenizer.decode([]) == []


@pytest.mark.parametrize("trained_on", [SPLIT, RAW], ids=["split", "raw"])
def test_save_and_load_keep_everything(trained_on: list[str], tmp_path: Path) -> None:
    tokenizer, path = train(trained_on), tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_json(), encoding="utf-8")
    loaded = WordTokenizer.load(path)
    assert loaded.words == tokenizer.words
    assert loaded.to_json() == tokenizer.to_json()
    text = "The family-friendly pub, £20-25. Unseen Café!"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.encode_training(trained_on) == tokenizer.encode_training(trained_on)


def test_words_with_accents_are_one_word() -> None:
    tokenizer = train(RAW)
    assert tokenizer.split("Café crème, naïve e\u0301tude") == ["Café", "crème", ",", "naïve", "\u00e9tude"]
    assert tokenizer.encode("Cafe\u0301") == tokenizer.encode("Café")
    assert "Café" in tokenizer


def test_a_word_that_begins_with_a_digit_stays_whole() -> None:
    assert train(RAW).split("the 3rd at 7pm costs 1,250.50 or 20-25") == [
        "the", "3rd", "at", "7pm", "costs", "1,250.50", "or", "20", "-", "25"
    ]  # fmt: skip


def test_special_tokens_typed_by_a_user_are_not_special() -> None:
    tokenizer = train(RAW)
    for token in (PAD, END):
        assert not {tokenizer.pad_id, tokenizer.end_id} & set(tokenizer.encode(f"a {token} b"))
