"""Classifiers are found through entry points, a stranger's exactly as our own."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from ctrlgen import checkpoint
from ctrlgen.checkpoint import DiffusionLM, directories_of, from_pretrained
from ctrlgen.controls import registry
from ctrlgen.controls.classifier import Classifier, Verdict
from ctrlgen.controls.registry import (
    GROUP,
    Controls,
    check_name,
    classifier_kinds,
    find_kind,
    find_trained,
    fold,
    installed,
    new_classifier_directory,
    trained_classifiers,
    weights_fingerprint,
)
from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.evaluation.targets import kinds
from ctrlgen.generation.generator import Generator
from ctrlgen.settings import Settings
from ctrlgen_classifiers.pos import Pos


class Starts(Classifier):
    """A stranger's classifier: the first word."""

    kind, summary, syntax, example, oracle = "starts", "the first word", "starts: WORD", "starts: the", "string match"
    trained = False

    def __init__(self, model: DiffusionLM):
        self.tokenizer = model.tokenizer

    @classmethod
    def load(cls, model: DiffusionLM, name: str) -> Classifier:
        return cls(model)

    def parse(self, value: str) -> str:
        if value not in self.tokenizer:
            raise UsageError(f"starts: {value!r} is not a word of this model")
        return value

    def encode(self, targets: Sequence[Any], lengths: Sequence[int]) -> Tensor:
        return torch.tensor(self.tokenizer.ids(targets))

    def log_prob(self, denoised: Denoised, encoded: Tensor) -> Tensor:
        return denoised.logits[:, 0].log_softmax(-1).gather(-1, encoded[:, None]).squeeze(-1)

    def check(self, texts: Sequence[Sequence[str]], targets: Sequence[Any]) -> list[Verdict]:
        return [Verdict(text[0] == target) for text, target in zip(texts, targets, strict=True)]


class Label(Starts):
    """A kind with trained classifiers that bear names of their own."""

    kind = "label"
    trained = True

    @classmethod
    def load(cls, model: DiffusionLM, name: str) -> Classifier:
        find_trained(model, name)
        return cls(model)


Register = Callable[..., None]


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Iterator[Register]:
    """Entry points as if a stranger's package were installed: register(name="module:Class")."""
    stranger = ModuleType("stranger")
    stranger.Starts, stranger.Label = Starts, Label  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stranger", stranger)

    def register(**objects: str) -> None:
        entries = [EntryPoint(name, value, GROUP) for name, value in objects.items()]
        entries.append(EntryPoint("pos", "ctrlgen_classifiers.pos:Pos", GROUP))

        def entry_points(group: str) -> list[EntryPoint]:
            return [entry for entry in entries if entry.group == group]

        monkeypatch.setattr(registry, "entry_points", entry_points)
        installed.cache_clear()

    yield register
    installed.cache_clear()


def test_our_own_are_registered_like_anyones() -> None:
    installed.cache_clear()
    assert classifier_kinds()["pos"] is Pos


@pytest.mark.slow
def test_a_strangers_classifier_guides_checks_and_composes(toy_model: Path, register: Register) -> None:
    register(starts="stranger:Starts")
    generator = Generator(str(toy_model))
    assert generator.controls.names() == {"starts": "starts", "pos": "pos"}
    for word in ("the", "a"):
        samples = generator.generate([generator.request([f"starts: {word}"], n=8)])
        assert [sample.tokens[0] for sample in samples] == [word] * 8
        assert [sample.success for sample in samples] == [True] * 8
        assert min(sample.score or 0.0 for sample in samples) > 0.9
    avoided = generator.generate([generator.request(["not starts: the @2"], n=8)])
    assert "the" not in {sample.tokens[0] for sample in avoided}
    assert [sample.success for sample in avoided] == [True] * 8
    both = generator.generate([generator.request(["starts: a", "pos: DET NOUN VERB DET NOUN PUNCT"], n=2)])
    assert [(len(sample.tokens), sample.tokens[0]) for sample in both] == [(6, "a")] * 2
    assert [result.control.statement.name for result in both[0].controls] == ["starts", "pos"]


def test_a_strangers_errors_reach_the_user(toy_model: Path, register: Register) -> None:
    register(starts="stranger:Starts")
    with pytest.raises(UsageError, match="'zebra' is not a word of this model"):
        Generator(str(toy_model)).request(["starts: zebra"])


def test_exact_guidance_needs_a_closed_form(toy_model: Path, register: Register) -> None:
    from ctrlgen.settings import Guidance

    register(starts="stranger:Starts")
    generator = Generator(str(toy_model))
    with pytest.raises(UsageError, match="starts: has no closed form; use --guidance gradient"):
        generator.generate([generator.request(["starts: the"])], Settings(guidance=Guidance("exact")))


BROKEN = {
    "no_such_module:Thing": r"cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'$",
    "stranger:Missing": "cannot be loaded: AttributeError: .* has no attribute 'Missing'$",
    "stranger:Starts": "calls itself 'starts'",
    "leaving:Thing": "cannot be loaded: SystemExit: no licence$",
}


@pytest.mark.parametrize("value", BROKEN)
def test_a_broken_package_is_warned_of_once_and_the_rest_works(
    toy_model: Path, register: Register, caplog: pytest.LogCaptureFixture, tmp_path: Path, value: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "leaving.py").write_text("raise SystemExit('no licence\\nsecond line')")
    monkeypatch.syspath_prepend(tmp_path)
    register(broken=value)
    reason = f"the classifier 'broken' \\({value}\\) {BROKEN[value]}"
    generator = Generator(str(toy_model))
    assert generator.controls.names() == {"pos": "pos"}
    generator.request(["pos: DET ..."])
    with pytest.raises(UsageError, match=r"unknown control 'length': this model knows pos\."):
        generator.request(["length: 5"])
    with pytest.raises(CtrlgenError, match=reason) as raised:
        generator.request(["Broken: yes"])
    assert "\n" not in str(raised.value)
    with pytest.raises(CtrlgenError, match=reason):
        find_kind("broken")
    with pytest.raises(UsageError, match="'broken' is a kind of control already"):
        check_name("broken", "label")
    (warning,) = caplog.messages
    assert re.match(f"warning: {reason}", warning)


def test_a_broken_package_is_named(
    register: Register, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Distribution:
        name = "ctrlgen-broken"

    register(broken="no_such_module:Thing")
    monkeypatch.setattr(EntryPoint, "dist", Distribution())
    assert set(classifier_kinds()) == {"pos"}
    assert "(no_such_module:Thing) of the package 'ctrlgen-broken' cannot be loaded" in caplog.text


# Names


@pytest.mark.parametrize("written", ["pos", "Pos", "POS", "p-o s"])
def test_names_match_whatever_their_case_and_marks(generator: Generator, written: str) -> None:
    assert generator.request([f"{written}: DET ..."]).controls[0].classifier.kind == "pos"


def test_fold() -> None:
    assert fold("family friendly") == fold("familyFriendly") == fold("Family-Friendly_")


@pytest.mark.parametrize("written", ["pso", "posn", "PSO"])
def test_unknown_controls_suggest_the_nearest(generator: Generator, written: str) -> None:
    with pytest.raises(UsageError) as raised:
        generator.request([f"{written}: DET"])
    assert str(raised.value).startswith(f"unknown control {written!r}: this model knows ")
    assert str(raised.value).endswith("Did you mean pos?")


def test_a_control_of_another_bundled_model_is_told(generator: Generator) -> None:
    with pytest.raises(UsageError, match=r"unknown control 'Mood': .* The bundled model english knows it: -m english$"):
        generator.request(["Mood: question"])
    with pytest.raises(UsageError, match=r"The bundled model e2e knows it: -m e2e$"):
        generator.request(["customer-rating: high"])


def test_each_classifier_is_loaded_once(toy_model: Path) -> None:
    controls = Controls(from_pretrained(str(toy_model)))
    assert controls.classifier("pos") is controls.classifier("POS")


def test_what_is_loaded_is_found_without_reading_files(toy_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    controls = Controls(from_pretrained(str(toy_model)))
    controls.parse(["pos: DET ..."])
    monkeypatch.setattr(registry, "read_config", None)
    controls.new_words(["pos: DET ..."])
    controls.parse(["pos: DET ...", "POS: DET ..."])


# Trained classifiers, beside the model


def add_label(model: Path, **config: object) -> None:
    directory = model / "classifiers" / "food"
    directory.mkdir()
    described = {"kind": "label", "trained_on": weights_fingerprint(from_pretrained(str(model)))} | config
    (directory / "config.json").write_text(json.dumps(described))


def test_a_trained_classifier_is_asked_for_by_its_own_name(model_copy: Path, register: Register) -> None:
    register(label="stranger:Label")
    add_label(model_copy)
    generator = Generator(str(model_copy))
    assert generator.controls.names() == {"pos": "pos", "food": "label"}
    (control,) = generator.request(["Food: the"]).controls
    assert isinstance(control.classifier, Label)
    with pytest.raises(UsageError, match=r"knows food, pos\. Did you mean food\?"):
        generator.request(["foood: the"])


def test_a_classifier_that_is_trained_meanwhile_is_found(model_copy: Path, register: Register) -> None:
    register(label="stranger:Label")
    controls = Controls(from_pretrained(str(model_copy)))
    with pytest.raises(UsageError, match="unknown control 'food': this model knows pos"):
        controls.parse(["food: the"])
    add_label(model_copy)
    assert controls.parse(["food: the"])[0].classifier.kind == "label"


def test_one_trained_classifier_may_answer_several_names(model_copy: Path, register: Register) -> None:
    register(label="stranger:Label")
    add_label(model_copy, names=["first word", "opening"])
    generator = Generator(str(model_copy))
    assert generator.controls.names() == {"pos": "pos", "first word": "label", "opening": "label"}
    for written in ("First-Word: the", "opening: the"):
        (control,) = generator.request([written]).controls
        assert isinstance(control.classifier, Label)
    for unknown in ("food", "label"):  # neither its directory nor its kind
        with pytest.raises(UsageError, match=f"unknown control {unknown!r}: this model knows first word, opening, pos"):
            generator.request([f"{unknown}: the"])


@pytest.mark.parametrize("names", ["food", [1], {"food": 1}, None])
def test_names_that_are_no_list_of_names(model_copy: Path, register: Register, names: object) -> None:
    register(label="stranger:Label")
    add_label(model_copy, names=names)
    with pytest.raises(CtrlgenError, match=r"food/config\.json: `names` is not a list of names"):
        Generator(str(model_copy)).request(["food: the"])


def test_a_kind_that_is_not_installed(model_copy: Path, register: Register) -> None:
    register()
    add_label(model_copy)
    generator = Generator(str(model_copy))
    assert generator.controls.names() == {"pos": "pos"}
    assert kinds(generator) == {"pos": Pos}
    with pytest.raises(CtrlgenError, match="the classifier 'food' is of kind 'label', which is not installed"):
        generator.request(["food: the"])


def test_a_kind_that_is_broken(model_copy: Path, register: Register) -> None:
    register(label="no_such_module:Label")
    add_label(model_copy)
    generator = Generator(str(model_copy))
    assert generator.controls.names() == {"pos": "pos"}
    for asked in ("food: the", "label: the"):
        with pytest.raises(CtrlgenError, match=r"'label' \(no_such_module:Label\) cannot be loaded"):
            generator.request([asked])


def test_a_kind_that_has_not_been_trained(model_copy: Path, register: Register) -> None:
    register(label="stranger:Label")
    with pytest.raises(
        CtrlgenError, match=r"no classifier 'label' yet: run `ctrlgen train-classifier label --model .*"
    ):
        Generator(str(model_copy)).request(["label: the"])


def test_a_classifier_of_other_weights_is_refused(model_copy: Path) -> None:
    weights = model_copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CtrlgenError, match="pos: was trained on other weights of the model; train it again"):
        Generator(str(model_copy)).request(["pos: DET ..."])


def test_damaged_classifier_files(model_copy: Path) -> None:
    directory = model_copy / "classifiers" / "pos"
    config = (directory / "config.json").read_bytes()
    weights = (directory / "model.safetensors").read_bytes()
    for content, named in [(weights[:100], "truncated"), (b"", "truncated"), (None, "no such file")]:
        (directory / "model.safetensors").unlink(missing_ok=True)
        if content is not None:
            (directory / "model.safetensors").write_bytes(content)
        with pytest.raises(CtrlgenError, match=rf"pos/model\.safetensors: {named}"):
            Generator(str(model_copy)).request(["pos: DET ..."])
    for broken in (config[:-9], b"[]", b"\xff"):
        (directory / "config.json").write_bytes(broken)
        with pytest.raises(CtrlgenError, match=r"pos/config\.json: (cannot be read as JSON|not a JSON object)"):
            Generator(str(model_copy)).request(["pos: DET ..."])


def test_unfinished_classifiers_are_not_seen(model_copy: Path) -> None:
    (model_copy / "classifiers" / "pos").rename(model_copy / "classifiers" / ".pos.partial")
    assert trained_classifiers(from_pretrained(str(model_copy))) == {}


def test_classifiers_of_a_bundled_model_are_kept_at_home(
    model_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    model = from_pretrained(str(model_copy))
    assert new_classifier_directory(model, "food", "label") == model_copy / "classifiers" / "food"
    monkeypatch.setattr(checkpoint, "bundled_models", lambda: {"copy": model_copy})
    home = tmp_path / "home" / "ctrlgen" / "classifiers" / "copy"
    assert directories_of(model, "classifiers") == [home, model_copy / "classifiers"]
    assert trained_classifiers(model) == {"pos": model_copy / "classifiers" / "pos"}
    own = new_classifier_directory(model, "pos", "pos")
    assert own == home / "pos"
    own.mkdir()
    (own / "config.json").write_text("{}")
    assert trained_classifiers(model) == {"pos": own}  # the user's own wins


@pytest.mark.parametrize("name", ["../pos", "a/b", "a:b", "", ".hidden", "a@2", "a\nb"])
def test_names_that_no_control_can_have(model_copy: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a control"):
        new_classifier_directory(from_pretrained(str(model_copy)), name, "label")


@pytest.mark.parametrize("name", ["pos", "POS", "p o s"])
def test_a_name_that_is_a_kind_is_taken(model_copy: Path, name: str) -> None:
    model = from_pretrained(str(model_copy))
    with pytest.raises(UsageError, match=f"{name!r} is a kind of control already; a label classifier needs another"):
        new_classifier_directory(model, name, "label")
    assert new_classifier_directory(model, name, "pos").name == name


def test_a_model_must_be_saved_before_classifiers_are_trained_on_it(toy_model: Path) -> None:
    model = from_pretrained(str(toy_model))
    model.directory = None
    assert trained_classifiers(model) == {}
    for attempt in (lambda: weights_fingerprint(model), lambda: new_classifier_directory(model, "pos", "pos")):
        with pytest.raises(CtrlgenError, match="must be saved before"):
            attempt()
