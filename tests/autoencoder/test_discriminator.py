"""PatchGAN: sizes, names and initialisation of the released discriminators."""

import pytest
import torch

from ldmkit.autoencoder import PatchDiscriminator
from ldmkit.errors import UsageError


@pytest.mark.parametrize(("layers", "parameters", "patches"), [(3, 2_765_633, 30), (2, 663_361, 62)])
def test_released_sizes(layers, parameters, patches):
    with torch.device("meta"):
        model = PatchDiscriminator(3, layers=layers)
        assert model(torch.empty(1, 3, 256, 256)).shape == (1, 1, patches, patches)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_key_names():
    keys = {key.rsplit(".", 1)[0] for key in PatchDiscriminator(3, channels=4).state_dict()}
    assert keys == {f"main.{i}" for i in (0, 2, 3, 5, 6, 8, 9, 11)}
    two = {key.rsplit(".", 1)[0] for key in PatchDiscriminator(3, layers=2, channels=4).state_dict()}
    assert two == {f"main.{i}" for i in (0, 2, 3, 5, 6, 8)}
    assert "main.2.bias" not in PatchDiscriminator(3, channels=4).state_dict()
    assert "main.2.bias" in PatchDiscriminator(3, channels=4, norm="none").state_dict()


def test_initialisation():
    torch.manual_seed(0)
    model = PatchDiscriminator(3)
    assert model.main[5].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.main[6].weight.mean().item() == pytest.approx(1, abs=0.01)
    assert model.main[6].weight.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("norm", ["group", "none"])
def test_without_batch_norm_an_image_does_not_see_its_batch(norm):
    model, images = PatchDiscriminator(3, layers=2, channels=8, norm=norm), torch.rand(3, 3, 24, 24)
    torch.testing.assert_close(model(images)[:1], model(images[:1]))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_least_size(layers):
    model = PatchDiscriminator(1, layers=layers, channels=2, norm="none")
    least = model.least_size
    assert model(torch.zeros(1, 1, least, least)).shape == (1, 1, 1, 1)
    with pytest.raises(UsageError, match=f"needs {least} pixels"):
        model(torch.zeros(1, 1, least - 1, least))
    with pytest.raises(RuntimeError):
        model.main(torch.zeros(1, 1, least - 1, least))
