"""The numbers conditioner: its contract, its features in closed form, missing values, and what `fit` measures."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from ldmkit_numbers.conditioner import NumbersConditioner, fourier

from ldmkit.conditioning import Canvas
from ldmkit.data import Field
from ldmkit.errors import DataError, RecipeError, UsageError
from ldmkit.testing import check_conditioner

TWO = {"columns": ["height_m", "dose"], "mean": [2.0, 0.0], "deviation": [0.5, 1.0], "log": ["dose"]}


def made(**options):
    return NumbersConditioner(**{**TWO, "width": 8, **options})


def canvas() -> Canvas:
    return Canvas((64, 64), (8, 8), torch.device("cpu"), torch.float32, lambda images: images)


@pytest.mark.parametrize("port", ["tokens", "vector"])
def test_contract(port):
    others = [{"number": [1.5, None]}, {"number": {"dose": 2.0}}, {"number": np.array([1.0, math.nan])}]
    check_conditioner(made(port=port), {"number": [3.0, 1.0]}, others=others, value='{"height_m": 3.2}')
    one = NumbersConditioner(mean=[0.0], deviation=[1.0], width=8, port=port)
    check_conditioner(one, {"number": 3.0}, others=[{"number": -1}], value="2.5")


def test_importing_the_plugin_loads_no_torch():
    code = "import sys, ldmkit_numbers; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_features_in_closed_form():
    found = fourier(torch.tensor([0.75, -2.0], dtype=torch.float64), 3)
    for row, value in zip(found.tolist(), (0.75, -2.0), strict=True):
        angles = [2 * math.pi * value / wavelength for wavelength in (16, 8, 4)]
        assert row == pytest.approx([value, *map(math.sin, angles), *map(math.cos, angles)], abs=1e-6)


def test_numbers_are_standardised_and_logarithms_taken():
    prepared = made().prepare({"number": [3.0, math.e]})
    torch.testing.assert_close(prepared["number"], torch.tensor([2.0, 1.0]))
    assert made().preview(prepared) == "height_m 3, dose 2.718"


@pytest.mark.parametrize("port", ["tokens", "vector"])
def test_a_missing_number_is_its_own_embedding_alone(port):
    conditioner = made(port=port)
    rows = [[3.0, None], [9.0, None], [3.0, 1.0]]
    prepared = conditioner.collate([conditioner.prepare({"number": row}) for row in rows])
    emitted = conditioner.encode(prepared, canvas())
    (emitted.tokens if port == "tokens" else emitted.vector).sum().backward()
    assert conditioner.missing.grad[1].any()
    assert not conditioner.missing.grad[0].any()
    prepared["number"][:2, 1] = 7.0  # what stands at a missing place counts for nothing
    again = conditioner.encode(prepared, canvas())
    name = "tokens" if port == "tokens" else "vector"
    assert torch.equal(getattr(again, name), getattr(emitted, name))
    assert conditioner.preview({"number": prepared["number"][0], "known": prepared["known"][0]}) == "height_m 3, dose ?"


def test_the_columns_order_is_only_a_naming():
    there, back = made(), made(columns=["dose", "height_m"], mean=[0.0, 2.0], deviation=[1.0, 0.5])
    state = there.state_dict()
    back.load_state_dict({k: v.flip(0) if k in ("weight", "bias", "missing") else v for k, v in state.items()})
    sample = {"number": {"height_m": 1.2, "dose": 5.0}}
    vectors = [c.encode(c.collate([c.prepare(sample)]), canvas()).vector for c in (there, back)]
    torch.testing.assert_close(*vectors)


def test_fit_measures_and_the_result_constructs():
    values = [{"height_m": 1.0, "dose": 1.0}, {"height_m": 3.0}, {"height_m": None, "dose": math.e**2}]
    learned = NumbersConditioner.fit({"log": ["dose"]}, [{"number": value} for value in [*values, None]])
    assert learned["columns"] == ["height_m", "dose"]
    assert learned["mean"] == pytest.approx([2.0, 1.0])
    assert learned["deviation"] == pytest.approx([1.0, 1.0])
    first = NumbersConditioner(**learned, log=["dose"], width=8)
    second = NumbersConditioner(**first.options)
    second.load_state_dict(first.state_dict())
    vectors = [c.encode(c.collate([c.prepare({"number": values[0]})]), canvas()).vector for c in (first, second)]
    assert torch.equal(*vectors)


def test_fit_names_the_columns():
    assert NumbersConditioner.fit({}, [{"number": 4.0}, {"number": 4.0}]) == {
        "columns": ["number"],
        "mean": [4.0],
        "deviation": [1.0],
    }
    rows = [{"number": np.array([1.0, 2.0])}]
    assert NumbersConditioner.fit({}, rows)["columns"] == ["number 0", "number 1"]
    assert NumbersConditioner.fit({}, rows, {"number": Field("other", names=("a", "b"))})["columns"] == ["a", "b"]
    assert NumbersConditioner.fit({}, [{"number": "[1, null]"}, {"number": "[3, 4]"}])["mean"] == [2.0, 4.0]


@pytest.mark.parametrize(
    ("value", "row"),
    [
        ({"height_m": 3.2, "dose": 2}, [3.2, 2]),
        ('{"dose": 2}', [None, 2]),
        ("[3.2, null]", [3.2, None]),
        ([1, 2], [1, 2]),
    ],
)
def test_what_a_person_gives_is_what_the_data_hold(value, row):
    given, prepared = made().from_user(value, (64, 64)), made().prepare({"number": row})
    assert all(torch.equal(given[name], prepared[name]) for name in prepared)


def test_lists_are_one_value_or_many():
    assert not made().many([1.0, None])
    assert made().many([[1.0, 2.0], [3.0, 4.0]])
    assert NumbersConditioner(mean=[0.0], deviation=[1.0]).many([1.0, 2.0])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"hieght_m": 1}, r"no column 'hieght_m'; the columns are height_m, dose\n  did you mean 'height_m'\?"),
        ([1.0], "1 numbers are given; the 2 columns are height_m, dose"),
        (["tall", 1], "number: height_m is 'tall', and a finite number is needed"),
        ([math.inf, 1], "height_m is inf"),
        ([True, 1], "height_m is True"),
        ([1.0, 0.0], "dose is 0, and its logarithm needs a number above 0"),
        ("{oops", "1 numbers are given"),
    ],
)
def test_bad_numbers(value, words):
    with pytest.raises(DataError, match=words):
        made().prepare({"number": value})
    with pytest.raises(UsageError, match=words):
        made().from_user(value, (64, 64))


@pytest.mark.parametrize(
    ("samples", "words"),
    [([None], "no sample has a `number`"), ([[1.0, None]], "no sample has a number 1"), (["tall"], "is 'tall'")],
)
def test_fit_refuses(samples, words):
    with pytest.raises(DataError, match=words):
        NumbersConditioner.fit({}, [{"number": value} for value in samples])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mean": None}, "not known"),
        ({"mean": [1.0]}, "2 of each"),
        ({"deviation": [1.0, 0.0]}, "above 0"),
        ({"columns": ["a", "a"]}, "each once"),
        ({"log": ["x"]}, "log names 'x'"),
    ],
)
def test_impossible_options(options, words):
    with pytest.raises(RecipeError, match=words):
        made(**options)
