"""Trees and spans: reading brackets, charts, the best tree, the head's probabilities, what is learned, the oracle."""

import dataclasses
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from command_line import Run
from damage import assert_damage_is_one_clear_error
from datasets import Dataset
from make_toy_model import TOY_TRAINING
from torch import Tensor, nn
from toy_grammar import TAG_OF, toy_sentences

from ctrlgen.checkpoint import DiffusionLM, from_pretrained
from ctrlgen.controls.classifier import Verdict
from ctrlgen.diffusion.denoiser import Denoiser
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.generation.generator import Generator
from ctrlgen.settings import Guidance, Settings
from ctrlgen.training import small
from ctrlgen.training.heads import Example
from ctrlgen.training.trained import ORACLE
from ctrlgen_classifiers import parser, pos, tree
from ctrlgen_classifiers.brackets import Bracketing, Constituent, Leaf, labelled_f1, missing, read_spans, read_tree
from ctrlgen_classifiers.chart import EMPTY, OPEN, Labels, SpanScorer, best_trees, fill_chart, square, upper
from ctrlgen_classifiers.parser import CleanParser, agreement
from ctrlgen_classifiers.pos import parse_pattern
from ctrlgen_classifiers.tree import Span, Syntax, Tree
from ctrlgen_classifiers.tree_head import TreeHead
from ctrlgen_classifiers.treebank import tree_of
from ctrlgen_classifiers.word_vectors import OwnVectors

MakeModel = Callable[..., Denoiser]
TEACHING = dataclasses.replace(TOY_TRAINING, steps=200, validate_every=200, matrix_lr=0.0)
UNGUIDED = Settings(guidance=Guidance(strength=0.0))


def c(text: str) -> Constituent:
    """`S+VP 1-3` as a constituent."""
    (constituent,) = read_spans(text)
    return constituent


def toy_tree(words: list[str], tags: list[str]) -> str:
    """(TOP (S (NP ...) (VP VERB (NP ...)) PUNCT)), or (VP VERB (NP (NP ...) (PP ADP (NP ...)))) with a place."""
    leaves = [f"({tag} {word})" for word, tag in zip(words, tags, strict=True)]
    verb, place = tags.index("VERB"), tags.index("ADP") if "ADP" in tags else len(tags) - 1
    subject, thing, where = leaves[:verb], leaves[verb + 1 : place], leaves[place:-1]
    phrase = f"(NP {' '.join(thing)})"
    if where:
        phrase = f"(NP {phrase} (PP {where[0]} (NP {' '.join(where[1:])})))"
    return f"(TOP (S (NP {' '.join(subject)}) (VP {leaves[verb]} {phrase}) {leaves[-1]}))"


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    return [{"text": " ".join(words), "tree": toy_tree(words, tags)} for words, tags in toy_sentences(count, seed)]


# Brackets


@pytest.mark.parametrize(
    ("text", "leaves", "constituents"),
    [
        ("(S (NP a b) (VP c))", "a b c/VP", ["S 1-3", "NP 1-2"]),
        ("(TOP (S (NP (DT a) (NN b)) (VP (VBZ c))))", "a/DT b/NN c/VBZ", ["S 1-3", "NP 1-2", "VP 3"]),
        ("( (S (VP a b)) )", "a b", ["S+VP 1-2"]),
        ("(ROOT (SBAR (S (VP a b))))", "a b", ["SBAR+S+VP 1-2"]),
        ("(S (NP (NP a)) (VP b c))", "a/NP b c", ["S 1-3", "NP 1", "VP 2-3"]),
        ("(S a (* b c))", "a b c", ["S 1-3", "* 2-3"]),
        ("(* (S a b))", "a b", ["S 1-2"]),
        ("(TOP (S a b) (S c d))", "a b c d", ["S 1-2", "S 3-4"]),
        ("(S\n  (NP -LRB- a -RRB-)\n  b)", "( a ) b", ["S 1-4", "NP 1-3"]),
        ("(. .)", "./.", []),
    ],
)
def test_trees(text: str, leaves: str, constituents: list[str]) -> None:
    words = [leaf.rpartition("/") for leaf in leaves.split()]
    expected = tuple(Leaf(word, tag) if slash else Leaf(tag) for word, slash, tag in words)
    assert read_tree(text) == Bracketing(expected, tuple(map(c, constituents)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NP a b", "a tree begins with a bracket and a label, as in `(S (NP * *) (VP * *))`: character 1, 'NP a b'"),
        (")", "a tree begins with a bracket and a label, as in `(S (NP * *) (VP * *))`: character 1, ')'"),
        ("(S (NP a b) c", "this bracket is never closed: character 1, '(S (NP a b) c'"),
        ("(S (NP a (VP b))", "this bracket is never closed: character 1, '(S (NP a (VP b))'"),
        ("(S a b))", "this bracket closes nothing: character 8, ')'"),
        ("(S a b) (NP c)", "the tree has ended before this: character 9, '(NP c)'"),
        ("(S a (NP) b)", "this bracket holds no word: character 6, '(NP) b)'"),
        ("()", "this bracket holds no word: character 1, '()'"),
    ],
)
def test_wrong_brackets_are_pointed_at(text: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        read_tree(text)
    assert str(raised.value) == f"tree: {message}"


def test_brackets_may_be_deep() -> None:
    deep = read_tree("(S " * 3000 + "a b" + ")" * 3000)
    assert [len(constituent.chain) for constituent in deep.constituents] == [3000]


def test_spans() -> None:
    expected = (Constituent(3, 6, ("NP",)), Constituent(0, 9, ("S", "VP")), Constituent(4, 5, ()))
    assert read_spans("NP 4-6, S+VP 1 – 9 , * 5") == expected
    assert [str(span) for span in expected] == ["NP 4-6", "S+VP 1-9", "* 5"]
    assert read_spans("NP 1-2, NP 1-2") == (c("NP 1-2"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NP", "'NP' is not a label and the numbers of words; write for example `NP 4-6`"),
        ("4-6", "'4-6' is not a label and the numbers of words; write for example `NP 4-6`"),
        ("NP 1-2, VP x-3", "'VP x-3' is not a label and the numbers of words; write for example `NP 4-6`"),
        (",", "no span is given; write for example `NP 4-6`"),
        ("NP 0-2", "'NP 0-2': words are counted from 1"),
        ("NP 6-4", "'NP 6-4' is reversed; write `NP 4-6`"),
        ("NP 1-3, VP 3-5", "'NP 1-3' and 'VP 3-5' cross; one must hold the other or share no word"),
        ("VP 2-6, S 4-9, NP 1-9", "'VP 2-6' and 'S 4-9' cross; one must hold the other or share no word"),
        ("S 1-5, VP 1-5", "'S 1-5' and 'VP 1-5' hold the same words; write `S+VP 1-5`"),
    ],
)
def test_impossible_spans(text: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        read_spans(text)
    assert str(raised.value) == f"span: {message}"


@pytest.mark.parametrize(
    ("wanted", "got", "f1"),
    [
        ("S 1-5, NP 1-2, VP 3-5", "S 1-5, NP 1-2, VP 3-5", 1.0),
        ("S 1-5, NP 1-2, VP 3-5", "S 1-5, NP 1-3, VP 4-5", 1 / 3),  # 1 of 3 and 1 of 3
        ("S 1-5, NP 1-2, VP 3-5", "S 1-5, PP 1-2", 2 / 5),  # the label is wrong
        ("S+VP 1-4, NP 2-4", "VP 1-4", 2 / 4),  # 1 of 3, 1 of 1
        ("VP 1-4, NP 2-4", "S+VP 1-4, NP 2-4", 4 / 5),
        ("* 1-4, NP 2-4", "S 1-4", 2 / 3),
        ("S 1-3, NP 1", "S 1-3, VP 3", 1.0),  # of two words or more
        ("NP 1", "VP 2", 1.0),
        ("NP 1-2", "VP 3-4", 0.0),
    ],
)
def test_labelled_f1(wanted: str, got: str, f1: float) -> None:
    assert labelled_f1(read_spans(wanted), read_spans(got))[0] == pytest.approx(f1)


def test_missing() -> None:
    got = read_spans("S+VP 1-5, NP 2-5, ADJP 2")
    found = read_spans("VP 1-5, NP 2-5, * 2")
    lacking = read_spans("VP 2-4, NP 3-4, NP 2, * 1")
    assert missing(found, got) == []
    assert missing(lacking, got) == list(lacking)
    assert missing((*found, *lacking), got) == list(lacking)
    assert missing(read_spans("VP+S 1-5"), got) == [c("VP+S 1-5")]  # the order counts


# Charts

CHAINS = ["NP", "S", "S+VP", "VP"]


def test_what_fulfils_an_ask() -> None:
    labels = Labels(CHAINS)
    allowed = labels.allowed()
    classes = {"none": 0} | {chain: 1 + i for i, chain in enumerate(CHAINS)}

    def fulfilling(ask: int) -> set[str]:
        return {name for name, id in classes.items() if allowed[ask, id]}

    assert fulfilling(OPEN) == set(classes)
    assert fulfilling(EMPTY) == {"none"}
    assert [fulfilling(EMPTY + classes[chain]) for chain in CHAINS] == [{chain} for chain in CHAINS]
    assert fulfilling(labels.asks_for["VP",]) == {"VP", "S+VP"}
    assert fulfilling(labels.asks_for["S",]) == {"S", "S+VP"}
    assert fulfilling(labels.asks_for["S", "VP"]) == {"S+VP"}
    assert fulfilling(labels.asks_for[()]) == set(CHAINS)
    assert ("VP", "S") not in labels.asks_for


def test_a_rare_chain_is_taken_for_its_beginning() -> None:
    labels = Labels(CHAINS)
    assert labels.class_of(("S", "VP", "NP")) == labels.class_of(("S", "VP")) == 3
    assert labels.class_of(("S", "NP")) == labels.class_of(("S",)) == 2
    assert labels.class_of(("X", "NP")) == 0


def test_a_tree_as_a_chart() -> None:
    chart = Labels(CHAINS).chart([read_tree("(S (NP a b) c)"), read_tree("(X (VP a) (NP b c))")], 3)
    np, s = EMPTY + 1, EMPTY + 2
    assert chart.tolist() == [
        [[EMPTY, np, s], [OPEN, EMPTY, EMPTY], [OPEN, OPEN, EMPTY]],
        [[EMPTY, EMPTY, EMPTY], [OPEN, EMPTY, np], [OPEN, OPEN, EMPTY]],
    ]


def test_cells_that_are_not_asked_for_stay_open() -> None:
    chart = fill_chart([[(0, 2, 7)], [(1, 3, 8), (2, 5, 9)]], [0, 2], 4)
    assert chart[0].nonzero().tolist() == [[0, 1]]
    assert chart[1].tolist() == [[1, 1, 0, 0], [0, 1, 8, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_a_span_is_scored_by_its_ends_and_their_neighbours() -> None:
    torch.manual_seed(0)
    scorer, h = SpanScorer(width=3, hidden=5, classes=4), torch.randn(2, 6, 3)
    scores = scorer(h)
    assert scores.shape == (2, 21, 4)
    cell = square(torch.arange(21)[None], 6)[0]
    padded = torch.cat([torch.zeros(2, 1, 3), h, torch.zeros(2, 1, 3)], 1)
    for i, j in ((0, 0), (0, 5), (2, 4)):
        ends = torch.cat([padded[:, i], padded[:, i + 1], padded[:, j + 1], padded[:, j + 2]], -1)
        weight = torch.cat([scorer.left.weight, scorer.right.weight], -1)
        torch.testing.assert_close(scores[:, cell[i, j]], scorer.output((ends @ weight.T + scorer.left.bias).relu()))
    some = torch.arange(21) % 3 == 1
    torch.testing.assert_close(scorer(h, some), scores[:, some])


@pytest.mark.usefixtures("four_threads")
def test_the_gradient_of_spans_is_the_same_every_time() -> None:
    scorer, h = SpanScorer(width=16, hidden=64, classes=4), torch.randn(1, 40, 16)

    def gradient() -> Tensor:
        return torch.autograd.grad(scorer(h).square().sum(), scorer.left.weight)[0]

    assert all(torch.equal(gradient(), gradient()) for _ in range(20))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_a_single_span_is_scored_alike_in_any_company(n: int) -> None:
    torch.manual_seed(n)
    scorer, h = SpanScorer(width=256, hidden=256, classes=40), torch.randn(8, n, 256)
    wanted = torch.arange(n * (n + 1) // 2) == 0
    together = scorer(h, wanted)
    for row in range(8):
        assert torch.equal(scorer(h[row : row + 1], wanted)[0], together[row])


def binary_trees(start: int, end: int) -> Iterator[list[tuple[int, int]]]:
    """The spans of every binary tree over the words from start to end - 1."""
    if end - start == 1:
        yield [(start, end)]
    for middle in range(start + 1, end):
        for left, right in itertools.product(binary_trees(start, middle), binary_trees(middle, end)):
            yield [(start, end), *left, *right]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
def test_the_best_tree_is_that_of_an_exhaustive_search(n: int) -> None:
    labels, rng = Labels(["A", "B"]), torch.Generator().manual_seed(n)
    log_p = (2 * torch.randn(8, n, n, 3, generator=rng)).log_softmax(-1)
    gain = (log_p - log_p[..., :1]).amax(-1)
    for row, found in enumerate(best_trees(upper(log_p), labels)):
        best = max(sum(float(gain[row, i, j - 1]) for i, j in spans) for spans in binary_trees(0, n))
        classes = {(span.start, span.end): labels.class_of(span.chain) for span in found}
        reached = sum(float(log_p[row, i, j - 1, k] - log_p[row, i, j - 1, 0]) for (i, j), k in classes.items())
        assert reached == pytest.approx(best, abs=1e-4)
        assert not any(i < k < j < m for (i, j), (k, m) in itertools.permutations(classes, 2))
        assert len(classes) == len(found)


def test_a_certain_chart_gives_its_tree_back() -> None:
    trees = [read_tree(row["tree"]) for row in rows(40)]
    labels = Labels(["NP", "PP", "S", "VP"])
    for one in trees:
        n = len(one.leaves)
        classes = labels.chart([one], n) - EMPTY
        log_p = torch.nn.functional.one_hot(classes.clamp(min=0), len(labels)).float().log_softmax(-1)
        assert best_trees(upper(log_p), labels) == [one.constituents]


# The head


@pytest.fixture
def head() -> TreeHead:
    """A head with random weights everywhere, for a trunk of 2 layers of width 16 over 11 words."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        words = nn.Linear(11, 8, bias=False)
        head = TreeHead(Labels(CHAINS), trunk_layers=2, trunk_width=16, words=words, width=8, layers=2).eval()
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return head.requires_grad_(False)


def draw(batch: int, length: int, seed: int = 2) -> Tensor:
    return torch.randn(batch, length, 4, generator=torch.Generator().manual_seed(seed))


def test_the_probabilities_of_all_charts_sum_to_1(head: TreeHead, make_model: MakeModel) -> None:
    """Three cells of two words, five classes each."""
    every = torch.tensor(list(itertools.product(range(EMPTY, EMPTY + 5), repeat=3)))
    charts = torch.zeros(len(every), 2, 2, dtype=torch.long)
    charts[:, 0, 0], charts[:, 0, 1], charts[:, 1, 1] = every.T
    denoised = make_model(perturbed=True)(draw(1, 2).expand(len(every), -1, -1), torch.zeros(len(every)))
    log_p = head.log_prob(denoised, charts).detach()
    assert log_p.shape == (125,)
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-5)
    assert log_p.std() > 0.1  # and are not all alike


def test_an_ask_is_the_sum_of_what_fulfils_it(head: TreeHead, make_model: MakeModel) -> None:
    labels, classes = head.labels, range(EMPTY, EMPTY + 5)
    asks = [*classes, labels.asks_for["VP",], labels.asks_for[()], OPEN]
    charts = torch.zeros(len(asks), 3, 3, dtype=torch.long)
    charts[:, 0, 2] = torch.tensor(asks)
    denoised = make_model(perturbed=True)(draw(1, 3).expand(len(asks), -1, -1), torch.zeros(len(asks)))
    log_p = head.log_prob(denoised, charts)
    none, _, _, s_vp, vp, has_vp, anything, left_open = log_p.exp()
    torch.testing.assert_close(has_vp, s_vp + vp)
    torch.testing.assert_close(anything, 1.0 - none)
    assert float(left_open.detach()) == 1.0
    torch.testing.assert_close(head.log_prob(denoised, charts, 0.3)[0], 0.3 * log_p[0])
    torch.testing.assert_close(head.log_prob(denoised, charts, 0.3)[1:], log_p[1:])


def test_accuracy_is_the_f1_of_each_span_alone(head: TreeHead, make_model: MakeModel) -> None:
    denoised = make_model(perturbed=True)(draw(1, 4), torch.zeros(1))
    guess = square(EMPTY + head(denoised).argmax(-1), 4)
    there = (guess > EMPTY).nonzero()
    assert len(there) > 2
    assert head.accuracy(denoised, guess).tolist() == [1.0]
    wrong = guess.clone()
    wrong[tuple(there[0])] = EMPTY  # one constituent fewer: precision falls, recall stays 1
    right = len(there) - 1
    assert head.accuracy(denoised, wrong).tolist() == pytest.approx([2 * right / (right + len(there))])


@pytest.mark.parametrize("training", [False, True])  # torch has two implementations of the block
def test_padding_changes_nothing(head: TreeHead, make_model: MakeModel, training: bool) -> None:
    head.train(training)
    model, x_t, log_snr = make_model(perturbed=True), draw(2, 7), torch.tensor([0.3, -1.0])
    together = head(model(x_t, log_snr, lengths=torch.tensor([4, 7])))
    cell = square(torch.arange(28)[None], 7)[0]
    for row, length in enumerate((4, 7)):
        alone = head(model(x_t[row : row + 1, :length], log_snr[row : row + 1]))
        torch.testing.assert_close(
            together[row, upper(cell[None, :length, :length])[0]], alone[0], rtol=1e-4, atol=1e-5
        )


def test_the_gradient_is_that_of_finite_differences(head: TreeHead, make_model: MakeModel) -> None:
    head, model = head.double(), make_model(perturbed=True).double()
    lengths, asks = torch.tensor([5, 3]), head.labels.asks_for
    chart = fill_chart([[(0, 5, asks["S",]), (1, 3, asks["VP",])], [(0, 2, asks[()])]], [5, 0], 5)

    def log_prob(x: Tensor) -> Tensor:
        return head.log_prob(model(x, torch.zeros(2).double(), lengths=lengths), chart, 0.3).sum()

    x_t = draw(2, 5).double().requires_grad_(True)
    (gradient,) = torch.autograd.grad(log_prob(x_t), x_t)
    direction, step = draw(2, 5, seed=3).double(), 1e-6
    with torch.no_grad():
        difference = (log_prob(x_t + step * direction) - log_prob(x_t - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-5, atol=1e-8)
    assert gradient[0].abs().min() > 0
    assert torch.equal(gradient[1, 3:], torch.zeros(2, 4).double())  # beyond the row's end


def test_bundled_networks_are_small() -> None:
    """As trained on E2E: 817 words, 60 chains; float16."""
    labels = Labels([f"L{i}" for i in range(60)])
    words = nn.Linear(820, tree.HEAD_SIZE["width"], bias=False)
    head = TreeHead(labels, trunk_layers=6, trunk_width=256, words=words, **tree.HEAD_SIZE)
    oracle = CleanParser(labels, OwnVectors(820, tree.ORACLE_SIZE["dim"]), unk_id=1, **tree.ORACLE_SIZE)
    for network in (head, oracle):
        assert 2 * sum(parameter.numel() for parameter in network.parameters()) < 2_000_000


# Trained on the toy sentences


@pytest.fixture(scope="module", autouse=True)
def small_networks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "HEAD_SIZE", {"width": 32, "layers": 1})
        patch.setattr(tree, "ORACLE_SIZE", {"dim": 16, "width": 64})
        patch.setattr(small, "MOST_STEPS", 300)
        patch.setattr(parser, "TOKENS", 512)
        yield


def teach(model: DiffusionLM, directory: Path, data: list[dict[str, Any]], **changed: Any) -> list[Any]:
    config = dataclasses.replace(TEACHING, **changed)
    return list(Tree.train(model, "tree", Dataset.from_list(data), "text", None, config, directory))


@pytest.fixture(scope="module")
def taught(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model with a tree classifier. Not to be changed."""
    directory = Path(shutil.copytree(toy_model, tmp_path_factory.mktemp("taught") / "toy"))
    model = from_pretrained(str(directory))
    teach(model, directory / "classifiers" / "tree", [*rows(600), {"text": "none", "tree": ""}])
    return directory


@pytest.fixture(scope="module")
def generator(taught: Path) -> Generator:
    return Generator(str(taught))


def test_guide_and_oracle_learn(taught: Path) -> None:
    directory = taught / "classifiers" / "tree"
    config = json.loads((directory / "config.json").read_text())
    assert sorted(path.name for path in directory.iterdir() if path.name != "resume.safetensors") == [
        "config.json", "metrics.jsonl", "model.safetensors", ORACLE,
    ]  # fmt: skip
    assert (config["kind"], config["names"]) == ("tree", ["tree", "span"])
    assert (config["chains"], config["trees"]) == (["NP", "PP", "S", "VP"], 600)
    assert config["oracle"]["measured"]["f1"] > 0.97
    assert config["oracle"]["measured"]["exact"] > 0.9
    assert config["oracle"]["measured"]["sentences"] >= 20
    by_noise = list(config["measured"]["accuracy_by_noise"].values())
    assert by_noise[0] > 0.95
    assert by_noise[0] > by_noise[-1] > 0.3


def test_a_head_may_start_from_another_and_keep_its_oracle(taught: Path, tmp_path: Path) -> None:
    start = taught / "classifiers" / "tree"
    teach(from_pretrained(str(taught)), tmp_path / "again", rows(600), steps=1, lr=0.0, init=str(start))
    was, config = (json.loads((at / "config.json").read_text()) for at in (start, tmp_path / "again"))
    assert (tmp_path / "again" / ORACLE).read_bytes() == (start / ORACLE).read_bytes()
    assert (config["oracle"], config["chains"]) == (was["oracle"], was["chains"])
    assert config["started_from"]["training"] == was["training"]
    assert config["measured"]["validation_loss"] == pytest.approx(was["measured"]["validation_loss"], rel=0.01)


TREE = "(S (NP * *) (VP * (NP (NP * * *) (PP * (NP * *)))) .)"
GRAMMAR = re.compile("DET( ADJ)? NOUN VERB DET( ADJ)? NOUN( ADP DET NOUN)? PUNCT")


def by_the_grammar(words: list[str]) -> tuple[Constituent, ...]:
    """The constituents of a toy sentence, without any parser; none in other texts."""
    tags = [TAG_OF[word] for word in words]
    return read_tree(toy_tree(words, tags)).constituents if GRAMMAR.fullmatch(" ".join(tags)) else ()


@pytest.mark.parametrize(
    "controls",
    [[f"tree: {TREE}"], ["span: NP 1-3, VP 4-6", "length: 7"], ["length: 10", "span: * 4-6", "span: PP 7-9"]],
)
def test_guided_samples_have_the_structure(generator: Generator, controls: list[str]) -> None:
    """About half of the sentences of these lengths have it anyway."""
    request = generator.request(controls, n=24, seed=3)
    targets = [control.target for control in request.controls if control.statement.name != "length"]
    wanted = [constituent for target in targets for constituent in target.constituents]

    def share(settings: Settings) -> float:
        samples = generator.generate([request], settings)
        return sum(not missing(wanted, by_the_grammar(sample.tokens)) for sample in samples) / len(samples)

    guided, unguided = share(Settings()), share(UNGUIDED)
    assert guided > 0.4
    assert guided > unguided + 0.2


def test_leaves_are_words_and_tags(generator: Generator) -> None:
    control = "tree: (S (NP the NOUN) (VP likes (NP (NP DET small *) (PP near (NP * *)))) .)"
    request = generator.request([control], n=16, seed=3)
    (asked,) = request.controls
    samples = generator.generate([request])
    assert asked.target.tags == parse_pattern("* NOUN * DET * * * * * *")
    assert asked.target.words == ("the", None, "likes", None, "small", None, "near", None, None, ".")
    for place in (0, 2, 4, 6, 9):
        assert sum(sample.tokens[place] == asked.target.words[place] for sample in samples) >= 14
    assert sum(TAG_OF[sample.tokens[1]] == "NOUN" for sample in samples) >= 14


def test_a_structure_can_be_avoided(generator: Generator) -> None:
    request = generator.request(["not span: NP 1-3", "length: 7"], n=16, seed=3)
    samples = generator.generate([request])
    assert sum(not missing([c("NP 1-3")], by_the_grammar(sample.tokens)) for sample in samples) <= 2
    assert generator.request([f"not tree: {TREE}", "length: 7"]).controls[0].classifier.kind == "tree"
    assert len(generator.generate([generator.request(["not span: NP 7-9", "length: 6"], n=2)])) == 2


# What users write


def syntax(generator: Generator, control: str) -> Syntax:
    (parsed,) = generator.request([control]).controls
    assert isinstance(parsed.target, Syntax)
    return parsed.target


@pytest.mark.parametrize(
    ("control", "words", "tags", "constituents"),
    [
        ("(S (NP * *) (VP * *))", "* * * *", None, ["S 1-4", "NP 1-2", "VP 3-4"]),
        ("(TOP (s (np the *) (Vp likes *)))", "the * likes *", None, ["S 1-4", "NP 1-2", "VP 3-4"]),
        ("(S (NP *) (* sees *))", "* sees *", None, ["S 1-3", "NP 1", "* 2-3"]),
        ("(S (NP DT (JJ red) NN) (. .))", "* red * .", "DT JJ NN .", ["S 1-4", "NP 1-3"]),
        ("(S (NP (det the) (noun *)) .)", "the * .", "det noun *", ["S 1-3", "NP 1-2"]),
        ("(NP DET *)", "* *", "DET *", ["NP 1-2"]),
        ('(NP (NP "the") cat)', "the cat", None, ["NP 1-2", "NP 1"]),
    ],
)
def test_tree_controls(
    generator: Generator, control: str, words: str, tags: str | None, constituents: list[str]
) -> None:
    target = syntax(generator, f"tree: {control}")
    assert target.length == len(words.split())
    assert target.words == tuple(None if word == "*" else word for word in words.split())
    assert target.tags == (parse_pattern(tags) if tags else None)
    assert set(target.constituents) == set(map(c, constituents))


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ("tree: (S (NPX * *) *)", "tree: unknown label 'NPX'; known are NP, PP, S, VP. Did you mean NP?"),
        ("tree: (S (NP * *) *", "tree: this bracket is never closed: character 1, '(S (NP * *) *'"),
        ("tree: (S (NP * catt) *)", "tree: the word 'catt' is not in this model's vocabulary. Did you mean cat?"),
        (
            "tree: (S (NP * *) ...)",
            "tree: the word '...' is not in this model's vocabulary. A tree has no `...`; write * for each word.",
        ),
        ("tree: (S (NN DT) *)", "tree: the word 'DT' is not in this model's vocabulary."),
        ("tree: (S (NP DET NN) *)", "pos: 'DET' is a Universal tag and 'NN' a Penn tag; use one set"),
        ("tree: (VP (NP * *))", "tree: VP+NP: these labels never stand over the same words"),
        ("tree: (S (* *) (VP (VP *)))", "tree: VP+VP: these labels never stand over the same words"),
        ("span: NPX 1-2", "span: unknown label 'NPX'; known are NP, PP, S, VP. Did you mean NP?"),
        ("span: NP 2-1", "span: 'NP 2-1' is reversed; write `NP 1-2`"),
        ("span: NP 3-13", "span: 'NP 3-13' is beyond the model's longest text of 12 words"),
        (
            "span: NP 1-3, VP 2-4",
            "span: 'NP 1-3' and 'VP 2-4' cross; one must hold the other or share no word",
        ),
    ],
)
def test_each_mistake_is_one_line(generator: Generator, control: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        generator.request([control])
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ([f"tree: {'(S ' + '* ' * 13 + ')'}"], "asks for a length beyond this model, which writes 1 to 12 words"),
        (["tree: (S * *)", "length: 3"], "contradict each other: they allow no common length"),
        (["span: NP 2-4", "length: 3"], "contradict each other: they allow no common length"),
    ],
)
def test_lengths_that_cannot_be(generator: Generator, controls: list[str], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        generator.request(controls)
    assert str(raised.value).endswith(message)
    assert "\n" not in str(raised.value)


def test_lengths(generator: Generator) -> None:
    classifier = generator.controls.classifier("tree")
    assert [n for n in range(1, 13) if classifier.allows_length(classifier.parse("(S (NP * *) *)"), n)] == [3]
    spans = generator.controls.classifier("span")
    assert isinstance(spans, Span)
    assert [n for n in range(1, 13) if spans.allows_length(spans.parse("NP 1-2, VP 3-10"), n)] == [10, 11, 12]


def test_tags_need_a_pos_classifier(taught: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(taught, tmp_path / "copy"))
    shutil.rmtree(copy / "classifiers" / "pos")
    with pytest.raises(UsageError) as raised:
        Generator(str(copy)).request(["tree: (S (NP DET *) *)"])
    assert str(raised.value) == (
        "tree: the tag 'DET' needs the model's pos classifier: run `ctrlgen train-classifier pos` first, or write `*`"
    )
    assert Generator(str(copy)).request(["tree: (S (NP the *) *)"]).controls[0].target.tags is None


# The oracle


def test_the_oracle_reads_the_finished_text(generator: Generator) -> None:
    text = "the red cat sees a dog by the river .".split()

    def verdict(control: str) -> Verdict:
        (parsed,) = generator.request([control]).controls
        return parsed.classifier.check([text], [parsed.target])[0]

    assert verdict("tree: (S (NP the * *) (VP * (NP (NP * *) (PP by (NP * *)))) .)") == Verdict(True, None, (), 1.0, 14)
    partly = verdict("tree: (S (* * * *) (VP * * * * * *) *)")
    assert (partly.success, partly.detail) == (True, None)
    assert partly.correct == pytest.approx(2 * 3 / (3 + 7))  # four constituents that were not asked for
    assert verdict("span: NP 1-3, VP 4-9, * 7-9") == Verdict(True, None, (), 1.0, 3)
    assert verdict("span: NP 1-2, VP 4-9") == Verdict(False, "missing: NP 1-2", (0, 1), 0.5, 2)
    assert verdict("span: VP 1-2, VP 4-5, VP 6, VP 8, VP 4-9") == Verdict(
        False, "missing: VP 1-2, VP 4-5, VP 6 and 1 more", (0, 1, 3, 4, 5, 7), pytest.approx(0.2), 5
    )
    assert verdict("tree: (S (NP * *) (VP * * * * * * *) .)") == Verdict(
        False, "missing: NP 1-2, VP 3-9", tuple(range(9)), pytest.approx(2 * 1 / (3 + 7)), 10
    )
    assert verdict("tree: (S (NP the old *) (VP * (NP * * * * *)) .)") == Verdict(
        False, "position 2 'red': wanted 'old'", (1,), pytest.approx(2 * 4 / (4 + 7)), 11
    )
    (short,) = generator.request(["tree: (S (NP * *) *)"]).controls
    (said,) = short.classifier.check([["the", "cat"]], [short.target])
    assert str(said.detail).startswith("2 words instead of 3")
    assert len(short.classifier.check([[]], [short.target])) == 1


TAGGED = "tree: (S (NP DET *) (VP VERB (NP * NOUN)) .)"
TEXT = "the cat sees a dog .".split()


def test_another_oracle_may_judge(taught: Path, tmp_path: Path) -> None:
    (tmp_path / "flat_trees.py").write_text(
        "def parse(texts):\n    return [f'(S {\" \".join(words)})' for words in texts]\n"
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(tmp_path))
        generator = Generator(str(taught))
        for name in ("tree", "span"):
            generator.controls.judge_by(name, "flat_trees:parse")
    words = "the cat sees a dog .".split()
    right, lacking, span = (
        control.classifier.check([words], [control.target])[0]
        for control in generator.controls.parse(["tree: (S * * * * * *)", "tree: (S (NP * *) * * * *)", "span: NP 1-2"])
    )
    assert (right.success, right.correct) == (True, 1.0)
    assert (lacking.success, round(lacking.correct, 3)) == (False, 0.667)
    assert not span.success


def test_tags_are_checked_by_the_tagger(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    (control,) = generator.request([TAGGED]).controls
    right = ["DET", "NOUN", "VERB", "DET", "NOUN", "PUNCT"]
    for tags, success, failed in ((right, True, ()), (["PRON", *right[1:4], "ADJ", "PUNCT"], False, (0, 4))):
        monkeypatch.setattr(pos, "tag", lambda texts, tags=tags: iter([(tags, tags)]))
        (verdict,) = control.classifier.check([TEXT], [control.target])
        assert (verdict.success, verdict.failed) == (success, failed)
        assert verdict.correct == 1.0
    assert str(verdict.detail).startswith("position 1 'the': wanted DET, got PRON; position 5")


@pytest.mark.usefixtures("no_spacy")
def test_without_a_tagger_only_failure_is_certain(generator: Generator) -> None:
    (control,) = generator.request([TAGGED]).controls
    reversed_text = TEXT[::-1]
    verdicts = control.classifier.check([TEXT, reversed_text], [control.target] * 2)
    assert [verdict.success for verdict in verdicts] == [None, False]
    assert "spaCy is missing" in str(verdicts[0].detail)


def test_guide_and_oracle_know_nothing_of_each_other(taught: Path) -> None:
    generator = Generator(str(taught))
    (control,) = generator.request(["span: NP 1-3"]).controls
    classifier = control.classifier
    assert isinstance(classifier, Span)
    texts = [words for words, _ in toy_sentences(60, seed=9) if len(words) == 7]
    ids, count = torch.tensor([generator.model.tokenizer.ids(words) for words in texts]), len(texts)
    clean, encoded = generator.reader.clean(ids, None), classifier.encode([control.target] * count, [7] * count)
    guided, judged = classifier.log_prob(clean, encoded), classifier.check(texts, [control.target] * count)
    wipe(classifier.head)
    assert classifier.check(texts, [control.target] * count) == judged
    assert [verdict.success for verdict in judged] == [TAG_OF[words[1]] == "ADJ" for words in texts]
    assert {verdict.success for verdict in judged} == {True, False}
    again = Generator(str(taught)).request(["span: NP 1-3"]).controls[0].classifier
    assert isinstance(again, Span)
    wipe(again.judge)
    assert torch.equal(again.log_prob(clean, encoded), guided)


def wipe(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        parameter.zero_()


def test_the_parser_reads_texts_of_all_lengths_at_once(generator: Generator) -> None:
    classifier = generator.controls.classifier("tree")
    assert isinstance(classifier, Tree)
    tokenizer = generator.model.tokenizer
    given = [(tokenizer.ids(words), read_tree(toy_tree(words, tags))) for words, tags in toy_sentences(50, seed=11)]
    parsed = classifier.judge.parse([ids for ids, _ in given])
    assert parsed == [classifier.judge.parse([ids])[0] for ids, _ in given]
    right = sum(one == of_grammar.constituents for one, (_, of_grammar) in zip(parsed, given, strict=True))
    assert right >= 45
    measured = agreement(classifier.judge, [Example(ids, of_grammar) for ids, of_grammar in given])
    assert measured["exact"] == pytest.approx(right / 50)
    assert (measured["f1"] == 1.0) == (right == 50)


# Data and files


def test_broken_trees_in_the_data(toy_model: Path, tmp_path: Path) -> None:
    model = from_pretrained(str(toy_model))
    data = [*rows(30), {"text": "a b", "tree": "(S (NP a) b"}]
    with pytest.raises(CtrlgenError) as raised:
        teach(model, tmp_path / "tree", data)
    assert str(raised.value) == (
        "row 31, column 'tree': tree: this bracket is never closed: character 1, '(S (NP a) b'"
    )
    with pytest.raises(UsageError, match="the data: no column 'tree'; columns: text, trea"):
        teach(model, tmp_path / "tree", [{"text": "a", "trea": "(S a)"}])
    with pytest.raises(CtrlgenError, match="tree: no label is seen 5 times"):
        teach(model, tmp_path / "tree", rows(2))


def test_damaged_files_are_one_clear_error(taught: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(taught, tmp_path / "copy"))
    damages = [{"chains": None}, {"head": {"width": 7, "layers": 1}}, {"head": {"breadth": 8}}, {"oracle": {}}]
    assert_damage_is_one_clear_error(copy / "classifiers" / "tree", "tree", "span: NP 1-2", damages)


# The command line


def test_from_trees_to_samples(
    ctrlgen: Run,
    monkeypatch: pytest.MonkeyPatch,
    toy_data: Path,
    model_copy: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", toy_data.parent / "cache")
    monkeypatch.setattr(small, "MOST_STEPS", 4)
    path = tmp_path / "trees.jsonl"
    too_long = {"text": "a", "tree": f"(S {'a ' * 13})"}
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows(100), too_long]))
    outcome = ctrlgen("generate", "-m", model_copy, "-c", "span: NP 1-2")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "has no classifier 'span' yet: run `ctrlgen train-classifier span --model " in outcome.err
    for kind in ("span", "tree"):
        options = ("-m", model_copy, "--data", path, "--steps", 3, "--tokens-per-batch", 256)
        outcome = ctrlgen("train-classifier", kind, *options)
        assert (outcome.code, outcome.out) == (0, "")
        assert "1 rows skipped: no tree, or longer than the model's texts" in outcome.err
        assert "oracle: labelled F1 0." in outcome.err
        controls = ("-c", "tree: (S (NP * *) (VP * (NP * *)) .)", "-c", "Span: NP 1-2, * 4-5")
        outcome = ctrlgen("generate", "-m", model_copy, *controls, "-n", 2, "--json", "--steps", 4)
        assert outcome.code == 0
        assert [len(answer["controls"]) for answer in outcome.answers] == [2, 2]
        names = {row["kind"]: row["names"] for row in ctrlgen("controls", "-m", model_copy, "--json").answers}
        assert (names["tree"], names["span"]) == (["tree"], ["span"])
        shutil.rmtree(model_copy / "classifiers" / kind)


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"tree": "(S (NP a b) c)"}, 2),
        ({"parse": "(S (NP a b) c)", "tree": None}, 2),
        ({"tree": "(S (NP a b))"}, None),  # of other words
        ({"parse": [1, 2, 3]}, None),  # a column of that name that holds no trees
        ({"parse": True}, None),
        ({}, None),
    ],
)
def test_the_tree_that_a_row_brings(row: dict[str, Any], found: int | None) -> None:
    tree = tree_of(row, ["a", "b", "c"])
    assert (None if tree is None else len(tree)) == found
