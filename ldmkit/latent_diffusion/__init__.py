"""`LatentDiffusion`: autoencoder + denoiser + conditioners + diffusion."""

from ldmkit.latent_diffusion.files import read_config, read_nulls, read_weights
from ldmkit.latent_diffusion.model import LatentDiffusion
from ldmkit.latent_diffusion.parts import Draws, Slot
from ldmkit.latent_diffusion.pictures import to_pil
from ldmkit.samplers import Sampler

__all__ = ["Draws", "LatentDiffusion", "Sampler", "Slot", "read_config", "read_nulls", "read_weights", "to_pil"]
