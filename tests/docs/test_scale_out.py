"""The how-to of scaling out: its plan is what `ldmkit plan` says, its commands have the options it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ldmkit import planning, plugins
from ldmkit.cli import plan as command
from ldmkit.recipe import load

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "scale-out.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> planning.Plan:
    (recipe,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    file = tmp_path_factory.mktemp("page") / "text-to-image.yaml"
    file.write_text(recipe)
    registry = plugins.load()
    asked = [int(number) for number in re.findall(r"--gpus (\d+)", PAGE)]
    return planning.plan(load(str(file), registry=registry), registry, asked)


@pytest.mark.slow
def test_the_table_is_what_the_command_prints(found: planning.Plan, capsys: pytest.CaptureFixture[str]) -> None:
    command._print_shares(found)
    printed = capsys.readouterr().out.strip()
    assert "512   copies" in printed
    assert printed in PAGE
    assert f"({found.parameters / 1e9:.2f} billion parameters)" in PAGE


@pytest.mark.slow
def test_the_example_of_the_network_is_the_arithmetic(found: planning.Plan) -> None:
    last = found.shares[-1]
    forward = last.flops / (3 * last.rows)
    seconds, pictures = re.findall(r"sends for ([\d.]+) s, and (\d+) pictures", PAGE)[0]
    (near,) = re.findall(r"at 450 GB/s, (\d+) do", PAGE)
    assert float(seconds) == pytest.approx(last.copies.sent / 50e9, abs=0.005)
    assert int(pictures) == pytest.approx(float(seconds) * 250e12 / (3 * forward), rel=0.02)
    assert int(near) == pytest.approx(last.copies.sent / 450e9 * 250e12 / (3 * forward), abs=0.5)
