"""What is timed against diffusers: a forward pass, a training step, guided sampling, encoding and decoding."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.interleaved import agree, error, ratios
from benchmarks.networks import Pair, pair
from ldmkit.autoencoder import KLAutoencoder
from ldmkit.interop.diffusers.keys import autoencoder_rules, export
from ldmkit.latent_diffusion.feature_cache import FeatureCache
from ldmkit.samplers import ddim, dpmpp_2m
from ldmkit.schedules import make as make_schedule
from ldmkit.training.ema import EMA
from ldmkit.training.optim import Group, Optimization

EXACT = 1e-4  # two ways of summing float32
HALF = 5e-2  # bf16: 8 bits, over some hundred layers
Row = dict[str, Any]


def forward(name: str, rounds: int, device: torch.device, **sizes: int) -> Row:
    """One prediction."""
    found = pair(name, device, **sizes)
    low, ours, theirs = (
        found.of(torch.bfloat16),
        copy.deepcopy(found.ours).bfloat16(),
        copy.deepcopy(found.theirs).bfloat16(),
    )
    calls: dict[str, Callable[[], Tensor]] = {
        "diffusers fp32": found.diffusers,
        "fp32": found.forward,
        "diffusers bf16": lambda: low.diffusers(theirs),
        "bf16": lambda: low.forward(ours),
    }
    with torch.inference_mode():
        expected = found.diffusers()
        errors = {key: agree(key, call(), expected, HALF if "bf16" in key else EXACT) for key, call in calls.items()}
        return _row(name, found, errors, ratios(calls, "diffusers fp32", rounds, device))


def training(name: str, rounds: int, device: torch.device, **sizes: int) -> Row:
    """Forward, backward, AdamW and the average of the weights: as `ldmkit run` has them, and as diffusers' scripts do."""
    found = pair(name, device, **sizes)
    target = torch.randn(found.x.shape, generator=torch.Generator().manual_seed(2)).to(device)
    base, expected = _their_step(found, target)
    full, loss = _our_step(found, target, None)
    half, lower = _our_step(found, target, torch.bfloat16)
    errors = {
        "diffusers fp32": 0.0,
        "fp32": agree("fp32", loss, expected, EXACT),
        "bf16": agree("bf16", lower, expected, HALF),
    }
    return _row(
        name,
        found,
        errors,
        ratios({"diffusers fp32": base, "fp32": full, "bf16": half}, "diffusers fp32", rounds, device),
    )


def _our_step(found: Pair, target: Tensor, dtype: torch.dtype | None) -> tuple[Callable[[], None], Tensor]:
    """A step, and all gradients of the first one in a row."""
    unet = copy.deepcopy(found.ours)
    parameters = dict(unet.named_parameters())
    optimization, ema = Optimization([Group(parameters)], lr=1e-4, steps=1000), EMA(parameters, decay=0.9999)

    def gradients() -> None:
        optimization.begin(0)
        with nullcontext() if dtype is None else torch.autocast(target.device.type, dtype):
            loss = F.mse_loss(found.forward(unet).float(), target)
        loss.backward()

    def step() -> None:
        gradients()
        optimization.gradient_norm(1.0)
        optimization.step()
        ema.update()

    gradients()
    return step, torch.stack([p.grad.float().norm() for p in parameters.values() if p.grad is not None]).norm()


def _their_step(found: Pair, target: Tensor) -> tuple[Callable[[], None], Tensor]:
    from diffusers.training_utils import EMAModel

    network = copy.deepcopy(found.theirs)
    optimizer, ema = torch.optim.AdamW(network.parameters(), lr=1e-4), EMAModel(network.parameters(), decay=0.9999)

    def gradients() -> None:
        optimizer.zero_grad()
        F.mse_loss(found.diffusers(network), target).backward()

    def step() -> None:
        gradients()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        ema.step(network.parameters())

    gradients()
    return step, torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None]).norm()


def sampling(name: str, rounds: int, device: torch.device, *, steps: int = 50, **sizes: int) -> Row:
    """`steps` of DDIM with classifier-free guidance, null and condition in one batch on both sides.

    The last rows change the result: fewer steps of another solver, and inner blocks that run in every third evaluation only.
    """
    found = pair(name, device, **sizes)
    schedule = make_schedule(type="linear", start=0.00085, end=0.012)
    base = _diffusers_ddim(found, steps)
    ours, half = found.ours.eval(), copy.deepcopy(found.ours).bfloat16().eval()

    def run(network: nn.Module, sampler: Callable[..., Tensor], count: int, every: int) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with FeatureCache(every=every).applied(network.blocks()):  # type: ignore[operator]
                return sampler(
                    _guided(found, network, schedule), found.x, schedule, count, spacing="leading", clean=False
                )

        return call

    calls = {
        f"diffusers DDIM {steps}": base,
        f"DDIM {steps}": run(ours, ddim, steps, 1),
        f"DDIM {steps}, bf16": run(half, ddim, steps, 1),
        f"DDIM {steps}, cache 3": run(ours, ddim, steps, 3),
        f"DDIM {steps}, bf16, cache 3": run(half, ddim, steps, 3),
        "DPM-Solver++ 2M 15, bf16": run(half, dpmpp_2m, 15, 1),
    }
    with torch.inference_mode():
        first, *rest = calls.values()
        expected = first()
        # Random weights make a field that no solver follows closely: of bf16, caching and solvers the error is of a trained
        # network (`quality`).
        errors = {f"DDIM {steps}": agree("sampling", rest[0](), expected, 1e-3)}
        return _row(name, found, errors, ratios(calls, f"diffusers DDIM {steps}", rounds, device))


def _guided(found: Pair, network: nn.Module, schedule: Any, scale: float = 2.0) -> Callable[[Tensor, Tensor], Tensor]:
    dtype = next(network.parameters()).dtype
    assert found.tokens is not None
    words = torch.cat([torch.zeros_like(found.tokens), found.tokens]).to(dtype)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        noise = network(x.repeat(2, 1, 1, 1).to(dtype), t.repeat(2), tokens=words).to(x.dtype)
        null, condition = noise.chunk(2)
        alpha, sigma = schedule.coefficients(schedule.log_snr(t))
        shape = (-1, 1, 1, 1)
        return (x - sigma.to(x).view(shape) * (null + scale * (condition - null))) / alpha.to(x).view(shape)

    return denoise


def _diffusers_ddim(found: Pair, steps: int, scale: float = 2.0) -> Callable[[], Tensor]:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=0,
    )
    scheduler.set_timesteps(steps, device=found.x.device)
    assert found.tokens is not None
    words = torch.cat([torch.zeros_like(found.tokens), found.tokens])

    def call() -> Tensor:
        x = found.x
        for t in scheduler.timesteps:
            null, condition = found.theirs(torch.cat([x, x]), t, words, return_dict=False)[0].chunk(2)
            x = scheduler.step(null + scale * (condition - null), t, x, return_dict=False)[0]
        return x

    return call


AUTOENCODERS: dict[str, dict[str, Any]] = {
    "small": {
        "downsample": 4,
        "channels": 32,
        "multipliers": (1, 2, 4),
        "blocks": 1,
        "latent_channels": 4,
        "groups": 32,
    },
    "kl-f8": {
        "downsample": 8,
        "channels": 128,
        "multipliers": (1, 2, 4, 4),
        "blocks": 2,
        "latent_channels": 4,
        "groups": 32,
    },
}


def autoencoder(name: str, way: str, rounds: int, device: torch.device, *, size: int, batch: int = 1) -> Row:
    """`way`: encode images to the mean of their posterior, or decode latents."""
    from diffusers import AutoencoderKL

    options = AUTOENCODERS[name]
    torch.manual_seed(0)
    ours = KLAutoencoder(**options, middle_attention=True).eval().to(device)
    levels = len(options["multipliers"])
    theirs = AutoencoderKL(
        block_out_channels=[options["channels"] * m for m in options["multipliers"]],
        layers_per_block=options["blocks"],
        latent_channels=options["latent_channels"],
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
    ).eval()
    weights = {name: value for name, value in ours.state_dict().items() if not name.startswith("latent_")}
    theirs.load_state_dict(export(autoencoder_rules(ours), weights))
    theirs = theirs.to(device)
    half = copy.deepcopy(ours).bfloat16().to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(1)
    edge = size if way == "encode" else size // options["downsample"]
    given = torch.randn(batch, 3 if way == "encode" else options["latent_channels"], edge, edge, generator=generator)
    given = given.to(device)
    low = given.bfloat16().to(memory_format=torch.channels_last)
    calls: Mapping[str, Callable[[], Tensor]] = {
        "encode": {
            "diffusers fp32": lambda: theirs.encode(given).latent_dist.mean,
            "fp32": lambda: ours.posterior(given).mean,
            "bf16": lambda: half.posterior(low).mean,
        },
        "decode": {
            "diffusers fp32": lambda: theirs.decode(given).sample,
            "fp32": lambda: ours.decode(given),
            "bf16": lambda: half.decode(low),
        },
    }[way]
    with torch.inference_mode():
        expected = calls["diffusers fp32"]()
        errors = {key: agree(key, call(), expected, HALF if "bf16" in key else EXACT) for key, call in calls.items()}
        found = ratios(calls, "diffusers fp32", rounds, device)
    count = sum(p.numel() for p in ours.parameters())
    return {"network": name, "parameters": count, "shape": list(given.shape), "errors": errors, "ways": found}


def quality(run: str, seeds: int, device: torch.device) -> Row:
    """Of a trained run: how far fewer steps and cached features are from 1,000 steps of DDIM, and how fast."""
    import ldmkit

    model = ldmkit.load(run).to(device)
    common: dict[str, Any] = {"count": seeds, "seed": 0, "output": "latent"}
    reference = model.sample(**common, sampler="ddim", steps=1000)
    ways: dict[str, dict[str, Any]] = {
        "DDIM 50": {"sampler": "ddim", "steps": 50},
        "DDIM 50, cache 2": {"sampler": "ddim", "steps": 50, "cache": 2},
        "DDIM 50, cache 3": {"sampler": "ddim", "steps": 50, "cache": 3},
        "DDIM 50, cache 5": {"sampler": "ddim", "steps": 50, "cache": 5},
        "DDIM 25": {"sampler": "ddim", "steps": 25},
        "DPM-Solver++ 2M 20": {"sampler": "dpmpp-2m", "steps": 20},
        "DPM-Solver++ 2M 10": {"sampler": "dpmpp-2m", "steps": 10},
        "DPM-Solver++ 2M 20, cache 2": {"sampler": "dpmpp-2m", "steps": 20, "cache": 2},
        "UniPC 10": {"sampler": "unipc", "steps": 10},
    }
    calls = {name: (lambda own=own: model.sample(**common, **own)) for name, own in ways.items()}
    errors = {name: error(call(), reference) for name, call in calls.items()}
    return {"run": model.config["denoiser"], "errors": errors, "ways": ratios(calls, "DDIM 50", 2, device)}


def _row(name: str, found: Pair, errors: Mapping[str, float], timed: Mapping[str, Any]) -> Row:
    shape = list(found.x.shape)
    tokens = None if found.tokens is None else found.tokens.shape[1]
    return {
        "network": name,
        "parameters": found.parameters,
        "shape": shape,
        "tokens": tokens,
        "errors": errors,
        "ways": timed,
    }
