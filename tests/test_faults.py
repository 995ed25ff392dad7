"""The faults that people met in version 0.1.0, one case an example, each with its right value.

K1 reading, K2 labels, K3 what is left out, K4 resuming, K5 special tokens, K6 given text, K7 writing, K8 bounds,
K9 waiting, K10 what people look for, K11 the demo, K12 tests. A case is tried here, or names the test that tries it.
"""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from command_line import Run
from make_toy_model import TOY_MODEL, TOY_TRAINING

from ctrlgen.checkpoint import from_pretrained
from ctrlgen.controls.classifier import Classifier
from ctrlgen.controls.language import parse_value
from ctrlgen.controls.registry import Controls
from ctrlgen.errors import CtrlgenError
from ctrlgen.evaluation import provenance
from ctrlgen.evaluation.targets import Example, targets_by_value
from ctrlgen.evaluation.train_language_model import train_lm
from ctrlgen.generation.generator import Generator
from ctrlgen.settings import Settings
from ctrlgen.training.denoising import DataConfig, Recipe, train
from ctrlgen.training.fit import TrainingConfig
from ctrlgen_classifiers.tree import Tree

TESTS = Path(__file__).parent
QUICK = Settings(steps=2, corrections=0)
SENTENCES = ["the cat sees a dog .", "a dog likes the old river .", "the red house finds a cat ."]


@dataclass(frozen=True)
class Here:
    """What a case is tried with."""

    place: Path
    data: Path
    model: Path
    generator: Generator
    run: Run
    patch: pytest.MonkeyPatch

    def refused(self, code: int, *arguments: object) -> str:
        """The one line that a command says where it is refused."""
        outcome = self.run(*arguments)
        assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (code, "", 1), outcome
        return outcome.err

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.place / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path


def message(act: Callable[[], object]) -> str:
    with pytest.raises(CtrlgenError) as caught:
        act()
    return str(caught.value)


def interrupted(events: Iterator[Any]) -> None:
    def follow() -> None:
        for _ in events:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        follow()


def at_sign_without_a_number(here: Here) -> None:
    classifier = here.generator.controls.classifier("length")
    assert "a weight after @ is a number" in message(lambda: parse_value(classifier, "5 x@y"))
    assert "a weight after @ is a number" in message(lambda: here.generator.request(["pos: DET@x"]))


def name_of_a_kind(here: Here) -> None:
    data = here.write("a.csv", "text,label\n" + "".join(f"{text},{n % 2}\n" for n, text in enumerate(SENTENCES * 20)))
    teach = ("train-classifier", "label", "-m", here.model, "--data", data, "--label-column", "label", "--name")
    for name in ("pos", "Length", "wor-ds"):
        assert "is a kind of control already" in here.refused(2, *teach, name)


def only_long_validation_texts(here: Here) -> None:
    other = here.write("long.txt", "the cat sees a dog . " * 10 + "\n")
    recipe = Recipe(DataConfig(str(here.data), validation=str(other)), TOY_MODEL, training=TOY_TRAINING)
    said = message(lambda: next(train(recipe, here.place / "model")))
    assert str(other) in said
    assert "1 texts read, 0 used, 1 longer than 12 words" in said


def two_data_files(here: Here) -> None:
    for command in ("train", "train-lm", "similar"):
        assert "--data is given more than once" in here.refused(2, command, "--data", "a.csv", "--data", "b.csv")


def language_model_of_other_texts(here: Here) -> None:
    model = from_pretrained(str(here.model))
    config = TrainingConfig(steps=4, tokens_per_batch=256, validate_every=4, log_every=1)
    lines = here.data.read_text().splitlines()
    other = here.write("other.jsonl", "\n".join([lines[1], lines[0].replace("a ", "the ", 1), *lines[2:]]))
    working = here.place / "lm"
    working.mkdir()
    interrupted(train_lm(model, str(here.data), None, None, config, working))
    for source in (other, here.write("fewer.jsonl", "\n".join(lines[1:]))):
        events = train_lm(model, str(source), None, None, config, working, resume=True)
        assert "was made with other texts" in message(lambda events=events: list(events))


def given_words_come_back(here: Here) -> None:
    for given in (
        "C# 5 - 10 km - see http://a.org/b", "me@a.org, U.S. at 9 a.m.", "'hello' - the guests' pub", "don’t C++",
        "\U0001f469\u200d\U0001f373 Café", "a\u00a0b  c",
    ):  # fmt: skip
        request = here.generator.request([], template=f"{given} ___{{1}}", seed=1)
        (sample,) = here.generator.generate([request], QUICK)
        assert sample.text.startswith(given), sample.text


def given_tabs_come_back(here: Here) -> None:
    said = here.run("infill", "the\tdog ___ .", "-m", here.model, "--steps", 2)
    assert said.out.startswith("the\tdog ")


def a_key_given_twice(here: Here) -> None:
    batch = here.write("a.jsonl", '{"n": 1, "n": 2}\n')
    assert "a key is given twice" in here.refused(2, "generate", "-m", here.model, "--batch", batch)
    plan = here.write("b.jsonl", '{"controls": [], "controls": []}\n')
    assert "a key is given twice" in here.refused(2, "write", plan, "-m", here.model)
    batch = here.write("c.jsonl", '{"id": 1e999}\n')
    assert "1e999 is no number" in here.refused(2, "generate", "-m", here.model, "--batch", batch)


def unknown_given_words_are_told(here: Here) -> None:
    said = here.run("infill", "Chez Marcel ___ .", "-m", here.model, "--steps", 2)
    assert (said.code, said.out[:11]) == (0, "Chez Marcel")
    assert "warning: this model does not know Chez, Marcel" in said.err
    assert "warning" not in here.run("infill", "The dog ___ .", "-m", here.model, "--steps", 2).err


def strength_without_bounds(here: Here) -> None:
    for option, value in (("--strength", "1e38"), ("--time-offset", "1e10"), ("--temperature", "1e-38")):
        assert option[2:] in here.refused(2, "generate", "-m", here.model, option, value)


def steps_have_a_default(here: Here) -> None:
    for command in ("train-lm", "train-classifier"):
        shown = " ".join(re.sub(r"[│\s]+", " ", here.run(command, "--help").out).split())
        assert re.search(r"--steps.{0,80}\[default: \d+\]", shown), shown
    assert "the recipe's, or by the data" in " ".join(re.sub(r"[│\s]+", " ", here.run("train", "--help").out).split())


def interruption_names_resume(here: Here) -> None:
    def stop(*_: object, **__: object) -> Iterator[Any]:
        raise KeyboardInterrupt

    here.patch.setattr("ctrlgen.domain.making.make", stop)
    recipe = here.write("a.toml", f"[data]\ntrain = {json.dumps(str(here.data))}\n")
    outcome = here.run("train", recipe, "--out", here.place / "model")
    assert (outcome.code, "the same command with --resume goes on" in outcome.err) == (130, True)


def commands_take_a_device(here: Here) -> None:
    for command in ("train", "train-classifier", "train-lm", "eval", "generate", "edit", "write", "similar", "augment"):
        assert "--device" in here.run(command, "--help").out, command


def bad_lines_are_all_named(here: Here) -> None:
    """Of what needs no model at once, then of what only the model can tell."""
    lines = ['{"n": 0}', '{"n": 1}', "not json", '{"controls": ["pos"]}', '{"seed": 1e9}']
    said = here.refused(2, "generate", "-m", "none", "--batch", here.write("a.jsonl", "\n".join(lines)))
    assert all(f"line {n}: " in said for n in (1, 3, 4, 5))
    assert "4 bad lines; --skip-bad" in said
    batch = here.write("a.jsonl", '{"controls": ["pos: NUON"]}\n{"n": 1}\n{"n": 0}\n{"controls": ["pso: DET"]}\n')
    outcome = here.run("generate", "-m", here.model, "--batch", batch, "--skip-bad", "--steps", 2)
    assert (outcome.code, len(outcome.out.splitlines())) == (0, 1)
    assert outcome.err.count("left out: ") == 3


def a_start_leaves_its_classifiers(here: Here, caplog: pytest.LogCaptureFixture) -> None:
    training = replace(TOY_TRAINING, steps=1, validate_every=1, init=str(here.model))
    with caplog.at_level("INFO"):
        list(train(Recipe(DataConfig(str(here.data)), TOY_MODEL, training=training), here.place / "next"))
    assert (
        f"(pos); to train them anew: ctrlgen train-classifier KIND --model {here.place / 'next'} --init" in caplog.text
    )
    controls = Controls(from_pretrained(str(here.place / "next")))
    assert "run `ctrlgen train-classifier pos --model " in message(lambda: controls.classifier("pos"))


def memory_without_its_module(here: Here) -> None:
    here.patch.setattr(provenance, "resource", None)
    assert provenance.peak_memory() == 0.0


def a_folder_called_classifiers(here: Here) -> None:
    (here.place / "classifiers").mkdir()
    here.write("classifiers/__init__.py", "raise SystemExit(9)")
    command = "from ctrlgen import Generator; import ctrlgen_classifiers"
    done = subprocess.run([sys.executable, "-c", command], cwd=here.place, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def a_natural_negate(here: Here) -> None:
    classifier = here.generator.controls.classifier("pos")
    assert type(classifier).negate is Classifier.negate or classifier.negate(classifier.parse("DET")) is not None
    one, other = (here.generator.request([text]) for text in ("not words: dog", "words: dog"))
    first, second = ([r.controls[0].classifier.check([["the", "dog"]], [r.controls[0].target])] for r in (one, other))
    assert first[0][0].success is not second[0][0].success or one.controls[0].complement


def a_tree_parsed_twice(here: Here) -> None:
    oracle = {"size": {"dim": 4, "width": 8}}
    arguments = {"chains": ["NP", "S+VP", "VP"], "head": {"width": 8, "layers": 1}, "oracle": oracle}
    tree = Tree.untrained(here.generator.model, "tree", arguments)
    first = tree.parse("(S (NP * *) (VP * *))")
    before = {name: repr(value) for name, value in vars(tree).items()}
    assert tree.parse("(S (VP * * *) the)") != first
    assert tree.parse("(S (NP * *) (VP * *))") == first
    assert {name: repr(value) for name, value in vars(tree).items()} == before


def human_texts_are_bounded(here: Here) -> None:
    examples = [Example((word, "."), {"food": value}) for value in "ab" for word in map(str, range(500))]
    classifier = SimpleNamespace(values_of=lambda texts, rows, rng: [row["food"] for row in rows])
    stub = SimpleNamespace(controls=SimpleNamespace(classifier=lambda name: classifier))
    for limit in (1, 10, 50):
        found = targets_by_value(cast(Any, stub), ["food"], examples, limit, Random(0))
        assert sum(len(target.references) for target in found) <= limit


def there_is_a_fast_part(here: Here) -> None:
    assert 'pytest -m "not slow"' in (TESTS.parent / "CONTRIBUTING.md").read_text()
    slow = (TESTS / "conftest.py").read_text()
    for path in TESTS.rglob("test_*.py"):  # no file that trains through the command line is called fast
        if re.search(r'ctrlgen\("train"|"train-classifier", "(pos|label)", "-m", model', path.read_text()):
            assert f'"{path.stem}"' in slow, path


READ, REFUSED = (
    "data/test_tables.py::test_k1_read_without_loss",
    "data/test_tables.py::test_k1_refused_by_its_true_reason",
)
LABELS, LEFT_OUT, TOKENS = "data/test_labels.py::", "data/test_left_out.py::", "text/test_tokenizer.py::"
INTERRUPTED, BOUNDS, TELLING = "training/test_interrupted.py::", "test_bounds.py::", "cli/test_telling.py::"
CLI, COSTS = "cli/test_cli.py::", "generation/test_costs.py::"
PAGE, BROWSER = "cli/test_page.py::", "cli/test_browser.py::"
KILLS = "test_kills.py::test_k7_a_killed_command_ends_as_if_it_had_not_been"

FAULTS: dict[str, str | Callable[..., None]] = {
    "K1 an unquoted comma in a csv": f"{REFUSED}[an unquoted comma]",
    "K1 a trailing comma on each row": f"{REFUSED}[a comma at the end of each row]",
    "K1 quotes in a tsv": f"{READ}[quotes of a tsv are text]",
    "K1 brackets in a file's name": "data/test_tables.py::test_k1_a_path_is_taken_literally[reviews[1].csv]",
    "K1 texts and labels that read None, NA, nan": f"{READ}[words for nothing are texts]",
    "K1 a column that turns to text late": f"{READ}[numbers that become text]",
    "K1 latin-1 jsonl": f"{REFUSED}[Latin-1 JSON]",
    "K1 latin-1 csv": f"{REFUSED}[Latin-1 csv]",
    "K1 a byte-order mark of txt": f"{READ}[a byte order mark of txt]",
    "K1 csv.gz": f"{READ}[compressed csv]",
    "K1 a directory of files": "data/test_tables.py::test_k1_a_directory_names_its_files",
    "K1 standard input": "data/test_tables.py::test_k1_standard_input_is_json_lines",
    "K1 a pipe": "data/test_tables.py::test_k1_a_pipe_is_read",
    "K1 a column Text": f"{READ}[a column in another case]",
    "K1 HF_HOME that cannot be written": "data/test_tables.py::test_k1_no_cache_is_needed",
    "K2 labels 0 and 1, False and True, with blanks": (
        "classifiers/test_label.py::test_k2_evaluation_asks_for_what_training_learned"
    ),
    "K2 a key given twice": a_key_given_twice,
    "K2 values 1 and 10": "classifiers/test_label.py::test_k2_numbers_are_matched_exactly",
    "K2 labels 1234567 and 1234568": f"{LABELS}test_k2_a_label_as_text[1234567]",
    "K2 a value with @": f"{LABELS}test_k2_names_and_values_hold_any_character[contact: me@example.org]",
    "K2 a column with a comma": f"{LABELS}test_k2_a_list_of_columns_may_hold_names_with_commas",
    "K2 not x@y": f"{LABELS}test_k2_names_and_values_hold_any_character[not email: x@y]",
    "K2 lists, dates, decimals as labels": f"{LABELS}test_k2_what_is_no_label_is_named",
    "K2 food: Japanese@x": at_sign_without_a_number,
    "K2 a label called like a control": name_of_a_kind,
    "K3 400 of 420 texts too long": f"{LEFT_OUT}test_k3_where_almost_nothing_is_left_it_ends[400 longer than 64 words]",
    "K3 a validation file of texts too long": only_long_validation_texts,
    "K3 Chinese sentences": f"{TOKENS}test_chinese_texts_are_learned_by_characters",
    "K3 42% unknown words": f"{LEFT_OUT}test_k3_what_is_left_out_is_counted[40.0% of the words are unknown]",
    "K3 --data twice": two_data_files,
    "K4 a word corrected, frequencies exchanged": f"{INTERRUPTED}test_k4_other_texts_are_refused",
    "K4 train-lm --resume on other texts": language_model_of_other_texts,
    "K4 more steps on resume": f"{INTERRUPTED}test_k4_other_texts_are_refused[--init]",
    "K4 losses after a resume": f"{INTERRUPTED}test_k4_losses_are_the_same_after_a_resume",
    "K5 <unk>, <pad>, <end> in texts": f"{TOKENS}test_special_tokens_in_training_texts_leave_no_hole",
    "K5 broken tokenizers": f"{TOKENS}test_broken_vocabularies_are_refused",
    "K6 given words come back": given_words_come_back,
    "K6 given tabs come back": given_tabs_come_back,
    "K6 given words come back from e2e": "test_bundled.py::test_given_text_comes_back_to_the_character",
    "K6 a blank takes the value asked for": "test_bundled.py::test_a_blank_takes_the_value_asked_for",
    "K6 unknown given words": unknown_given_words_are_told,
    "K6 blanks suit the given words": "generation/test_infill.py::test_blanks_are_filled_to_suit_the_given_words",
    "K7 a full disk": f"{INTERRUPTED}test_k7_a_full_disk_is_one_clear_error",
    "K7 weights of mode 0600": f"{INTERRUPTED}test_k7_written_files_have_the_usual_permissions",
    "K7 JSON in ascii, scores of NaN": f"{INTERRUPTED}test_k7_json_is_json_whatever_the_encoding",
    "K7 --force killed between": f"{INTERRUPTED}test_k7_what_is_replaced_stands_until_the_new_one_does",
    "K7 train-lm killed between": f"{KILLS}[train-lm]",
    "K7 two runs of one name": f"{INTERRUPTED}test_k7_two_runs_never_write_to_one_directory",
    "K7 temporary files of killed runs": f"{INTERRUPTED}test_k7_leftovers_of_killed_runs_are_swept",
    "K7 SIGTERM and SIGHUP": f"{INTERRUPTED}test_k7_every_signal_saves_the_run",
    "K7 the hub's cache": f"{INTERRUPTED}test_k7_the_hubs_cache_is_not_written_to",
    "K8 a weight of 1e38": f"{BOUNDS}test_k8_controls_are_bounded[pos: DET @1e38]",
    "K8 a strength of 1e38, an offset of 1e10": strength_without_bounds,
    "K8 weights that are NaN": f"{BOUNDS}test_k8_a_damaged_model_is_one_line[weights that are no numbers]",
    "K8 logits that are not finite": f"{BOUNDS}test_k8_logits_that_are_not_finite_are_one_line",
    "K8 a control read in linear time": f"{BOUNDS}test_k8_a_control_is_read_in_linear_time",
    "K8 thousands of blanks or controls": f"{BOUNDS}test_k8_requests_are_bounded",
    "K8 a config of 200,000 brackets": f"{BOUNDS}test_k8_a_damaged_model_is_one_line[deep config]",
    "K8 score_temperature": f"{BOUNDS}test_k8_a_score_temperature_is_a_number",
    "K8 a dropout of NaN": f"{BOUNDS}test_k8_a_damaged_model_is_one_line[a dropout of NaN]",
    "K8 a thousand words in one control": "classifiers/test_words.py::test_what_is_asked_for_twice_is_asked_for_once",
    "K8 negative lengths": f"{BOUNDS}test_k8_a_damaged_model_is_one_line[negative lengths]",
    "K8 an empty tensor name": f"{BOUNDS}test_k8_a_damaged_model_is_one_line[a tensor without a name]",
    "K8 sizes before weights": f"{BOUNDS}test_k8_a_damaged_model_is_one_line[great width]",
    "K8 half a surrogate pair": f"{BOUNDS}test_k8_controls_are_bounded[ud800]",
    "K9 a line every half minute": f"{TELLING}test_k9_lines_come_while_nothing_happens",
    "K9 what training takes": f"{TELLING}test_k9_training_says_how_far_it_is_and_what_it_takes",
    "K9 evaluation and batches tell as well": f"{TELLING}test_k9_a_batch_tells_how_far_it_is",
    "K9 no guess of the text column": "data/test_data.py::test_a_table_without_a_usual_text_column_asks_for_one",
    "K9 --steps shows a default": steps_have_a_default,
    "K9 Ctrl-C names --resume": interruption_names_resume,
    "K9 a batch that is killed goes on": f"{KILLS}[batch]",
    "K9 usage errors come first": "test_settings.py::test_bad_values_are_refused_before_torch_is_imported",
    "K10 all values of a control": "cli/test_validate.py::test_the_values_of_a_control",
    "K10 a cost beside the tick": f"{COSTS}test_the_costliest_word_is_the_one_that_costs_most",
    "K10 --max-cost": f"{COSTS}test_max_cost_rejects_what_costs_more",
    "K10 --distinct": f"{COSTS}test_distinct_texts_are_apart_and_the_same_for_any_number",
    "K10 validate": "cli/test_validate.py::test_good_files",
    "K10 --device": commands_take_a_device,
    "K10 -c left out": f"{CLI}test_mistakes[food: Italian]",
    "K10 all bad lines of a batch": bad_lines_are_all_named,
    "K10 the table under many controls": f"{CLI}test_many_controls_share_a_column",
    "K10 --explain explains": "generation/test_explain.py::test_each_part_that_failed_is_explained",
    "K10 train --init and classifiers": a_start_leaves_its_classifiers,
    "K10 an oracle that errs": "test_bundled.py::test_an_oracle_that_errs_often_is_shown_with_its_accuracy",
    "K10 name: absent": "test_bundled.py::test_what_every_training_text_has_cannot_be_asked_away",
    "K10 absence of what texts do leave out": "classifiers/test_label.py::test_a_field_has_its_absence_as_a_value",
    "K10 a misspelled word": (
        "generation/test_open_vocabulary.py::test_a_word_that_is_nearly_a_known_one_is_told_once"
    ),
    "K10 a tree with ...": "classifiers/test_tree.py::test_each_mistake_is_one_line[A tree has no]",
    "K10 --limit bounds human texts": human_texts_are_bounded,
    "K10 ten of ten": "evaluation/test_slips.py::test_ten_of_ten_are_not_certain",
    "K10 dependencies are declared and pinned": "test_docs.py::test_what_is_installed_is_pinned",
    "K10 resource is missing on Windows": memory_without_its_module,
    "K10 a folder called classifiers": a_folder_called_classifiers,
    "K10 threads after generate": "generation/test_generator.py::test_a_later_thread_has_all_cores",
    "K10 parsing a tree twice": a_tree_parsed_twice,
    "K10 negated once": "controls/test_language.py::test_not_is_decided_once",
    "K11 uploads": f"{PAGE}test_nobody_can_upload",
    "K11 Host": f"{PAGE}test_a_foreign_host_is_refused",
    "K11 a queue without bound": "cli/test_hostile.py::test_a_hostile_visitor_keeps_nobody_waiting",
    "K11 null and NaN": f"{PAGE}test_a_number_that_is_none_is_told",
    "K11 odd values print no traceback and fetch no file": f"{PAGE}test_k11_odd_values_are_told_without_a_traceback",
    "K11 requests without a length": f"{PAGE}test_requests_without_a_length_are_refused",
    "K11 uploads and Host, in a browser": f"{BROWSER}test_a_name_that_was_made_to_mean_this_machine_is_refused",
    "K11 clicks add controls from a list of values": f"{BROWSER}test_controls_are_added_by_clicks_and_obeyed",
    "K11 all texts are live": f"{BROWSER}test_all_texts_are_seen_on_their_way",
    "K11 a stopped text is marked": f"{BROWSER}test_a_stopped_text_is_marked_and_the_next_is_written",
    "K11 no earlier text stands under an error": f"{BROWSER}test_a_mistake_is_told_and_no_earlier_text_stands_under_it",
    "K11 what an error quotes is no HTML": f"{BROWSER}test_nothing_that_is_typed_runs",
    "K11 temperature": f"{BROWSER}test_the_temperature_can_be_set",
    "K11 texts are saved": f"{BROWSER}test_the_texts_are_saved",
    "K11 a model id that is no folder": "test_checkpoint.py::test_names_of_no_model",
    "K12 no test depends on seconds": "evaluation/test_baselines.py::test_rejection_keeps_what_its_guides_prefer",
    "K12 a fast part": there_is_a_fast_part,
}  # fmt: skip


SLOW = ("K10 --device", "K10 a folder called classifiers", "K4 train-lm --resume on other texts")
CASES = [pytest.param(case, marks=[pytest.mark.slow] if case in SLOW else []) for case in FAULTS]


@pytest.mark.parametrize("case", CASES)
def test_a_fault_stays_mended(
    case: str,
    toy_data: Path,
    toy_model: Path,
    generator: Generator,
    tmp_path: Path,
    ctrlgen: Run,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    right = FAULTS[case]
    if isinstance(right, str):  # the test that it names is there
        file, _, name = right.partition("::")
        name, _, example = name.partition("[")
        source = (TESTS / file).read_text(encoding="utf-8")
        assert f"def {name}(" in source
        assert example.removesuffix("]") in source
        return
    here = Here(tmp_path, toy_data, toy_model, generator, ctrlgen, monkeypatch)
    right(here, caplog) if right is a_start_leaves_its_classifiers else right(here)
