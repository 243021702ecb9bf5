from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ldmkit.errors import UsageError
from ldmkit.recipe import Recipe
from ldmkit.verify import Verification, shortened, verify_resume


@pytest.mark.slow
def test_a_run_killed_in_both_stages_ends_with_the_same_bits(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    digits = recipe(data={"type": "digits", "size": 32}, conditioners={}, evaluate=[])
    found = verify_resume(digits, 3, 1, folder=tmp_path / "runs")
    assert found.same, found.different
    stages = {name.partition("/")[0] for name in found.files}
    assert stages == {"autoencoder", "first-stage", "diffusion"}
    assert "diffusion/ema.safetensors" in found.files


def test_what_cannot_be_verified(recipe: Callable[..., Recipe]) -> None:
    for n, k in ((3, 3), (3, 0)):
        with pytest.raises(UsageError, match="between 1 and n - 1"):
            verify_resume(recipe(), n, k)


def test_the_recipe_is_shortened_and_nothing_else(recipe: Callable[..., Recipe]) -> None:
    short = shortened(recipe(), 9, 4)
    assert (short.train.steps, short.train.checkpoint_every, short.evaluate) == (9, 4, [])
    assert short.autoencoder.train is not None
    assert short.autoencoder.train.steps == 9
    assert short.denoiser == recipe().denoiser
    assert short.seed == recipe().seed


def test_a_difference_is_named() -> None:
    found = Verification(3, 1, {"diffusion/ema.safetensors": ("a", "b"), "diffusion/model.safetensors": ("c", "c")})
    assert not found.same
    assert found.different == ["diffusion/ema.safetensors"]
    assert not Verification(3, 1, {}).same
