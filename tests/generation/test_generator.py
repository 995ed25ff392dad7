"""The whole road from controls to samples, on a tiny trained model."""

import copy
import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_grammar import TAG_OF, toy_sentences

from ctrlgen.checkpoint import DiffusionConfig, DiffusionLM, from_pretrained
from ctrlgen.controls.classifier import Classifier, Verdict
from ctrlgen.controls.language import Control, make_control, parse_statement
from ctrlgen.diffusion.denoiser import Denoiser, DenoiserConfig
from ctrlgen.diffusion.losses import bound_by_word
from ctrlgen.diffusion.samplers import Prediction, SeededNoise
from ctrlgen.diffusion.schedule import make_schedule
from ctrlgen.diffusion.seeds import SEED_STRIDE
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.generation import denoising, drawing, workers
from ctrlgen.generation import jobs as job_module
from ctrlgen.generation.batch import Batch
from ctrlgen.generation.choosing import better_draft, candidate_scores, expected_bleu
from ctrlgen.generation.denoising import drafts, noise_levels
from ctrlgen.generation.generator import Generator, sample_texts
from ctrlgen.generation.jobs import MAX_STRETCH, Draws, Job, allowed_lengths, draw_length, make_batches
from ctrlgen.generation.request import ControlResult, Request, Sample, Step
from ctrlgen.settings import Guidance, Settings
from ctrlgen.text.tokenizer import SPECIAL, WordTokenizer
from ctrlgen_classifiers.length import Length
from ctrlgen_classifiers.pos import Pos

SIMPLE = "pos: DET NOUN VERB DET NOUN PUNCT"
OTHER = "pos: DET ADJ NOUN VERB DET NOUN"  # of the same length
QUICK = Settings(steps=8, redrafts=0)


def length(text: str) -> Control:
    return make_control(parse_statement(text), Length())


def batch_of(generator: Generator, request: Request) -> Batch[Job]:
    """All samples of a request in one batch."""
    return Batch(generator.reader, Draws(generator.model, [request]).first())


def tokens(samples: Sequence[Sample]) -> list[list[str]]:
    return [sample.tokens for sample in samples]


# The same sample in any company


@pytest.fixture(scope="module")
def requests(generator: Generator) -> list[Request]:
    return [
        generator.request([SIMPLE], n=3, seed=5, id="guided"),
        generator.request([], n=4, seed=40, id="unguided"),
        generator.request([OTHER], n=2, seed=5, id="another target"),
        generator.request(["pos: DET NOUN VERB DET ADJ NOUN PUNCT"], n=2, seed=6, id="another length"),
        generator.request([f"{SIMPLE} @2[0:0.5]", "not pos: DET NOUN ..."], n=2, seed=90, id="two"),
    ]


@pytest.fixture(scope="module")
def alone(generator: Generator, requests: list[Request]) -> list[Sample]:
    return [sample for request in requests for sample in generator.generate([request], QUICK)]


def test_answers_come_in_request_order(alone: list[Sample], generator: Generator, requests: list[Request]) -> None:
    samples = generator.generate(requests, QUICK)
    expected = [(request.id, i, request.seed + i) for request in requests for i in range(request.n)]
    assert [(sample.id, sample.index, sample.seed) for sample in samples] == expected
    assert tokens(samples) == tokens(alone)
    assert [s.score for s in samples] == pytest.approx([s.score for s in alone], abs=1e-4)


def test_the_order_of_requests_changes_nothing(
    alone: list[Sample], generator: Generator, requests: list[Request]
) -> None:
    samples = generator.generate(requests[::-1], QUICK)
    by_id = {(sample.id, sample.index): sample.tokens for sample in samples}
    assert by_id == {(sample.id, sample.index): sample.tokens for sample in alone}


@pytest.mark.parametrize("limit", [1, 13, 20])
def test_the_batch_size_changes_nothing(
    alone: list[Sample], generator: Generator, requests: list[Request], monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(job_module, "MAX_BATCH_TOKENS", limit)
    assert tokens(generator.generate(requests, QUICK)) == tokens(alone)


def test_a_sample_depends_on_its_own_seed_alone(generator: Generator, alone: list[Sample]) -> None:
    again = [generator.generate([generator.request([SIMPLE], seed=5 + i)], QUICK)[0] for i in range(3)]
    assert tokens(again) == tokens(alone[:3])
    different = generator.generate([generator.request([], n=20, seed=0)], QUICK)
    assert len({sample.text for sample in different}) > 10


def test_candidates_do_not_depend_on_company_either(generator: Generator, requests: list[Request]) -> None:
    settings = dataclasses.replace(QUICK, candidates=3)
    together = generator.generate(requests[:2], settings)
    apart = [sample for request in requests[:2] for sample in generator.generate([request], settings)]
    assert tokens(together) == tokens(apart)


def test_requests_of_like_length_and_controls_share_a_batch(generator: Generator, requests: list[Request]) -> None:
    jobs = Draws(generator.model, requests).first()
    batches = make_batches(jobs)
    assert sorted(id(job) for batch in batches for job in batch) == sorted(id(job) for job in jobs)
    together = [{job.request.id for job in batch} for batch in batches]
    assert {"guided", "another target", "another length"} in together
    assert {"two"} in together
    for batch in batches:
        lengths = [job.length for job in batch]
        assert max(lengths) <= MAX_STRETCH * min(lengths)


# Choosing among candidates


def test_candidates_choose_by_score(generator: Generator) -> None:
    """Candidate k is the sample with a seed k strides on; the best bound on log p(text) plus log p(c | text) wins."""
    count, seed = 5, 11
    each = [
        generator.generate([generator.request([SIMPLE], seed=seed + k * SEED_STRIDE)], QUICK)[0] for k in range(count)
    ]
    ids = torch.tensor([generator.model.tokenizer.ids(sample.tokens) for sample in each])
    (control,) = generator.request([SIMPLE]).controls
    with torch.no_grad():
        noise = SeededNoise([0] * count, [6] * count, 8)  # the same for all
        fluency = -bound_by_word(generator.model.denoiser, ids, generator.model.schedule, noise).sum(-1)
        encoded = control.classifier.encode([control.target] * count, [6] * count)
        guide = control.classifier.log_prob(generator.reader.clean(ids, None), encoded)
    best = int((fluency + guide).argmax())
    assert len({sample.text for sample in each}) > 1
    (chosen,) = generator.generate(
        [generator.request([SIMPLE], seed=seed)], dataclasses.replace(QUICK, candidates=count)
    )
    assert chosen.tokens == each[best].tokens
    assert (chosen.seed, chosen.index) == (seed, 0)


def test_more_candidates_are_never_less_likely(generator: Generator) -> None:
    def scores(candidates: int) -> list[float]:
        settings = dataclasses.replace(QUICK, candidates=candidates)
        samples = generator.generate([generator.request([SIMPLE], n=4, seed=20)], settings)
        jobs = Draws(generator.model, [generator.request([SIMPLE], n=4, seed=20)]).first()
        ids = [generator.model.tokenizer.ids(sample.tokens) for sample in samples]
        finished = dict(zip(jobs, ids, strict=True))
        return candidate_scores(Batch(generator.reader, jobs), finished)

    one, four = scores(1), scores(4)
    assert all(b >= a - 1e-4 for a, b in zip(one, four, strict=True))
    assert sum(four) > sum(one)


def test_the_oracle_sees_the_chosen_texts_only(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Sequence[str]] = []

    def check(self: Classifier, texts: Sequence[Sequence[str]], targets: Sequence[Any]) -> list[Verdict]:
        seen.extend(texts)
        return [Verdict(True)] * len(texts)

    request = generator.request([SIMPLE], n=2)
    monkeypatch.setattr(type(request.controls[0].classifier), "check", check)
    samples = generator.generate([request], dataclasses.replace(QUICK, candidates=3))
    assert seen == tokens(samples)


def test_mbr_chooses_the_text_most_like_the_others(generator: Generator) -> None:
    pytest.importorskip("sacrebleu")
    rest = ["the cat sees the red dog", "the cat sees the old dog", "the cat finds the old dog"]
    texts = ["a small dog near a house", *rest]
    jobs = Draws(generator.model, [generator.request([SIMPLE])], candidates=4).first()
    ids = [generator.model.tokenizer.ids(text.split()) for text in texts]
    scores = list(expected_bleu(generator.reader, dict(zip(jobs, ids, strict=True))).values())
    assert max(range(4), key=scores.__getitem__) == 2
    assert min(range(4), key=scores.__getitem__) == 0
    request = generator.request([SIMPLE], n=2, seed=11)
    samples = generator.generate([request], dataclasses.replace(QUICK, candidates=4, select="mbr"))
    each = [
        generator.generate([generator.request([SIMPLE], seed=11 + k * SEED_STRIDE)], QUICK)[0].tokens for k in range(4)
    ]
    assert samples[0].tokens in each


def test_mbr_without_sacrebleu_says_what_to_install(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(UsageError, match="pip install"):
        generator.generate([generator.request([SIMPLE])], Settings(steps=1, redrafts=0, candidates=2, select="mbr"))


# Drawing again what an oracle rejects


@pytest.fixture
def picky(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """An oracle of parts of speech that passes texts beginning with `a`, and keeps the texts it was shown."""
    shown: list[Sequence[str]] = []

    def check(self: Classifier, texts: Sequence[Sequence[str]], targets: Sequence[Any]) -> list[Verdict]:
        shown.extend(texts)
        return [Verdict(words[0] == "a") for words in texts]

    monkeypatch.setattr(type(generator.controls.classifier("pos")), "check", check)
    return shown


def first_that_passes(generator: Generator, request: Request, settings: Settings, most: int) -> tuple[list[str], int]:
    """What one request of one sample should be answered with: its seed, and then those one stride on, in turn."""
    for attempt in range(most + 1):
        seed = request.seed + attempt * settings.candidates * SEED_STRIDE
        (sample,) = generator.generate([dataclasses.replace(request, seed=seed)], settings)
        if sample.success:
            break
    return sample.tokens, attempt + 1


@pytest.mark.parametrize("candidates", [1, 2])
@pytest.mark.usefixtures("picky")
def test_a_rejected_sample_is_drawn_again_from_the_next_seeds(generator: Generator, candidates: int) -> None:
    settings = dataclasses.replace(QUICK, candidates=candidates)
    together = [
        generator.request([SIMPLE], n=4, seed=3),
        generator.request(["pos: DET ..."], n=3, seed=8),
        generator.request(["pos: DET * * ..."], n=2, seed=8, template="___ cat ___"),
        generator.request([], n=1, seed=8),
    ]
    samples = generator.generate(together, dataclasses.replace(settings, until_success=2))
    each = [dataclasses.replace(r, n=1, seed=r.seed + i) for r in together for i in range(r.n)]
    expected = [first_that_passes(generator, request, settings, 2) for request in each]
    assert [(sample.tokens, sample.attempts) for sample in samples] == expected
    assert [(sample.index, sample.seed) for sample in samples] == [
        (i, request.seed + i) for request in together for i in range(request.n)
    ]
    assert {sample.attempts for sample in samples} >= {1, 2, 3}
    assert samples[-1].attempts == 1  # without a control nothing can fail


def test_what_passes_is_never_drawn_again(generator: Generator, picky: list[Sequence[str]]) -> None:
    request = generator.request([SIMPLE], n=8, seed=3)
    once = generator.generate([request], QUICK)
    picky.clear()
    samples = generator.generate([request], dataclasses.replace(QUICK, until_success=3))
    assert [s.tokens for s in samples if s.attempts == 1] == [s.tokens for s in once if s.success]
    assert len(picky) == sum(sample.attempts for sample in samples)
    assert all(sample.attempts == 4 for sample in samples if not sample.success)
    assert sum(sample.success is True for sample in samples) > sum(sample.success is True for sample in once)
    assert generator.generate([request], dataclasses.replace(QUICK, until_success=0)) == once


def test_what_no_oracle_judged_is_not_drawn_again(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    unsure = lambda self, texts, targets: shown.extend(texts) or [Verdict(None)] * len(texts)  # noqa: E731
    monkeypatch.setattr(type(generator.controls.classifier("pos")), "check", unsure)
    samples = generator.generate([generator.request([SIMPLE], n=3)], dataclasses.replace(QUICK, until_success=5))
    assert [sample.attempts for sample in samples] == [1, 1, 1]
    assert len(shown) == 3


# Lengths


def test_a_list_is_asked_for_where_there_is_one_thing(generator: Generator) -> None:
    with pytest.raises(UsageError, match="controls are a list of texts"):
        generator.request("pos: DET NOUN")
    with pytest.raises(UsageError, match="a list of requests"):
        generator.generate(generator.request([]))  # type: ignore[arg-type]


def test_a_model_has_a_temperature_of_its_own(generator: Generator, model_copy: Path) -> None:
    config = json.loads((model_copy / "config.json").read_text())
    config["diffusion"]["temperature"] = 0.3
    (model_copy / "config.json").write_text(json.dumps(config))
    cold = Generator(str(model_copy))

    def texts(of: Generator, settings: Settings = QUICK) -> list[str]:
        return [sample.text for sample in of.generate([of.request([], n=12)], settings)]

    assert texts(cold) == texts(generator, replace(QUICK, temperature=0.3)) != texts(generator)
    assert texts(cold, replace(QUICK, temperature=1.2)) == texts(generator)


@pytest.mark.parametrize("temperature", [0, -1, 1e9, "warm"])
def test_a_temperature_that_cannot_be_is_refused(temperature: object, model_copy: Path) -> None:
    config = json.loads((model_copy / "config.json").read_text())
    config["diffusion"]["temperature"] = temperature
    (model_copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CtrlgenError, match="not a ctrlgen model"):
        from_pretrained(str(model_copy))


def test_lengths_follow_the_training_texts(generator: Generator) -> None:
    drawn = [draw_length(generator.model, range(1, 13), seed) for seed in range(1500)]
    trained = generator.model.lengths
    assert set(trained) == {6, 7, 8, 9, 10, 11}
    for n in range(1, 13):
        share = trained.get(n, 0) / sum(trained.values())
        assert drawn.count(n) / 1500 == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 1500))


def test_lengths_follow_the_controls(generator: Generator) -> None:
    def lengths(*controls: str) -> set[int]:
        return {job.length for job in Draws(generator.model, [generator.request(controls, n=60)]).first()}

    assert lengths(SIMPLE) == {6}
    assert lengths("pos: DET NOUN VERB DET NOUN ADP DET NOUN PUNCT ...") == {9, 10, 11}
    assert lengths("pos: * ...") == {6, 7, 8, 9, 10, 11}
    assert lengths(f"not {SIMPLE}") == {6, 7, 8, 9, 10, 11}  # another pattern of that length will do
    assert lengths("pos: DET NOUN") == {2}  # however rare


def test_not_of_a_pattern_of_another_length_holds_already(generator: Generator) -> None:
    """Whether the pattern is longer or shorter than the text: nothing is steered, and the guide is certain."""
    ours = {"n": 3, "seed": 5}
    for pattern in (SIMPLE, "pos: DET NOUN", f"{SIMPLE} ..."):
        with_it, without = (
            generator.generate([generator.request([*controls, "length: 4"], **ours)], QUICK)
            for controls in ([f"not {pattern}"], [])
        )
        assert [s.text for s in with_it] == [s.text for s in without]
        assert [s.controls[0].score for s in with_it] == [1.0] * 3
        assert all(s.controls[0].verdict.success for s in with_it)
    drawn = generator.generate([generator.request([f"not {SIMPLE}"], n=12)], QUICK)
    assert {s.controls[0].score for s in drawn if len(s.tokens) != 6} == {1.0}
    assert any(s.controls[0].score < 1 for s in drawn if len(s.tokens) == 6)


def test_a_range_without_training_texts_takes_its_shortest(generator: Generator) -> None:
    assert draw_length(generator.model, [2, 3, 4], seed=0) == 2
    assert draw_length(generator.model, [12], seed=0) == 12


@pytest.mark.parametrize("count", [1, 2, 12])
def test_samples_have_the_length_asked_for(generator: Generator, count: int) -> None:
    (sample,) = generator.generate([Request((length(f"length: {count}"),))], QUICK)
    assert len(sample.tokens) == count
    assert (sample.success, sample.score) == (True, 1.0)


def test_controls_of_length_intersect(generator: Generator) -> None:
    allowed = partial(allowed_lengths, generator.model)
    assert allowed([length("length: 3-9"), length("length: 5-20"), length("length: 1-7")]) == [
        5,
        6,
        7,
    ]
    assert allowed([length("length: 3-9"), length("not length: 4-8")]) == [3, 9]
    assert allowed([length("not length: 3")]) == [1, 2, *range(4, 13)]
    assert allowed_lengths(
        generator.model, [length("length: 2-4"), *generator.request(["pos: DET NOUN * ..."]).controls]
    ) == [3, 4]


def test_contradictory_lengths_name_both_controls(generator: Generator) -> None:
    allowed = partial(allowed_lengths, generator.model)
    with pytest.raises(UsageError) as raised:
        allowed([length("length: 1-9"), length("length: 3-5"), length("length: 7-9")])
    assert str(raised.value) == "'length: 3-5' and 'length: 7-9' contradict each other: they allow no common length"
    with pytest.raises(UsageError, match=r"'pos: DET NOUN' and 'pos: DET NOUN VERB' contradict"):
        generator.request(["pos: DET NOUN", "pos: DET NOUN VERB"])
    with pytest.raises(UsageError, match=r"'length: 3-5', 'not length: 3', 'not length: 4-5' allow no common length"):
        allowed([length("length: 3-5"), length("not length: 3"), length("not length: 4-5")])


def test_too_long_a_pattern(generator: Generator) -> None:
    text = "pos:" + " NOUN" * 13
    with pytest.raises(UsageError) as raised:
        generator.request([text])
    assert str(raised.value) == f"{text!r} asks for a length beyond this model, which writes 1 to 12 words"
    assert allowed_lengths(generator.model, generator.request(["pos:" + " NOUN" * 12]).controls) == [12]
    with pytest.raises(UsageError, match="1 to 12 words"):
        generator.request([f"{text} ..."])


# What is handed back

VERDICT = Verdict(False, "position 1 'a': wanted NOUN, got DET", (0,), 0.5)


def made_sample(*outcomes: bool | None) -> Sample:
    results = tuple(
        ControlResult(length("length: 1-2"), dataclasses.replace(VERDICT, success=outcome), 0.5) for outcome in outcomes
    )
    return Sample(Request(id="a1"), 0, "a cat", ["a", "cat"], 7, results)


def test_the_documented_json_form() -> None:
    assert json.dumps(made_sample(False).as_json()) == json.dumps({
        "id": "a1", "index": 0, "text": "a cat", "tokens": ["a", "cat"], "seed": 7, "success": False, "score": 0.5,
        "attempts": 1, "cost": None, "cost_by": None, "costliest_word": None, "slip": None, "controls": [{
            "control": "length: 1-2", "success": False, "score": 0.5, "detail": "position 1 'a': wanted NOUN, got DET",
        }],
    })  # fmt: skip


@pytest.mark.parametrize(
    ("outcomes", "success"),
    [
        ((True,), True),
        ((True, True), True),
        ((True, False), False),
        ((None, False), False),
        ((True, None), None),
        ((None,), None),
    ],
)
def test_success_is_what_every_oracle_agrees_on(outcomes: tuple[bool | None, ...], success: bool | None) -> None:
    assert made_sample(*outcomes).success is success


def test_the_score_is_the_guides_joint_probability(generator: Generator) -> None:
    assert made_sample(True, True, True).score == pytest.approx(0.125)
    assert made_sample().score is None
    request = generator.request([SIMPLE, "not pos: DET NOUN VERB DET NOUN NOUN"], n=2)
    for sample in generator.generate([request], QUICK):
        ids = torch.tensor([generator.model.tokenizer.ids(sample.tokens)])
        clean = generator.reader.clean(ids, None)
        positive, negative = (
            float(c.classifier.log_prob(clean, c.classifier.encode([c.target], [6])).exp().detach())
            for c in request.controls
        )
        assert [result.score for result in sample.controls] == pytest.approx([positive, 1 - negative], abs=1e-4)
        assert sample.score == pytest.approx(positive * (1 - negative), abs=1e-4)


def test_the_json_of_a_real_sample_reads_back(generator: Generator) -> None:
    (sample,) = generator.generate([generator.request([SIMPLE], seed=7, id={"any": ["thing"]})], QUICK)
    read = json.loads(json.dumps(sample.as_json()))
    assert list(read) == [
        "id",
        "index",
        "text",
        "tokens",
        "seed",
        "success",
        "score",
        "attempts",
        "cost",
        "cost_by",
        "costliest_word",
        "slip",
        "controls",
    ]
    assert [list(control) for control in read["controls"]] == [["control", "success", "score", "detail"]]
    assert (read["id"], read["seed"], read["controls"][0]["control"]) == ({"any": ["thing"]}, 7, SIMPLE)
    assert len(read["tokens"]) == 6
    assert 0.0 <= read["score"] <= 1.0


# Sampling


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm"])
@pytest.mark.parametrize("steps", [1, 2, 8, 16, 24, 50])
def test_every_sampler_runs_in_any_number_of_steps(generator: Generator, sampler: str, steps: int) -> None:
    watched: list[Step] = []
    settings = Settings(steps=steps, sampler=sampler)  # type: ignore[arg-type]
    requests = [generator.request([SIMPLE], n=2), generator.request(["pos: DET NOUN VERB *"])]
    samples = generator.generate(requests, settings, watched.append)
    assert [len(sample.tokens) for sample in samples] == [6, 6, 4]
    assert len(watched) == 2 * steps  # two lengths, so two batches
    assert (watched[-1].done, watched[-1].total) == (16 * steps, 16 * steps)
    assert [step.done for step in watched] == sorted(step.done for step in watched)


def test_ddim_with_eta_1_draws_noise_and_with_0_does_not(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    call = SeededNoise.__call__
    monkeypatch.setattr(SeededNoise, "__call__", lambda self: drawn.append(1) or call(self))
    request = generator.request([], seed=3)
    generator.generate([request], Settings(steps=6, redrafts=0, sampler="ddim"))
    assert len(drawn) == 1  # where it starts
    drawn.clear()
    generator.generate([request], Settings(steps=6, redrafts=0, sampler="ddim", eta=1.0))
    assert len(drawn) == 6


def test_unguided_samples_speak_the_toy_grammar(generator: Generator) -> None:
    patterns = {" ".join(tags) for _, tags in toy_sentences(300)}
    samples = generator.generate([generator.request([], n=40)])
    grammatical = [" ".join(TAG_OF.get(word, "?") for word in sample.tokens) in patterns for sample in samples]
    assert sum(grammatical) >= 14  # so small a model confuses its patterns, but words at random are never one


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(guidance=Guidance("exact")),
        Settings(guidance=Guidance("paper")),
    ],
    ids=["gradient", "exact", "paper"],
)
def test_every_kind_of_guidance_moves_samples_to_the_pattern(generator: Generator, settings: Settings) -> None:
    wanted = "DET ADJ NOUN VERB DET NOUN PUNCT"  # as frequent as DET NOUN VERB DET ADJ NOUN PUNCT
    controls = generator.request([f"pos: {wanted}"]).controls

    def right(settings: Settings) -> int:
        samples = generator.generate([Request(controls, n=24, seed=50)], settings)
        return sum(" ".join(TAG_OF.get(word, "?") for word in sample.tokens) == wanted for sample in samples)

    unguided = right(Settings(guidance=Guidance(strength=0.0)))
    assert unguided <= 18
    assert right(settings) > unguided


def test_strength_0_is_unguided(generator: Generator) -> None:
    nothing, asked = generator.request([], n=4), generator.request(["pos: DET ..."], n=4)
    for method in ("gradient", "exact", "paper"):
        settings = Settings(steps=8, redrafts=0, guidance=Guidance(method, strength=0.0))  # type: ignore[arg-type]
        assert tokens(generator.generate([asked], settings)) == tokens(generator.generate([nothing], settings))


def test_a_control_of_weight_0_or_of_nothing_is_unguided(generator: Generator) -> None:
    free = tokens(generator.generate([generator.request([], n=4)], QUICK))
    assert tokens(generator.generate([generator.request(["pos: VERB ... @0"], n=4)], QUICK)) == free
    assert tokens(generator.generate([generator.request(["pos: * ..."], n=4)], QUICK)) == free


@pytest.mark.parametrize(
    ("text", "window", "guided"),
    [
        (SIMPLE, (0.0, 1.0), 9),
        (f"{SIMPLE} @1[0:0.5]", (0.0, 1.0), 5),
        (f"{SIMPLE} @1[0.7:1]", (0.0, 1.0), 3),
        (SIMPLE, (0.0, 0.25), 3),
        (f"{SIMPLE} @1[0.5:1]", (0.0, 0.25), 0),
    ],
)
def test_windows(
    generator: Generator,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    window: tuple[float, float],
    guided: int,
) -> None:
    request = generator.request([text])
    classifier = request.controls[0].classifier
    calls = []
    log_prob = classifier.log_prob
    monkeypatch.setattr(classifier, "log_prob", lambda *args: calls.append(1) or log_prob(*args))
    generator.generate([request], Settings(steps=9, redrafts=0, guidance=Guidance(window=window), restart=0.0))
    assert len(calls) == guided + 1  # and once for the score


def right_patterns(generator: Generator, settings: Settings) -> int:
    """Of 24 texts, how many have a pattern that two fifths of unguided ones of its length have. A word has one tag."""
    pattern = "DET ADJ NOUN VERB DET NOUN PUNCT"
    samples = generator.generate([generator.request([f"pos: {pattern}"], n=24, seed=3)], settings)
    return sum([TAG_OF[word] for word in sample.tokens] == pattern.split() for sample in samples)


def test_a_later_thread_has_all_cores(toy_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch gives a new thread as many as were last set in any, and a batch has one."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    generator = Generator(str(toy_model))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    asked = []
    monkeypatch.setattr(workers, "make_batches", lambda jobs, workers=1: asked.append(workers) or make_batches(jobs))
    generator.generate([generator.request([])], QUICK)
    assert asked[0] == 3


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm"])
def test_guidance_steers_every_sampler(generator: Generator, monkeypatch: pytest.MonkeyPatch, sampler: Any) -> None:
    """By its gradients alone: nothing is chosen in closed form, nothing corrected."""
    monkeypatch.setattr(Pos, "word_log_prob", lambda *args: None)
    settings = Settings(steps=16, redrafts=0, sampler=sampler, corrections=0)
    assert right_patterns(generator, settings) >= 22
    assert right_patterns(generator, replace(settings, guidance=Guidance(strength=0.0))) <= 16


def test_the_last_words_are_chosen_under_the_control(generator: Generator) -> None:
    """However weak the guidance on the way."""
    weak = Settings(steps=8, redrafts=0, guidance=Guidance(strength=1e-6), corrections=0)
    assert right_patterns(generator, weak) == 24


def test_the_levels_fall_and_start_again_once(generator: Generator) -> None:
    schedule = generator.model.schedule
    first, again = noise_levels(generator.model, Settings(steps=10, redrafts=0))
    assert torch.equal(first, schedule.steps(6))
    assert torch.equal(again, schedule.steps(4, 0.5))
    for settings in (
        Settings(steps=10, redrafts=0, restart=0.0),
        Settings(steps=10, redrafts=0, sampler="dpm"),
        Settings(steps=10, redrafts=0, guidance=Guidance("paper")),
    ):
        (levels,) = noise_levels(generator.model, settings)
        assert torch.equal(levels, schedule.steps(10))


def drafts_of(generator: Generator, *texts: str) -> Prediction:
    """A prediction that is sure of these texts, a row each."""
    ids = torch.tensor([generator.model.tokenizer.ids(text.split()) for text in texts])
    logits = 20.0 * torch.nn.functional.one_hot(ids, len(generator.model.tokenizer))
    x_0 = generator.reader.embeddings[ids]
    return Prediction(x_0, torch.tensor(0.0), x_0, logits)


def test_a_restart_keeps_the_earlier_draft_where_the_guides_like_it_better(generator: Generator) -> None:
    right, as_right, wrong = "the cat sees a dog .", "a river likes the house .", "a small cat sees the dog"
    earlier = drafts_of(generator, right, right, wrong)
    later = drafts_of(generator, wrong, as_right, right)
    terms = batch_of(generator, generator.request([SIMPLE], n=3)).terms
    best = better_draft(generator.reader, earlier, later, None, terms)
    expected = drafts_of(generator, right, as_right, right)
    assert torch.equal(best.x0_hat, expected.x0_hat)
    assert torch.equal(best.logits, expected.logits)
    assert better_draft(generator.reader, earlier, later, None, []) is later
    assert better_draft(generator.reader, None, later, None, terms) is later


def test_a_restart_starts_from_the_better_draft(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """x_s = alpha_s x0_hat + sigma_s eps, and the denoiser is told x0_hat as its last word."""
    started, chosen, said = [], [], []
    q_sample, steer = denoising.q_sample, denoising.steer

    def choose(*given: Any) -> Prediction:
        chosen.append(better_draft(*given))
        return chosen[-1]

    monkeypatch.setattr(
        denoising, "q_sample", lambda *given: started.append((given, q_sample(*given))) or started[-1][1]
    )
    monkeypatch.setattr(denoising, "better_draft", choose)
    monkeypatch.setattr(denoising, "steer", lambda *given, **more: said.append(given) or steer(*given, **more))
    batch = batch_of(generator, generator.request([SIMPLE], n=3))
    ids = list(drafts(batch, Settings(steps=10, redrafts=0)))
    ((x_0, _, level), x_s), (first, last) = *started, chosen
    assert torch.equal(x_0, first.x0_hat)
    assert level == generator.model.schedule.steps(4, 0.5)[0]
    assert torch.equal(said[6][1], x_s)
    assert torch.equal(said[6][0].keywords["self_condition"], first.x0_hat)
    assert len(ids) == 10
    assert torch.equal(ids[5], first.logits.argmax(-1))
    assert torch.equal(ids[-1], last.logits.argmax(-1))


def test_the_denoiser_is_told_of_another_level(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[torch.Tensor] = []
    steer = denoising.steer

    def note(denoiser: Any, *given: Any, **more: Any) -> Any:
        told.append(denoiser.keywords["log_snr"])
        return steer(denoiser, *given, **more)

    monkeypatch.setattr(denoising, "steer", note)
    settings = Settings(steps=6, redrafts=0, time_offset=-0.7)
    generator.generate([generator.request([SIMPLE])], settings)
    torch.testing.assert_close(torch.cat(told), torch.cat(noise_levels(generator.model, settings)) - 0.7)


def test_special_tokens_are_never_written(generator: Generator) -> None:
    """Even where the model wants nothing else."""
    model = copy.deepcopy(generator.model)
    with torch.no_grad():
        model.denoiser.output.bias[model.tokenizer.ids(SPECIAL)] = 1000.0
    for settings in (QUICK, dataclasses.replace(QUICK, sampler="dpm"), dataclasses.replace(QUICK, temperature=5.0)):
        samples = Generator(model).generate([Request(n=4)], settings)
        assert not set(SPECIAL) & {word for sample in samples for word in sample.tokens}
        assert all(len(sample.tokens) >= 6 for sample in samples)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature_divides_the_logits(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    predictions: list[Prediction] = []
    make_sampler = denoising.make_sampler

    def recorded(*arguments: Any) -> Iterator[Prediction]:
        for prediction in make_sampler(*arguments):
            predictions.append(prediction)
            yield prediction

    monkeypatch.setattr(denoising, "make_sampler", recorded)
    generator.generate([generator.request([], n=2)], Settings(steps=4, redrafts=0, temperature=temperature))
    for prediction in predictions:
        expected = (prediction.logits / temperature).softmax(-1) @ generator.reader.embeddings
        torch.testing.assert_close(prediction.x0_hat, expected)


def test_texts_for_a_look_in_training(generator: Generator) -> None:
    texts = sample_texts(generator.model, count=3, seed=1, settings=QUICK)
    assert texts == [sample.text for sample in generator.generate([Request(n=3, seed=1)], QUICK)]


# Fixed length, as in Diffusion-LM


@pytest.fixture
def paper_model() -> DiffusionLM:
    """An untrained `mse` model over the toy words, with random weights everywhere."""
    tokenizer = WordTokenizer.train([" ".join(words) for words, _ in toy_sentences(100)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = DenoiserConfig(
            vocab_size=len(tokenizer), embedding_dim=8, width=16, layers=1, heads=2, max_length=10, objective="mse"
        )
        denoiser = Denoiser(config).eval()
        torch.nn.init.normal_(denoiser.output.weight, std=0.5)
        torch.nn.init.normal_(denoiser.output.bias, std=0.5)
    denoiser.requires_grad_(False)
    return DiffusionLM(denoiser, make_schedule("sqrt"), tokenizer, DiffusionConfig("sqrt"))


def test_fixed_length_samples_are_cut_at_the_end(paper_model: DiffusionLM, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Generator(paper_model)
    cat, end, pad = (generator.model.tokenizer.ids([word])[0] for word in ("cat", "<end>", "<pad>"))
    rows = [[cat] * 3 + [end] + [pad] * 6, [cat] * 2 + [end] + [cat] * 7, [cat] * 10, [end] + [cat] * 9]
    drawn = iter([torch.tensor(rows)])
    monkeypatch.setattr(drawing, "drafts", lambda batch, settings: drawn)
    samples = generator.generate([generator.request([], n=4)], QUICK)
    assert [len(sample.tokens) for sample in samples] == [3, 2, 10, 0]


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm"])
def test_every_sampler_runs_at_fixed_length(paper_model: DiffusionLM, sampler: str) -> None:
    generator = Generator(paper_model)
    assert {job.length for job in Draws(paper_model, [generator.request([], n=5)]).first()} == {10}
    samples = generator.generate([generator.request([], n=5)], Settings(steps=8, redrafts=0, sampler=sampler))  # type: ignore[arg-type]
    for sample in samples:
        assert len(sample.tokens) <= 10
        assert not set(SPECIAL) & set(sample.tokens)


def test_a_fixed_length_model_never_writes_unk(paper_model: DiffusionLM) -> None:
    """Even where it predicts the very embedding of <unk>."""
    with torch.no_grad():
        paper_model.denoiser.output.weight.zero_()
        paper_model.denoiser.output.bias.copy_(paper_model.denoiser.word_embedding[paper_model.tokenizer.unk_id])
    samples = Generator(paper_model).generate([Request(n=2)], QUICK)
    assert "<unk>" not in {word for sample in samples for word in sample.tokens}


def test_a_fixed_length_model_keeps_a_place_for_the_end(paper_model: DiffusionLM) -> None:
    generator = Generator(paper_model)
    assert allowed_lengths(generator.model, [length("length: 9")]) == [9]
    with pytest.raises(UsageError, match="'length: 10' asks for a length beyond this model, which writes 1 to 9 words"):
        allowed_lengths(generator.model, [length("length: 10")])


def test_length_at_fixed_length_is_where_the_end_stands(paper_model: DiffusionLM) -> None:
    """Against the sum over every way to have an <end> or none at each of the ten positions."""
    classifier = Length.load(paper_model, "length")
    assert not classifier.structural
    x_t = torch.randn(2, 10, 8, generator=torch.Generator().manual_seed(0))
    denoised = paper_model.denoiser(x_t, torch.zeros(1))
    p_end = denoised.probs[..., paper_model.tokenizer.end_id]
    expected = torch.zeros(2, 2)
    targets = [range(3, 4), range(2, 5)]
    for ends in itertools.product([False, True], repeat=10):
        p = torch.where(torch.tensor(ends), p_end, 1 - p_end).prod(1)
        for place, target in enumerate(targets):
            expected[:, place] += p * (True in ends and ends.index(True) in target)
    for place, target in enumerate(targets):
        log_p = classifier.log_prob(denoised, classifier.encode([target] * 2, [10, 10]))
        torch.testing.assert_close(log_p, expected[:, place].log())


def test_length_guides_a_fixed_length_model(paper_model: DiffusionLM) -> None:
    generator = Generator(paper_model)
    samples = generator.generate([generator.request(["length: 4 @4"], n=20)], replace(QUICK, steps=24))
    unguided = generator.generate([generator.request([], n=20)], replace(QUICK, steps=24))
    right, by_chance = (sum(len(sample.tokens) == 4 for sample in drawn) for drawn in (samples, unguided))
    assert right >= by_chance + 6


def test_clamping_lands_on_embeddings_at_every_step(
    paper_model: DiffusionLM, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for writer in (generator, Generator(paper_model)):
        seen: list[Tensor] = []

        def watching(*given: Any, **more: Any) -> Prediction:
            seen.append(Prediction(*given, **more).x0_hat)  # noqa: B023
            return Prediction(*given, **more)

        monkeypatch.setattr(denoising, "Prediction", watching)
        writer.generate([writer.request([], n=2)], replace(QUICK, clamp=True))
        assert len(seen) >= QUICK.steps
        for x0_hat in seen:
            assert torch.cdist(x0_hat, writer.reader.embeddings[None]).amin(-1).max() < 1e-3


def test_exact_guidance_of_a_fixed_length_model_needs_a_closed_form(paper_model: DiffusionLM) -> None:
    generator = Generator(paper_model)
    with pytest.raises(UsageError, match="length: has no closed form; use --guidance gradient"):
        generator.generate([generator.request(["length: 4"])], Settings(guidance=Guidance("exact")))
    word = paper_model.tokenizer.words[-1]
    settings = replace(QUICK, steps=24, guidance=Guidance("exact"))
    guided, plain = (
        sum(word in sample.tokens for sample in generator.generate([generator.request(controls, n=20)], settings))
        for controls in ([f"words: {word}"], [])
    )
    assert guided > plain


def test_a_fixed_length_model_fills_blanks(paper_model: DiffusionLM) -> None:
    generator = Generator(paper_model)
    word = paper_model.tokenizer.words[-1]
    for infilling in ("conditioned", "replaced"):
        request = generator.request([], n=3, template=f"{word} ___{{1-3}} {word}")
        assert request.template is not None
        settings = replace(QUICK, infilling=infilling)  # type: ignore[arg-type]
        for sample in generator.generate([request], settings):
            assert request.template.matches(sample.tokens)


# What is refused


@pytest.mark.parametrize("seed", [2**64, -(2**64), 10**30])
def test_seeds_beyond_what_a_generator_takes(generator: Generator, seed: int) -> None:
    with pytest.raises(UsageError, match="seed"):
        generator.request([], seed=seed)


@pytest.mark.parametrize("n", [0, -1, 10**12])
def test_no_samples(generator: Generator, n: int) -> None:
    with pytest.raises(UsageError, match="n must be between 1 and"):
        generator.request([], n=n)


def test_nothing_is_asked_and_nothing_answered(generator: Generator) -> None:
    assert generator.generate([], QUICK) == []


def test_a_generator_loads_a_directory_or_takes_a_model(generator: Generator, toy_model: Path) -> None:
    request = Request(n=2)
    assert tokens(Generator(generator.model).generate([request], QUICK)) == tokens(
        Generator(str(toy_model)).generate([request], QUICK)
    )
