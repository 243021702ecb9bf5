"""Images a second of training on a CPU, quiet and beside one busy process: by fixed numbers of threads, and as the command does.

    python benchmarks/busy.py                  a small UNet as in the bundled recipes, some minutes
    python benchmarks/busy.py --seconds 20 --json

Each row is a process of its own, for OpenMP reads its variables once. "before" is torch as it is: all threads, which spin while
they wait. "passive" and a number are fixed settings. "after" is what `ldmkit run` does: passive, and the number measured on the
steps themselves (`runtime.threads: auto`). Rows take turns, so that a machine that is busy besides is so for all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

BATCH, LATENT, CHANNELS = 16, 16, 32


def rows(cores: int) -> dict[str, tuple[dict[str, str], str]]:
    """Name -> variables of OpenMP, and the number of threads or ``auto``."""
    counts = sorted({1, max(cores // 2, 1), cores})
    fixed = {f"passive, {count} threads": ({"OMP_WAIT_POLICY": "PASSIVE"}, str(count)) for count in counts}
    return {"before": ({}, str(cores)), **fixed, "after": ({"OMP_WAIT_POLICY": "PASSIVE"}, "auto")}


def measure(threads: str, seconds: float) -> dict[str, Any]:
    """In a process of its own: images a second of the diffusion stage's step, and the number of threads it was done with."""
    import torch

    from ldmkit.denoiser.unet import UNet
    from ldmkit.training.threads import chosen
    from ldmkit.training.threads import measure as by_threads

    torch.manual_seed(0)
    unet = UNet.of_widths(
        in_channels=8, out_channels=8, channels=CHANNELS, multipliers=(1, 2), blocks=1, attention=(2,)
    )
    optimizer = torch.optim.AdamW(unet.parameters(), fused=True)
    x, t = torch.randn(BATCH, 8, LATENT, LATENT), torch.rand(BATCH) * 999

    def gradients() -> None:
        optimizer.zero_grad(set_to_none=True)
        unet(x, t).square().mean().backward()

    if threads == "auto":
        torch.set_num_threads(chosen(by_threads(gradients, torch.get_num_threads())))
    else:
        torch.set_num_threads(int(threads))
    for _ in range(2):
        gradients()
        optimizer.step()
    steps, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        gradients()
        optimizer.step()
        steps += 1
    return {"images_per_second": BATCH * steps / (time.perf_counter() - begun), "threads": torch.get_num_threads()}


def process(variables: dict[str, str], threads: str, seconds: float) -> dict[str, Any]:
    """`measure` in a process that has these variables and none of the caller's own."""
    own = {name: v for name, v in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_", "MKL_"))}
    command = [sys.executable, __file__, "--row", threads, "--seconds", str(seconds)]
    done = subprocess.run(command, env={**own, **variables}, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(seconds: float, rounds: int) -> dict[str, dict[str, Any]]:
    """Row -> the median images a second, quiet and beside one process that is always busy, and the threads of each try."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    table = rows(cores)
    tries: dict[str, dict[str, list[dict[str, Any]]]] = {name: {"quiet": [], "busy": []} for name in table}
    for _ in range(rounds):
        for surroundings in ("quiet", "busy"):
            other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if surroundings == "busy" else None
            try:
                for name, (variables, threads) in table.items():
                    tries[name][surroundings].append(process(variables, threads, seconds))
            finally:
                if other is not None:
                    other.kill()
                    other.wait()
    return {
        name: {
            key: {
                "images_per_second": statistics.median(one["images_per_second"] for one in found),
                "threads": [one["threads"] for one in found],
            }
            for key, found in own.items()
        }
        for name, own in tries.items()
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each row in each surroundings")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row is not None:
        print(json.dumps(measure(arguments.row, arguments.seconds)))
        return
    found = compare(arguments.seconds, arguments.rounds)
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    best = {key: max(row[key]["images_per_second"] for row in found.values()) for key in ("quiet", "busy")}
    print(f"{'':<22}{'quiet':>12}{'':>8}{'beside one':>14}   threads")
    for name, row in found.items():
        quiet, busy = (row[key]["images_per_second"] for key in ("quiet", "busy"))
        used = " ".join(str(count) for key in ("quiet", "busy") for count in row[key]["threads"])
        print(
            f"{name:<22}{quiet:>8.1f} im/s{quiet / best['quiet']:>8.0%}{busy:>9.1f} im/s{busy / best['busy']:>6.0%}  {used}"
        )


if __name__ == "__main__":
    main()
