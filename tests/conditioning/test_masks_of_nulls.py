"""A null is as long as it is: where it stands in for longer tokens, nobody attends to what it was padded with."""

from __future__ import annotations

import torch

from ldmkit.conditioning import Conditioning
from ldmkit.conditioning.conditioner_set import where

KEEP = torch.tensor([True, False])


def tokens(length: int, value: float) -> torch.Tensor:
    return torch.full((2, length, 3), value)


def test_a_null_that_is_shorter_is_masked_beyond_its_end() -> None:
    found = where(KEEP, Conditioning(tokens=tokens(3, 1.0)), Conditioning(tokens=tokens(1, 2.0)))
    assert found.tokens is not None
    assert found.mask is not None
    assert found.tokens[:, :, 0].tolist() == [[1, 1, 1], [2, 0, 0]]
    assert found.mask.tolist() == [[True, True, True], [True, False, False]]


def test_an_answer_that_is_shorter_is_masked_beyond_its_end() -> None:
    found = where(KEEP, Conditioning(tokens=tokens(1, 1.0)), Conditioning(tokens=tokens(2, 2.0)))
    assert found.tokens is not None
    assert found.mask is not None
    assert found.tokens[:, :, 0].tolist() == [[1, 0], [2, 2]]
    assert found.mask.tolist() == [[True, False], [True, True]]


def test_each_row_has_the_mask_of_what_stands_in_it() -> None:
    answer = Conditioning(tokens=tokens(2, 1.0), mask=torch.tensor([[True, False], [True, True]]))
    null = Conditioning(tokens=tokens(2, 2.0), mask=torch.tensor([[True, True], [False, True]]))
    found = where(KEEP, answer, null)
    assert found.mask is not None
    assert found.mask.tolist() == [[True, False], [False, True]]


def test_without_any_padding_there_is_no_mask() -> None:
    found = where(KEEP, Conditioning(tokens=tokens(2, 1.0)), Conditioning(tokens=tokens(2, 2.0)))
    assert found.mask is None
