"""Words to ids and back, over raw text and over text already split."""

import json
import re
import string
from itertools import chain, pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from ctrlgen.errors import CtrlgenError
from ctrlgen.text.joining import detokenize
from ctrlgen.text.splitting import OLD_PATTERN, plain, sentence_starts
from ctrlgen.text.tokenizer import END, PAD, SPECIAL, UNK, WordTokenizer, is_split

SPLIT = [
    "The Vaults is a family - friendly pub near St. James , £ 20 - 25 .",
    'Café Rouge \'s food is " great " ( they say ) ... at £ 5. near St. James .',
    "It does n't cost 5 pounds . The pub 's rating is 5 out of 5 .",
]
RAW = [
    "The Vaults is a family-friendly pub, £20-25.",
    "Café Rouge's food is \"great\" (they say)... The pub isn't cheap!",
]
CASED = WordTokenizer.train(RAW, 1, truecase=False)
SENTENCES = [
    ("family - friendly", "family-friendly"),
    ("£ 20 - 25 .", "£20-25."),
    ("£ 20 - £ 25", "£20-£25"),
    ("The pub 's food", "The pub's food"),
    ("They 're here , are n't they ?", "They're here, aren't they?"),
    ('He said " no " , twice .', 'He said "no", twice.'),
    ("a pub ( near the river ) .", "a pub (near the river)."),
    ("one [ two ] three ; four : five !", "one [two] three; four: five!"),
    ("well ... yes", "well... yes"),
    ("well … yes", "well… yes"),
    ("50 % off and / or free", "50% off and/or free"),
    ("- a list item", "- a list item"),
    ("1,200 people at 5.30", "1,200 people at 5.30"),
]


def train(texts: list[str], min_count: int = 1, max_size: int = 30_000) -> WordTokenizer:
    return WordTokenizer.train(texts, min_count, max_size)


@pytest.fixture(scope="module")
def raw_tokenizer() -> WordTokenizer:
    return train(RAW)


WRITTEN = [
    *SENTENCES,
    ("It isn 't", "It isn't"),
    ("“ Café ” is open", "“Café” is open"),
    ("Rouge ’s bar", "Rouge’s bar"),
]


@pytest.mark.parametrize(("words", "text"), WRITTEN)
def test_detokenize_writes_what_a_person_would(words: str, text: str) -> None:
    assert detokenize(words.split()) == text


def test_detokenize_of_no_words_is_empty() -> None:
    assert detokenize([]) == ""


@pytest.mark.parametrize("words", [words for words, _ in SENTENCES])
@pytest.mark.parametrize("trained_on", [SPLIT, RAW], ids=["split", "raw"])
def test_split_undoes_detokenize(words: str, trained_on: list[str]) -> None:
    assert train(trained_on).split(detokenize(words.split())) == words.split()


WORD = st.sampled_from("pub family café 20 25 5.30 naïve Zürich".split())
SPACES = (
    "\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200C))) + "\u2060\ufeff\u00ad"
)
PIECE = st.one_of(
    WORD,
    WORD,
    st.sampled_from(", . ; : ! ? ) ] % ( [ £ $ - / ... … 's 're".split()),
    st.text("abcdefgéüñ", min_size=1, max_size=5),
    st.integers(0, 9999).map(str),
)


@given(st.lists(PIECE, min_size=1, max_size=12))
def test_split_undoes_detokenize_of_any_words(raw_tokenizer: WordTokenizer, words: list[str]) -> None:
    assume(not any(set(a + b) == {"."} for a, b in pairwise(words)))  # two runs of dots become one
    assert raw_tokenizer.split(detokenize(words)) == words


@pytest.mark.slow
@given(st.text(max_size=40) | st.text(st.sampled_from("aB.'’\"-1 ,n'tU$:/@\u0301\u00ad你ทำ👩\u200d"), max_size=20))
def test_pieces_are_the_text_but_for_spaces(raw_tokenizer: WordTokenizer, text: str) -> None:
    end = 0
    for piece in raw_tokenizer.pieces(text):
        assert not text[end : piece.start].strip(string.whitespace + SPACES)
        assert piece.text == plain(text[piece.start : piece.end])
        assert piece.text
        end = piece.end
    assert not text[end:].strip(string.whitespace + SPACES)


@given(st.lists(st.sampled_from("The pub 's café is near £ 20 . , unseen".split()), max_size=10))
def test_decode_undoes_ids_but_for_unknown_words(words: list[str]) -> None:
    assert CASED.decode(CASED.ids(words)) == [word if word in CASED else UNK for word in words]


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


PENN = {
    "I don't know, it's John's and we'll see; I'm sure they've gone.": "I do n't know , it 's John 's and we"
    " 'll see ; I 'm sure they 've gone .",
    "You can't, won't, shan't, CAN'T": "You ca n't , wo n't , sha n't , CA N'T",
    "I cannot. You gonna? I wanna, gotta, gimme.": "I can not . You gon na ? I wan na , got ta , gim me .",
    "He shouldn't've, and who'd've known?": "He should n't 've , and who 'd 've known ?",
    "the guests' pub at five o'clock, ma'am": "the guests ' pub at five o'clock , ma'am",
    "She said 'hello' and \"bye\".": "She said ' hello ' and \" bye \" .",
    "Don’t say ‘hello’ or “bye” at Rouge’s": "Do n't say ' hello ' or \" bye \" at Rouge 's",
    "family-friendly - or not -- well-known": "family - friendly - or not -- well - known",
    "Wait... what?! No!!": "Wait ... what ?! No !!",
    "1,250.50 at 10:30 on 9/11 for $5 or 20%": "1,250.50 at 10:30 on 9/11 for $ 5 or 20 %",
    "the 3rd at 7pm, 4:30pm or .5": "the 3rd at 7pm , 4:30 pm or .5",
    "in the U.S. at 5 a.m., e.g. the U.S.A.": "in the U.S. at 5 a.m. , e.g. the U.S.A.",
    "Mr. J. Smith, St. James. Plan B.": "Mr. J. Smith , St. James . Plan B .",
    "C++ and C#, AT&T, n/a and/or": "C++ and C# , AT&T , n/a and / or",
    "Mail a.b@c.org or see http://a.org/b?c=1, www.x.de.": "Mail a.b@c.org or see http://a.org/b?c=1 , www.x.de .",
    "get 'em 'til the '90s": "get 'em 'til the '90s",
    "Great :) I <3 it #1 @home": "Great :) I <3 it # 1 @home",
    "👨‍👩‍👧👍🏽 🇩🇪": "👨‍👩‍👧 👍🏽 🇩🇪",
    "我爱你。iPhone很好": "我 爱 你 。 iPhone 很 好",
    "สวัสดี": "ส วั ส ดี",
    "a (b) [c] <unk>": "a ( b ) [ c ] < unk >",
}


@pytest.mark.parametrize(("text", "words"), PENN.items())
def test_raw_text_is_split_as_the_penn_treebank_does(raw_tokenizer: WordTokenizer, text: str, words: str) -> None:
    assert raw_tokenizer.split(text) == words.split()
    assert raw_tokenizer.split(words) == words.split()


def test_the_examples_of_the_docs_are_split_so(raw_tokenizer: WordTokenizer) -> None:
    page = (Path(__file__).parents[2] / "docs" / "text.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| (`.+`) \|$", page, re.MULTILINE)
    assert len(rows) > 10
    for text, words in rows:
        assert raw_tokenizer.split(text) == re.findall(r"`([^`]+)`", words)


def test_chinese_texts_are_learned_by_characters() -> None:
    texts = ["我爱你。", "你好，世界。", "你 爱 iPhone 吗？"]
    tokenizer = train(texts)
    assert not tokenizer.truecase
    assert {"我", "爱", "好", "，", "iPhone"} <= set(tokenizer.words)
    assert [detokenize(tokenizer.decode(tokenizer.encode(text))) for text in texts[:2]] == texts[:2]


def test_a_vocabulary_of_isolated_t_splits_contractions_so() -> None:
    tokenizer = train(["It isn 't a pub . It 's a bar ."])
    assert tokenizer.split("It isn’t") == ["It", "isn", "'t"]


TRUECASED = ["The dog saw the cat.", "Tom saw the dog.", "I saw Tom.", "Is it? Yes, I saw the dog! The end."]


def test_the_first_word_of_a_sentence_has_the_id_that_it_has_inside_one() -> None:
    tokenizer = train(TRUECASED)
    assert tokenizer.truecase
    assert "the" in tokenizer.words
    assert "The" not in tokenizer.words
    assert "The" in tokenizer
    assert tokenizer.encode("The dog.")[0] == tokenizer.encode("Tom saw the dog.")[2]
    for text in TRUECASED:
        words = tokenizer.split(text)
        assert words[0][0].isupper()
        assert tokenizer.decode(tokenizer.ids(words)) == words
    assert tokenizer.ids(["The"], whole=False) == [tokenizer.unk_id]
    assert tokenizer.encode("the", whole=False) == tokenizer.encode("The")
    assert train(["It's a pub.", "He's in."]).ids(["It", "’s"]) == train(["It's a pub.", "He's in."]).ids(["It", "'s"])
    assert tokenizer.ids(["Tom", "I"]) == [tokenizer.words.index("Tom"), tokenizer.words.index("I")]


def test_a_grown_vocabulary_has_new_words_in_the_case_that_they_have_inside_a_sentence() -> None:
    tokenizer = train(TRUECASED)
    texts = ["Sushi is cheap.", "Sushi is dear.", "I saw sushi.", "Hope saw Hope."]
    grown = tokenizer.grown(texts, 1, 100)
    assert grown.words[: len(tokenizer)] == tokenizer.words
    assert "sushi" in grown.words
    assert "Sushi" not in grown.words
    assert grown.encode("Sushi is cheap.")[0] == grown.encode("I saw sushi.")[2]
    assert "Hope" in grown.words
    assert grown.grown([*TRUECASED, *texts], 1, 100).words == grown.words


def test_no_text_makes_a_grown_vocabulary_that_of_an_imported_model() -> None:
    grown = train(SPLIT).grown(["<start> is a word <start> , <pad> <unk>"], 1, 100)
    assert "word" in grown.words
    assert grown.opening == []


def test_sentences_start_after_their_ends_and_opening_quotes() -> None:
    words = '" The dog ? " he said . ( It was . ) No ! ... and Mr. so'.split()
    starts = [word for word, start in zip(words, sentence_starts(words), strict=True) if start and word.isalpha()]
    assert starts == ["The", "It", "No"]


def test_texts_without_capitals_are_not_truecased(tmp_path: Path) -> None:
    assert not train(["call mom.", "wake me up.", "Play it."]).truecase
    assert not train(SPLIT).truecase
    path = tmp_path / "tokenizer.json"
    path.write_text(train(TRUECASED).to_json(), encoding="utf-8")
    assert WordTokenizer.load(path).truecase
    assert WordTokenizer.load(path).encode("The dog") == train(TRUECASED).encode("The dog")


def test_special_tokens_in_training_texts_leave_no_hole() -> None:
    texts = ["the <unk> sat on <pad> , <end> .", "the cat sat ."]
    tokenizer = train(texts)
    assert tokenizer.words[:3] == list(SPECIAL)
    assert len(tokenizer) == 3 + len({"the", "sat", "on", ",", ".", "cat"})
    unk = tokenizer.unk_id
    assert tokenizer.encode_training(texts)[0] == [*tokenizer.ids(["the"]), unk, *tokenizer.ids(["sat", "on"]), unk,
        *tokenizer.ids([","]), unk, *tokenizer.ids(["."])]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cat": 3}, "0, 1, 2"),
        ({"cat": 99}, "0, 1, 2"),
        ({"<pad>": 3, "the": 0}, "first words"),
        ({"<unk>": 2, "<end>": 1}, "first words"),
    ],
)
def test_broken_vocabularies_are_refused(change: dict[str, int], says: str, tmp_path: Path) -> None:
    file = json.loads(train(["the the the cat cat sat"]).to_json())
    assert file["model"]["vocab"]["the"] == 3
    file["model"]["vocab"] |= change
    for token in file["added_tokens"]:
        token["id"] = file["model"]["vocab"][token["content"]]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(file), encoding="utf-8")
    with pytest.raises(CtrlgenError, match=says) as refused:
        WordTokenizer.load(path)
    assert "\n" not in str(refused.value)


def test_new_words_have_the_ids_that_follow() -> None:
    tokenizer = WordTokenizer.train(["The pub is cheap.", "The pub is near."] * 3)
    size = len(tokenizer)
    assert "chez" not in tokenizer.folded
    wider = tokenizer.with_words(["Chez", "Marcel"])
    assert wider.folded["chez"] == size
    assert wider.ids(["Chez", "pub", "Marcel"]) == [size, tokenizer.ids(["pub"])[0], size + 1]
    assert wider.decode([size + 1, size]) == ["Marcel", "Chez"]
    assert "Chez" in wider
    assert "Chez" not in tokenizer
    assert tokenizer.ids(["Chez"]) == [tokenizer.unk_id]
    assert len(tokenizer) == size == len(wider) - 2


def test_a_tokenizer_splits_by_the_pattern_in_its_file() -> None:
    file = json.loads(train(TRUECASED).to_json())
    file["pre_tokenizer"]["pattern"]["Regex"] = r"\S+"
    assert WordTokenizer(Tokenizer.from_str(json.dumps(file))).split("don't, he said.") == ["don't,", "he", "said."]


def test_a_vocabulary_of_the_old_pattern_keeps_its_ids() -> None:
    file = json.loads(train(["I don ' t . It 's", "I don't. It's"]).to_json())
    file["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": OLD_PATTERN}, "behavior": "Removed", "invert": True}
    tokenizer = WordTokenizer(Tokenizer.from_str(json.dumps(file)))
    assert tokenizer.split("I can't say it's 4.5") == ["I", "can", "'t", "say", "it", "'s", "4.5"]
    assert tokenizer.encode_training(["It's"]) == [tokenizer.ids(["It", "'s"])]
