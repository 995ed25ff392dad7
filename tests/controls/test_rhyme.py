"""A stranger's package: examples/rhyme is installed, found by its entry point, guides and checks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ctrlgen.checkpoint import from_pretrained
from ctrlgen.controls.registry import Controls
from ctrlgen.testing import check_classifier

PACKAGE = Path(__file__).parents[2] / "examples" / "rhyme"
USE = """
from ctrlgen import Generator, Settings
generator = Generator("e2e")
request = generator.request(["rhyme: clear"], n=4, seed=1)
for sample in generator.generate([request], Settings(steps=8)):
    print(sample.success, sample.tokens)
"""


@pytest.fixture
def rhyme(monkeypatch: pytest.MonkeyPatch) -> type:
    monkeypatch.syspath_prepend(str(PACKAGE))
    from ctrlgen_rhyme import Rhyme  # type: ignore[import-not-found]

    return Rhyme


def test_it_is_as_short_as_promised() -> None:
    lines = (PACKAGE / "ctrlgen_rhyme.py").read_text().splitlines()
    code = [line for line in lines if line.strip() and not line.strip().startswith(('"""', "#", "import", "from"))]
    assert len(code) <= 30


@pytest.mark.slow
def test_it_keeps_the_contract(rhyme: type) -> None:
    check_classifier(rhyme, from_pretrained("e2e"), ["clear", "Face", " cub"])


def test_it_says_what_rhymes(rhyme: type) -> None:
    control = Controls(from_pretrained("e2e")).load(rhyme, "rhyme")
    texts = [["It", "is", "near", "."], ["It", "is", "clear"], ["near", "it", "!"], []]
    assert [verdict.success for verdict in control.check(texts, ["clear"] * 4)] == [True, False, False, False]


@pytest.mark.slow
def test_installed_it_writes_rhymes(tmp_path: Path) -> None:
    install = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(tmp_path)]
    subprocess.run([sys.executable, *install, str(PACKAGE)], check=True)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", USE], env=environment, capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()
    assert len(said) == 4
    assert sum(line.startswith("True") for line in said) >= 3, said
