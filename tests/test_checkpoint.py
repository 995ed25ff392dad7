"""Models on disk: what is written is what is read, and damage is one clear line."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from ctrlgen.checkpoint import (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    bundled_models,
    find_model,
    from_pretrained,
    read_config,
    read_weights,
    save_pretrained,
    write_weights,
)
from ctrlgen.errors import CtrlgenError
from ctrlgen.files import atomic_file, make_directory, read_lines, write_text


def one_line(error: CtrlgenError) -> str:
    message = str(error)
    assert "\n" not in message
    return message


def test_a_saved_model_is_the_model(toy_model: Path, tmp_path: Path) -> None:
    first = from_pretrained(str(toy_model))
    save_pretrained(first, tmp_path / "again")
    second = from_pretrained(str(tmp_path / "again"))
    assert second.config == first.config
    assert second.diffusion == first.diffusion
    assert second.lengths == first.lengths
    assert sum(first.lengths.values()) == 600
    assert second.tokenizer.words == first.tokenizer.words
    for part in ("denoiser", "schedule"):
        old, new = getattr(first, part).state_dict(), getattr(second, part).state_dict()
        assert old.keys() == new.keys()
        assert all(torch.equal(old[name], new[name]) for name in old)
    for name in (CONFIG, WEIGHTS, TOKENIZER):
        assert (tmp_path / "again" / name).read_bytes() == (toy_model / name).read_bytes()


def test_a_loaded_model_is_ready_for_sampling(toy_model: Path) -> None:
    model = from_pretrained(str(toy_model))
    assert model.directory == toy_model
    assert not model.denoiser.training
    assert not any(parameter.requires_grad for parameter in model.denoiser.parameters())
    assert all(p.dtype == torch.float32 for p in model.denoiser.parameters())


def test_weights_lie_on_disk_in_half_precision(toy_model: Path) -> None:
    with safe_open(str(toy_model / WEIGHTS), "pt") as file:
        kinds = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118, no mapping
    assert kinds == {torch.float16}


def test_weights_are_rounded_once_and_whole_numbers_never(tmp_path: Path) -> None:
    state = {"a": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).T, "n": torch.tensor([1, 2**40])}
    write_weights(tmp_path / "w", state)
    read = read_weights(tmp_path / "w")
    assert torch.equal(read["a"], state["a"].half().float())
    assert torch.equal(read["n"], state["n"])
    write_weights(tmp_path / "w", state, half=False)
    assert torch.equal(read_weights(tmp_path / "w")["a"], state["a"])


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_truncated_weights(model_copy: Path, share: float) -> None:
    weights = model_copy / WEIGHTS
    weights.write_bytes(weights.read_bytes()[: int(weights.stat().st_size * share)])
    with pytest.raises(CtrlgenError, match=r"model\.safetensors: truncated") as raised:
        from_pretrained(str(model_copy))
    one_line(raised.value)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, TOKENIZER])
def test_missing_files(model_copy: Path, name: str) -> None:
    (model_copy / name).unlink()
    with pytest.raises(CtrlgenError, match=name) as raised:
        from_pretrained(str(model_copy))
    assert str(model_copy) in one_line(raised.value)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, TOKENIZER])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe\x00", b"garbage" * 99])
def test_garbage_in_files(model_copy: Path, name: str, content: bytes) -> None:
    (model_copy / name).write_bytes(content)
    with pytest.raises(CtrlgenError, match=name) as raised:
        from_pretrained(str(model_copy))
    one_line(raised.value)


@pytest.mark.parametrize(
    "damage",
    [
        {"denoiser": {"width": 33}},
        {"denoiser": {"width": 64}},
        {"denoiser": {"width": "wide"}},
        {"denoiser": {"heads": 0}},
        {"denoiser": {"vocab_size": 0}},
        {"denoiser": {"layers": 3}},
        {"denoiser": {"layers": 1}},
        {"denoiser": {"max_length": 12.5}},
        {"denoiser": {"objective": "mae"}},
        {"denoiser": {"depth": 2}},
        {"diffusion": {"schedule": "warped"}},
        {"diffusion": {"schedule": "cosine"}},
        {"diffusion": {"min_noise": "low"}},
        {"diffusion": {"max_noise": 0.1}},
        {"diffusion": {"speed": 1}},
        {"lengths": {"six": 3}},
        {"lengths": {"6": None}},
    ],
    ids=str,
)
def test_configs_that_do_not_fit(model_copy: Path, damage: dict[str, dict[str, object]]) -> None:
    config = json.loads((model_copy / CONFIG).read_text())
    for table, values in damage.items():
        config[table] |= values
    (model_copy / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CtrlgenError, match=r"(config\.json: not a ctrlgen model|does not fit config\.json)") as raised:
        from_pretrained(str(model_copy))
    one_line(raised.value)


@pytest.mark.parametrize("table", ["denoiser", "diffusion", "lengths"])
def test_configs_that_lack_a_table(model_copy: Path, table: str) -> None:
    config = json.loads((model_copy / CONFIG).read_text())
    del config[table]
    (model_copy / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CtrlgenError, match=f"not a ctrlgen model: .*{table}"):
        from_pretrained(str(model_copy))


def test_a_tokenizer_of_another_model(model_copy: Path) -> None:
    tokenizer = json.loads((model_copy / TOKENIZER).read_text())
    tokenizer["model"]["vocab"]["more"] = len(tokenizer["model"]["vocab"])
    (model_copy / TOKENIZER).write_text(json.dumps(tokenizer))
    with pytest.raises(CtrlgenError, match=r"tokenizer\.json: has \d+ words, config\.json says \d+"):
        from_pretrained(str(model_copy))


def test_a_tokenizer_without_the_special_tokens(model_copy: Path) -> None:
    tokenizer = json.loads((model_copy / TOKENIZER).read_text())
    vocab = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {f"word{id}": id for id in vocab.values()} | {"<unk>": vocab["<unk>"]}
    (model_copy / TOKENIZER).write_text(json.dumps(tokenizer))
    with pytest.raises(CtrlgenError, match=TOKENIZER):
        from_pretrained(str(model_copy))


def test_names_of_no_model(tmp_path: Path) -> None:
    for name in ("nowhere", str(tmp_path / "nowhere"), "./nowhere/model"):
        with pytest.raises(CtrlgenError, match=f"no model '{name}'") as raised:
            find_model(name)
        one_line(raised.value)
    with pytest.raises(CtrlgenError, match="nobody/nothing: neither a directory here nor a model on the hub") as raised:
        find_model("nobody/nothing")
    one_line(raised.value)


def test_the_hub_is_not_asked_for_a_model_in_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for name in ("models/mine", "~/no-such-model"):
        with pytest.raises(CtrlgenError, match=f"no model '{name}': give a bundled name"):
            find_model(name)


def test_a_bundled_name_is_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctrlgen.checkpoint.bundled_models", lambda: {"e2e": tmp_path})
    assert find_model("e2e") == tmp_path
    with pytest.raises(CtrlgenError, match=r"bundled name \(e2e\).* Did you mean e2e\?"):
        find_model("e2")


def test_bundled_models_are_whole() -> None:
    for directory in bundled_models().values():
        assert {CONFIG, WEIGHTS, TOKENIZER} <= {path.name for path in directory.iterdir()}


def test_a_configs_numbers_survive(toy_model: Path) -> None:
    config = read_config(toy_model / CONFIG)
    model = from_pretrained(str(toy_model))
    assert config["denoiser"] == dataclasses.asdict(model.config)
    assert config["lengths"] == {str(n): count for n, count in model.lengths.items()}


# Files


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(RuntimeError, match="stop"), atomic_file(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        assert not path.exists()
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []
    write_text(path, "whole\n")
    assert path.read_text() == "whole\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_the_old_file(tmp_path: Path, stop: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(stop), atomic_file(path) as temporary:  # noqa: PT012
        temporary.write_text("new")
        raise stop
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_can_be_read_by_others(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_a_file_keeps_its_mode_and_the_umask_is_heeded(tmp_path: Path) -> None:
    kept, new = tmp_path / "kept", tmp_path / "new"
    kept.touch()
    kept.chmod(0o640)
    before = os.umask(0o077)
    try:
        write_text(kept, "")
        write_text(new, "")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (kept, new)] == [0o640, 0o600]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    for text in ("first", "second"):
        write_text(link, text)
        assert (link.is_symlink(), target.read_text()) == (True, text)


def test_lines_end_at_newlines_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes("a\u2028b\x85\x0cc\r\n\nd".encode())
    assert read_lines(tmp_path / "file") == ["a\u2028b\x85\x0cc", "", "d"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "directory").mkdir()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, reason in [
        (tmp_path / "missing" / "file", "No such file or directory"),
        (tmp_path / "file" / "file", "Not a directory"),
        (tmp_path / "directory", "is a directory"),
        (pipe, "not a regular file"),
    ]:
        with pytest.raises(CtrlgenError, match=f"{path}: .*{reason}") as raised:
            write_text(path, "")
        one_line(raised.value)
    with pytest.raises(CtrlgenError, match="cannot be written to"):
        make_directory(tmp_path / "file")
    with pytest.raises(CtrlgenError, match="cannot be written to"):
        make_directory(tmp_path / "file" / "below")
    make_directory(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
