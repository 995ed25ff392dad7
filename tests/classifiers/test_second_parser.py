"""The second oracle of trees: tags hold a tree, the best are those of an exhaustive search, it learns, it judges."""

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch

from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.generation.generator import Generator
from ctrlgen_classifiers import second_parser
from ctrlgen_classifiers.brackets import Constituent, read_tree
from ctrlgen_classifiers.other_parsers import load_parser
from ctrlgen_classifiers.second_parser import SecondParser, agreement, train
from ctrlgen_classifiers.tetra_tags import LEFT, RIGHT, best_sides, constituents_of, tags_of


def random_tree(start: int, end: int, rng: Random) -> Iterator[Constituent]:
    """Constituents of any number of children, some spans without a label."""
    if rng.random() < 0.7:
        yield Constituent(start, end, tuple(rng.choices("XYZ", k=rng.randint(1, 2))))
    if end - start > 1:
        cuts = sorted(rng.sample(range(start + 1, end), rng.randint(1, min(3, end - start - 1))))
        for first, last in itertools.pairwise([start, *cuts, end]):
            yield from random_tree(first, last, rng)


@pytest.mark.parametrize("seed", range(200))
def test_the_tags_of_a_tree_give_it_back(seed: int) -> None:
    rng = Random(seed)
    length = rng.randint(1, 12)
    tree = set(random_tree(0, length, rng))
    words, nodes = tags_of(tree, length)
    assert (len(words), len(nodes)) == (length, length - 1)
    assert set(constituents_of(words, nodes)) == tree


def test_the_tags_of_a_tree_by_hand() -> None:
    words, nodes = tags_of(read_tree("(S (NP the cat) (VP sees fish) .)").constituents, 5)
    assert words == [(LEFT, ()), (RIGHT, ()), (LEFT, ()), (RIGHT, ()), (RIGHT, ())]
    assert nodes == [(LEFT, ("NP",)), (LEFT, ("S",)), (LEFT, ("VP",)), (RIGHT, ())]


def sides_of_all_trees(start: int, end: int, side: int) -> Iterator[dict[int, int]]:
    """Of words (even places) and the nodes between them (odd places), for all binary trees."""
    if end - start == 1:
        yield {2 * start: side}
    for middle in range(start + 1, end):
        for left in sides_of_all_trees(start, middle, LEFT):
            for right in sides_of_all_trees(middle, end, RIGHT):
                yield {2 * middle - 1: side, **left, **right}


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
def test_the_best_sides_are_those_of_an_exhaustive_search(n: int) -> None:
    rng = torch.Generator().manual_seed(n)
    words, nodes = torch.randn(8, n, 2, generator=rng), torch.randn(8, n - 1, 2, generator=rng)
    trees = [[sides[place] for place in range(2 * n - 1)] for sides in sides_of_all_trees(0, n, LEFT)]
    of_words, of_nodes = best_sides(words, nodes)
    for row in range(8):

        def score(sides: list[int], row: int = row) -> float:
            parts = [(nodes if place % 2 else words)[row, place // 2, side] for place, side in enumerate(sides)]
            return float(sum(parts))

        best = max(trees, key=score)
        assert (of_words[row], of_nodes[row]) == (best[::2], best[1::2])


def sentence(rng: Random) -> str:
    noun_phrase = lambda: f"(NP {rng.choice(['the', 'a'])} {rng.choice(['cat', 'dog', 'fish'])})"  # noqa: E731
    where = f" (PP {rng.choice(['in', 'near'])} {noun_phrase()})" if rng.random() < 0.5 else ""
    return f"(S {noun_phrase()} (VP {rng.choice(['sees', 'has'])} {noun_phrase()}{where}) .)"


@pytest.fixture(scope="module")
def trees_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, rng = tmp_path_factory.mktemp("trees") / "trees.jsonl", Random(0)
    lines = [json.dumps({"text": "x", "tree": sentence(rng)}) for _ in range(300)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def trained(trees_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("parser") / "second"
    arguments = ["second_parser", str(trees_file), "--out", str(directory), "--steps", "150"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", arguments)
        second_parser.main()
    return directory


@pytest.mark.slow
def test_it_learns_trees_and_reads_them_when_loaded(trained: Path) -> None:
    rng = Random(1)
    trees = [read_tree(sentence(rng)) for _ in range(40)]
    assert agreement(SecondParser.load(trained), trees) > 0.95
    config = json.loads((trained / "config.json").read_text())
    assert config["measured"]["f1"] > 0.95


@pytest.mark.slow
def test_texts_of_any_length_and_any_words(trained: Path) -> None:
    parser = SecondParser.load(trained)
    texts = [[], ["cat"], ["Zorblax", "?"], "the cat sees a dog .".split()]
    together = parser.parse(texts)
    assert together == [parser.parse([text])[0] for text in texts]
    assert all(c.end <= len(text) for text, tree in zip(texts[1:], together[1:], strict=True) for c in tree)


@pytest.mark.slow
def test_training_is_the_same_each_time(trees_file: Path) -> None:
    trees = second_parser.read_trees([str(trees_file)])[:60]
    one, other = (train(trees, 5)[0].state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"{}", "holds no second parser"),
        ("config.json", b'{"kind": "second parser", "words": 3}', "do not fit"),
        ("model.safetensors", b"", "model.safetensors"),
    ],
)
def test_damage_is_one_clear_error(trained: Path, tmp_path: Path, file: str, content: bytes, message: str) -> None:
    for path in trained.iterdir():
        (tmp_path / path.name).write_bytes(content if path.name == file else path.read_bytes())
    with pytest.raises(CtrlgenError, match=message):
        SecondParser.load(tmp_path)


def flat(texts: list[list[str]]) -> list[str]:
    return [f"(S {' '.join(words)})" for words in texts]


def wrong(texts: list[list[str]]) -> list[str]:
    return ["(S a)"] * len(texts)


@pytest.mark.parametrize(
    ("rows", "steps", "code", "message"),
    [
        ([{"tree": "(S a b)"}, {"tree": "(S a"}], 5, 1, "row 2, column 'tree': tree: this bracket is never closed"),
        ([{"tree": "(S a b)"}, {"tree": " "}, {"tree": None}], 5, 1, "only 1 different trees: at least 20 are needed"),
        ([{"text": "a b"}], 5, 1, "has no column tree, trees, parse"),
        ([{"tree": "(S a b)"}], 0, 2, "--steps 0: must be at least 1"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    rows: list[dict[str, str]], steps: int, code: int, message: str,
) -> None:  # fmt: skip
    (tmp_path / "trees.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["second_parser", str(tmp_path / "trees.jsonl"), "--out", str(tmp_path / "out"), "--steps", str(steps)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        second_parser.main()
    assert ended.value.code == code
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_any_function_may_parse() -> None:
    assert load_parser("test_second_parser:flat")([["a", "b"]]) == [(Constituent(0, 2, ("S",)),)]
    with pytest.raises(CtrlgenError, match="a leaf for each word"):
        load_parser("test_second_parser:wrong")([["a", "b"]])
    with pytest.raises(UsageError, match="no function 'nothing'"):
        load_parser("test_second_parser:nothing")


def test_a_control_with_one_oracle_says_so(generator: Generator) -> None:
    with pytest.raises(UsageError, match="length has one oracle only"):
        generator.controls.judge_by("length", "other")
