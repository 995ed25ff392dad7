"""Finds classifiers: installed kinds through entry points, trained ones beside the model.

A control's name is either a kind (`pos`, `length`) or one that a classifier trained on the model answers: the `names`
of its config.json, which also says of which kind those are that name no kind, or else the name of its directory.
Built-in kinds are registered in pyproject.toml like anyone's.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from ctrlgen.checkpoint import CONFIG, WEIGHTS, DiffusionLM, bundled_models, directories_of, read_config
from ctrlgen.controls.classifier import Classifier
from ctrlgen.controls.contract import shortcoming
from ctrlgen.controls.language import Control, fold, make_control, parse_statement
from ctrlgen.directories import replacing
from ctrlgen.errors import CtrlgenError, UsageError, did_you_mean, first_line, listed, shown
from ctrlgen.files import make_directory, write_text

log = logging.getLogger(__name__)

SCORE_TEMPERATURE = "score_temperature"  # in a classifier's config.json
GROUP = "ctrlgen.classifiers"
LONGEST_NAME = 80  # of a control
MOST_CONTROLS = 100  # of one request
MISSPELLED = 0.8  # how much alike a short new word and a known one are for a hint, by difflib
MOST_HINTS = 5  # of one request


def classifier_kinds() -> dict[str, type[Classifier]]:
    """Every installed kind of classifier that works, by name."""
    return installed()[0]


@cache
def installed() -> tuple[dict[str, type[Classifier]], dict[str, str]]:
    """The kinds of classifier that work, and of those that do not why, each by name. The latter are warned of once."""
    kinds: dict[str, type[Classifier]] = {}
    broken: dict[str, str] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            found = entry.load()
            reason = shortcoming(entry.name, found)
        except (Exception, SystemExit) as error:  # a stranger's package may fail in any way
            reason = f"cannot be loaded: {type(error).__name__}: {first_line(error)}"
        if reason is None:
            kinds[entry.name] = found
            continue
        package = f" of the package {entry.dist.name!r}" if entry.dist else ""
        broken[entry.name] = f"the classifier {entry.name!r} ({entry.value}){package} {reason}"
        log.warning("warning: %s", broken[entry.name])
    return kinds, broken


def find_kind(name: str) -> type[Classifier]:
    """An installed kind by its exact name. Raises CtrlgenError where it is broken, UsageError where there is none."""
    kinds, broken = installed()
    if name in kinds:
        return kinds[name]
    if name in broken:
        raise CtrlgenError(broken[name])
    raise UsageError(f"unknown kind {shown(name)}; installed: {', '.join(kinds)}.{did_you_mean(name, kinds)}")


def trained_classifiers(model: DiffusionLM) -> dict[str, Path]:
    """The classifiers trained on this model, by the control names they answer."""
    found: dict[str, Path] = {}
    for root in reversed(directories_of(model, "classifiers")):
        for path in sorted(root.glob(f"[!.]*/{CONFIG}")):
            found |= dict.fromkeys(answered_names(path), path.parent)
    return found


def answered_names(path: Path) -> list[str]:
    """The control names that the classifier of this config.json answers."""
    names = read_config(path).get("names", [path.parent.name])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CtrlgenError(f"{path}: `names` is not a list of names")
    return names


def known_elsewhere(model: DiffusionLM, written: str) -> str:
    """Which bundled model has a control of this name, for an error of one that lacks it; nothing where none has."""
    for name, directory in bundled_models().items():
        configs = directory.glob(f"classifiers/[!.]*/{CONFIG}") if directory != model.directory else ()
        if any(fold(written) == fold(known) for path in configs for known in answered_names(path)):
            return f" The bundled model {name} knows it: -m {name}"
    return ""


def weights_fingerprint(model: DiffusionLM) -> str:
    """Identifies the weights that a classifier was trained on."""
    if model.directory is None:
        raise CtrlgenError("the model must be saved before classifiers are trained on it")
    return hashlib.sha256((model.directory / WEIGHTS).read_bytes()).hexdigest()[:16]


def fingerprint(directory: Path, files: str = "*.safetensors") -> str:
    """Identifies what lies in a classifier's directory: its networks, or all of it."""
    contents = (path.read_bytes() for path in sorted(directory.glob(files)))
    return hashlib.sha256(b"".join(contents)).hexdigest()[:16]


def find_trained(model: DiffusionLM, name: str) -> tuple[Path, dict[str, Any]]:
    """Directory and config of the classifier `name`. Raises CtrlgenError where it is missing or belongs elsewhere."""
    found = trained_classifiers(model)
    if name not in found:
        where = model.directory.name if model.directory else "this model"
        raise CtrlgenError(f"{where} has no classifier {name!r} yet: run {training_command(model, name)} first")
    config = read_config(found[name] / CONFIG)
    if config.get("trained_on") != weights_fingerprint(model):
        raise CtrlgenError(f"{found[name]}: was trained on other weights of the model; train it again")
    return found[name], config


def training_command(model: DiffusionLM, kind: str) -> str:
    """What trains a classifier of this kind on the model, for an error."""
    is_bundled = model.directory in bundled_models().values()
    name = model.directory.name if is_bundled and model.directory else model.directory or "MODEL"
    return f"`ctrlgen train-classifier {kind} --model {name} --data TEXTS`"


def oracle_accuracy(config: Mapping[str, Any], name: str) -> float | None:
    """What a config.json says under `oracle`, `accuracy`: one number, or one for each control that it teaches."""
    oracle = config.get("oracle")
    found = oracle.get("accuracy") if isinstance(oracle, Mapping) else None
    accuracy = found.get(name) if isinstance(found, Mapping) else found
    return float(accuracy) if isinstance(accuracy, int | float) else None


def check_name(name: str, kind: str) -> None:
    """Raises UsageError where a classifier of this kind cannot answer to `name`."""
    if not name.isprintable() or not fold(name) or fold(name) == "not" or len(name) > LONGEST_NAME:
        raise UsageError(f"{shown(name)} cannot be the name of a control; use letters, digits, spaces, - and _")
    if fold(name) != fold(kind) and fold(name) in (fold(one) for kinds in installed() for one in kinds):
        raise UsageError(
            f"{name!r} is a kind of control already; a {kind} classifier needs another name (--name), a field of your "
            "data another column (--label-column)"
        )


def check_new_name(name: str, kind: str) -> None:
    """Raises UsageError where a new classifier of this kind cannot be called `name`, which names its directory, too."""
    if not re.fullmatch(r"\w[\w -]*", name):
        raise UsageError(f"{shown(name)} cannot be the name of a control; use letters, digits, spaces, - and _")
    check_name(name, kind)


def new_classifier_directory(model: DiffusionLM, name: str, kind: str) -> Path:
    """Where a classifier called `name` is to be written. Raises UsageError for names it cannot have."""
    check_new_name(name, kind)
    roots = directories_of(model, "classifiers")
    if not roots:
        raise CtrlgenError("the model must be saved before classifiers are trained on it")
    make_directory(roots[0])
    return roots[0] / name


def classifier_directory(model: DiffusionLM, name: str) -> Path:
    """Where the classifier that was trained as `name` lies. Raises CtrlgenError where there is none."""
    for root in directories_of(model, "classifiers"):
        if (root / name / CONFIG).exists():
            return root / name
    raise CtrlgenError(f"{model.directory}: holds no classifier trained as {name!r}")


def take_over_classifiers(earlier: DiffusionLM, directory: Path) -> None:
    """Copy the classifiers of a model to one in `directory` that has the same vectors of the words that both know.

    Oracles read nothing else of a model.
    """
    fingerprints = weights_fingerprint(earlier), weights_fingerprint(replace(earlier, directory=directory))
    for source in dict.fromkeys(trained_classifiers(earlier).values()):
        config = read_config(source / CONFIG)
        if config.get("trained_on") != fingerprints[0]:
            continue
        with replacing(directory / "classifiers" / source.name) as copy:
            shutil.copytree(source, copy, dirs_exist_ok=True)
            write_text(copy / CONFIG, json.dumps(config | {"trained_on": fingerprints[1]}, indent=2) + "\n")


def is_plain(word: str) -> bool:
    """Whether it has small letters alone, as names do not."""
    return word.isalpha() and word.islower()


def name_of(written: str, names: Mapping[str, str]) -> str | None:
    """The name that is written so, of these with their kinds, or the kind that is broken or has still to be trained."""
    if written in names:
        return written
    kinds, broken = installed()
    missing = [kind for kind in kinds if kind not in names.values()]
    return {fold(name): name for name in [*missing, *broken, *names]}.get(fold(written))


class Controls:
    """Reads controls for one model; each classifier is loaded once."""

    def __init__(self, model: DiffusionLM, narrower: Controls | None = None):
        """`narrower`: the controls of the same model with fewer words, whose classifiers are taken over."""
        self.model, self.narrower = model, narrower
        self._loaded: dict[str, Classifier] = {}
        self._described: dict[str, str] | None = None  # as it was last read
        self.typed = True  # whether people write what is asked for: then a new word may be a mistake
        self._hinted = set[str]()

    def with_words(self, words: Mapping[str, str | None]) -> Controls:
        """The controls of the same model with words that its vocabulary lacks."""
        if self.typed:
            self.hint_at_misspelled(words)
        return Controls(self.model.with_words(words), self) if words else self

    def hint_at_misspelled(self, words: Iterable[str]) -> None:
        """Say once of a new word that it is nearly a known one. Names and words with another ending are left alone."""
        asked = [word for word in words if is_plain(word) and word not in self._hinted][:MOST_HINTS]
        self._hinted.update(asked)
        known = list(filter(is_plain, self.model.tokenizer.words)) if asked else []
        hints = []
        for word in asked:
            others = (other for other in known if not word.startswith(other) and not other.startswith(word))
            if meant := did_you_mean(word, others, near=max(MISSPELLED, 1 - 1 / len(word))):  # a letter exchanged
                hints.append(f"{word}: a new word.{meant}")
        if hints:
            log.info("%s", " ".join(hints))

    def new_words(self, texts: Sequence[str]) -> dict[str, str | None]:
        """The words that controls name and the vocabulary lacks, each with a known word that it is like, or None.

        Raises UsageError where a control cannot be understood.
        """
        statements = [parse_statement(text) for text in texts[:MOST_CONTROLS]]
        found: dict[str, str | None] = {}
        for said in statements:
            for word, like in self.classifier(said.name).new_words(said.value).items():
                found[word] = found.get(word) or like
        return found

    def names(self) -> dict[str, str]:
        """Every name that can be asked for, with its kind."""
        return {name: kind for name, kind in self.described().items() if kind in classifier_kinds()}

    def described(self) -> dict[str, str]:
        """Every name that the model or a kind brings, with its kind, be that installed or not."""
        kinds = classifier_kinds()
        names = {name: name for name, kind in kinds.items() if not kind.trained}
        for name, directory in trained_classifiers(self.model).items():
            names[name] = name if name in kinds else str(read_config(directory / CONFIG).get("kind", name))
        return names

    def classifier(self, written: str) -> Classifier:
        """The classifier that answers to a name, however it is written. Raises UsageError where there is none."""
        if written in self._loaded:
            return self._loaded[written]
        if self.narrower is not None:
            self._loaded[written] = self.narrower.classifier(written).for_model(self.model)
            return self._loaded[written]
        if self._described is None or name_of(written, self._described) is None:  # or trained meanwhile
            self._described = self.described()
        names, (kinds, broken) = self._described, installed()
        name = name_of(written, names)
        if name is None:
            usable = self.names()
            known = listed(sorted(usable), 30)
            mistyped = did_you_mean(written, usable, near=MISSPELLED)
            hint = mistyped or known_elsewhere(self.model, written) or did_you_mean(written, usable)
            raise UsageError(f"unknown control {shown(written)}: this model knows {known}.{hint}")
        if name not in self._loaded:
            kind = names.get(name, name)
            if kind not in [*kinds, *broken]:
                raise CtrlgenError(f"the classifier {name!r} is of kind {kind!r}, which is not installed")
            self._loaded[name] = self.load(find_kind(kind), name)
        return self._loaded[name]

    def judge_by(self, written: str, oracle: str) -> None:
        """Exchange the oracle of a control (`Classifier.judged_by`)."""
        one = self.classifier(written)
        other = one.judged_by(oracle)
        self._loaded = {name: other if loaded is one else loaded for name, loaded in self._loaded.items()}

    def nearness(self) -> Classifier:
        """The classifier that asks for nearness to a text. Raises CtrlgenError where none is installed."""
        for name, kind in self.names().items():
            if classifier_kinds()[kind].value_near(()) is not None:
                return self.classifier(name)
        raise CtrlgenError("no installed control asks for nearness to a text")

    def load(self, kind: type[Classifier], name: str) -> Classifier:
        """A classifier by its exact name; one that was trained with others shares their weights."""
        if not kind.trained:
            return kind.load(self.model, name)
        trained = trained_classifiers(self.model)
        for other, classifier in self._loaded.items():
            if type(classifier) is kind and trained.get(other) == trained.get(name):
                shared = classifier.sharing(name)
                if shared is not None:
                    return shared
        classifier = kind.load(self.model, name)
        config = read_config(trained[name] / CONFIG)
        temperature = config.get(SCORE_TEMPERATURE, 1.0)
        if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
            raise CtrlgenError(f"{trained[name] / CONFIG}: {SCORE_TEMPERATURE} is not a number above 0")
        classifier.score_temperature = float(temperature)
        return classifier

    def parse(self, texts: Sequence[str]) -> tuple[Control, ...]:
        """Controls in the order written. Raises UsageError where one cannot be understood."""
        if len(texts) > MOST_CONTROLS:
            raise UsageError(f"a request has at most {MOST_CONTROLS} controls, this one {len(texts)}")
        statements = map(parse_statement, texts)
        return tuple(make_control(said, self.classifier(said.name).for_value(said.value)) for said in statements)
