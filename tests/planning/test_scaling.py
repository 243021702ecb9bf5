"""The arithmetic of `plan --gpus` against what can be counted by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from ldmkit import hookimpl, planning, plugins
from ldmkit.assembly import build
from ldmkit.conditioning import Canvas, Conditioner, Conditioning, Ports, Tensors
from ldmkit.planning import estimate, per_gpu
from ldmkit.recipe import Recipe

LOAD = per_gpu.Load(
    trained=1000, frozen=100, autoencoder=50, root=300, root_trained=200, stage=80, activations=1024, latent=64, flops=7
)
BASE: dict[str, Any] = {
    "name": "small",
    "data": {"type": "scenes", "size": 32},
    "autoencoder": {"type": "kl", "downsample": 4, "channels": 8, "latent_channels": 2, "train": {"steps": 1}},
    "conditioners": {"mask": {"type": "semantic-map", "classes": 7}},
    "denoiser": {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": []},
    "train": {"steps": 10, "batch": 64},
    "runtime": {"precision": "fp32"},
}


def recipe(**sections: Any) -> Recipe:
    return Recipe.parse({**BASE, **{name: {**BASE[name], **change} for name, change in sections.items()}})


@pytest.mark.parametrize("gpus", [1, 2, 8, 64])
def test_copies(gpus: int) -> None:
    """Everything is held whole, and a ring all-reduce of 4 P bytes sends 2 (n - 1) / n of them."""
    found = per_gpu.share(LOAD, recipe(), gpus)
    held = found.copies
    assert (held.parameters, held.gradients, held.moments, held.averages) == (4 * 1150, 4000, 8000, 4000)
    assert held.sent == int(2 * (gpus - 1) / gpus * 4000)
    assert held.gathered == 0
    rows = 64 // gpus
    assert held.activations == rows * (1024 + 64)
    assert held.memory == 4 * 1150 + 16000 + rows * 1088
    assert (found.rows, found.flops, found.equal) == (rows, 3 * 7 * rows, True)


@pytest.mark.parametrize("gpus", [2, 8, 64])
def test_shards(gpus: int) -> None:
    """All but the frozen autoencoder is split; weights are gathered twice a step, gradients are scattered once."""
    held = per_gpu.share(LOAD, recipe(), gpus).shards
    assert held.parameters == -(-4 * 1100 // gpus) + 4 * 50
    assert held.gradients == -(-4000 // gpus)
    assert held.moments == 8000 // gpus
    assert held.averages == -(-4000 // gpus)
    assert held.gathered == 4 * (300 + 200 + 3 * 80)
    assert held.sent == int((gpus - 1) / gpus * 4 * (1100 + 1100 + 1000))


def test_one_gpu_sends_nothing() -> None:
    found = per_gpu.share(LOAD, recipe(), 1)
    assert found.copies.sent == found.shards.sent == found.shards.gathered == 0
    assert found.copies.memory == found.shards.memory


def test_on_many_gpus_copies_send_eight_bytes_a_parameter_and_shards_twelve() -> None:
    """2 x 4 of the all-reduce; 4 for each gathering before forward and backward, and 4 for the gradients."""
    load = per_gpu.Load(10**9, 0, 0, 0, 0, 0, 0, 0, 0)
    found = per_gpu.share(load, recipe(train={"batch": 512}), 512)
    assert found.copies.sent == pytest.approx(8e9, rel=2 / 512)
    assert found.shards.sent == 1.5 * found.copies.sent
    assert found.shards.memory == -(-found.copies.memory // 512)


def test_parts_of_a_batch_cost_copies_nothing_and_shards_as_much_each() -> None:
    whole, parts = (per_gpu.share(LOAD, recipe(train={"accumulate": n}), 8) for n in (1, 4))
    assert parts.copies.sent == whole.copies.sent
    assert parts.shards.sent == 4 * whole.shards.sent
    assert 4 * parts.copies.activations == whole.copies.activations
    assert per_gpu.share(LOAD, recipe(train={"accumulate": 100}), 32).shards.sent == pytest.approx(
        2 * per_gpu.share(LOAD, recipe(), 32).shards.sent, abs=1
    ), "there are no more parts than pictures"


def test_averages_moments_and_precision() -> None:
    def held(**train: Any) -> per_gpu.Holding:
        return per_gpu.share(LOAD, recipe(train=train), 8).copies

    assert held(ema=None).averages == 0
    assert held(post_hoc={}).averages == 3 * 4000
    assert held(optimizer="adamw-8bit").moments == 2000
    half = per_gpu.share(LOAD, recipe(runtime={"precision": "bf16"}), 8).copies
    assert half.activations == 8 * (512 + 64)


def test_a_batch_that_cannot_be_shared_is_told() -> None:
    assert not per_gpu.share(LOAD, recipe(), 48).equal


def test_the_load_of_a_model() -> None:
    registry = plugins.load()
    asked = recipe().validate_components(registry)
    with torch.device("meta"):
        model = build(asked, registry)
    load = per_gpu.load(model, asked, activations=0, latent=0, flops=0)
    unet = model.denoiser
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert load.trained == count["denoiser"] + count["conditioners"]
    assert load.autoencoder == count["autoencoder"]
    stages = [*unet.input_blocks, unet.middle_block, *unet.output_blocks]
    sizes = [sum(p.numel() for p in stage.parameters()) for stage in stages]
    assert load.stage == max(sizes)
    assert load.root == load.root_trained == load.trained - sum(sizes)
    conditioners = {"mask": {**BASE["conditioners"]["mask"], "freeze": True}}
    frozen = Recipe.parse({**BASE, "conditioners": conditioners}).validate_components(registry)
    with torch.device("meta"):
        model = build(frozen, registry)
    load = per_gpu.load(model, frozen, activations=0, latent=0, flops=0)
    own = sum(p.numel() for p in model.conditioners["mask"].parameters())
    assert (load.frozen, load.trained) == (own, count["denoiser"] + count["conditioners"] - own)


def test_what_a_backward_pass_needs_is_counted_once() -> None:
    """A linear layer keeps its input, a rectifier its output, which is the next layer's input."""
    with torch.device("meta"):
        first, last = nn.Sequential(nn.Linear(4, 6), nn.ReLU()), nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        picture = torch.empty(2, 4)
    whole = estimate._measured(lambda: last(first(picture)))
    assert whole.activations == 4 * (2 * 4 + 2 * 6 + 2 * 8)
    again = estimate._measured(lambda: last(first(picture)), first, last)
    inputs, inside = 4 * (2 * 4 + 2 * 6), max(4 * (2 * 4 + 2 * 6), 4 * 2 * 8)
    assert again.activations == inputs + inside
    assert whole.flops == again.flops == 2 * 2 * (4 * 6 + 6 * 8)


class Line(Conditioner):
    """One layer and a tanh: what both keep for the backward pass can be counted by hand."""

    reads = ("label",)

    def __init__(self, *, looks: bool = False) -> None:
        super().__init__()
        self.emits, self.looks, self.layer = Ports(vector=8), looks, nn.Linear(4, 8)

    def prepare(self, sample: Mapping[str, Any], generator: torch.Generator | None = None) -> Tensors:
        return {"numbers": torch.ones(4)}

    def encode(self, prepared: Tensors, canvas: Canvas) -> Conditioning:
        if self.looks and prepared["numbers"].sum() > 0:
            return self.null(canvas)
        return Conditioning(vector=self.layer(prepared["numbers"]).tanh())

    def null(self, canvas: Canvas) -> Conditioning:
        return Conditioning(vector=canvas.zeros(1, 8))


class Lines:
    @hookimpl
    def ldmkit_register_conditioners(self, register: Any) -> None:
        register("line", Line)


def test_what_conditioners_compute_and_keep_is_counted() -> None:
    registry = plugins.load(only=[], extra=[Lines()])
    digits = {**BASE, "data": {"type": "digits", "size": 32}}

    def planned(**slots: Any) -> planning.Plan:
        return planning.plan(Recipe.parse({**digits, "conditioners": slots}), registry, [1])

    one, two = planned(a={"type": "line"}), planned(a={"type": "line"}, b={"type": "line"})
    kept = 4 * (4 + 8)  # the layer's input and the tanh's output
    both = [plan.shares[0].copies for plan in (one, two)]
    width = 4 * digits["denoiser"]["channels"]  # that vectors are projected to
    assert both[1].parameters - both[0].parameters == 4 * (8 * (4 + 1) + width * (8 + 1))
    assert both[1].activations - both[0].activations == 64 * kept
    assert [part.flops for part in two.parts if part.kind == "line"] == [2 * 4 * 8] * 2
    assert two.shares[0].flops - one.shares[0].flops == 3 * 64 * 2 * 4 * 8
    frozen = planned(a={"type": "line"}, b={"type": "line", "freeze": True})
    assert frozen.shares[0].copies.activations == both[0].activations, "no backward pass"
    assert frozen.stages[1].memory < two.stages[1].memory
    blind = planned(a={"type": "line"}, b={"type": "line", "looks": True})
    assert blind.uncounted == ("b",)
    assert blind.shares[0].copies.activations == both[0].activations


def test_the_plan_has_a_share_for_each_number_asked_for() -> None:
    registry = plugins.load()
    asked = recipe()
    found = planning.plan(asked, registry, [1, 4])
    assert [share.gpus for share in found.shares] == [1, 4]
    one, four = found.shares
    parameters = found.parameters
    assert one.copies.parameters == four.copies.parameters == 4 * parameters
    facts = found.to_json()["shares"][1]
    assert facts["copies"]["memory"] == four.copies.memory
    kept = planning.plan(recipe(runtime={"checkpointing": True}), registry, [1]).shares[0]
    assert kept.copies.activations < one.copies.activations
    assert facts["rows"] == 16
