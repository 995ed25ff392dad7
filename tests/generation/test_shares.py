"""Shares of a set of texts: who is asked for what, what is counted, what cannot be had."""

import pytest

from ctrlgen.errors import UsageError
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.shares import Share, Shares, count_shares, parse_share
from ctrlgen.settings import Settings

FEW = Settings(steps=3, redrafts=0, until_success=3)


def asked(generator: Generator, *shares: str, n: int = 20, controls: tuple[str, ...] = ()) -> Shares:
    return Shares(generator, controls, [parse_share(share) for share in shares], n)


def test_exactly_so_many_texts_have_it(generator: Generator) -> None:
    shares = asked(generator, "words: cat=30%", "starts: the =55%", controls=("length: 6-8",))
    samples = generator.generate(shares.requests(), FEW)
    count_shares(shares.shares, samples)
    assert sum("cat" in sample.tokens for sample in samples) == 6
    assert sum(sample.tokens[0] == "the" for sample in samples) == 11
    assert all(6 <= len(sample.tokens) <= 8 for sample in samples)
    assert [sample.seed for sample in samples] == list(range(20))
    assert [share.line(20) for share in shares.shares] == [
        "'words: cat': 6 of 20 texts, 30.0%, asked for 30.0%",
        "'starts: the': 11 of 20 texts, 55.0%, asked for 55.0%",
    ]


def test_what_excludes_each_other_goes_to_different_texts(generator: Generator) -> None:
    shares = asked(generator, "starts: the=60%", "starts: a=40%")
    requests = shares.requests()
    assert sorted(request.controls[0].text for request in requests) == ["starts: a"] * 8 + ["starts: the"] * 12
    assert all(len(request.controls) == 1 for request in requests)
    with pytest.raises(UsageError, match="no text can have 'starts: the' and 'starts: a' together"):
        asked(generator, "starts: the=60%", "starts: a=60%").requests()


def test_a_share_of_not(generator: Generator) -> None:
    shares = asked(generator, "not words: cat=25%", n=8)
    texts = [request.controls[0].text for request in shares.requests()]
    assert sorted(texts) == ["not words: cat"] * 2 + ["words: cat"] * 6
    count_shares(shares.shares, generator.generate(shares.requests(), FEW))
    assert shares.shares[0].having == 2


def test_what_fails_is_counted_as_it_is(generator: Generator) -> None:
    shares = asked(generator, "pos: NOUN NOUN NOUN NOUN ...=50%", n=4)
    samples = generator.generate(shares.requests(), Settings(steps=2, redrafts=0))
    count_shares(shares.shares, samples)
    having = sum(
        result.verdict.success is (not result.control.statement.negated)
        for sample in samples
        for result in sample.controls
    )
    assert shares.shares[0].having == having


@pytest.mark.parametrize("text", ["words: cat", "words: cat=", "words: cat=30", "=30%", "words: cat=1e9%", "a=101%"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(UsageError, match="--share"):
        parse_share(text)


def test_a_share_is_read() -> None:
    assert parse_share("words: a=b = 12.5% ") == Share("words: a=b", 0.125)
    assert (Share("not pos: X", 0.5).opposite, Share("pos: X", 0.5).opposite) == ("pos: X", "not pos: X")


def test_an_unknown_control_is_refused(generator: Generator) -> None:
    with pytest.raises(UsageError, match="unknown control 'wrods'"):
        asked(generator, "wrods: cat=30%").requests()


def test_one_that_excludes_several_others_which_go_together(generator: Generator) -> None:
    shares = asked(generator, "words: cat=50%", "words: old=50%", "not words: cat, old=50%")
    shares.requests()
    cat, old, neither = (share.texts for share in shares.shares)
    assert len(cat) == len(old) == len(neither) == 10
    assert not neither & (cat | old)
