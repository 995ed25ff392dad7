"""Automata, the recursions over them and the texts chosen within them, against enumeration."""

import itertools
from collections.abc import Sequence
from functools import cache
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ctrlgen.automata.automaton import Automaton, TooLargeError, any_text, intersect, intersection
from ctrlgen.automata.paths import best_path, draw_path
from ctrlgen.automata.recursion import stack
from ctrlgen.text.tokenizer import WordTokenizer
from ctrlgen_classifiers.words import Matches

MODEL: Any = SimpleNamespace(tokenizer=WordTokenizer.train(["a b c d"], min_count=1))
WORDS = [MODEL.tokenizer.ids([word])[0] for word in "abcd"]
KIND = Matches(MODEL)
PATTERNS = ["...", "a ... b", "(a|b c)+ d", "a{2,3} *", "... a * ...", "(a)? (b)* c{,2}", "/[ab]/ * (... d)?", "b|d a"]


def automaton(pattern: str) -> Automaton:
    return KIND.automaton(KIND.parse(pattern))


def texts(length: int) -> list[tuple[int, ...]]:
    return list(itertools.product(WORDS, repeat=length))


def holds(pattern: str, ids: Sequence[int]) -> bool:
    """By the oracle."""
    (verdict,) = KIND.check([[MODEL.tokenizer.words[id] for id in ids]], [KIND.parse(pattern)])
    return verdict.success is True


def random_pattern(rng: Random, depth: int = 3) -> str:
    if depth == 0 or rng.random() < 0.3:
        return rng.choice(["a", "b", "c", "*", "...", "/[abc]/", "/[cd]/", "D"])
    kind = rng.choice(["chain", "choice", "repeat"])
    parts = [random_pattern(rng, depth - 1) for _ in range(rng.randint(2, 3))]
    if kind == "chain":
        return " ".join(parts)
    if kind == "choice":
        return f"({'|'.join(parts)})"
    return f"({parts[0]}){rng.choice(['*', '+', '?', '{2}', '{1,3}', '{,2}', '{2,}'])}"


@pytest.mark.parametrize("seed", range(60))
def test_a_random_pattern_accepts_what_the_oracle_approves_of(seed: int) -> None:
    pattern = random_pattern(Random(seed))
    compiled, target = automaton(pattern), KIND.parse(pattern)
    every = [ids for n in range(5) for ids in texts(n)]
    verdicts = KIND.check([[MODEL.tokenizer.words[id] for id in ids] for ids in every], [target] * len(every))
    for ids, verdict in zip(every, verdicts, strict=True):
        assert compiled.accepts(ids) is verdict.success, (pattern, ids)
    for n in range(5):
        some = any(v.success for ids, v in zip(every, verdicts, strict=True) if len(ids) == n)
        assert compiled.accepts_length(n) is some
    assert compiled.is_empty is False


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_two_states_of_a_minimal_automaton_mean_the_same(pattern: str) -> None:
    compiled = automaton(pattern)
    endings = [ids for n in range(5) for ids in texts(n)]

    def future(state: int) -> tuple[bool, ...]:
        accepted = []
        for ids in endings:
            after = state
            for id in ids:
                after = int(compiled.moves[after, compiled.letter_of[id]])
            accepted.append(bool(compiled.accepting[after]))
        return tuple(accepted)

    assert len({future(state) for state in range(compiled.states)}) == compiled.states


@pytest.mark.parametrize("seed", range(40))
def test_a_random_automaton_is_made_minimal(seed: int) -> None:
    """Against the table of all pairs of states; some states are dead, some never reached."""
    rng, (states, letters) = np.random.default_rng(seed), (9, 3)
    moves, accepting = rng.integers(0, states, (states, letters)), rng.random(states) < 0.3
    whole = Automaton(np.arange(letters), moves, accepting, np.ones(letters, dtype=bool))
    same = accepting[:, None] == accepting[None, :]
    for _ in range(states):
        for letter in range(letters):
            same &= same[np.ix_(moves[:, letter], moves[:, letter])]
    reached = whole.start
    for _ in range(states):
        reached |= whole.after_any_word(reached)
    minimal = whole.minimal()
    assert minimal.states == len({tuple(same[state]) for state in np.flatnonzero(reached)})
    for text in (text for n in range(6) for text in itertools.product(range(letters), repeat=n)):
        assert minimal.accepts(text) is whole.accepts(text)


@pytest.mark.parametrize(("one", "other"), itertools.product(PATTERNS, PATTERNS))
def test_an_intersection_accepts_what_both_accept(one: str, other: str) -> None:
    first, second = automaton(one), automaton(other)
    both, neither = intersection(first, second), intersection(first.complement(), second.complement())
    for ids in (ids for n in range(4) for ids in texts(n)):
        assert both.accepts(ids) is (first.accepts(ids) and second.accepts(ids))
        assert neither.accepts(ids) is not (first.accepts(ids) or second.accepts(ids))


def test_no_text_at_all() -> None:
    nothing = intersection(automaton("a ..."), automaton("b ..."))
    assert nothing.is_empty
    assert not any(nothing.accepts_length(n) for n in range(9))
    assert automaton("...").complement().is_empty


def test_a_product_is_bounded() -> None:
    with pytest.raises(TooLargeError, match="more than 8 states"):
        intersect([automaton(f"... {word} ...") for word in "abcd"], limit=8)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_finished_texts_of_several_lengths_are_accepted_or_not(pattern: str) -> None:
    compiled = automaton(pattern)
    every = [ids for n in range(1, 5) for ids in texts(n)]
    ids = torch.tensor([[*text, *[WORDS[0]] * (4 - len(text))] for text in every])
    sizes = torch.tensor([len(text) for text in every])
    rows = torch.zeros(len(every), dtype=torch.long)
    accepted = stack([compiled]).accept(ids, sizes, rows)
    assert accepted.tolist() == [compiled.accepts(text) for text in every]


# Whole texts


def log_p(length: int, seed: int) -> torch.Tensor:
    x = 2 * torch.randn(length, len(MODEL.tokenizer), generator=torch.Generator().manual_seed(seed))
    barred = [id for id in range(len(MODEL.tokenizer)) if id not in WORDS]
    return x.double().index_fill(1, torch.tensor(barred), -torch.inf).log_softmax(-1)


@cache
def accepted_texts(pattern: str, length: int) -> list[tuple[int, ...]]:
    return [ids for ids in texts(length) if holds(pattern, ids)]


def value(x: torch.Tensor, ids: Sequence[int]) -> float:
    return float(x[torch.arange(len(ids)), list(ids)].sum())


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("seed", range(4))
def test_the_best_path_is_the_likeliest_accepted_text(pattern: str, seed: int) -> None:
    for length in (2, 3, 4, 5):
        x, accepted = log_p(length, seed), accepted_texts(pattern, length)
        path = best_path(x, automaton(pattern))
        if not accepted:
            assert path is None
            continue
        assert path is not None
        assert tuple(path) in accepted
        assert value(x, path) == pytest.approx(max(value(x, ids) for ids in accepted))


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("pattern", ["a ... b", "(a|b c)+ d", "... a * ..."])
def test_drawn_texts_have_the_exact_conditional_probabilities(pattern: str, temperature: float) -> None:
    """Pearson's chi-squared over all accepted texts."""
    count, length = 4000, 4
    x, accepted = log_p(length, 1) / 2, accepted_texts(pattern, length)
    p = np.exp([value(x, ids) / temperature for ids in accepted])
    p /= p.sum()
    rng, compiled = torch.Generator().manual_seed(0), automaton(pattern)
    drawn: dict[tuple[int, ...], int] = dict.fromkeys(accepted, 0)
    for _ in range(count):
        path = draw_path(x, compiled, temperature, rng)
        assert path is not None
        drawn[tuple(path)] += 1
    often = p * count > 5
    expected, observed = p[often] * count, np.array(list(drawn.values()))[often]
    chi_squared = float(((observed - expected) ** 2 / expected).sum())
    freedom = max(1, int(often.sum()) - 1)
    assert chi_squared < freedom + 4 * (2 * freedom) ** 0.5


def test_a_word_that_may_not_stand_is_never_chosen() -> None:
    x = torch.zeros(3, len(MODEL.tokenizer))
    x[1] = -torch.inf
    x[1, WORDS[2]] = -300.0
    assert best_path(x, automaton("a * b")) == [WORDS[0], WORDS[2], WORDS[1]]
    assert best_path(x, automaton("a a b")) is None
    assert draw_path(x, automaton("a a b"), 1.0, torch.Generator()) is None


def test_where_nothing_is_asked_each_word_is_the_likeliest() -> None:
    x = log_p(6, 3)
    assert best_path(x, any_text(len(MODEL.tokenizer))) == x.argmax(-1).tolist()
