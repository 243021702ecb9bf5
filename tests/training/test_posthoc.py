from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ldmkit.errors import CheckpointError, UsageError
from ldmkit.training.checkpointing.checkpoints import Checkpoints
from ldmkit.training.diffusion import train_diffusion
from ldmkit.training.logging.log import Log
from ldmkit.training.posthoc import (
    SNAPSHOTS,
    PostHoc,
    Profile,
    combination,
    exponent,
    forget_after,
    reconstruct,
    snapshots,
    width,
)
from ldmkit.training.stop import Interrupted, Stop
from tests.conftest import checksums
from tests.training.conftest import Soon

STEPS = 240


def walk(steps: int = STEPS) -> torch.Tensor:
    """The weights of a training: a curve that settles, with noise. (steps, 5)"""
    t = torch.linspace(0, 1, steps, dtype=torch.float64)[:, None]
    noise = torch.randn(steps, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return torch.exp(-3 * t) * torch.arange(1.0, 6.0, dtype=torch.float64) + 0.1 * noise


def tracked(sigma_rel: tuple[float, float], folder: Path | None = None, every: int = 20) -> dict[str, torch.Tensor]:
    parameter = nn.Parameter(walk()[0].clone())
    averages = PostHoc({"w": parameter}, sigma_rel=sigma_rel, every=every)
    for step, value in enumerate(walk(), start=1):
        parameter.data.copy_(value)
        averages.update()
        if folder is not None and step % every == 0:
            averages.snapshot(folder, step)
    return averages.tensors()


def bins(end: int, power: float) -> np.ndarray:
    """What a profile gives each step: its integral over (s - 1, s]."""
    edges = (np.arange(end + 1) / end) ** (power + 1)
    return np.diff(edges)


def test_widths_and_exponents_are_the_papers() -> None:
    assert exponent(0.05) == pytest.approx(16.97, abs=0.005)  # figure 4 of the paper
    assert exponent(0.10) == pytest.approx(6.94, abs=0.005)
    for sigma_rel in (0.01, 0.05, 0.2, 0.28):
        assert width(exponent(sigma_rel)) == pytest.approx(sigma_rel)
    power = exponent(0.1)
    steps = np.arange(1, 100_001) / 100_000
    weights = bins(100_000, power)
    mean = (weights * steps).sum()
    assert np.sqrt((weights * (steps - mean) ** 2).sum()) == pytest.approx(0.1, rel=1e-4)  # what sigma_rel means
    for wrong in (0.0, -1.0, 0.4):
        with pytest.raises(UsageError, match="a flat average"):
            exponent(wrong)


def test_the_tracked_average_is_the_closed_form() -> None:
    averages = tracked((0.05, 0.1))
    for sigma_rel in (0.05, 0.1):
        expected = torch.from_numpy(bins(STEPS, exponent(sigma_rel))) @ walk()
        assert torch.allclose(averages[f"{sigma_rel:g}/w"], expected, atol=1e-12)


def test_the_inner_product_of_profiles_is_their_integral() -> None:
    one, other = Profile(60, 17.0), Profile(100, 7.0)
    s = (np.arange(600_000) + 0.5) / 10_000
    p = 18 * s**17 / 60.0**18
    q = 8 * s**7 / 100.0**8
    assert one.dot(other) == pytest.approx(float((p * q).sum() / 10_000), rel=1e-6)
    assert other.dot(one) == one.dot(other)


def test_a_stored_average_comes_back_exactly(tmp_path: Path) -> None:
    averages = tracked((0.05, 0.1), tmp_path)
    for sigma_rel in (0.05, 0.1):
        found = reconstruct(tmp_path, sigma_rel)
        assert found.error < 1e-5
        assert torch.allclose(found.tensors["w"].double(), averages[f"{sigma_rel:g}/w"], rtol=1e-5)
    assert (found.step, found.snapshots) == (240, 12)


@pytest.mark.parametrize("sigma_rel", [0.04, 0.07, 0.12])
def test_another_length_is_what_would_have_been_tracked(tmp_path: Path, sigma_rel: float) -> None:
    tracked((0.05, 0.1), tmp_path)
    directly = tracked((sigma_rel, 0.15))[f"{sigma_rel:g}/w"]
    found = reconstruct(tmp_path, sigma_rel)
    assert found.error < 0.02
    # The stored profiles' own combination, in closed form: what the method gives, to rounding ...
    stored = [Profile(end, exponent(own)) for end in range(20, STEPS + 1, 20) for own in (0.05, 0.1)]
    factors, error = combination(stored, Profile(STEPS, exponent(sigma_rel)))
    profile = np.zeros(STEPS)
    for factor, one in zip(factors, stored, strict=True):
        profile[: int(one.end)] += factor * bins(int(one.end), one.exponent)
    assert torch.allclose(found.tensors["w"].double(), torch.from_numpy(profile) @ walk(), rtol=1e-6)
    # ... which is the least squares' answer, and so near the average that was wished for as its profile is.
    left = profile - bins(STEPS, exponent(sigma_rel))
    assert np.linalg.norm(left) / np.linalg.norm(profile) == pytest.approx(error, abs=0.01)
    assert torch.allclose(found.tensors["w"].double(), directly, rtol=0.02)


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("sigma_rel", [0.02, 0.07, 0.15, 0.2])
def test_factors_sum_to_one_and_the_average_of_equal_weights_is_these(
    tmp_path: Path, count: int, sigma_rel: float
) -> None:
    """As in EDM2's `solve_posthoc_coefficients`, whatever the number of snapshots; the profile may be far from the wanted one."""
    stored = [Profile(end, exponent(own)) for end in range(1, count + 1) for own in (0.05, 0.1)]
    factors, _ = combination(stored, Profile(count, exponent(sigma_rel)))
    assert factors.sum() == pytest.approx(1.0, abs=1e-12)
    constant = nn.Parameter(torch.tensor([3.0, -0.25, 1.0], dtype=torch.float64))
    averages = PostHoc({"w": constant}, sigma_rel=(0.05, 0.1), every=1)
    for step in range(1, count + 1):
        averages.update()
        averages.snapshot(tmp_path, step)
    found = reconstruct(tmp_path, sigma_rel).tensors["w"].double()
    largest = float(np.abs(factors).sum())  # what rounding of the stored averages is multiplied with
    assert torch.allclose(found, constant.data, rtol=1e-6 + largest * 1e-12)


def test_an_earlier_step(tmp_path: Path) -> None:
    tracked((0.05, 0.1), tmp_path)
    found = reconstruct(tmp_path, 0.07, step=120)
    directly = torch.from_numpy(bins(120, exponent(0.07))) @ walk()[:120]
    assert found.step == 120
    assert torch.allclose(found.tensors["w"].double(), directly, rtol=0.02)
    with pytest.raises(UsageError, match="no snapshot of step 7"):
        reconstruct(tmp_path, 0.07, step=7)


def test_what_cannot_be_put_together(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no snapshots"):
        reconstruct(tmp_path, 0.05)
    with pytest.raises(UsageError, match="two different widths"):
        PostHoc({}, sigma_rel=(0.1, 0.1), every=1)
    averages = PostHoc({"w": nn.Parameter(torch.zeros(2))}, sigma_rel=(0.05, 0.1), every=1)
    with pytest.raises(CheckpointError, match=r"tracks averages of sigma_rel 0\.05, 0\.2"):
        averages.load({"0.05/w": torch.zeros(2), "0.2/w": torch.zeros(2)}, updates=3)


def train(toy: SimpleNamespace, folder: Path, stop: Stop | None = None) -> None:
    from ldmkit.recipe.training import PostHoc as Settings

    train_diffusion(
        toy.model(),
        toy.data(),
        toy.data(),
        settings=toy.settings(post_hoc=Settings(every=3), checkpoint_every=4),
        seed=5,
        checkpoints=Checkpoints(folder / "diffusion"),
        log=Log(folder),
        stop=stop or Stop(),
    )


def test_an_interrupted_training_tracks_the_same_bits(toy: SimpleNamespace, tmp_path: Path) -> None:
    train(toy, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(toy, tmp_path / "parts", Soon(5))
    train(toy, tmp_path / "parts")
    assert checksums(tmp_path / "parts" / "diffusion") == checksums(tmp_path / "whole" / "diffusion")
    assert "post-hoc.safetensors" in checksums(tmp_path / "whole" / "diffusion")
    places = [tmp_path / name / "diffusion" / SNAPSHOTS for name in ("whole", "parts")]
    for one, other in zip(*map(snapshots, places), strict=True):
        assert one.step == other.step
        assert (one.path / "average.safetensors").read_bytes() == (other.path / "average.safetensors").read_bytes()
    assert [snapshot.step for snapshot in snapshots(places[0])] == [3, 6]
    assert set(reconstruct(places[0], 0.07).tensors) == {
        name.partition("/")[2] for name in torch_names(tmp_path / "whole")
    }
    forget_after(places[0], 4)
    assert [snapshot.step for snapshot in snapshots(places[0])] == [3]


def torch_names(folder: Path) -> list[str]:
    newest = Checkpoints(folder / "diffusion").newest()
    assert newest is not None
    return list(newest.tensors("post-hoc"))
