"""A recipe to spoil, and what its errors say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from ldmkit.errors import LdmkitError
from ldmkit.recipe import load

GOOD = """\
name: small
data: {type: photos, size: 64}
autoencoder:
  type: vq
  downsample: 4
  loss: {perceptual: {net: alex, weights: random}, adversarial: {start: 200}}
  train: {steps: 400, batch: 32, lr: 1e-3}
conditioners:
  low_res: {type: low-res, dropout: 0.1}
denoiser: {type: unet, channels: 32}
train: {steps: 1500}
sample: {guidance: 1.5}
evaluate: [psnr, ssim]
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD)
    return path


@pytest.fixture
def errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The text of the error that loading `text` raises, with `overrides`; the file is called `recipe.yaml`."""
    monkeypatch.chdir(tmp_path)

    def _errors(text: str | bytes, *overrides: str) -> str:
        data = dedent(text).encode() if isinstance(text, str) else text
        Path("recipe.yaml").write_bytes(data)
        with pytest.raises(LdmkitError) as caught:
            load("recipe.yaml", overrides)
        assert caught.value.exit_code == 2
        return str(caught.value)

    return _errors
