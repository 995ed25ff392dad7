"""Rejection sampling: the plain language model draws, the guides keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ctrlgen.evaluation.baselines.best_of import BestOf, Drawn, Pair, Rank
from ctrlgen.generation.request import Request


class Rejection(BestOf):
    """Draws depend on nothing but the lengths that a request allows, so all requests that allow a text share it."""

    name = "rejection"

    def refuses(self, request: Request) -> str | None:
        return None

    def draw(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[list[str]]:
        return self.lm.draw(seeds, adjust=self.ends(requests), max_length=self.longest)

    def ranks(self, requests: Sequence[Request], drawn: Sequence[Drawn]) -> Mapping[Pair, Rank]:
        allowed = [set(self.lengths(request)) if self.obeys(request) else set() for request in requests]
        pairs = [
            (request, text)
            for text, of in enumerate(drawn)
            for request in range(len(requests))
            if len(of.words) in allowed[request]
        ]
        return self.guided_ranks(requests, drawn, pairs)
