"""What a verdict says, by its figures."""

from dataclasses import replace

from ctrlgen.domain.verdict import Judged, LabelVerdict

LABEL = LabelVerdict(oracle=0.9, oracle_of_half=0.85, guessing=0.3, obeyed=0.92, rows=1000, human=80)
GOOD = Judged(60, 80, 3.0, 3.2, 3.1, 0.06, 0.9, {"act": LABEL}, [(10, 3.5), (20, 3.1), (30, 2.9), (40, 2.8)])


def test_a_good_model_is_called_usable_with_what_more_would_give() -> None:
    lines = list(GOOD.lines())
    assert lines[0].startswith("cost       +0.20 nats a word above held-out human text, +0.10 without controls")
    assert "twice the minutes may give up to 0.30 more" in lines[-3]  # 3.1 at step 20, 2.8 at step 40
    assert "85% from 500 rows, 90% from 1,000: twice the rows may give up to 5% more" in lines[-2]
    assert lines[-1] == "verdict    usable, if the texts read well to you"
    shown = list(replace(GOOD, samples=["act: INFORM: It is 5 pm."]).lines())
    assert shown == ["text       act: INFORM: It is 5 pm.", *lines]


def test_what_is_missing_is_named() -> None:
    bad = replace(GOOD, cost=3.9, slips=0.3, labels={"act": replace(LABEL, obeyed=0.5)}).missing()
    assert [said.split()[0] for said in bad] == ["the", "30%", "act"]
    guess = replace(GOOD, labels={"act": replace(LABEL, oracle=0.3)})
    assert guess.missing() == ["the oracle of act is no better than guessing, give more labelled rows"]
    assert Judged(5, 3).missing() == ["too few held-out texts to judge; give more rows"]


def test_a_flat_curve_promises_nothing() -> None:
    flat = replace(GOOD, losses=[(10, 2.81), (20, 2.8)], labels={"act": replace(LABEL, oracle_of_half=0.9)})
    assert [line.endswith("more give little") for line in flat.curve()] == [True, True]
