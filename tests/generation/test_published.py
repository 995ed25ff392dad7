"""Published checkpoints in use: texts between START and END, Diffusion-LM's guidance and infilling, classifiers."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import original_checkpoint as original
import pytest
import torch
from torch import Tensor
from toy_grammar import toy_sentences

from ctrlgen.checkpoint import DiffusionLM, from_pretrained
from ctrlgen.controls.registry import classifier_kinds
from ctrlgen.data.texts import load_data
from ctrlgen.diffusion.denoiser import Denoised
from ctrlgen.diffusion.process import q_sample
from ctrlgen.generation import denoising
from ctrlgen.generation.batch import Batch
from ctrlgen.generation.generator import Generator, Request, Settings
from ctrlgen.generation.guidance import Guidance, Term, refine, steer
from ctrlgen.generation.jobs import Draws
from ctrlgen.generation.kept import NO_WORD, KeptWords
from ctrlgen.importing import import_checkpoint, save_imported
from ctrlgen.training.fit import TrainingConfig
from ctrlgen_classifiers.label import Label
from ctrlgen_classifiers.pos import Pos

PLACES = original.SIDE**2
TOY_WORDS = sorted({word for words, _ in toy_sentences(600) for word in words})
START, END, UNK, PAD = range(4)


def imported(directory: Path, words: list[str] = original.WORDS, **arguments: Any) -> Generator:
    folder = original.write_folder(directory / "original", words, **arguments)
    save_imported(*import_checkpoint(folder, original.HEADS), directory / "imported")
    return Generator(str(directory / "imported"))


@pytest.fixture
def pad(tmp_path: Path) -> Generator:
    return imported(tmp_path / "pad")


@pytest.fixture
def block(tmp_path: Path) -> Generator:
    return imported(tmp_path / "block", padding_mode="block")


@pytest.fixture(scope="module")
def e2e() -> Generator:
    return Generator("e2e")


def batch_of(generator: Generator, request: Request) -> Batch[Any]:
    return Batch(generator.reader, Draws(generator.model, [request]).first())


def test_texts_are_padded_or_followed_by_the_next(pad: Generator, block: Generator) -> None:
    texts = [[4, 5], [6], list(range(4, 14))]
    for row in pad.model.rows(texts):
        assert len(row) == PLACES
    assert pad.model.rows(texts)[0] == [START, 4, 5, END, *[PAD] * 12]
    followed = block.model.rows(texts)
    assert followed[0] == [START, 4, 5, END, START, 6, END, START, *range(4, 12)]
    assert followed[1] == [START, 6, END, START, *range(4, 14), END, START]
    assert followed[2] == [START, *range(4, 14), END, START, 4, 5, END]
    assert block.model.rows([[4]])[0] == [START, 4, END] * 5 + [START]


def test_classifiers_see_the_places_of_the_text_alone(pad: Generator) -> None:
    x_t = torch.randn(2, PLACES, original.DIM)
    whole = pad.model.denoiser(x_t, torch.zeros(1))
    text = whole.text
    assert torch.equal(text.logits, whole.logits[:, 1:])
    assert [h.shape[1] for h in text.hidden] == [PLACES - 1] * original.LAYERS
    assert text.text is text
    (term,) = batch_of(pad, pad.request(["length: 3"])).terms
    certain = torch.full((1, PLACES, len(original.WORDS)), -100.0)
    for place, id in enumerate([START, 4, 5, 6, END, *[PAD] * 11]):
        certain[0, place, id] = 0.0
    denoised = Denoised(x_t[:1], torch.zeros(1), certain, x_t[:1], (), opening=1)
    assert term.log_prob(denoised).item() == pytest.approx(0.0)


@pytest.mark.parametrize("method", ["gradient", "exact", "paper", "published"])
@pytest.mark.parametrize("clamp", [False, True])
def test_the_same_seed_gives_the_same_text_in_any_company(pad: Generator, method: Any, clamp: bool) -> None:
    settings = Settings(steps=14, guidance=Guidance(method), clamp=clamp)
    requests = [pad.request(["words: pub"], seed=seed) for seed in range(5)]
    together = [sample.tokens for sample in pad.generate(requests, settings)]
    alone = [pad.generate([request], settings)[0].tokens for request in requests]
    assert together == alone
    assert all(word not in ("<start>", "<end>", "<pad>", "<unk>") for words in together for word in words)


def test_exact_guidance_moves_x0_as_the_mean_of_its_words(pad: Generator) -> None:
    (term,) = batch_of(pad, pad.request(["words: pub"])).terms
    denoiser, embeddings = pad.model.denoiser, pad.reader.embeddings
    x_t, log_snr = torch.randn(1, PLACES, original.DIM), torch.zeros(1)
    at_level = partial(denoiser, log_snr=log_snr)
    denoised, shift = steer(at_level, x_t, [term], Guidance("exact"), embeddings, predicts_x0=True)
    plain = denoiser(x_t, log_snr)
    change = term.classifier.word_log_prob(plain.text, term.encoded)
    assert change is not None
    assert torch.equal(denoised.logits[:, 0], plain.logits[:, 0])  # in front of the text
    torch.testing.assert_close(denoised.logits[:, 1:], plain.logits[:, 1:] + change)
    torch.testing.assert_close(shift, denoised.probs @ embeddings - plain.probs @ embeddings)
    assert shift.abs().max() > 0


def test_samples_are_those_of_the_originals_loop(pad: Generator) -> None:
    """x_T, then at each level x_0 clamped, and a draw from the posterior in the original's form; lm_head at the end."""
    state, steps = original.make_state(), 10
    words, bias = state["lm_head.weight"], state["lm_head.bias"]
    (job,) = Draws(pad.model, [pad.request([], seed=3)]).first()
    noise = Batch(pad.reader, [job]).noise()
    levels = pad.model.schedule.spaced(steps)  # type: ignore[operator]
    alpha_bar = torch.sigmoid(pad.model.schedule.log_snrs)[levels]  # type: ignore[index]
    x = noise()
    for i in reversed(range(steps)):
        before = alpha_bar[i - 1] if i else torch.ones((), dtype=torch.float64)
        beta = 1 - alpha_bar[i] / before
        x_0 = original.x0_hat(state, x, torch.tensor([levels[i] * 1000.0 / original.STEPS]))
        x_0 = words[torch.cdist(x_0, words[None]).argmin(-1)]
        mean = beta * before.sqrt() / (1 - alpha_bar[i]) * x_0
        mean = mean + (1 - before) * (1 - beta).sqrt() / (1 - alpha_bar[i]) * x
        x = mean + (beta * (1 - before) / (1 - alpha_bar[i])).sqrt() * noise() if i else mean
        x = x.float()
    logits = x @ words.T + bias
    logits[..., UNK] = -torch.inf
    expected = pad.model.tokenizer.decode(logits.argmax(-1)[0].tolist())
    (sample,) = pad.generate([pad.request([], seed=3)], Settings(steps=steps, clamp=True))
    assert sample.tokens == expected


@pytest.mark.parametrize("infilling", ["conditioned", "replaced"])
def test_blanks_are_filled_and_given_words_kept(pad: Generator, block: Generator, infilling: Any) -> None:
    for generator in (pad, block):
        for template in ("the ___ near ___{2} .", "___ is cheap", "It ___{3}"):
            request = generator.request([], n=3, template=template)
            assert request.template is not None
            for sample in generator.generate([request], Settings(steps=6, infilling=infilling)):
                assert request.template.matches(sample.tokens), sample.text


def test_what_is_given_of_a_sample(pad: Generator, block: Generator) -> None:
    template = "the ___{2} pub"
    pub = original.WORDS.index("pub")
    text = [START, 4, NO_WORD, NO_WORD, pub, END]
    kept = batch_of(pad, pad.request([], template=template)).kept
    assert kept is not None
    assert kept.ids.tolist() == [text + [PAD] * 10]
    kept = batch_of(block, block.request([], template=template)).kept
    assert kept is not None
    assert kept.ids.tolist() == [text + [NO_WORD] * 10]
    assert batch_of(pad, pad.request([])).kept is None
    opened = batch_of(block, block.request([])).kept  # or a sample would begin in the middle of a text
    assert opened is not None
    assert opened.ids.tolist() == [[START] + [NO_WORD] * 15]


def test_replaced_words_are_noised_at_first_and_clean_afterwards() -> None:
    seen: list[Tensor] = []

    def denoiser(x_t: Tensor, log_snr: Tensor, self_condition: Any = None, lengths: Any = None) -> Any:
        seen.append(x_t)

    embeddings, noisiest = torch.randn(5, 2), torch.tensor(-4.0)
    denoise = KeptWords(torch.tensor([[NO_WORD, 3]])).replaced(denoiser, embeddings, noisiest)
    x_t = torch.randn(1, 2, 2)
    for log_snr in (-4.0, -1.0, 3.0):
        denoise(x_t, torch.tensor([log_snr]))
    assert all(torch.equal(x[:, 0], x_t[:, 0]) for x in seen)
    assert torch.equal(seen[0][:, 1], q_sample(embeddings[3], x_t[:, 1], noisiest))
    assert all(torch.equal(x[0, 1], embeddings[3]) for x in seen[1:])


class Linear:
    """log p = g . x, summed over a text."""

    kind = "pos"

    def __init__(self, gradient: Tensor):
        self.gradient = gradient

    def log_prob(self, denoised: Denoised, encoded: Tensor) -> Tensor:
        return (denoised.x_t * self.gradient).sum((1, 2))

    def parts_of(self, target: range) -> range:
        return target


@pytest.mark.parametrize("kind", ["pos", "span", "label"])
def test_published_updates_are_steps_of_the_learning_rate_along_the_sign(kind: str) -> None:
    coefficient = {"pos": 0.0005, "span": 0.1, "label": 0.01}[kind]
    gradient, mean, start = torch.randn(3, 1, 4, 2)
    classifier: Any = Linear(gradient)
    classifier.published_fluency = classifier_kinds()[kind].published_fluency
    term, variance = Term(classifier, torch.zeros(1, 7), targets=(range(5),)), torch.tensor(0.04)

    def denoiser(x: Tensor, log_snr: Tensor, lengths: Any = None) -> Denoised:
        return Denoised(x, log_snr, x, x, ())

    moved = refine(denoiser, start, mean, variance, torch.zeros(1), None, [term], Guidance("published", paper_lr=0.1))
    x = start
    for _ in range(3):
        slope = 2 * coefficient * (x - mean) / 0.2 - gradient / 5
        x = x - 0.1 * slope.sign()
    torch.testing.assert_close(moved, x)


@pytest.mark.parametrize(
    ("control", "parts"),
    [
        ("pos: DT NN VBZ *", 3),
        ("pos: * * * *", 1),  # nothing but the length
        ("tree: (TOP * * *)", 1),
        ("span: NP 1-2, VP 3-7", 2),
        ("tree: (S (NP * *) (VP serves (NP * *)) .)", 6),  # constituents and words
        ("words: cheap", 1),
        ("food: Japanese", 1),
        ("like: It is cheap .", 1),
    ],
)
def test_published_guidance_takes_the_mean_over_a_targets_parts(e2e: Generator, control: str, parts: int) -> None:
    request = e2e.request([control, "length: 9"] if "words" in control else [control])
    (term, *_) = Batch(e2e.reader, Draws(e2e.model, [request]).first()).terms
    assert term.parts.tolist() == [parts]
    (sample,) = e2e.generate([request], Settings(steps=11, guidance=Guidance("published")))
    assert sample.text


def test_published_guidance_leaves_the_last_ten_steps_alone(pad: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = 0

    def count(denoiser: Any, x_s: Tensor, *rest: Any) -> Tensor:
        nonlocal moved
        moved += 1
        return x_s

    monkeypatch.setattr(denoising, "refine", count)
    for steps, times in ((10, 0), (11, 1), (14, 4)):
        moved = 0
        pad.generate([pad.request(["words: pub"])], Settings(steps=steps, guidance=Guidance("published")))
        assert moved == times


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> DiffusionLM:
    words = [*original.WORDS[:4], *TOY_WORDS]
    return imported(tmp_path_factory.mktemp("toy"), words).model


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("labels") / "toy.jsonl"
    rows = [
        {"text": " ".join(words), "tags": " ".join(tags), "mood": "short" if len(words) < 8 else "long"}
        for words, tags in toy_sentences(200)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("kind", "column", "control"),
    [(Pos, None, "pos: DET NOUN VERB DET NOUN PUNCT"), (Label, "mood", "mood: long")],
)
def test_classifiers_are_trained_on_it_and_guide(
    toy: DiffusionLM, labelled: str, toy_data: Path, kind: Any, column: str | None, control: str
) -> None:
    assert toy.directory is not None
    rows, text_column = load_data(labelled)
    name = control.partition(":")[0]
    config = TrainingConfig(
        steps=12, tokens_per_batch=512, lr=0.005, matrix_lr=0.0, precision="float32", log_every=6,
        checkpoint_every=100, validate_every=12, warmup_steps=2,
    )  # fmt: skip
    events = list(kind.train(toy, name, rows, text_column, column, config, toy.directory / "classifiers" / name))
    assert 0 < events[-1].validation["accuracy"] <= 1
    generator = Generator(str(toy.directory))
    for method in ("gradient", "published"):
        settings = Settings(steps=12, clamp=True, guidance=Guidance(method))  # type: ignore[arg-type]
        (sample,) = generator.generate([generator.request([control])], settings)
        assert 0 <= sample.controls[0].score <= 1


def test_a_model_that_was_imported_says_so(toy: DiffusionLM) -> None:
    assert toy.imported
    assert from_pretrained("e2e").imported is False
