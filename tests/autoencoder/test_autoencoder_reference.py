"""What the original implementation computed from two small checkpoints in the released format."""

import pytest
import torch
from safetensors.torch import load_file

from ldmkit.autoencoder import make
from tests.reference import compvis

NETWORKS = {
    "superres": {"downsample": 4, "multipliers": (1, 1, 2), "latent_channels": 3},
    "class": {"downsample": 8, "multipliers": (1, 1, 1, 2), "latent_channels": 4, "attention": (8,)},
}
PREFIX = "first_stage_model."


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_encode_and_decode(name):
    model = make(
        "vq", channels=32, groups=32, blocks=1, codebook=256, resolution=64, middle_attention=True, **NETWORKS[name]
    ).eval()
    tensors = torch.load(compvis() / name / "model.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({key.removeprefix(PREFIX): value for key, value in tensors.items() if key.startswith(PREFIX)})
    truth = load_file(compvis() / name / "io.safetensors")
    for found, expected in ((model.encode(truth["image"]), "latent"), (model.decode(truth["latent"]), "decoded")):
        assert float((found - truth[expected]).abs().max() / truth[expected].std()) < 1e-4
