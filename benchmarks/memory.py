"""The most memory that a training step takes beside the weights: one side in a process of its own.

python -m benchmarks.memory ours S fp32
"""

from __future__ import annotations

import json
import subprocess
import sys

import torch

from benchmarks.tiled_decode import peak, reset_peak

SIDES = ("diffusers fp32", "fp32", "bf16")


def measured(name: str, side: str, device: str, batch: int) -> int:
    """Bytes above what was taken before the first step: gradients, the optimizer's state, average and activations."""
    command = [sys.executable, "-m", "benchmarks.memory", name, side, device, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the memory of {side} {name} was not measured:\n{done.stderr[-2000:]}")
    return int(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """One side, in this process."""
    from benchmarks.networks import pair
    from benchmarks.speed import _our_step, _their_step

    name, side, device, batch = sys.argv[1:]
    torch.set_num_threads(1)
    found = pair(name, torch.device(device), batch=int(batch))
    target = torch.zeros_like(found.x)
    before = reset_peak(device)
    if side == "diffusers fp32":
        step, _ = _their_step(found, target)
    else:
        step, _ = _our_step(found, target, torch.bfloat16 if side == "bf16" else None)
    step()
    step()
    print(json.dumps(peak(device) - before))


if __name__ == "__main__":
    main()
