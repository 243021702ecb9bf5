"""Guidance, by wrapping: a guided denoiser is a denoiser, (x_t (b, c, h, w), t (b,)) -> x_0 (b, c, h, w).

`parse` reads what a person wrote into weights over branches; `guided` (and `apg`, `plus_plus`, `perp_neg`) combine the
branches' predictions, all of them from one call of the network. `autoguided` and the gradients wrap any denoiser. `make_method`
reads a recipe's `sample.guidance_options`: the same by name, for `LatentDiffusion.sample`.

Everything combines predictions of x_0. Weights sum to 1, and at given x_t the predictions eps and v are affine in x_0,
so the same weights on eps or v give the same sample.
"""

from ldmkit.guidance.apg import apg
from ldmkit.guidance.autoguidance import autoguided
from ldmkit.guidance.cfg_plus_plus import Levels, plus_plus
from ldmkit.guidance.classifier_free import Branches, ConditionalDenoiser, Interval, Weights, guided
from ldmkit.guidance.expressions import Guidance, parse
from ldmkit.guidance.gradient import Likelihood, gradient_guided, noisy_gradient_guided
from ldmkit.guidance.methods import METHODS, Given, Method, make_method
from ldmkit.guidance.perp_neg import perp_neg

__all__ = [
    "METHODS",
    "Branches",
    "ConditionalDenoiser",
    "Given",
    "Guidance",
    "Interval",
    "Levels",
    "Likelihood",
    "Method",
    "Weights",
    "apg",
    "autoguided",
    "gradient_guided",
    "guided",
    "make_method",
    "noisy_gradient_guided",
    "parse",
    "perp_neg",
    "plus_plus",
]
