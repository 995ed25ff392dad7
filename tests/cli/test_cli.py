"""The command line: what it prints where, its exit codes, and one clear line for every mistake."""

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome, Run
from make_toy_model import TOY_MODEL, TOY_TRAINING
from toy_grammar import TINY_RECIPE, toy_sentences

from ctrlgen.cli import display, sampling
from ctrlgen.controls.classifier import Verdict
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.request import Request, Sample, Step
from ctrlgen.settings import Settings
from ctrlgen.training.denoising import DataConfig, Recipe, train
from ctrlgen_classifiers import pos

SIMPLE = "pos: DET NOUN VERB DET NOUN PUNCT"
KEYS = [
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
RECIPE = f"{TINY_RECIPE}steps = 2\n"


@pytest.fixture(autouse=True)
def oracle(monkeypatch: pytest.MonkeyPatch) -> list[Verdict]:
    """Verdicts that the oracle will give, in turn; success where none is set. No test here needs spaCy."""
    verdicts: list[Verdict] = []

    def check(self: pos.Pos, texts: Sequence[Sequence[str]], targets: Sequence[Any]) -> list[Verdict]:
        return [verdicts.pop(0) if verdicts else Verdict(True, None, (), 1.0) for _ in texts]

    monkeypatch.setattr(pos.Pos, "check", check)
    return verdicts


def tree(directory: Path) -> dict[Path, bytes]:
    """Every file below, with its content. What `datasets` caches does not count."""
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


# What it says of itself


def test_help_and_import_are_free_of_torch() -> None:
    script = """
import sys
import ctrlgen
assert "torch" not in sys.modules, "import ctrlgen"
from ctrlgen.cli import main
for arguments in (["--help"], ["generate", "--help"], ["infill", "-h"], ["import", "-h"], ["train", "-h"],
                  ["train-classifier", "-h"], ["controls", "-h"], ["--version"]):
    try:
        main(arguments)
    except SystemExit as stopped:
        assert stopped.code == 0, arguments
    heavy = {"torch", "transformers", "datasets", "accelerate", "spacy", "numpy"} & set(sys.modules)
    assert not heavy, (arguments, heavy)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "train-classifier" in done.stdout


@pytest.mark.parametrize("control", ["length: 5", "food: Italian", "span: NP 1-2"])
def test_texts_are_written_without_what_takes_seconds_to_import(control: str) -> None:
    """transformers' networks, datasets and accelerate are for training and for published checkpoints."""
    script = f"""
import sys
from ctrlgen.cli import main
try:
    main(["generate", "-c", {control!r}, "--steps", "2", "--redrafts", "0"])
except SystemExit as stopped:
    assert not stopped.code
print({{"transformers", "datasets", "accelerate", "sklearn"}} & set(sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "set()"


def test_what_import_offers() -> None:
    import ctrlgen

    for name in ctrlgen.__all__:
        assert getattr(ctrlgen, name).__name__ == name
    assert ctrlgen.__version__.count(".") >= 2
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ctrlgen.nothing


COMMANDS = set(
    "generate infill edit write demo controls validate eval similar train train-classifier train-lm augment recipe "
    "import".split()
)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(ctrlgen: Run, command: str) -> None:
    outcome = ctrlgen(command, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"ctrlgen {command}" in outcome.out


def test_help_lists_every_command_with_a_whole_sentence(ctrlgen: Run) -> None:
    """And `generate --help` what a newcomer needs before how x_t is denoised."""
    lines = [line.strip("│ ") for line in ctrlgen("--help").out.splitlines() if line.startswith("│")]
    said = {line.split()[0]: line for line in lines if line.split() and line.split()[0] in COMMANDS}
    assert set(said) == COMMANDS
    assert all(line.endswith(".") for line in said.values())
    shown = ctrlgen("generate", "--help").out
    places = [shown.index(option) for option in ("--control", "--until-success", "--strength", "--steps")]
    assert places == sorted(places)


def test_without_arguments_there_is_help(ctrlgen: Run) -> None:
    outcome = ctrlgen()
    assert outcome.code in (0, 2)
    assert len((outcome.out + outcome.err).splitlines()) > 5
    assert "train-classifier" in outcome.out + outcome.err


def test_version(ctrlgen: Run) -> None:
    import ctrlgen as package

    assert ctrlgen("--version") == Outcome(0, f"ctrlgen {package.__version__}\n", "")


# generate


def test_unguided_texts_one_a_line(ctrlgen: Run, toy_model: Path, generator: Generator) -> None:
    outcome = ctrlgen("generate", "-m", toy_model, "-n", 3, "--seed", 5, "--steps", 8)
    samples = generator.generate([Request(n=3, seed=5)], Settings(steps=8))
    assert outcome == Outcome(0, "".join(f"{sample.text}\n" for sample in samples), "")


def test_a_long_text_stays_on_one_line() -> None:
    words = ["longwinded"] * 60
    file = io.StringIO()
    display.show_samples([Sample(Request(), 0, " ".join(words), words, 0, ())], file)
    assert file.getvalue() == " ".join(words) + "\n"


def test_the_table_shows_text_marks_and_why(ctrlgen: Run, toy_model: Path, oracle: list[Verdict]) -> None:
    oracle += [Verdict(True), Verdict(False, "position 2 'cat': wanted NOUN, got VERB", (1,), 0.8), Verdict(None)]
    outcome = ctrlgen("generate", "-m", toy_model, "-c", SIMPLE, "-n", 3, "--steps", 8)
    assert (outcome.code, outcome.err) == (0, "")
    heading, *rows = outcome.out.splitlines()
    assert heading.split() == ["text", "pos", "why"]
    assert [mark for row in rows for mark in "✓✗?" if mark in row] == ["✓", "✗", "?"]
    assert "wanted NOUN" in outcome.out


def test_json_lines_are_as_documented(ctrlgen: Run, toy_model: Path, generator: Generator) -> None:
    outcome = ctrlgen("generate", "-m", toy_model, "-c", SIMPLE, "-n", 2, "--seed", 7, "--steps", 8, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    first, second = outcome.answers
    assert list(first) == KEYS
    assert (first["id"], first["index"], first["seed"], second["index"], second["seed"]) == (None, 0, 7, 1, 8)
    (control,) = first["controls"]
    assert list(control) == ["control", "success", "score", "detail"]
    assert (control["control"], control["success"], control["detail"]) == (SIMPLE, True, None)
    assert isinstance(first["score"], float)
    assert first["success"] is True
    samples = generator.generate([generator.request([SIMPLE], n=2, seed=7)], Settings(steps=8))
    assert [answer["tokens"] for answer in outcome.answers] == [sample.tokens for sample in samples]


def test_every_option_reaches_the_generator(
    ctrlgen: Run, toy_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(Generator, "generate", lambda self, *args: seen.extend(args) or [])
    outcome = ctrlgen(
        "generate", "-m", toy_model, "-c", SIMPLE, "-c", "not pos: NOUN ...", "-n", 3, "--steps", 9,
        "--sampler", "ddim", "--eta", 0.5, "--guidance", "exact", "--strength", 2, "--window", "0.1:0.9",
        "--temperature", 0.5, "--candidates", 4, "--select", "mbr", "--seed", 8, "--device", "cpu",
        "--until-success", 3, "--explain", "--clamp", "--restart", 0.25, "--time-offset", -2, "--last-temperature", 0.1,
        "--corrections", 1, "--paper-steps", 2, "--paper-lr", 0.2, "--paper-fluency", 0.3,
    )  # fmt: skip
    assert outcome.code == 0
    (request,), settings, watch = seen
    assert [control.text for control in request.controls] == [SIMPLE, "not pos: NOUN ..."]
    assert (request.n, request.seed, request.id) == (3, 8, None)
    assert (settings.steps, settings.sampler, settings.eta, settings.temperature) == (9, "ddim", 0.5, 0.5)
    assert (settings.candidates, settings.select) == (4, "mbr")
    assert (settings.until_success, settings.explain, settings.clamp) == (3, True, True)
    assert (settings.restart, settings.time_offset, settings.last_temperature) == (0.25, -2.0, 0.1)
    assert settings.corrections == 1
    guidance = settings.guidance
    assert (guidance.method, guidance.strength, guidance.window) == ("exact", 2.0, (0.1, 0.9))
    assert (guidance.paper_steps, guidance.paper_lr, guidance.paper_fluency) == (2, 0.2, 0.3)
    watch(Step(1, 2, {0: ["the"]}))  # tells of what is left, but shows no progress where there is no terminal
    assert capsys.readouterr() == ("", "")


def test_the_command_lines_defaults_are_the_librarys(
    ctrlgen: Run, toy_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(Generator, "generate", lambda self, *args: seen.extend(args) or [])
    ctrlgen("generate", "-m", toy_model)
    assert seen[:2] == [[Request()], Settings()]


def test_require_success(ctrlgen: Run, toy_model: Path, oracle: list[Verdict]) -> None:
    ask = ("generate", "-m", toy_model, "-c", SIMPLE, "-n", 2, "--steps", 2, "--json")
    assert ctrlgen(*ask, "--require-success").code == 0
    oracle += [Verdict(True), Verdict(False, "no")]
    failed = ctrlgen(*ask, "--require-success")
    assert (failed.code, failed.err) == (3, "")
    assert [answer["success"] for answer in failed.answers] == [True, False]
    oracle += [Verdict(False, "no")]
    assert ctrlgen(*ask).code == 0
    oracle += [Verdict(None, "not installed")] * 2
    assert ctrlgen(*ask, "--require-success").code == 0  # unknown is no failure


def test_until_success(ctrlgen: Run, toy_model: Path, oracle: list[Verdict]) -> None:
    ask = ("generate", "-m", toy_model, "-c", SIMPLE, "-n", 3, "--steps", 2, "--until-success", 2)
    failed = Verdict(False, "no")
    oracle += [Verdict(True), failed, failed, failed, Verdict(True), failed]
    outcome = ctrlgen(*ask, "--require-success", "--json")
    assert (outcome.code, outcome.err) == (3, "1 of 3 samples still fail after 3 draws; 6 draws in all\n")
    assert [(a["success"], a["attempts"]) for a in outcome.answers] == [(True, 1), (False, 3), (True, 2)]
    oracle += [Verdict(True), failed, Verdict(True)]
    outcome = ctrlgen(*ask, "--require-success")
    assert (outcome.code, outcome.err) == (0, "none fails; 4 draws in all\n")
    heading, *rows = outcome.out.splitlines()
    assert heading.split() == ["text", "pos", "draws"]
    assert [row.split()[-1] for row in rows] == ["1", "2", "1"]
    assert ctrlgen(*ask).out.splitlines()[0].split() == ["text", "pos"]  # all passed at once


def test_until_success_without_an_oracle(ctrlgen: Run, toy_model: Path, oracle: list[Verdict]) -> None:
    ask = ("generate", "-m", toy_model, "-c", SIMPLE, "-n", 2, "--steps", 2, "--until-success", 2, "--require-success")
    oracle += [Verdict(None, "pip install it")] * 2
    outcome = ctrlgen(*ask)
    unjudged = "2 of 2 samples could not be judged, so were not drawn again: pip install it\n"
    assert (outcome.code, outcome.err) == (0, unjudged)


def test_explain(ctrlgen: Run, toy_model: Path, generator: Generator, oracle: list[Verdict]) -> None:
    ask = ("generate", "-m", toy_model, "-c", SIMPLE, "-c", "words: cat", "-n", 2, "--steps", 4, "--explain")
    failed, passed = Verdict(False, "position 2 'cat': wanted NOUN, got VERB", (1,)), Verdict(True)
    parts = [passed, failed, passed, passed, passed, passed]  # of the six tags
    steps = [passed, passed, failed, failed]
    oracle += [passed, failed, *parts, *steps]
    first, second = ctrlgen(*ask, "--json").answers
    assert [list(control) for control in first["controls"]] == [
        ["control", "success", "score", "detail", "explanation"]
    ] * 2
    assert first["controls"][0]["explanation"] == []
    (explained,) = second["controls"][0]["explanation"]
    assert list(explained) == ["failed", "p", "steps", "last_held", "pulled_by", "negated"]
    assert (explained["failed"], explained["steps"], explained["last_held"]) == (failed.detail, 4, 2)
    assert 0.0 <= explained["p"] <= 1.0
    oracle += [passed, failed, *parts, *steps]
    assert "lost after step 2 of 4" in " ".join(ctrlgen(*ask).out.split())
    unexplained = ctrlgen(*ask[:-1], "--json").answers
    assert [answer["tokens"] for answer in unexplained] == [first["tokens"], second["tokens"]]


REQUESTS = [
    {"id": "a1", "controls": [SIMPLE], "n": 2, "seed": 7},
    {"id": 2, "seed": 3},
    {},
    {"id": {"any": "thing"}, "controls": ["pos: DET NOUN VERB DET ADJ NOUN"], "n": 1},
]


@pytest.mark.parametrize("window", [1, 256])
@pytest.mark.parametrize("source", ["file", "-"])
def test_batch(
    ctrlgen: Run, toy_model: Path, generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str,
    window: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(sampling, "BATCH_WINDOW", window)
    lines = "\n\n".join(json.dumps(request) for request in REQUESTS)
    if source == "file":
        source = str(tmp_path / "requests.jsonl")
        Path(source).write_text(lines)
    else:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    outcome = ctrlgen("generate", "-m", toy_model, "--batch", source, "--seed", 40, "--steps", 8)
    assert (outcome.code, outcome.err) == (0, "")
    answers = outcome.answers
    assert [(a["id"], a["index"], a["seed"]) for a in answers] == [
        ("a1", 0, 7), ("a1", 1, 8), (2, 0, 3), (None, 0, 40), ({"any": "thing"}, 0, 40),
    ]  # fmt: skip
    assert all(list(answer) == KEYS for answer in answers)
    expected = [
        sample.tokens
        for r in REQUESTS
        for sample in generator.generate(
            [generator.request(r.get("controls", []), r.get("n", 1), r.get("seed", 40))],  # type: ignore[arg-type]
            Settings(steps=8),
        )
    ]
    assert [answer["tokens"] for answer in answers] == expected


def test_what_a_request_leaves_out_is_as_the_options_say(
    ctrlgen: Run, toy_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"id": 1}\n{"id": 2, "n": 1}\n'))
    outcome = ctrlgen("generate", "-m", toy_model, "--batch", "-", "-n", 2, "--seed", 5, "--steps", 2)
    assert [(a["id"], a["seed"]) for a in outcome.answers] == [(1, 5), (1, 6), (2, 5)]


def test_out(ctrlgen: Run, toy_model: Path, tmp_path: Path) -> None:
    ask = ("generate", "-m", toy_model, "-c", SIMPLE, "-n", 2, "--steps", 2, "--json")
    printed = ctrlgen(*ask)
    assert ctrlgen(*ask, "--out", tmp_path / "out.jsonl") == Outcome(0, "", "")
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == printed.out
    assert list(tmp_path.iterdir()) == [tmp_path / "out.jsonl"]


def test_an_interruption_leaves_no_half_written_file(
    ctrlgen: Run, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    whole = Generator.generate

    def generate(self: Generator, *arguments: Any) -> list[Sample]:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return whole(self, *arguments)

    monkeypatch.setattr(Generator, "generate", generate)
    monkeypatch.setattr(sampling, "BATCH_WINDOW", 1)
    out = tmp_path / "out.txt"
    calls.append(1)
    assert ctrlgen("generate", "-m", toy_model, "--out", out) == Outcome(130, "", "ctrlgen: interrupted\n")
    assert list(tmp_path.iterdir()) == []
    assert len(calls) == 2


def test_controls(ctrlgen: Run, toy_model: Path) -> None:
    outcome = ctrlgen("controls", "-m", toy_model, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    (row,) = [answer for answer in outcome.answers if answer["kind"] == "pos"]
    assert list(row) == ["kind", "names", "summary", "syntax", "example", "checked_by", "measured", "oracle_accuracy"]
    assert row["measured"] is None
    assert row["oracle_accuracy"] == {}  # spaCy is not measured
    assert row["names"] == ["pos"]
    table = ctrlgen("controls", "-m", toy_model)
    assert table.code == 0
    assert pos.Pos.example in table.out
    words = [line.split() for line in table.out.splitlines()]
    assert ["pos"] not in words  # a name that the first column has is not said again
    assert ["length"] not in words


# infill


def test_infill(ctrlgen: Run, toy_model: Path, generator: Generator) -> None:
    template = "the ___ Zebedee ___{2} ."
    ask = ("infill", "-m", toy_model, template, "-c", SIMPLE.replace("VERB", "*"), "-n", 2, "--seed", 7, "--steps", 8)
    outcome = ctrlgen(*ask, "--json")
    assert outcome.code == 0
    request = generator.request([SIMPLE.replace("VERB", "*")], n=2, seed=7, template=template)
    samples = generator.generate([request], Settings(steps=8))
    assert outcome.answers == [json.loads(json.dumps(sample.as_json())) for sample in samples]
    assert [answer["tokens"][2] for answer in outcome.answers] == ["Zebedee"] * 2
    assert "Zebedee" in ctrlgen(*ask).out


def test_a_batch_may_hold_templates(
    ctrlgen: Run, toy_model: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"template": "the ___ .", "seed": 3}\n{"seed": 3}\n'))
    outcome = ctrlgen("generate", "-m", toy_model, "--batch", "-", "--steps", 8)
    requests = [generator.request([], seed=3, template="the ___ ."), generator.request([], seed=3)]
    samples = generator.generate(requests, Settings(steps=8))
    assert [answer["tokens"] for answer in outcome.answers] == [sample.tokens for sample in samples]


# train and train-classifier


def test_train_and_train_classifier(
    ctrlgen: Run, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pos, "HEAD_SIZE", {"width": 16})
    recipe, model = tmp_path / "recipe.toml", tmp_path / "model"
    recipe.write_text(RECIPE.format(data='"nothing"'))
    trained = ctrlgen("train", recipe, "--data", toy_data, "--out", model, "--steps", 3)
    assert (trained.code, trained.out) == (0, "")
    assert f"ctrlgen: {toy_data}, column 'text': 600 texts read, 600 used\n" in trained.err
    assert "\nstep 3  loss " in trained.err
    assert trained.err.endswith(f"model written to {model}\n")
    teach = ("train-classifier", "pos", "-m", model, "--data", toy_data, "--steps", 3, "--tokens-per-batch", 256)
    taught = ctrlgen(*teach)
    assert (taught.code, taught.out) == (0, "")
    assert "accuracy" in taught.err
    assert "noise" in taught.err
    directory = model / "classifiers" / "pos"
    assert taught.err.endswith(f"classifier written to {directory}\n")
    assert [path.name for path in sorted((model / "classifiers").iterdir())] == ["pos"]
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "metrics.jsonl", "model.safetensors"]
    assert ctrlgen("generate", "-m", model, "-c", SIMPLE, "--steps", 2).code == 0
    before = tree(model)
    again = ctrlgen(*teach)
    assert (again.code, len(again.err.splitlines()), tree(model)) == (1, 1, before)
    assert "--force" in again.err
    assert ctrlgen(*teach, "--force", "--seed", 1).code == 0
    assert tree(model).keys() == before.keys()
    assert tree(model)[directory / "model.safetensors"] != before[directory / "model.safetensors"]
    elsewhere = ctrlgen(*teach, "--out", tmp_path / "mine")
    assert elsewhere.code == 0
    assert (tmp_path / "mine" / "model.safetensors").exists()


def test_an_interrupted_classifier_leaves_the_old_one(
    ctrlgen: Run, toy_data: Path, model_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*arguments: Any) -> Iterator[None]:
        (arguments[-1] / "model.safetensors").write_text("half")
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(pos.Pos, "train", train)
    before = tree(model_copy)
    outcome = ctrlgen("train-classifier", "pos", "-m", model_copy, "--data", toy_data, "--force")
    assert outcome == Outcome(130, "", "ctrlgen: interrupted\n")
    assert tree(model_copy) == before


# Mistakes: one line on standard error, the exit code, and nothing written


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, toy_model: Path, toy_data: Path) -> Path:
    """A directory of things to be misused, which every test leaves as it was: $place in the table below."""
    place = tmp_path_factory.mktemp("place")
    shutil.copytree(toy_model, place / "model")
    data = DataConfig(str(toy_data))
    for _ in train(Recipe(data, TOY_MODEL, training=replace(TOY_TRAINING, steps=1)), place / "run"):
        pass
    truncated = Path(shutil.copytree(toy_model, place / "truncated"))
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    untaught = Path(shutil.copytree(toy_model, place / "untaught"))
    shutil.rmtree(untaught / "classifiers")
    (place / "empty").mkdir()
    (place / "file").write_text("x")
    (place / "letters").mkdir()
    (place / "letters" / "love.txt").write_text("x")
    good = RECIPE.format(data=json.dumps(str(toy_data)))
    for name, text in {
        "good.toml": good,
        "key.toml": good + "step = 3\n",
        "table.toml": good + "[trainin]\n",
        "type.toml": good.replace("steps = 2", 'steps = "two"'),
        "size.toml": good.replace("width = 16", "width = 17"),
        "broken.toml": "[data",
        "columns.csv": "body,label\nhello there,1\n",
        "void.csv": "",
        "few.jsonl": '{"text": "the cat", "tags": "DET NOUN"}\n',
        "tags.jsonl": '{"text": "the cat", "tags": "DET NUON"}\n' * 30,
        "uneven.jsonl": '{"text": "the cat", "tags": "DET"}\n' * 30,
        "not.json": '{"id": 1}\nnot json\n',
        "key.jsonl": '{}\n{"control": ["pos: DET"]}\n',
        "list.jsonl": "[]\n",
        "controls.jsonl": '{"controls": "pos: DET"}\n',
        "n.jsonl": '{"n": 1.5}\n',
        "n0.jsonl": '{"n": 0}\n',
        "seed.jsonl": '{"seed": "7"}\n',
        "tag.jsonl": '{}\n\n{"controls": ["pos: NUON"]}\n',
        "template.jsonl": '{"template": 3}\n',
        "blank.jsonl": "\n\n",
        "good.jsonl": "{}\n",
        "half.jsonl": '{"id": "\\ud800"}\n',
        "nan.jsonl": '{"id": NaN}\n',
        "deep.jsonl": '{"id": ' + "[" * 100_000 + "]" * 100_000 + "}\n",
    }.items():
        (place / name).write_text(text)
    return place


TOO_LONG = "pos:" + " NOUN" * 13
GENERATE = "generate -m $place/model"
TEACH = "train-classifier pos -m $place/model --force --data"


@pytest.mark.parametrize(
    ("command", "last", "code", "parts"),
    [
        (f"{GENERATE} -c", "pos: DET NUON", 2, ["'NUON'", "Did you mean NOUN?"]),
        (f"{GENERATE} -c", "pso: DET", 2, ["unknown control 'pso'", "Did you mean pos?"]),
        (f"{GENERATE} -c", "pos:", 2, ["'pos:'"]),
        (f"{GENERATE} -c", "pos: ...", 2, ["empty"]),
        (f"{GENERATE} -c", "pos: @2", 2, ["'pos: @2'"]),
        (f"{GENERATE} -c", "", 2, ["NAME: VALUE"]),
        ("generate -m", "", 2, ["--model is given nothing"]),
        ("train --data $place/columns.csv --out", "", 2, ["--out is given nothing"]),
        ("eval --report", "", 2, ["--report is given nothing"]),
        (f"{GENERATE} -c", "pos: DET NN", 2, ["'DET'", "'NN'", "one set"]),
        (f"{GENERATE} -c", "pos: DET @high", 2, ["'high'"]),
        (f"{GENERATE} -c", TOO_LONG, 2, ["1 to 12 words"]),
        (f"{GENERATE} -c 'pos: DET' -c", "pos: DET NOUN", 2, ["contradict"]),
        ("generate -m", "$place/nowhere", 1, ["$place/nowhere"]),
        ("generate -m", "e2f-no-such-model", 1, ["no model 'e2f-no-such-model'"]),
        ("generate -m", "$place/empty", 1, ["config.json: no such file"]),
        ("generate -m", "$place/file", 1, ["$place/file"]),
        ("generate -m", "$place/truncated", 1, ["model.safetensors: truncated"]),
        ("generate -m $place/untaught -c", SIMPLE, 1, ["no classifier 'pos'", "train-classifier pos"]),
        (f"{GENERATE} --out", "$place/none/out", 1, ["$place/none/out", "No such file or directory"]),
        (f"{GENERATE} --out", "$place/file/out", 1, ["$place/file/out", "Not a directory"]),
        (f"{GENERATE} --out", "$place/empty", 1, ["$place/empty", "directory"]),
        (f"{GENERATE} --steps", "0", 2, ["--steps"]),
        (f"{GENERATE} --steps", "many", 2, ["--steps"]),
        (f"{GENERATE} -n", "0", 2, ["-n"]),
        (f"{GENERATE} --seed", "9" * 30, 2, ["seed"]),
        (f"{GENERATE} --temperature", "0", 2, ["temperature"]),
        (f"{GENERATE} --temperature", "1e-40", 2, ["--temperature", "0.01"]),
        (f"{GENERATE} --temperature", "nan", 2, ["temperature"]),
        (f"{GENERATE} --strength", "-1", 2, ["strength"]),
        (f"{GENERATE} --strength", "nan", 2, ["strength"]),
        (f"{GENERATE} --candidates", "0", 2, ["--candidates"]),
        (f"{GENERATE} --until-success", "-1", 2, ["--until-success"]),
        (f"{GENERATE} -c 'pos: DET ...' -c", "pos: NOUN ...", 2, ["'pos: DET ...' and 'pos: NOUN ...' contradict"]),
        (f"{GENERATE} --sampler", "euler", 2, ["'euler'", "ancestral", "ddim", "dpm"]),
        (f"{GENERATE} --guidance", "magic", 2, ["'magic'", "gradient", "exact", "paper"]),
        (f"{GENERATE} --select", "best", 2, ["'best'", "score", "mbr"]),
        (f"{GENERATE} --guidance paper --sampler", "dpm", 2, ["--sampler ancestral"]),
        (f"{GENERATE} --window", "0.5:0.1", 2, ["window 0.5:0.1: must rise"]),
        (f"{GENERATE} --window", "a:b", 2, ["window 'a:b'"]),
        (f"{GENERATE} --window", "0.5", 2, ["window '0.5': write FROM:TO"]),
        (f"{GENERATE} --steps", "99999999999999999999", 2, ["--steps", "100000"]),
        (f"{GENERATE} --device cuda --ray --batch", "$place/good.jsonl", 2, ["leave out --device"]),
        (f"{GENERATE} --device", "quantum", 2, ["'quantum'"]),
        (f"{GENERATE} --device", "meta", 2, ["'meta'"]),
        (GENERATE, "--no-such-option", 2, ["--no-such-option"]),
        (f"{GENERATE} -c 'pos: DET' --batch", "$place/n.jsonl", 2, ["--batch", "--control"]),
        (f"{GENERATE} --batch", "$place/none.jsonl", 1, ["none.jsonl: cannot be read: No such file"]),
        (f"{GENERATE} --batch", "$place/model", 1, ["cannot be read"]),
        (f"{GENERATE} --batch", "$place/model/model.safetensors", 1, ["cannot be read"]),
        (f"{GENERATE} --batch", "$place/blank.jsonl", 1, ["holds no requests"]),
        (f"{GENERATE} --batch", "$place/not.json", 2, ["not.json, line 2: not JSON"]),
        (f"{GENERATE} --batch", "$place/key.jsonl", 2, ["line 2: unknown key 'control'", "Did you mean controls?"]),
        (f"{GENERATE} --batch", "$place/list.jsonl", 2, ["line 1: a request is a JSON object"]),
        (f"{GENERATE} --batch", "$place/controls.jsonl", 2, ["line 1: controls must be a list of strings"]),
        (f"{GENERATE} --batch", "$place/n.jsonl", 2, ["line 1: n must be a whole number"]),
        (f"{GENERATE} --batch", "$place/n0.jsonl", 2, ["line 1: n must be between 1 and"]),
        (f"{GENERATE} --batch", "$place/seed.jsonl", 2, ["line 1: seed must be a whole number"]),
        (f"{GENERATE} --batch", "$place/tag.jsonl", 2, ["line 3: ", "'NUON'", "Did you mean NOUN?"]),
        (f"{GENERATE} --batch", "$place/template.jsonl", 2, ["line 1: template must be a string"]),
        (f"{GENERATE} --batch", "$place/half.jsonl", 2, ["half.jsonl, line 1: not JSON"]),
        (f"{GENERATE} --batch", "$place/nan.jsonl", 2, ["nan.jsonl, line 1: not JSON: NaN"]),
        (f"{GENERATE} --batch", "$place/deep.jsonl", 2, ["deep.jsonl, line 1: not JSON"]),
        (f"{GENERATE} -c", "words: \udcff", 2, ["not Unicode text"]),
        (f"{GENERATE} -c", f"words: {'a' * 200_000}", 2, ["at most 10,000 characters"]),
        (f"{GENERATE} -c", f"length: {'9' * 5000}", 2, ["is not a length"]),
        ("infill -m $place/model", "the ___{" + "9" * 5000 + "} .", 2, ["write the number of words"]),
        ("infill -m $place/model", "the ___ \udcff .", 2, ["not Unicode text"]),
        ("infill -m $place/model", "the cat .", 2, ["'the cat .' has no blank to fill"]),
        ("infill -m $place/model -c 'pos: DET NOUN'", "the ___{2} .", 2, ["takes 4 words,", "'pos: DET NOUN'"]),
        ("infill -m $place/model -c", "pos: DET", 2, ["template"]),
        ("controls -m", "$place/nowhere", 1, ["$place/nowhere"]),
        ("generat", "-n", 2, ["generat"]),
        (GENERATE, "food: Italian", 2, ['(food: Italian). Controls are given with -c: -c "food: Italian"']),
        (GENERATE, "--seed=-9999999999999999999", 2, ["the seed must be at most 4611686018427387904"]),
        ("train --out", "$place/new", 2, ["recipe", "--data"]),
        ("train", "$place/good.toml", 2, ["--out"]),
        ("train $place/key.toml --out", "$place/new", 2, ["[training]", "'step'", "Did you mean steps?"]),
        ("train $place/table.toml --out", "$place/new", 2, ["[trainin]", "Did you mean training?"]),
        ("train $place/type.toml --out", "$place/new", 2, ["steps = 'two' is not a whole number"]),
        ("train $place/size.toml --out", "$place/new", 2, ["width 17"]),
        ("train $place/broken.toml --out", "$place/new", 2, ["not TOML"]),
        ("train $place/none.toml --out", "$place/new", 1, ["No such file or directory"]),
        ("train $place/good.toml --data $place/none.csv --out", "$place/new", 1, ["none.csv: no such file"]),
        ("train $place/good.toml --data $place/void.csv --out", "$place/new", 1, ["void.csv: holds no rows"]),
        ("train $place/good.toml --data $place/file --out", "$place/new", 2, ["unknown kind of file", ".csv"]),
        ("train $place/good.toml --data $place/columns.csv --out", "$place/new", 2, ["body, label"]),
        ("train $place/good.toml --text-column txt --out", "$place/new", 2, ["'txt'", "Did you mean text?"]),
        ("train $place/good.toml --out", "$place/file", 1, ["$place/file"]),
        ("train $place/good.toml --out", "$place/file/model", 1, ["$place/file/model", "Not a directory"]),
        ("train $place/good.toml --out", "$place/model", 1, ["already holds a model"]),
        ("train $place/good.toml --resume --out", "$place/empty", 1, ["nothing to resume"]),
        ("train $place/good.toml --resume --out", "$place/run", 2, ["another recipe"]),
        ("train $place/good.toml --log-with nonsense --out", "$place/new", 2, ["'nonsense'", "tensorboard"]),
        ("train-classifier pos -m $place/nowhere --data", "$place/few.jsonl", 1, ["$place/nowhere"]),
        ("train-classifier pso -m $place/model --data", "$place/few.jsonl", 2, ["'pso'", "Did you mean pos?"]),
        ("train-classifier pos -m", "$place/model", 2, ["--data"]),
        (TEACH, "$place/none.jsonl", 1, ["no such file"]),
        (TEACH, "$place/columns.csv", 2, ["body, label"]),
        (TEACH, "$place/few.jsonl", 1, ["fewer than 20 different usable texts"]),
        (TEACH, "$place/tags.jsonl", 2, ["'NUON'", "Did you mean NOUN?"]),
        (TEACH, "$place/uneven.jsonl", 1, ["2 words but 1 tags"]),
        (f"{TEACH} $place/tags.jsonl --label-column", "tgas", 2, ["'tgas'", "Did you mean tags?"]),
        (f"{TEACH} $place/tags.jsonl --seed", "1732370000000000000", 2, ["the seed must be at most 2147483647"]),
        (f"{TEACH} $place/tags.jsonl --name", "../../pos", 2, ["cannot be the name of a control"]),
        (f"{TEACH} $place/tags.jsonl --out", "$place/letters", 1, ["$place/letters: holds something else"]),
        (f"{TEACH} $place/tags.jsonl --out", "$place/model", 1, ["$place/model: holds something else"]),
        (f"{TEACH} $place/tags.jsonl --out", "$place/file", 1, ["$place/file: holds something else"]),
        (f"{TEACH} $place/tags.jsonl --out", "$place/file/pos", 1, ["$place/file", "cannot be written to"]),
    ],
)
def test_mistakes(ctrlgen: Run, place: Path, command: str, last: str, code: int, parts: list[str]) -> None:
    before = tree(place)
    outcome = ctrlgen(*(word.replace("$place", str(place)) for word in [*shlex.split(command), last]))
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    assert len(outcome.err.splitlines()) == 1, outcome.err
    assert outcome.err.startswith("ctrlgen: ")
    assert [part for part in parts if part.replace("$place", str(place)) not in outcome.err] == [], outcome.err
    assert tree(place) == before


def test_a_mistake_in_one_request_answers_none(ctrlgen: Run, place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    outcome = ctrlgen("generate", "-m", place / "model", "--batch", place / "tag.jsonl", "--out", out)
    assert (outcome.code, outcome.out) == (2, "")
    assert not out.exists()


@pytest.mark.usefixtures("no_spacy")
def test_texts_without_tags_need_the_oracles_tagger(ctrlgen: Run, model_copy: Path, tmp_path: Path) -> None:
    rows = [json.dumps({"text": " ".join(words)}) for words, _ in toy_sentences(30)]
    (tmp_path / "plain.jsonl").write_text("\n".join(rows))
    outcome = ctrlgen("train-classifier", "pos", "-m", model_copy, "--force", "--data", tmp_path / "plain.jsonl")
    assert (outcome.code, len(outcome.err.splitlines())) == (1, 1)
    assert "pip install" in outcome.err


def test_lines_of_a_batch_end_at_newlines_alone(ctrlgen: Run, toy_model: Path, tmp_path: Path) -> None:
    (tmp_path / "batch.jsonl").write_bytes('{"id": "a\u2028b\x85"}\r\n{"id": 2}'.encode())
    outcome = ctrlgen("generate", "-m", toy_model, "--steps", 2, "--batch", tmp_path / "batch.jsonl")
    assert [json.loads(line)["id"] for line in outcome.out.rstrip("\n").split("\n")] == ["a\u2028b\x85", 2]


def test_a_batch_from_windows(ctrlgen: Run, toy_model: Path, tmp_path: Path) -> None:
    (tmp_path / "batch.jsonl").write_bytes(b'\xef\xbb\xbf{"id": 1}\r\n')
    (answer,) = ctrlgen("generate", "-m", toy_model, "--steps", 2, "--batch", tmp_path / "batch.jsonl").answers
    assert answer["id"] == 1


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [("-n 1 >&-", 1, "standard output is closed"), ("--batch - <&-", 2, "standard input is closed")],
)
def test_closed_streams(toy_model: Path, options: str, code: int, said: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'"$0" -m ctrlgen generate -m "$1" {options}', sys.executable, str(toy_model)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (code, f"ctrlgen: {said}\n")


def test_negated_controls_have_columns_of_their_own(ctrlgen: Run, toy_model: Path) -> None:
    controls = ("-c", "words: cat", "-c", "not words: dog", "-c", "not words: river")
    heading, row = ctrlgen("generate", "-m", toy_model, "--steps", 2, *controls).out.splitlines()
    assert heading.split() == ["text", "words", "not", "words"]
    assert len(set(row) & set("✓✗")) >= 1


def test_many_controls_share_a_column(ctrlgen: Run, toy_model: Path) -> None:
    """So that no text is cut short."""
    said = ["words", "not words", "starts", "not starts", "ends", "not ends", "length", "not length", "pos"]
    values = {"length": "9", "not length": "8", "pos": "DET ...", "starts": "the", "ends": ".", "not words": "dog"}
    controls = [word for name in said for word in ("-c", f"{name}: {values.get(name, 'cat')}")]
    heading, *lines = ctrlgen("generate", "-m", toy_model, "--steps", 4, *controls).out.splitlines()
    assert heading.split()[:2] == ["text", "controls"]
    assert [line.partition(mark)[2].strip().split("  ")[0] for line in lines for mark in "✓✗?" if mark in line] == said


def test_names_are_no_markup(ctrlgen: Run, toy_model: Path) -> None:
    outcome = ctrlgen("generate", "-m", toy_model, "--steps", 2, "-c", "[/pos]: DET NOUN")
    assert (outcome.code, outcome.err) == (0, "")
    assert "[/pos]" in outcome.out


def test_what_the_output_cannot_show_is_escaped(toy_model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ctrlgen", "generate", "-m", str(toy_model), "--steps", "2", "-c", "length: 4"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u2713" in done.stdout


def test_from_a_shell(toy_model: Path, generator: Generator) -> None:
    """The whole way once: a process of its own, requests on standard input."""
    done = subprocess.run(
        [sys.executable, "-m", "ctrlgen", "generate", "-m", str(toy_model), "--batch", "-", "--steps", "8"],
        input='{"id": "a1", "n": 2, "seed": 7}\n', capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    samples = generator.generate([Request(n=2, seed=7, id="a1")], Settings(steps=8))
    assert [json.loads(line) for line in done.stdout.splitlines()] == [sample.as_json() for sample in samples]


@pytest.mark.parametrize("value", ["theirs", "=texts.txt", "theirs=", "ctrlgen=texts.txt", "human=a", "fudge=a"])
def test_a_system_needs_a_name_of_its_own_and_a_file(ctrlgen: Run, toy_model: Path, value: str) -> None:
    outcome = ctrlgen("eval", "-m", toy_model, "--data", "none.jsonl", "--system", value)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert outcome.err.startswith("ctrlgen: --system ")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("length", "--oracle 'length': write CONTROL=ORACLE"),
        ("length=other", "--oracle: length has one oracle only"),
        ("nothing=other", "unknown control 'nothing'"),
    ],
)
def test_an_oracle_that_there_is_not(value: str, message: str, toy_model: Path, ctrlgen: Run) -> None:
    outcome = ctrlgen("eval", "-m", toy_model, "--data", "none.jsonl", "--oracle", value)
    assert outcome.code == 2
    assert outcome.err.startswith(f"ctrlgen: {message}")


def test_shares_of_a_set(ctrlgen: Run, toy_model: Path) -> None:
    few = ("generate", "--model", toy_model, "--steps", 3, "--device", "cpu")
    outcome = ctrlgen(*few, "-n", 8, "--share", "words: cat=25%", "--json")
    assert outcome.code == 0
    assert sum("cat" in answer["tokens"] for answer in outcome.answers) == 2
    assert "'words: cat': 2 of 8 texts, 25.0%, asked for 25.0%\n" in outcome.err
    for arguments, message in (
        (("--share", "words: cat"), "write CONTROL=PERCENT%"),
        (("--share", "words: cat=30%", "--batch", "-"), "leave out --batch"),
        (("--share", "starts: a=60%", "--share", "starts: the=60%"), "texts are left for 'starts: the', which needs"),
    ):
        refused = ctrlgen(*few, *arguments)
        assert refused.code == 2
        assert message in refused.err
        assert refused.out == ""
