"""A model and its heads from one's own data: sizes, minutes, the recipe that is kept, and going on."""

import hashlib
import json
from pathlib import Path
from random import Random

import pytest
import torch
from command_line import Run, exit_code
from toy_grammar import toy_meaning, toy_sentences

from ctrlgen.data.texts import is_held_out, read_split
from ctrlgen.domain import making, sizing, verdict
from ctrlgen.domain.making import RECIPE, kept_recipe
from ctrlgen.domain.sizing import Extent, Pace, recipe_name, share_out, steps_for
from ctrlgen.domain.verdict import VERDICT
from ctrlgen.errors import UsageError
from ctrlgen.training import denoising
from ctrlgen.training.denoising import DataConfig, Recipe
from ctrlgen.training.fit import RESUME
from ctrlgen.training.recipe import read_recipe
from ctrlgen.training.shipped import recipe_path

PACE = Pace(beginning=2.0, step=0.05, validation=1.0, words=500.0, read=0.0001)
EXTENT = Extent(texts=1000, words=10_000)


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toy sentences with what they are about."""
    rows = [{"text": " ".join(words), **toy_meaning(words)} for words, _ in toy_sentences(300)]
    path = tmp_path_factory.mktemp("labelled") / "toy.jsonl"
    path.write_text("".join(json.dumps({"text": r["text"], "subject": r["subject"]}) + "\n" for r in rows))
    return path


def weights(directory: Path) -> dict[str, str]:
    files = sorted(directory.rglob("*.safetensors"))
    found = {str(f.relative_to(directory)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    return {name: digest for name, digest in found.items() if RESUME not in name}


def test_what_is_held_out_follows_from_the_text_alone() -> None:
    texts = [f"text number {i}" for i in range(2000)]
    share = sum(is_held_out(text, 0.1) for text in texts) / len(texts)
    assert 0.07 < share < 0.13
    assert all(is_held_out(text, 0.1) == is_held_out(f"  {text.upper()} ", 0.1) for text in texts)
    assert {t for t in texts if is_held_out(t, 0.1)} <= {t for t in texts if is_held_out(t, 0.3)}


def test_duplicates_are_on_one_side(tmp_path: Path) -> None:
    texts = [f"number {i % 50}" for i in range(500)]
    Random(0).shuffle(texts)
    path = tmp_path / "a.txt"
    path.write_text("\n".join(texts))
    learned, held_out = read_split(str(path), None, 0.2)
    assert held_out
    assert not set(learned) & set(held_out)
    assert len(learned) + len(held_out) == 500


def test_steps_grow_with_the_data_and_are_bounded() -> None:
    words = [steps_for(n, PACE) * PACE.words for n in (1_000, 10_000, 100_000, 10**6, 10**8)]
    assert words == sorted(words)
    assert words[0] <= 61 * 1_000
    assert words[-1] <= 2.1e7
    assert words[3] == pytest.approx(6e6, rel=0.01)


def test_the_minutes_are_shared_out() -> None:
    recipe = read_recipe(recipe_path("small"))
    plenty = Extent(texts=20_000, words=200_000)
    shared = share_out(recipe, plenty, PACE, 600.0, labels=2, minutes=10)
    denoiser = PACE.beginning + 4 * PACE.validation + shared.training.steps * PACE.step
    assert denoiser == pytest.approx(360, abs=1)
    assert 2 * shared.heads.steps * PACE.words * PACE.read * sizing.HEAD_WORD == pytest.approx(120, abs=1)
    alone = share_out(recipe, plenty, PACE, 600.0, labels=0, minutes=10)
    assert alone.training.steps * PACE.step + 6 == pytest.approx(540, abs=1)
    few = share_out(recipe, Extent(texts=100, words=1000), PACE, 600.0, labels=0, minutes=10)
    assert few.training.steps * PACE.words == 60 * 1000
    assert share_out(recipe, Extent(100, 1000), PACE, 600.0, labels=1, minutes=10).heads.steps == few.training.steps
    with pytest.raises(UsageError, match=r"--minutes 0\.1 is too little here"):
        share_out(recipe, plenty, PACE, 6.0, labels=2, minutes=0.1)


def test_the_sizes_follow_from_the_data_and_the_minutes() -> None:
    assert recipe_name({}, EXTENT, None) == "small"
    assert recipe_name({}, Extent(10**5, 10**6), None) == "base"
    assert recipe_name({}, Extent(10**5, 10**6), 20) == "small"
    assert recipe_name({"training.init": "e2e"}, EXTENT, 20) == "further"


@pytest.mark.parametrize("validations", [1, 3])  # the first comes before the first checkpoint
def test_minutes_make_a_recipe_that_repeats_and_a_killed_run_goes_on_without_measuring(
    validations: int,
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sizing, "measure", lambda *_: PACE)
    monkeypatch.setattr(sizing, "FEWEST_JUDGED", 8)
    monkeypatch.setattr(sizing, "MOST_JUDGED", 8)
    out, again = tmp_path / "out", tmp_path / "again"
    options = ["--data", str(labelled), "--label-column", "subject", "--minutes", "0.25"]
    steps: list[int] = []
    fit = making.train

    def killed(*arguments: object, **options: object):  # type: ignore[no-untyped-def]
        for event in fit(*arguments, **options):  # type: ignore[arg-type]
            steps.extend([event.step] if event.validation else [])
            if len(steps) == validations:
                raise KeyboardInterrupt
            yield event

    monkeypatch.setattr(making, "train", killed)
    assert exit_code("train", *options, "--out", str(out)) == 130
    recipe = kept_recipe(out, {})
    assert 0 < steps[-1] < recipe.training.steps
    monkeypatch.setattr(making, "train", fit)
    monkeypatch.setattr(sizing, "measure", lambda *_: pytest.fail("measured again"))
    assert exit_code("train", *options, "--out", str(out), "--resume") == 0
    assert kept_recipe(out, {}) == recipe
    assert exit_code("train", str(out / RECIPE), "--out", str(again)) == 0
    assert weights(out) == weights(again)
    assert any(name.startswith("classifiers/subject") for name in weights(out))
    said = json.loads((out / VERDICT).read_text())
    assert said["labels"]["subject"]["rows"] + said["human_texts"] == 300
    assert said["labels"]["subject"]["oracle"] > 0.5  # of four nouns
    assert exit_code("generate", "-m", str(out), "-c", "subject: cat", "--steps", "2") in (0, 3)


def test_a_finished_head_is_not_trained_again(labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "measure", lambda *_: PACE)
    monkeypatch.setattr(sizing, "FEWEST_JUDGED", 8)
    monkeypatch.setattr(sizing, "MOST_JUDGED", 8)
    options = ["--data", str(labelled), "--label-column", "subject", "--minutes", "0.25", "--out", str(tmp_path / "o")]
    assert exit_code("train", *options) == 0
    made = weights(tmp_path / "o")
    monkeypatch.setattr(making, "train_label", lambda *_: pytest.fail("trained again"))
    assert exit_code("train", *options, "--resume") == 0
    assert weights(tmp_path / "o") == made


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--minutes", "1", "--steps", "5"], "--minutes sets the steps"),
        (["--minutes", "1", "--label-column", "nothing"], "no column 'nothing'"),
        (["--minutes", "1", "--label-column", "text"], "cannot hold both"),
        (["--minutes", "1", "--resume"], "nothing to resume"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(
    options: list[str], said: str, labelled: Path, tmp_path: Path, ctrlgen: Run
) -> None:
    refused = ctrlgen("train", "--data", labelled, *options, "--out", tmp_path / "o")
    assert refused.code in (1, 2)
    assert said in refused.err
    assert len(refused.err.splitlines()) == 1
    assert not (tmp_path / "o").exists()


class OnDevice(Exception):  # noqa: N818, no mistake
    """Says on which device something would have been done."""


def test_everything_is_done_on_the_device_that_is_given(
    labelled: Path, model_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measuring, training, heads and the verdict: `cpu:0` is told from the `cpu` that nobody asked for."""

    def stop(*arguments: object, device: object = None) -> None:
        raise OnDevice(str(device or arguments[-1]))

    monkeypatch.setattr(sizing, "fit", stop)
    options = ["--data", str(labelled), "--minutes", "1", "--device", "cpu:0", "--out", str(tmp_path / "o")]
    with pytest.raises(OnDevice, match="cpu:0"):
        exit_code("train", *options)
    recipe = Recipe(DataConfig(str(labelled), labels=["subject"]))
    device = torch.device("cpu:0")
    monkeypatch.setattr(denoising, "fit", lambda *_, device, **others: stop(device=device))
    parts = making.make(recipe, tmp_path / "made", device=device)
    with pytest.raises(OnDevice, match="cpu:0"):
        next(next(parts).events)
    monkeypatch.setattr(making, "from_pretrained", stop)
    with pytest.raises(OnDevice, match="cpu:0"):
        next(parts)
    monkeypatch.setattr(verdict, "Generator", stop)
    with pytest.raises(OnDevice, match="cpu:0"):
        verdict.judge(recipe, model_copy, device)


def test_texts_that_are_numbers_are_too_few_and_no_traceback(tmp_path: Path, ctrlgen: Run) -> None:
    path = tmp_path / "numbers.jsonl"
    path.write_text('{"text": 5, "mood": "a"}\n' * 60)
    options = ("--text-column", "text", "--label-column", "mood", "--steps", 2, "--out", tmp_path / "o")
    refused = ctrlgen("train", "--data", path, *options)
    assert refused.code == 2
    assert "only 0 different texts" in refused.err
    assert not (tmp_path / "o").exists()


def test_too_few_labelled_texts_are_told_before_anything_is_trained(tmp_path: Path, ctrlgen: Run) -> None:
    """Equal texts are one."""
    path = tmp_path / "few.jsonl"
    rows = [{"text": f"the cat sees dog number {n % 30} .", "mood": "ab"[n % 2]} for n in range(300)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = ctrlgen("train", "--data", path, "--label-column", "mood", "--steps", 2, "--out", tmp_path / "o")
    assert refused.code == 2
    assert "different texts to learn 'mood' from: at least 40 are needed" in refused.err
    assert not (tmp_path / "o").exists()


def test_labels_that_cannot_be_learned_are_told_before_anything_is_trained(tmp_path: Path, ctrlgen: Run) -> None:
    path = tmp_path / "numbers.jsonl"
    rows = [{"text": f"the cat sees dog number {n} .", "number": n} for n in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = ctrlgen("train", "--data", path, "--label-column", "number", "--steps", 2, "--out", tmp_path / "o")
    assert refused.code == 1
    assert "needs two values seen 5 times each; the data has '0' 1 times" in refused.err
    assert len(refused.err.splitlines()) == 1
    assert not (tmp_path / "o").exists()
