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


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    truth = torch.rand(3, 3, 24, 31, generator=source) * 2 - 1
    return (truth + 0.2 * torch.randn(truth.shape, generator=source)).clamp(-1, 1), truth


def test_psnr_is_scikit_images_and_torchmetrics(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, truth = pair
    expected = [peak_signal_noise_ratio(t.numpy(), i.numpy(), data_range=2) for i, t in zip(images, truth, strict=True)]
    np.testing.assert_allclose(psnr(images, truth).numpy(), expected, rtol=1e-6)
    other = torchmetrics_psnr(images, truth, data_range=2.0, reduction="elementwise_mean", dim=(1, 2, 3))
    assert float(psnr(images, truth).mean()) == pytest.approx(float(other), rel=1e-5)
    assert psnr(truth, truth).isinf().all()


def test_ssim_is_scikit_images_and_torchmetrics(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, truth = pair
    expected = [
        structural_similarity(
            t.numpy(),
            i.numpy(),
            data_range=2,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for i, t in zip(images, truth, strict=True)
    ]
    np.testing.assert_allclose(ssim(images, truth).numpy(), expected, rtol=1e-5)
    _, everywhere = torchmetrics_ssim(images, truth, data_range=2.0, reduction="none", return_full_image=True)
    inside = everywhere[..., 5:-5, 5:-5].mean((1, 2, 3))  # it pads the picture by reflection; Wang et al. do not
    np.testing.assert_allclose(ssim(images, truth).numpy(), inside.numpy(), rtol=1e-4)
    assert torch.allclose(ssim(truth, truth), torch.ones(3, dtype=torch.float64))


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
    assert figure.beside["autoencoder bound"] == pytest.approx(float(bound), rel=1e-5)
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
    assert bound.label == "autoencoder perceptual distance (squeeze, random weights; not LPIPS)"
    assert bound.value == pytest.approx(figure.beside["autoencoder bound"])


def test_figures_stand_beside_bicubic_and_the_bound(evaluation: Evaluation) -> None:
    figure = PSNR().compute(evaluation)[0]
    truth, baseline = evaluation.truth, evaluation.baseline
    assert baseline is not None
    assert figure.value == pytest.approx(float(psnr(evaluation.generated[:40], truth).mean()))
    assert figure.beside["bicubic"] == pytest.approx(float(psnr(baseline[:40], truth).mean()))
    assert figure.beside["autoencoder bound"] == pytest.approx(float(psnr(evaluation.reconstructions, truth).mean()))
    assert (figure.n, figure.seed, figure.baseline) == (40, 3, "bicubic")
    assert figure.interval is not None
    assert figure.interval[0] < figure.value < figure.interval[1]
    assert figure.beats_baseline() is False
    assert SSIM().compute(evaluation)[0].beside["autoencoder bound"] < 1
    bound = Reconstruction(weights=None).compute(evaluation)
    assert [f.name for f in bound] == ["reconstruction-psnr", "reconstruction-ssim"]
    assert bound[0].value == pytest.approx(figure.beside["autoencoder bound"])
