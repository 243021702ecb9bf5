"""What precision and the other switches of `runtime` bring: pictures a second and memory of the diffusion stage on one device.

    python benchmarks/training.py --device cuda                a network of the size of the paper's, every switch
    python benchmarks/training.py --size small                 a small one on a CPU, some minutes
    python benchmarks/training.py --only fp32 bf16 --json

Every variant trains the same weights on the same latents with the same draws. Its first loss is held against that of fp32 before
anything is timed: one that computes something else is not timed. Memory is what torch took of a GPU at most.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ldmkit import plugins
from ldmkit.assembly import build
from ldmkit.errors import ResourceError
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.recipe import Recipe
from ldmkit.training import runtime as runtimes
from ldmkit.training.diffusion import begin
from ldmkit.training.parallel.distributed import engine
from ldmkit.training.parallel.ranks import Ranks

# Side of the latents, rows of a batch, the UNet.
SIZES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "small": (16, 16, {"channels": 32, "multipliers": [1, 2], "blocks": 1, "attention": [2]}),
    "paper": (
        64,
        32,
        {"channels": 192, "multipliers": [1, 2, 3, 5], "blocks": 2, "attention": [2, 4, 8], "head_width": 32},
    ),
}
# Keys of `runtime`, and those of `train`.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fp32": ({"precision": "fp32"}, {}),
    "tf32": ({"precision": "fp32", "tf32": True}, {}),
    "bf16": ({"precision": "bf16"}, {}),
    "fp16": ({"precision": "fp16"}, {}),
    "bf16, channels last": ({"precision": "bf16", "channels_last": True}, {}),
    "bf16, compile": ({"precision": "bf16", "compile": True}, {}),
    "bf16, compile, channels last": ({"precision": "bf16", "compile": True, "channels_last": True}, {}),
    "bf16, checkpointing": ({"precision": "bf16", "checkpointing": True}, {}),
    "bf16, accumulate 4": ({"precision": "bf16"}, {"accumulate": 4}),
    "bf16, 8-bit AdamW": ({"precision": "bf16"}, {"optimizer": "adamw-8bit"}),
}
TOLERANCE = {"fp32": 1e-4, "tf32": 5e-3}  # of the first loss; all else computes in 16 bits
HALF = 3e-2


def randomise(network: nn.Module) -> None:
    """Weights as in the middle of training: at the start the last layer is zero, and the loss the same whatever is computed."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def steps(size: str, device: str, variant: str) -> tuple[int, int, Callable[[], float], Callable[[], None]]:
    """Parameters, rows, a step that gives its loss, and what waits for the device.

    Raises ResourceError for what is not there.
    """
    side, rows, unet = SIZES[size]
    keys, train = VARIANTS[variant]
    runtime = runtimes.resolve(device=device, **keys)
    if runtime.device.type != "cuda" and "tf32" in keys:
        raise ResourceError("TensorFloat-32 is CUDA's")
    recipe = Recipe.parse(
        {
            "name": "benchmark",
            "data": {"type": "scenes", "size": side},
            "autoencoder": {"type": "identity"},
            "denoiser": unet,
            "train": {"steps": 1, "batch": rows, "lr": 1e-4, **train},
        }
    )
    torch.manual_seed(0)
    model: LatentDiffusion = build(recipe, plugins.load(only=[]))
    randomise(model.denoiser)
    model.denoiser.checkpointing |= runtime.checkpointing
    generator = torch.Generator().manual_seed(0)
    samples = [{"image": torch.rand(3, side, side, generator=generator) * 2 - 1} for _ in range(rows)]
    batch = model.batch(samples)
    engines = engine(model, Ranks(), runtime)
    state = begin(engines.model, recipe.train, None, runtime)
    parts = [
        batch.select(range(first, first + rows // recipe.train.accumulate))
        for first in range(0, rows, rows // recipe.train.accumulate)
    ]
    ready = [(part.to(runtime.device), model.draw(part.positions, 0).to(runtime.device)) for part in parts]

    def step() -> float:
        engines.model.train()
        state.optimizers["model"].begin(0)
        total = torch.zeros((), device=runtime.device)
        for part, draws in ready:
            with runtime.autocast():
                loss, _ = engines.loss(part, draws)
            state.backward(loss / len(ready))
            total += loss.detach() / len(ready)
        state.update("model", clip=1.0)
        return float(total)

    def wait() -> None:
        if runtime.device.type == "cuda":
            torch.cuda.synchronize(runtime.device)

    return sum(p.numel() for p in model.denoiser.parameters()), rows, step, wait


def measure(size: str, device: str, variant: str, rounds: int, expected: float | None) -> dict[str, Any]:
    """One variant's first loss, pictures a second and most memory."""
    cuda = device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    count, rows, step, wait = steps(size, device, variant)
    loss = step()
    allowed = TOLERANCE.get(variant, HALF)
    if expected is not None and not abs(loss - expected) <= allowed * abs(expected):
        raise SystemExit(f"{variant}: the first loss is {loss:.6f}, and {expected:.6f} in fp32; nothing was timed")
    for _ in range(2):
        step()
    times = []
    for _ in range(rounds):
        wait()
        begun = time.perf_counter()
        step()
        wait()
        times.append(time.perf_counter() - begun)
    found = {
        "variant": variant,
        "parameters": count,
        "loss": loss,
        "images per second": rows / statistics.median(times),
    }
    return {**found, "MiB": torch.cuda.max_memory_allocated() / 2**20} if cuda else found


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda", "mps"]
    )
    parser.add_argument("--size", choices=list(SIZES), help="default: paper on a GPU, small on a CPU")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), help="these, after fp32")
    parser.add_argument("--rounds", type=int, default=10, help="steps timed for each figure")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args()
    size = options.size or ("small" if options.device == "cpu" else "paper")
    first: dict[str, Any] | None = None
    for variant in dict.fromkeys(["fp32", *(options.only or VARIANTS)]):
        try:
            found = measure(size, options.device, variant, options.rounds, None if first is None else first["loss"])
        except ResourceError as error:
            print(f"{variant:30} not here: {error.message}")
            continue
        except torch.OutOfMemoryError:
            print(f"{variant:30} out of memory")
            continue
        finally:
            gc.collect()
            if options.device == "cuda":
                torch.cuda.empty_cache()
        first = first or found
        if options.json:
            print(json.dumps(found))
            continue
        ratio = found["images per second"] / first["images per second"]
        memory = f"{found['MiB']:9,.0f} MiB" if "MiB" in found else ""
        print(
            f"{variant:30} {found['images per second']:9.1f} images/s  {ratio:5.2f}x {memory}  first loss {found['loss']:.5f}"
        )


if __name__ == "__main__":
    main()
