"""YAML whose plain scalars stay text, and text that is read as what was written."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defects.settings import Written, dump_yaml, parse_yaml, plain_value, without_quotes


def read_plainly(value):
    """What `parse_yaml` gives where any value may stand."""
    if isinstance(value, dict):
        return {key: read_plainly(item) for key, item in value.items()}
    if isinstance(value, list):
        return [read_plainly(item) for item in value]
    return plain_value(value) if isinstance(value, Written) else value


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
PLAIN |= st.text() | st.sampled_from(["no", "None", "1e-3", "0o17", "010", "1_0", "~", "=", "<<", "12:30"])
KEYS = st.text("ab1:_", min_size=1)
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner))


@settings(deadline=None, max_examples=30)
@given(VALUES)
def test_dump_yaml_is_read_again(value):
    for in_one_line in (False, True):
        found = read_plainly(parse_yaml(dump_yaml({"value": value}, in_one_line)))
        # In JSON 1, 1.0 and true differ.
        assert json.dumps(found, sort_keys=True) == json.dumps({"value": value}, sort_keys=True)


def test_parse_yaml_marks_plain_scalars_only():
    values = parse_yaml("a: 01\nb: '01'\nc: |\n  01\n")
    assert [type(value) for value in values.values()] == [Written, str, str]


def test_parse_yaml_merges_anchors_and_own_keys_win():
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, y: 3}\nc: {<<: [*b], z: 4}\n"
    assert parse_yaml(text)["c"] == {"x": "1", "y": "3", "z": "4"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {lr: 1}\ndata: x\ntrain: {lr: 2}", "train is given twice, in lines 1 and 3"),
        ("? [a, b]\n: 1", "the key in line 1 is no text"),
        ("a: &a [*a]", "recursive node .* line 1"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
    ],
)
def test_parse_yaml_says_why_it_refuses(text, said):
    with pytest.raises(ValueError, match=said):
        parse_yaml(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'a'", "a"),
        ('"a"', "a"),
        ("'it''s'", "it's"),
        (r'"D:\new"', r"D:\new"),
        ("'a' or 'b'", "'a' or 'b'"),
        ("'", "'"),
        ("a'b", "a'b"),
    ],
)
def test_without_quotes_removes_quotes_around_all_of_the_text(text, value):
    assert without_quotes(text) == value
