"""A process that answers many requests keeps nothing of them. `--requests N` answers N of them, 10,000 say."""

import random
import sys
from pathlib import Path

import pytest

from ctrlgen.errors import CtrlgenError
from ctrlgen.generation.generator import Generator
from ctrlgen.settings import Settings

FEW = 600  # requests, unless more are asked for
MOST_GROWN = 32.0  # MiB after the first tenth
CONTROLS = ("length: 6-9", "pos: DET NOUN VERB DET NOUN PUNCT", "words: dog", "not words: cat", "pos: DET ...")


def resident() -> float:
    """What of this process lies in memory now, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat(generator: Generator, request: pytest.FixtureRequest) -> None:
    wanted = request.config.getoption("--requests") or FEW
    rng, settings = random.Random(0), Settings(steps=2, corrections=1)
    marks, refused = {}, 0
    for number in range(1, wanted + 1):
        asked = [rng.choice(CONTROLS), f"words: {rng.choice('abcdefgh')}{number}"][: 1 + number % 2]
        template = f"the ___{{{1 + number % 5}}} ." if number % 7 == 0 else None
        try:
            generator.generate([generator.request([] if template else asked, seed=number, template=template)], settings)
        except CtrlgenError:  # a word that the model does not know, as users ask for
            refused += 1
        if number in (wanted // 10, wanted // 2, wanted):
            marks[number] = resident()
    print(f"\n{refused} of {wanted} refused; MiB after requests: {marks}")
    assert 0 < refused < wanted
    assert marks[wanted] - marks[wanted // 10] < MOST_GROWN
