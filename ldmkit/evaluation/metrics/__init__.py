"""The core's own metrics, each registered by name in `ldmkit.plugins.defaults`."""

from ldmkit.evaluation.gain import ConditioningGain
from ldmkit.evaluation.metrics.fidelity import Fidelity
from ldmkit.evaluation.metrics.frechet import Frechet
from ldmkit.evaluation.metrics.judge import Judge
from ldmkit.evaluation.metrics.nearest import Nearest
from ldmkit.evaluation.metrics.perceptual import LPIPS
from ldmkit.evaluation.metrics.reconstruction import Reconstruction
from ldmkit.evaluation.metrics.similarity import PSNR, SSIM
from ldmkit.evaluation.metrics.spectrum import Spectrum
from ldmkit.evaluation.metrics.subsets import Subsets
from ldmkit.evaluation.metrics.variational_bound import VariationalBound

__all__ = [
    "LPIPS",
    "PSNR",
    "SSIM",
    "ConditioningGain",
    "Fidelity",
    "Frechet",
    "Judge",
    "Nearest",
    "Reconstruction",
    "Spectrum",
    "Subsets",
    "VariationalBound",
]
