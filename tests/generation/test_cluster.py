"""A batch on a Ray cluster: the texts of one process, in the order of the requests."""

import json
import sys
from pathlib import Path

import pytest

from ctrlgen.cli import main
from ctrlgen.errors import CtrlgenError
from ctrlgen.generation.cluster import SHARD, generate_on_cluster
from ctrlgen.generation.generator import Generator
from ctrlgen.generation.request import Request
from ctrlgen.settings import Settings


def test_the_texts_are_those_of_one_process(
    generator: Generator, toy_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    requests: list[Request] = [
        generator.request(["length: 5-8"] if number % 2 else [], n=2, seed=number, id=number) for number in range(SHARD)
    ]
    requests.append(generator.request(["words: dog"], id="last", template="the ___ ."))
    settings = Settings(steps=4, redrafts=0)
    answered = list(generate_on_cluster(str(toy_model), requests, settings, workers=2))
    assert [len(part) for part in answered] == [2 * SHARD, 1]
    alone = [sample.as_json() for sample in generator.generate(requests, settings)]
    assert [line for part in answered for line in part] == json.loads(json.dumps(alone))


def test_what_a_worker_cannot_do_is_told(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(CtrlgenError, match=r"^ray: no model 'nowhere'[^\n]*$"):
        list(generate_on_cluster("nowhere", [generator.request([])], Settings(), workers=1))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "auto"])
def test_a_cluster_that_is_not_there_is_told(
    address: str, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    batch = tmp_path / "batch.jsonl"
    batch.write_text(json.dumps({"controls": ["length: 5"]}) + "\n")
    out = tmp_path / "out.jsonl"
    with pytest.raises(SystemExit) as stopped:
        main(["generate", "--model", str(toy_model), "--batch", str(batch), "--ray", "--out", str(out)])
    said = capsys.readouterr().err
    assert (stopped.value.code, said.count("\n")) == (1, 1)
    assert said.startswith("ctrlgen: ray: ")
    assert not out.exists()


def test_only_a_batch_is_shared(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["generate", "--ray"])
    assert (stopped.value.code, capsys.readouterr().err) == (2, "ctrlgen: --ray is of a batch: give --batch as well\n")


def test_what_to_install_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "ctrlgen.generation.cluster")
    batch = tmp_path / "batch.jsonl"
    batch.write_text("{}\n")
    with pytest.raises(SystemExit) as stopped:
        main(["generate", "--batch", str(batch), "--ray"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == 'ctrlgen: --ray needs ray: pip install "ctrlgen[ray]"\n'
