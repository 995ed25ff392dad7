"""Confidence: what a threshold promises, what is kept of it, and which texts it holds back."""

import json
import math
from pathlib import Path
from random import Random

import pytest
from command_line import Run

from ctrlgen.checkpoint import from_pretrained
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.evaluation import calibration
from ctrlgen.evaluation.evaluation import Evaluation
from ctrlgen.evaluation.plan import Plan
from ctrlgen.generation.confidence import DELTA, FILE, Confidence, Scored, binomial_tail, kind_of
from ctrlgen.generation.generator import Generator
from ctrlgen.settings import Settings

QUICK = Settings(steps=4, redrafts=0, corrections=0)
SURE = Settings(steps=4, redrafts=0, corrections=0, confidence=0.9)
PATTERN = "pos: DET NOUN VERB DET NOUN PUNCT"


def drawn(rng: Random, chance: float, targets: int = 500) -> Scored:
    """Scores without meaning: each text obeys with the same chance."""
    return Scored(tuple(rng.random() for _ in range(targets)), tuple(rng.random() < chance for _ in range(targets)))


@pytest.mark.parametrize(("k", "n", "p"), [(0, 50, 0.05), (3, 20, 0.3), (20, 20, 0.3), (7, 250, 0.05)])
def test_the_binomial_tail(k: int, n: int, p: float) -> None:
    assert binomial_tail(k, n, p) == pytest.approx(
        sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))
    )


def test_a_promise_is_broken_at_most_as_often_as_delta_says() -> None:
    """Where just too few obey at any threshold, learning one at all is the mistake."""
    rng = Random(0)
    broken = sum(drawn(rng, 0.9499).threshold(0.95) is not None for _ in range(400))
    assert broken / 400 < DELTA + 3 * math.sqrt(DELTA * (1 - DELTA) / 400)


def test_the_loosest_threshold_is_taken_whose_texts_obey() -> None:
    """The worst-scoring fifth fails, and nothing else."""
    scored = Scored(tuple(range(500)), tuple(score >= 100 for score in range(500)))
    found = scored.threshold(0.95)
    assert found is not None
    assert found.returned == 0.8
    assert found.score == 99
    assert Scored(scored.scores, (True,) * 500).threshold(0.95).returned == 1.0  # type: ignore[union-attr]
    assert Scored(scored.scores, (False,) * 500).threshold(0.95) is None


def test_equal_scores_are_returned_together_or_not_at_all() -> None:
    found = Scored((1.0,) * 400 + (0.5,) * 100, (True,) * 400 + (False,) * 100).threshold(0.95)
    assert found is not None
    assert (found.score, found.returned) == (0.5, 0.8)


def test_the_kind_of_a_request_is_all_but_its_values(generator: Generator) -> None:
    def kind(*controls: str) -> str:
        return kind_of(generator.request(controls).controls)

    assert kind("pos: DET NOUN ...") == kind("pos: NOUN VERB ...") == "pos"
    assert kind("words: cat", "pos: DET ...", "starts: the") == "pos + starts + words"
    assert kind("not pos: DET NOUN ...") == "not pos"
    assert kind("pos: DET ... @2") == "pos@2[0:1]"


def test_what_is_decided_exactly_is_returned_without_learning(generator: Generator) -> None:
    samples = generator.generate([generator.request(["words: cat", "length: 6-8"], n=4)], SURE)
    assert [sample.rejected for sample in samples] == [None] * 4


def test_what_was_not_learned_is_refused(model_copy: Path) -> None:
    generator = Generator(str(model_copy))
    request = generator.request([PATTERN])
    with pytest.raises(UsageError, match="nothing was learned of 'pos', only of nothing; learn it with `ctrlgen eval"):
        generator.generate([request], SURE)
    Confidence(generator.model).keep({"pos": Scored((0.5, 0.4), (True, True))}, Settings(steps=5, redrafts=0))
    with pytest.raises(UsageError, match=r"learned with other settings \(steps, corrections\)"):
        Confidence(generator.model).threshold(request, SURE)
    Confidence(generator.model).keep({"pos": Scored((0.5, 0.4), (True, False))}, QUICK)
    with pytest.raises(CtrlgenError, match="no threshold qualifies for 'pos'"):
        Confidence(generator.model).threshold(request, SURE)
    path = model_copy / "classifiers" / FILE
    entries = json.loads(path.read_text())
    for entry in entries:
        del entry["settings"]["time_offset"]  # as if that setting came later
    path.write_text(json.dumps(entries))
    assert Confidence(generator.model).scored("pos", QUICK).obeyed == (True, False)
    with pytest.raises(UsageError, match="not for templates"):
        Confidence(generator.model).threshold(generator.request([], template="the ___ ."), SURE)
    config = model_copy / "classifiers" / "pos" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"score_temperature": 2.0}))
    with pytest.raises(UsageError, match="of other weights"):
        Confidence(generator.model).threshold(request, SURE)


@pytest.mark.parametrize("content", ["{", "[3]", '[{"kind": "pos"}]', '{"a": 1}', "null", "[[]]"])
def test_a_damaged_file_is_refused(model_copy: Path, content: str) -> None:
    (model_copy / "classifiers" / FILE).write_text(content)
    with pytest.raises(CtrlgenError, match="is damaged"):
        Confidence(Generator(str(model_copy)).model)


def test_what_chooses_among_texts_is_refused_beside_it() -> None:
    for other in ({"until_success": 2}, {"max_cost": 1.0}, {"distinct": True}):
        with pytest.raises(UsageError, match="confidence is of texts as they are drawn"):
            Settings(confidence=0.95, **other)  # type: ignore[arg-type]


@pytest.mark.slow
def test_texts_that_score_low_are_held_back(model_copy: Path, ctrlgen: Run) -> None:
    generator = Generator(str(model_copy))
    samples = generator.generate([generator.request([PATTERN], n=8)], QUICK)
    scores = sorted(sample.score or 0.0 for sample in samples)
    limit = round((scores[3] + scores[4]) / 2, 5)
    assert scores[3] < limit < scores[4]
    # of 500 targets, those above the limit obey
    learned = Scored((1.0,) * 300 + (limit,) * 200, (True,) * 300 + (False,) * 200)
    Confidence(generator.model).keep({"pos": learned}, QUICK)
    model = ("--model", model_copy, "--steps", 4, "--corrections", 0, "--redrafts", 0)
    found = ctrlgen("generate", *model, "-c", PATTERN, "-n", 8, "--json", "--confidence", 0.95)
    assert found.code == 0
    assert [answer["text"] for answer in found.answers] == [
        sample.text for sample in samples if (sample.score or 0.0) > limit
    ]
    assert "of held-out targets of these kinds 60% are returned" in found.err
    assert "4 of 8 samples are left out: 4 not sure enough" in found.err
    refused = ctrlgen("generate", *model, "-c", "not " + PATTERN, "--confidence", 0.95)
    assert refused.code == 2
    assert "nothing was learned of 'not pos'" in refused.err


def test_what_comes_with_the_bundled_model() -> None:
    learned = Confidence(from_pretrained("e2e")).scored("pos", Settings())
    assert learned.threshold(0.9).returned == 0.95  # type: ignore[union-attr]
    assert learned.threshold(0.93).returned == 0.85  # type: ignore[union-attr]
    assert learned.threshold(0.94) is None


@pytest.mark.slow
def test_evaluation_keeps_scores_and_verdicts(
    model_copy: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = Generator(str(model_copy))
    plan = Plan(suites=("pos",), data=(str(toy_data),), limit=12, settings=QUICK, learn_confidence=True)
    results = Evaluation(plan, generator, []).run()
    assert results.done == ["pos: nothing is learned of 12 targets; --confidence needs 500"]
    assert not (model_copy / "classifiers" / FILE).exists()
    monkeypatch.setattr(calibration, "FEWEST", 12)
    results = Evaluation(plan, generator, []).run()
    assert results.done[0].startswith("pos: scores and verdicts of 12 targets in ")
    ours = [record for record in results.records if record.system == "ctrlgen"]
    learned = Confidence(generator.model).scored("pos", QUICK)
    assert learned.obeyed == tuple(record.success is True for record in ours)
    assert learned.scores == pytest.approx([record.scores[0] for record in ours if record.scores], abs=1e-5)
