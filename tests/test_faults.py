"""Faults that people met, each with its right value: `K1` and so on are kinds of faults, one case an example."""

import bz2
import decimal
import gzip
import io
import json
import logging
import os
import sys
import threading
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from ctrlgen.cli import main
from ctrlgen.controls.language import parse_statement, write_statement
from ctrlgen.data.labels import label_key, label_text, loose_key, read_labels
from ctrlgen.data.texts import find_columns, fitting, read_sentences, read_texts, report, with_class_names
from ctrlgen.errors import CtrlgenError, UsageError

COMMA = b"text,label\nA waiter was a bore, really nice .,0\nGood .,1\n"
TRAILING = b"text,label\nNice .,0,\nGood .,1,\n"
QUOTES = '"Nice place\t1\n' + "".join(f"Text {i}\t0\n" for i in range(300)) + '"Good\t1\n'


def write(directory: Path, name: str, content: bytes | str) -> str:
    path = directory / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


# K1: what readers guess


READ = {
    "quotes of a tsv are text": ("a.tsv", f"text\tlabel\n{QUOTES}", 302),
    "a tsv text in quotes keeps them": ("a.tsv", 'text\tlabel\n"Good."\t1\n', ['"Good."']),
    "words for nothing are texts": ("a.csv", "text,label\nNone,NA\nN/A,1\nnan,1\n", ["None", "N/A", "nan"]),
    "only the empty field is missing": ("a.csv", "text,label\nNone,\n,1\n-,2\n", ["None", "-"]),
    "numbers that become text": ("a.csv", "text,order\n" + "a b,1\n" * 12_000 + "c d,first\n", 12_001),
    "the same in JSON": ("a.jsonl", '{"text": "a", "order": 1}\n' * 5_000 + '{"text": "b", "order": "x"}\n', 5_001),
    "JSON rows that differ": ("a.jsonl", '{"text": "a"}\n{"text": "b", "tags": [1]}\n{"text": "c", "tags": "x"}\n', 3),
    "a byte order mark of txt": ("a.txt", b"\xef\xbb\xbfGood food .\n", ["Good food ."]),
    "a byte order mark of csv": ("a.csv", b"\xef\xbb\xbftext,label\nGood .,1\n", ["Good ."]),
    "a byte order mark of jsonl": ("a.jsonl", b'\xef\xbb\xbf{"text": "Good ."}\n', ["Good ."]),
    "UTF-16 as spreadsheets write it": ("a.tsv", "text\tlabel\nCafé .\t1\n".encode("utf-16"), ["Café ."]),
    "compressed csv": ("a.csv.gz", gzip.compress(b"text,label\nGood .,1\n"), ["Good ."]),
    "compressed JSON Lines": ("a.jsonl.bz2", bz2.compress(b'{"text": "Good ."}\n'), ["Good ."]),
    "Windows line ends": ("a.csv", b"text,label\r\nGood .,1\r\nBad .,0\r\n", ["Good .", "Bad ."]),
    "old line ends": ("a.csv", b"text,label\rGood .,1\rBad .,0", ["Good .", "Bad ."]),
    "line breaks within quotes": ("a.csv", 'text,label\n"Good\nfood .",1\n', ["Good\nfood ."]),
    "a line separator within a line": ("a.txt", "Good\u2028food\x0b .\n", ["Good\u2028food\x0b ."]),
    "semicolons": ("a.csv", 'text;label\n"Good; cheap, too .";1\n', ["Good; cheap, too ."]),
    "a column in another case": ("a.csv", "Text,label\nGood .,1\n", ["Good ."]),
    "JSON Lines called .json": ("a.json", '{"text": "Good ."}\n{"text": "Bad ."}\n', ["Good .", "Bad ."]),
    "an object of lists": ("a.json", '{"text": ["Good .", "Bad ."], "label": [1, 0]}', ["Good .", "Bad ."]),
    "a number beyond 64 bits": ("a.jsonl", '{"text": "Good .", "id": 123456789012345678901234567890}\n', ["Good ."]),
    "columns without a name": ("a.csv", ",text,\n0,Good .,\n", ["Good ."]),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_k1_read_without_loss(case: str, tmp_path: Path) -> None:
    name, content, expected = READ[case]
    texts = read_texts(write(tmp_path, name, content))
    assert (len(texts) if isinstance(expected, int) else texts) == expected


REFUSED = {
    "an unquoted comma": ("a.csv", COMMA, ["line 2", "3 fields", "the header has 2", "quotes"]),
    "a comma at the end of each row": ("a.csv", TRAILING, ["line 2", "3 fields", "the header has 2"]),
    "a row that is cut short": ("a.csv", b"text,label\nGood .,1\nBad .\n", ["line 3", "1 fields", "the header has 2"]),
    "a tab too many": ("a.tsv", b"text\tlabel\nGood .\t1\nBad\t.\t1\n", ["line 3", "3 fields", "a tab"]),
    "a quote never closed": ("a.csv", b'text,label\nGood .,1\n"Nice .,1\nBad .,0\n', ["line 3", "never closed"]),
    "a quote that is not doubled": ("a.csv", b'text,label\n"Good" food,1\n', ["line 2", "doubled"]),
    "Latin-1 JSON": ("a.jsonl", '{"text": ""}\n{"text": "é"}\n'.encode("latin-1"), ["line 2", "0xe9", "iconv"]),
    "Latin-1 csv": ("a.csv", "text,label\ncafé,1\n".encode("latin-1"), ["line 2", "0xe9", "UTF-8", "iconv"]),
    "Latin-1 txt": ("a.txt", "good\ngood\ncafé\n".encode("latin-1"), ["line 3", "0xe9", "UTF-8", "iconv"]),
    "UTF-16 without a mark": ("a.txt", "good food\n".encode("utf-16-le"), ["line 1", "UTF-16"]),
    "gzip without its suffix": ("a.csv", gzip.compress(b"text\na\n"), ["gzip", ".gz"]),
    "a suffix without gzip": ("a.csv.gz", b"text,label\nGood .,1\n", ["not compressed"]),
    "a truncated gzip": ("a.csv.gz", gzip.compress(os.urandom(9999).hex().encode())[:500], ["damaged"]),
    "a spreadsheet called csv": ("a.csv", b"PK\x03\x04" + bytes(100), ["spreadsheet"]),
    "two columns of one name": ("a.csv", b"text,label,label\nGood .,1,2\n", ["more than one column", "label"]),
    "a key given twice": ("a.jsonl", b'{"text": "a", "text": "b"}\n', ["line 1", "twice"]),
    "half a surrogate pair": ("a.jsonl", b'{"text": "a"}\n{"text": "\\ud800"}\n', ["line 2", "surrogate"]),
    "a row that is no object": ("a.jsonl", b'{"text": "a"}\n"b"\n', ["line 2", "object"]),
    "very deep JSON": ("a.jsonl", b"[" * 200_000 + b"\n", ["line 1", "not JSON"]),
    "no such column": ("a.csv", b"Text,label\nGood .,1\n", ["no column 'texts'", "Did you mean Text?"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_k1_refused_by_its_true_reason(case: str, tmp_path: Path) -> None:
    name, content, said = REFUSED[case]
    source = write(tmp_path, name, content)
    with pytest.raises(CtrlgenError) as caught:
        read_texts(source, "texts" if case == "no such column" else None)
    message = str(caught.value)
    assert message.startswith(source)
    assert "\n" not in message
    assert all(part in message for part in said), message


@pytest.mark.parametrize("name", ["reviews[1].csv", "a*.csv", "a?.jsonl", "~a.txt", "hf://a.csv", "a b%20.csv"])
def test_k1_a_path_is_taken_literally(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for other in ("reviews1.csv", "ab.csv", "a1.jsonl"):
        write(tmp_path, other, "text\nwrong file\n")
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text('{"text": "right file"}\n' if name.endswith("jsonl") else "text\nright file\n")
    assert read_texts(name)[-1] == "right file"


def standard_input(content: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedReader(io.BytesIO(content)))  # type: ignore[arg-type]


def test_k1_standard_input_is_json_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", standard_input(b'{"text": "Caf\xc3\xa9 ."}\n'))
    assert read_texts("-") == ["Café ."]
    monkeypatch.setattr(sys, "stdin", standard_input(b"text,label\nGood .,1\n"))
    with pytest.raises(CtrlgenError, match=r"standard input, line 1: .*not JSON"):
        read_texts("-")


@pytest.mark.parametrize(("name", "content"), [("pipe.csv", b"text\nGood .\n"), ("pipe", b'{"text": "Good ."}\n')])
def test_k1_a_pipe_is_read(name: str, content: bytes, tmp_path: Path) -> None:
    pipe = tmp_path / name
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(content), daemon=True)
    writer.start()
    assert read_texts(str(pipe)) == ["Good ."]
    writer.join()


def test_k1_a_directory_names_its_files(tmp_path: Path) -> None:
    with pytest.raises(CtrlgenError, match="is a directory; give a file; it holds none"):
        read_texts(str(tmp_path))
    write(tmp_path, "b.csv.gz", b"")
    write(tmp_path, "a.txt", b"")
    write(tmp_path, "notes.md", b"")
    with pytest.raises(CtrlgenError, match=r"is a directory; give one of its files \(a.txt, b.csv.gz\)"):
        read_texts(str(tmp_path))


@pytest.mark.parametrize("name", ["./reviews", "no/such/folder/a", "a.csv.gz", "C:\\a.csv", "missing.parquet"])
def test_k1_what_can_be_no_hub_id_is_no_such_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CtrlgenError, match=r"no such file$"):
        read_texts(name)


def test_k1_no_cache_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path("/proc/nowhere"))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["Good ."]}), tmp_path / "a.parquet")
    assert read_texts(str(tmp_path / "a.parquet")) == ["Good ."]
    assert read_texts(write(tmp_path, "a.csv", "text\nGood .\n")) == ["Good ."]


def test_k1_a_row_of_many_lines_looks_like_a_missing_quote(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = "".join(f"Text {i},0\n" for i in range(40))
    read_texts(write(tmp_path, "a.csv", f'text,label\n"Nice place,1\n{lines}Good",1\n'))
    assert "line 2: one row of 42 lines; is a quote missing?" in caplog.text


def test_texts_as_lists_of_sentences(tmp_path: Path) -> None:
    rows = [{"title": "", "sentences": ["One .", " Two ."]}, {"title": "b", "sentences": []}, {"title": "c"}]
    source = write(tmp_path, "a.jsonl", "".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    assert read_sentences(source) == [["One .", "Two ."]] * 2
    with pytest.raises(CtrlgenError, match="row 1: column 'title' holds no list"):
        read_sentences(source, "title")
    with pytest.raises(UsageError, match=r"no column 'sentence'; .*Did you mean sentences\?"):
        read_sentences(source, "sentence")


# K2: one label, read in one way


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (False, "False"), (1.0, "1"), (1234567.0, "1234567"), (0.1, "0.1"), (None, ""), (float("nan"), ""),
        ("  a ", "a"), ("None", "None"), (10**30, str(10**30)), (-2.50, "-2.5"),
    ],
)  # fmt: skip
def test_k2_a_label_as_text(value: Any, text: str) -> None:
    assert label_text(value) == text


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([["a"], ["b"]], "list"),
        ([date(2020, 1, 1)], "date"),
        ([decimal.Decimal("1.50")], "Decimal"),
        ([{"a": 1}], "dict"),
        ([b"a"], "bytes"),
    ],
)
def test_k2_what_is_no_label_is_named(values: list[Any], kind: str) -> None:
    data = Dataset.from_dict({"label": values})
    with pytest.raises(UsageError, match=f"column 'label' holds values of type {kind}.*labels are text, whole or dec"):
        read_labels(data, "label")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1", "1.0", True), ("1.0", "10", False), ("1234567", "1234568", False), ("007", "7", False),
        ("-1", "1", False), ("Italian", "italian", True), ("C++", "C#", False), ("Cafe\u0301", "Café", True),
        ("1.50", "1.5", True), ("-0", "0", True), ("100", "1", False),
    ],
)  # fmt: skip
def test_k2_labels_are_the_same_where_they_are_equal(one: str, other: str, same: bool) -> None:
    assert (label_key(one) == label_key(other)) is same


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("family-friendly", "Family friendly", True), ("1-5", "15", False), ("1 - 5", "1-5", True), ("-1", "1", False),
     ("1.0", "10", False), ("5-star", "5 star", True)],
)  # fmt: skip
def test_k2_spaces_and_hyphens_between_words_do_not_matter(one: str, other: str, same: bool) -> None:
    assert (loose_key(one) == loose_key(other)) is same


@pytest.mark.parametrize(
    ("text", "name", "value", "negated", "weight"),
    [
        ('contact: "me@5"', "contact", '"me@5"', False, 1.0),
        ('contact: "me @ home" @2', "contact", '"me @ home"', False, 2.0),
        ("contact: me@example.org", "contact", "me@example.org", False, 1.0),
        ("not email: x@y", "email", "x@y", True, 1.0),
        ('"not x@y": yes @3', "not x@y", "yes", False, 3.0),
        ("How was it, overall?: good @2[0:0.5]", "How was it, overall?", "good", False, 2.0),
        ('"dc:title": a: b', "dc:title", "a: b", False, 1.0),
        ("user @ host: 5", "user @ host", "5", False, 1.0),
        ("words: don't @2", "words", "don't", False, 2.0),
        ("words: 'tis the season", "words", "'tis the season", False, 1.0),
    ],
)
def test_k2_names_and_values_hold_any_character(text: str, name: str, value: str, negated: bool, weight: float) -> None:
    said = parse_statement(text)
    assert (said.name, said.value, said.negated, said.weight) == (name, value, negated, weight)


@pytest.mark.parametrize("name", ["food", "not x@y", "How was it, overall?", "dc:title", "a @ b", '"so": it', "it's"])
@pytest.mark.parametrize("value", ["x", "a@b", "a @5", "a, b: c", '"fine"', "'", "5 @[0:1]"])
def test_k2_what_evaluation_writes_is_read_as_meant(name: str, value: str) -> None:
    said = parse_statement(write_statement(name, value))
    inner = said.value[1:-1] if said.value.startswith('"') and said.value != value else said.value
    assert (said.name, inner, said.weight) == (name, value, 1.0)


def test_k2_a_list_of_columns_may_hold_names_with_commas() -> None:
    columns = ["How was it, overall?", "food", "a"]
    assert find_columns(columns, "How was it, overall?", "d") == ["How was it, overall?"]
    assert find_columns(columns, '"How was it, overall?", food', "d") == ["How was it, overall?", "food"]
    assert find_columns(columns, "food,a", "d") == ["food", "a"]
    with pytest.raises(UsageError, match="no column 'foo'"):
        find_columns(columns, "foo,a", "d")


def test_k2_numbered_classes_have_their_names_everywhere() -> None:
    data = Dataset.from_dict({"mood": [0, 1]}, Features({"mood": ClassLabel(names=["bad", "good"])}))
    assert with_class_names(data).to_list() == [{"mood": "bad"}, {"mood": "good"}]
    plain = Dataset.from_dict({"mood": [0, 1]}, Features({"mood": Value("int64")}))
    assert with_class_names(plain).to_list() == [{"mood": 0}, {"mood": 1}]


# K3: data thrown away without a word


UNKNOWN = 1
LONG, SHORT, FITS = [2] * 70, [2], [2] * 10


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([LONG] * 400 + [FITS] * 20, ["420 texts read, 20 used", "400 longer than 64 words", "too little is left"]),
        ([LONG] * 5, ["5 texts read, 0 used", "5 longer"]),
        ([SHORT] * 99 + [FITS], ["1 used", "99 shorter than 2 words", "too little is left"]),
        ([[UNKNOWN, 2, UNKNOWN, 3, UNKNOWN]] * 300, ["60.0% of the words are unknown", "too many"]),
        ([], ["0 texts read, 0 used"]),
    ],
)
def test_k3_where_almost_nothing_is_left_it_ends(texts: list[list[int]], said: list[str]) -> None:
    with pytest.raises(CtrlgenError) as caught:
        fitting(texts, 2, 64, UNKNOWN, "a.csv")
    assert all(part in str(caught.value) for part in ["a.csv: ", *said]), caught.value


@pytest.mark.parametrize(
    ("texts", "said", "level"),
    [
        ([FITS] * 9 + [LONG], "10 texts read, 9 used, 1 longer than 64 words", logging.INFO),
        ([FITS] * 8 + [LONG, SHORT], "10 texts read, 8 used, 1 shorter than 2 words, 1 longer", logging.WARNING),
        ([[UNKNOWN, *FITS[1:]]] * 5 + [FITS] * 5, "10 used; 5.0% of the words are unknown", logging.INFO),
        ([[UNKNOWN] * 4 + [2] * 6] * 9, "9 used; 40.0% of the words are unknown", logging.WARNING),
    ],
)  # fmt: skip
def test_k3_what_is_left_out_is_counted(
    texts: list[list[int]], said: str, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    kept = fitting(texts, 2, 64, UNKNOWN, "a.csv")
    assert kept == [text for text in texts if 2 <= len(text) <= 64]
    assert said in caplog.text
    assert ("warning: a.csv: " in caplog.text) is (level == logging.WARNING)
    assert [record.levelno for record in caplog.records] == [level]


def test_k3_empty_texts_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_texts(write(tmp_path, "a.csv", "text,label\na,1\n,2\nb,1\n"))
    assert "warning: " in caplog.text
    assert "3 texts read, 2 used, 1 empty" in caplog.text
    with pytest.raises(CtrlgenError, match="too little is left"):
        report("a.csv", 100, {"empty": 95})


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--data", "a.csv", "--data", "b.csv", "--out", "m"],
        ["train-lm", "--data", "a.csv", "--data=b.csv"],
        ["generate", "-n", "2", "--number", "3"],
    ],
)
def test_k3_an_option_that_takes_one_value_is_given_once(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "is given more than once" in capsys.readouterr().err
