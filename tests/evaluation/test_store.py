"""Evaluations are kept side by side; a report shows the newest of each that can be compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ldmkit.evaluation.report import write_report
from ldmkit.evaluation.results import Figure, Results
from ldmkit.evaluation.store import combined, kept, new_folder

OWN = Results(
    (Figure("psnr", 20.0, n=128), Figure("judge", 0.5, slot="class", n=128)),
    128,
    0,
    sampling={"sampler": "ddim", "steps": 30, "guidance": 2.0},
    unavailable={"lpips": "no weights"},
    settings={"weights": "ema", "step": 100},
)


def test_every_evaluation_has_a_directory_of_its_own(tmp_path: Path) -> None:
    for number in range(12):
        folder = new_folder(tmp_path)
        assert folder == tmp_path / "evaluations" / f"{number + 1:03d}"
        if number != 3:  # one that was stopped before it was written
            replace(OWN, seed=number).save(folder / "evaluation.json")
    (tmp_path / "evaluations" / "002" / "evaluation.json").write_text("{")
    damaged: list[str] = []
    assert [each.results.seed for each in kept(tmp_path, damaged)] == [0, 2, *range(4, 12)]
    assert [text[:3] for text in damaged] == ["002"]


def test_a_figure_of_another_way_takes_no_place() -> None:
    """`evaluate RUN -n 4 --metric frechet` once replaced the figures of 128 samples."""
    few = replace(OWN, n=4, figures=(Figure("psnr", 3.0, n=4), Figure("frechet", 1.0, n=4)))
    guided = replace(OWN, sampling={**OWN.sampling, "guidance": 4.0})
    raw = replace(few, n=128, settings={**OWN.settings, "weights": "raw"})
    assert combined(OWN, [few, guided, raw]) == OWN


def test_the_newest_of_the_same_way_is_shown_and_others_stay() -> None:
    first = replace(OWN, figures=(Figure("psnr", 21.0, n=128), Figure("frechet", 1.0, n=128)), unavailable={})
    second = replace(
        first,
        figures=(Figure("frechet", 2.0, n=128), Figure("lpips", 0.1, n=128)),
        settings={**OWN.settings, "metrics": {"frechet": {}, "lpips": {}}},
    )
    found = combined(OWN, [first, second])
    assert {figure.name: figure.value for figure in found.figures} == {
        "psnr": 21.0,
        "judge": 0.5,
        "frechet": 2.0,
        "lpips": 0.1,
    }
    assert found.unavailable == {}


def test_the_report_shows_sweeps_and_other_evaluations(tmp_path: Path) -> None:
    (tmp_path / "recipe.resolved.yaml").write_text("name: swept\n")
    OWN.save(tmp_path / "evaluation.json")
    for began in ("monday", "tuesday"):
        for value in (1.0, 2.0, 4.0):
            shown = value / 10 if began == "tuesday" else 0.9
            figure = Figure("judge", shown, unit="fraction", interval=(shown - 0.05, shown + 0.05))
            sweep = {"over": "guidance", "value": value, "began": began}
            results = Results((figure,), 16, 0, sampling={"guidance": value}, settings={"sweep": sweep})
            results.save(new_folder(tmp_path) / "evaluation.json")
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "By guidance" in text
    assert text.count('<line class="interval"') == 3  # of the newest sweep alone
    assert "last <b>40</b>" in text
    assert "Other evaluations (6)" in text
    assert "evaluations/006" in text
