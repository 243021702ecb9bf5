"""Peak memory and error of tiled decoding, f8 network (kl-f8: 84 million parameters), each side in a process of its own.

    python benchmarks/tiled_decode.py --size 512 --tile 32 --overlap 8    some minutes on one core
    python benchmarks/tiled_decode.py                                     2048 x 2048, needs 12 GB free: nothing else beside it
    python benchmarks/tiled_decode.py --device cuda

Above 1024 x 1024 the default is bfloat16: in float32 the untiled side takes 17 to 22 GB. It stops where memory is short.

`peak` is what decoding added to the process (resident set on a CPU, allocator's peak on a GPU), weights not counted.
`error` is against the untiled image, in units of its standard deviation: mean, largest, mean within eight pixels of a seam.
The weights are random, or those of a released file with `--weights kl-f8.ckpt`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ldmkit.autoencoder import Autoencoder, KLAutoencoder, exact_decode, paper, tiled_decode

SIDES: dict[str, Callable[[KLAutoencoder, Tensor, argparse.Namespace], Tensor]] = {
    "untiled": lambda model, latents, _: model.decode(latents),
    "tiled": lambda model, latents, options: tiled_decode(model, latents, tile=options.tile, overlap=options.overlap),
    "exact": lambda model, latents, options: exact_decode(model, latents, tile=8 * options.tile),
}

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


# Bytes a pixel that untiled decoding takes in float32: four maps of 256 channels at full resolution, and some work space.
UNTILED = 5000


def check_memory(options: argparse.Namespace) -> None:
    """A machine that swaps measures nothing, and one that runs out ends more than the benchmark."""
    wanted = UNTILED * options.size**2 * DTYPES[options.dtype].itemsize // 4
    if options.device == "cuda":
        free, _ = torch.cuda.mem_get_info()
    else:
        lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").is_file() else []
        free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), wanted)
    if free < 1.1 * wanted:
        raise SystemExit(
            f"untiled decoding takes about {wanted / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free: "
            "take a smaller --size, or --dtype bfloat16"
        )


def load(options: argparse.Namespace) -> KLAutoencoder:
    torch.manual_seed(0)
    model: Autoencoder = paper("kl-f8")
    if options.weights:
        tensors = torch.load(options.weights, map_location="cpu", weights_only=True)["state_dict"]
        model.load_state_dict({name: tensor for name, tensor in tensors.items() if not name.startswith("loss.")})
    assert isinstance(model, KLAutoencoder)
    return model.to(options.device, DTYPES[options.dtype]).eval()


def reset_peak(device: str) -> int:
    """Forgets the peak so far, which loading the weights made; returns what is taken now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if STATUS.is_file():
        Path("/proc/self/clear_refs").write_text("5")
        return status("VmRSS")
    return peak(device)


def peak(device: str) -> int:
    """The most that was ever taken, or since `reset_peak` where that is possible (Linux, CUDA)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return status("VmHWM") if STATUS.is_file() else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


STATUS = Path("/proc/self/status")


def status(name: str) -> int:
    """A line of Linux' own account of this process, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


@torch.no_grad()
def run(options: argparse.Namespace) -> None:
    """One side: decode, write the image, print what it took."""
    model = load(options)
    latents = torch.randn(1, 4, options.size // 8, options.size // 8, generator=torch.Generator().manual_seed(0))
    latents = latents.to(options.device, DTYPES[options.dtype])
    model.decode(latents[..., :8, :8])  # libraries allocate their own memory at the first call
    before, start = reset_peak(options.device), time.perf_counter()
    image = SIDES[options.side](model, latents, options).float().cpu()
    print(json.dumps({"peak": peak(options.device) - before, "seconds": time.perf_counter() - start}))
    torch.save(image, options.out)


def measured(side: str, out: Path) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"{side} failed with {done.returncode} (negative: killed, perhaps for memory):\n{done.stderr[-2000:]}"
        )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def errors(found: Tensor, expected: Tensor, options: argparse.Namespace) -> str:
    difference = (found - expected).abs().mean(dim=1)[0] / expected.std()
    step = 8 * (options.tile - options.overlap)
    near = torch.tensor([min(position % step, step - position % step) < 8 for position in range(options.size)])
    seams = difference[near.unsqueeze(1) | near]
    return f"{float(difference.mean()):.1e} {float(difference.max()):.1e} {float(seams.mean()):.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--tile", type=int, default=64, help="in latent pixels")
    parser.add_argument("--overlap", type=int, default=16, help="in latent pixels")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", choices=list(DTYPES), help="default: float32, above 1024 pixels bfloat16")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES), help="untiled is always run")
    parser.add_argument("--weights")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.dtype = options.dtype or ("float32" if options.size <= 1024 else "bfloat16")
    if options.side:
        return run(options)
    check_memory(options)
    print(f"{'':8} {'peak MB':>8} {'of untiled':>10} {'seconds':>8}   error: mean, largest, at seams", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        images = {side: Path(folder) / f"{side}.pt" for side in dict.fromkeys(["untiled", *options.sides])}
        whole = measured("untiled", images["untiled"])
        expected = torch.load(images["untiled"])
        for side, path in images.items():
            result = whole if side == "untiled" else measured(side, path)
            share = result["peak"] / whole["peak"]
            error = errors(torch.load(path), expected, options)
            print(f"{side:8} {result['peak'] / 1e6:8.0f} {share:10.1%} {result['seconds']:8.1f}   {error}", flush=True)


if __name__ == "__main__":
    main()
