"""What is left out is counted and said: K3 of the faults that people met."""

import logging
from pathlib import Path

import pytest

from ctrlgen.cli import main
from ctrlgen.data.texts import fitting, read_texts, report
from ctrlgen.errors import CtrlgenError


def write(directory: Path, name: str, content: bytes | str) -> str:
    path = directory / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


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
