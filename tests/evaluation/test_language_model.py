"""Language models: what a text costs by hand, draws against probabilities, training, and one line for every mistake."""

import json
import math
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Run
from torch import Tensor
from toy_grammar import WORDS, toy_sentences
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ctrlgen import checkpoint
from ctrlgen.checkpoint import CONFIG, WEIGHTS, DiffusionLM, directories_of, from_pretrained
from ctrlgen.cli import display
from ctrlgen.errors import CtrlgenError
from ctrlgen.evaluation import language_model
from ctrlgen.evaluation.cost_models import cost_models_of
from ctrlgen.evaluation.language_model import CausalLM, LanguageModel, new_lm, pick
from ctrlgen.evaluation.train_language_model import save_lm, split_ids, train_lm
from ctrlgen.files import atomic_file
from ctrlgen.text.tokenizer import WordTokenizer
from ctrlgen.training.fit import Progress, TrainingConfig

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TRAINING = TrainingConfig(
    steps=120, tokens_per_batch=512, warmup_steps=5, lr=0.005, ema=0.95, precision="float32", log_every=20,
    validate_every=60,
)  # fmt: skip
TEXTS = [["a", "cat", "."], ["the", "old", "dog", "."], ["a", "zebra", "."], ["cat"], [], ["a", "dog", "."]]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "SIZE", SMALL)


def make_lm(words: list[str], max_length: int = 12) -> LanguageModel:
    """An untrained language model with strong opinions."""
    tokenizer = WordTokenizer.train([" ".join(words)] * 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lm = new_lm(tokenizer, max_length)
        with torch.no_grad():
            for parameter in lm.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return LanguageModel(lm, tokenizer)


@pytest.fixture
def lm() -> LanguageModel:
    return make_lm([word for words in WORDS.values() for word in words])


@torch.no_grad()
def next_word(lm: Any, ids: list[int]) -> Tensor:
    """log p(word | ids), (V,), by one whole forward pass."""
    return lm(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)


def cost_by_hand(lm: Any, ids: list[int]) -> float:
    """Nats a token of all ids but the first, one word at a time."""
    return -sum(float(next_word(lm, ids[:i])[ids[i]]) for i in range(1, len(ids))) / (len(ids) - 1)


# Costs


def test_costs_are_those_of_one_word_at_a_time(lm: LanguageModel) -> None:
    end = lm.tokenizer.end_id
    by_hand = [cost_by_hand(lm.lm, [end, *lm.tokenizer.ids(words), end]) for words in TEXTS]
    assert lm.costs(TEXTS) == pytest.approx(by_hand, rel=1e-5)
    assert lm.costs([]) == []


def test_costs_do_not_depend_on_company(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [words for words, _ in toy_sentences(60)]
    together = lm.costs(texts)
    assert together == pytest.approx([cost for text in texts for cost in lm.costs([text])], rel=1e-5)
    monkeypatch.setattr(language_model, "SCORED_TOKENS", 20)
    assert lm.costs(texts[::-1])[::-1] == pytest.approx(together, rel=1e-5)


def test_unknown_words_cost_what_unk_costs(lm: LanguageModel) -> None:
    zebra, yak = lm.costs([["a", "zebra", "."], ["a", "yak", "."]])
    assert zebra == yak == pytest.approx(lm.costs([["a", "<unk>", "."]])[0])


# Draws


def test_pick_inverts_the_cumulative_distribution() -> None:
    logits = torch.tensor([0.0, 0.5, 0.2, 0.0, 0.3, 0.0]).log().expand(5, -1)
    rolls = torch.tensor([0.0, 0.499, 0.501, 0.699, 0.999999], dtype=torch.float64)
    assert pick(logits, rolls).tolist() == [1, 1, 2, 2, 4]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_the_probabilities(temperature: float) -> None:
    lm = make_lm(["a", "b", "c"])
    tokenizer, end = lm.tokenizer, lm.tokenizer.end_id
    spoken = [end, *tokenizer.ids(["a", "b", "c"])]

    def probabilities(ids: list[int]) -> dict[int, float]:
        chosen = (next_word(lm.lm, ids)[spoken] / temperature).softmax(0)
        return dict(zip(spoken, chosen.tolist(), strict=True))

    expected: dict[str, float] = {}
    for first, p in probabilities([end]).items():
        for second, q in probabilities([end, first]).items() if first != end else {end: 1.0}.items():
            text = " ".join(tokenizer.decode([first, second]))
            expected[text] = expected.get(text, 0.0) + p * q
    assert sum(expected.values()) == pytest.approx(1.0)
    count = 6000
    drawn = Counter(" ".join(words) for words in lm.draw(range(count), temperature=temperature, max_length=2))
    assert drawn.keys() <= expected.keys()
    for text, p in expected.items():
        assert abs(drawn[text] - count * p) <= 4.5 * math.sqrt(count * p * (1 - p)) + 1


def test_a_draw_depends_on_its_seed_alone(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    together = lm.draw(range(3, 20))
    assert len({tuple(words) for words in together}) > 10
    assert len({len(words) for words in together}) > 3
    assert together == [words for seed in range(3, 20) for words in lm.draw([seed])]
    monkeypatch.setattr(language_model, "DRAWN_TEXTS", 5)
    assert lm.draw(range(19, 2, -1)) == together[::-1]


def test_draws_hold_no_special_token_and_end_in_time(lm: LanguageModel) -> None:
    for words in lm.draw(range(100), max_length=4):
        assert len(words) <= 4
        assert all(word in lm.tokenizer for word in words)
    assert max(len(words) for words in lm.draw(range(100))) <= 12


def test_adjust_decides_what_is_drawn(lm: LanguageModel) -> None:
    wanted = [["a", "cat", "."], [], ["the", "dog"], ["a"], ["a", "cat", "."]]
    prefixes = []

    def follow(words: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        assert logits.shape == (len(rows), len(lm.tokenizer))
        assert logits[:, [lm.tokenizer.pad_id, lm.tokenizer.unk_id]].isneginf().all()
        t = words.shape[1]
        prefixes.append({row: lm.tokenizer.decode(ids) for row, ids in zip(rows.tolist(), words.tolist(), strict=True)})
        ids = [[*lm.tokenizer.ids(wanted[row]), lm.tokenizer.end_id][t] for row in rows.tolist()]
        return torch.full_like(logits, -math.inf).scatter(1, torch.tensor(ids)[:, None], 0.0)

    assert lm.draw(range(5), adjust=follow) == wanted
    for t, prefix in enumerate(prefixes):
        assert prefix == {row: words[:t] for row, words in enumerate(wanted) if len(words) >= t}


def test_cached_logits_are_those_of_the_whole_prefix(lm: LanguageModel) -> None:
    """Also where texts have left the batch, and behind prompts of several lengths."""
    prompts = [lm.tokenizer.ids(words) for words in (["red"], ["old", "red"], ["small"], ["red"], [])] * 4

    def compare(words: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        for row, ids, got in zip(rows.tolist(), words.tolist(), logits, strict=True):
            whole = next_word(lm.lm, [*prompts[row], lm.tokenizer.end_id, *ids])
            kept = got.isfinite()
            assert torch.allclose(got.log_softmax(-1)[kept], whole[kept].log_softmax(-1), atol=1e-4)
        return logits

    drawn = lm.draw(range(20), prompts=prompts, adjust=compare)
    assert drawn == [words for i in range(20) for words in lm.draw([i], prompts=[prompts[i]])]
    assert drawn != lm.draw(range(20))


# Training


@pytest.fixture(scope="module")
def trained(toy_model: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    """A copy of the toy model with a language model trained beside it, and the run's events."""
    directory = Path(shutil.copytree(toy_model, tmp_path_factory.mktemp("lm") / "toy"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_model, "SIZE", SMALL)
        model = from_pretrained(str(directory))
        yield directory, list(train_lm(model, str(toy_data), None, None, TRAINING, directory / "lm"))


def unigram_cost(tokenizer: WordTokenizer, training: list[list[str]], texts: list[list[str]]) -> float:
    counts = Counter(id for words in training for id in [*tokenizer.ids(words), tokenizer.end_id])
    nats = [-math.log(counts[id] / counts.total()) for w in texts for id in [*tokenizer.ids(w), tokenizer.end_id]]
    return sum(nats) / len(nats)


def test_training_learns_the_grammar(trained: tuple[Path, list[Progress]]) -> None:
    directory, events = trained
    losses = [event.loss for event in events if event.validation is None]
    assert losses[-1] < 0.6 * losses[0]
    model = from_pretrained(str(directory))
    unseen = [words for words, _ in toy_sentences(200, seed=1)]
    costs = LanguageModel.load(model).costs(unseen)
    mean = sum(c * (len(w) + 1) for c, w in zip(costs, unseen, strict=True)) / sum(len(w) + 1 for w in unseen)
    seen = [words for words, _ in toy_sentences(600)]
    assert mean < 0.6 * unigram_cost(model.tokenizer, seen, unseen)
    assert events[-1].validation is not None
    assert events[-1].validation["validation_cost"] == pytest.approx(mean, abs=0.1)
    shuffled = [words[::-1] for words in unseen]
    assert min(LanguageModel.load(model).costs(shuffled)) > max(costs)


def test_what_is_written(trained: tuple[Path, list[Progress]]) -> None:
    lm = trained[0] / "lm"
    assert {path.name for path in lm.iterdir()} == {
        CONFIG,
        WEIGHTS,
        "metrics.jsonl",
        "resume.safetensors",
        "slips.safetensors",
    }
    config = json.loads((lm / CONFIG).read_text())
    assert (config["model_type"], config["dtype"], config["tie_word_embeddings"]) == ("llama", "float16", True)
    assert (lm / WEIGHTS).stat().st_size < 2.2 * sum(
        p.numel() for p in LlamaForCausalLM.from_pretrained(lm).parameters()
    )
    assert (lm / WEIGHTS).stat().st_mode & 0o777 == 0o644


def test_validation_texts_are_used(toy_model: Path, toy_data: Path, tmp_path: Path) -> None:
    model = from_pretrained(str(toy_model))
    held_out = tmp_path / "valid.jsonl"
    held_out.write_text('{"text": "dog dog dog"}\n' * 3 + '{"text": "the cat ."}\n')
    config = TrainingConfig(steps=1, tokens_per_batch=64, precision="float32")
    *_, last = train_lm(model, str(toy_data), str(held_out), None, config, tmp_path / "lm")
    one, other = LanguageModel(
        LlamaForCausalLM.from_pretrained(tmp_path / "lm", dtype=torch.float32), model.tokenizer
    ).costs([["dog"] * 3, ["the", "cat", "."]])
    assert last.validation is not None
    assert last.validation["validation_cost"] == pytest.approx((3 * one + other) / 4, rel=1e-3)


def test_no_held_out_text_is_learned_from(toy_model: Path, toy_data: Path) -> None:
    """Equal texts are on one side, of which the toy sentences have many."""
    training, held_out = split_ids(from_pretrained(str(toy_model)), str(toy_data), None, None)
    assert len(training) + len(held_out) == 600
    texts = {tuple(ids) for ids in held_out}
    assert len(texts) < len(held_out)
    assert texts.isdisjoint(map(tuple, training))


def test_too_few_texts(toy_model: Path, tmp_path: Path) -> None:
    model, data = from_pretrained(str(toy_model)), tmp_path / "few.txt"
    data.write_text("the cat sees the dog .\n" * 30)
    with pytest.raises(CtrlgenError, match="only 1 different usable texts"):
        next(train_lm(model, str(data), None, "text", TRAINING, tmp_path / "lm"))
    data.write_text(" ".join(["cat"] * 13) + "\n")
    with pytest.raises(CtrlgenError, match=r"1 texts read, 0 used, 1 longer than 12 words"):
        next(train_lm(model, str(data), None, "text", TRAINING, tmp_path / "lm"))


# Loading


@pytest.fixture
def saved(trained: tuple[Path, Any], tmp_path: Path) -> DiffusionLM:
    """A model with a language model, which a test may damage."""
    return from_pretrained(str(shutil.copytree(trained[0], tmp_path / "model")))


def truncate(lm: Path) -> None:
    (lm / WEIGHTS).write_bytes((lm / WEIGHTS).read_bytes()[:-10])


def change(lm: Path, **values: Any) -> None:
    config = json.loads((lm / CONFIG).read_text()) | values
    (lm / CONFIG).write_text(json.dumps(config))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (shutil.rmtree, "model has no language model yet: run `ctrlgen train-lm` first"),
    "truncated": (truncate, "cannot be loaded as a language model"),
    "no weights": (lambda lm: (lm / WEIGHTS).unlink(), "cannot be loaded as a language model"),
    "no JSON": (lambda lm: (lm / CONFIG).write_text("{"), "cannot be read as JSON"),
    "other words": (lambda lm: change(lm, vocabulary="0" * 16), "other words"),
    "other vocabulary size": (lambda lm: change(lm, vocab_size=99), "other words"),
    "another width": (lambda lm: change(lm, intermediate_size=65), "do not fit"),
    "another layer": (lambda lm: change(lm, num_hidden_layers=3), r"lack model\.layers\.2\."),
    "unknown kind": (lambda lm: change(lm, model_type="nothing"), "cannot be loaded"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_language_models_are_named_in_one_line(
    saved: DiffusionLM, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert saved.directory is not None
    damage, message = DAMAGE[name]
    damage(saved.directory / "lm")
    with pytest.raises(CtrlgenError, match=message) as raised:
        LanguageModel.load(saved)
    assert "\n" not in str(raised.value)
    assert "ctrlgen train-lm" in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_texts_are_measured_without_transformers(saved: DiffusionLM) -> None:
    (domain,), notes = cost_models_of(saved, None, ())
    assert (domain.name, notes) == ("domain LM", [])
    assert domain.costs(TEXTS) == pytest.approx(LanguageModel.load(saved).costs(TEXTS), rel=1e-4)
    code = (
        "import sys, ctrlgen.evaluation.cost_models, ctrlgen.domain.verdict; assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["missing", "truncated", "other words", "another layer"])
def test_without_a_language_model_that_fits_the_cost_is_left_empty(saved: DiffusionLM, name: str) -> None:
    assert saved.directory is not None
    DAMAGE[name][0](saved.directory / "lm")
    cost_models, (note,) = cost_models_of(saved, None, ())
    assert cost_models == []
    assert note.startswith("cost under the domain's LM is left empty: ")
    assert ("\n" not in note, "run `ctrlgen train-lm` first" in note) == (True, name == "missing")


def test_a_bundled_model_has_its_language_model_in_the_users_directory_first(
    saved: DiffusionLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert saved.directory is not None
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    bundled = {"model": saved.directory}
    monkeypatch.setattr(checkpoint, "bundled_models", lambda: bundled)
    own = tmp_path / "home" / "ctrlgen" / "lm" / "model"
    assert directories_of(saved, "lm") == [own, saved.directory / "lm"]
    before = LanguageModel.load(saved).costs(TEXTS)
    own.mkdir(parents=True)
    save_lm(new_lm(saved.tokenizer, 12), own)
    assert LanguageModel.load(saved).costs(TEXTS) != pytest.approx(before)


def test_it_is_trained_on_the_models_device(
    saved: DiffusionLM, toy_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr("ctrlgen.training.fit.fit", lambda *_, device, **others: asked.append(device) or [])
    monkeypatch.setattr(DiffusionLM, "device", property(lambda self: torch.device("cpu:0")))
    assert saved.directory is not None
    assert list(train_lm(saved, str(toy_data), None, None, TRAINING, saved.directory / "lm")) == []
    assert asked == [torch.device("cpu:0")]


# The command line


@pytest.fixture
def train_lm_command(ctrlgen: Run) -> Callable[..., tuple[int, str]]:
    """Exit code and standard error of `ctrlgen train-lm`."""

    def run(*arguments: object) -> tuple[int, str]:
        outcome = ctrlgen("train-lm", *arguments)
        assert outcome.out == ""
        return outcome.code, outcome.err

    return run


def test_the_command_writes_beside_the_model_and_asks_before_it_replaces(
    train_lm_command: Any, model_copy: Path, toy_data: Path
) -> None:
    arguments = ("--model", model_copy, "--data", toy_data, "--steps", 2)
    code, err = train_lm_command(*arguments)
    assert code == 0
    assert err.endswith(f"language model written to {model_copy / 'lm'}\n")
    assert "validation cost" in err
    assert {path.name for path in (model_copy / "lm").iterdir()} == {
        CONFIG,
        WEIGHTS,
        "metrics.jsonl",
        "slips.safetensors",
    }
    assert not (model_copy / ".lm.partial").exists()
    first = LanguageModel.load(from_pretrained(str(model_copy))).costs(TEXTS)
    message = f"ctrlgen: {model_copy / 'lm'}: already holds a language model; use --force or choose another --out\n"
    assert train_lm_command(*arguments) == (1, message)
    assert train_lm_command(*arguments, "--force", "--seed", 1)[0] == 0
    assert LanguageModel.load(from_pretrained(str(model_copy))).costs(TEXTS) != pytest.approx(first)


def test_an_interrupted_run_continues(
    train_lm_command: Any, model_copy: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--model", model_copy, "--data", toy_data, "--steps", 25, "--tokens-per-batch", 256)
    assert train_lm_command(*arguments, "--out", tmp_path / "whole")[0] == 0
    follow = display.follow_training

    def interrupt(events: Iterator[Progress], resumable: bool = False) -> None:
        for _ in events:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(display, "follow_training", interrupt)
    hint = "ctrlgen: stopped; the same command with --resume goes on from here\n"
    assert train_lm_command(*arguments) == (130, f"{hint}ctrlgen: interrupted\n")
    assert not (model_copy / "lm").exists()
    monkeypatch.setattr(display, "follow_training", follow)
    code, err = train_lm_command(*arguments, "--lr", 0.1, "--resume")
    assert (code, "training.lr changed" in err) == (2, True)
    assert train_lm_command(*arguments, "--resume")[0] == 0
    assert (model_copy / "lm" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--data", "no.jsonl"), 1, "no.jsonl: no such file"),
        (("--data", "{data}", "--text-column", "txt"), 2, "no column 'txt'; columns: text, tags. Did you mean text?"),
        (("--data", "{data}", "--resume"), 1, "nothing to resume"),
        (("--data", "{data}", "--out", "{data}"), 1, "holds something else than a language model"),
        (("--data", "{data}", "--out", "{model}", "--force"), 1, "holds something else than a language model"),
        (("--data", "{data}", "--model", "nothing"), 1, "no model 'nothing'"),
        (("--data", "{data}", "--steps", "0"), 2, "--steps"),
        ((), 2, "--data"),
    ],
)
def test_mistakes_cost_one_line(
    train_lm_command: Any, model_copy: Path, toy_data: Path, options: tuple[str, ...], code: int, message: str
) -> None:
    filled = [option.format(data=toy_data, model=model_copy) for option in options]
    model = () if "--model" in options else ("--model", model_copy)
    got, err = train_lm_command(*model, *filled)
    assert (got, err.count("\n")) == (code, 1)
    assert message in err
    assert not list(model_copy.glob("*lm*"))
    assert (model_copy / WEIGHTS).is_file()


# Any causal LM


@pytest.fixture
def hub_lm(lm: LanguageModel, tmp_path: Path) -> Path:
    """A language model as the hub has them: 32 tokens at most, `<end>` in front."""
    directory = tmp_path / "hub"
    with atomic_file(tmp_path / "tokenizer.json") as path:
        path.write_text(lm.tokenizer.to_json())
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), bos_token="<end>", unk_token="<unk>")
    tokenizer.save_pretrained(directory)
    config = LlamaConfig(vocab_size=len(lm.tokenizer), max_position_embeddings=32, **SMALL)  # type: ignore[arg-type]
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def test_any_causal_lm_costs_plain_text(hub_lm: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cost_model = CausalLM.load(str(hub_lm))
    assert capfd.readouterr() == ("", "")
    texts = ["the old cat sees a dog .", "a cat", "the red dog ."]
    ids = [[cost_model.tokenizer.bos_token_id, *cost_model.tokenizer.encode(text)] for text in texts]
    assert [len(row) for row in ids] == [8, 3, 5]
    assert cost_model.costs(texts) == pytest.approx([cost_by_hand(cost_model.lm, row) for row in ids], rel=1e-5)


@pytest.mark.parametrize(("text", "message"), [("", "too short"), ("cat " * 32, "has 33 tokens, more than the 32")])
def test_texts_that_a_causal_lm_cannot_read(hub_lm: Path, text: str, message: str) -> None:
    with pytest.raises(CtrlgenError, match=message):
        CausalLM.load(str(hub_lm)).costs(["the cat", text])


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        ({}, "nothing/", "no such file or directory"),
        ({"a.gguf": b"", "b.gguf": b""}, "", "holds several models; give one: "),
        ({"a.gguf": b"GGUF"}, "", "cannot be loaded as a language model|pip install gguf"),
        ({"a.gguf": b"GGUF"}, "a.gguf", "cannot be loaded as a language model|pip install gguf"),
        ({CONFIG: b"{}"}, "", "cannot be loaded as a language model"),
        ({}, "", "cannot be loaded as a language model"),
    ],
)
def test_places_without_a_causal_lm(
    tmp_path: Path, files: dict[str, bytes], name: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    with pytest.raises(CtrlgenError, match=message) as raised:
        CausalLM.load(str(tmp_path / name))
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_a_causal_lm_without_a_tokenizer(hub_lm: Path) -> None:
    for path in hub_lm.glob("*token*"):
        path.unlink()
    with pytest.raises(CtrlgenError, match="its tokenizer cannot be loaded"):
        CausalLM.load(str(hub_lm))


def test_weights_that_lack_something(hub_lm: Path) -> None:
    change(hub_lm, num_hidden_layers=3)
    with pytest.raises(CtrlgenError, match=r"its weights lack model\.layers\.2\."):
        CausalLM.load(str(hub_lm))
