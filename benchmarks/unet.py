"""The UNet against diffusers' at equal weights: outputs are compared first, then forward and training step are timed.

    python benchmarks/unet.py --quick           two small networks, under a minute
    python benchmarks/unet.py                   and networks of 16, 36 and 100 million parameters, some fifteen minutes
    python benchmarks/unet.py --only medium     some of them

Both sides run in one process, interleaved A B A B, on one thread. What is reported is the median over the rounds of
the ratio of their CPU times (diffusers / ldmkit: above 1, ldmkit is faster); wall clock and separate processes mislead
on a shared machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ldmkit.denoiser import AttentionBlock, Downsample, ResidualBlock, Upsample
from ldmkit.denoiser.unet import UNet

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import UNet2DConditionModel, UNet2DModel


@dataclass(frozen=True)
class Network:
    """A network and what it is fed."""

    side: int
    batch: int
    tokens: int = 0
    options: dict[str, Any] = field(default_factory=dict)


NETWORKS = {
    "small, self-attention": Network(8, 64, 0, {"multipliers": (1, 2), "attention": (2,), "head_width": 32}),
    "small, tokens": Network(8, 64, 8, {"multipliers": (1, 2), "attention": (2,), "heads": 2, "context_width": 64}),
    "S": Network(32, 8, 8, {"channels": 64, "multipliers": (1, 2, 3), "heads": 4, "context_width": 128}),
    "medium": Network(
        32, 4, 16, {"channels": 96, "multipliers": (1, 2, 3), "attention": (2, 4), "heads": 6, "context_width": 256}
    ),
    "M": Network(
        32,
        4,
        1,
        {
            "channels": 128,
            "multipliers": (1, 2, 3, 4),
            "attention": (2, 4, 8),
            "heads": 8,
            "context_width": 512,
        },
    ),
}
QUICK = ("small, self-attention", "small, tokens")


def diffusers_unet(unet: UNet) -> nn.Module:
    """The same network in diffusers with the same weights; `unet` has 32 groups in every norm, as diffusers has."""
    config, variant = unet.config, unet.variant
    attends = [2**level in config["attention"] for level in range(len(config["multipliers"]))]
    common = {
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "block_out_channels": [config["channels"] * multiplier for multiplier in config["multipliers"]],
        "layers_per_block": config["blocks"],
        "num_class_embeds": variant.classes,
        "resnet_time_scale_shift": "scale_shift" if variant.scale_shift else "default",
    }
    other: nn.Module
    if config["context_width"] is None:
        resample = "resnet" if variant.resample_blocks else "conv"
        other = UNet2DModel(
            down_block_types=["AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
            up_block_types=["AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
            attention_head_dim=config["head_width"],
            attn_norm_num_groups=32,  # without it the middle attention has no norm under scale_shift
            downsample_type=resample,
            upsample_type=resample,
            **common,
        )
    else:
        other = UNet2DConditionModel(
            down_block_types=["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
            up_block_types=["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
            cross_attention_dim=config["context_width"],
            attention_head_dim=config["heads"],  # the number of heads, in spite of its name
            transformer_layers_per_block=config["transformer_depth"],
            use_linear_projection=variant.linear_projection,
            **common,
        )
    other.load_state_dict(diffusers_state(unet))
    return other


OUTER = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def diffusers_state(unet: UNet) -> dict[str, Tensor]:
    """The UNet's weights under diffusers' names."""
    state = {
        f"{theirs}.{name}": value
        for ours, theirs in OUTER.items()
        if ours != "label_emb" or unet.variant.classes is not None
        for name, value in unet.get_submodule(ours).state_dict().items()
    }
    for prefix, block in _blocks(unet):
        state.update({f"{prefix}.{name}": value for name, value in _renamed(block)})
    return state


def _blocks(unet: UNet) -> Iterator[tuple[str, nn.Module]]:
    """Every block with its diffusers name."""
    per_level = unet.config["blocks"]
    for i, stage in enumerate(list(unet.input_blocks)[1:]):
        level, j = divmod(i, per_level + 1)
        for block in stage:
            kind = "downsamplers" if j == per_level else _kind(block)
            yield f"down_blocks.{level}.{kind}.{0 if j == per_level else j}", block
    for j, block in zip((0, 0, 1), unet.middle_block, strict=True):
        yield f"mid_block.{_kind(block)}.{j}", block
    for i, stage in enumerate(unet.output_blocks):
        level, j = divmod(i, per_level + 1)
        for k, block in enumerate(stage):
            upsampler = isinstance(block, Upsample) or (k > 0 and isinstance(block, ResidualBlock))
            yield f"up_blocks.{level}.{'upsamplers' if upsampler else _kind(block)}.{0 if upsampler else j}", block


def _kind(block: nn.Module) -> str:
    return "resnets" if isinstance(block, ResidualBlock) else "attentions"


def _renamed(block: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for key, value in block.state_dict().items():
        module, _, parameter = key.rpartition(".")
        if isinstance(block, ResidualBlock):
            yield f"{RESIDUAL[module]}.{parameter}", value
        elif isinstance(block, Downsample | Upsample):
            yield f"conv.{parameter}", value
        elif not isinstance(block, AttentionBlock):
            yield key, value  # the spatial transformer has the same names
        elif module == "qkv":  # interleaved per head
            split = value.squeeze(-1) if parameter == "weight" else value
            for name, part in zip("qkv", split.unflatten(0, (block.heads, 3, -1)).unbind(1), strict=True):
                yield f"to_{name}.{parameter}", part.flatten(0, 1)
        elif module == "proj_out":
            yield f"to_out.0.{parameter}", value.squeeze(-1) if parameter == "weight" else value
        else:
            yield f"group_norm.{parameter}", value


def randomised(unet: UNet) -> UNet:
    """Weights as in the middle of training: nothing is zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in unet.parameters():
            scale = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return unet


def calls(name: str) -> tuple[int, Callable[[], Tensor], Callable[[], Tensor]]:
    """The number of parameters, and one forward of ldmkit and one of diffusers at equal weights."""
    network = NETWORKS[name]
    unet = randomised(UNet.of_widths(in_channels=4, out_channels=4, variant={"groups": 32}, **network.options))
    other = diffusers_unet(unet)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(network.batch, 4, network.side, network.side, generator=generator)
    t = torch.randint(1000, (network.batch,), generator=generator)
    tokens = None
    if network.tokens:
        tokens = torch.randn(network.batch, network.tokens, unet.context_width or 0, generator=generator)
    given = (x, t) if tokens is None else (x, t, tokens)
    count = sum(parameter.numel() for parameter in unet.parameters())
    return count, lambda: unet(x, t, tokens=tokens), lambda: other(*given, return_dict=False)[0]


def seconds(call: Callable[[], Tensor], *, train: bool) -> float:
    """CPU time of one forward, or of one forward and backward."""
    start = time.process_time()
    with torch.set_grad_enabled(train):
        output = call()
        if train:
            output.square().mean().backward()
    return time.process_time() - start


def compare(name: str, rounds: int) -> dict[str, Any]:
    """The agreement of the outputs, and the ratios of the times."""
    count, ours, theirs = calls(name)
    with torch.no_grad():
        expected = theirs()
        error = ((ours() - expected).abs().max() / expected.std()).item()
    if not error < 1e-4:
        raise SystemExit(f"{name}: the outputs differ by {error:.1e} of their standard deviation; nothing was timed")
    result: dict[str, Any] = {"network": name, "parameters": count, "error": error}
    for kind, train in (("forward", False), ("training step", True)):
        seconds(ours, train=train), seconds(theirs, train=train)
        pairs = [(seconds(ours, train=train), seconds(theirs, train=train)) for _ in range(rounds)]
        result[kind] = {
            "ldmkit s": statistics.median(pair[0] for pair in pairs),
            "diffusers s": statistics.median(pair[1] for pair in pairs),
            "ratio": statistics.median(theirs / ours for ours, theirs in pairs),
        }
    return result


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the two small networks alone")
    parser.add_argument("--only", nargs="+", choices=list(NETWORKS), help="these networks")
    parser.add_argument("--rounds", type=int, default=9, help="pairs timed for each figure")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.only or (QUICK if options.quick else NETWORKS):
        result = compare(name, options.rounds)
        if options.json:
            print(json.dumps(result))
            continue
        print(f"{name}: {result['parameters'] / 1e6:.1f} M parameters, outputs within {result['error']:.0e}")
        for kind in ("forward", "training step"):
            row = result[kind]
            print(
                f"  {kind:14} {row['ratio']:.2f}x   {row['ldmkit s']:.3f} s against {row['diffusers s']:.3f} s of CPU"
            )


if __name__ == "__main__":
    main()
