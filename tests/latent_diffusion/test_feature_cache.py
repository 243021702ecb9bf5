"""Feature caching: what is computed, what is taken from before, and what that costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ldmkit import diffusion as objectives
from ldmkit import samplers
from ldmkit.autoencoder import IdentityAutoencoder
from ldmkit.conditioning import ConditionerSet, Dropout
from ldmkit.denoiser import Context, timestep_embedding
from ldmkit.denoiser.unet import UNet
from ldmkit.errors import UsageError
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.latent_diffusion.feature_cache import FeatureCache

NETWORK = {"in_channels": 3, "out_channels": 3, "channels": 16, "multipliers": (1, 2), "blocks": 1, "attention": (2,)}


def make_unet() -> UNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet.of_widths(**NETWORK).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.1)
    return unet


def make_model() -> LatentDiffusion:
    conditioners = ConditionerSet({}, vector_width=64, dropout=Dropout.from_table((), {}))
    available = {"ddim": samplers.ddim, "heun": samplers.heun, "dpmpp-2m": samplers.dpmpp_2m}
    return LatentDiffusion(
        IdentityAutoencoder(), make_unet(), conditioners, objectives.make(), size=(8, 8), samplers=available
    ).double()


def noisy(seed: int, rows: int = 2) -> Tensor:
    return torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ends(unet: UNet, x: Tensor, t: Tensor, deep: Tensor) -> Tensor:
    """Stem, last stage and head of `unet` around a deep map: the paper's equation 7 with one skip connection."""
    context = Context(unet.time_embed(timestep_embedding(t, unet.channels).to(x.dtype)))
    shallow = unet.input_blocks[0](x, context)
    return unet.out(unet.output_blocks[-1](torch.cat([deep, shallow], dim=1), context))  # type: ignore[no-any-return]


@torch.no_grad()
def test_an_evaluation_in_between_is_the_ends_around_the_deep_features_of_the_last_full_one():
    unet, deep = make_unet(), []
    handle = unet.output_blocks[-2].register_forward_hook(lambda module, given, result: deep.append(result))
    first, second = (noisy(1), torch.tensor([900.0, 900.0])), (noisy(2), torch.tensor([800.0, 800.0]))
    full = unet(*first)
    with FeatureCache(every=2).applied(unet.blocks()):
        torch.testing.assert_close(unet(*first), full, rtol=0, atol=0)
        between = unet(*second)
        again = unet(*second)
    handle.remove()
    torch.testing.assert_close(between, ends(unet, *second, deep[0]), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(again, unet(*second), rtol=0, atol=0)
    assert (between - again).abs().max() > 1e-3


@torch.no_grad()
def test_the_blocks_run_as_often_as_is_said():
    unet, runs = make_unet(), {"ends": 0, "inner": 0}
    compute = unet.middle_block[0].register_forward_hook(lambda *_: runs.update(inner=runs["inner"] + 1))
    stem = unet.input_blocks[0][0].register_forward_hook(lambda *_: runs.update(ends=runs["ends"] + 1))
    with FeatureCache(every=3).applied(unet.blocks()):
        for _ in range(7):
            unet(noisy(0), torch.zeros(2))
    assert runs == {"ends": 7, "inner": 3}
    compute.remove()
    stem.remove()


@torch.no_grad()
def test_another_batch_and_gradients_are_computed_in_full():
    unet = make_unet()
    with FeatureCache(every=9).applied(unet.blocks()):
        unet(noisy(1), torch.zeros(2))
        torch.testing.assert_close(unet(noisy(2, 3), torch.ones(3)), make_unet()(noisy(2, 3), torch.ones(3)))
        with torch.enable_grad():
            result = unet(noisy(3, 3), torch.ones(3))
    torch.testing.assert_close(result, make_unet()(noisy(3, 3), torch.ones(3)))


def test_the_blocks_are_what_they_were_afterwards():
    unet = make_unet()
    with pytest.raises(RuntimeError), FeatureCache(every=2).applied(unet.blocks()):
        raise RuntimeError
    assert all("forward" not in vars(block) for block in unet.blocks())


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp-2m"])
def test_any_sampler_takes_it_and_every_1_changes_no_bit(sampler):
    model = make_model()
    common = {"count": 2, "sampler": sampler, "steps": 6, "output": "latent"}
    plain = model.sample(**common)
    assert torch.equal(model.sample(**common, cache={"every": 1}), plain)
    cached = model.sample(**common, cache=2)
    assert torch.equal(cached, model.sample(**common, cache={"every": 2, "depth": 1}))
    assert not torch.equal(cached, plain)


def test_it_is_saved_with_the_model_and_can_be_switched_off():
    model = make_model()
    common = {"count": 1, "sampler": "ddim", "steps": 6, "output": "latent"}
    plain, cached = model.sample(**common), model.sample(**common, cache={"every": 3})
    model.sampling["cache"] = {"every": 3, "depth": 1}
    assert torch.equal(model.sample(**common), cached)
    assert torch.equal(model.sample(**common, cache=1), plain)


@pytest.mark.parametrize("given", [0, True, 2.5, {"every": 0}, {"depth": 0}, {"each": 3}])
def test_what_is_no_cache_is_refused(given):
    with pytest.raises(UsageError, match="cache"):
        FeatureCache.of(given)


def test_a_depth_that_leaves_nothing_between_is_refused():
    unet = make_unet()
    with (
        pytest.raises(UsageError, match="depth is 4"),
        FeatureCache(depth=4).applied(unet.blocks()),
    ):
        pass


def test_blocks_in_a_row_keep_what_the_last_inner_one_gave():
    """A denoiser without skip connections: what comes after is computed from the features of the last full evaluation."""
    blocks = [nn.Linear(2, 2).double() for _ in range(4)]
    x, y = torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    with torch.no_grad(), FeatureCache(every=2).applied(blocks):
        first = nn.Sequential(*blocks)(x)
        assert torch.equal(nn.Sequential(*blocks)(y), first)
