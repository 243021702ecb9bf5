"""A whole run on every device that is here: the numbers of a run in fp32 on the CPU, as near as the precision allows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ldmkit.assembly import load
from ldmkit.plugins import Registry
from ldmkit.recipe import Recipe
from ldmkit.runs.run import Run, run
from ldmkit.training import runtime
from ldmkit.training.logging.log import read

Recipes = Callable[..., Recipe]
# Device -> its precisions and switches, with how far the losses may be from those of fp32 on a CPU.
KINDS: dict[str, list[tuple[dict[str, Any], float]]] = {
    "cpu": [({"precision": "bf16", "channels_last": True}, 5e-2)],
    "mps": [({"precision": "fp32"}, 1e-3)],
    "cuda": [
        ({"precision": "fp32"}, 1e-3),
        ({"precision": "fp32", "tf32": True}, 5e-3),
        ({"precision": "bf16", "channels_last": True, "checkpointing": True}, 5e-2),
        ({"precision": "fp16"}, 5e-2),
        ({"precision": "bf16", "compile": True}, 5e-2),
        ({"precision": "fp32", "tf32": True, "compile": True}, 5e-3),
    ],
}
HERE = [
    pytest.param(device, switches, tolerance, id=", ".join([device, switches["precision"], *list(switches)[1:]]))
    for device, there in runtime._devices().items()
    if there
    for switches, tolerance in KINDS[device]
]


def losses(path: Path) -> dict[tuple[str, int], float]:
    return {(line["stage"], line["step"]): line["loss"] for line in read(path / "metrics.jsonl") if "loss" in line}


@pytest.mark.slow
@pytest.mark.parametrize(("device", "switches", "tolerance"), HERE)
def test_a_run_stopped_and_continued(
    device: str, switches: dict[str, Any], tolerance: float, recipe: Recipes, registry: Registry, tmp_path: Path
) -> None:
    def trained(name: str, steps: int = 4, **section: Any) -> Run:
        asked = recipe(train__steps=steps, runtime={"cache": "off", **section})
        return run(asked, tmp_path / name, registry=registry, console=False)

    exact = losses(trained("exact", device="cpu", precision="fp32").path)
    on_it = {"device": device, **switches}
    trained("here", steps=2, **on_it)
    found = trained("here", **on_it)
    first = ("autoencoder", 1)
    assert losses(found.path)[first] == pytest.approx(exact[first], rel=tolerance)
    # Adam's first steps go by the sign of a gradient, which rounding turns where it is near zero.
    assert losses(found.path) == pytest.approx(exact, rel=4 * tolerance)
    assert losses(found.path) != exact or device == "cpu", "something else was computed with"
    own = load(found.path, registry=registry).parameters()
    assert all(parameter.dtype == torch.float32 for parameter in own), "weights stay what they are"


@pytest.mark.slow
@pytest.mark.parametrize("device", [name for name, there in runtime._devices().items() if there])
def test_a_seed_draws_the_same_picture(device: str, recipe: Recipes, registry: Registry, tmp_path: Path) -> None:
    model = load(run(recipe(evaluate=[]), tmp_path / "r", registry=registry, console=False).path, registry=registry)
    values = {"place": 2}
    here = model.sample(values, count=2, steps=3, seed=5, output="tensor")
    alone = model.to(device).sample(values, count=1, steps=3, seed=6, output="tensor").cpu()
    assert torch.allclose(alone[0], here[1], atol=1e-3), (
        "a row depends on its own seed, whatever the device and the batch"
    )
