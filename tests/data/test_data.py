"""Reading files of every kind, the errors a user can make, and batches of one length."""

import csv
import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ctrlgen.data.texts import find_text_column, load_data, read_texts
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.training.batches import LengthBatches

ROWS = [
    {"text": "The Vaults, a “pub”, is near Café Rouge.", "food": "French"},
    {"text": 'It\'s "cheap":\tless than £20.', "food": "Italian"},
    {"text": "Loch Fyne is riverside.", "food": "Fast food"},
]
TAB_FREE = [{**row, "text": row["text"].replace("\t", " ")} for row in ROWS]  # a tsv file cannot hold a tab


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "food"])
        writer.writeheader()
        writer.writerows(ROWS)


def write_tsv(path: Path) -> None:
    lines = [f"{row['text']}\t{row['food']}" for row in TAB_FREE]
    path.write_text("\n".join(["text\tfood", *lines]), encoding="utf-8")


def write_lines(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")


WRITERS: dict[str, Callable[[Path], object]] = {
    ".csv": write_csv,
    ".tsv": write_tsv,
    ".jsonl": write_lines,
    ".json": lambda path: path.write_bytes(json.dumps(ROWS).encode()),
    ".parquet": lambda path: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path),
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_kind_of_table_comes_back_with_its_labels(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    WRITERS[suffix](path)
    data, column = load_data(str(path))
    rows = TAB_FREE if suffix == ".tsv" else ROWS
    assert column == "text"
    assert data.to_list() == rows
    assert read_texts(str(path)) == [row["text"] for row in rows]


def test_text_files_hold_one_text_a_line(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text('  A café.\n\nA pub, "The Vaults".  \n   \n', encoding="utf-8")
    assert read_texts(str(path)) == ["A café.", 'A pub, "The Vaults".']


def test_suffixes_may_be_capitals(tmp_path: Path) -> None:
    path = tmp_path / "ROWS.TSV"
    write_tsv(path)
    assert load_data(str(path))[0].to_list() == TAB_FREE


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("old\n", encoding="utf-8")
    assert read_texts(str(path)) == ["old"]
    path.write_text("new and longer\n", encoding="utf-8")
    assert read_texts(str(path)) == ["new and longer"]


def test_any_column_may_hold_the_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    WRITERS[".csv"](path)
    assert read_texts(str(path), "food") == ["French", "Italian", "Fast food"]


def test_missing_texts_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": null}\n{"text": "  "}\n{"text": "b"}\n', encoding="utf-8")
    assert read_texts(str(path)) == ["a", "b"]


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (["id", "text"], "text"),
        (["meaning_representation", "human_reference"], "human_reference"),
        (["content", "sentence"], "sentence"),
        (["content", "text"], "text"),
    ],
)
def test_the_text_column_is_found_by_its_usual_names(columns: list[str], found: str) -> None:
    assert find_text_column(columns, None, "data") == found
    assert find_text_column(columns, columns[0], "data") == columns[0]


def refusal(kind: type[CtrlgenError], source: Path, text_column: str | None = None) -> str:
    """The message of the error that reading `source` must raise, which is one line naming it."""
    with pytest.raises(CtrlgenError) as caught:
        read_texts(str(source), text_column)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert message.startswith((f"{source}: ", f"{source}, line "))
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["missing.csv", "missing", "missing.docx"])
def test_a_missing_file_is_said_to_be_missing(name: str, tmp_path: Path) -> None:
    assert "no such file" in refusal(CtrlgenError, tmp_path / name)


def test_a_missing_file_of_a_relative_path_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no such file" in refusal(CtrlgenError, Path("missing.csv"))


def test_an_unknown_kind_of_file_names_the_known_kinds(tmp_path: Path) -> None:
    path = tmp_path / "rows.xlsx"
    path.write_text("text\n")
    assert ".csv, .tsv, .json, .jsonl, .txt, .parquet" in refusal(UsageError, path)


def test_a_missing_column_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    WRITERS[".csv"](path)
    assert "no column 'foood'; columns: text, food. Did you mean food?" in refusal(UsageError, path, "foood")


def test_a_table_without_a_usual_text_column_asks_for_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("utterance,act\nhello,greet\n")
    assert "which column holds the text? Columns: utterance, act" in refusal(UsageError, path)
    assert read_texts(str(path), "utterance") == ["hello"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".txt", ".parquet"])
def test_an_empty_file_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"empty{suffix}"
    path.touch()
    assert "holds no rows" in refusal(CtrlgenError, path)


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,food\n")
    assert "holds no rows" in refusal(CtrlgenError, path)


def test_a_column_without_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "hello", "price": 20}\n{"text": "world", "price": 25}\n')
    assert "column 'price' holds no text" in refusal(CtrlgenError, path, "price")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n'),
        ("bad.json", b"no json at all"),
        ("bad.parquet", b"no parquet at all"),
        ("bad.csv", b'text,food\n"an open quote,French\n'),
        ("bad.csv", b'text,food\n"a quote" within,French\n'),
        ("bad.txt", b"caf\xe9 in latin-1\n"),
    ],
)
def test_a_malformed_file_cannot_be_read_as_data(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert "cannot be read as data: " in refusal(CtrlgenError, path)


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("GEM/e2e_nlg", ("GEM/e2e_nlg", "train")),
        ("GEM/e2e_nlg:validation", ("GEM/e2e_nlg", "validation")),
        ("squad_v1.1", ("squad_v1.1", "train")),
        ("user/some.data", ("user/some.data", "train")),
        ("here/data:train", ("here/data", "train")),
    ],
)
def test_anything_else_is_a_hub_id(
    source: str, asked: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def load_dataset(path: str, split: str) -> datasets.Dataset:
        calls.append((path, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    data, column = load_data(source)
    assert calls == [asked]
    assert data.to_list() == ROWS
    assert column == "text"


def test_a_name_without_its_ending_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tickets.csv").write_text("text\nhello\n")
    with pytest.raises(CtrlgenError, match=r"^tickets: no such file. Did you mean tickets.csv\?$"):
        load_data("tickets")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tickets.cvs", r"no such file. Did you mean tickets.csv\?"),
        ("reviews.xlsx", "no such file"),
        ("nowhere/reviews.xlsx", "no such file"),
        ("here/reviews", "no such file; a data set of the hub is written here/reviews:train"),
        ("here/textt", r"no such file. Did you mean texts.txt\?"),
        ("~/no such reviews", "no such file"),
    ],
)
def test_the_hub_is_not_asked_for_a_path(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("the hub was asked"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tickets.csv").touch()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "texts.txt").touch()
    with pytest.raises(CtrlgenError, match=f"^{source}: {message}$"):
        load_data(source)


def test_an_unreachable_hub_id_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def load_dataset(path: str, split: str) -> datasets.Dataset:
        raise ConnectionError("Couldn't reach the Hub\nwith a long story")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    assert refusal(CtrlgenError, Path("some/data")).endswith("Couldn't reach the Hub")
    assert caplog.messages == ["some/data: no file here; the Hugging Face hub is asked"]
    (tmp_path / "tickets.csv").touch()
    assert refusal(CtrlgenError, Path("tikcets")).endswith("Couldn't reach the Hub. Did you mean tickets.csv?")


SENTENCES = [[index] * (1 + index % 7) for index in range(100)]


def test_batches_hold_one_length_and_every_sentence_once() -> None:
    batches = LengthBatches(SENTENCES, tokens_per_batch=20, seed=0)
    for number in range(3):
        epoch = batches.epoch(number)
        assert sorted(chain(*epoch)) == list(range(100))
        for indices in epoch:
            (length,) = {len(SENTENCES[index]) for index in indices}
            assert len(indices) * length <= 20


def test_batches_are_as_full_as_they_may_be() -> None:
    for length, indices in LengthBatches(SENTENCES, 20, 0).by_length.items():
        sizes = [len(b) for b in LengthBatches(SENTENCES, 20, 0).epoch(0) if len(SENTENCES[b[0]]) == length]
        assert sum(sizes) == len(indices)
        assert len(sizes) == -(-len(indices) // (20 // length))


def test_an_epoch_depends_on_the_seed_and_its_number_alone() -> None:
    def epoch(seed: int, number: int) -> list[list[int]]:
        return LengthBatches(SENTENCES, 20, seed).epoch(number)

    used = LengthBatches(SENTENCES, 20, 1)
    torch.manual_seed(9)
    used.epoch(0)
    assert used.epoch(4) == epoch(1, 4)
    assert len({str(epoch(seed, number)) for seed in range(3) for number in range(3)}) == 9


def test_epochs_mix_lengths_and_sentences() -> None:
    first, second = (LengthBatches(SENTENCES, 20, 0).epoch(number) for number in range(2))
    lengths = [len(SENTENCES[batch[0]]) for batch in first]
    assert lengths != sorted(lengths)
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(1, 40), st.integers(0, 5))
def test_every_epoch_has_as_many_batches(lengths: list[int], tokens_per_batch: int, seed: int) -> None:
    batches = LengthBatches([[0] * length for length in lengths], tokens_per_batch, seed)
    epochs = [batches.epoch(number) for number in range(3)]
    assert len({len(epoch) for epoch in epochs}) == 1
    assert all(sorted(chain(*epoch)) == list(range(len(lengths))) for epoch in epochs)


def test_a_sentence_longer_than_a_batch_stands_alone() -> None:
    assert sorted(LengthBatches([[0] * 50, [1] * 50], tokens_per_batch=20, seed=0).epoch(0)) == [[0], [1]]


def test_tokens_of_a_batch_are_its_sentences() -> None:
    tokens = LengthBatches([[1, 2], [3], [4, 5]], 10, 0).tokens([2, 0])
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [[4, 5], [1, 2]]


def test_rows_are_left_out_by_their_labels_whatever_their_type(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {n}", "part": n % 3}) + "\n" for n in range(6)))
    assert read_texts(str(path), leave_out={"part": ["1", "2"]}) == ["text 0", "text 3"]
    assert read_texts(str(path), leave_out={"part": ["1.0", "2"]}) == ["text 0", "text 3"]  # as labels are the same
