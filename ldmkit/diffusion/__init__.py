"""The diffusion process and the objective: predictions, losses, weightings, the choice of timesteps, the variational bound."""

from ldmkit.diffusion.losses import DISTANCES, L1, L2, Distance, Huber
from ldmkit.diffusion.objective import Diffusion, Network, PredictionName, X0Predictor, make
from ldmkit.diffusion.predictions import PREDICTIONS, X0, Eps, Prediction, V, Velocity
from ldmkit.diffusion.timestep_sampling import (
    TIMESTEP_SAMPLINGS,
    LogitNormal,
    LogNormal,
    Stratified,
    TimestepSampling,
    Uniform,
)
from ldmkit.diffusion.variational_bound import Bound, variational_bound
from ldmkit.diffusion.weightings import ELBO, P2, SNR, WEIGHTINGS, EDMWeighting, MinSNR, Simple, Weighting

__all__ = [
    "DISTANCES",
    "ELBO",
    "L1",
    "L2",
    "P2",
    "PREDICTIONS",
    "SNR",
    "TIMESTEP_SAMPLINGS",
    "WEIGHTINGS",
    "X0",
    "Bound",
    "Diffusion",
    "Distance",
    "EDMWeighting",
    "Eps",
    "Huber",
    "LogNormal",
    "LogitNormal",
    "MinSNR",
    "Network",
    "Prediction",
    "PredictionName",
    "Simple",
    "Stratified",
    "TimestepSampling",
    "Uniform",
    "V",
    "Velocity",
    "Weighting",
    "X0Predictor",
    "make",
    "variational_bound",
]
