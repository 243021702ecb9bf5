"""The recipe's keys and defaults are the constructors': nothing is declared twice and drifts apart."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from ldmkit.autoencoder import (
    AdversarialOptions,
    AutoencoderLoss,
    IdentityAutoencoder,
    NetworkConfig,
    PerceptualOptions,
    VQAutoencoder,
)
from ldmkit.data import Dataset
from ldmkit.denoiser.levels import Variant as UNetVariant
from ldmkit.denoiser.unet import UNet
from ldmkit.diffusion import DISTANCES, TIMESTEP_SAMPLINGS, WEIGHTINGS
from ldmkit.diffusion import make as make_diffusion
from ldmkit.recipe import objective, sections
from ldmkit.recipe.base import Section
from ldmkit.recipe.training import Runtime
from ldmkit.schedules import SCHEDULES
from ldmkit.training.runtime import resolve

UNSET = "no default"


def parameters(target: Callable[..., Any]) -> dict[str, Any]:
    """Keyword-only parameters and their defaults, as JSON has them."""
    found = inspect.signature(target).parameters.values()
    return {p.name: UNSET if p.default is p.empty else plain(p.default) for p in found if p.kind is p.KEYWORD_ONLY}


def keys(section: type[Section]) -> dict[str, Any]:
    found = {}
    for name, field in section.model_fields.items():
        found[field.alias or name] = (
            UNSET if field.is_required() else plain(field.get_default(call_default_factory=True))
        )
    return found


def plain(value: Any) -> Any:
    if isinstance(value, Section):
        return plain(value.model_dump(mode="json"))
    return list(value) if isinstance(value, tuple) else value


def without(mapping: dict[str, Any], *names: str) -> dict[str, Any]:
    assert set(names) <= set(mapping), names
    return {name: value for name, value in mapping.items() if name not in names}


AUTOENCODER = ("type", "from", "scale", "train")  # how it is found and trained, not what it is


def test_autoencoders():
    network = {**parameters(NetworkConfig), "image_channels": None}  # left out, it is the data's
    assert without(keys(sections.KL), *AUTOENCODER, "loss") == network
    assert without(keys(sections.VQ), *AUTOENCODER, "loss") == {**network, **parameters(VQAutoencoder)}
    assert without(keys(sections.Identity), *AUTOENCODER) == {**parameters(IdentityAutoencoder), "image_channels": None}


def test_autoencoder_loss():
    assert keys(sections.AutoencoderLoss) == without(parameters(AutoencoderLoss), "image_channels")
    assert keys(sections.Perceptual) == parameters(PerceptualOptions)
    # The discriminator's condition is for callers of the class: no stage of a recipe has one to give.
    assert keys(sections.Adversarial) == without(parameters(AdversarialOptions), "condition_channels")


def test_denoiser():
    constructor = without(parameters(UNet), "in_channels", "out_channels", "context_width", "variant")
    assert without(keys(sections.Denoiser), "type", "variant") == constructor
    assert keys(sections.Variant) == {name: field.default for name, field in UNetVariant.__dataclass_fields__.items()}


def test_diffusion():
    own = without(keys(objective.Diffusion), "schedule", "loss", "weighting", "timestep_sampling")
    assert own == without(parameters(make_diffusion), "schedule", "loss", "weighting", "timestep_sampling")


SCHEDULE_SECTIONS = (
    objective.Linear, objective.PlainLinear, objective.Sqrt, objective.Cosine, objective.Given, objective.EDM, objective.Flow,
)  # fmt: skip
LOSSES = (objective.L2, objective.L1, objective.Huber)
WEIGHTING_SECTIONS = (
    objective.Simple, objective.SNR, objective.MinSNR, objective.P2, objective.EDMWeighting, objective.ELBO,
)  # fmt: skip
TIMESTEPS = (objective.Uniform, objective.Stratified, objective.LogitNormal, objective.LogNormal)
TABLES = {"schedule": SCHEDULES, "loss": DISTANCES, "weighting": WEIGHTINGS, "timestep_sampling": TIMESTEP_SAMPLINGS}
CHOICES: dict[type[Section], Any] = {
    **dict.fromkeys(SCHEDULE_SECTIONS, SCHEDULES),
    **dict.fromkeys(LOSSES, DISTANCES),
    **dict.fromkeys(WEIGHTING_SECTIONS, WEIGHTINGS),
    **dict.fromkeys(TIMESTEPS, TIMESTEP_SAMPLINGS),
}


@pytest.mark.parametrize("section", CHOICES, ids=lambda section: section.__name__)
def test_choices(section):
    own = keys(section)
    target = CHOICES[section][own.pop("type")]
    shared = {"zero_snr", "shift"} if section in SCHEDULE_SECTIONS else set()
    assert without(own, *shared) == parameters(target)


@pytest.mark.parametrize("key", TABLES)
def test_every_choice_has_a_section(key):
    sections_of = [keys(section)["type"] for section, table in CHOICES.items() if table is TABLES[key]]
    assert sorted(sections_of) == sorted(TABLES[key])


def test_data_and_runtime():
    data = without(keys(sections.Data), "type")
    dataset = without(parameters(Dataset), "seed", "aligned")
    assert data == dataset
    assert without(keys(Runtime), "cache", "distributed", "trackers") == parameters(resolve)
