"""The settings: bounds, reading, and refusals that need no torch."""

import math
import subprocess
import sys
from typing import Any

import pytest

from ctrlgen.errors import UsageError
from ctrlgen.settings import SETTINGS, Guidance, Settings, change, read_settings


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("steps", 0, "steps must be between 1 and 100,000, got 0"),
        ("steps", 10**20, "steps"),
        ("temperature", 0.0, "temperature"),
        ("temperature", -1.0, "temperature"),
        ("temperature", math.nan, "temperature"),
        ("last_temperature", math.inf, "last_temperature"),
        ("candidates", 0, "candidates"),
        ("candidates", 10**20, "candidates"),
        ("restart", 3.0, "restart"),
        ("restart", -1.0, "restart"),
        ("eta", 9.0, "eta"),
        ("time_offset", math.nan, "time_offset"),
        ("time_offset", 1e10, "time_offset"),
        ("until_success", -1, "until_success"),
        ("corrections", -1, "corrections"),
        ("sampler", "euler", "'euler'.*ancestral.*ddim.*dpm"),
        ("select", "best", "'best'.*score.*mbr"),
        ("guidance", "magic", "'magic'.*gradient.*exact.*paper"),
        ("strength", math.nan, "strength"),
        ("strength", -1.0, "strength"),
        ("strength", 1e38, "strength"),
        ("window", (0.5, 0.1), "window 0.5:0.1: must rise"),
        ("window", (0.0, math.nan), "window"),
        ("paper_steps", 0, "paper_steps"),
    ],
)
def test_values_that_make_no_sense(name: str, value: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        change(Settings(), {name: value})


def test_the_papers_guidance_moves_ancestral_draws() -> None:
    with pytest.raises(UsageError, match="--sampler ancestral"):
        Settings(guidance=Guidance("paper"), sampler="ddim")


def test_every_setting_is_told_of_and_its_default_is_within_its_bounds() -> None:
    assert {"restart", "time_offset", "last_temperature", "guidance", "strength", "window"} <= set(SETTINGS)
    for one in SETTINGS.values():
        assert one.help.endswith((".", "]"))
        one.check(one.default)
    assert change(Settings(), {name: one.default for name, one in SETTINGS.items()}) == Settings()


def test_settings_as_written() -> None:
    settings = read_settings(
        Settings(),
        {"strength": "2", "steps": "9", "guidance": "exact", "restart": "0.25", "window": "0.1:", "clamp": "true"},
    )
    assert settings == Settings(
        steps=9, restart=0.25, clamp=True, guidance=Guidance("exact", strength=2.0, window=(0.1, 1.0))
    )
    assert read_settings(Settings(), {"guidance": "exact"}).guidance == Guidance(
        "exact"
    )  # at that method's own strength
    once = read_settings(Settings(), {"strength": "2"})
    assert read_settings(once, {"steps": "9"}).guidance.strength == 2


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("strenght", "2", "'strenght' cannot be varied.*strength"),
        ("until_success", "2", "cannot be varied"),
        ("strength", "much", "strength: 'much' is not a number"),
        ("steps", "2.5", "steps: '2.5' is not a number"),
        ("clamp", "maybe", "clamp 'maybe': use true or false"),
        ("window", "0.5", "window '0.5': write FROM:TO"),
    ],
)
def test_what_cannot_be_read(name: str, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_settings(Settings(), {name: text})


@pytest.mark.slow
def test_bad_values_are_refused_before_torch_is_imported() -> None:
    commands = [
        "generate --steps 0",
        "generate --restart 2",
        "generate --strength nan",
        "generate --guidance paper --sampler ddim",
        "generate -c nonsense",
        "infill ___ --time-offset 1e10",
        "eval --data x --temperature -1",
        "eval --data x --sweep temperature=1,-1",
        "eval --data x --sweep strenght=1",
    ]
    program = (
        "import sys\nfrom ctrlgen.cli import main\n"
        "for command in sys.argv[1:]:\n    try:\n        main(command.split())\n"
        "    except SystemExit as stopped:\n        print(stopped.code, 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program, *commands], capture_output=True, text=True, check=True)
    assert run.stdout == "2 False\n" * len(commands)
    assert run.stderr.count("\n") == len(commands)
