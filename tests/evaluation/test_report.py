"""What people see of an evaluation: the tables, the page, the model card, the comparison."""

import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ctrlgen.checkpoint import from_pretrained
from ctrlgen.cli import display, main
from ctrlgen.cli.figures import show_results
from ctrlgen.controls.classifier import Verdict
from ctrlgen.controls.language import Control, Statement
from ctrlgen.controls.registry import weights_fingerprint
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.evaluation.evaluation import Evaluation, Progress
from ctrlgen.evaluation.figures import Row
from ctrlgen.evaluation.metrics import Calibration, Estimate
from ctrlgen.evaluation.plan import Plan
from ctrlgen.evaluation.records import Record
from ctrlgen.evaluation.report.card import END, START, card_path, refuse_to_forget, write_card
from ctrlgen.evaluation.report.page import write_report
from ctrlgen.evaluation.report.published import comparison
from ctrlgen.evaluation.report.tables import control_table, markdown_table, notes, text_table
from ctrlgen.evaluation.results import Results
from ctrlgen.evaluation.systems import HUMAN, OURS
from ctrlgen.evaluation.targets import Asked, Target
from ctrlgen.evaluation.tradeoff import Point, curves, knee
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.request import Request
from ctrlgen.settings import Settings

TASKS = {"pos": "parts of speech", "field": "semantic content", "length": "length"}
COMMAND = "ctrlgen eval --suite pos --data 'my data.jsonl'"


def row(suite: str = "pos", system: str = OURS, setting: str = "", **figures: Any) -> Row:
    """A row in which only these figures were measured."""
    nothing: dict[str, Any] = {
        "targets": 2, "samples": 1, "success": None, "parts": None, "by_control": {}, "also": {}, "unchecked": 0,
        "cost": {}, "exp_mean": {}, "gap": {}, "distinct": {}, "entropy": None,
        "slips": None, "repeats": None, "self_bleu": None, "copies": None,
        "longest_shared": None, "bleu": None, "rouge_l": None, "calibration": None, "seconds_per_sample": None,
        "tokens_per_second": None, "evaluations": None,
    }  # fmt: skip
    return Row(suite, system, setting, **nothing | figures)


def record(system: str, words: str, *verdicts: Verdict, target: int = 0) -> Record:
    return Record("pos", system, "", 0, target, 0, words.split(), list(verdicts))


def asked(suite: str = "pos", *controls: str) -> Asked:
    """A suite of one target; the kind of each control is its name."""
    parsed = [
        Control(
            Statement(text, text.partition(":")[0], ""),
            SimpleNamespace(kind=text.partition(":")[0], task=TASKS.get(text.partition(":")[0])),
            None,
        )  # type: ignore[arg-type]
        for text in controls or ("pos: DET <NOUN>",)
    ]
    target = Target(tuple(control.text for control in parsed), (("a", "cat"),))
    return Asked(suite, [target], [Request(controls=tuple(parsed))])


def made(rows: list[Row], records: list[Record] | None = None, **more: Any) -> Results:
    configuration = {
        "model": {"name": "toy", "weights": "0123abcd"},
        "plan": {"data": ["far/off/e2e/test.jsonl"], "settings": {"steps": 7}},
        "versions": {"ctrlgen": "0.1.0"}, "hardware": {"processor": "Abacus <1>", "threads": 1, "device": "cpu"},
        "command": COMMAND,
    }  # fmt: skip
    suites = dict.fromkeys(row.suite for row in rows)
    given: dict[str, Any] = {"asked": {suite: asked(suite) for suite in suites}, "notes": []}
    return Results(configuration, rows, records=records or [], **given | more)


FULL = row(
    success=Estimate(0.986, 0.971, 0.998), parts=Estimate(0.9987, 0.99, 1.0), also={"literal": Estimate(0.5, 0.4, 0.6)},
    cost={"lm": Estimate(2.0, 1.9, 2.1)}, gap={"lm": Estimate(-0.001, -0.2, 0.31)}, distinct={"4": 0.5},
    seconds_per_sample=0.25,
)  # fmt: skip
PEOPLE = row(system=HUMAN, success=Estimate(0.75, 0.7, 0.8), cost={"lm": Estimate(2.0, 1.9, 2.1)})


# Tables


def test_a_line_has_ours_beside_people_and_the_interval() -> None:
    table = control_table(made([PEOPLE, FULL]), full=True)
    (line,) = table.lines
    cells = dict(zip(table.header, map(str, line.cells), strict=True))
    assert cells == {
        "suite": "pos", "system": OURS, "success %": "98.6 (97.1–99.8)", "human %": "75.0",
        "per word / F1 %": "99.9 (99.0–100.0)", "also %": "literal 50.0", "above human, lm": "+0.00 (−0.20 to +0.31)",
    }  # fmt: skip


def test_what_was_not_measured_is_empty_and_never_nought() -> None:
    results = made([PEOPLE, FULL, row("tree", distinct={"4": float("nan")})])
    table = control_table(results)
    assert [str(cell) for cell in table.lines[1].cells[2:]] == [""] * (len(table.header) - 2)
    assert "nan" not in markdown_table(text_table(results, full=True))
    assert "setting" not in table.header  # nothing was swept


def test_people_have_lines_of_their_own_among_the_texts() -> None:
    lines = text_table(made([PEOPLE, FULL])).lines
    assert [line.quiet for line in lines] == [True, False]


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_shows_every_figure_within_its_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "PLAIN_WIDTH", width)
    file = io.StringIO()
    show_results(made([PEOPLE, FULL], notes=["pos: 3 targets left out"]), file)
    shown = file.getvalue()
    assert all(len(line) <= width for line in shown.partition("Intervals")[0].splitlines())
    for figure in ("98.6", "97.1–99.8", "75.0", "99.9", "+0.00", "0.25", "pos: 3 targets left out"):
        assert figure in shown


def test_a_missing_oracle_is_told_once() -> None:
    missing = Verdict(None, "not checked: pip install oracle")
    results = made([row()], [record(OURS, "a cat", missing, missing), record(OURS, "a dog", missing, target=0)])
    assert [note for note in notes(results) if "oracle" in note] == ["pos: not checked: pip install oracle"]
    assert any("No cost model" in note for note in notes(results))
    assert not any("No cost model" in note for note in notes(made([FULL])))


# The knee


def points(*pairs: tuple[float, float]) -> list[Point]:
    return [Point(f"strength={number}", gap, success) for number, (gap, success) in enumerate(pairs)]


def test_the_knee_is_where_control_begins_to_cost_much() -> None:
    curve = points((0.0, 0.0), (0.1, 0.7), (0.2, 0.9), (0.4, 0.97), (0.8, 1.0))
    assert knee(curve) == curve[2]
    scaled = [Point(p.setting, 100 * p.gap + 3, p.success / 10) for p in curve]
    assert knee(scaled) == scaled[2]


def test_a_setting_that_is_cheapest_and_best_is_the_knee() -> None:
    curve = points((0.4, 0.1), (0.1, 0.9), (0.2, 0.8))
    assert knee(curve) == curve[1]
    assert knee([]) is None
    assert knee(points((0.1, 0.5), (0.1, 0.5))) is not None


def swept() -> list[Row]:
    figures = ((0.0, 0.1), (0.1, 0.8), (0.9, 0.9))
    return [
        row(setting=f"strength={n}", success=Estimate(s, s, s), cost=FULL.cost, gap={"lm": Estimate(g, g, g)})
        for n, (g, s) in enumerate(figures)
    ]


def test_the_sweep_is_a_curve_of_each_suite() -> None:
    (curve,) = curves(made([PEOPLE, *swept()])).values()
    assert [(point.setting, point.gap) for point in curve] == [
        ("strength=0", 0.0),
        ("strength=1", 0.1),
        ("strength=2", 0.9),
    ]
    assert not curves(made([PEOPLE, FULL]))


# The page

BAD = Verdict(False, "wanted <NOUN> & more", (1,), 0.5, 2)
SAMPLES = [record(HUMAN, "a cat", Verdict(True)), record(OURS, "the <b> & cat", BAD)]


def write(results: Results, directory: Path) -> str:
    write_report(results, directory)
    return (directory / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_stands_alone(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    calibration = Calibration(0.1, 1.5, 0.05, [(0.1, 0.2, 5), (0.9, 0.8, 10)])
    page = write(made([PEOPLE, *swept(), replace(FULL, calibration=calibration)], SAMPLES), tmp_path)
    assert page.count("<svg") == 2
    assert "the knee is strength=1" in page
    references = re.findall(r"""(?:src|href|action)\s*=\s*["']?([^"'\s>]*)""", page) + re.findall(r"url\(([^)]*)", page)
    assert all(reference.startswith("#") for reference in references)
    assert not re.search(r"<(script|link|iframe|object|embed|img|base)\b|@import", page)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "sweep-pos.png"]


@pytest.mark.slow
def test_every_text_is_escaped_and_failed_words_are_marked(tmp_path: Path) -> None:
    page = write(made([PEOPLE, FULL], SAMPLES, notes=["<i> left out"]), tmp_path)
    assert "<b>" not in page.replace("<b>human</b>", "")
    assert "<mark>&lt;b&gt;</mark>" in page
    assert page.count("<mark>") == 1
    assert "wanted &lt;NOUN&gt; &amp; more" in page
    assert "<code>pos: DET &lt;NOUN&gt;</code>" in page
    assert "&lt;i&gt; left out" in page
    assert "Abacus &lt;1&gt;" in page


def test_the_page_holds_the_settings_and_ends_with_the_command(tmp_path: Path) -> None:
    page = write(made([FULL]), tmp_path)
    assert "<th>plan.settings.steps</th><td>7</td>" in page
    assert "0123abcd" in page
    assert page[page.rindex("<h2>") :].startswith("<h2>Run it again</h2>\n<pre>ctrlgen eval --suite pos")


def test_people_and_marks_stand_beside_each_sample(tmp_path: Path) -> None:
    page = write(made([PEOPLE, FULL], SAMPLES), tmp_path)
    assert "<span class=fail>✗</span> <code>pos" in page
    assert "<b>human</b> a cat <span class=pass>✓</span>" in page


def test_no_more_than_thirty_samples_of_each(tmp_path: Path) -> None:
    many = [replace(SAMPLES[1], index=index) for index in range(40)]
    assert write(made([FULL], many), tmp_path).count("<mark>") == 30


def test_without_matplotlib_the_report_lacks_only_its_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(sys.modules, "ctrlgen.evaluation.report.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = write(made([PEOPLE, *swept()], SAMPLES), tmp_path)
    assert "<svg" not in page
    assert "the knee is strength=1" in page
    (said,) = caplog.messages
    assert "pip install matplotlib" in said


@pytest.mark.slow
def test_the_report_of_a_toy_evaluation(generator: Generator, toy_data: Path, tmp_path: Path) -> None:
    suites = ("length", "words", "infill", "unguided")
    plan = Plan(suites=suites, data=(str(toy_data),), limit=4, settings=Settings(steps=4), report=tmp_path)
    results = Evaluation(plan, generator, []).run()
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<summary>") == 4 + 1  # and the configuration
    for suite, requests in results.asked.items():
        assert f"<summary>{suite} · ctrlgen</summary>" in page
        assert all(control.text in page for request in requests.requests for control in request.controls)
    assert "___{" in page  # the template that was filled
    file = io.StringIO()
    show_results(results, file)
    assert "No cost model was there" in file.getvalue()


# The card


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_only_the_block_of_the_card_is_replaced(newline: str, model_copy: Path) -> None:
    before, after = (
        f"---{newline}licence: ß{newline}---{newline} # toy {newline}",
        f"{newline}{newline}## Limits \t{newline}",
    )
    path = model_copy / "README.md"
    path.write_bytes(f"{before}{START}old figures{END}{after}".encode())
    model = from_pretrained(str(model_copy))
    for _ in range(2):
        write_card(made([PEOPLE, FULL]), model)
        card = path.read_bytes().decode()
        assert card.startswith(before + START)
        assert card.endswith(END + after)
        assert "old figures" not in card
    assert "| pos | ctrlgen | 2 | 98.6 (97.1–99.8) | 75.0 | 99.9 (99.0–100.0) | literal 50.0 |" in card
    assert f"    {COMMAND}\n" in card
    assert "0123abcd" in card
    assert "Abacus" in card


@pytest.mark.parametrize("card", ["# toy\n\nProse.", None])
def test_a_card_without_a_block_gets_one(card: str | None, model_copy: Path) -> None:
    path = model_copy / "README.md"
    path.unlink(missing_ok=True)
    if card is not None:
        path.write_text(card)
    write_card(made([FULL]), from_pretrained(str(model_copy)))
    written = path.read_text(encoding="utf-8")
    assert written.startswith((card or "# copy\n") + "\n")
    assert written.count(START) == written.count(END) == 1
    assert written.endswith(f"{END}\n")


def test_a_card_that_cannot_be_written_is_refused(model_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = from_pretrained(str(model_copy))
    (model_copy / "README.md").write_text(f"# toy\n{START}\nno end\n")
    with pytest.raises(CtrlgenError, match="does not end"):
        write_card(made([FULL]), model)
    assert "no end" in (model_copy / "README.md").read_text()

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(CtrlgenError, match="Permission denied"):
        card_path(model)
    for directory in (None, model_copy / "gone"):
        with pytest.raises(CtrlgenError):
            card_path(replace(model, directory=directory))


# The comparison


def line_of(text: str, start: str, number: int = 0) -> list[str]:
    lines = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in lines[number].strip("|").split("|")[1:]]


def test_our_figures_are_measured_as_the_published_ones() -> None:
    literal = row("field", success=Estimate(0.1, 0.0, 0.2), also={"literal": Estimate(0.916, 0.9, 0.93)})
    length = row("length", success=Estimate(0.5, 0.4, 0.6), also={"within 2": Estimate(1.0, 1.0, 1.0)})
    both = row("pos+field", parts=Estimate(0.7, 0.6, 0.8), also={"literal": Estimate(0.8, 0.7, 0.9)})
    asked_for = {
        "pos": asked("pos"), "field": asked("field", "field: x"), "length": asked("length", "length: 5"),
        "pos+field": asked("pos+field", "pos: DET", "field: x"),
    }  # fmt: skip
    text = comparison(made([PEOPLE, FULL, literal, length, both], asked=asked_for))
    assert line_of(text, "**ctrlgen**") == ["91.6 (90.0–93.0)", "99.9 (99.0–100.0)", "", "", "100.0 (100.0–100.0)"]
    assert line_of(text, "**ctrlgen**", 1) == ["", "80.0 + 70.0"]
    assert line_of(text, "Diffusion-LM") == ["81.2 / 2.55", "90.0 / 5.16", "86.0 / 3.71", "93.8 / 2.53", "99.9 / 2.16"]
    assert "`e2e/test.jsonl`" in text
    assert "far/off" not in text.replace(COMMAND, "")


def test_published_targets_are_counted_as_published() -> None:
    figures = replace(FULL, also={"with the newline token": Estimate(0.93, 0.9, 0.95)})
    assert line_of(comparison(made([figures])), "**ctrlgen**")[1] == "93.0 (90.0–95.0)"


# Progress


def test_progress_is_shown_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with display.evaluation_progress() as watch:
        watch(Progress(3, 12, "pos ctrlgen [odd]"))
    assert "3/12" not in capsys.readouterr().err
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with display.evaluation_progress() as watch:
        watch(Progress(3, 12, "pos ctrlgen [odd]"))
    error = capsys.readouterr().err
    assert "3/12" in error
    assert "pos ctrlgen [odd]" in error


def test_controls_shows_what_was_measured_of_these_weights(
    model_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = from_pretrained(str(model_copy))

    def shown() -> dict[str, Any]:
        with pytest.raises(SystemExit):
            main(["controls", "-m", str(model_copy), "--json"])
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return {line["kind"]: line["measured"] for line in lines}

    results = made([PEOPLE, FULL])
    write_card(results, model)
    assert shown()["pos"] is None  # of other weights
    configuration = results.configuration | {"model": {"weights": weights_fingerprint(model)}}
    write_card(replace(results, configuration=configuration), model)
    refuse_to_forget(model, ["pos", "length"], FULL.targets)
    for suites, limit in ((["length"], 200), (["pos"], FULL.targets - 1)):
        with pytest.raises(UsageError, match=r"more suites or targets \(pos\)"):
            refuse_to_forget(model, suites, limit)
    found = shown()
    assert found["pos"]["success"] == pytest.approx(0.986, abs=1e-3)
    assert found["length"] is None
    weights = model_copy / "classifiers" / "pos" / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    assert shown()["pos"] is None  # of another classifier
