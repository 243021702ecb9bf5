"""LPIPS: against the package itself, with weights from a file, a seed, and nowhere."""

import urllib.error
import warnings

import lpips
import pytest
import torch
from safetensors.torch import save_file

from ldmkit.autoencoder import Perceptual, make_loss
from ldmkit.autoencoder.perceptual import LEAST_SIZE
from ldmkit.errors import CheckpointError, OfflineError, UsageError


def pair(channels=3, side=40):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, channels, side, side, generator=generator) * 2 - 1 for _ in range(2)]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A file as torchvision publishes it, with random weights, and what lpips makes of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        model = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    names = {name.split(".", 2)[2]: tensor for name, tensor in model.net.state_dict(prefix="net.").items()}
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save({f"features.{name}": tensor for name, tensor in names.items()}, path)
    return model, path


def test_weights_from_a_file_give_lpips(backbone):
    model, path = backbone
    images, others = pair()
    found = Perceptual("alex", str(path))(images, others)
    assert found.shape == (2,)
    torch.testing.assert_close(found, model(images, others).flatten())


def test_lpips_own_names_load_too(backbone, tmp_path):
    model, _ = backbone
    path = tmp_path / "lpips.safetensors"
    save_file(
        {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith("lins")}, path
    )
    images, others = pair()
    torch.testing.assert_close(Perceptual("alex", str(path))(images, others), model(images, others).flatten())


@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
def test_random_weights_are_a_usable_distance(net):
    """Zero for equal images, growing with noise, the same in every process, sensitive down to the least size."""
    side = LEAST_SIZE[net]
    state = torch.get_rng_state()
    first, second = Perceptual(net, "random"), Perceptual(net, "random")
    assert torch.equal(torch.get_rng_state(), state)
    images, noise = pair(side=side)
    distances = [float(first(images, images + scale * noise).mean()) for scale in (0.0, 0.1, 0.5, 1.0)]
    assert distances[0] == 0
    assert 1e-3 < distances[1] < distances[2] < distances[3] < 4
    torch.testing.assert_close(first(images, noise), second(images, noise), rtol=0, atol=0)
    with pytest.raises(UsageError, match=f"needs images of {side} pixels"):
        first(images[..., 1:], noise[..., 1:])
    with pytest.raises((RuntimeError, UsageError)):
        first._held[0](images[..., 1:, 1:], noise[..., 1:, 1:])
    assert "not LPIPS" in first.label


def test_gradients_reach_the_image_and_nothing_else():
    model = Perceptual("squeeze", "random")
    images, others = pair()
    others.requires_grad_(True)
    model.train()(images, others).sum().backward()
    assert torch.isfinite(others.grad).all()
    assert float(others.grad.abs().sum()) > 0
    assert list(model.parameters()) == []
    assert model.state_dict() == {}
    assert not any(module.training for module in model._held[0].modules())


def test_flat_images_have_a_finite_gradient():
    flat = torch.zeros(1, 3, 32, 32, requires_grad=True)
    Perceptual("alex", "random")(torch.full((1, 3, 32, 32), -0.5), flat).sum().backward()
    assert torch.isfinite(flat.grad).all()


def test_grey_images_are_repeated():
    model = Perceptual("squeeze", "random")
    images, others = pair(channels=1)
    torch.testing.assert_close(model(images, others), model(images.repeat(1, 3, 1, 1), others.repeat(1, 3, 1, 1)))
    with pytest.raises(UsageError, match="1 or 3 channels"):
        model(*pair(channels=4))


def test_moves_with_its_module():
    loss = make_loss(perceptual={"net": "squeeze", "weights": "random"}).double()
    images, others = (x.double() for x in pair())
    assert loss.perceptual(images, others).dtype == torch.float64


def test_imagenet_without_network_says_what_to_do(monkeypatch, tmp_path):
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    with pytest.raises(OfflineError, match=r"alexnet-owt.*\.pth.*no network") as caught:
        Perceptual("alex", "imagenet")
    assert "weights: random" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_files_that_are_something_else(tmp_path):
    with pytest.raises(CheckpointError, match="no file"):
        Perceptual("alex", str(tmp_path / "none.pth"))
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CheckpointError, match="cannot read"):
        Perceptual("alex", str(tmp_path / "text.pth"))
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="not the weights of this backbone"):
        Perceptual("alex", str(tmp_path / "other.pth"))
