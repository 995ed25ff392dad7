"""Suites that start from texts: what they ask, what a text keeps of its source, and that a stopped run goes on."""

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from ctrlgen.checkpoint import bundled_models, from_pretrained
from ctrlgen.data.texts import load_data
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.evaluation.evaluation import Evaluation
from ctrlgen.evaluation.from_text import SYSTEMS, TASKS
from ctrlgen.evaluation.from_text.planning import costs_less_in_order
from ctrlgen.evaluation.plan import Plan
from ctrlgen.evaluation.records import RECORDS
from ctrlgen.evaluation.results import Results
from ctrlgen.evaluation.targets import FROM_TEXT, Target, expand_suites, read_examples
from ctrlgen.generation.generator import Generator
from ctrlgen.settings import Settings
from ctrlgen.text.alignment import common_words
from ctrlgen.training.fit import TrainingConfig
from ctrlgen_classifiers.means import Means

QUICK = Settings(steps=8)
HOW = ("not", "also", "located", "called", "rated", "near", "now", "still", "only", "just")
EDITS = tuple(suite for suite in FROM_TEXT if suite.startswith("edit"))
RICH = "name[Cocum], eatType[pub], food[French], priceRange[cheap], area[riverside], near[Burger King]"
ROWS = [
    ("name[Cotto], eatType[pub], area[riverside]", "Cotto is a pub in the riverside area ."),
    ("name[Aromi], eatType[coffee shop], food[French]", "Aromi is a coffee shop that serves French food ."),
    ("name[Zizzi], eatType[pub], food[Italian], area[city centre]", "Zizzi is an Italian pub in the city centre ."),
]


@pytest.fixture(scope="module")
def bundled() -> Generator:
    return Generator("e2e")


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"meaning": meaning, "text": text}) + "\n" for meaning, text in ROWS))
    return str(path)


@pytest.fixture
def run(bundled: Generator, data: str) -> Callable[..., Results]:
    def run(suite: str = "edit", data: str = data, **plan: Any) -> Results:
        return Evaluation(Plan(suites=(suite,), data=(data,), settings=QUICK, **plan), bundled, []).run()

    return run


def said(target: Target) -> tuple[str, str]:
    """The one control of a target, by name and value."""
    (control,) = target.controls
    name, _, value = control.partition(": ")
    return name, value


@pytest.mark.parametrize("suite", EDITS)
def test_what_is_asked_of_a_text(suite: str, bundled: Generator, data: str) -> None:
    has = {tuple(text.split()): meaning for meaning, text in ROWS}
    targets = list(TASKS[suite].targets(bundled, read_examples(bundled, [data]), Random(1)))
    assert targets
    for target in targets:
        assert target.source is not None
        assert target.references == (target.source,)
        (name, value), meaning = said(target), has[target.source]
        assert (f"{name}[" in meaning) == (suite != "edit-add")
        assert (f"{name}[{value}]" in meaning) == (suite == "edit-nothing")
        assert (value == "absent") == (suite == "edit-remove")
        if suite == "edit-remove":
            assert name not in ("name", "eatType")  # which every text of this data has


def test_they_stand_alone_and_are_no_part_of_all(bundled: Generator) -> None:
    assert tuple(TASKS) == FROM_TEXT
    assert not set(FROM_TEXT) & set(expand_suites(["all"], bundled))
    with pytest.raises(UsageError, match="edit cannot be joined"):
        expand_suites(["edit+pos"], bundled)


def test_a_model_without_fields_has_nothing_to_change(generator: Generator, toy_data: Path) -> None:
    with pytest.raises(UsageError, match="no such control"):
        Evaluation(Plan(suites=("edit",), data=(str(toy_data),)), generator, [])


def test_a_source_keeps_all_of_itself_and_another_text_does_not(run: Callable[..., Results], tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("Cotto is a pub .\n" * len(ROWS))
    results = run(samples=tmp_path / "texts.txt")
    sources, others = (results.row("edit", system) for system in ("human", "given"))
    assert sources is not None
    assert others is not None
    assert sources.success is not None
    assert sources.success.mean == 0.0
    assert {sources.also[name].mean for name in ("others kept", "all others kept", "words kept", "unchanged")} == {1.0}
    kept = {record.target: record.figures for record in results.records if record.system == "given"}
    of_rows = [results.asked["edit"].targets[place].source for place in range(len(ROWS))]
    cotto = of_rows.index(tuple(ROWS[0][1].split()))
    assert kept[cotto]["words kept"] == pytest.approx(5 / 9)
    assert kept[cotto]["others kept"] < 1.0  # the area is gone, or the name or kind was asked to be another
    assert others.also["all others kept"].mean == 0.0


def test_edits_obey_keep_the_rest_and_a_stopped_run_goes_on(run: Callable[..., Results], tmp_path: Path) -> None:
    results = run(report=tmp_path / "report")
    row = results.row("edit", "ctrlgen")
    assert row is not None
    assert row.success is not None
    assert row.success.mean > 0.5
    assert row.also["words kept"].mean > 0.5
    assert row.evaluations is None
    lines = (tmp_path / "report" / RECORDS).read_text().splitlines()
    (tmp_path / "report" / RECORDS).write_text("\n".join(lines[:-1]) + "\n")  # as a killed run leaves it
    again = run(report=tmp_path / "report")
    assert [(r.tokens, r.figures) for r in again.records] == [(r.tokens, r.figures) for r in results.records]


def test_a_plan_asks_each_sentence_for_one_value_and_carries_the_name(
    run: Callable[..., Results], tmp_path: Path
) -> None:
    path = tmp_path / "rich.jsonl"
    path.write_text(json.dumps({"meaning": RICH, "text": "Cocum is a cheap French pub by Burger King ."}) + "\n")
    results = run("write", data=str(path))
    (target,) = results.asked["write"].targets
    asked = [control for sentence in target.sentences for control in sentence]
    assert asked[0] == "name: Cocum"
    assert list(map(len, target.sentences)) == [2, 1, 1, 1, 1]
    assert all(f"{name}[{value}]" in RICH for name, value in (control.split(": ") for control in asked))
    (record,) = (record for record in results.records if record.system == "ctrlgen")
    verdicts = record.verdicts
    pairs = list(zip(verdicts[::2], verdicts[1::2], strict=True))
    assert len(pairs) == 5
    assert record.figures["carried throughout"] == all(name.success for name, _ in pairs)
    assert record.figures["sentences"] == sum(bool(a.success and b.success) for a, b in pairs) / 5


def test_texts_with_few_values_make_no_plan(run: Callable[..., Results]) -> None:
    with pytest.raises(CtrlgenError, match="nothing to ask"):
        run("write")


def test_sentences_that_belong_together_cost_less_in_order(bundled: Generator) -> None:
    class Counting:
        """Words cost as far as they are from the last word before them."""

        longest, tokenizer = 9, SimpleNamespace(end_id=0, ids=lambda words: list(map(int, words)))

        def nats(self, row: list[int]) -> list[float]:
            return [float(abs(word - before)) for before, word in pairwise(row)]

    lm = Counting()
    steps = [("10", "20"), ("21", "30"), ("31", "40")]
    assert list(costs_less_in_order(lm, steps)) == [1.0, 1.0]  # type: ignore[arg-type]
    assert list(costs_less_in_order(lm, [steps[0], steps[2], steps[1]])) == [0.0, 0.0]  # type: ignore[arg-type]
    assert list(costs_less_in_order(lm, [tuple("123456789"), *steps])) == [1.0, 1.0]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def with_codes(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    """The bundled model with codes of texts, hardly trained."""
    directory = Path(shutil.copytree(bundled_models()["e2e"], tmp_path_factory.mktemp("codes") / "e2e"))
    path = directory.parent / "texts.jsonl"
    texts = [text.replace("is a", f"is {how} a") for how in HOW for _, text in ROWS]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    model, (rows, column) = from_pretrained(str(directory)), load_data(str(path))
    config = TrainingConfig(steps=2, tokens_per_batch=128, precision="float32", validate_every=2, matrix_lr=0.0)
    for _ in Means.train(model, "means", rows, column, None, config, directory / "classifiers" / "means"):
        pass
    return Generator(str(directory))


def test_a_paraphrase_has_the_structure_of_another_text_that_says_the_same(
    with_codes: Generator, tmp_path: Path
) -> None:
    path = tmp_path / "same.jsonl"
    texts = ("Cotto is a riverside pub .", "In the riverside area is a pub called Cotto .")
    other = "By the river is a cheap Italian pub called Cotto ."  # says more, whatever the data say
    path.write_text("".join(json.dumps({"meaning": ROWS[0][0], "text": text}) + "\n" for text in (*texts, other)))
    plan = Plan(suites=("paraphrase",), data=(str(path),), settings=QUICK)
    results = Evaluation(plan, with_codes, []).run()
    targets = results.asked["paraphrase"].targets
    assert {target.controls[0] for target in targets} == {f"means: {text[:-2]}." for text in texts}
    for target in targets:
        assert {target.references[0], target.source} == {tuple(text.split()) for text in texts}
        assert target.controls[1].partition(":")[0] in ("pos", "tree")
    row = results.row("paraphrase", "ctrlgen")
    assert row is not None
    assert set(row.also) >= {"fields kept", "all fields kept", "words in place"}


def test_transfers_are_compared_with_retrieval_and_deletion(with_codes: Generator, data: str) -> None:
    results = Evaluation(Plan(suites=("transfer",), data=(data,), settings=QUICK), with_codes, []).run()
    texts = {system: {r.target: r for r in results.records if r.system == system} for system in SYSTEMS}
    rows = {tuple(text.split()): meaning for meaning, text in ROWS}
    for place, target in enumerate(results.asked["transfer"].targets):
        name, value = target.controls[1].split(": ")
        assert target.source is not None
        assert f"{name}[{value}]" not in rows[target.source]
        assert f"{name}[{value}]" in rows[target.references[0]]
        assert f"{name}[{value}]" in rows[tuple(texts["retrieval"][place].tokens)]
        deleted = texts["deletion"][place].tokens
        assert len(deleted) < len(target.source)
        assert common_words(target.source, deleted)[-1][1] == len(deleted) - 1
    with pytest.raises(UsageError, match="another system is called 'retrieval'"):
        Evaluation(Plan(data=(data,), systems=(("retrieval", Path(data)),)), with_codes, [])


def test_a_model_without_codes_cannot_say_what_a_text_says(run: Callable[..., Results]) -> None:
    with pytest.raises(UsageError, match="train one"):
        run("paraphrase")


def test_what_obeys_already_comes_back(run: Callable[..., Results]) -> None:
    row = run("edit-nothing").row("edit-nothing", "ctrlgen")
    assert row is not None
    assert row.also["unchanged"].mean == 1.0
