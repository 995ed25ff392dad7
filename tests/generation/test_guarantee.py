"""What automata say of a text is certain: whatever the sampler, the length, the template, the company."""

import itertools

import pytest

from ctrlgen.automata.automaton import product
from ctrlgen.controls.filling import Fills
from ctrlgen.controls.template import parse_template
from ctrlgen.errors import UsageError
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.jobs import allowed_lengths
from ctrlgen.settings import Guidance, Settings

FEW = Settings(steps=3)
HARD = [
    ["matches: cat{2} (dog|house) ... ."],
    ["matches: (the|a)+ ... sees ... old ... ."],
    ["words: old ... small ... red, sees"],
    ["words: cat cat cat", "not words: the, a"],
    ["starts: . .", "ends: house house"],
    ["matches: *{2} /.*s/ ...", "not words: sees, likes", "words: house"],
    ["pos: DET NOUN VERB DET NOUN PUNCT", "words: river ... house", "starts: a"],
    ["words: old @0.1", "ends: . . ."],
    ["not matches: ... /[a-r].*/ ..."],
]


def texts(generator: Generator, controls: list[str], settings: Settings = FEW, n: int = 8) -> list[list[str]]:
    samples = generator.generate([generator.request(controls, n=n, seed=5)], settings)
    patterns = {"words", "starts", "ends", "matches"}
    for sample in samples:
        for result in sample.controls:
            if result.control.statement.name in patterns:
                assert result.verdict.success, (sample.text, result.control.text)
    return [sample.tokens for sample in samples]


@pytest.mark.parametrize("controls", HARD)
@pytest.mark.slow
def test_patterns_hold_in_every_text(generator: Generator, controls: list[str]) -> None:
    texts(generator, controls)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        Settings(steps=2, sampler="ddim"),
        Settings(steps=4, sampler="dpm"),
        Settings(steps=4, restart=0.0, corrections=0),
        Settings(steps=6, corrections=5),
        Settings(steps=3, guidance=Guidance("exact", strength=1.0)),
        Settings(steps=3, candidates=3),
        Settings(steps=3, last_temperature=2.0),
        Settings(steps=3, guidance=Guidance(strength=0.1)),
        Settings(steps=3, clamp=True),
    ],
)
def test_patterns_hold_under_all_settings(generator: Generator, settings: Settings) -> None:
    for controls in HARD[:2]:
        texts(generator, controls, settings)


@pytest.mark.parametrize(
    ("control", "settings"),
    [
        ("matches: cat{4} ... @0", FEW),
        ("matches: cat{4} ... @0.01[0:0.5]", Settings(steps=8)),
        ("matches: cat{4} ...", Settings(steps=3, guidance=Guidance(strength=0.0))),
    ],
)
def test_a_control_that_does_not_act_at_the_end_is_not_guaranteed(
    generator: Generator, control: str, settings: Settings
) -> None:
    """Its weight, its window or the strength is what the user has turned down."""
    samples = generator.generate([generator.request([control], n=8, seed=5)], settings)
    assert not all(sample.success for sample in samples)


def test_texts_are_drawn_at_the_last_temperature(generator: Generator) -> None:
    controls, hot = ["matches: the * * the * ."], Settings(steps=3, corrections=0, last_temperature=50.0)
    drawn = texts(generator, controls, hot, n=16)
    assert len({word for words in drawn for word in words}) > len(
        {word for words in texts(generator, controls) for word in words}
    )
    assert drawn == texts(generator, controls, hot, n=16)
    alone = generator.generate([generator.request(controls, seed=8)], hot)
    assert alone[0].tokens == drawn[3]


def test_without_patterns_words_are_drawn_as_well(generator: Generator) -> None:
    drawn, likeliest = (
        [s.tokens for s in generator.generate([generator.request(["length: 6"], n=8)], settings)]
        for settings in (Settings(steps=3, last_temperature=5.0), FEW)
    )
    assert drawn != likeliest


def test_lengths_are_drawn_among_those_accepted(generator: Generator) -> None:
    request = generator.request(["matches: (the cat){1,3} sees *{2}", "not words: dog"], n=20)
    assert allowed_lengths(generator.model, request.controls) == [5, 7, 9]
    assert {len(sample.tokens) for sample in generator.generate([request], FEW)} <= {5, 7, 9}


@pytest.mark.parametrize(
    ("controls", "template", "message"),
    [
        (["matches: * *", "words: cat, dog", "starts: the"], None,
         "no text of 2 words has all of 'matches: * *', 'words: cat, dog', 'starts: the'"),
        (["matches: (the cat)* .", "length: 4"], None,
         "'matches: (the cat)* .' and 'length: 4' contradict each other: they allow no common length"),
        (["matches: the ... .", "starts: a"], None, "'matches: the ... .' and 'starts: a' contradict each other"),
        (["not words: ..."], None, "no text has 'not words: ...'"),
        (["matches: the cat{2} ...", "not words: cat"], None, "contradict each other: no text obeys both"),
        (["matches: the *{3} .", "words: cat"], "a ___{3} .", "'a ___{3} .' and 'matches: the *{3} .' contradict"),
        (["words: cat cat", "words: dog"], "the ___{2} .",
         "no text of 4 words has all of 'words: cat cat', 'words: dog' and 'the ___{2} .'"),
    ],
)  # fmt: skip
def test_what_no_text_can_satisfy_is_refused(
    generator: Generator, controls: list[str], template: str | None, message: str
) -> None:
    with pytest.raises(UsageError) as raised:
        generator.request(controls, template=template)
    assert message in str(raised.value)


@pytest.mark.slow
def test_blanks_are_filled_so_that_patterns_hold(generator: Generator) -> None:
    """Of `a ___ cat ___ .` in seven words, only one split leaves three words before the cat."""
    controls = ["matches: a *{3} cat ..."]
    for seed in range(8):
        samples = generator.generate([generator.request(controls, seed=seed, template="a ___ cat ___ .")], FEW)
        assert samples[0].success
        assert samples[0].tokens[4] == "cat"


def test_fills_are_counted(generator: Generator) -> None:
    tokenizer = generator.model.tokenizer
    template = parse_template("the ___{0-3} cat ___ .", tokenizer)
    (control,) = generator.controls.parse(["matches: the (dog|old)+ cat (dog|old){2,} ."])
    automaton = control.classifier.automaton(control.target)
    assert automaton is not None
    fills = Fills(template, product((automaton,)))
    sizes = [(a, b) for a, b in itertools.product(range(4), range(1, 10))]
    for length in range(3, 12):
        feasible = {(a, b) for a, b in sizes if a + b + 3 == length and a >= 1 and b >= 2}
        assert fills.count(length) == len(feasible)
        if feasible:
            drawn = {fills.draw(length, seed).index("cat") - 1 for seed in range(30)}
            assert drawn == {a for a, _ in feasible}
    with pytest.raises(ValueError, match="no accepted text of 5 words"):
        fills.draw(5, 0)


def test_the_same_text_in_any_company(generator: Generator) -> None:
    controls = ["words: old ... small ... red, sees"]
    alone = generator.generate([generator.request(controls, seed=12)], FEW)[0]
    others = [generator.request(["words: cat"], n=5), generator.request(controls, n=4, seed=10)]
    together = generator.generate(others, FEW)
    assert alone.tokens == next(sample.tokens for sample in together if sample.seed == 12)


@pytest.mark.slow
def test_a_template_may_have_many_blanks(generator: Generator) -> None:
    template = "___{0-1} " * 600
    (sample,) = generator.generate([generator.request(["words: cat"], template=template)], FEW)
    assert "cat" in sample.tokens
