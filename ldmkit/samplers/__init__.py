"""Samplers: plain functions over a denoiser (x_t, t) -> x_0.

    latents = dpmpp_2m(denoiser, noise, schedule, 20)

One page each; their keyword-only arguments are what a recipe's `sample` section takes. For about 20 steps take DPM++ 2M.
Inpainting, guidance and the like wrap the denoiser; `img2img` wraps the sampler.
"""

from ldmkit.samplers.clipping import Clip, clipped
from ldmkit.samplers.contract import Callback, Generators, Sampler, predict
from ldmkit.samplers.ddim import ddim
from ldmkit.samplers.ddpm import ddpm
from ldmkit.samplers.deis import deis
from ldmkit.samplers.dpm_solver import dpm_solver
from ldmkit.samplers.dpmpp_2m import dpmpp_2m
from ldmkit.samplers.dpmpp_2s import dpmpp_2s
from ldmkit.samplers.dpmpp_sde import dpmpp_sde
from ldmkit.samplers.euler import euler
from ldmkit.samplers.euler_ancestral import euler_ancestral
from ldmkit.samplers.grid import Grid, make_grid
from ldmkit.samplers.heun import heun
from ldmkit.samplers.img2img import img2img
from ldmkit.samplers.interpolation import slerp
from ldmkit.samplers.inversion import invert
from ldmkit.samplers.lcm import lcm
from ldmkit.samplers.lms import lms
from ldmkit.samplers.masking import masked
from ldmkit.samplers.plms import plms
from ldmkit.samplers.repaint import repaint
from ldmkit.samplers.spacing import SPACINGS, Spacing, spacing_of
from ldmkit.samplers.tcd import tcd
from ldmkit.samplers.unipc import unipc

__all__ = [
    "SPACINGS",
    "Callback",
    "Clip",
    "Generators",
    "Grid",
    "Sampler",
    "Spacing",
    "clipped",
    "ddim",
    "ddpm",
    "deis",
    "dpm_solver",
    "dpmpp_2m",
    "dpmpp_2s",
    "dpmpp_sde",
    "euler",
    "euler_ancestral",
    "heun",
    "img2img",
    "invert",
    "lcm",
    "lms",
    "make_grid",
    "masked",
    "plms",
    "predict",
    "repaint",
    "slerp",
    "spacing_of",
    "tcd",
    "unipc",
]
