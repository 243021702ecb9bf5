"""Verdicts hold: they follow from the interval of the paired difference, over source images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ldmkit.evaluation.context import Evaluation, Scores
from ldmkit.evaluation.results import Figure, Results
from ldmkit.evaluation.verdicts import conclusion


def test_an_interval_that_includes_the_baseline_is_no_difference(evaluation: Evaluation) -> None:
    """32 noise images, 3 judged right by their own condition and 2 by another's: a green chip once, and untrue."""
    evaluation.n = 32
    own, other = torch.zeros(32), torch.zeros(32)
    own[[1, 5, 9]], other[[1, 20]] = 1.0, 1.0
    figure = evaluation.figure("judge", own, unit="fraction", beside={"shuffled": other}, baseline="shuffled")
    assert figure.value > figure.beside["shuffled"]
    assert figure.verdict() == "no difference"
    assert figure.judgement() == "no difference from shuffled seen (n = 32)"


def test_pairing_sees_what_the_spread_hides(evaluation: Evaluation) -> None:
    evaluation.n = 40
    easy = torch.rand(40, generator=torch.Generator().manual_seed(0))
    better = easy + 0.01 + 0.002 * torch.randn(40, generator=torch.Generator().manual_seed(1))
    higher = evaluation.figure("psnr", better, beside={"bicubic": easy}, baseline="bicubic")
    assert higher.interval is not None
    assert higher.interval[0] < higher.beside["bicubic"]  # the spread over images is far larger
    assert higher.verdict() == "better"
    assert replace(higher, better="lower").verdict() == "worse"
    assert evaluation.figure("psnr", easy, beside={"bicubic": better}, baseline="bicubic").verdict() == "worse"


def test_crops_of_two_photographs_are_two(evaluation: Evaluation) -> None:
    evaluation.n, evaluation.validation.views = 40, 20  # 40 items: 20 views of each of 2 photographs
    figure = evaluation.figure("psnr", torch.ones(40), beside={"bicubic": torch.zeros(40)}, baseline="bicubic")
    assert (figure.n, figure.sources, evaluation.sources) == (40, 2, 2)
    assert figure.verdict() == "too few"
    assert "too few independent images" in conclusion(Results((figure,), 40, 0))
    assert figure.judgement() == "too few to tell from bicubic (n = 40, of 2 sources)"


def test_pairs_are_of_the_rows_that_both_have(evaluation: Evaluation) -> None:
    own = Scores(torch.arange(20.0), torch.arange(10, 30))
    other = Scores(torch.arange(30.0), torch.arange(30))  # at rows 10 to 29 it is 10 to 29
    figure = evaluation.figure("x", own.values, rows=own.rows, beside={"other": other}, baseline="other")
    assert figure.differences["other"] == pytest.approx((-10, -10))
    assert evaluation.figure("x", torch.ones(8), beside={"chance": 0.1}).differences["chance"] == pytest.approx(
        (0.9, 0.9)
    )


def test_repeats_of_a_row_are_no_new_source(evaluation: Evaluation) -> None:
    assert evaluation.n == 48
    assert evaluation.sources == 40


def figures(verdict: str) -> Results:
    difference = {"better": (0.1, 0.2), "worse": (-0.2, -0.1), "no difference": (-0.1, 0.2)}[verdict]
    judge = Figure(
        "judge",
        0.94,
        "digit read back",
        "class",
        unit="fraction",
        beside={"shuffled conditions": 0.1},
        differences={"shuffled conditions": difference},
        baseline="shuffled conditions",
        n=128,
        sources=2,
    )
    psnr = Figure(
        "psnr", 20.0, "PSNR", beside={"bicubic": 21.0}, differences={"bicubic": (-1.5, -0.5)}, baseline="bicubic"
    )
    lpips = replace(psnr, name="lpips", title="LPIPS", better="lower")
    return Results((judge, psnr, lpips), 128, 0)


def test_the_conclusion_is_a_sentence() -> None:
    assert conclusion(figures("better")) == (
        "The model obeys class (digit read back 94.0 % against 10.0 % with shuffled conditions). "
        "Against bicubic: better by LPIPS; worse by PSNR."
    )
    assert conclusion(figures("no difference")).startswith(
        "The model is not seen to obey class (digit read back 94.0 % against 10.0 % with shuffled conditions; n = 128, of 2"
    )
    assert conclusion(Results((), 0, 0)) == ""
