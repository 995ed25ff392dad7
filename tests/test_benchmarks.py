"""The scripts in benchmarks/ take long; what can be seen at once is that they start and read what `eval` prints."""

import dataclasses
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ctrlgen.evaluation.figures import Row
from ctrlgen.evaluation.metrics import Estimate

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_every_benchmark_starts_and_says_what_it_is(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # some take functions from others
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out


def row_of(suite: str, system: str, success: float, gap: float) -> str:
    """As `ctrlgen eval --json` prints it."""
    fields = {field.name: None for field in dataclasses.fields(Row)} | {
        "suite": suite, "system": system, "success": Estimate(success, 0.0, 1.0), "parts": Estimate(success, 0.0, 1.0),
        "also": {"literal": Estimate(success, 0.0, 1.0)}, "gap": {"domain LM": Estimate(gap, gap, gap)},
    }  # fmt: skip
    return json.dumps(dataclasses.asdict(Row(**fields)))  # type: ignore[arg-type]


@pytest.mark.parametrize(("success", "gap", "passes"), [(0.95, -0.1, True), (0.95, 0.1, False), (0.85, -0.1, False)])
def test_the_published_figures_are_passed_where_ours_are_better(
    monkeypatch: pytest.MonkeyPatch, success: float, gap: float, passes: bool
) -> None:
    module = SimpleNamespace(**runpy.run_path(str(BENCHMARKS / "time_to_diffusion_lm.py")))
    lines = [
        row_of(suite, *of) for suite in module.PUBLISHED for of in (("human", 1.0, 0.0), ("ctrlgen", success, gap))
    ]
    monkeypatch.setitem(module.measure.__globals__, "ctrlgen", lambda *arguments: "\n".join(lines))
    found = module.measure(Path("model"), SimpleNamespace(test=[], limit=50))
    assert found["pos"] == 100 * success
    assert module.passed(found) is passes
