"""Texts to a plan: how plans are read, what each sentence is asked for, and that one that fails is repaired alone."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ctrlgen.controls.language import parse_statement
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.plans import make_plan, read_plan
from ctrlgen.generation.writing import SENTENCE_STRIDE, Writer
from ctrlgen.settings import Settings

QUICK = Settings(steps=8, redrafts=0)
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))


def plan(*sentences: dict[str, Any], **more: Any) -> Any:
    return make_plan({"sentence": list(sentences), **more})


def asks(*controls: str, **more: str) -> dict[str, Any]:
    return {"controls": list(controls), **more}


# Plans


def test_toml_and_json_lines_say_the_same(tmp_path: Path) -> None:
    toml, lines = tmp_path / "a.toml", tmp_path / "a.jsonl"
    toml.write_text(
        'carry = ["name"]\n[defaults]\nspeaker = "Ann"\ncontrols = ["length: 7"]\n'
        '[[sentence]]\ncontrols = ["words: cat"]\n[[sentence]]\nspeaker = "Bob"\n'
    )
    lines.write_text(
        '{"carry": ["name"], "defaults": {"speaker": "Ann", "controls": ["length: 7"]}}\n\n'
        '{"controls": ["words: cat"]}\n{"speaker": "Bob"}\n'
    )
    one, other = read_plan(toml), read_plan(lines)
    assert [replace(s, where="") for s in one.sentences] == [replace(s, where="") for s in other.sentences]
    assert one.carry == other.carry == ("name",)
    assert [s.controls for s in one.sentences] == [("length: 7", "words: cat"), ("length: 7",)]
    assert [s.speaker for s in one.sentences] == ["Ann", "Bob"]


def test_a_sentence_goes_before_the_defaults() -> None:
    made = plan(asks("Length: 5", "words: a"), defaults=asks("length: 7", "words: the", "not words: dog", draft="x y"))
    assert made.sentences[0].controls == ("Length: 5", "words: a")
    assert made.sentences[0].draft == "x y"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has no sentences"),
        (
            "[[sentence]]\ncontrol = []\n",
            "sentence 1: unknown key 'control'; use controls, speaker, draft. Did you mean",
        ),
        ("[[sentence]]\n[[sentence]]\ncontrols = 'a: b'\n", "sentence 2: controls must be a list of texts"),
        ("[[sentence]]\ncontrols = [3]\n", "sentence 1: controls: '3' is not a text"),
        ("[[sentence]]\ncontrols = ['pos']\n", "sentence 1: 'pos' is not a control"),
        ("[[sentence]]\nspeaker = ''\n", "sentence 1: speaker is empty"),
        ("[defaults]\nx = 1\n[[sentence]]\n", "defaults: unknown key 'x'"),
        ("sentences = []\n", "unknown key 'sentences'; use sentence, defaults, carry. Did you mean sentence?"),
        ("[[sentence]\n", "not TOML"),
    ],
)
def test_a_bad_plan_is_named(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(content)
    with pytest.raises(UsageError) as error:
        read_plan(path)
    assert str(error.value).startswith(str(path))
    assert said in str(error.value)


def test_bad_lines_and_files(tmp_path: Path) -> None:
    path = tmp_path / "plan.jsonl"
    path.write_text('{"controls": []}\n[1]\n')
    with pytest.raises(UsageError, match="line 2: must be a JSON object"):
        read_plan(path)
    path.write_bytes(b"\xff")
    with pytest.raises(CtrlgenError, match="not UTF-8"):
        read_plan(path)
    with pytest.raises(CtrlgenError, match="cannot be read"):
        read_plan(tmp_path / "none.toml")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_plans(path: Path) -> None:
    assert len(read_plan(path).sentences) >= 5


# Texts


def test_what_a_model_cannot_be_asked_is_refused_with_its_entry(generator: Generator) -> None:
    for wrong, said in (
        (asks("length: 99"), "sentence 2: 'length: 99' asks"),
        (asks("nothing: x"), "sentence 2: unknown control 'nothing'"),
        (asks("length: 7", draft="nearest"), "sentence 2: draft = nearest needs --corpus"),
        (asks(draft="nearest"), "sentence 2: draft = nearest needs controls"),
        (asks(draft="the " * 13), "sentence 2: the draft has 13 words"),
    ):
        with pytest.raises(UsageError, match=said):
            Writer(generator, plan(asks("length: 7"), wrong))
    with pytest.raises(UsageError, match="unknown control 'nam'"):
        Writer(generator, plan(asks("length: 7"), carry=["nam"]))


def test_a_text_has_its_sentences_and_speakers(generator: Generator) -> None:
    made = plan(asks("length: 6", speaker="Ann"), asks("length: 7", speaker="Ann"), asks("length: 8", speaker="Bob"))
    (text,) = Writer(generator, made).write(settings=QUICK)
    one, two, three = (sample.text for sample in text.sentences)
    assert text.text == f"Ann: {one} {two}\nBob: {three}"
    assert [len(sample.tokens) for sample in text.sentences] == [6, 7, 8]
    said = text.as_json()
    assert said["success"] is True
    assert [sentence["speaker"] for sentence in said["sentences"]] == ["Ann", "Ann", "Bob"]
    assert json.loads(json.dumps(said)) == said


@pytest.mark.slow
def test_each_sentence_has_a_seed_of_its_own(generator: Generator) -> None:
    writer = Writer(generator, plan(asks("length: 7"), asks("length: 7")))
    texts = writer.write(3, 10, QUICK)
    assert [text.seed for text in texts] == [10, 11, 12]
    for text in texts:
        (alone,) = writer.write(1, 10, QUICK, first=text.index)
        assert alone == text
        assert text.sentences[1].seed == text.seed + SENTENCE_STRIDE
        assert text.sentences[0].text != text.sentences[1].text


@pytest.mark.slow
def test_a_sentence_that_fails_is_repaired_alone(generator: Generator) -> None:
    writer = Writer(
        generator, plan(asks("length: 7"), asks("pos: DET ADJ NOUN VERB DET NOUN PUNCT"), asks("length: 8"))
    )
    unguided = replace(QUICK, guidance=replace(QUICK.guidance, strength=0.0))
    before = writer.write(6, 0, unguided)
    after = writer.write(6, 0, replace(unguided, until_success=40))
    repaired = [(b, a) for b, a in zip(before, after, strict=True) if a.sentences[1].attempts > 1]
    assert repaired
    for b, a in repaired:
        assert (b.success, a.success) == (False, True)
        assert (a.sentences[0], a.sentences[2]) == (b.sentences[0], b.sentences[2])


@pytest.mark.slow
def test_what_is_carried_on_holds_until_a_sentence_says_otherwise(generator: Generator) -> None:
    made = plan(asks("words: cat"), asks("length: 7"), asks("words: dog"), asks("length: 7"), carry=["words"])
    (text,) = Writer(generator, made).write(settings=QUICK)
    controls = [[result.control.text for result in sample.controls] for sample in text.sentences]
    assert controls == [["words: cat"], ["words: cat", "length: 7"], ["words: dog"], ["words: dog", "length: 7"]]
    assert text.success


@pytest.mark.slow
def test_what_the_guides_read_is_carried_on(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    length = generator.controls.classifier("length")
    monkeypatch.setattr(type(length), "reading", lambda self, denoised: [str(denoised.logits.shape[1])])
    made = plan(asks("words: cat"), asks("words: dog"), asks("words: dog", "length: 11"), asks(), carry=["length"])
    (text,) = Writer(generator, made).write(settings=QUICK)
    sizes = [len(sample.tokens) for sample in text.sentences]
    assert sizes == [sizes[0], sizes[0], 11, 11]
    assert [parse_statement(r.control.text).name for r in text.sentences[1].controls] == ["length", "words"]


def test_a_sentence_leans_to_its_draft_which_is_not_judged(generator: Generator) -> None:
    draft = "a small dog finds the river ."
    made = plan(asks("length: 7", draft=draft), asks("length: 7"))
    texts = Writer(generator, made).write(6, 3, QUICK)
    kept = [[word in sample.tokens for word in draft.split()[1:6]] for text in texts for sample in text.sentences]
    leaning, free = kept[::2], kept[1::2]
    assert sum(map(sum, leaning)) > 1.5 * sum(map(sum, free))
    assert [len(sample.controls) for sample in texts[0].sentences] == [1, 1]
    assert texts[0].drafts == (draft, None)


@pytest.mark.slow
def test_the_nearest_draft_is_one_that_obeys(generator: Generator) -> None:
    corpus = ["a cat sees the dog .", "the Zorblax .", "a red cat likes the old river .", "the dog sees a house ."]
    made = plan(asks("length: 6", "words: dog", draft="nearest"), asks("length: 8", "words: cat", draft="nearest"))
    writer = Writer(generator, made, corpus)
    texts = writer.write(2, 0, QUICK)
    assert {text.drafts[0] for text in texts} == {corpus[0], corpus[3]}
    assert {text.drafts[1] for text in texts} == {corpus[2]}
    with pytest.raises(CtrlgenError, match="no text that the model could write"):
        Writer(generator, made, ["Zorblax ."])
