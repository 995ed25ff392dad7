"""Training: it learns, it survives kill -9 bit for bit, and two processes follow the curve of one."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from toy_grammar import toy_sentences

from ctrlgen.checkpoint import DiffusionConfig, from_pretrained
from ctrlgen.controls.registry import trained_classifiers
from ctrlgen.diffusion.denoiser import ModelConfig
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.generation.generator import Generator, sample_texts
from ctrlgen.training.denoising import DataConfig, DenoisingTask, Recipe, train
from ctrlgen.training.fit import METRICS, RESUME, Progress, TrainingConfig, fit, update_average
from ctrlgen.training.recipe import make_recipe
from ctrlgen.training.run_state import differing_keys

SMALL = ModelConfig(embedding_dim=4, width=16, layers=1, heads=2, max_length=11, dropout=0.1)
BRIEF = TrainingConfig(
    steps=24, tokens_per_batch=128, warmup_steps=4, lr=0.005, span_mask_rate=0.3, precision="float32", log_every=1,
    checkpoint_every=8, validate_every=24, ema=0.9,
)  # fmt: skip


@pytest.fixture
def recipe(toy_data: Path) -> Recipe:
    return Recipe(DataConfig(str(toy_data)), SMALL, DiffusionConfig(), BRIEF)


def run(recipe: Recipe, directory: Path, until: int | None = None, **options: Any) -> list[Progress]:
    """Train to the end, or stop dead at the first event of step `until`."""
    events = []
    training = train(recipe, directory, show=sample_texts, **options)
    for event in training:
        events.append(event)
        if event.step == until:
            training.close()  # type: ignore[attr-defined]
            break
    return events


def metrics(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / METRICS).read_text(encoding="utf-8").splitlines()]


def losses(directory: Path) -> list[float]:
    return [record["loss"] for record in metrics(directory) if "validation" not in record]


def written(directory: Path) -> dict[str, Tensor]:
    """Weights, their average, the optimizers' state and the saved model, by name."""
    state = load_file(directory / RESUME)
    return state | {f"saved.{k}": v for k, v in load_file(directory / "model.safetensors").items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


# It learns


@pytest.mark.parametrize(("objective", "schedule"), [("ce", "warp"), ("ce", "cosine"), ("mse", "sqrt")])
def test_the_loss_falls(toy_data: Path, tmp_path: Path, objective: str, schedule: str) -> None:
    model = dataclasses.replace(SMALL, objective=objective, dropout=0.0)
    training = dataclasses.replace(
        BRIEF, steps=120, tokens_per_batch=512, log_every=20, checkpoint_every=1000, validate_every=120
    )
    recipe = Recipe(
        DataConfig(str(toy_data), validation=str(toy_data)), model, DiffusionConfig(schedule, steps=100), training
    )
    events = run(recipe, tmp_path / "model")
    first, last = events[0].loss, events[-2].loss
    assert last < first - 0.5
    validation = events[-1].validation
    assert validation is not None
    assert validation["validation_loss"] < first
    assert len(validation["samples"]) == 4
    loaded = from_pretrained(str(tmp_path / "model"))
    assert loaded.config.objective == objective
    assert loaded.diffusion == DiffusionConfig(schedule, steps=100)


# It survives


def test_a_stopped_run_continues_bit_for_bit(recipe: Recipe, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(recipe, whole)
    run(recipe, stopped, until=11)  # after the checkpoint of step 8
    assert not (stopped / "model.safetensors").exists()
    resumed = run(recipe, stopped, resume=True)
    assert [event.step for event in resumed] == [*range(9, 25), 24]
    assert_same(written(whole), written(stopped))
    assert {name.split(".")[0] for name in written(whole)} == {"module", "average", "optimizer", "saved"}
    assert losses(stopped) == losses(whole)
    assert [record["step"] for record in metrics(stopped)] == [record["step"] for record in metrics(whole)]
    for name in ("config.json", "tokenizer.json"):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes()


def test_a_run_may_stop_more_than_once_and_in_the_middle_of_an_epoch(recipe: Recipe, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    longer = dataclasses.replace(recipe, training=dataclasses.replace(BRIEF, tokens_per_batch=1024, checkpoint_every=5))
    run(longer, whole)
    run(longer, stopped, until=6)
    run(longer, stopped, until=13, resume=True)
    assert run(longer, stopped, until=17, resume=True)[-1].epoch > 2
    run(longer, stopped, resume=True)
    assert_same(written(whole), written(stopped))


def test_the_average_is_not_the_weights(recipe: Recipe, tmp_path: Path) -> None:
    """Or the equalities above would say less than they seem to."""
    run(recipe, tmp_path / "model", until=9)
    state = load_file(tmp_path / "model" / RESUME)
    name = "denoiser.word_embedding"
    assert not torch.equal(state[f"module.{name}"], state[f"average.{name}"])


def test_an_interruption_leaves_what_a_resume_continues_bit_for_bit(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C strikes between the optimizers' step and the average's; the step is finished first."""
    before = signal.getsignal(signal.SIGINT)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(recipe, whole)
    calls = []

    def interrupted(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 11:
            signal.raise_signal(signal.SIGINT)
        update_average(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("ctrlgen.training.fit.update_average", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, stopped)
    assert metrics(stopped)[-1]["step"] == 11
    assert signal.getsignal(signal.SIGINT) is before
    resumed = run(recipe, stopped, resume=True)
    assert resumed[0].step == 12
    assert_same(written(whole), written(stopped))


def test_a_step_that_is_torn_is_not_saved(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second Ctrl-C does not wait; the last checkpoint stands."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(recipe, whole)
    calls = []

    def interrupted(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 11:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        update_average(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("ctrlgen.training.fit.update_average", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, stopped)
    assert run(recipe, stopped, resume=True)[0].step == 9
    assert_same(written(whole), written(stopped))


@pytest.mark.parametrize("last", [False, True])
def test_a_validation_that_is_torn_is_done_again(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: bool
) -> None:
    """A second Ctrl-C strikes while the model is validated: in the middle of the run, or at its end."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    recipe = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, validate_every=10))
    run(recipe, whole)
    validate, calls = DenoisingTask.validate, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1 + last:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return validate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(DenoisingTask, "validate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, stopped)
    run(recipe, stopped, resume=True)
    assert_same(written(whole), written(stopped))


def test_what_is_validated_can_be_resumed(recipe: Recipe, tmp_path: Path) -> None:
    training = dataclasses.replace(recipe.training, validate_every=2, checkpoint_every=1000)
    recipe = dataclasses.replace(recipe, training=training)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(recipe, whole)
    run(recipe, stopped, until=3)
    assert run(recipe, stopped, resume=True)[0].step == 3
    assert_same(written(whole), written(stopped))


RECIPE = """
[data]
train = {data}
[model]
embedding_dim = 4
width = 16
layers = 1
heads = 2
max_length = 11
dropout = {dropout}
[training]
steps = {steps}
tokens_per_batch = 128
warmup_steps = 4
lr = 0.005
span_mask_rate = 0.3
precision = "float32"
log_every = 1
checkpoint_every = {checkpoint_every}
validate_every = {steps}
ema = 0.9
"""


def as_toml(recipe: Recipe) -> str:
    training = recipe.training
    return RECIPE.format(
        data=json.dumps(recipe.data.train), dropout=recipe.model.dropout, steps=training.steps,
        checkpoint_every=training.checkpoint_every,
    )  # fmt: skip


def launch(*arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.usefixtures("one_thread")
def test_kill_9(recipe: Recipe, tmp_path: Path) -> None:
    training = dataclasses.replace(BRIEF, steps=200, checkpoint_every=5, validate_every=200)
    recipe = dataclasses.replace(recipe, training=training)
    (tmp_path / "recipe.toml").write_text(as_toml(recipe))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = launch("-m", "ctrlgen", "train", str(tmp_path / "recipe.toml"), "--out", str(killed))
    while not (killed / RESUME).exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "model.safetensors").exists()
    resumed = run(recipe, killed, resume=True)
    assert 5 < resumed[0].step < 200
    run(recipe, whole)
    assert_same(written(whole), written(killed))
    assert losses(killed) == losses(whole)


@pytest.mark.usefixtures("one_thread")
def test_two_processes_follow_the_curve_of_one(recipe: Recipe, tmp_path: Path) -> None:
    recipe = dataclasses.replace(
        recipe, model=dataclasses.replace(SMALL, dropout=0.0), training=dataclasses.replace(BRIEF, checkpoint_every=100)
    )
    (tmp_path / "recipe.toml").write_text(as_toml(recipe))
    one, two = tmp_path / "one", tmp_path / "two"
    process = launch(
        "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1", "--main_process_port=0",
        "--mixed_precision=no", "--dynamo_backend=no", "--module", "ctrlgen", "train", str(tmp_path / "recipe.toml"),
        "--out", str(two),
    )  # fmt: skip
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    run(recipe, one)
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    assert len(losses(two)) == 24
    averages = [load_file(directory / RESUME)["average.denoiser.word_embedding"] for directory in (one, two)]
    torch.testing.assert_close(*averages, rtol=0, atol=1e-3)


def test_a_torn_line_of_metrics_does_not_stop_a_resume(recipe: Recipe, tmp_path: Path) -> None:
    run(recipe, tmp_path / "model", until=9)
    with (tmp_path / "model" / METRICS).open("a") as file:
        file.write('{"step": 10, "lo')
    run(recipe, tmp_path / "model", resume=True)
    assert [record["step"] for record in metrics(tmp_path / "model")] == [*range(1, 25), 24]


# What is refused


def test_another_recipe_is_refused_naming_the_keys(recipe: Recipe, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    run(recipe, directory, until=9)
    before = (directory / RESUME).read_bytes()
    other = dataclasses.replace(
        recipe, training=dataclasses.replace(BRIEF, lr=0.1, seed=3), model=dataclasses.replace(SMALL, dropout=0.2)
    )
    with pytest.raises(UsageError, match=r"another recipe \(model.dropout, training.lr, training.seed changed\)"):
        run(other, directory, resume=True)
    fewer = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, min_length=7))
    with pytest.raises(UsageError, match="was made with other texts"):
        run(fewer, directory, resume=True)
    assert (directory / RESUME).read_bytes() == before


def test_differing_keys() -> None:
    old = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert differing_keys(old, old) == []
    assert differing_keys(old, {"a": {"b": 1, "c": {"d": 4}}, "f": 3}) == ["a.c.d", "e", "f"]


def test_a_run_may_start_from_another_models_weights(recipe: Recipe, toy_model: Path, tmp_path: Path) -> None:
    """The same seed and data: after one tiny step the weights are still those of the start."""
    start = from_pretrained(str(toy_model))
    config = ModelConfig(**{field.name: getattr(start.config, field.name) for field in dataclasses.fields(ModelConfig)})
    barely = dataclasses.replace(BRIEF, steps=1, lr=1e-9, matrix_lr=0.0, init=str(toy_model))
    run(dataclasses.replace(recipe, model=config, diffusion=start.diffusion, training=barely), tmp_path / "m")
    continued = from_pretrained(str(tmp_path / "m"))
    assert continued.tokenizer.to_json() == start.tokenizer.to_json()
    for name, tensor in start.denoiser.state_dict().items():
        torch.testing.assert_close(continued.denoiser.state_dict()[name], tensor, atol=2e-3, rtol=2e-3)
    from_scratch = dataclasses.replace(barely, init=None)
    run(dataclasses.replace(recipe, model=config, diffusion=start.diffusion, training=from_scratch), tmp_path / "s")
    other = from_pretrained(str(tmp_path / "s")).denoiser.state_dict()
    assert any((other[name] - tensor).abs().max() > 0.01 for name, tensor in start.denoiser.state_dict().items())


def test_a_start_of_another_shape_is_refused_naming_the_keys(recipe: Recipe, toy_model: Path, tmp_path: Path) -> None:
    wider = dataclasses.replace(recipe, training=dataclasses.replace(BRIEF, init=str(toy_model)))
    with pytest.raises(UsageError, match=r"model\.width"):
        run(wider, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_an_existing_model_is_not_overwritten(recipe: Recipe, toy_model: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    run(recipe, unfinished, until=9)
    for directory, advice in ((toy_model, "choose another --out"), (unfinished, "continue it with --resume")):
        before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
        with pytest.raises(CtrlgenError, match=f"already holds a model; {advice}"):
            run(recipe, directory)
        assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


def test_nothing_to_resume(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(CtrlgenError, match="nothing to resume"):
        run(recipe, tmp_path / "model", resume=True)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.9])
def test_a_truncated_checkpoint(recipe: Recipe, tmp_path: Path, share: float) -> None:
    run(recipe, tmp_path / "model", until=9)
    path = tmp_path / "model" / RESUME
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CtrlgenError, match=r"resume\.safetensors: truncated or not a checkpoint"):
        run(recipe, tmp_path / "model", resume=True)


def test_a_checkpoint_of_something_else(recipe: Recipe, tmp_path: Path) -> None:
    run(recipe, tmp_path / "model", until=9)
    save_file({"x": torch.zeros(1)}, tmp_path / "model" / RESUME)
    with pytest.raises(CtrlgenError, match=r"resume\.safetensors: truncated or not a checkpoint"):
        run(recipe, tmp_path / "model", resume=True)


def test_texts_that_do_not_fit(recipe: Recipe, tmp_path: Path) -> None:
    short = dataclasses.replace(recipe, model=dataclasses.replace(SMALL, max_length=5))
    with pytest.raises(CtrlgenError, match=r"600 texts read, 0 used, 600 longer than 5 words: too little is left"):
        run(short, tmp_path / "model")


def test_divergence_is_an_error_that_names_the_learning_rate(recipe: Recipe, tmp_path: Path) -> None:
    wild = dataclasses.replace(recipe, training=dataclasses.replace(BRIEF, lr=1e30, matrix_lr=1e30, checkpoint_every=1))
    with pytest.raises(CtrlgenError, match=r"diverged at step \d+: lower training.lr"):
        run(wild, tmp_path / "model")
    assert not (tmp_path / "model" / "model.safetensors").exists()
    if (tmp_path / "model" / RESUME).exists():
        state = load_file(tmp_path / "model" / RESUME)
        assert all(torch.isfinite(tensor).all() for name, tensor in state.items() if name.startswith("module."))


# What is written


def test_metrics(recipe: Recipe, tmp_path: Path) -> None:
    few = dataclasses.replace(BRIEF, steps=10, log_every=4, validate_every=5)
    events = run(dataclasses.replace(recipe, training=few), tmp_path / "model")
    records = metrics(tmp_path / "model")
    assert [(record["step"], "validation" in record) for record in records] == [
        (4, False), (5, True), (8, False), (10, False), (10, True),
    ]  # fmt: skip
    assert [(event.step, event.loss) for event in events] == [(record["step"], record["loss"]) for record in records]
    for record in records:
        assert set(record) - {"validation"} == {"step", "steps", "epoch", "loss", "tokens_per_second", "eta"}
        assert record["steps"] == 10
        assert math.isfinite(record["loss"])
        assert record["tokens_per_second"] > 0
    assert records[-1]["eta"] == 0
    assert set(records[-1]["validation"]) == {"samples"}


def test_a_logged_loss_is_the_mean_since_the_last(recipe: Recipe, tmp_path: Path) -> None:
    every = dataclasses.replace(BRIEF, steps=8, validate_every=100, checkpoint_every=100)
    run(dataclasses.replace(recipe, training=every), tmp_path / "each")
    run(dataclasses.replace(recipe, training=dataclasses.replace(every, log_every=4)), tmp_path / "four")
    each = losses(tmp_path / "each")
    assert losses(tmp_path / "four") == pytest.approx([sum(each[:4]) / 4, sum(each[4:]) / 4])


def test_the_finished_directory(recipe: Recipe, tmp_path: Path) -> None:
    run(recipe, tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.json", "metrics.jsonl", "model.safetensors", "resume.safetensors", "tokenizer.json",
    ]  # fmt: skip


def test_the_saved_model_is_the_average(recipe: Recipe, tmp_path: Path) -> None:
    run(recipe, tmp_path / "model")
    state, saved = load_file(tmp_path / "model" / RESUME), load_file(tmp_path / "model" / "model.safetensors")
    assert saved.keys() == {name.removeprefix("average.") for name in state if name.startswith("average.")}
    assert all(torch.equal(saved[name], state[f"average.{name}"].half()) for name in saved)


def test_runs_of_different_precision_follow_one_another(recipe: Recipe, tmp_path: Path) -> None:
    """As a denoiser in bfloat16 and then its classifiers in float32."""
    for precision in ("bfloat16", "float32", "bfloat16"):
        training = dataclasses.replace(BRIEF, steps=2, precision=precision)  # type: ignore[arg-type]
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        events = run(dataclasses.replace(recipe, training=training), directory)
        assert math.isfinite(events[-1].loss)


# The average and the learning rate


def test_another_device_than_accelerates_is_refused_in_one_line(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(CtrlgenError, match="cannot train on meta: this process trains on cpu"):
        next(fit(DenoisingTask(recipe), recipe.training, tmp_path / "model", device=torch.device("meta")))


def test_the_average_follows_its_formula() -> None:
    average, module = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([3.0, 5.0, -1.0]))
        module.running_mean.fill_(7.0)  # type: ignore[union-attr]
    update_average(average, module, 0.75)
    assert average.weight.tolist() == [1.5, 2.0, 0.5]
    assert average.running_mean.tolist() == [7.0, 7.0, 7.0]  # type: ignore[union-attr]
    update_average(average, module, 0.5)
    assert average.weight.tolist() == [2.25, 3.5, -0.25]


def test_the_averages_memory_grows_with_the_run() -> None:
    config = TrainingConfig(ema=0.99)
    decays = [config.ema_decay(step) for step in range(2000)]
    assert decays[0] == 0.1
    assert decays == sorted(decays)
    assert decays[90] == pytest.approx(0.91)
    assert decays[-1] == 0.99


def test_the_learning_rate_warms_up_stays_and_falls_to_nothing() -> None:
    config = TrainingConfig(steps=100, warmup_steps=10, decay_share=0.4)
    rates = [config.learning_rate(step) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10:61] == [1.0] * 51
    assert rates[60:] == pytest.approx([1.0 - i / 40 for i in range(41)])


def test_the_learning_rates_ends() -> None:
    assert {TrainingConfig(steps=9, warmup_steps=0, decay_share=0.0).learning_rate(step) for step in range(9)} == {1.0}
    assert TrainingConfig(steps=4, warmup_steps=0, decay_share=1.0).learning_rate(1) == 0.75


# The tied output, sampled words and a context

TIED = dataclasses.replace(SMALL, output="tied", output_dim=4, pieces=64, context=12)


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    path = tmp_path / "documents.jsonl"
    rows = [
        {"sentences": [" ".join(words) for words, _ in toy_sentences(3, seed)], "source": "a"} for seed in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tied_recipe(toy_data: Path, documents: Path, **training: Any) -> Recipe:
    brief = dataclasses.replace(BRIEF, sampled_words=8, mask_spans=4, context_share=0.3, **training)
    data = DataConfig(str(toy_data), validation=str(toy_data), min_count=3, documents=[str(documents)])
    return Recipe(data, TIED, DiffusionConfig(), brief)


def test_a_tied_model_with_context_learns(toy_data: Path, documents: Path, tmp_path: Path) -> None:
    recipe = tied_recipe(toy_data, documents, steps=200, validate_every=50, log_every=50, tokens_per_batch=512)
    events = run(recipe, tmp_path / "model")
    validations = [event.validation["validation_loss"] for event in events if event.validation]
    assert validations[-1] < validations[0] - 0.2
    loaded = from_pretrained(str(tmp_path / "model"))
    assert set(loaded.lengths) <= set(range(2, 12))
    task = DenoisingTask(recipe)
    the = loaded.tokenizer.ids(["the"])[0]
    assert loaded.denoiser.words.counts[the] == sum(sentence.count(the) for sentence in task.sentences)
    assert task.batches.context_batches > 0
    assert sum(loaded.lengths.values()) == sum(
        index not in task.batches.contexts for index in range(len(task.sentences))
    )


def test_a_tied_run_continues_bit_for_bit(toy_data: Path, documents: Path, tmp_path: Path) -> None:
    recipe = tied_recipe(toy_data, documents)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(recipe, whole)
    run(recipe, stopped, until=11)
    run(recipe, stopped, resume=True)
    assert_same(written(whole), written(stopped))


def test_rare_words_are_learned_from_and_held_out_texts_with_them_are_not_judged(
    toy_data: Path, documents: Path, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("the dog sees a cat .\n" * 60 + "the dog sees a zebra .\n" * 2, encoding="utf-8")
    data = DataConfig(str(texts), validation=str(texts), min_count=3)
    task = DenoisingTask(Recipe(data, TIED, DiffusionConfig(), BRIEF))
    assert list(task.rare) == ["zebra"]
    assert sum(max(ids) >= len(task.tokenizer) for ids in task.sentences) == 2
    assert len(task.held_out) == 60


def test_rows_can_be_left_out(toy_data: Path, documents: Path) -> None:
    recipe = tied_recipe(toy_data, documents)
    without = dataclasses.replace(recipe.data, train=str(documents), text_column="source", leave_out={"source": ["a"]})
    with pytest.raises(CtrlgenError, match="holds no text"):
        DenoisingTask(dataclasses.replace(recipe, data=without))


def test_a_tied_model_takes_in_the_words_of_new_texts(toy_data: Path, documents: Path, tmp_path: Path) -> None:
    recipe = tied_recipe(toy_data, documents)
    run(recipe, tmp_path / "first")
    texts = tmp_path / "texts.txt"
    texts.write_text("the zebra sees a zebra .\n" * 30 + "the gnu sees a dog .\n", encoding="utf-8")
    tables = {"data": {"train": str(texts)}, "training": {"steps": 1, "lr": 1e-9, "precision": "float32"}}
    grown = make_recipe(tables, "options", {"training.init": str(tmp_path / "first")})
    assert grown.model == recipe.model
    run(grown, tmp_path / "second")
    first, second = (from_pretrained(str(tmp_path / name)) for name in ("first", "second"))
    assert second.tokenizer.words == [*first.tokenizer.words, "zebra"]
    assert "gnu" not in second.tokenizer
    before, after = (model.denoiser.words for model in (first, second))
    torch.testing.assert_close(after.own[:-1], before.own, atol=1e-5, rtol=1e-5)
    assert after.own[-1].abs().max() < 1e-5  # its spelling says all that is known yet
    torch.testing.assert_close(after.pieces, before.pieces, atol=1e-5, rtol=1e-5)
    share = after.counts[-1] / after.counts.sum()
    assert 0.1 < share < 0.2  # half of its share in the new texts, where a third of the words is it
    assert after.counts[first.tokenizer.ids(["cat"])[0]] == before.counts[first.tokenizer.ids(["cat"])[0]]


def opened_recipe(toy_model: Path, toy_data: Path, **training: Any) -> Recipe:
    """Makes the toy model one with a tied output."""
    toy = from_pretrained(str(toy_model)).config
    sizes = {key: getattr(toy, key) for key in ("embedding_dim", "width", "layers", "heads", "max_length")}
    model = ModelConfig(**sizes, output="tied", output_dim=toy.width, pieces=64)
    brief = dataclasses.replace(BRIEF, init=str(toy_model), learn="pieces", **training)
    return Recipe(DataConfig(str(toy_data)), model, DiffusionConfig(), brief)


def test_a_model_opens_its_vocabulary_and_keeps_its_texts(toy_model: Path, toy_data: Path, tmp_path: Path) -> None:
    run(opened_recipe(toy_model, toy_data), tmp_path / "open")
    before, after = Generator(str(toy_model)), Generator(str(tmp_path / "open"))
    x_t, log_snr = (
        torch.randn(4, 9, 8, generator=torch.Generator().manual_seed(0)),
        torch.tensor([-3.0, -1.0, 1.0, 3.0]),
    )
    expected, found = (g.model.denoiser(x_t, log_snr).probs for g in (before, after))
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0.0)  # stored as float16
    tagged = after.generate([after.request(["pos: DET NOUN VERB DET NOUN PUNCT"], n=3)])
    assert all(sample.success for sample in tagged)  # by the head that was there before
    new = after.generate([after.request(["words: Zorblax"], n=2)])
    assert all("Zorblax" in sample.text.split() for sample in new)
    with pytest.raises(UsageError, match="Zorblax"):
        before.request(["words: Zorblax"])


def test_the_network_alone_goes_on_and_its_classifiers_come_along(
    toy_model: Path, toy_data: Path, tmp_path: Path
) -> None:
    recipe = opened_recipe(toy_model, toy_data)
    run(recipe, tmp_path / "open")
    training = dataclasses.replace(recipe.training, init=str(tmp_path / "open"), learn="network", own_dropout=0.0)
    run(dataclasses.replace(recipe, training=training), tmp_path / "on")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("open", "on"))
    of_words = [name for name in before if name.endswith(("words.own", "words.pieces"))]
    assert len(of_words) == 2
    assert all(torch.equal(before[name], after[name]) for name in of_words)
    assert any(not torch.equal(before[name], after[name]) for name in before if "blocks" in name)
    assert trained_classifiers(from_pretrained(str(tmp_path / "on"))).keys() == {"pos"}


def test_a_model_that_goes_on_learns_the_words_of_documents(toy_model: Path, toy_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl"
    path.write_text(json.dumps({"sentences": ["the zorblax sees a cat .", "the zorblax likes a zorblax ."]}) + "\n")
    recipe = opened_recipe(toy_model, toy_data)
    data, model = dataclasses.replace(recipe.data, documents=[str(path)]), dataclasses.replace(recipe.model, context=12)
    assert "zorblax" in DenoisingTask(dataclasses.replace(recipe, data=data, model=model)).tokenizer


def test_parts_of_a_model_alone_need_a_tied_output_and_a_start(toy_model: Path, tmp_path: Path) -> None:
    recipe = opened_recipe(toy_model, tmp_path / "never read.jsonl")
    full = dataclasses.replace(recipe.model, output="full", output_dim=0, pieces=0)
    for learn in ("pieces", "network"):
        training = dataclasses.replace(recipe.training, learn=learn)
        with pytest.raises(UsageError, match=f'learn = "{learn}" needs .* "tied"'):
            DenoisingTask(dataclasses.replace(recipe, model=full, training=training))
        alone = dataclasses.replace(training, init=None)
        with pytest.raises(UsageError, match=f'learn = "{learn}" needs .* training.init'):
            DenoisingTask(dataclasses.replace(recipe, training=alone))


def test_a_run_that_learns_pieces_continues_bit_for_bit(toy_model: Path, toy_data: Path, tmp_path: Path) -> None:
    recipe = opened_recipe(toy_model, toy_data)
    run(recipe, tmp_path / "whole")
    run(recipe, tmp_path / "stopped", until=11)
    run(recipe, tmp_path / "stopped", resume=True)
    assert_same(written(tmp_path / "whole"), written(tmp_path / "stopped"))
