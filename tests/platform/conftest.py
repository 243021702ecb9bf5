"""A recipe of a second or two: small scenes, pixels for latents, a UNet of a few thousand parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"type": "scenes", "size": 16, "count": 16, "held_out": 4},
    "autoencoder": {"type": "identity"},
    "denoiser": {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [2], "heads": 1},
    "train": {"steps": 2, "batch": 4, "ema": 0.9, "log_every": 1, "checkpoint_every": 1, "validate_every": 100},
    "sample": {"steps": 2, "count": 2},
    "runtime": {"device": "cpu", "cache": "off"},
}


@pytest.fixture(scope="session")
def tiny() -> Callable[..., dict[str, Any]]:
    """`tiny(conditioners={...}, train__steps=3)`: a recipe as a mapping."""

    def make(**changes: Any) -> dict[str, Any]:
        value = copy.deepcopy(TINY)
        for key, change in changes.items():
            *sections, last = key.split("__")
            inner: Any = value
            for section in sections:
                inner = inner[section]
            inner[last] = {**inner[last], **change} if isinstance(inner.get(last), Mapping) else change
        return value

    return make


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of another number of threads have other last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
