"""Peers: what is kept of what was drawn, Bayes by hand, the time they take, and that they learn toy controls."""

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_language_model import SMALL, TRAINING
from torch import Tensor
from toy_grammar import TAG_OF

from ctrlgen.checkpoint import CONFIG, WEIGHTS, read_config
from ctrlgen.controls.language import check
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.evaluation import language_model
from ctrlgen.evaluation.baselines import best_of, finetuned, fudge, make_baselines, training
from ctrlgen.evaluation.baselines.best_of import PermittedEnds, guide_log_probs
from ctrlgen.evaluation.baselines.finetuned import (
    PROMPTS,
    ConditionalLoss,
    Finetuned,
    FinetuningTask,
    pieces,
    prompted_costs,
)
from ctrlgen.evaluation.baselines.fudge import LENGTH_STRENGTH, TAG_STRENGTH, Asking, Fudge, Future, reweight
from ctrlgen.evaluation.baselines.prefix import END_TAG, LOOKAHEAD, Outputs, PrefixClassifier, PrefixLoss
from ctrlgen.evaluation.baselines.rejection import Rejection
from ctrlgen.evaluation.baselines.training import Known
from ctrlgen.evaluation.language_model import LanguageModel
from ctrlgen.evaluation.train_language_model import train_lm
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.request import Request
from ctrlgen_classifiers import pos

SHORT = replace(TRAINING, steps=150, tokens_per_batch=1024, lr=0.005, validate_every=150, log_every=50)
PATTERN = "pos: DET NOUN VERB DET ADJ NOUN PUNCT"


def toy_tags(texts: Any) -> Iterator[tuple[list[str], list[str]]]:
    for words in texts:
        yield [TAG_OF.get(word, "X") for word in words], [TAG_OF.get(word, "X") for word in words]


@pytest.fixture(scope="module")
def home(toy_model: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the toy model with a language model beside it; tags are known without spaCy."""
    directory = Path(shutil.copytree(toy_model, tmp_path_factory.mktemp("baselines") / "toy"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_model, "SIZE", SMALL)
        patch.setattr(pos, "tag", toy_tags)
        patch.setattr(finetuned, "FINETUNING", replace(SHORT, steps=600))
        patch.setattr(fudge, "FUDGE_TRAINING", SHORT)
        patch.setattr(fudge, "SIZE", {"width": 64, "span_width": 16})
        for _ in train_lm(Generator(str(directory)).model, str(toy_data), None, None, TRAINING, directory / "lm"):
            pass
        yield directory


@pytest.fixture(scope="module")
def toy(home: Path) -> Generator:
    return Generator(str(home))


@pytest.fixture(scope="module")
def lm(toy: Generator) -> LanguageModel:
    return LanguageModel.load(toy.model)


@pytest.fixture(scope="module")
def baselines(toy: Generator, toy_data: Path) -> dict[str, Any]:
    return {
        baseline.name: baseline for baseline in make_baselines(toy, ["rejection", "fudge", "finetuned"], str(toy_data))
    }


def success(requests: Sequence[Request], baseline: Any, seconds: float = 0.0) -> float:
    """Share of the drafts that the oracles accept."""
    verdicts = [
        check([control], [draft.words])[0].success
        for draft in baseline.write(requests, seconds)
        for control in requests[draft.request].controls
    ]
    return sum(map(bool, verdicts)) / len(verdicts)


# Drawing and keeping


def test_a_text_ends_where_it_may_and_must(lm: LanguageModel) -> None:
    ends = PermittedEnds([[2, 4], [1]], 5, lm)
    end = lm.tokenizer.end_id
    logits = torch.zeros(2, len(lm.tokenizer))
    for written, may, must in ((1, [False, True], [False, True]), (2, [True, False], [False, True])):
        adjusted = ends(torch.zeros(2, written, dtype=torch.long), logits, torch.tensor([0, 1]))
        assert (adjusted[:, end] == 0.0).tolist() == may
        others = adjusted.clone()
        others[:, end] = -torch.inf
        assert (others == -torch.inf).all(1).tolist() == must


@pytest.mark.parametrize("name", ["rejection", "fudge", "finetuned"])
def test_drafts_have_permitted_lengths_and_depend_on_seeds(
    toy: Generator, baselines: dict[str, Any], name: str
) -> None:
    requests = [toy.request(["length: 6"], n=2, seed=3), toy.request(["length: 8-9"], seed=20)]
    drafts = baselines[name].write(requests, 0.0)
    assert [(draft.request, draft.index) for draft in drafts] == [(0, 0), (0, 1), (1, 0)]
    assert [len(draft.words) for draft in drafts[:2]] == [6, 6]
    assert len(drafts[2].words) in (8, 9)
    assert drafts == baselines[name].write(requests, 0.0)
    others = [replace(request, seed=request.seed + 1000) for request in requests]
    assert drafts != baselines[name].write(others, 0.0)


def test_rejection_keeps_what_its_guides_prefer(toy: Generator, lm: LanguageModel) -> None:
    baseline = Rejection(toy, lm)
    requests = [toy.request([PATTERN]), toy.request([PATTERN, "words: river"], seed=50), toy.request(["words: cat"])]
    pool: list[Any] = []
    draw = baseline.draw

    def noted(asked: Sequence[Request], seeds: Sequence[int]) -> list[list[str]]:
        texts = draw(asked, seeds)
        pool.extend(map(tuple, texts))
        return texts

    baseline.draw = noted  # type: ignore[method-assign]
    drafts = baseline.write(requests, 1.0)
    assert len(pool) > 60
    for draft in drafts:
        fitting = [text for text in pool if len(text) in baseline.lengths(requests[draft.request])]
        pairs = [(draft.request, number) for number in range(len(fitting))]
        scores = guide_log_probs(toy.reader, toy.workers, requests, fitting, pairs)
        best = max(scores.values())
        assert scores[draft.request, fitting.index(draft.words)] >= best - 10.0**-best_of.DIGITS


def test_guide_scores_do_not_depend_on_company(toy: Generator, lm: LanguageModel) -> None:
    requests = [toy.request([PATTERN + " @2"]), toy.request(["words: cat"]), toy.request(["not words: cat"])]
    texts = [tuple(words) for words in lm.draw(range(12))]
    pairs = [(request, text) for request in (1, 2) for text in range(12)]
    pairs += [(0, text) for text in range(12) if len(texts[text]) == 7]
    together = guide_log_probs(toy.reader, toy.workers, requests, texts, pairs)
    assert together.keys() == set(pairs)
    for request, text in pairs[::3]:
        (alone,) = guide_log_probs(toy.reader, toy.workers, [requests[request]], [texts[text]], [(0, 0)]).values()
        assert together[request, text] == pytest.approx(alone, abs=0.05)


def test_time_is_kept(toy: Generator, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text takes a tenth of a second here."""
    clock = [0.0]
    monkeypatch.setattr(best_of.time, "monotonic", lambda: clock[0])
    baseline = Rejection(toy, lm)
    rounds = []

    def draw(requests: Sequence[Request], seeds: Sequence[int]) -> list[list[str]]:
        clock[0] += 0.1 * len(seeds)
        rounds.append(len(seeds))
        assert len(set(seeds)) == len(seeds)
        return [["the", "cat", "."]] * len(seeds)

    monkeypatch.setattr(baseline, "draw", draw)
    requests = [toy.request(["words: cat"], n=2), toy.request(["words: dog"], seed=7)]
    for seconds, expected in ((None, [3]), (0.01, [3]), (0.59, [3]), (0.65, [3, 3]), (60.0, [3, 255, 255, 87])):
        clock[0] = 0.0
        rounds.clear()
        assert len(baseline.write(requests, seconds)) == 3
        assert rounds == expected
        assert clock[0] <= max(seconds or 0.0, 0.3 + 1e-9)


def test_no_held_out_text_is_learned_from_under_another_prompt(lm: LanguageModel) -> None:
    examples = [([control], [text, 1]) for text in range(2, 62) for control in range(4)]
    prompts: Any = SimpleNamespace(tokenizer=lm.tokenizer)
    task = FinetuningTask(lm.lm, prompts, examples, SHORT)
    assert len(task.held_out) == 3 * 4
    assert {text[0] for _, text in task.held_out}.isdisjoint(text[0] for _, text in task.examples)


def test_what_cannot_be_asked_is_left_out_and_told_once(
    toy: Generator, baselines: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    blanks = toy.request([], template="the ___{2} sees a dog .")
    with caplog.at_level(logging.WARNING):
        for baseline in baselines.values():
            baseline.notes.clear()
            assert baseline.write([blanks, blanks], 0.0) == []
            assert len(baseline.notes) == 1
            assert baseline.name in baseline.notes[0]
    assert len(caplog.records) == len(baselines)
    for name, control in (
        ("fudge", "not words: cat"), ("fudge", "words: the cat"), ("fudge", "pos: NNP NN ..."),
        ("fudge", "ends: the river"), ("finetuned", "not words: cat"),
    ):  # fmt: skip
        drafts = baselines[name].write([toy.request([control]), toy.request(["words: cat"])], 0.0)
        assert [draft.request for draft in drafts] == [1]


# FUDGE


def test_reweighting_is_bayes_rule() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, log_p = torch.randn(3, 6, generator=generator), torch.rand(3, 6, generator=generator).log()
    candidates = torch.stack([torch.randperm(6, generator=generator) for _ in range(3)])
    p_word, p_control = logits.softmax(-1), log_p.exp()
    expected = p_word * p_control / (p_word * p_control).sum(-1, keepdim=True)
    torch.testing.assert_close(reweight(logits, candidates, log_p.gather(1, candidates)).softmax(-1), expected)
    few = reweight(logits, candidates[:, :2], log_p.gather(1, candidates[:, :2])).softmax(-1)
    assert ((few > 0).sum(-1) == 2).all()


def test_a_perfect_prefix_classifier_gives_the_conditional_distribution() -> None:
    """Texts of three of three words under a first-order model, conditioned on holding word 2 just once."""
    start, step = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.3, 0.3, 0.4]])

    def p(text: Sequence[int]) -> float:
        return float(start[text[0]] * step[text[0], text[1]] * step[text[1], text[2]])

    texts = list(product(range(3), repeat=3))
    fulfilling = {text: p(text) for text in texts if text.count(2) == 1}

    def p_control(prefix: tuple[int, ...]) -> float:
        """p(control | prefix), by enumeration."""
        begun = [text for text in texts if text[: len(prefix)] == prefix]
        return sum(fulfilling.get(text, 0.0) for text in begun) / sum(map(p, begun))

    for text in texts:
        drawn = 1.0
        for place in range(3):
            if p_control(text[:place]) == 0.0:
                drawn = 0.0
                break
            logits = (start if place == 0 else step[text[place - 1]]).log()[None]
            log_p = torch.tensor([[p_control((*text[:place], word)) for word in range(3)]]).log()
            drawn *= float(reweight(logits, torch.arange(3)[None], log_p).softmax(-1)[0, text[place]])
        assert drawn == pytest.approx(fulfilling.get(text, 0.0) / sum(fulfilling.values()), abs=1e-6)


def test_what_is_foreseen_when_drawing_is_what_was_trained(toy: Generator, lm: LanguageModel) -> None:
    """Word by word with cached states, as with the whole text at once."""
    outputs = Outputs(
        Known({"pos": "pos", "food": "field"}, {"food": ["Thai", "French"]}),
        ["DET", "NOUN"],
        ["food"],
        ["NP", "S+VP"],
    )
    torch.manual_seed(0)
    size = {"width": fudge.SIZE["width"], "span_width": 8}
    classifier = PrefixClassifier(outputs, SMALL["hidden_size"], len(lm.tokenizer), 12, **size).eval()
    torch.nn.init.normal_(classifier.to_come_bias)
    baseline = Fudge(toy, lm, outputs, classifier)
    text = torch.tensor(lm.tokenizer.ids(["the", "cat", "sees", "a", "river", "."]))
    cat, river = lm.tokenizer.ids(["cat", "river"])
    asking = Asking(
        tags={0: (1, 1.0), 1: (2, 2.0)}, labels={0: (1, 3.0)}, words=[([river], 0.5), ([cat], 1.0)],
        spans=[((3, 5, 0), 1.0), ((2, 5, 1), 0.7)],
    )  # fmt: skip
    features = PrefixLoss(classifier, lm).features(text[None])[0]  # (7, width)
    remaining, tags = classifier.log_remaining(features), classifier.log_tags(features)
    (labels,) = classifier.log_labels(features)
    embeddings = lm.lm.model.embed_tokens.weight
    to_come = classifier.words_to_come(features, torch.tensor([river, cat]), embeddings).sigmoid().log()
    future = Future(baseline, [asking], [[6]])
    with torch.no_grad(), future.watching(lm):
        for place in range(7):
            word = text[place] if place < 6 else torch.tensor(lm.tokenizer.end_id)
            lm.lm.model(input_ids=torch.cat([torch.tensor([lm.tokenizer.end_id]), text[:place]])[None])
            got = future.log_prob(text[None, :place], word[None, None], torch.tensor([0]))
            expected = 3.0 * labels[place, 1]
            expected += LENGTH_STRENGTH * remaining[place, 5 - place] if place < 6 else 0.0
            asked = {0: (1, 1.0), 1: (2, 2.0), 6: (END_TAG, TAG_STRENGTH)}
            for ahead in range(LOOKAHEAD):
                if place + ahead in asked:
                    tag, weight = asked[place + ahead]
                    expected += weight * tags[place, ahead, tag]
            expected += 0.5 * to_come[place, 0] if place < 4 else 0.0
            expected += to_come[place, 1] if place < 1 else 0.0
            for start, end, chain, weight in ((3, 5, 0, 1.0), (2, 5, 1, 0.7)):
                if end > place:
                    where = [torch.tensor([part]) for part in (chain, start - place, end - place)]
                    expected += weight * float(classifier.spans(features[place], *where).sigmoid().log())
            assert float(got) == pytest.approx(float(expected), abs=1e-4)


# What is learned


@pytest.mark.parametrize(
    ("name", "control"), [("fudge", PATTERN), ("fudge", "words: river, old"), ("finetuned", PATTERN)]
)
def test_a_control_is_learned(
    toy: Generator, lm: LanguageModel, baselines: dict[str, Any], name: str, control: str
) -> None:
    """One draw a text, far above what the language model writes without being asked."""
    requests = [toy.request([control], seed=i) for i in range(50)]
    asked = requests[0].controls[0]
    unasked = check([asked] * 400, lm.draw(range(400)))
    assert success(requests, baselines[name]) > 3 * sum(bool(verdict.success) for verdict in unasked) / 400


def test_fudge_forces_the_beginning(toy: Generator, baselines: dict[str, Any]) -> None:
    assert success([toy.request(["starts: A Small dog"], seed=i) for i in range(5)], baselines["fudge"]) == 1.0


def test_a_prompt_is_of_words_and_of_ids_behind_them(toy: Generator, baselines: dict[str, Any]) -> None:
    baseline: Finetuned = baselines["finetuned"]
    words = toy.model.tokenizer
    ids = baseline.prompt(toy.request(["words: river", PATTERN]), 0)
    assert ids == baseline.prompt(toy.request([PATTERN, "words: river"]), 0)
    assert [i < len(words) for i in ids] == [False] * 8 + [True, False] + [True] * 6
    assert ids[8] == words.ids(["river"])[0]
    assert ids[10:] == [words.pad_id] * 6
    assert baseline.prompt(toy.request(["length: 7"]), 0) == baseline.prompt(toy.request(["length: 7-7"]), 0)


def test_prompted_costs_are_those_of_drawing(baselines: dict[str, Any]) -> None:
    """The whole at once, and word by word with cached states."""
    baseline: Finetuned = baselines["finetuned"]
    prompt, text = (
        baseline.prompts.ids({"words": ["river"], "pos": ["DET", "NOUN", "VERB"]}),
        baseline.lm.tokenizer.ids(["the", "river"]),
    )
    nats: list[Tensor] = []

    def follow(words: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        following = [*text, baseline.lm.tokenizer.end_id][words.shape[1]]
        nats.append(-logits.log_softmax(-1)[0, following])
        return torch.full_like(logits, -torch.inf).index_fill(1, torch.tensor([following]), 0.0)

    unspeakable = baseline.lm.unspeakable
    baseline.lm.unspeakable = torch.zeros_like(unspeakable)
    baseline.lm.draw([0], adjust=follow, prompts=[prompt])
    baseline.lm.unspeakable = unspeakable
    costs = prompted_costs(ConditionalLoss(baseline.lm.lm), [(prompt, text)] * 2, baseline.lm.tokenizer.end_id)
    assert costs == pytest.approx([float(sum(nats)) / 3] * 2, abs=1e-4)


def test_pieces_of_values() -> None:
    assert pieces("cheap, St. John's") == ["cheap", ",", "St", ".", "John", "'", "s"]
    assert pieces("(TOP (S (NP * *) *))", [(0, 3, "S"), (0, 2, "NP")]) == ["(TOP(S(NP*", "*)", "*))"]
    assert pieces("NP 2-3", [(1, 3, "NP")]) == ["(TOP*", "(NP*", "*))"]
    assert pieces("NP 2-3, VP 2-4", [(1, 3, "NP"), (1, 4, "VP")]) == ["(TOP*", "(VP(NP*", "*)", "*))"]


def test_training_is_done_once(
    toy: Generator, baselines: dict[str, Any], toy_data: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = sorted(path.name for path in (home / "baselines").iterdir())
    assert [name.partition("-")[0] for name in kept] == ["finetuned", "fudge"]

    def refuse(*args: Any, **more: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "fit", refuse)
    described = read_config
    monkeypatch.setattr(training, "read_config", lambda path: described(path) | {"measured": {}, "trained_on": "later"})
    request = toy.request(["words: river"])
    for baseline in make_baselines(toy, ["finetuned", "fudge"], str(toy_data)):
        assert baseline.write([request], 0.0) == baselines[baseline.name].write([request], 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(fudge, "FUDGE_TRAINING", replace(SHORT, steps=2))
        with pytest.raises(AssertionError, match="trained again"):
            make_baselines(toy, ["fudge"], str(toy_data))
    monkeypatch.setattr(training, "read_config", lambda path: described(path) | {"values": {"mood": ["good", "bad"]}})
    with pytest.raises(AssertionError, match="trained again"):
        make_baselines(toy, ["finetuned"], str(toy_data))


# One line for every mistake


def test_mistakes(toy: Generator, toy_model: Path, toy_data: Path, tmp_path: Path, home: Path) -> None:
    with pytest.raises(UsageError, match=r"--baseline 'fugde': use rejection, fudge, finetuned. Did you mean fudge\?"):
        make_baselines(toy, ["rejection", "fugde"], None)
    with pytest.raises(UsageError, match="--baseline finetuned is trained before it writes: give --training-data"):
        make_baselines(toy, ["rejection", "finetuned"], None)
    with pytest.raises(CtrlgenError, match="run `ctrlgen train-lm` first"):
        make_baselines(Generator(str(toy_model)), ["rejection"], None)
    few = tmp_path / "few.txt"
    few.write_text("the cat sees a dog .\n" * 30)
    with pytest.raises(CtrlgenError, match="only 1 texts fit the model"):
        make_baselines(toy, ["fudge"], str(few))


def test_damaged_files(toy: Generator, baselines: dict[str, Any], toy_data: Path, home: Path) -> None:
    root = home / "baselines"
    for name, about, damaged in (
        ("fudge", WEIGHTS, b"nothing"), ("fudge", CONFIG, b"{}"), ("fudge", CONFIG, b'{"known": {"names": []}}'),
        ("finetuned", WEIGHTS, b"nothing"), ("finetuned", PROMPTS, b"[1"), ("finetuned", PROMPTS, b'{"own": 1}'),
    ):  # fmt: skip
        (directory,) = root.glob(f"{name}-*")
        saved = (directory / about).read_bytes()
        (directory / about).write_bytes(damaged)
        with pytest.raises(CtrlgenError, match=directory.name) as caught:
            make_baselines(toy, [name], str(toy_data))
        assert "\n" not in str(caught.value)
        (directory / about).write_bytes(saved)
    assert make_baselines(toy, ["fudge", "finetuned"], str(toy_data))
