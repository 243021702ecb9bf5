"""`LatentDiffusion`: autoencoder + denoiser + conditioners + diffusion."""

from ldmkit.latent_diffusion.draws import Draws, Slot
from ldmkit.latent_diffusion.model import LatentDiffusion
from ldmkit.latent_diffusion.networks import Networks
from ldmkit.latent_diffusion.sampled import SampledImages, sheet
from ldmkit.latent_diffusion.serialization import read_config, read_nulls, read_weights
from ldmkit.latent_diffusion.user_images import to_pil
from ldmkit.samplers import Sampler

__all__ = [
    "Draws",
    "LatentDiffusion",
    "Networks",
    "SampledImages",
    "Sampler",
    "Slot",
    "read_config",
    "read_nulls",
    "read_weights",
    "sheet",
    "to_pil",
]
