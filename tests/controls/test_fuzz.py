"""Whatever is typed as controls is understood, or refused in one short line, soon. `--fuzz N` tries N requests."""

import random
import time
from contextlib import suppress

import pytest

from ctrlgen.controls.registry import classifier_kinds
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.generation.generator import Generator

FEW = 300  # requests, unless more are asked for
MOST_SECONDS, MOST_ECHOED = 1.0, 500
PIECES = [
    ":",
    "@",
    "@2",
    "@1e38",
    "@nan",
    "[0:1]",
    "[0.5:0.2]",
    '"',
    "'",
    "\\",
    "|",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "{2,3}",
    "{999999}",
    "...",
    "*",
    "~",
    "/",
    "/.*/",
    "/(a|b)*c{3}/",
    "<NOUN>",
    "<",
    ">",
    "not ",
    "NP",
    "S",
    "1-3",
    "9-2",
    "-",
    ",",
    ";",
    "=",
    "___",
    "___{4}",
    "___{3-6}",
    "\u00e9",
    "\u200d",
    "\U0001f600",
    "\ud800",
    "\x00",
    "\n",
    "\t",
    "0",
    "99999999999999999999",
    "absent",
]


def mutated(text: str, rng: random.Random) -> str:
    """A text after some random insertions, deletions, repetitions and exchanges."""
    for _ in range(rng.choice([1, 1, 2, 4, 9])):
        at, end = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        piece = rng.choice(PIECES) * rng.choice([1, 1, 1, 2, 30])
        text = rng.choice([
            text[:at] + piece + text[at:],
            text[:at] + text[end:],
            text[:at] + text[at:end] * rng.choice([2, 3, 40]) + text[end:],
            text[:at] + piece + text[end:],
            text[at:] + text[:at],
        ])  # fmt: skip
    return text


@pytest.mark.parametrize("slice_", range(10))
def test_k8_fuzzed_requests_are_understood_or_refused(
    slice_: int, generator: Generator, request: pytest.FixtureRequest
) -> None:
    wanted: int = request.config.getoption("--fuzz")
    if wanted:
        generator = Generator("e2e")  # which has every kind
    with suppress(UsageError):
        generator.request(["words: rain~"])  # imports what inflects words
    examples = [kind.example for kind in classifier_kinds().values()]
    rng = random.Random(slice_)
    for _ in range((wanted or FEW) // 10):
        controls = [mutated(rng.choice(examples), rng) for _ in range(rng.choice([1, 1, 2]))]
        template = mutated("The pub ___ is {cheap} ___{3-6} .", rng) if rng.random() < 0.1 else None
        started, said = time.process_time(), ""
        try:
            generator.request(controls, template=template)
        except CtrlgenError as error:
            said = str(error)
        assert time.process_time() - started < MOST_SECONDS, (controls, template)
        assert len(said) <= MOST_ECHOED, (controls, template)
        assert len(said.splitlines()) <= 1, (controls, template)
