"""Trees as tags of words: tetra-tagging (Kitaev and Klein 2020), a parser without charts and without spans.

A tree is made binary: of several children all but the first go into a node without a label. Read from left to right,
it is a word, the node between this word and the next (the smallest that holds both), the next word, and so on. Each of
the n words and the n - 1 nodes is its parent's left or right child and has a label: these tags hold the whole tree. A
sequence of tags is a tree if a stack is never empty and holds one tree at the end, so the best sequence is found by
dynamic programming over the size of the stack.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ctrlgen_classifiers.brackets import Chain, Constituent

LEFT, RIGHT = 0, 1  # which child of its parent; the root counts as a left one
Tag = tuple[int, Chain]


def tags_of(constituents: Iterable[Constituent], length: int) -> tuple[list[Tag], list[Tag]]:
    """The tags of the words, `length` of them, and of the nodes between them, one less."""
    words: list[Tag] = [(LEFT, ())] * length
    nodes: list[Tag] = [(LEFT, ())] * (length - 1)

    def place(start: int, end: int, side: int, inside: Sequence[Constituent]) -> None:
        """inside: the constituents from `start` to `end`, this one first if it has a label."""
        chain: Chain = ()
        if inside and (inside[0].start, inside[0].end) == (start, end):
            chain, inside = inside[0].chain, inside[1:]
        if end - start == 1:
            words[start] = (side, chain)
            return
        middle = inside[0].end if inside and inside[0].start == start else start + 1
        nodes[middle - 1] = (side, chain)
        place(start, middle, LEFT, [c for c in inside if c.start < middle])
        place(middle, end, RIGHT, [c for c in inside if c.start >= middle])

    place(0, length, LEFT, sorted(constituents, key=lambda c: (c.start, -c.end)))
    return words, nodes


def constituents_of(words: Sequence[Tag], nodes: Sequence[Tag]) -> tuple[Constituent, ...]:
    """The tree of tags that make one."""
    found: list[Constituent] = []
    stack: list[
        tuple[int, list[tuple[int, Chain]]]
    ] = []  # of trees: first word, nodes whose last word is still to come
    for word, (side, chain) in enumerate(words):
        found.append(Constituent(word, word + 1, chain))
        if side == LEFT:
            stack.append((word, []))
        else:  # it completes the last tree
            start, waiting = stack.pop()
            found += [Constituent(first, word + 1, label) for first, label in waiting]
            stack.append((start, []))
        if word < len(nodes):
            node_side, label = nodes[word]
            start, _ = stack.pop()
            if node_side == LEFT:
                stack.append((start, [(start, label)]))
            else:
                stack[-1][1].append((start, label))
    return tuple(sorted((c for c in found if c.chain), key=lambda c: (c.start, -c.end)))


def best_sides(words: Tensor, nodes: Tensor) -> tuple[list[list[int]], list[list[int]]]:
    """The sides of the likeliest tree of each text.

    words (B, n, 2), nodes (B, n - 1, 2): the log-probability of each side, whatever the label.
    """
    batch, n, _ = words.shape
    best = words.new_full((batch, n + 2), -math.inf)  # by size of the stack
    best[:, 0] = 0.0
    taken: list[Tensor] = []  # which side led there, of word, node, word, ... (B, n + 2)
    for place in range(n):
        grown = best.roll(1, 1) + words[:, place, LEFT, None]  # a word that begins a tree
        grown[:, 0] = -math.inf
        same = best + words[:, place, RIGHT, None]  # one that completes the last tree
        same[:, 0] = -math.inf
        taken.append(same > grown)
        best = torch.maximum(grown, same)
        if place < n - 1:
            same = best + nodes[:, place, LEFT, None]
            shrunk = best.roll(-1, 1) + nodes[:, place, RIGHT, None]  # the last two trees become one
            shrunk[:, -1] = -math.inf
            shrunk[:, 0] = same[:, 0] = -math.inf
            taken.append(shrunk > same)
            best = torch.maximum(same, shrunk)
    return walk_back(torch.stack(taken, 1), n)


def walk_back(taken: Tensor, n: int) -> tuple[list[list[int]], list[list[int]]]:
    """The sides of words and of nodes on the way that ended with one tree. taken (B, 2 n - 1, n + 2)"""
    rows = torch.arange(len(taken))
    size = torch.ones(len(taken), dtype=torch.long)
    sides: list[Tensor] = []
    for step in reversed(range(2 * n - 1)):
        is_right = taken[rows, step, size]
        sides.append(is_right)
        size = torch.where(is_right, size + step % 2, size - (step + 1) % 2)
    in_order = torch.stack(sides[::-1], 1).long()
    return in_order[:, ::2].tolist(), in_order[:, 1::2].tolist()
