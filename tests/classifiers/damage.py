"""Files of a trained classifier that were damaged: the same for every kind."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ctrlgen.errors import CtrlgenError
from ctrlgen.generation.generator import Generator
from ctrlgen.training.trained import ORACLE


def assert_damage_is_one_clear_error(
    directory: Path, kind: str, control: str, damages: Sequence[Mapping[str, Any]]
) -> None:
    """`directory` holds the classifier, in a model that may be changed; each damage makes its config.json wrong."""
    name, model = directory.name, directory.parents[1]
    config = json.loads((directory / "config.json").read_text())
    oracle = (directory / ORACLE).read_bytes()

    def error() -> str:
        with pytest.raises(CtrlgenError) as raised:
            Generator(str(model)).request([control])
        return str(raised.value)

    for damage in damages:
        (directory / "config.json").write_text(json.dumps(config | damage))
        assert error().endswith(f"{name}/config.json: not the settings of a {kind} classifier")
    (directory / "config.json").write_text(json.dumps(config | {"oracle": {"size": {"dim": 8, "width": 8}}}))
    assert error().endswith(f"{name}/{ORACLE}: does not fit config.json")
    (directory / "config.json").write_text(json.dumps(config))
    (directory / ORACLE).write_bytes(oracle[:100])
    assert error().endswith(f"{name}/{ORACLE}: truncated or not a safetensors file")
    (directory / ORACLE).unlink()
    assert error().endswith(f"{name}/{ORACLE}: no such file")
