"""Words to text: what a person would write."""

import pytest

from ctrlgen.text.joining import detokenize
from ctrlgen.text.splitting import PATTERN, pieces, splitter

SPLITTER = splitter(PATTERN)
WRITTEN = [
    ("I do n't know , it 's John 's", "I don't know, it's John's"),
    ("You ca n't , he should n't 've", "You can't, he shouldn't've"),
    ("I can not . You gon na ? I wan na , got ta , gim me that .", "I cannot. You gonna? I wanna, gotta, gimme that."),
    ("the guests ' pub", "the guests' pub"),
    ("the guests ' and the dogs ' pub", "the guests' and the dogs' pub"),
    ("It is the guests ' .", "It is the guests'."),
    ("She said ' hello ' to us .", "She said 'hello' to us."),
    ("' Hello , ' she said .", "'Hello,' she said."),
    ("' The guests ' pub , ' he said .", "'The guests' pub,' he said."),
    ("He says ' hello ' to us .", "He says 'hello' to us."),
    ("goin ' home", "goin' home"),
    ("the top o ' the hill o ' mine", "the top o' the hill o' mine"),
    ("get 'em 'til the '90s", "get 'em 'til the '90s"),
    ('He said , " Come in ! " and left .', 'He said, "Come in!" and left.'),
    ('Really ? " he said .', 'Really?" he said.'),
    ('I like " hello " and bye " .', 'I like "hello" and bye".'),
    ('" Where ? " " Here . "', '"Where?" "Here."'),
    ("\" I said ' no , ' \" he said .", "\"I said 'no,'\" he said."),
    ('a 24 " x 30 " frame', 'a 24" x 30" frame'),
    ('A 24 " , 30 " or 3/4 " frame is " good " .', 'A 24", 30" or 3/4" frame is "good".'),
    ('She said " a 12½ " frame is fine " and left .', 'She said "a 12½" frame is fine" and left.'),
    ('In 1984 " Apollo 13 " had 5 " men " and 6 " wives " .', 'In 1984 "Apollo 13" had 5 "men" and 6 "wives".'),
    ('" I am 12 " she said .', '"I am 12" she said.'),
    ("a 6 ' x 8 ' rug of 5 ' big ' men", "a 6' x 8' rug of 5 'big' men"),
    ("a 24 ″ x 30 ″ frame , 5 ′ 10 ″", "a 24″ x 30″ frame, 5′ 10″"),
    ("Wait ... what ?! No !! Yes…", "Wait... what?! No!! Yes…"),
    ("and / or , w/o , n/a , 9/11", "and/or, w/o, n/a, 9/11"),
    ("family - friendly -- low - and middle - income", "family-friendly -- low- and middle-income"),
    ("from £ 5 - £ 10 or 5 - 10 € a head", "from £5-£10 or 5-10€ a head"),
    ("50 % of # 1 is + 3", "50% of #1 is +3"),
    ("2 + 3 = 5", "2 + 3 = 5"),
    ("( a [ b ] { c } )", "(a [b] {c})"),
    ("我 爱 你 。 iPhone 很 好 ！", "我爱你。iPhone很好！"),
    ("あ り が と う", "ありがとう"),
    ("ส วั ส ดี", "สวัสดี"),
    ("I said 你 好 , twice .", "I said你好, twice."),
    ("Great :) I <3 it 👍🏽 👍🏽", "Great :) I <3 it 👍🏽 👍🏽"),
    ("1990 – 1995 – a long time — or not", "1990–1995 – a long time—or not"),
]


@pytest.mark.parametrize(("words", "text"), WRITTEN)
def test_words_are_joined_as_people_write(words: str, text: str) -> None:
    assert detokenize(words.split()) == text


@pytest.mark.parametrize("text", [text for words, text in WRITTEN if "…" not in words])
def test_text_comes_back_from_its_words(text: str) -> None:
    assert detokenize([piece.text for piece in pieces(text, SPLITTER)]) == text
