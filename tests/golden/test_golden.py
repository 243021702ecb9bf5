"""Ten steps of each stage of five recipes give the losses and weights that version 0.1 gave.

The recipes beside this file are those that version 0.1 shipped; a change of structure must leave every number of theirs as it is.
On the CPU and with the torch that wrote `expected.json`, losses and weights hold bit for bit. On every other CPU the same steps
are taken with a learning rate of 1e-6, and the losses hold to the rounding of float32: with the recipes' own rate, Adam's first
steps, which go by the sign of a gradient, make of another order of summation another run. To write the file anew after a change
of numbers that is meant:

    python tests/golden/test_golden.py
"""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

import ldmkit

HERE = Path(__file__).parent
EXPECTED = HERE / "expected.json"
NAMES = ("class", "joint", "semantic-map", "superres", "text")
# Sums of up to 1e5 terms in float32, taken in another order, differ by some 1e-5; ten steps of 1e-6 add less than that.
TOLERANCE = 1e-4
GENTLE = ("autoencoder.train.lr=1.0e-6", "train.lr=1.0e-6")

SMALL = (
    "autoencoder.train.steps=10",
    "autoencoder.train.batch=4",
    "autoencoder.train.log_every=1",
    "autoencoder.loss.adversarial.start=5",
    "train.steps=10",
    "train.batch=8",
    "train.log_every=1",
    "train.validate_every=10",
    "train.sample_every=10",
    "sample.steps=2",
    "sample.count=1",
    "evaluate=[]",
    "runtime.threads=1",
    "runtime.precision=fp32",
    "runtime.workers=0",
)
FEWER = {"photos": ("data.views=8",), "scenes": ("data.count=24", "data.held_out=4"), "digits": ()}


def machine() -> str:
    """What decides the last bits: the CPU's kernels and torch."""
    return f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}, {_cpu()}"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    family = [
        line.partition(":")[2].strip() for line in lines if line.startswith(("vendor_id", "cpu family", "model\t"))
    ]
    return "/".join(family[:3]) or platform.processor()


def figures(name: str, folder: Path, settings: tuple[str, ...] = ()) -> dict[str, Any]:
    """The losses of every step by stage, and a digest of the weights at the end."""
    kind = ldmkit.load_recipe(HERE / f"{name}.yaml").data.type
    run = ldmkit.run(ldmkit.load_recipe(HERE / f"{name}.yaml", (*SMALL, *FEWER[kind], *settings)), folder / name)
    losses: dict[str, list[float]] = {}
    for line in (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "loss" in row:
            losses.setdefault(row.get("stage", ""), []).append(row["loss"])
    return {"losses": losses, "weights": digest(run.path / "model")}


def digest(folder: Path) -> str:
    """Of all tensors by name, whatever the files are called."""
    sums = {}
    for file in sorted(folder.glob("*.safetensors")):
        for key, array in load_file(file).items():
            sums[f"{file.name}:{key}"] = hashlib.sha256(array.tobytes()).hexdigest()
    return hashlib.sha256("\n".join(sorted(sums.values())).encode()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_are_those_of_version_0_1(name: str, tmp_path: Path) -> None:
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))
    if expected["machine"] == machine():
        assert figures(name, tmp_path) == expected["runs"][name]
    else:
        found = figures(name, tmp_path, GENTLE)["losses"]
        for stage, losses in expected["gentle"][name].items():
            assert found[stage] == pytest.approx(losses, rel=TOLERANCE), stage


if __name__ == "__main__":
    import tempfile

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        runs = {name: figures(name, Path(place) / "own") for name in NAMES}
        gentle = {name: figures(name, Path(place) / "gentle", GENTLE)["losses"] for name in NAMES}
    EXPECTED.write_text(
        json.dumps({"machine": machine(), "runs": runs, "gentle": gentle}, indent=1) + "\n", encoding="utf-8"
    )
