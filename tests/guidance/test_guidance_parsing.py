"""What people write for guidance, as weights over branches."""

from __future__ import annotations

from typing import Any

import pytest

from ldmkit.conditioning import DroppedSlots, KeptSlots
from ldmkit.errors import UsageError
from ldmkit.guidance import parse

NONE: KeptSlots = frozenset()
TEXT, LOW, BOTH = frozenset({"text"}), frozenset({"low_res"}), frozenset({"text", "low_res"})
SLOTS = ("low_res", "text")
ALWAYS = [NONE, TEXT, LOW, BOTH]  # independent rates show every subset


def test_a_number_guides_away_from_what_training_dropped() -> None:
    assert parse(3, SLOTS, ALWAYS) == {BOTH: 3, NONE: -2}
    # low_res was never dropped, so it stays in the null branch.
    assert parse(3, SLOTS, [NONE, TEXT]) == {BOTH: 3, LOW: -2}
    assert parse(0, SLOTS, ALWAYS) == {NONE: 1}
    assert parse("3", SLOTS, ALWAYS) == parse(3.0, SLOTS, ALWAYS)


@pytest.mark.parametrize("guidance", [1, 1.0, "1", {}, {"text": 1}, {"text": 1, "low_res": 1.0}, "all", "low_res+text"])
def test_scale_one_is_off(guidance: Any) -> None:
    assert parse(guidance, SLOTS, ALWAYS) == {BOTH: 1}


@pytest.mark.parametrize("slots", [(), SLOTS])
def test_scale_one_needs_no_dropout(slots: tuple[str, ...]) -> None:
    assert parse(1, slots, [NONE]) == {frozenset(slots): 1}


def test_a_mapping_chains() -> None:
    # e0 + 1.5 (e1 - e0) + 7 (e2 - e1)
    assert parse({"low_res": 1.5, "text": 7}, SLOTS, ALWAYS) == {NONE: -0.5, LOW: -5.5, BOTH: 7}
    assert parse({"text": 7, "low_res": 1.5}, SLOTS, ALWAYS) == {NONE: -6, TEXT: 5.5, BOTH: 1.5}
    assert parse({"text": 7}, SLOTS, ALWAYS) == {LOW: -6, BOTH: 7}


@pytest.mark.parametrize(
    "expression",
    [
        "null + 1.5*(low_res - null) + 7*(low_res+text - low_res)",
        " null+(low_res-null)*1.5+7*(text + low_res-low_res) ",
        "-0.5*null - 5.5*low_res + 7*all",
        "null + 3*0.5*(low_res - null) - -7*(all - low_res)",
    ],
)
def test_an_expression_says_the_same(expression: str) -> None:
    assert parse(expression, SLOTS, ALWAYS) == parse({"low_res": 1.5, "text": 7}, SLOTS, ALWAYS)


def test_slots_not_named_stay() -> None:
    three = ("class", *SLOTS)
    every = frozenset(three)
    dropped = [NONE, TEXT, LOW, BOTH, frozenset({"class"}), every]
    assert parse("null + 3*(text - null)", three, dropped) == {every: 3, frozenset({"class", "low_res"}): -2}
    assert parse({"class": 2}, three, dropped) == {every: 2, BOTH: -1}
    # `class` is a keyword of Python, and still a slot.
    assert parse("null + 2*(class - null)", three, dropped) == {every: 2, BOTH: -1}
    # `all` names every slot, so null drops every one.
    assert parse("null + 2*(all - null)", three, dropped) == {every: 2, NONE: -1}
    assert parse("null", three, dropped) == {NONE: 1}


def test_branches_that_cancel_are_not_run() -> None:
    # With equal scales the middle branch cancels: two branches are left.
    assert parse({"low_res": 3, "text": 3}, SLOTS, ALWAYS) == {NONE: -2, BOTH: 3}
    assert parse("text - text + all", SLOTS, ALWAYS) == {BOTH: 1}
    assert parse("0.1*text + 0.2*text - 0.3*text + all", SLOTS, ALWAYS) == {BOTH: 1}


@pytest.mark.parametrize(
    ("guidance", "dropped", "line"),
    [
        (3, [NONE], "conditioners.low_res.dropout: 0.1"),
        ({"low_res": 2}, [NONE, TEXT], "conditioners.low_res.dropout: 0.1"),
        ({"low_res": 2, "text": 3}, [NONE, TEXT, LOW], "`low_res\\+text: 0.1` in the recipe's `dropout` table"),
        (3, [NONE, TEXT, LOW], "`low_res\\+text: 0.1`"),
        ("low_res + 3*(all - low_res)", [NONE, LOW], "conditioners.text.dropout: 0.1"),
    ],
)
def test_a_branch_that_training_never_showed(guidance: Any, dropped: list[DroppedSlots], line: str) -> None:
    with pytest.raises(UsageError, match=line):
        parse(guidance, SLOTS, dropped)


def test_an_unconditional_model_has_no_guidance() -> None:
    with pytest.raises(UsageError, match="no conditions"):
        parse(2, (), [NONE])


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        ({"txt": 3}, "Did you mean text"),
        ("null + 3*(txt - null)", "Did you mean text"),
        ("null + 3*text", "sum to 4"),
        ("text - null", "sum to 0"),
        ("null + text", "sum to 2"),
        ("text + low_res - text", "sum to 0"),
        ("text * low_res", "multiplied"),
        ("2 + text", "number is added"),
        ("text / 2", "only slots"),
        ("text ** 2", "only slots"),
        ("text.real", "only slots"),
        ("text[0]", "only slots"),
        ("(lambda: 1)()", "slot 'lambda'"),
        ("text('text')", "only slots"),
        ("'text'", "only slots"),
        ("text if 1 else text", "slot 'if'|slot 'else'"),
        ("null + ", "cannot be read"),
        ("", "cannot be read"),
        ("text\x00", "cannot be read"),
        ("1e999*text", "finite"),
        ("(" * 300 + "text" + ")" * 300, "cannot be read"),
        ("text+" * 500 + "text", "longer than"),
        (float("nan"), "finite"),
        (float("inf"), "finite"),
        (True, "finite"),
        (None, "finite"),
        ({"text": "7"}, "finite"),
        ({3: 7}, "slot 3"),
    ],
)
def test_what_cannot_be_read(guidance: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(guidance, SLOTS, ALWAYS)
