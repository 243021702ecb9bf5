"""PSNR, SSIM and LPIPS against the packages people know."""

from __future__ import annotations

import warnings
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ldmkit.autoencoder.perceptual import Perceptual
from ldmkit.errors import UsageError
from ldmkit.evaluation.context import Evaluation
from ldmkit.evaluation.metrics import LPIPS, PSNR, SSIM, Reconstruction
from ldmkit.evaluation.metrics.perceptual import perceptual_distance
from ldmkit.evaluation.metrics.similarity import psnr, ssim

with warnings.catch_warnings():  # its optional dependencies warn while they are looked for
    warnings.simplefilter("ignore")
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio as torchmetrics_psnr,
    )
    from torchmetrics.functional.image import (
        structural_similarity_index_measure as torchmetrics_ssim,
    )


def as_a_person_has_them(images: torch.Tensor) -> np.ndarray:
    """(n, c, h, w) of 8-bit images in [-1, 1] -> uint8 (n, c, h, w)."""
    return ((images + 1) * 127.5).round().to(torch.uint8).numpy()


def in_model_range(levels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(levels).float() / 127.5 - 1


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Images of 256 levels, so that both sides can be given the same."""
    source = np.random.default_rng(0)
    truth = source.integers(0, 256, (3, 3, 24, 31), dtype=np.uint8)
    other = np.clip(truth + source.normal(0, 25, truth.shape), 0, 255).astype(np.uint8)
    return in_model_range(other), in_model_range(truth)


def test_psnr_is_scikit_images_and_torchmetrics(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, truth = (as_a_person_has_them(each) for each in pair)
    expected = [peak_signal_noise_ratio(t, i) for i, t in zip(images, truth, strict=True)]  # its range is that of uint8
    np.testing.assert_allclose(psnr(*pair).numpy(), expected, rtol=1e-6)
    other = torchmetrics_psnr(
        *(torch.from_numpy(each).double() for each in (images, truth)), data_range=255.0, dim=(1, 2, 3)
    )
    assert float(psnr(*pair).mean()) == pytest.approx(float(other), rel=1e-5)
    assert psnr(pair[1], pair[1]).isinf().all()


def test_ssim_is_scikit_images_and_torchmetrics(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, truth = (as_a_person_has_them(each) for each in pair)
    how = {"channel_axis": 0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = [structural_similarity(t, i, **how) for i, t in zip(images, truth, strict=True)]
    np.testing.assert_allclose(ssim(*pair).numpy(), expected, rtol=1e-5)
    levels = (torch.from_numpy(each).double() for each in (images, truth))
    _, everywhere = torchmetrics_ssim(*levels, data_range=255.0, reduction="none", return_full_image=True)
    inside = everywhere[..., 5:-5, 5:-5].mean((1, 2, 3))  # it pads the image by reflection; Wang et al. do not
    np.testing.assert_allclose(ssim(*pair).numpy(), inside.numpy(), rtol=1e-5)
    assert torch.allclose(ssim(pair[1], pair[1]), torch.ones(3, dtype=torch.float64))


def test_ssim_of_flat_greys_is_the_closed_form() -> None:
    """Without variance only brightness is compared: (2 m n + c) / (m^2 + n^2 + c), m and n in [0, 1]."""
    dark, bright = (np.full((1, 1, 16, 16), level, np.uint8) for level in (128, 132))
    m, n, c = 128 / 255, 132 / 255, 0.01**2
    found = float(ssim(in_model_range(dark), in_model_range(bright)))
    assert found == pytest.approx((2 * m * n + c) / (m**2 + n**2 + c), abs=1e-6)
    assert round(found, 4) == 0.9995


def test_ssim_refuses_pictures_smaller_than_its_window() -> None:
    with pytest.raises(UsageError, match="11 x 11 pixels; these are 8x30"):
        ssim(torch.zeros(1, 1, 8, 30), torch.zeros(1, 1, 8, 30))


@pytest.mark.filterwarnings("ignore:The parameter 'pretrained':UserWarning", "ignore:Arguments other:UserWarning")
def test_lpips_is_the_packages(pair: tuple[torch.Tensor, torch.Tensor], evaluation: Evaluation, tmp_path: Path) -> None:
    """With torchvision's weights from a path: the backbone is drawn here and given to both."""
    import torchvision

    with torch.random.fork_rng():
        torch.manual_seed(5)
        backbone = torchvision.models.squeezenet1_1(weights=None)
    torch.save(backbone.state_dict(), tmp_path / "squeeze.pth")
    reference = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    names = {name: "features." + name.split(".", 1)[1] for name in reference.net.state_dict()}
    reference.net.load_state_dict({name: backbone.state_dict()[other] for name, other in names.items()})
    evaluation.n, evaluation.chunk = 6, 4
    with torch.no_grad():
        expected = reference(evaluation.generated, evaluation.truth).flatten()
        bound = reference(evaluation.reconstructions, evaluation.truth).mean()
    figure = LPIPS(net="squeeze", weights=str(tmp_path / "squeeze.pth")).compute(evaluation)[0]
    assert figure.value == pytest.approx(float(expected.mean()), rel=1e-5)
    assert figure.beside["reconstruction"] == pytest.approx(float(bound), rel=1e-5)
    assert figure.label == "LPIPS (squeeze)"

    network = Perceptual("squeeze", str(tmp_path / "squeeze.pth"))  # pictures of 12 pixels are shown twice as large
    small = pair[0][:, :, :12, :12], pair[1][:, :, :12, :12]
    with torch.no_grad():
        expected = reference(*(x.repeat_interleave(2, 2).repeat_interleave(2, 3) for x in small)).flatten()
    torch.testing.assert_close(perceptual_distance(network, *small, evaluation), expected)


def test_a_stand_in_for_lpips_says_so(evaluation: Evaluation) -> None:
    evaluation.n = 4
    figure = LPIPS(net="squeeze").compute(evaluation)[0]
    assert figure.label == "perceptual distance (squeeze, random weights; not LPIPS)"
    assert "not the published measure" in figure.note
    bound = Reconstruction(net="squeeze").compute(evaluation)[2]
    assert bound.label == "reconstruction perceptual distance (squeeze, random weights; not LPIPS)"
    assert bound.value == pytest.approx(figure.beside["reconstruction"])


def test_figures_stand_beside_bicubic_and_the_bound(evaluation: Evaluation) -> None:
    figure = PSNR().compute(evaluation)[0]
    truth, baseline = evaluation.truth, evaluation.baseline
    assert baseline is not None
    assert figure.value == pytest.approx(float(psnr(evaluation.generated[:40], truth).mean()))
    assert figure.beside["bicubic"] == pytest.approx(float(psnr(baseline[:40], truth).mean()))
    assert figure.beside["reconstruction"] == pytest.approx(float(psnr(evaluation.reconstructions, truth).mean()))
    assert (figure.n, figure.seed, figure.baseline) == (40, 3, "bicubic")
    assert figure.interval is not None
    assert figure.interval[0] < figure.value < figure.interval[1]
    assert figure.verdict() == "worse"
    assert set(figure.differences) == {"bicubic", "reconstruction"}
    assert SSIM().compute(evaluation)[0].beside["reconstruction"] < 1
    bound = Reconstruction(weights=None).compute(evaluation)
    assert [f.name for f in bound] == ["reconstruction-psnr", "reconstruction-ssim"]
    assert bound[0].value == pytest.approx(figure.beside["reconstruction"])
