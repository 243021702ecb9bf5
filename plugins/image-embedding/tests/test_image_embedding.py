"""The embedding of an image: its contract, timm called by hand as the truth, what it says of bad input."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from ldmkit_image_embedding.conditioner import ImageEmbeddingConditioner
from PIL import Image
from safetensors.torch import save_file

from ldmkit.conditioning import Canvas
from ldmkit.errors import CheckpointError, DataError, OfflineError, RecipeError
from ldmkit.image_features import EfficientNetLite0
from ldmkit.testing import check_conditioner

VIT = "test_vit.r160_in1k"  # 0.4 million parameters


def canvas() -> Canvas:
    return Canvas((64, 64), (8, 8), torch.device("cpu"), torch.float32, lambda images: images)


def image(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape or (3, 48, 64), generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("port", ["vector", "tokens", "both"])
def test_contract(port):
    conditioner = ImageEmbeddingConditioner(side=64, port=port)
    conditioner.load_pretrained()
    others = [{"image": image(1, 3, 40, 30)}, {"image": image(2, 1, 64, 64)}]
    photo = Image.fromarray(np.full((20, 30, 3), 90, np.uint8))
    check_conditioner(conditioner, {"image": image(0)}, others=others, value=photo)


def test_importing_the_plugin_loads_no_torch():
    code = "import sys, ldmkit_image_embedding; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_it_is_what_timm_says_of_the_middle_square():
    conditioner = ImageEmbeddingConditioner(side=64, port="both")
    conditioner.load_pretrained()
    given = image(3, 3, 50, 90)
    answer = conditioner.encode({"image": conditioner.prepare({"image": given})["image"][None]}, canvas())
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    network.load_state_dict(EfficientNetLite0().network.state_dict())
    with torch.no_grad():
        seen = F.interpolate(given[None, :, :, 20:70], (64, 64), mode="bilinear", antialias=True)
        vector = network.forward_head(network.forward_features(seen), pre_logits=True)
    torch.testing.assert_close(answer.vector, vector / vector.square().mean().sqrt(), rtol=1e-4, atol=1e-4)
    assert answer.tokens.shape == (1, 4, 320)
    torch.testing.assert_close(answer.tokens.square().mean(-1), torch.ones(1, 4))


def test_a_network_of_timm_sees_pixels_as_it_was_trained_to(tmp_path):
    torch.manual_seed(0)
    network = timm.create_model(VIT, pretrained=False, num_classes=0).eval()
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    conditioner = ImageEmbeddingConditioner(encoder=VIT, weights=str(tmp_path / "vit.safetensors"), port="both")
    conditioner.load_pretrained()
    side = network.pretrained_cfg["input_size"][-1]
    given = image(4, 3, side, side)
    answer = conditioner.eval().encode({"image": given[None]}, canvas())
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        features = network.forward_features((((given + 1) / 2 - mean) / std)[None])
        vector = network.forward_head(features, pre_logits=True)
    tokens = features[:, network.num_prefix_tokens :]
    width = conditioner.emits.vector
    torch.testing.assert_close(answer.vector, F.normalize(vector, dim=-1) * width**0.5, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(answer.tokens, F.normalize(tokens, dim=-1) * width**0.5, rtol=1e-4, atol=1e-4)
    assert conditioner.emits.length == tokens.shape[1]


def test_fidelity_is_highest_for_the_image_itself():
    conditioner = ImageEmbeddingConditioner(side=64)
    conditioner.load_pretrained()
    images = torch.stack([image(5, 3, 64, 64), image(6, 3, 64, 64).abs()])
    prepared = {"image": torch.stack([conditioner.prepare({"image": one})["image"] for one in images])}
    torch.testing.assert_close(conditioner.fidelity(images, prepared), torch.ones(2))
    assert (conditioner.fidelity(images.flip(0), prepared) < 0.99).all()


def test_nothing_in_it_is_trained():
    conditioner = ImageEmbeddingConditioner(side=32)
    assert conditioner.frozen_parameters() == {name for name, _ in conditioner.named_parameters()}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("a text", "image is str; the encoder sees an image"),
        (torch.zeros(4, 8, 8), r"image is \(4, 8, 8\); the encoder sees an image \(1 or 3, h, w\)"),
        (torch.full((3, 8, 8), float("nan")), "values that are not finite"),
    ],
)
def test_what_is_no_image_is_told(value, said):
    with pytest.raises(DataError, match=said):
        ImageEmbeddingConditioner(side=32).prepare({"image": value})


def test_what_the_encoder_cannot_be_is_told(tmp_path, monkeypatch):
    with pytest.raises(
        RecipeError, match=r"no encoder is called 'efficientnet-lite'.*did you mean 'efficientnet-lite0'"
    ):
        ImageEmbeddingConditioner(encoder="efficientnet-lite")
    with pytest.raises(RecipeError, match="side is 16; efficientnet-lite0 needs images of 32 pixels or more"):
        ImageEmbeddingConditioner(side=16)
    with pytest.raises(RecipeError, match="which is no file"):
        ImageEmbeddingConditioner(side=32, weights="missing.pth").load_pretrained()
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="the weights do not fit the encoder"):
        ImageEmbeddingConditioner(side=32, weights=str(tmp_path / "bad.pth")).load_pretrained()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineError, match="could not be downloaded"):
        ImageEmbeddingConditioner(encoder=VIT).load_pretrained()
