from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from ldmkit.runs.previews import Previews
from ldmkit.training.logging.console import Console
from ldmkit.training.logging.log import Log


def test_a_sheet_that_cannot_be_written_is_said_once_and_training_goes_on(tmp_path: Path) -> None:
    (tmp_path / "samples").write_text("no directory")
    out = io.StringIO()
    absent: Any = None  # nothing is drawn here
    previews = Previews(tmp_path, absent, absent, absent, Log(tmp_path, console=Console(file=out)))
    for step in (1, 2):
        previews._write(Image.new("RGB", (4, 4)), "diffusion", step)
    assert out.getvalue().count("warning: could not write a sheet of samples") == 1
