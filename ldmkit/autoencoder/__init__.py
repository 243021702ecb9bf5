"""Stage one: E and D, the regularizer between them, and what trains and judges them.

    autoencoder = make("vq", downsample=4, codebook=8192)      # or paper("vq-f4"), or VQAutoencoder(...)
    latents = autoencoder.encode(images)                       # scaled; before quantisation
    images = autoencoder.decode(latents)                       # undoes the scale, quantises

`base` holds the contract, `vq`, `kl` and `identity` its three kinds, `networks` and `layers` the encoder and decoder they
share, `quantizer` and `nearest` the codebook, `catalogue` the paper's sixteen. `losses` is what a training loop minimises
(with `perceptual`, `adversarial` and `discriminator`), `statistics` the measured scale of the latent, `alarms` what goes
wrong and what to try, `tiling` and `exact` large images. lpips and torchvision are loaded when a perceptual loss is built.
"""

from ldmkit.autoencoder.adversarial import AdversarialOptions
from ldmkit.autoencoder.alarms import Alarm, Alarms, Limits, Movement
from ldmkit.autoencoder.base import Autoencoder
from ldmkit.autoencoder.config import NetworkConfig
from ldmkit.autoencoder.discriminator import PatchDiscriminator
from ldmkit.autoencoder.exact_tiling import exact_decode, exact_encode
from ldmkit.autoencoder.identity import IdentityAutoencoder
from ldmkit.autoencoder.kl import KLAutoencoder
from ldmkit.autoencoder.losses import AutoencoderLoss, PerceptualOptions, make_loss
from ldmkit.autoencoder.paper_models import PAPER, make, paper
from ldmkit.autoencoder.perceptual import Perceptual
from ldmkit.autoencoder.posterior import Posterior, Reconstruction
from ldmkit.autoencoder.statistics import LatentStatistics, measure
from ldmkit.autoencoder.tiling import tiled_decode, tiled_encode
from ldmkit.autoencoder.vq import VQAutoencoder

__all__ = [
    "PAPER",
    "AdversarialOptions",
    "Alarm",
    "Alarms",
    "Autoencoder",
    "AutoencoderLoss",
    "IdentityAutoencoder",
    "KLAutoencoder",
    "LatentStatistics",
    "Limits",
    "Movement",
    "NetworkConfig",
    "PatchDiscriminator",
    "Perceptual",
    "PerceptualOptions",
    "Posterior",
    "Reconstruction",
    "VQAutoencoder",
    "exact_decode",
    "exact_encode",
    "make",
    "make_loss",
    "measure",
    "paper",
    "tiled_decode",
    "tiled_encode",
]
