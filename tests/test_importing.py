"""Checkpoints of the original Diffusion-LM: the same numbers, and one line for what cannot be imported."""

import io
import json
import math
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import original_checkpoint as original
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ctrlgen.checkpoint import CARD, DiffusionLM, from_pretrained, read_weights
from ctrlgen.diffusion.bert import BertDenoiser
from ctrlgen.diffusion.process import posterior
from ctrlgen.diffusion.rounding import clamp
from ctrlgen.diffusion.schedule import DiscreteSchedule
from ctrlgen.errors import CtrlgenError
from ctrlgen.importing import import_checkpoint, save_imported

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "official-tiny"
CLOSE = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return original.write_folder(tmp_path / "diff_toy")


@pytest.fixture
def imported(folder: Path, tmp_path: Path) -> DiffusionLM:
    """Imported, written and read again."""
    save_imported(*import_checkpoint(folder, heads=original.HEADS), tmp_path / "imported")
    return from_pretrained(str(tmp_path / "imported"))


def network(model: DiffusionLM) -> tuple[BertDenoiser, DiscreteSchedule]:
    assert isinstance(model.denoiser, BertDenoiser)
    assert isinstance(model.schedule, DiscreteSchedule)
    return model.denoiser, model.schedule


def reverse_step(model: DiffusionLM, x_t: Tensor, levels: Tensor, spacing: list[int], clamped: bool = False) -> Any:
    """pred_xstart, mean and variance of p(x_{t-1} | x_t) at places in a spacing, as the samplers compute them."""
    denoiser, schedule = network(model)
    log_snrs = schedule.log_snrs[torch.tensor(spacing)]
    before = torch.cat([torch.tensor([math.inf]), log_snrs])[levels]  # there is no noise below the first level
    with torch.no_grad():
        x_0 = denoiser(x_t, log_snrs[levels]).x0_hat
    x_0 = clamp(x_0, denoiser.embeddings()) if clamped else x_0
    return x_0, *posterior(x_t, x_0, before, log_snrs[levels])


def test_the_network_is_the_originals(imported: DiffusionLM) -> None:
    denoiser, schedule = network(imported)
    state = original.make_state()
    x_t = torch.randn(3, original.SIDE**2, original.DIM, generator=torch.Generator().manual_seed(1))
    levels = torch.tensor([0, 41, original.STEPS - 1])
    expected = original.x0_hat(state, x_t, levels * 1000.0 / original.STEPS)  # rescale_timesteps
    with torch.no_grad():
        for log_snrs in (schedule.log_snrs, schedule.log_snrs.float()):
            denoised = denoiser(x_t, log_snrs[levels])
            torch.testing.assert_close(denoised.x0_hat, expected, **CLOSE)
            logits = expected @ state["lm_head.weight"].T + state["lm_head.bias"]
            torch.testing.assert_close(denoised.logits, logits, **CLOSE)
    assert len(denoised.hidden) == original.LAYERS


def test_weights_stay_as_they_are(imported: DiffusionLM, folder: Path) -> None:
    assert imported.directory is not None
    written = read_weights(imported.directory / "model.safetensors")
    assert torch.equal(written["denoiser.word_embedding"], original.make_state()["lm_head.weight"])
    card = (imported.directory / CARD).read_text(encoding="utf-8")
    assert folder.name in card
    assert '"noise_schedule": "sqrt"' in card


@pytest.mark.parametrize("name", ["sqrt", "cosine", "linear"])
def test_tables_are_the_originals(name: str) -> None:
    steps = original.STEPS
    alpha_bar_of = {
        "sqrt": lambda t: 1 - math.sqrt(t + 0.0001),
        "cosine": lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2,
    }
    if name == "linear":
        low, high = 1000 / steps * 0.0001, 1000 / steps * 0.02
        betas = [low + (high - low) * i / (steps - 1) for i in range(steps)]
    else:
        of = alpha_bar_of[name]
        betas = [min(1 - of((i + 1) / steps) / of(i / steps), 0.999) for i in range(steps)]
    alpha_bar, product = [], 1.0
    for beta in betas:
        product *= 1 - beta
        alpha_bar.append(product)
    schedule = DiscreteSchedule(name, steps)
    torch.testing.assert_close(
        torch.sigmoid(schedule.log_snrs), torch.tensor(alpha_bar, dtype=torch.float64), rtol=1e-9, atol=0.0
    )


def test_ema_files_end_with_what_the_original_loads_last(folder: Path) -> None:
    """They hold the shared matrix twice, averaged under one name only."""
    state = original.make_state()
    state["word_embedding.weight"] = state["word_embedding.weight"] + 1.0
    torch.save(state, folder / "ema_0.9999_000100.pt")
    model, _ = import_checkpoint(folder, heads=original.HEADS)
    assert torch.equal(model.denoiser.embeddings(), state["lm_head.weight"])


def test_the_last_ema_weights_are_chosen_unless_told(folder: Path) -> None:
    for name in ("ema_0.9999_000900.pt", "ema_0.99_000900.pt", "ema_0.9999_001000.pt", "model002000.pt"):
        shutil.copy(folder / "ema_0.9999_000100.pt", folder / name)
    (folder / "opt002000.pt").write_bytes(b"of the optimizer")
    assert "`ema_0.9999_001000.pt`" in import_checkpoint(folder, original.HEADS)[1]
    assert "`model002000.pt`" in import_checkpoint(folder, original.HEADS, "model002000.pt")[1]
    with pytest.raises(CtrlgenError, match=r"no weights called 'model9\.pt'; there are ema_0\.9999_000100\.pt"):
        import_checkpoint(folder, original.HEADS, "model9.pt")
    for path in folder.glob("ema*"):
        path.unlink()
    assert "`model002000.pt`" in import_checkpoint(folder, original.HEADS)[1]


def test_special_words_get_our_names(imported: DiffusionLM) -> None:
    tokenizer = imported.tokenizer
    assert tokenizer.words[:5] == ["<start>", "<end>", "<unk>", "<pad>", "the"]
    ids = tokenizer.filled(tokenizer.encode("the pub"), 6)
    assert ids == [4, original.WORDS.index("pub"), 1, 3, 3, 3]
    assert tokenizer.decode([0, *ids, 4]) == ["the", "pub"]
    assert imported.longest == original.SIDE**2 - 2


def test_a_newline_closes_texts_where_it_is_a_word(folder: Path) -> None:
    words = [*original.WORDS[:-1], "\n"]
    (folder / "vocab.json").write_text(json.dumps({word: id for id, word in enumerate(words)}), encoding="utf-8")
    model, _ = import_checkpoint(folder, original.HEADS)
    newline = len(words) - 1
    assert model.rows([[4, 5]]) == [[0, 4, 5, newline, 1, *[3] * 11]]
    assert model.tokenizer.decode([0, 4, 5, newline, 1, 3, 3]) == ["the", "."]
    assert model.longest == original.SIDE**2 - 3


class Code:
    """Runs when it is unpickled without care."""

    def __reduce__(self) -> Any:
        return exec, ("import pathlib; pathlib.Path('ran').touch()",)


def set_argument(key: str, value: Any) -> Any:
    def change(folder: Path) -> None:
        arguments = json.loads((folder / "training_args.json").read_text(encoding="utf-8"))
        (folder / "training_args.json").write_text(json.dumps(arguments | {key: value}), encoding="utf-8")

    return change


def set_words(words: Any) -> Any:
    return lambda folder: (folder / "vocab.json").write_text(json.dumps(words), encoding="utf-8")


def set_state(**changes: Tensor | None) -> Any:
    def change(folder: Path) -> None:
        state: dict[str, Any] = {**original.make_state(), **{k.replace("__", "."): v for k, v in changes.items()}}
        torch.save({k: v for k, v in state.items() if v is not None}, folder / "ema_0.9999_000100.pt")

    return change


def truncate(name: str) -> Any:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-2000])


def with_code(name: str, legacy: bool) -> Any:
    def change(folder: Path) -> None:
        if legacy:
            (folder / name).write_bytes(pickle.dumps({"weight": Code()}))
        else:
            torch.save({"weight": Code()}, folder / name)

    return change


def bomb(folder: Path) -> None:
    """A zip file that promises a tensor of 400 GB."""
    file = io.BytesIO()
    torch.save({"lm_head.weight": torch.zeros(4)}, file)
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(folder / "ema_0.9999_000100.pt", "w") as other:
        for name in archive.namelist():
            data = archive.read(name)
            other.writestr(name, data.replace(b"K\x04", b"J\xff\xff\xff\x7f") if name.endswith("data.pkl") else data)


VOCABULARY = {word: id for id, word in enumerate(original.WORDS)}
DAMAGES: list[tuple[Any, str]] = [
    (shutil.rmtree, "no such directory"),
    (lambda folder: (folder / "training_args.json").unlink(), "training_args.json: no such file"),
    (lambda folder: (folder / "model.safetensors").touch(), "is a model of ctrlgen already; use it with --model"),
    (lambda folder: (folder / "training_args.json").write_text("{"), "cannot be read as JSON"),
    (lambda folder: (folder / "vocab.json").unlink(), "vocab.json: no such file"),
    (lambda folder: (folder / "vocab.json").write_bytes(b"\xff\xfe"), "cannot be read as JSON"),
    (lambda folder: (folder / "ema_0.9999_000100.pt").unlink(), "holds no weights"),
    (truncate("ema_0.9999_000100.pt"), "truncated or not a file of weights"),
    (lambda folder: (folder / "ema_0.9999_000100.pt").write_bytes(b""), "truncated or not a file of weights"),
    (truncate("random_emb.torch"), "random_emb.torch: truncated or not a file of weights"),
    (with_code("ema_0.9999_000100.pt", legacy=False), "code, is never run"),
    (with_code("ema_0.9999_000100.pt", legacy=True), "code, is never run"),
    (with_code("random_emb.torch", legacy=False), "code, is never run"),
    (bomb, "ema_0.9999_000100.pt"),
    (lambda folder: torch.save([1], folder / "ema_0.9999_000100.pt"), "not a dictionary of weights"),
    (lambda folder: torch.save({"a": 1}, folder / "ema_0.9999_000100.pt"), "no plain tensor"),
    (set_words({word: id for word, id in VOCABULARY.items() if word != "It"}), "has 16 words, ema_.* 17"),
    (set_words(VOCABULARY | {"It": 99}), "words must have the ids from 0 to 16"),
    (set_words(VOCABULARY | {"It": "16"}), "words must have the ids from 0 to 16"),
    (set_words({("STOP" if w == "END" else w): id for w, id in VOCABULARY.items()}), "has no word END"),
    (set_words({("<pad>" if w == "It" else w): id for w, id in VOCABULARY.items()}), "the word <pad>"),
    (set_words({("\ud800" if w == "It" else w): id for w, id in VOCABULARY.items()}), "not Unicode text"),
    (set_words([1, 2]), "not a JSON object"),
    (set_argument("experiment_mode", "conditional_gen"), "conditional_gen"),
    (set_argument("model_arch", "conv-unet"), "a U-Net, as for images"),
    (set_argument("model_arch", "1d-unet"), "a U-Net, as for images"),
    (set_argument("class_cond", True), "conditioned on classes"),
    (set_argument("learn_sigma", True), "predicts variances"),
    (set_argument("predict_xstart", False), "predicts the noise"),
    (set_argument("logits_mode", 2), "rounds by distance"),
    (set_argument("training_mode", "emb"), "embeddings were not trained"),
    (set_argument("noise_schedule", "pw_lin"), "noise schedule that is not known"),
    (set_argument("noise_schedule", []), "noise schedule that is not known"),
    (set_argument("use_bert_tokenizer", "yes"), "word pieces"),
    (set_argument("diffusion_steps", 1), "2 to 100000 levels"),
    (set_argument("diffusion_steps", "2000"), "must be a whole number"),
    (set_argument("diffusion_steps", 10**12), "2 to 100000 levels"),
    (set_argument("image_size", 5), "max_length 25 is beyond the 20 positions"),
    (set_argument("dropout", "much"), "could not convert"),
    (set_state(lm_head__bias=None), "the tensor word_bias is missing"),
    (set_state(lm_head__weight=None), "has no lm_head.weight"),
    (set_state(lm_head__weight=torch.zeros(3)), "no matrix"),
    (set_state(encoder_emb__weight=torch.zeros(3, 3)), "has a tensor encoder_emb.weight"),
    (set_state(input_up_proj__0__weight=torch.zeros(3, 3)), "input_up_proj.0.weight has the shape"),
    (set_state(LayerNorm__bias=torch.full((original.WIDTH,), math.nan)), "not finite"),
    (set_state(LayerNorm__bias=torch.zeros(original.WIDTH).to_sparse()), "no plain tensor"),
]


@pytest.mark.parametrize(("damage", "line"), DAMAGES, ids=[line for _, line in DAMAGES])
def test_what_cannot_be_imported_is_refused_in_one_line(
    folder: Path, damage: Any, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    damage(folder)
    with pytest.raises(CtrlgenError, match=line) as refused:
        import_checkpoint(folder, heads=original.HEADS)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "ran").exists()


def test_heads_that_do_not_fit_are_refused(folder: Path) -> None:
    with pytest.raises(CtrlgenError, match="hidden size 24 is no multiple of 64: give --heads"):
        import_checkpoint(folder)
    with pytest.raises(CtrlgenError, match="width 24 must be a multiple of heads 5"):
        import_checkpoint(folder, heads=5)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ctrlgen", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_writes_a_model_and_nothing_where_it_fails(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    refused = run("import", folder, "--out", out)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert not list(tmp_path.glob("*model*"))
    done = run("import", folder, "--out", out, "--heads", original.HEADS)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob(".*"))
    again = run("import", folder, "--out", out, "--heads", original.HEADS)
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    texts = run("generate", "--model", out, "--steps", 5, "--clamp", "--json", "-n", 2)
    assert texts.returncode == 0, texts.stderr
    assert len(texts.stdout.splitlines()) == 2
    too_many = run("generate", "--model", out, "--steps", original.STEPS + 1)
    assert (too_many.returncode, too_many.stdout) == (2, "")
    assert "100 noise levels" in too_many.stderr
    texts_file = tmp_path / "texts.txt"
    texts_file.write_text("It serves cheap food .\n" * 20, encoding="utf-8")
    trained = run("train", "--init", out, "--data", texts_file, "--out", tmp_path / "trained", "--steps", 1)
    assert (trained.returncode, trained.stderr.splitlines()[-1][:8]) == (2, "ctrlgen:")
    assert "an imported checkpoint cannot be trained further" in trained.stderr


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the checkpoint with the original's own numbers is not here")
class TestPublished:
    """A small checkpoint with what the original's code computes from it."""

    @pytest.fixture(scope="class")
    def model(self) -> DiffusionLM:
        return import_checkpoint(PUBLISHED, heads=4)[0]

    @pytest.fixture(scope="class")
    def expected(self) -> dict[str, Tensor]:
        return load_file(PUBLISHED / "expected.safetensors")

    def test_network(self, model: DiffusionLM, expected: dict[str, Tensor]) -> None:
        denoiser, _ = network(model)
        x0_hat, _ = denoiser.predict(expected["x_t"], expected["t"])
        torch.testing.assert_close(x0_hat, expected["x0_hat"], **CLOSE)
        torch.testing.assert_close(denoiser.rounding_logits(x0_hat), expected["logits"], **CLOSE)

    def test_tables(self, model: DiffusionLM, expected: dict[str, Tensor]) -> None:
        _, schedule = network(model)
        alpha_bar = torch.sigmoid(schedule.log_snrs)
        before = torch.cat([torch.tensor([math.inf]), schedule.log_snrs[:-1]])
        zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        mean_of_x_t, variance = posterior(one.expand(2000), zero, before, schedule.log_snrs)
        mean_of_x_0, _ = posterior(zero.expand(2000), one, before, schedule.log_snrs)
        tables = {
            "alphas_cumprod": alpha_bar,
            "betas": 1.0 - alpha_bar / torch.cat([one, alpha_bar[:-1]]),
            "posterior_variance": variance,
            "posterior_mean_coef1": mean_of_x_0,
            "posterior_mean_coef2": mean_of_x_t,
            "respaced200_alphas_cumprod": torch.sigmoid(schedule.steps(200).flip(0)),
        }
        for name, table in tables.items():
            torch.testing.assert_close(table, expected[name], rtol=1e-9, atol=1e-12, msg=name)
        assert schedule.spaced(200) == expected["respaced200_timestep_map"].tolist()
        assert schedule.spaced(2000) == list(range(2000))

    @pytest.mark.parametrize("clamped", [False, True])
    def test_reverse_step(self, model: DiffusionLM, expected: dict[str, Tensor], clamped: bool) -> None:
        ending = "_clamped" if clamped else ""
        x_0, mean, variance = reverse_step(model, expected["x_t"], expected["t"], list(range(2000)), clamped)
        torch.testing.assert_close(x_0, expected["pred_xstart" + ending], **CLOSE)
        torch.testing.assert_close(mean, expected["mean" + ending], **CLOSE)
        torch.testing.assert_close(variance.float(), expected["variance"][:, 0, 0], **CLOSE)
        noisy = expected["t"] > 0  # at 0 the original writes the next level's variance, and draws no noise
        torch.testing.assert_close(variance.log().float()[noisy], expected["log_variance"][noisy, 0, 0], **CLOSE)

    def test_reverse_step_respaced(self, model: DiffusionLM, expected: dict[str, Tensor]) -> None:
        _, schedule = network(model)
        x_0, mean, variance = reverse_step(model, expected["x_t"], expected["respaced200_t"], schedule.spaced(200))
        torch.testing.assert_close(x_0, expected["respaced200_x0_hat"], **CLOSE)
        torch.testing.assert_close(mean, expected["respaced200_mean"], **CLOSE)
        torch.testing.assert_close(variance.float(), expected["respaced200_variance"][:, 0, 0], **CLOSE)
