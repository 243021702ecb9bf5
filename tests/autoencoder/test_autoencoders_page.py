"""docs/reference/autoencoders.md says what the networks are, and which of it is given and which is assumed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from ldmkit.autoencoder import PAPER, paper

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "autoencoders.md"
ROWS = {
    cells[0].strip("`"): cells[1:]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| `") and len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 8
}
# Table 8 of the paper: factor, codebook size (None: KL), latent channels.
TABLE_8 = {
    "vq-f32": (32, 16384, 16),
    "vq-f16": (16, 16384, 8),
    "vq-f8": (8, 16384, 4),
    "vq-f8-n256": (8, 256, 4),
    "vq-f4": (4, 8192, 3),
    "vq-f4-noattn": (4, 8192, 3),
    "vq-f4-n256": (4, 256, 3),
    "vq-f2": (2, 2048, 2),
    "vq-f2-n64": (2, 64, 2),
    "kl-f32": (32, None, 64),
    "kl-f32-c16": (32, None, 16),
    "kl-f16": (16, None, 16),
    "kl-f16-c8": (16, None, 8),
    "kl-f8": (8, None, 4),
    "kl-f4": (4, None, 3),
    "kl-f2": (2, None, 2),
}
# What the latent's width and the codebook's size enter.
AT_THE_LATENT = ("encoder.conv_out", "quant_conv", "post_quant_conv", "decoder.conv_in", "quantize", "latent_")


def on_meta(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        return paper(name)


def trunk(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all but the layers that touch the latent."""
    state = on_meta(name).state_dict()
    return {key: tuple(value.shape) for key, value in state.items() if not key.startswith(AT_THE_LATENT)}


def test_table_8_is_what_the_paper_gives():
    found = {name: (o["downsample"], o.get("codebook"), o["latent_channels"]) for name, o in PAPER.items()}
    assert found == TABLE_8


@pytest.mark.parametrize("name", PAPER)
def test_a_row_of_the_page(name):
    factor, codebook, channels, multipliers, attention, parameters, _ = ROWS[name]
    model = on_meta(name)
    config = model.config
    assert (int(factor), int(channels)) == (config["downsample"], config["latent_channels"])
    assert codebook == str(config.get("codebook", "KL"))
    assert multipliers == ", ".join(map(str, config["multipliers"]))
    assert attention == (", ".join(map(str, config["attention"])) or "-")
    assert parameters == f"{sum(p.numel() for p in model.parameters()):,}"


def test_what_is_built_like_a_released_one_is():
    like = {name: found[1] for name, row in ROWS.items() if (found := re.search(r"as `([a-z0-9-]+)`", row[-1]))}
    assert len(like) == 4
    for name, neighbour in like.items():
        assert ROWS[neighbour][-1] == "release"
        assert trunk(name) == trunk(neighbour)
    assert sum(row[-1] == "release" for row in ROWS.values()) == 9
    assert {name for name, row in ROWS.items() if row[-1].endswith("assumed")} == {"kl-f2", "vq-f2", "vq-f2-n64"}
