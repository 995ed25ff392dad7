"""Evaluation: targets, formats, figures by hand, resumption, and texts known to be good or bad."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from toy_grammar import TAG_OF

from ctrlgen.checkpoint import from_pretrained, save_pretrained
from ctrlgen.controls.classifier import Verdict
from ctrlgen.controls.template import parse_template
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.evaluation import metrics
from ctrlgen.evaluation.calibration import fit_temperatures, write_temperatures
from ctrlgen.evaluation.evaluation import Evaluation
from ctrlgen.evaluation.figures import evaluations, parts_right
from ctrlgen.evaluation.metrics import calibrate, estimate
from ctrlgen.evaluation.novelty import Training
from ctrlgen.evaluation.plan import Plan
from ctrlgen.evaluation.records import RECORDS, Record
from ctrlgen.evaluation.results import Results
from ctrlgen.evaluation.targets import (
    Example,
    Target,
    ask,
    expand_suites,
    make_targets,
    published_target,
    read_examples,
    read_targets,
    without_middle,
)
from ctrlgen.generation.generator import Generator
from ctrlgen.settings import Guidance, Settings
from ctrlgen_classifiers.length import Length

QUICK = Settings(steps=4)


class ByLength:
    """A cost model whose costs can be worked out by hand."""

    name = "by length"

    def costs(self, texts: list[tuple[str, ...]]) -> list[float]:
        return [float(len(words)) for words in texts]


@pytest.fixture
def run(generator: Generator, toy_data: Path) -> Callable[..., Results]:
    def run(directory: Path | None = None, generator: Generator = generator, **plan: Any) -> Results:
        asked: dict[str, Any] = {} if "targets" in plan else {"suites": ("length",), "data": (str(toy_data),)}
        given = asked | {"limit": 6, "settings": QUICK} | plan
        return Evaluation(Plan(**given, report=directory), generator, [ByLength()]).run()

    return run


# Targets


def test_examples_of_several_sources_are_joined_by_their_text(generator: Generator, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "the cat sees a dog .", "food": "fish"}) + "\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "the cat sees a dog .", "tree": "(S x)"}) + "\n")
    (example,) = read_examples(generator, [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    assert (example.row["food"], example.row["tree"]) == ("fish", "(S x)")


def test_the_same_texts_are_taken_whatever_the_limit(generator: Generator, toy_data: Path) -> None:
    examples = read_examples(generator, [str(toy_data)])
    few, many = (make_targets(generator, "length", examples, limit, seed=0) for limit in (3, 9))
    assert few == many[:3]
    assert all(target.controls == (f"length: {len(target.references[0])}",) for target in many)


def test_words_are_drawn_from_the_text(generator: Generator) -> None:
    words = generator.controls.classifier("words")
    text = "the cat sees a dog .".split()
    for seed in range(20):
        (value,) = words.values_of([text], [{}], Random(seed))
        assert value is not None
        assert {word.strip() for word in value.split(",")} <= set(text) - {"."}
        (verdict,) = words.check([text], [words.parse(value)])
        assert verdict.success


@pytest.mark.parametrize("suite", ["starts", "ends", "words", "length", "length+words"])
def test_every_text_has_what_is_asked_of_it(suite: str, run: Callable[..., Results]) -> None:
    human = run(suites=(suite,)).row(suite, "human")
    assert human is not None
    assert human.success is not None
    assert human.success.mean == 1.0


def test_the_middle_third_is_taken_out(generator: Generator) -> None:
    assert without_middle(tuple("abcdefg")) == "a b ___{2} e f g"
    template = parse_template("a b ___{2} e", generator.model.tokenizer)
    assert template.matches("a b x y e".split())
    assert not template.matches("a b x e".split())
    assert not template.matches("a c x y e".split())
    assert parse_template("___ b ___{1-2}", generator.model.tokenizer).matches("x y b b".split())


def test_a_suite_that_the_model_lacks(generator: Generator) -> None:
    assert "tree" not in expand_suites(["all"], generator)
    assert {"pos", "length", "words", "infill", "unguided"} <= set(expand_suites(["all"], generator))
    with pytest.raises(UsageError, match="no control 'tree'"):
        expand_suites(["tree"], generator)
    with pytest.raises(UsageError, match=r"no control 'lenght'.*length"):
        expand_suites(["lenght"], generator)


# Files of targets

PUBLISHED = [
    (
        {"pos": ["START", "DET", "NOUN", "VERB", "X", "END"], "words_": ["START", "The", "cat", "sees", "\n", "END"]},
        Target(("pos: DET NOUN VERB",), (("The", "cat", "sees"),), newline=True),
    ),
    (
        {"spans": [[0, 1, "NP"]], "words_": ["START", "The", "cat", "sees", "END"]},
        Target(("span: NP 1-2",), (("The", "cat", "sees"),)),
    ),
    (
        {"tree": "(TOP (S (NP (DT The) (NN cat)) (VP (VBZ sees))))", "words_": ["START", "The", "cat", "sees", "END"]},
        Target(("tree: (TOP (S (NP * *) (VP *)))",), (("The", "cat", "sees"),)),
    ),
]


@pytest.mark.parametrize(("line", "target"), PUBLISHED)
def test_published_formats(line: dict[str, Any], target: Target) -> None:
    assert published_target(line) == target


def test_files_of_targets(generator: Generator, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('["food", ":", "Japanese"]\n\n{"controls": ["length: 4"], "reference": "the cat sees ."}\n')
    assert read_targets(path, generator) == [
        Target(("food: Japanese",)),
        Target(("length: 4",), (("the", "cat", "sees", "."),)),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '"food: Japanese"',
        '{"controls": "length: 4"}',
        '{"controls": ["length: 4"], "template": 5}',
        '["food"]',
        '{"controls": []}',
        '{"controls": [3]}',
        "7",
        '{"pos": "x"',
    ],
)
def test_a_wrong_line_is_named(text: str, generator: Generator, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"controls": ["length: 4"]}\n' + text + "\n")
    with pytest.raises(UsageError, match=r"line 2: no target; write"):
        read_targets(path, generator)


def test_an_empty_file_of_targets(generator: Generator, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("\n")
    with pytest.raises(CtrlgenError, match="holds no targets"):
        read_targets(tmp_path / "t.jsonl", generator)


def test_targets_that_are_not_understood_are_left_out_and_told(generator: Generator) -> None:
    asked = ask(generator, "x", [Target(("length: 4",)), Target(("length: none",))], 1, 0)
    assert (len(asked.targets), len(asked.left_out)) == (1, 1)
    with pytest.raises(CtrlgenError, match=r"no target for this model: .*unknown control 'mood'"):
        ask(generator, "x", [Target(("mood: gay",))], 1, 0)


# Metrics


def test_distinct() -> None:
    assert metrics.distinct(["a b a b".split(), "a b".split()], 1) == 2 / 6
    assert metrics.distinct(["a b a b".split(), "a b".split()], 2) == 2 / 4
    assert metrics.distinct([], 1) is None


def test_self_bleu_is_high_for_copies() -> None:
    pytest.importorskip("sacrebleu")
    copies, varied = ["the cat sees a dog".split()] * 3, ["a b c d".split(), "e f g h".split(), "i j k l".split()]
    assert metrics.self_bleu(copies) == pytest.approx(100)
    assert metrics.self_bleu(varied) < 1


def test_rouge_l() -> None:
    assert metrics.rouge_l("the cat".split(), "the cat".split()) == 1
    assert metrics.rouge_l("the red cat".split(), "the cat".split()) == pytest.approx(2 * 2 / 5)
    assert metrics.rouge_l([], "the".split()) == 0


def test_novelty() -> None:
    training = Training(["the cat sees a dog".split(), "a dog sleeps".split()])
    assert training.copied("a dog sleeps".split())
    assert not training.copied("a dog".split())
    texts = ["one day the cat sees the dog", "nothing here", "", "a dog sleeps", "dog a dog sleeps a", "dog dog"]
    assert training.longest_shared([text.split() for text in texts]) == [3, 0, 0, 3, 3, 1]


def test_an_estimate_is_a_ratio_with_an_interval() -> None:
    some = estimate([1, 0, 2], [2, 2, 4])
    assert some is not None
    assert some.mean == 3 / 8
    assert some.low <= some.mean <= some.high
    certain = estimate([1.0] * 5)
    assert certain is not None
    assert (certain.low, certain.high) == (1, 1)
    assert estimate([]) is None


def test_the_intervals_cover_the_truth() -> None:
    rng = Random(0)
    covered = 0
    for seed in range(200):
        found = estimate([float(rng.random() < 0.3) for _ in range(80)], seed=seed)
        assert found is not None
        covered += found.low <= 0.3 <= found.high
    assert 0.88 < covered / 200 < 0.99


def test_calibration_finds_the_temperature() -> None:
    rng = torch.Generator().manual_seed(0)
    honest = torch.rand(4000, generator=rng, dtype=torch.float64)
    right = torch.rand(4000, generator=rng, dtype=torch.float64) < honest
    too_sure = torch.sigmoid(3.0 * torch.logit(honest))
    found = calibrate(too_sure.tolist(), right.tolist())
    assert found is not None
    assert found.temperature == pytest.approx(3.0, rel=0.15)
    assert found.error > 0.1
    assert found.error_after < 0.04
    assert calibrate([0.5], [True]) is None


def test_the_calibration_error_is_of_texts_that_the_temperature_was_not_fitted_to() -> None:
    """Every second text: those are right as often as their scores say, the others never."""
    scores, right = [0.3, 0.5] * 40, [i % 4 == 1 for i in range(80)]
    found = calibrate(scores, right)
    assert found is not None
    assert found.error == pytest.approx(0.0)


# A run


def test_the_figures_of_a_run(run: Callable[..., Results]) -> None:
    results = run(suites=("length", "unguided"), limit=8)
    ours, human = results.row("length", "ctrlgen"), results.row("length", "human")
    assert ours is not None
    assert human is not None
    assert ours.success is not None
    assert (ours.success.mean, ours.also["within 2"].mean, ours.unchecked) == (1, 1, 0)
    lengths = [len(record.tokens) for record in results.records if record.group == ("length", "human", "")]
    assert human.cost["by length"].mean == pytest.approx(sum(lengths) / len(lengths))
    assert ours.gap["by length"].mean == 0  # the same lengths cost the same
    assert ours.exp_mean["by length"] == pytest.approx(sum(math.exp(n) for n in lengths) / len(lengths))
    assert ours.evaluations == 16 + 4 + 2 * (16 + 4)  # of a text, at most; each is read, and may be written anew twice
    unguided = results.row("unguided", "ctrlgen")
    assert unguided is not None
    assert unguided.success is None


def test_figures_do_not_depend_on_the_company(run: Callable[..., Results]) -> None:
    alone = run(suites=("length",), limit=3)
    together = run(suites=("words", "length"), limit=7)

    def texts(results: Results) -> list[list[str]]:
        return [r.tokens for r in results.records if r.group == ("length", "ctrlgen", "") and r.target < 3]

    assert texts(alone) == texts(together)


def test_a_seed_moves_the_samples_but_not_the_targets(run: Callable[..., Results]) -> None:
    results = run(seeds=(0, 1))
    first, second = ([r.tokens for r in results.records if r.system == "ctrlgen" and r.seed == s] for s in (0, 1))
    assert first != second
    assert [len(words) for words in first] == [len(words) for words in second]
    assert len([r for r in results.records if r.system == "human"]) == 6


def test_an_interrupted_run_continues_with_the_same_figures(run: Callable[..., Results], tmp_path: Path) -> None:
    whole = run(tmp_path / "a", suites=("length", "words"))
    lines = (tmp_path / "a" / RECORDS).read_text().splitlines()
    (tmp_path / "b").mkdir()
    torn = "\n".join([*lines[:3], lines[3][: len(lines[3]) // 2]])
    (tmp_path / "b" / RECORDS).write_text(torn)
    continued = run(tmp_path / "b", suites=("length", "words"))

    def figures(results: Results) -> list[Any]:
        return [replace(row, seconds_per_sample=None, tokens_per_second=None) for row in results.rows]

    assert figures(continued) == figures(whole)
    kept = [json.loads(line) for line in (tmp_path / "b" / RECORDS).read_text().splitlines()]
    assert kept[:3] == [json.loads(line) for line in lines[:3]]
    assert len(kept) == len(lines)


def test_another_evaluation_is_not_mixed_in(run: Callable[..., Results], tmp_path: Path) -> None:
    run(tmp_path / "a", limit=2)
    with pytest.raises(UsageError, match="holds another evaluation; choose another --report"):
        run(tmp_path / "a", limit=3)


def test_what_cannot_be_reported_is_refused_before_data_are_read(run: Callable[..., Results], tmp_path: Path) -> None:
    run(tmp_path / "a", limit=2)
    (tmp_path / "file").touch()
    missing = (str(tmp_path / "missing.jsonl"),)
    with pytest.raises(UsageError, match="holds another evaluation; choose another --report"):
        run(tmp_path / "a", data=missing)
    with pytest.raises(CtrlgenError, match="file: cannot be written to"):
        run(tmp_path / "file", data=missing)
    with pytest.raises(CtrlgenError, match=r"missing\.jsonl: no such file"):
        run(tmp_path / "b", data=missing)
    assert not (tmp_path / "b").exists()


def test_targets_that_have_changed_since_are_another_evaluation(run: Callable[..., Results], tmp_path: Path) -> None:
    targets = tmp_path / "t.jsonl"
    lines = [json.dumps({"controls": [f"length: {n}"], "reference": "the cat ."}) for n in (3, 4)]
    targets.write_text("\n".join(lines))
    run(tmp_path / "a", targets=targets)
    targets.write_text(lines[0])
    with pytest.raises(UsageError, match="holds another evaluation; choose another --report"):
        run(tmp_path / "a", targets=targets)


def test_a_sweep_has_a_row_for_every_setting(run: Callable[..., Results]) -> None:
    results = run(sweep=(("steps", ("2", "3")), ("temperature", ("0.5", "1"))), limit=2)
    settings = [row.setting for row in results.rows if row.system == "ctrlgen"]
    assert settings == [f"steps={s}, temperature={t}" for s in (2, 3) for t in (0.5, 1)]
    calls = [row.evaluations for row in results.rows if row.system == "ctrlgen"]
    assert calls == [3 * (steps + 12 + 4) for steps in (2, 2, 3, 3)]


def test_calls_of_the_denoiser_are_counted() -> None:
    assert evaluations(Settings(steps=10, candidates=3, redrafts=0), fixed_length=False) == 3 * (10 + 12 + 32)
    assert evaluations(Settings(steps=10, corrections=0, redrafts=0), fixed_length=False) == 10
    assert evaluations(Settings(steps=10, redrafts=2), fixed_length=False) == 3 * (10 + 12 + 4)
    assert evaluations(Settings(steps=10), fixed_length=True) == 10
    assert evaluations(Settings(steps=10, guidance=Guidance("paper")), fixed_length=True) == 10 + 3 * 9


def test_good_texts_score_near_the_ceiling_and_a_bad_model_near_nothing(
    run: Callable[..., Results], toy_model: Path, toy_data: Path, tmp_path: Path
) -> None:
    """The evaluation itself: human texts through --samples, and a model with random weights, without any guidance."""
    suite = ("words",)
    human = run(suites=suite, limit=20)
    references = [r.text for r in human.records if r.system == "human"]
    (tmp_path / "good.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in references))
    good = run(suites=suite, limit=20, samples=tmp_path / "good.jsonl").row("words", "given")
    assert good is not None
    assert good.success is not None
    assert good.success.mean == 1
    assert good.gap["by length"].mean == 0

    model = from_pretrained(str(toy_model))
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=rng))
    save_pretrained(model, tmp_path / "bad")
    guided = replace(QUICK, guidance=Guidance(strength=0.0))
    bad = run(suites=suite, limit=20, generator=Generator(str(tmp_path / "bad")), settings=guided)
    row = bad.row("words", "ctrlgen")
    assert row is not None
    assert row.success is not None
    assert row.success.mean < 0.3


def test_too_few_given_texts(run: Callable[..., Results], tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("the cat sees a dog .\n")
    with pytest.raises(CtrlgenError, match="holds 1 texts, but the targets need more"):
        run(samples=tmp_path / "few.txt")


def test_too_many_given_texts(run: Callable[..., Results], tmp_path: Path) -> None:
    """Two a target where one is asked for: the second would be judged by another target."""
    (tmp_path / "many.txt").write_text("the cat sees a dog .\n" * 6)
    with pytest.raises(CtrlgenError, match="holds 6 texts, but the targets need 3: see --limit and -n"):
        run(samples=tmp_path / "many.txt", limit=3)


def test_a_blank_line_is_an_empty_text(run: Callable[..., Results], tmp_path: Path) -> None:
    (tmp_path / "given.txt").write_text("the cat sees a dog .\n\na dog .\n")
    records = run(samples=tmp_path / "given.txt", limit=3).records
    assert [len(r.tokens) for r in records if r.system == "given"] == [6, 0, 3]


def test_other_systems_stand_beside_ours_on_the_same_targets(run: Callable[..., Results], tmp_path: Path) -> None:
    targets = [{"controls": [f"length: {n}"], "reference": "the cat sees a dog ."} for n in (6, 4, 3)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(target) + "\n" for target in targets))
    (tmp_path / "right.txt").write_text("the cat sees a dog .\na dog sees .\na dog .\n")
    theirs = [["START a dog . END PAD PAD"], ["START a dog sees . END the"], ["START a cat . PAD"]]
    (tmp_path / "theirs.json").write_text("".join(json.dumps(text) + "\n" for text in theirs))
    systems = (("right", tmp_path / "right.txt"), ("theirs", tmp_path / "theirs.json"))
    results = run(targets=tmp_path / "t.jsonl", systems=systems, directory=tmp_path / "report", seeds=(0, 1))
    success = {row.system: row.success.mean for row in results.rows if row.success is not None}
    assert success["right"] == 1.0
    assert success["theirs"] == pytest.approx(2 / 3)
    assert success["ctrlgen"] == 1.0
    assert [r.text for r in results.records if r.system == "theirs"] == ["a dog.", "a dog sees.", "a cat."]
    row = results.row("t.jsonl", "theirs")
    assert row is not None
    assert row.seconds_per_sample is None
    assert row.gap["by length"].mean == pytest.approx((3 + 4 + 3) / 3 - 6)
    (tmp_path / "right.txt").write_text("a dog .\n" * 3)
    again = run(targets=tmp_path / "t.jsonl", systems=systems, directory=tmp_path / "report", seeds=(0, 1))
    assert [r.text for r in again.records if r.system == "right"] == ["a dog."] * 3  # the file is read again
    only = run(targets=tmp_path / "t.jsonl", systems=systems[:1], samples=tmp_path / "theirs.json")
    assert {row.system for row in only.rows} == {"human", "right", "given"}


def test_texts_of_targets_that_are_not_understood_are_left_out_with_them(
    run: Callable[..., Results], tmp_path: Path
) -> None:
    targets = [{"controls": [control]} for control in ("length: 3", "words: zebra", "length: 4")]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(target) + "\n" for target in targets))
    for texts in ("a dog .\nzebra\na dog sees .\n", "a dog .\na dog sees .\n"):
        (tmp_path / "all.txt").write_text(texts)
        results = run(targets=tmp_path / "t.jsonl", systems=(("all", tmp_path / "all.txt"),))
        assert [r.tokens for r in results.records if r.system == "all"] == [
            ["a", "dog", "."],
            ["a", "dog", "sees", "."],
        ]


def test_one_short_text_gives_figures_that_json_can_hold(run: Callable[..., Results], tmp_path: Path) -> None:
    (tmp_path / "given.txt").write_text("a dog .\n")
    row = run(samples=tmp_path / "given.txt", limit=1).row("length", "given")
    assert row is not None
    assert (row.distinct["4"], row.self_bleu) == (None, None)
    json.dumps(row.distinct, allow_nan=False)


def test_without_data_there_is_nothing_to_ask(run: Callable[..., Results]) -> None:
    with pytest.raises(UsageError, match="give --data"):
        run(data=())


def test_a_missing_oracle_leaves_the_column_empty(
    run: Callable[..., Results], no_spacy: None, generator: Generator, tmp_path: Path
) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"controls": ["pos: DET NOUN VERB PUNCT"], "reference": "the cat ."}))
    row = run(targets=tmp_path / "t.jsonl").row("t.jsonl", "ctrlgen")
    assert row is not None
    assert row.success is None
    assert row.unchecked == 1


def test_texts_that_only_one_of_two_oracles_could_judge_are_no_measure(
    run: Callable[..., Results], no_spacy: None, tmp_path: Path
) -> None:
    """One fails its length, which would count, one has it, which could not."""
    controls = ["pos: DET ...", "length: 3"]
    lines = [{"controls": controls, "reference": text} for text in ("the cat .", "the red cat .")]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    row = run(targets=tmp_path / "t.jsonl").row("t.jsonl", "human")
    assert row is not None
    assert (row.success, row.unchecked) == (None, 2)
    assert row.by_control["length"].mean == 0.5


def test_an_oracle_that_was_missing_is_asked_when_the_run_is_repeated(
    run: Callable[..., Results], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(self: Length, texts: list[list[str]], targets: list[Any]) -> list[Verdict]:
        return [Verdict(None, "not installed")] * len(texts)

    expected = run().row("length", "ctrlgen")
    with monkeypatch.context() as patched:
        patched.setattr(Length, "check", missing)
        first = run(tmp_path / "report").row("length", "ctrlgen")
    again = run(tmp_path / "report").row("length", "ctrlgen")
    assert None not in (first, again, expected)
    assert (first.success, first.unchecked) == (None, 6)
    assert (again.success, again.unchecked) == (expected.success, 0)


def test_the_share_of_right_parts_is_of_all_parts(generator: Generator) -> None:
    """One of two words and all of six: 7 of 8, not the mean of the texts' shares."""
    records = [
        Record("pos", "ctrlgen", "", 0, target, 0, ["a"], [Verdict(correct == 1, correct=correct, parts=parts)])
        for target, (correct, parts) in enumerate([(0.5, 2), (1.0, 6)])
    ]
    found = parts_right(records)
    assert found is not None
    assert found.mean == pytest.approx(7 / 8)


def test_examples_need_not_be_labelled(generator: Generator) -> None:
    assert make_targets(generator, "length", [Example(("the", "cat"), {})], 5, 0)[0].controls == ("length: 2",)


def test_scores_are_fitted_to_the_verdicts(model_copy: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unguided texts, judged by their tags: the temperature written is the one that fits, and is used."""
    from ctrlgen_classifiers.pos import Pos

    def check(self: Pos, texts: list[list[str]], targets: list[Any]) -> list[Verdict]:
        return [
            Verdict([TAG_OF.get(w) for w in words] == list(t.tags)) for words, t in zip(texts, targets, strict=True)
        ]

    monkeypatch.setattr(Pos, "check", check)
    monkeypatch.setattr(Pos, "values_of", lambda self, texts, rows, rng: [row["tags"] for row in rows])
    generator = Generator(str(model_copy))
    unguided = replace(QUICK, guidance=Guidance(strength=0.0))
    plan = Plan(suites=("pos",), data=(str(toy_data),), limit=60, settings=unguided)
    results = Evaluation(plan, generator, []).run()
    (found,) = fit_temperatures(results, generator).values()
    write_temperatures({model_copy / "classifiers" / "pos": found}, generator.model)
    again = Generator(str(model_copy))
    assert again.controls.classifier("pos").score_temperature == pytest.approx(found.temperature, abs=1e-3)
    after = Evaluation(plan, again, []).run()

    def scores(results: Results) -> list[float]:
        return [record.scores[0] for record in results.records if record.scores]

    expected = metrics.tempered(np.clip(np.asarray(scores(results)), 1e-6, 1 - 1e-6), found.temperature)
    assert scores(after) == pytest.approx(expected.tolist(), abs=1e-3)
    sure = [replace(r, verdicts=[replace(v, success=True) for v in r.verdicts]) for r in results.records]
    assert fit_temperatures(replace(results, records=sure), generator) == {}  # any high score would fit
