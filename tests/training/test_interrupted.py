"""Runs that go on, and files that are written whole: kinds K4 and K7 of faults that people met."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from make_toy_model import TOY_MODEL, TOY_TRAINING

from ctrlgen.checkpoint import directories_of, from_pretrained, save_tensors
from ctrlgen.controls.registry import find_trained, new_classifier_directory, trained_classifiers
from ctrlgen.directories import claimed, replacing
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.evaluation.calibration import write_temperatures
from ctrlgen.evaluation.metrics import Calibration
from ctrlgen.evaluation.report.card import card_path
from ctrlgen.files import atomic_file, lock, to_json, write_text
from ctrlgen.training.denoising import DataConfig, Recipe, train
from ctrlgen.training.fit import METRICS, Progress


def write(directory: Path, name: str, content: bytes | str) -> str:
    path = directory / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


# K4: resuming trusts nothing but the texts themselves


def test_k4_other_texts_are_refused(toy_data: Path, tmp_path: Path) -> None:
    recipe = Recipe(DataConfig(str(toy_data)), TOY_MODEL, training=replace(TOY_TRAINING, steps=4, log_every=1))
    interrupt(train(recipe, tmp_path / "model"), "SIGINT")
    lines = toy_data.read_text().splitlines()
    corrected = [lines[0].replace("a ", "the ", 1), *lines[1:]]
    exchanged = [line.replace("cat", "CAT").replace("dog", "cat").replace("CAT", "dog") for line in lines]
    for other in (corrected, exchanged, lines[1:], lines[::-1]):
        source = write(tmp_path, "other.jsonl", "\n".join(other))
        changed = replace(recipe, data=DataConfig(source))
        with pytest.raises(UsageError, match="was made with other texts"):
            list(train(changed, tmp_path / "model", resume=True))
    longer = replace(recipe, training=replace(recipe.training, steps=9))
    with pytest.raises(UsageError, match=r"training.steps changed\); for more steps .* --init"):
        list(train(longer, tmp_path / "model", resume=True))
    same = replace(recipe, data=DataConfig(write(tmp_path, "same.jsonl", toy_data.read_bytes())))
    assert list(train(same, tmp_path / "model", resume=True))[-1].step == 4


def test_k4_losses_are_the_same_after_a_resume(toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = replace(TOY_TRAINING, steps=12, log_every=4, checkpoint_every=1, validate_every=12)
    recipe = Recipe(DataConfig(str(toy_data)), TOY_MODEL, training=training)
    whole = [(event.step, event.loss) for event in train(recipe, tmp_path / "whole")]
    seeded = torch.manual_seed

    def interrupted(seed: int) -> Any:
        if seed % 1_000_000_007 == 6:  # in the middle of a step, between two lines of the log
            signal.raise_signal(signal.SIGINT)
        return seeded(seed)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "manual_seed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(train(recipe, tmp_path / "killed"))
    list(train(recipe, tmp_path / "killed", resume=True))
    kept = [json.loads(line) for line in (tmp_path / "killed" / METRICS).read_text().splitlines()]
    assert [(record["step"], record["loss"]) for record in kept] == whole


def interrupt(events: Iterator[Progress], name: str) -> None:
    """Send this process a signal after every event of a run, which must end it."""

    def follow() -> None:
        for _ in events:
            signal.raise_signal(getattr(signal, name))

    with pytest.raises(KeyboardInterrupt):
        follow()


# K7: writing


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_k7_every_signal_saves_the_run(name: str, toy_data: Path, tmp_path: Path) -> None:
    recipe = Recipe(DataConfig(str(toy_data)), TOY_MODEL, training=replace(TOY_TRAINING, log_every=1, steps=9))
    interrupt(train(recipe, tmp_path / "model"), name)
    assert list(train(recipe, tmp_path / "model", resume=True))[-1].step == 9


def test_k7_written_files_have_the_usual_permissions(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)})
        write_text(tmp_path / "b.json", "{}")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a.safetensors", "b.json")] == [0o644, 0o644]


FULL = """
import resource, signal, sys, torch
from pathlib import Path
from ctrlgen.checkpoint import save_tensors
from ctrlgen.errors import CtrlgenError
from ctrlgen.files import append_line, write_text
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for write in (lambda path: save_tensors(path, {"a": torch.zeros(10_000)}), lambda path: write_text(path, "a" * 5000),
              lambda path: append_line(path, "a" * 5000)):
    path = Path(sys.argv[1]) / "file"
    try:
        write(path)
        print("written")
    except CtrlgenError as error:
        print(str(error) == f"{path}: cannot be written: File too large")
print(sorted(path.name for path in Path(sys.argv[1]).iterdir()))
"""


def test_k7_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, check=False)
    assert (done.stdout.splitlines(), done.stderr) == (["True"] * 3 + ["['file']"], "")


def test_k7_leftovers_of_killed_runs_are_swept(tmp_path: Path) -> None:
    for name in (".a.json.0123abcd", ".a.json.not-ours", ".b.json.0123abcd", ".[a].json.01234567"):
        write(tmp_path, name, "half")
    held = tmp_path / ".a.json.ffffffff"
    with atomic_file(tmp_path / "a.json") as living, held.open("w") as file:
        assert lock(file.fileno())  # as a living process would
        living.write_text("{}")
        with pytest.raises(RuntimeError), atomic_file(tmp_path / "a.json"):
            raise RuntimeError
        assert living.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".[a].json.01234567", ".a.json.ffffffff", ".a.json.not-ours", ".b.json.0123abcd", "a.json",
    ]  # fmt: skip


KILLED = """
import os, sys, time
from pathlib import Path
from ctrlgen import directories
moment = sys.argv[2]
if moment == "exchange":
    before = directories.exchange
    directories.exchange = lambda new, old: before(new, old) and os._exit(9)
with directories.replacing(Path(sys.argv[1]), keep="resume") as working:
    (working / "resume").write_text("state")
    (working / "new").write_text("half")
    if moment == "work":
        os._exit(9)
    (working / "new").write_text("whole")
if moment == "end":
    os._exit(9)
"""


@pytest.mark.parametrize(("moment", "stands"), [("work", ["old"]), ("exchange", ["new", "resume"]), ("end", ["new"])])
def test_k7_what_is_replaced_stands_until_the_new_one_does(moment: str, stands: list[str], tmp_path: Path) -> None:
    place = tmp_path / "classifier"
    place.mkdir()
    write(place, "old", "whole")
    done = subprocess.run([sys.executable, "-c", KILLED, place, moment], check=False)
    assert done.returncode == 9
    assert sorted(path.name for path in place.iterdir()) == stands
    with replacing(place, keep="resume") as working:  # the next run clears what the killed one left
        assert list(working.iterdir()) == []
        write(working, "newest", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["classifier"]
    assert [path.name for path in place.iterdir()] == ["newest"]


def test_k7_work_that_can_be_resumed_is_never_deleted(tmp_path: Path) -> None:
    place = tmp_path / "lm"
    with pytest.raises(CtrlgenError, match="nothing to resume"), replacing(place, resume=True, keep="resume"):
        pass

    def work(resume: bool) -> None:
        with replacing(place, resume=resume, keep="resume") as working:
            assert [path.name for path in working.iterdir()] == ["resume"] * resume
            write(working, "resume", "state")
            raise KeyboardInterrupt

    for resume in (False, True, True):
        with pytest.raises(KeyboardInterrupt):
            work(resume)
    with replacing(place, resume=True, keep="resume") as working:
        write(working, "weights", "whole")
    assert [path.name for path in place.iterdir()] == ["weights"]


CLAIM = """
import sys
from pathlib import Path
from ctrlgen.directories import claimed
with claimed(Path(sys.argv[1])):
    print("claimed", flush=True)
    sys.stdin.read()
"""


def test_k7_two_runs_never_write_to_one_directory(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CLAIM, tmp_path / "model"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "claimed\n"
        with pytest.raises(CtrlgenError, match="another run is writing to it"), claimed(tmp_path / "model"):
            pass
        other.communicate("")
    with claimed(tmp_path / "model"), claimed(tmp_path / "model"):
        pass


@pytest.mark.parametrize(
    ("encoding", "line"),
    [("utf-8", '{"text": "é", "score": null}'), ("ascii", '{"text": "\\u00e9", "score": null}'),
     ("latin-1", '{"text": "\\u00e9", "score": null}')],
)  # fmt: skip
def test_k7_json_is_json_whatever_the_encoding(encoding: str, line: str) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    assert to_json({"text": "é", "score": float("nan")}, file) == line
    assert to_json([float("inf"), (1.5, None)]) == "[null, [1.5, null]]"


@pytest.mark.parametrize("bundled", [False, True])
def test_k7_scores_are_calibrated_where_things_may_be_written(
    bundled: bool, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in the hub's cache nor in the package: the classifier is copied with its new temperature."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "own"))
    place = tmp_path / "toy" if bundled else tmp_path / "hub/models--some--model/snapshots/0123"
    shutil.copytree(toy_model, place)
    if bundled:
        monkeypatch.setattr("ctrlgen.checkpoint.bundled_models", lambda: {"toy": place})
    before = (place / "classifiers/pos/config.json").read_text()
    for temperature in (2.0, 4.0):
        model = from_pretrained(str(place))
        write_temperatures({trained_classifiers(model)["pos"]: Calibration(0.3, 2.0, 0.1, [])}, model)
        own = directories_of(model, "classifiers")[0] / "pos"
        assert trained_classifiers(model)["pos"] == own
        assert find_trained(model, "pos")[1]["score_temperature"] == temperature
        assert (own / "model.safetensors").read_bytes() == (place / "classifiers/pos/model.safetensors").read_bytes()
    assert (place / "classifiers/pos/config.json").read_text() == before


def test_k7_the_hubs_cache_is_not_written_to(toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "own"))
    snapshot = tmp_path / "hub" / "models--some--model" / "snapshots" / "0123"
    shutil.copytree(toy_model, snapshot)
    model = from_pretrained(str(snapshot))
    directory = new_classifier_directory(model, "mood", "label")
    assert directory == tmp_path / "own/ctrlgen/classifiers/models--some--model/0123/mood"
    assert trained_classifiers(model)["pos"] == snapshot / "classifiers" / "pos"
    with pytest.raises(CtrlgenError, match="is the hub's copy; download"):
        card_path(model)
    assert directories_of(model, "lm")[0] == tmp_path / "own/ctrlgen/lm/models--some--model/0123"
    assert directories_of(model, "baselines")[0] == tmp_path / "own/ctrlgen/baselines/models--some--model/0123"
