"""A label is one text, however it is typed: K2 of the faults that people met."""

import decimal
from datetime import date
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from ctrlgen.controls.language import parse_statement, write_statement
from ctrlgen.data.labels import label_key, label_text, loose_key, read_labels
from ctrlgen.data.texts import find_columns, with_class_names
from ctrlgen.errors import UsageError


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
