"""Why a control failed: which part, when it was lost, and to which other control."""

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toy_grammar import TAG_OF

from ctrlgen.controls.classifier import Verdict
from ctrlgen.controls.language import Control, make_control, parse_statement
from ctrlgen.generation import drawing, explain, jobs
from ctrlgen.generation.denoising import drafts
from ctrlgen.generation.explain import Opposition, missing_parts
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.guidance import Term
from ctrlgen.generation.request import ControlResult, Explanation, Request, Sample
from ctrlgen.settings import Guidance, Settings
from ctrlgen_classifiers import pos
from ctrlgen_classifiers.brackets import Constituent
from ctrlgen_classifiers.length import Length
from ctrlgen_classifiers.pos import parse_pattern
from ctrlgen_classifiers.tree import Syntax, Tree
from ctrlgen_classifiers.words import Words

SETTINGS = Settings(steps=12, redrafts=0)
EXPLAINED = dataclasses.replace(SETTINGS, explain=True)
PATTERN = "pos: DET NOUN VERB DET NOUN PUNCT"
AGAINST = "starts: a dog a"  # what no text of that pattern begins with


@pytest.fixture(autouse=True)
def tagger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every toy word has one tag. No test here needs spaCy."""
    monkeypatch.setattr(pos, "tag", lambda texts: [([TAG_OF.get(word, "X") for word in text], []) for text in texts])


@pytest.fixture(scope="module")
def request_at_odds(generator: Generator) -> Request:
    return generator.request([PATTERN, AGAINST, "length: 6"], n=5, seed=3)


def explanations(sample: Sample, position: int = 0) -> tuple[Explanation, ...]:
    found = sample.controls[position].explanation
    assert found is not None
    return found


def control(classifier: Any, text: str) -> Control:
    return make_control(parse_statement(text), classifier)


# The texts are the same, and nothing is done unless asked for


def test_explaining_changes_no_text(generator: Generator, request_at_odds: Request) -> None:
    requests = [request_at_odds, generator.request(["pos: DET ..."], n=3)]
    for settings in (SETTINGS, dataclasses.replace(SETTINGS, candidates=2, until_success=1)):
        plain = generator.generate(requests, settings)
        explained = generator.generate(requests, dataclasses.replace(settings, explain=True))
        without = [
            dataclasses.replace(s, controls=tuple(dataclasses.replace(r, explanation=None) for r in s.controls))
            for s in explained
        ]
        assert without == plain
        assert all(result.explanation is None for sample in plain for result in sample.controls)


def test_nothing_is_drawn_again_where_all_is_well(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []
    for module in (explain, drawing):
        monkeypatch.setattr(module, "drafts", lambda *given: batches.append(given[0]) or drafts(*given))
    (sample,) = generator.generate([generator.request(["pos: * ...", "length: 5"])], EXPLAINED)
    assert sample.success
    assert [result.explanation for result in sample.controls] == [(), ()]
    assert len(batches) == 1
    generator.generate([generator.request([PATTERN, AGAINST])], SETTINGS)
    assert len(batches) == 2


# What, when, and to which other control


def test_each_part_that_failed_is_explained(generator: Generator, request_at_odds: Request) -> None:
    samples = generator.generate([request_at_odds], EXPLAINED)
    failing = 0
    for sample in samples:
        wanted = PATTERN.split()[1:]
        failed = [i for i, word in enumerate(sample.tokens) if TAG_OF[word] != wanted[i]]
        assert [part.failed for part in explanations(sample)] == [
            f"position {i + 1} {sample.tokens[i]!r}: wanted {wanted[i]}, got {TAG_OF[sample.tokens[i]]}" for i in failed
        ]
        assert explanations(sample, 2) == ()  # the length is as asked for
        failing += len(failed)
    assert failing >= 5


def test_the_step_is_the_last_whose_words_had_the_part(
    generator: Generator, request_at_odds: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared with the words that a caller is shown while each sample is drawn alone."""
    wanted = PATTERN.split()[1:]
    for index in range(request_at_odds.n):
        request = dataclasses.replace(request_at_odds, n=1, seed=request_at_odds.seed + index)
        shown: list[list[str]] = []
        generator.generate([request], SETTINGS, lambda step, shown=shown: shown.append(step.tokens))  # type: ignore[misc]
        (again,) = generator.generate([request], EXPLAINED)
        assert len(shown) == SETTINGS.steps
        for part in explanations(again):
            place = int(part.failed.split()[1]) - 1
            held = [step for step, words in enumerate(shown, start=1) if TAG_OF.get(words[place]) == wanted[place]]
            assert (part.last_held, part.steps) == (max(held, default=None), SETTINGS.steps)
            assert part.last_held != SETTINGS.steps


def test_company_changes_no_explanation(generator: Generator, request_at_odds: Request) -> None:
    other = generator.request(["pos: VERB VERB VERB VERB VERB VERB VERB"], n=2)
    together = generator.generate([other, request_at_odds], EXPLAINED)[2:]
    each = [dataclasses.replace(request_at_odds, n=1, seed=request_at_odds.seed + i) for i in range(5)]
    alone = [generator.generate([request], EXPLAINED)[0] for request in each]
    for one, two in zip(together, alone, strict=True):
        for first, second in zip(explanations(one), explanations(two), strict=True):
            assert dataclasses.replace(first, p=0.0) == dataclasses.replace(second, p=0.0)
            assert first.p == pytest.approx(second.p, abs=1e-4)


def test_the_other_control_is_named(generator: Generator, request_at_odds: Request) -> None:
    """`starts: a dog a` asks at the third word for what the pattern does not have there."""
    samples = generator.generate([request_at_odds], EXPLAINED)
    third = [part for s in samples for part in explanations(s) if part.failed.startswith("position 3 'a'")]
    assert len(third) >= 2
    assert {part.pulled_by for part in third} == {AGAINST}
    unguided = dataclasses.replace(EXPLAINED, guidance=Guidance(strength=0.0))
    for request in (request_at_odds, generator.request(["pos: VERB VERB VERB"], n=3)):
        samples = generator.generate([request], unguided)
        parts = [part for sample in samples for i in range(len(sample.controls)) for part in explanations(sample, i)]
        assert {part.pulled_by for part in parts} == {None}
        assert {part.steps for part in parts} == {SETTINGS.steps}


def test_every_control_that_failed_is_explained(generator: Generator) -> None:
    """Also two in one text: each as if the other had not failed."""
    two = generator.request(["pos: VERB * VERB", "words: cat, dog, house"], n=2)
    (three,) = generator.request(["length: 3"]).controls
    unguided = dataclasses.replace(EXPLAINED, guidance=Guidance(strength=0.0))
    for sample in generator.generate([two], unguided):
        assert [result.verdict.success for result in sample.controls] == [False, False]
        assert all("wanted VERB" in part.failed for part in explanations(sample))
        assert all("missing: '" in part.failed for part in explanations(sample, 1))
        for position, control in enumerate(two.controls):
            (alone,) = generator.generate([Request((control, three), seed=sample.seed)], unguided)
            assert alone.tokens == sample.tokens
            assert explanations(alone) == explanations(sample, position)


def test_the_probability_is_the_guides_in_the_finished_text(generator: Generator, request_at_odds: Request) -> None:
    (classifier, *_) = (c.classifier for c in request_at_odds.controls)
    for sample in generator.generate([request_at_odds], EXPLAINED):
        clean = generator.reader.clean(torch.tensor([generator.model.tokenizer.ids(sample.tokens)]), None)
        for part in explanations(sample):
            place = int(part.failed.split()[1]) - 1
            tag = PATTERN.split()[1 + place]
            encoded = classifier.encode([parse_pattern("* " * place + f"{tag} ...")], [len(sample.tokens)])
            with torch.no_grad():
                assert part.p == pytest.approx(float(classifier.log_prob(clean, encoded).exp()), abs=1e-4)


def test_opposition_is_that_of_gradients() -> None:
    """Guides whose gradients are known: one along x_t's first number, others against it, with it, and across."""

    class Along(Words):
        def __init__(self, direction: Sequence[float]):
            self.direction = torch.tensor(direction)

        def log_prob(self, denoised: Any, encoded: Any) -> Any:
            return (denoised * self.direction).sum((1, 2))

    def term(*direction: float, **changed: Any) -> Term:
        return Term(Along(direction), torch.zeros(1), **changed)

    others = [term(0.0, 1.0), term(-0.2, 1.0), term(-1.0, 0.5), term(1.0, 0.0), term(-1.0, 0.0, window=(0.5, 1.0))]
    opposition = Opposition(term(1.0, 0.0), others, Guidance())
    for progress in (0.0, 1.0, 1.0):
        opposition(lambda x_t: SimpleNamespace(text=x_t), torch.zeros(2, 1, 2), progress)
    assert torch.stack(opposition.cosines)[:, 1, 4].tolist() == [0.0, -1.0, -1.0]
    assert opposition.strongest(0, 1) == 2
    assert opposition.strongest(1, 2) == 4
    assert Opposition(term(1.0, 0.0), others[3:4], Guidance()).strongest(0, 1) is None
    weak = Opposition(term(1.0, 0.0), others[:1], Guidance())
    weak(lambda x_t: SimpleNamespace(text=x_t), torch.zeros(1, 1, 2), 0.0)
    assert weak.strongest(0, 1) is None


def test_a_text_that_does_not_repeat_itself_has_no_course(
    generator: Generator, request_at_odds: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain, "drafts", lambda *given: (ids.roll(1, -1) for ids in drafts(*given)))
    parts = [part for sample in generator.generate([request_at_odds], EXPLAINED) for part in explanations(sample)]
    assert parts
    assert {(part.steps, part.last_held, part.pulled_by) for part in parts} == {(None, None, None)}


def test_how_it_reads() -> None:
    part = Explanation("position 4 'drink': wanted VERB, got NOUN", 0.12, 24, 17, "food: Japanese")
    expected = "position 4 'drink': wanted VERB, got NOUN (p=0.12), lost after step 17 of 24; pulled away by"
    assert str(part) == f'{expected} "food: Japanese"'
    assert str(dataclasses.replace(part, last_held=None, pulled_by=None)).endswith("(p=0.12), never there")
    assert str(Explanation("13 words", 0.0)) == "13 words (p=0.00)"
    avoided = dataclasses.replace(part, failed="'pub' at position 2", pulled_by=None, negated=True)
    assert str(avoided) == "'pub' at position 2 (p=0.12), there after step 17 of 24"
    assert str(dataclasses.replace(avoided, last_held=None)).endswith("(p=0.12), there from the first step")


# The parts of each kind


def test_words_and_negated_controls(generator: Generator) -> None:
    words = generator.controls.classifier("words")
    two = control(words, "words: cat, red dog")
    result = ControlResult(two, Verdict(False, "missing"), 0.0)
    assert missing_parts(result, ["the", "dog", "sees", "a", "cat"]) == [(words.parse("red dog"), "missing: 'red dog'")]
    avoided = dataclasses.replace(two, target=words.negate(two.target))
    result = ControlResult(avoided, Verdict(False, "there"), 0.0)
    assert missing_parts(result, ["a", "cat"]) == [(words.negate(words.parse("cat")), "'cat' at position 2")]
    negated = control(generator.controls.classifier("pos"), "not pos: DET NOUN")
    result = ControlResult(negated, Verdict(False, "it is there"), 0.0)
    assert missing_parts(result, ["a", "cat"]) == [(negated.target, "it is there")]
    for sample in generator.generate([generator.request(["not pos: DET ..."], n=4)], EXPLAINED):
        parts = explanations(sample)
        assert [part.failed for part in parts] == ["it is there"] * (sample.success is False)
        assert all(part.last_held != SETTINGS.steps and part.negated for part in parts)


def test_trees(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    model = generator.model
    sizes = {"head": {"width": 8, "layers": 1}, "oracle": {"size": {"dim": 4, "width": 8}}}
    with torch.random.fork_rng(devices=[]):
        tree = Tree.untrained(model, "tree", {"chains": ["NP", "S", "VP"], **sizes})
    monkeypatch.setattr(tree.judge, "parse", lambda texts: [[Constituent(0, 2, ("NP",))]] * len(texts))
    asked = control(tree, "tree: (S (NP the NOUN) (VP sees *))")
    (verdict,) = tree.check([["the", "cat", "a", "sees"]], [asked.target])
    parts = missing_parts(ControlResult(asked, verdict, 0.0), ["the", "cat", "a", "sees"])
    assert parts == [
        (Syntax((Constituent(0, 4, ("S",)),)), "missing: S 1-4"),
        (Syntax((Constituent(2, 4, ("VP",)),)), "missing: VP 3-4"),
        (Syntax((), words=(None, None, "sees")), "position 3 'a': wanted 'sees'"),
    ]
    tags = missing_parts(ControlResult(asked, verdict, 0.0), ["the", "sees", "sees", "a"])
    assert tags[-1][1] == "position 2 'sees': wanted NOUN, got VERB"
    samples = generator.generate([Request((asked,), n=2)], EXPLAINED)
    for sample in samples:
        assert "missing: S 1-4" in {part.failed for part in explanations(sample)}
        assert {part.steps for part in explanations(sample)} == {SETTINGS.steps}


def test_a_length_is_counted_and_needs_no_course(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a model of fixed length can miss one; here the length drawn is made wrong."""
    asked = control(Length(), "length: 5")
    monkeypatch.setattr(jobs, "draw_length", lambda *given: 7)
    (sample,) = generator.generate([Request((asked,))], EXPLAINED)
    assert explanations(sample) == (Explanation("7 words", 0.0),)
