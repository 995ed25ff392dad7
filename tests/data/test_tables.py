"""Files are read without loss or guess, or refused by their true reason: K1 of the faults that people met."""

import bz2
import gzip
import io
import json
import os
import sys
import threading
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from ctrlgen.data.texts import read_sentences, read_texts
from ctrlgen.errors import CtrlgenError, UsageError
from ctrlgen.files import read_lines
from ctrlgen.generation.plans import read_plan
from ctrlgen.training.recipe import read_recipe

COMMA = b"text,label\nA waiter was a bore, really nice .,0\nGood .,1\n"
TRAILING = b"text,label\nNice .,0,\nGood .,1,\n"
QUOTES = '"Nice place\t1\n' + "".join(f"Text {i}\t0\n" for i in range(300)) + '"Good\t1\n'


def write(directory: Path, name: str, content: bytes | str) -> str:
    path = directory / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


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


@pytest.mark.skipif(not Path("/dev/zero").is_char_device(), reason="there is no such device here")
def test_k1_a_device_that_never_ends_is_no_file() -> None:
    for read in (
        read_texts,
        read_plan,
        lambda source: read_lines(Path(source)),
        lambda source: read_recipe(Path(source)),
    ):
        with pytest.raises(CtrlgenError, match="/dev/zero: is a device, not a file"):
            read("/dev/zero")


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
