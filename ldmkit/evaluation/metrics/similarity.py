"""Peak signal-to-noise ratio and structural similarity: how close a picture is to the truth, pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ldmkit.errors import UsageError
from ldmkit.evaluation.context import Evaluation
from ldmkit.evaluation.metric import Metric
from ldmkit.evaluation.results import Figure

RANGE = 2.0  # images lie in [-1, 1]; PSNR does not depend on where
SHARE = 32  # images at a time: in float64 all of them may not fit


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """(n,) dB: 10 log10(RANGE^2 / mean squared error) of each picture (n, c, h, w) in [-1, 1]; infinite where they are equal."""
    error = (images.double() - truth.double()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(RANGE**2 / error)


def ssim(images: Tensor, truth: Tensor, *, window: int = 11, sigma: float = 1.5) -> Tensor:
    """(n,) structural similarity of images (n, c, h, w) in [-1, 1], at most 1; mean over positions and channels.

    Wang et al. 2004 (IEEE TIP 13(4)), equation 13, with a Gaussian window, K1 = 0.01, K2 = 0.03, inside the image only. It
    compares brightness by ratio, so where black lies matters: computed on [0, 1], as everybody does. `UsageError` for images
    smaller than the window.
    """
    if min(images.shape[-2:]) < window:
        size = "x".join(str(side) for side in images.shape[-2:])
        raise UsageError(f"SSIM needs pictures of at least {window} x {window} pixels; these are {size}")
    places = torch.arange(window, dtype=torch.float64) - window // 2
    line = torch.exp(-places.square() / (2 * sigma**2))
    line = line / line.sum()
    # In float64: the variance of a nearly flat image is the difference of two nearly equal numbers.
    pairs = zip(torch.split(images, SHARE), torch.split(truth, SHARE), strict=True)
    return torch.cat([_ssim((x.double() + 1) / 2, (y.double() + 1) / 2, line) for x, y in pairs])


def _ssim(images: Tensor, truth: Tensor, line: Tensor) -> Tensor:
    """(n,) of images (n, c, h, w) in [0, 1], with the window `line` along both sides."""
    count, channels, height, width = images.shape

    def blur(planes: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(planes, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))

    x, y = (each.reshape(count * channels, 1, height, width) for each in (images, truth))
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return value.reshape(count, -1).mean(dim=1)


def compared(evaluation: Evaluation, distance: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """`distance` to the truth: (distinct,) of the generated images, and beside it of bicubic and of the reconstruction."""
    truth = evaluation.truth
    own = distance(evaluation.generated[: len(truth)], truth)
    beside = {}
    if evaluation.baseline is not None:
        beside["bicubic"] = distance(evaluation.baseline[: len(truth)], truth)
    beside["reconstruction"] = distance(evaluation.reconstructions, truth)
    return own, beside


class PSNR(Metric):
    """PSNR of the generated images against the truth, beside bicubic and the reconstruction."""

    def compute(self, evaluation: Evaluation) -> list[Figure]:
        own, beside = compared(evaluation, psnr)
        note = (
            "How close each sample is to the one true picture, pixel by pixel. It rewards the blurred average of all "
            "plausible pictures, so bicubic is hard to beat here by anything that draws detail."
        )
        baseline = "bicubic" if "bicubic" in beside else None
        return [evaluation.figure("psnr", own, title="PSNR", unit="dB", beside=beside, baseline=baseline, note=note)]


class SSIM(Metric):
    """SSIM of the generated images against the truth, beside bicubic and the reconstruction."""

    def compute(self, evaluation: Evaluation) -> list[Figure]:
        own, beside = compared(evaluation, ssim)
        note = "Agreement of local brightness, contrast and structure with the true picture; 1 is equal."
        baseline = "bicubic" if "bicubic" in beside else None
        return [evaluation.figure("ssim", own, title="SSIM", beside=beside, baseline=baseline, note=note)]
