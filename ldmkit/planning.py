"""What a recipe would train: parts, shapes, parameters, memory, FLOPs. Computed on meta tensors; nothing is allocated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ldmkit.build import build, fit

if TYPE_CHECKING:
    from ldmkit.latent_diffusion import LatentDiffusion
    from ldmkit.plugins import Registry
    from ldmkit.recipe import Recipe, Train


@dataclass(frozen=True)
class Part:
    """One part of the model. `flops` of a forward pass of one image; None where that is not known."""

    name: str
    kind: str
    output: str
    parameters: int
    trained: int
    flops: int | None = None


@dataclass(frozen=True)
class Stage:
    """One stage of training. `memory` in bytes: weights, gradients, Adam's moments, average, activations of a batch in fp32."""

    name: str
    steps: int
    batch: int
    flops: int
    memory: int


@dataclass(frozen=True)
class Plan:
    """What `plan` found. `size` is (h, w) in pixels, `latent` (c, h, w)."""

    name: str
    size: tuple[int, int]
    latent: tuple[int, int, int]
    parts: tuple[Part, ...]
    stages: tuple[Stage, ...]

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "parameters": self.parameters}


def plan(recipe: Recipe, registry: Registry) -> Plan:
    """The plan of a recipe. What conditioners learn from the data (class lists, vocabularies) is learned first."""
    recipe = fit(recipe.validate_components(registry), registry)
    with torch.device("meta"):
        model = build(recipe, registry)
    model.autoencoder.requires_grad_(True)  # as in its own stage
    height, width = recipe.data.shape
    latent = model.latent_shape((height, width))
    image = torch.empty(1, model.autoencoder.image_channels, height, width, device="meta")
    first = _measured(lambda: model.autoencoder(image).images)
    second = _measured(lambda: _denoised(model, latent))
    parts = [Part("autoencoder", recipe.autoencoder.type, _shape(latent), *_counted(model.autoencoder), first.flops)]
    for slot, conditioner in model.conditioners.items():
        ports = {port: size for port, size in vars(conditioner.emits).items() if size and port != "length"}
        output = ", ".join(f"{port} {size}" for port, size in ports.items())
        parts.append(Part(slot, recipe.conditioners[slot].type, output, *_counted(conditioner)))
    parts.append(Part("denoiser", recipe.denoiser.type, _shape(latent), *_counted(model.denoiser), second.flops))
    stages = []
    if recipe.autoencoder.train is not None:
        stages.append(_stage("autoencoder", recipe.autoencoder.train, [model.autoencoder], first))
    stages.append(_stage("diffusion", recipe.train, [model.denoiser, model.conditioners], second))
    return Plan(recipe.name, (height, width), latent, tuple(parts), tuple(stages))


@dataclass(frozen=True)
class _Measure:
    flops: int
    activations: int  # bytes kept for the backward pass, one image


def _measured(forward: Callable[[], Tensor]) -> _Measure:
    """FLOPs of a forward pass, and the bytes that autograd keeps of it."""
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += 0 if isinstance(tensor, nn.Parameter) else tensor.nbytes
        return tensor

    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return _Measure(counter.get_total_flops(), kept)


def _denoised(model: LatentDiffusion, latent: tuple[int, int, int]) -> Tensor:
    """A forward pass of the UNet with every port at its full width."""
    emits = [conditioner.emits for conditioner in model.conditioners.values()]
    channels, height, width = latent
    concat = sum(ports.concat for ports in emits)
    length = sum(ports.length or 1 for ports in emits if ports.tokens)
    tokens = max((ports.tokens for ports in emits), default=0)

    def empty(*shape: int) -> Tensor:
        return torch.empty(1, *shape, device="meta")

    result: Tensor = model.denoiser(
        empty(channels, height, width),
        torch.empty(1, device="meta"),
        tokens=empty(length, tokens) if tokens else None,
        vector=empty(model.denoiser.vector_width) if any(ports.vector for ports in emits) else None,
        concat=empty(concat, height, width) if concat else None,
    )
    return result


def _counted(module: nn.Module) -> tuple[int, int]:
    """(all parameters, those that are trained in some stage)."""
    frozen = tuple(f"{name}." for name in getattr(module, "frozen", ()))
    parameters = dict(module.named_parameters())
    trained = [value.numel() for name, value in parameters.items() if not name.startswith(frozen or ("\0",))]
    return sum(value.numel() for value in parameters.values()), sum(trained)


def _stage(name: str, settings: Train, modules: list[nn.Module], measure: _Measure) -> Stage:
    """A backward pass costs twice a forward pass, hence the 3. In fp32: weights, gradients, two moments, and the average."""
    weights = 4 * sum(value.numel() for module in modules for value in module.parameters())
    copies = 4 + (settings.ema is not None)
    rows = -(-settings.batch // settings.accumulate)
    flops = 3 * measure.flops * settings.batch * settings.steps
    return Stage(name, settings.steps, settings.batch, flops, copies * weights + rows * measure.activations)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in shape)
