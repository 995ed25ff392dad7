"""Which fills of a template's blanks some text has that an automaton accepts."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ctrlgen.automata.automaton import Automaton, Booleans
from ctrlgen.controls.template import NO_WORD, Template
from ctrlgen.diffusion.seeds import seeded

Kept = tuple[str | None, ...]  # a text's given words, None for each word to be written


class Fills:
    """Counts a template's fills, by recursion over its parts, the words left and the states that may be reached."""

    def __init__(self, template: Template, automaton: Automaton):
        self.template, self.automaton = template, automaton
        ids = iter(template.ids)
        self.ids = [next(ids) if isinstance(part, str) else NO_WORD for part in template.parts]  # of each part
        self._known: dict[tuple[int, int, bytes], float] = {}

    def count(self, length: int) -> float:
        """How many fills an accepted text of `length` words may have."""
        self.work_out(length)
        return self.ways(0, length, self.automaton.start)

    def draw(self, length: int, seed: int) -> Kept:
        """As `Template.fill`, but where no accepted text has that fill, one that some has, each alike likely.

        Depends on the seed alone. Raises ValueError where `count` is 0.
        """
        drawn = self.template.fill(length, seed)
        ids = iter(self.template.ids)
        if self.automaton.accepts_some([None if word is None else next(ids) for word in drawn]):
            return drawn
        if self.count(length) == 0:
            raise ValueError(f"no accepted text of {length} words fills {self.template.text!r}")
        rng, words, left, reached = seeded(seed), list[str | None](), length, self.automaton.start
        for place, part in enumerate(self.template.parts):
            options = list(self.options(place, left, reached))
            weights = torch.tensor([self.ways(place + 1, left - n, after) for n, after in options], dtype=torch.double)
            n, reached = options[int(torch.multinomial(weights / weights.sum(), 1, generator=rng))]
            words += [part] if isinstance(part, str) else [None] * n
            left -= n
        return tuple(words)

    def work_out(self, length: int) -> None:
        """Find all that `ways` needs for a text of `length` words, from the last part to the first.

        So `ways` never calls itself more than once deep, however many parts a template has.
        """
        layers: list[dict[tuple[int, bytes], Booleans]] = [{(length, b""): self.automaton.start}]
        for place in range(len(self.template.parts)):
            steps = (
                step
                for (left, _), reached in layers[-1].items()
                if (place, left, reached.tobytes()) not in self._known
                for step in ((left - n, after) for n, after in self.options(place, left, reached))
            )
            layers.append({(left, after.tobytes()): after for left, after in steps})
        for place, layer in reversed(list(enumerate(layers))):
            for (left, _), reached in layer.items():
                self.ways(place, left, reached)

    def ways(self, place: int, left: int, reached: Booleans) -> float:
        """How many fills of the parts from `place` on lead from the states reached (S,) to acceptance."""
        if place == len(self.template.parts):
            return float(left == 0 and (reached & self.automaton.accepting).any())
        key = place, left, reached.tobytes()
        if key not in self._known:
            options = self.options(place, left, reached)
            self._known[key] = sum(self.ways(place + 1, left - n, after) for n, after in options)
        return self._known[key]

    def options(self, place: int, left: int, reached: Booleans) -> Iterator[tuple[int, Booleans]]:
        """How many of the words left the part at `place` may take, and the states that they lead to."""
        part = self.template.parts[place]
        if isinstance(part, str):
            if left > 0:
                yield 1, self.automaton.after_word(reached, self.ids[place])
            return
        for n in range(left + 1 if part.most is None else min(part.most, left) + 1):
            if n >= part.fewest:
                yield n, reached
            reached = self.automaton.after_any_word(reached)
