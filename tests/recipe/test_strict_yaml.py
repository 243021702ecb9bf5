"""YAML: the scalars of 1.2, and files that are refused."""

from __future__ import annotations

import math
import time

import pytest
import yaml

from ldmkit.errors import RecipeError
from ldmkit.recipe import dump, strict_yaml


def value(text: str | bytes) -> object:
    return strict_yaml.parse(text, "r.yaml").value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4", 1e-4), ("1e4", 1e4), (".5", 0.5), ("1.", 1.0), ("-2.5E+3", -2500.0), ("1_000", 1000), ("1_0.5", 10.5),
        ("010", 10), ("-7", -7), ("+7", 7), ("0x1F", 31), ("0o17", 15), ("0", 0),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("on", "on"), ("off", "off"), ("yes", "yes"), ("No", "No"), ("y", "y"), ("12:30", "12:30"),
        ("2001-01-01", "2001-01-01"), ("1.2.3", "1.2.3"), ("1__0", "1__0"), ("_1", "_1"), ("1e", "1e"), ("0b1", "0b1"),
        ("'1'", "1"), ('"true"', "true"), ("~/photos", "~/photos"), ("=", "="),
    ],
)  # fmt: skip
def test_scalars(text, expected):
    found = value(f"a: {text}\nfree: {{inner: [{text}]}}") if text != "" else value("a:\nfree: {inner: [~]}")
    assert found == {"a": expected, "free": {"inner": [expected]}}
    assert type(found["a"]) is type(expected)


def test_infinities_and_nan():
    found = value("a: .inf\nb: -.INF\nc: .NaN")
    assert found["a"] == math.inf
    assert found["b"] == -math.inf
    assert math.isnan(found["c"])


def test_keys_are_text():
    assert value("no: 1\n1: 2\nnull: 3\n1e-4: 4") == {"no": 1, "1": 2, "null": 3, "1e-4": 4}


def test_every_key_and_item_has_its_place():
    marks = strict_yaml.parse("a: 1\nb:\n  - x\n  - c: 2\n", "r.yaml").marks
    assert {path: str(mark) for path, mark in marks.items()} == {
        (): "r.yaml:1:1",
        ("a",): "r.yaml:1:1",
        ("b",): "r.yaml:2:1",
        ("b", 0): "r.yaml:3:5",
        ("b", 1): "r.yaml:4:5",
        ("b", 1, "c"): "r.yaml:4:5",
    }


def test_aliases_are_copies():
    found = value("a: &a {x: [1]}\nb: *a")
    assert found["b"] == {"x": [1]}
    assert found["b"] is not found["a"]


def bomb() -> str:
    lines = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", "r.yaml:5:3: the key 'c' is given twice; first at r.yaml:3:3"),
        (
            "a: !!python/object/apply:os.system ['true']",
            "r.yaml:1:4: the tag tag:yaml.org,2002:python/object/apply:os.system",
        ),
        ("a: !!str 1", "r.yaml:1:4: the tag tag:yaml.org,2002:str: a recipe has no tags"),
        ("a: !mine {x: 1}", "r.yaml:1:4: the tag !mine"),
        ("a: &a [*a]", "r.yaml:1:8: *a stands inside what it refers to"),
        ("a: *b", "r.yaml:1:4: *b refers to nothing: there is no &b above it"),
        (bomb(), "r.yaml:5:8: the aliases repeat more than 10000 values"),
        ("a: &a 1\nb: [" + "*a, " * 51 + "]", "more than 50 aliases"),
        ("[" * 20_000, "r.yaml:1:41: nested more than 40 levels deep"),
        ("{a: " * 20_000, "nested more than 40 levels deep"),
        ("x" * 1_000_001, "r.yaml: larger than 1000 kB; a recipe is a page of text"),
        ("<<: {a: 1}", "r.yaml:1:1: merge keys (`<<`) are not part of YAML 1.2; use `extends:`"),
        ("", "r.yaml: the file is empty"),
        ("# only a comment\n", "r.yaml: the file is empty"),
        ("a: 1\n---\nb: 2\n", "r.yaml:2:1: a second document begins here; a recipe is a single one"),
        ("a:\n\tb: 1\n", "r.yaml:2:1: a tab; YAML is indented with spaces"),
        ("a: 1".encode("utf-16"), "r.yaml: this is UTF-16; save it as UTF-8"),
        ("a: 1\n b\0: 2", "r.yaml:2:3: the control character '\\x00'"),
        (b"a: 1\nb: caf\xe9", "r.yaml:2: not UTF-8 at byte 11; save it as UTF-8"),
        ("a: b: c", "r.yaml:1:5: a ':' where none can be"),
        ("a: @b", "r.yaml:1:4: text cannot begin with '@'; put it in quotes"),
        ("a: [1, 2\nb: 3", "r.yaml:2:2: not YAML"),
        ("? [1]\n: 2", "r.yaml:1:3: a key is a word, not a list or a mapping"),
        ("a: " + "9" * 5000, "r.yaml:1:4: a number of 5000 digits"),
    ],
    ids=range(24),
)
def test_what_is_refused_with_its_place(text, message):
    start = time.perf_counter()
    with pytest.raises(RecipeError) as caught:
        value(text)
    assert str(caught.value).startswith(message) or message in str(caught.value)
    assert time.perf_counter() - start < 1.0


def test_a_byte_order_mark_is_accepted():
    assert value(b"\xef\xbb\xbfa: 1") == {"a": 1}


def test_the_pure_python_parser_agrees(monkeypatch):
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    assert value("a: [1, {b: &x on}]\nc: *x") == {"a": [1, {"b": "on"}], "c": "on"}
    with pytest.raises(RecipeError, match="a tab; YAML is indented with spaces"):
        value("a:\n\tb: 1\n")


AWKWARD = [
    "1e-4",
    "on",
    "010",
    "12:30",
    "",
    "~",
    "null",
    "1_000",
    "a: b",
    "#x",
    "x #y",
    "é✓",
    "a\nb",
    ".5",
    "0x1",
    "'",
    "- a",
]
NUMBERS = [1e-5, 1e300, 3, -0.5, True, None, {}, []]


def test_what_is_dumped_reads_back_equal():
    tree = {
        "texts": AWKWARD,
        **{text or "empty": text for text in AWKWARD},
        "numbers": [1e-5, 1e300, 3, -0.5, True, None, {}, []],
    }
    text = dump.to_yaml(tree)
    assert value(text) == tree
    assert yaml.safe_load(text)["texts"] == AWKWARD


def test_secrets_are_taken_out():
    found = dump.redacted(
        {
            "hub_token": "abc", "api_key": "k", "tokens": "77", "keypoints": 17, "token": None, "tokenizer": "bert",
            "nested": [{"password": "p"}], "url": "https://me:secret@host/x?token=abc&y=1",
        }
    )  # fmt: skip
    assert found == {
        "hub_token": "<redacted>", "api_key": "<redacted>", "tokens": "77", "keypoints": 17, "token": None,
        "tokenizer": "bert", "nested": [{"password": "<redacted>"}], "url": "https://<redacted>@host/x?token=<redacted>&y=1",
    }  # fmt: skip
