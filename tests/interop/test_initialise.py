"""Fine-tuning: step 0 of a model with a new condition is the source's, bit for bit, for every port."""

from __future__ import annotations

import pytest
import torch

import ldmkit
from ldmkit import plugins
from ldmkit.assembly.fine_tuning import initialise
from ldmkit.errors import CheckpointError, UsageError
from ldmkit.plugins.hookspecs import hookimpl
from tests.interop.conftest import SMALL, Hint, assembled, first_step


class Plugin:
    @hookimpl
    def ldmkit_register_conditioners(self, register):
        register("hint", Hint)


@pytest.fixture(scope="module")
def registry():
    return plugins.load(only=(), extra=[Plugin()])


def made(registry, variant=None, shortcut=False, **slots):
    return assembled(
        registry,
        {name: {"type": "hint", "options": options} for name, options in slots.items()},
        std=0.2,
        size=[16, 16],
        autoencoder={"type": "kl", "downsample": 2, "channels": 8, "blocks": 1, "latent_channels": 4},
        denoiser={**SMALL, "variant": variant, "shortcut": shortcut},
        diffusion={"schedule": {"type": "linear", "start": 0.0015, "end": 0.0195}},
    )


HINTS = {"old": 0.3, "new": -2.0, "other": 1.0}


def check(model, source, registry, folder):
    source.save(folder)
    before = first_step(model, HINTS)
    done = initialise(model, folder, registry=registry)
    after = first_step(model, HINTS)
    assert not torch.equal(before, after)
    # With more input channels a convolution may add up in another order: float32 rounding of sums of about 50 terms.
    torch.testing.assert_close(after, first_step(source, HINTS), rtol=1e-4, atol=1e-4)
    return done


@pytest.mark.parametrize("port", [{"vector": 6}, {"concat": 3}, {"vector": 6, "concat": 2}])
def test_a_new_condition_starts_without_effect(registry, tmp_path, port):
    source, model = made(registry), made(registry, new=port)
    assert check(model, source, registry, tmp_path / "source").added == ["new"]


def test_a_new_condition_by_tokens_starts_without_effect(registry, tmp_path):
    """The plain attention of the source stays, and the transformers after it add nothing yet."""
    source, model = made(registry), made(registry, {"plain_attention": True}, new={"tokens": 6})
    assert check(model, source, registry, tmp_path / "source").added == ["new"]
    kinds = [type(block).__name__ for block in model.denoiser.middle_block]
    assert kinds == ["ResidualBlock", "AttentionBlock", "SpatialTransformer", "ResidualBlock"]


def test_what_learned_to_read_tokens_beside_plain_attention_comes_back(registry, tmp_path):
    beside = {"plain_attention": True}
    source, model = (
        made(registry, beside, old={"tokens": 6}),
        made(registry, beside, old={"tokens": 6}, new={"vector": 3}),
    )
    assert check(model, source, registry, tmp_path / "source").added == ["new"]
    assert torch.equal(
        first_step(ldmkit.load(tmp_path / "source", registry=registry), HINTS), first_step(source, HINTS)
    )


def gradient(model, name):
    """How much each number of a parameter matters when the new condition is given."""
    model.train()
    conditioning = model.conditioners(
        {"new": {"hint": torch.ones(2, 1)}}, {"new": torch.ones(2, dtype=torch.bool)}, model.canvas(), 2
    )
    output = model.denoiser(torch.randn(2, 4, 8, 8), torch.tensor([3.0, 9.0]), **conditioning.kwargs())
    model.zero_grad()
    output.square().mean().backward()
    return model.get_parameter(name).grad.abs()


def test_new_tokens_learn(registry, tmp_path):
    source, model = made(registry), made(registry, {"plain_attention": True}, new={"tokens": 6})
    check(model, source, registry, tmp_path / "source")
    assert gradient(model, "denoiser.middle_block.2.proj_out.weight").max() > 0


def test_new_conditions_learn(registry, tmp_path):
    source, model = made(registry), made(registry, new={"vector": 6, "concat": 2})
    check(model, source, registry, tmp_path / "source")
    assert gradient(model, "conditioners._vector_projections.new.weight").max() > 0
    assert gradient(model, "denoiser.input_blocks.0.0.weight")[:, 4:].max() > 0


def test_known_conditions_keep_their_weights_and_channels_wherever_they_stand(registry, tmp_path):
    source = made(registry, old={"concat": 2, "vector": 5})
    model = made(registry, new={"concat": 3}, old={"concat": 2, "vector": 5}, other={"vector": 4})
    done = check(model, source, registry, tmp_path / "source")
    assert (done.kept, done.added) == (["old"], ["new", "other"])


def test_a_shortcut_reads_every_condition_where_it_stands(registry, tmp_path):
    source = made(registry, shortcut=True, old={"concat": 2, "vector": 5})
    model = made(registry, shortcut=True, new={"concat": 3}, old={"concat": 2, "vector": 5})
    source.save(tmp_path / "source")
    initialise(model, tmp_path / "source", registry=registry)
    # Among 9 input channels a convolution adds up in another order than among 6: float32 rounding of sums of about 50 terms.
    torch.testing.assert_close(first_step(model, HINTS), first_step(source, HINTS), rtol=1e-4, atol=1e-4)
    assert not model.denoiser.get_parameter("shortcut.conv.weight")[:, 4:7].any()


def test_a_shortcut_that_is_added_has_no_effect_and_one_that_goes_is_refused(registry, tmp_path):
    with_one, without = made(registry, shortcut=True), made(registry)
    torch.nn.init.zeros_(with_one.denoiser.get_parameter("shortcut.conv.weight"))
    torch.nn.init.zeros_(with_one.denoiser.get_parameter("shortcut.conv.bias"))
    check(with_one, without, registry, tmp_path / "without")
    with_one.save(tmp_path / "with")
    with pytest.raises(CheckpointError, match="lacks the source's linear shortcut"):
        initialise(without, tmp_path / "with", registry=registry)


def test_conditions_that_go_are_said(registry, tmp_path):
    made(registry, old={"concat": 2}).save(tmp_path / "source")
    done = initialise(made(registry), tmp_path / "source", registry=registry)
    assert "old" in done.notes[0]


def test_tokens_without_a_place_for_the_old_attention_are_refused(registry, tmp_path):
    made(registry).save(tmp_path / "source")
    with pytest.raises(CheckpointError, match="plain_attention"):
        initialise(made(registry, new={"tokens": 6}), tmp_path / "source", registry=registry)


def test_tokens_beside_tokens_are_refused(registry, tmp_path):
    made(registry, old={"tokens": 6}).save(tmp_path / "source")
    with pytest.raises(UsageError, match="share their attention"):
        initialise(made(registry, old={"tokens": 6}, new={"tokens": 6}), tmp_path / "source", registry=registry)


def test_a_vector_that_is_not_projected_is_refused(registry, tmp_path):
    made(registry).save(tmp_path / "source")
    with pytest.raises(UsageError, match="as wide as the time embedding"):
        initialise(made(registry, new={"vector": 64}), tmp_path / "source", registry=registry)


def test_another_network_is_refused(registry, tmp_path):
    source = made(registry, old={"concat": 2})
    source.save(tmp_path / "source")
    with pytest.raises(CheckpointError, match=r"conditioner old.*net\.weight"):
        initialise(made(registry, old={"concat": 3}), tmp_path / "source", registry=registry)
    assert ldmkit.load(tmp_path / "source", registry=registry) is not None
