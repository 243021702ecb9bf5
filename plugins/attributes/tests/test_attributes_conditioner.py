"""The attributes conditioner: its contract, sets as the truth, and the vocabulary that `fit` learns."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from ldmkit_attributes.conditioner import AttributesConditioner

from ldmkit.conditioning import Canvas
from ldmkit.data import Field
from ldmkit.errors import DataError, RecipeError, UsageError
from ldmkit.testing import check_conditioner

WORDS = ["blue", "red", "round"]


def made(**options):
    return AttributesConditioner(**{"words": WORDS, "width": 8, **options})


def canvas() -> Canvas:
    return Canvas((64, 64), (8, 8), torch.device("cpu"), torch.float32, lambda images: images)


@pytest.mark.parametrize("port", ["tokens", "vector"])
def test_contract(port):
    others = [{"attributes": []}, {"attributes": {"red": 1, "blue": 0}}, {"attributes": np.array([1, 1, 1])}]
    check_conditioner(made(port=port), {"attributes": ["red"]}, others=others, value="red, round")


def test_importing_the_plugin_loads_no_torch():
    code = "import sys, ldmkit_attributes; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "value",
    [
        ["round", "red"],
        ["red", "round", "red"],
        " red , round",
        '["round", "red"]',
        '{"red": 1, "blue": 0, "round": "true"}',
        {"red": True, "round": 1.0},
        (0, 1, 1),
        torch.tensor([False, True, True]),
    ],
)
def test_every_form_of_one_set_is_the_same(value):
    expected = torch.tensor([False, True, True])
    assert torch.equal(made().prepare({"attributes": value})["attributes"], expected)
    assert torch.equal(made().from_user(value, (64, 64))["attributes"], expected)


@pytest.mark.parametrize("value", [[], "", "[]", {}, {"red": 0}, (0, 0, 0)])
def test_none_of_them_is_a_condition_and_not_the_null(value):
    for port in ("vector", "tokens"):
        conditioner = made(port=port)
        prepared = conditioner.from_user(value, (64, 64))
        assert not prepared["attributes"].any()
        assert conditioner.preview(prepared) == "(none)"
        emitted, null = conditioner.encode(conditioner.collate([prepared]), canvas()), conditioner.null(canvas())
        there, absent = (emitted.vector, null.vector) if port == "vector" else (emitted.tokens[:, :1], null.tokens)
        assert not torch.allclose(there, absent)
        assert emitted.mask is None or emitted.mask.tolist() == [[True, False, False, False]]


def test_tokens_are_the_rows_that_hold():
    conditioner = made(port="tokens")
    emitted = conditioner.encode({"attributes": torch.tensor([[True, False, True]])}, canvas())
    assert torch.equal(emitted.tokens[emitted.mask], torch.cat([conditioner.always, conditioner.rows[[0, 2]]]))


def test_the_vector_is_of_the_sum_of_rows():
    conditioner = made().double()
    emitted = conditioner.encode({"attributes": torch.tensor([[True, False, True]])}, canvas())
    expected = conditioner.mlp(conditioner.always + conditioner.rows[0] + conditioner.rows[2]).float()
    torch.testing.assert_close(emitted.vector, expected)


def test_permuted_words_with_permuted_rows_are_the_same():
    there, back = made(), made(words=WORDS[::-1])
    back.load_state_dict({k: v.flip(0) if k == "rows" else v for k, v in there.state_dict().items()})
    sample = {"attributes": "blue, red"}
    vectors = [c.encode(c.collate([c.prepare(sample)]), canvas()).vector for c in (there, back)]
    torch.testing.assert_close(*vectors)


def test_fit_learns_the_words_and_the_result_constructs():
    values = [["red"], "blue, red", {"round": 0}, [], None]
    learned = AttributesConditioner.fit({}, [{"attributes": value} for value in values])
    assert learned == {"words": WORDS}
    first = AttributesConditioner(**learned, width=8)
    second = AttributesConditioner(**first.options)
    second.load_state_dict(first.state_dict())
    vectors = [c.encode(c.collate([c.prepare({"attributes": "red"})]), canvas()).vector for c in (first, second)]
    assert torch.equal(*vectors)


def test_fit_takes_the_words_that_the_source_knows():
    known = {"attributes": Field("other", names=("b", "a"))}
    assert AttributesConditioner.fit({}, iter([]), known) == {"words": ["b", "a"]}
    assert AttributesConditioner.fit({"words": ["a", "b", "c"]}, iter([]), known) == {}
    with pytest.raises(DataError, match="there is no 'b'; the 1 words are a"):
        AttributesConditioner.fit({"words": ["a"]}, iter([]), known)


def test_fit_refuses():
    with pytest.raises(DataError, match="no sample has `attributes`"):
        AttributesConditioner.fit({}, [{"attributes": None}, {"attributes": []}])
    with pytest.raises(DataError, match="there is no 'green'"):
        AttributesConditioner.fit({"words": WORDS}, [{"attributes": ["green"]}])


def test_lists_are_one_value_or_many():
    assert not made().many(["red", "blue"])
    assert not made().many([])
    assert made().many([["red"], []])
    assert made().many([{"red": 1}])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (["rde"], r"there is no 'rde'; the 3 words are blue, red, round\n  did you mean 'red'\?"),
        (7, "7 is no list of words"),
        (float("nan"), "nan is no list of words"),
        ([1, 0], r"\[1, 0\] is no list of words"),
        ([1, 0, 2], "round is 2, and 0 or 1 is needed"),
        ({"red": "perhaps"}, "red is 'perhaps'"),
        ({"red": float("nan")}, "red is nan"),
        ({"green": 1}, "no 'green'"),
    ],
)
def test_bad_attributes(value, words):
    with pytest.raises(DataError, match=words):
        made().prepare({"attributes": value})
    with pytest.raises(UsageError, match=words):
        made().from_user(value, (64, 64))


@pytest.mark.parametrize(("words", "said"), [(None, "not known"), ([], "at least one"), (["a", "a"], "each once")])
def test_impossible_options(words, said):
    with pytest.raises(RecipeError, match=said):
        made(words=words)
