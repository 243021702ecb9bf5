"""What a recipe would train: parts, shapes, parameters, memory, FLOPs. Computed on meta tensors; nothing is allocated."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.utils.flop_counter import FlopCounterMode

from ldmkit.assembly import build, datasets, fit
from ldmkit.interop.formats import obstacles, planned
from ldmkit.planning import per_gpu
from ldmkit.planning.per_gpu import Share

if TYPE_CHECKING:
    from ldmkit.conditioning import Tensors
    from ldmkit.latent_diffusion import LatentDiffusion
    from ldmkit.plugins import Registry
    from ldmkit.recipe import Recipe, Train


SOUGHT = 16  # samples among which one with every condition is looked for


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
    """One stage of training. `memory` in bytes: weights, gradients, Adam's moments, averages, activations of a batch in fp32."""

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
    shares: tuple[Share, ...] = ()  # of the diffusion stage, one for each number of GPUs asked for
    uncounted: tuple[str, ...] = ()  # slots of which neither FLOPs nor activations could be counted
    obstacles: Mapping[str, str | None] = field(
        default_factory=dict
    )  # format of export -> why not; None where it can be

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        shares = [share.to_json() for share in self.shares]
        return {**asdict(self), "shares": shares, "parameters": self.parameters}


def plan(recipe: Recipe, registry: Registry, gpus: Sequence[int] = ()) -> Plan:
    """The plan of a recipe. What conditioners learn from the data (class lists, vocabularies) is learned first.

    Args:
        gpus: numbers of GPUs, for each of which `shares` says what one of them holds and sends.
    """
    recipe = fit(recipe.validate_components(registry), registry)
    with torch.device("meta"):
        model = build(recipe, registry)
    asked = _asked(model, recipe, registry)
    model.autoencoder.requires_grad_(True)  # as in its own stage
    height, width = recipe.data.shape
    latent = model.latent_shape((height, width))
    image = torch.empty(1, model.autoencoder.image_channels, height, width, device="meta")
    first = _measured(lambda: model.autoencoder(image).images)
    second = _measured(lambda: _denoised(model, latent), *_blocks(model, recipe))
    parts = [Part("autoencoder", recipe.autoencoder.type, _shape(latent), *_counted(model.autoencoder), first.flops)]
    for slot, conditioner in model.conditioners.items():
        ports = {port: size for port, size in vars(conditioner.emits).items() if size and port != "length"}
        output = ", ".join(f"{port} {size}" for port, size in ports.items())
        flops = None if (own := asked[slot]) is None else own.flops
        parts.append(Part(slot, recipe.conditioners[slot].type, output, *_counted(conditioner), flops))
    parts.append(Part("denoiser", recipe.denoiser.type, _shape(latent), *_counted(model.denoiser), second.flops))
    second = sum((own for slot, own in asked.items() if own is not None and _trained(model.conditioners[slot])), second)
    stages = []
    if recipe.autoencoder.train is not None:
        stages.append(_stage("autoencoder", recipe.autoencoder.train, [model.autoencoder], first))
    model.autoencoder.requires_grad_(False)
    if recipe.alone:
        parts.pop()  # the denoiser: it is neither trained nor saved
    else:
        stages.append(_stage("diffusion", recipe.train, [model], second))
    load = per_gpu.load(model, recipe, activations=second.activations, latent=4 * math.prod(latent), flops=second.flops)
    shares = tuple(per_gpu.share(load, recipe, count) for count in gpus)
    uncounted = tuple(slot for slot, own in asked.items() if own is None)
    formats = obstacles(planned(model, recipe.autoencoder.scale))
    return Plan(
        recipe.name,
        (height, width),
        latent,
        tuple(parts),
        tuple(stages),
        shares,
        uncounted,
        {str(name): reason for name, reason in formats.items()},
    )


@dataclass(frozen=True)
class _Measure:
    flops: int
    activations: int  # bytes kept for the backward pass, one image

    def __add__(self, other: _Measure) -> _Measure:
        return _Measure(self.flops + other.flops, self.activations + other.activations)


def _measured(forward: Callable[[], object], *checkpointed: nn.Module) -> _Measure:
    """FLOPs of a forward pass, and the bytes that autograd keeps of it.

    Of `checkpointed` blocks the inputs are kept, and all of the one that costs most, while it is computed again.
    """
    kept: dict[int, UntypedStorage] = {}  # a tensor that two operations need is kept once
    inputs, inside = 0, [0]

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and not isinstance(tensor._base, nn.Parameter):
            storage = tensor.untyped_storage()
            kept.setdefault(storage._cdata, storage)
        return tensor

    def before(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        nonlocal inputs
        inputs += arguments[0].nbytes
        inside.append(_bytes(kept))

    def after(*_: object) -> None:
        inside.append(_bytes(kept) - inside.pop())

    hooks = [
        hook for m in checkpointed for hook in (m.register_forward_pre_hook(before), m.register_forward_hook(after))
    ]
    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    for hook in hooks:
        hook.remove()
    return _Measure(counter.get_total_flops(), _bytes(kept) - sum(inside) + inputs + max(inside))


def _bytes(kept: Mapping[int, UntypedStorage]) -> int:
    return sum(storage.nbytes() for storage in kept.values())


def _blocks(model: LatentDiffusion, recipe: Recipe) -> list[nn.Module]:
    """The blocks of the UNet whose activations are computed again in the backward pass."""
    unet = model.denoiser
    if not (unet.checkpointing or recipe.runtime.checkpointing):
        return []
    stages = unet.blocks()
    return [block for stage in stages for block in stage.children()]


def _asked(model: LatentDiffusion, recipe: Recipe, registry: Registry) -> dict[str, _Measure | None]:
    """What each slot computes and keeps for the condition of one sample; None where that cannot be counted without its weights.

    Conditions are prepared from the data, of which one sample is read. A conditioner is anybody's code: on meta tensors it may
    fail at whatever looks at a number.
    """
    found: dict[str, _Measure | None] = dict.fromkeys(model.conditioners)
    canvas = model.canvas(recipe.data.shape)
    for slot, prepared in _prepared(model, recipe, registry).items():
        moved = {name: value.to("meta") for name, value in prepared.items()}
        with suppress(Exception):
            found[slot] = _measured(partial(model.conditioners[slot], moved, canvas))
    return found


def _prepared(model: LatentDiffusion, recipe: Recipe, registry: Registry) -> dict[str, Tensors]:
    """Each slot's condition of a sample that has one; a batch of one row."""
    found: dict[str, Tensors] = {}
    # Data that are elsewhere, and slots that cannot prepare: it is said that these are not counted.
    with suppress(Exception):
        data, _ = datasets(recipe, registry)
        for item in range(min(SOUGHT, data.count or SOUGHT)):
            batch = model.batch([data.sample(item)])
            found = {slot: own for slot, own in batch.prepared.items() if own is not None} | found
            if len(found) == len(model.conditioners):
                break
    return found


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


def _trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _stage(name: str, settings: Train, modules: list[nn.Module], measure: _Measure) -> Stage:
    """A backward pass costs twice a forward pass, hence the 3. In fp32; what is frozen is held once."""
    weights = per_gpu.held((parameter for module in modules for parameter in module.parameters()), settings)
    rows = -(-settings.batch // settings.accumulate)
    flops = per_gpu.BACKWARD * measure.flops * settings.batch * settings.steps
    return Stage(name, settings.steps, settings.batch, flops, weights + rows * measure.activations)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in shape)
