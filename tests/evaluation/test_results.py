"""Figures as text and as JSON."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from ldmkit.errors import DataError
from ldmkit.evaluation.results import Figure, Picture, Results

FIGURE = Figure(
    "psnr",
    24.314,
    title="PSNR",
    unit="dB",
    interval=(24.0, 24.6),
    beside={"bicubic": 25.0, "reconstruction": math.inf},
    baseline="bicubic",
    n=512,
    seed=3,
    series={"samples": (1.0, 2.5)},
    axes=("along", "up"),
)


def results() -> Results:
    return Results(
        figures=(
            FIGURE,
            Figure(
                "judge",
                0.973,
                slot="class",
                unit="fraction",
                beside={"chance": 0.1},
                differences={"chance": (0.8, 0.9)},
                baseline="chance",
            ),
        ),
        n=512,
        seed=3,
        sampling={"sampler": "ddim", "guidance": {"text": 7.0}},
        unavailable={"frechet": "no weights"},
        pictures=(Picture("samples/held-out.png", "Held out"),),
        data={"licence": "CC0"},
        seconds=12.5,
    )


def test_json_round_trip(tmp_path: Path) -> None:
    results().save(tmp_path / "evaluation.json")
    assert Results.load(tmp_path / "evaluation.json") == results()
    assert [file.name for file in tmp_path.iterdir()] == ["evaluation.json"]
    text = (tmp_path / "evaluation.json").read_text()
    assert "Infinity" not in text  # strict JSON
    assert json.loads(text)["schema"] == 1


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    for text in (
        '{"schema": 1, "figures": [{"value"',
        "[]",
        '{"schema": 1}',
        '{"schema": 1, "figures": [{"name": "a"}]}',
    ):
        file.write_text(text)
        with pytest.raises(DataError, match="not an evaluation"):
            Results.load(file)
    file.write_text('{"schema": 9}')
    with pytest.raises(DataError, match="schema 9; this ldmkit reads 1"):
        Results.load(file)


def test_text() -> None:
    assert FIGURE.line() == "PSNR: 24.31 dB  (bicubic 25.00 dB, reconstruction inf dB)"
    assert FIGURE.span() == "24.00 to 24.60 dB"
    assert results().lines()[1:] == [
        "judge (class): 97.3 %  (chance 10.0 %)  better than chance",
        "frechet: not measured: no weights",
    ]
    found = results().find("judge", "class")
    assert found is not None
    assert found.verdict() == "better"
    assert FIGURE.verdict() is None  # a file of an older version, which has no interval of the difference
    assert results().find("judge", "text") is None
    assert Figure("x", 1.0).verdict() is None


def test_a_zero_has_no_minus_and_a_gain_is_a_factor() -> None:
    share = Figure("x", -0.0004, unit="fraction", interval=(-0.0004, 0.02))
    assert share.line() == "x: 0.0 %"
    assert share.span() == "0.0 % to 2.0 %"
    assert Figure("x", -1e-9, unit="dB").line() == "x: 0.00 dB"
    gain = Figure("conditioning-gain", 15.381, unit="gain", interval=(0.02, 152.7), beside={"deaf": 0.0})
    assert gain.line() == "conditioning-gain: 16.4 times  (deaf 1.000 times)"
    assert gain.span() == "1.020 to 154 times"


def test_reading_results_and_writing_reports_load_no_torch() -> None:
    code = "import sys; from ldmkit.evaluation import Results, write_report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
