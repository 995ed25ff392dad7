"""A second oracle of trees, for `ctrlgen eval --oracle tree=DIR`: no part of it is that of the guide or of the oracle.

    python -m ctrlgen_classifiers.second_parser trees.jsonl more_trees.jsonl --out DIR

The guide and the oracle both score spans. This parser has words of its own, attention, and tags of words and of the
nodes between them (`tetra_tags.py`). It serves no model: it reads the words of any text.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrlgen.checkpoint import CONFIG, WEIGHTS, read_config, read_weights, write_weights
from ctrlgen.data.texts import load_rows
from ctrlgen.directories import replacing
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.files import write_text
from ctrlgen.training.batches import LengthBatches
from ctrlgen.training.heads import FEWEST_TEXTS, Example, hold_out
from ctrlgen.training.small import train_small
from ctrlgen_classifiers.brackets import Bracketing, Constituent, frequent_chains, labelled_f1
from ctrlgen_classifiers.chart import Labels
from ctrlgen_classifiers.tetra_tags import Tag, best_sides, constituents_of, tags_of
from ctrlgen_classifiers.treebank import TREE_COLUMNS, trees_in

KIND = "second parser"
UNKNOWN = 0  # the id of a word that the training trees have once at most
FEWEST_WORDS, FEWEST_CHAINS = 2, 5  # occurrences of a word, of a chain of labels
FARTHEST = 32  # words; from there on attention has one bias
TOKENS, MATRIX_LR = 2048, 1e-2
UNKNOWN_SHARE = 0.03  # of the words, hidden in training
HELD_OUT_SHARE, MOST_HELD_OUT = 0.05, 1000
SIDES = 2
Numbers = tuple[list[int], list[int]]  # of the tags of a tree's words and nodes


class Block(nn.Module):
    """Pre-norm attention, with a learned bias for each distance, and an MLP."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)
        self.distances = nn.Parameter(torch.zeros(heads, 2 * FARTHEST + 1))
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        """(B, n, width) -> (B, n, width)"""
        h = h + self.dropout(self.attend(self.norm_1(h)))
        return h + self.dropout(self.mlp_out(F.gelu(self.mlp_in(self.norm_2(h)))))

    def attend(self, h: Tensor) -> Tensor:
        batch, n, width = h.shape
        q, k, v = self.qkv(h).view(batch, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, n, head_dim)
        place = torch.arange(n)
        distance = (place[:, None] - place).clamp(-FARTHEST, FARTHEST) + FARTHEST  # (n, n)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + self.distances[:, distance]
        return self.attention_out((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, n, width))


class SecondParser(nn.Module):
    """Tags of words and of the nodes between them, and the trees that they make."""

    def __init__(
        self,
        words: Sequence[str],
        chains: Sequence[str],
        width: int = 128,
        layers: int = 3,
        heads: int = 4,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.labels = Labels(chains)
        sizes = {"width": width, "layers": layers, "heads": heads}
        self.config = {"kind": KIND, **sizes, "chains": list(chains), "words": list(words)}
        self.ids_of = {word: id for id, word in enumerate(words, UNKNOWN + 1)}
        self.embedding = nn.Embedding(len(words) + 1, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)
        tags = SIDES * len(self.labels)
        self.of_words = nn.Linear(width, tags)
        self.of_nodes = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, tags))

    def ids(self, words: Sequence[str]) -> list[int]:
        return [self.ids_of.get(word, UNKNOWN) for word in words]

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """log p of the tags, numbered by side and class: ids (B, n) -> (B, n, tags), (B, n - 1, tags)"""
        if self.training:
            ids = ids.masked_fill(torch.rand(ids.shape) < UNKNOWN_SHARE, UNKNOWN)
        h = self.dropout(self.embedding(ids))
        for block in self.blocks:
            h = block(h)
        h = self.dropout(self.norm(h))
        of_nodes = self.of_nodes(torch.cat([h[:, :-1], h[:, 1:]], -1))
        return self.of_words(h).log_softmax(-1), of_nodes.log_softmax(-1)

    def lesson(self, tree: Bracketing) -> Example[Numbers]:
        """A tree's words and the numbers of its tags."""
        words, nodes = (
            [side * len(self.labels) + self.labels.class_of(chain) for side, chain in tags]
            for tags in tags_of(tree.constituents, len(tree.leaves))
        )
        return Example(self.ids([leaf.word for leaf in tree.leaves]), (words, nodes))

    def loss(self, ids: Tensor, tags: Sequence[Numbers]) -> Tensor:
        """Negative log-probability of the trees' tags, a word."""
        total = ids.new_zeros((), dtype=torch.float32)
        for log_p, of_part in zip(self(ids), zip(*tags, strict=True), strict=True):
            total = total - log_p.gather(-1, torch.tensor(of_part)[..., None]).sum()
        return total / ids.numel()

    @torch.no_grad()
    def parse(self, texts: Sequence[Sequence[str]]) -> list[tuple[Constituent, ...]]:
        """The constituents of each text."""
        trees: list[tuple[Constituent, ...]] = [()] * len(texts)
        batches = LengthBatches([self.ids(words) or [UNKNOWN] for words in texts], TOKENS, seed=0)
        for indices in batches.epoch(0):
            parts = [log_p.unflatten(-1, (SIDES, -1)).max(-1) for log_p in self(batches.tokens(indices))]
            sides = best_sides(parts[0].values, parts[1].values)
            tags = [self.read(of_part.indices, of_sides) for of_part, of_sides in zip(parts, sides, strict=True)]
            for index, words, nodes in zip(indices, *tags, strict=True):
                trees[index] = constituents_of(words, nodes)
        return trees

    def read(self, classes: Tensor, sides: Sequence[Sequence[int]]) -> list[list[Tag]]:
        """The tags of each row: the best class (B, m, sides) of each side taken (B, m)."""
        return [
            [(side, self.labels.chains[of_side[side]]) for of_side, side in zip(of_row, of_sides, strict=True)]
            for of_row, of_sides in zip(classes.tolist(), sides, strict=True)
        ]

    @classmethod
    def load(cls, directory: Path) -> SecondParser:
        """Raises CtrlgenError where the directory holds none."""
        config = read_config(directory / CONFIG)
        if config.get("kind") != KIND:
            raise CtrlgenError(f"{directory}: holds no {KIND}; train one with `python -m {__name__}`")
        try:
            sizes = {name: int(config[name]) for name in ("width", "layers", "heads")}
            parser = cls([str(word) for word in config["words"]], [str(chain) for chain in config["chains"]], **sizes)
            parser.load_state_dict(read_weights(directory / WEIGHTS))
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise CtrlgenError(f"{directory}: its weights do not fit its {CONFIG}") from error
        return parser.eval().requires_grad_(False)

    def save(self, directory: Path, measured: dict[str, float]) -> None:
        with replacing(directory) as new:
            write_weights(new / WEIGHTS, self.state_dict())
            write_text(new / CONFIG, json.dumps(self.config | {"measured": measured}, ensure_ascii=False) + "\n")


def train(trees: Sequence[Bracketing], steps: int, seed: int = 0) -> tuple[SecondParser, dict[str, float]]:
    """A parser, and its agreement with trees held out: labelled F1 of all brackets, in [0, 1]."""
    torch.manual_seed(seed)
    counts = Counter(leaf.word for tree in trees for leaf in tree.leaves)
    words = [word for word, count in counts.items() if count >= FEWEST_WORDS]
    parser = SecondParser(words, frequent_chains(trees, FEWEST_CHAINS))
    examples = [Example(parser.ids([leaf.word for leaf in tree.leaves]), tree) for tree in trees]
    learned, held_out = hold_out(examples, HELD_OUT_SHARE, MOST_HELD_OUT, seed)
    lessons = [parser.lesson(example.target) for example in learned]
    batches = LengthBatches([lesson.tokens for lesson in lessons], TOKENS, seed)

    def loss_of(tokens: Tensor, indices: Sequence[int]) -> Tensor:
        return parser.loss(tokens, [lessons[index].target for index in indices])

    for progress in train_small(parser, loss_of, batches, steps, MATRIX_LR):
        if progress.step % 100 == 0:
            told = f"step {progress.step} of {steps}, loss {progress.loss:.3f}, {progress.eta:.0f} s left"
            print(told, file=sys.stderr)
    return parser, {"f1": agreement(parser, [example.target for example in held_out]), "trees": len(held_out)}


def agreement(parser: SecondParser, trees: Sequence[Bracketing]) -> float:
    """Labelled F1 of all brackets, as EVALB has it."""
    parsed = parser.parse([[leaf.word for leaf in tree.leaves] for tree in trees])
    found = [labelled_f1(tree.constituents, one) for tree, one in zip(trees, parsed, strict=True)]
    return sum(f1 * count for f1, count in found) / max(1, sum(count for _, count in found))


def read_trees(sources: Sequence[str]) -> list[Bracketing]:
    """The trees of files or hub ids, once each. Raises CtrlgenError where they cannot be read, or are too few."""
    trees: dict[Bracketing, None] = {}
    for source in sources:
        data = load_rows(source)
        column = next((name for name in TREE_COLUMNS if name in data.column_names), None)
        if column is None:
            raise CtrlgenError(f"{source}: has no column {', '.join(TREE_COLUMNS)}")
        try:
            trees |= dict.fromkeys(trees_in(data, column))
        except CtrlgenError as error:
            raise CtrlgenError(f"{source}: {error}") from error
    if len(trees) < FEWEST_TEXTS:
        raise CtrlgenError(f"only {len(trees)} different trees: at least {FEWEST_TEXTS} are needed")
    return list(trees)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("trees", nargs="+", help="files with a column of trees, as `train-classifier tree` reads them")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.steps < 1:
        parser.error(f"--steps {given.steps}: must be at least 1")
    try:
        trained, measured = train(read_trees(given.trees), given.steps, given.seed)
        trained.save(given.out, measured)
    except CtrlgenError as error:
        parser.exit(2 if isinstance(error, UsageError) else 1, f"{parser.prog}: {error}\n")
    print(f"labelled F1 {measured['f1']:.3f} on {measured['trees']} trees held out; written to {given.out}")


if __name__ == "__main__":
    main()
