"""Parameter counts and key names of the paper's sixteen autoencoders, without allocating one of them."""

import json

import numpy as np
import pytest
import scipy.fft
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image

from ldmkit.autoencoder import PAPER, Autoencoder, NetworkConfig, make, paper
from ldmkit.errors import UsageError

# Given facts, counted on the original code: (parameters, keys of the state dict without loss). No count is known of the other
# seven: for them, `counted` is arithmetic from options that are partly assumed (docs/reference/autoencoders.md).
RELEASED = {
    "kl-f4": (55_312_063, 204),
    "kl-f8": (83_653_863, 248),
    "kl-f16": (69_610_963, 342),
    "kl-f32": (103_880_131, 436),
    "vq-f4": (55_322_782, 205),
    "vq-f4-noattn": (53_219_486, 185),
    "vq-f8": (67_717_295, 299),
    "vq-f8-n256": (67_652_783, 299),
    "vq-f16": (69_593_371, 343),
}
HALVES = {  # encoder, decoder
    "kl-f4": (22_351_238, 32_960_771),
    "kl-f8": (34_163_592, 49_490_179),
    "kl-f16": (28_265_760, 41_343_875),
    "kl-f32": (42_614_656, 61_244_803),
    "vq-f4": (22_337_411, 32_960_771),
    "vq-f4-noattn": (21_285_763, 31_909_123),
    "vq-f8-n256": (27_397_764, 40_253_955),
    "vq-f16": (28_155_144, 41_307_011),
}


def on_meta(name: str) -> Autoencoder:
    with torch.device("meta"):
        return paper(name)


def size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def counted(options: dict) -> int:
    """The parameters by arithmetic, layer by layer, from the options alone."""
    config = NetworkConfig(**{k: v for k, v in options.items() if k not in ("type", "codebook", "swapped")})
    kl, z, widths = options["type"] == "kl", config.latent_channels, config.widths

    def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
        return inputs * outputs * kernel * kernel + outputs

    def block(inputs: int, outputs: int) -> int:
        skip = conv(inputs, outputs, 1) if inputs != outputs else 0
        return 2 * inputs + conv(inputs, outputs) + 2 * outputs + conv(outputs, outputs) + skip

    def attend(width: int) -> int:
        return 2 * width + 4 * conv(width, width, 1)

    def side(blocks: int, order: list[int]) -> int:
        total, width = 0, widths[order[0]] if order[0] else config.channels
        for position, level in enumerate(order):
            for _ in range(blocks):
                total += block(width, widths[level]) + (attend(widths[level]) if config.attends(level) else 0)
                width = widths[level]
            total += conv(width, width) if position < len(order) - 1 else 0
        return total

    top = widths[-1]
    middle = 2 * block(top, top) + (attend(top) if config.middle_attention else 0)
    out, levels = (2 * z if kl else z), list(range(len(widths)))
    encoder = conv(3, config.channels) + side(config.blocks, levels) + middle + 2 * top + conv(top, out)
    decoder = conv(z, top) + middle + side(config.blocks + 1, levels[::-1]) + 2 * widths[0] + conv(widths[0], 3)
    return encoder + decoder + conv(out, out, 1) + conv(z, z, 1) + options.get("codebook", 0) * z


def test_all_sixteen_are_there():
    assert len(PAPER) == 16
    assert set(RELEASED) < set(PAPER)


@pytest.mark.parametrize("name", PAPER)
def test_parameter_count(name):
    model = on_meta(name)
    assert size(model) == counted(PAPER[name])
    if name in RELEASED:
        keys = [key for key in model.state_dict() if not key.startswith("latent_")]
        assert (size(model), len(keys)) == RELEASED[name]
    if name in HALVES:
        assert (size(model.encoder), size(model.decoder)) == HALVES[name]


def test_key_names_are_those_of_the_released_checkpoints():
    keys = set(on_meta("vq-f8").state_dict())
    expected = """encoder.conv_in.weight encoder.down.0.block.0.norm1.weight encoder.down.1.block.0.nin_shortcut.bias
        encoder.down.3.attn.1.proj_out.weight encoder.down.0.downsample.conv.weight encoder.mid.attn_1.q.weight
        encoder.mid.block_2.conv2.bias encoder.norm_out.weight encoder.conv_out.bias decoder.up.3.attn.2.k.bias
        decoder.up.1.upsample.conv.weight decoder.up.0.block.2.conv1.weight quant_conv.weight post_quant_conv.bias
        quantize.embedding.weight"""
    assert set(expected.split()) <= keys
    assert not any(key.startswith(("decoder.up.0.upsample", "encoder.down.3.downsample")) for key in keys)


def test_convolutional_without_attention_is_the_default():
    assert not [key for key in make("vq", channels=32, codebook=8).state_dict() if "attn" in key]
    assert not [key for key in make("kl", channels=32).state_dict() if "attn" in key]


@pytest.mark.parametrize(("kind", "options"), [("kl", {}), ("vq", {"codebook": 4})])
def test_the_shortcut_starts_as_a_cosine_transform_of_the_pixels_under_each_latent(kind: str, options: dict[str, int]):
    """Against scipy's transform; with as many latents as pixels, images come back as they were before a step of training."""
    torch.manual_seed(0)
    model = make(kind, downsample=2, channels=8, blocks=1, latent_channels=12, shortcut=True, **options).double().eval()
    images = torch.rand(2, 3, 16, 24, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        latents = model.encode(images)
        patch = images[1, :, 4:6, 8:10].numpy()  # colour, row, column
        expected = torch.from_numpy(scipy.fft.dctn(patch, norm="ortho")).flatten()
        # float32 weights
        torch.testing.assert_close(latents[1, :, 2, 4].sort().values, expected.sort().values, rtol=0, atol=1e-6)
        assert float(latents[1, 0, 2, 4]) == pytest.approx(float(expected[0]), abs=1e-6)  # the mean, the strongest
        if kind == "kl":
            torch.testing.assert_close(model.decode(latents), images, rtol=0, atol=1e-6)


def test_few_cosines_keep_photographs():
    """Eight numbers for 4 x 4 pixels in three colours, before any training: 33 dB, where the mean colour alone keeps 25."""
    china = torch.from_numpy(np.array(load_sample_image("china.jpg")))[None].permute(0, 3, 1, 2).float() / 127.5 - 1
    china = F.avg_pool2d(china[..., :400, :640], 2)
    found = {}
    for count in (3, 8, 16):
        model = make("kl", channels=8, blocks=1, downsample=4, latent_channels=count, shortcut=True).eval()
        with torch.no_grad():
            found[count] = -10 * float(((model.decode(model.encode(china)) - china) / 2).square().mean().log10())
    assert found[3] + 4 < found[8] < found[16] - 2


def test_the_shortcut_learns_and_so_do_the_convolutions_beside_it():
    model = make("kl", channels=8, blocks=1, downsample=2, latent_channels=3, shortcut=True)
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    (model(images).images - images).square().mean().backward()
    for name in ("encoder.shortcut", "decoder.shortcut", "encoder.conv_out", "decoder.conv_out"):
        assert model.get_parameter(f"{name}.weight").grad.any(), name


def test_without_the_shortcut_the_names_are_the_released_ones():
    plain, short = (make("kl", channels=8, blocks=1, shortcut=on).state_dict() for on in (False, True))
    added = {f"{side}.shortcut.{name}" for side in ("encoder", "decoder") for name in ("weight", "bias")}
    assert set(short) - set(plain) == added


@pytest.mark.parametrize("attention_type", ["vanilla", "linear"])
@pytest.mark.parametrize("downsample", [1, 2, 4, 8, 16, 32])
def test_every_downsampling_and_attention(downsample, attention_type):
    side = 64
    model = make(
        "kl", downsample=downsample, channels=8, multipliers=(1,) * downsample.bit_length(), blocks=1, resolution=side,
        attention=(side // downsample,) if downsample > 2 else (), middle_attention=downsample > 2, attention_type=attention_type,
    )  # fmt: skip
    image = torch.rand(1, 3, side, side) * 2 - 1
    latent = model.encode(image)
    assert latent.shape == (1, *model.latent_shape((side, side))) == (1, 3, side // downsample, side // downsample)
    assert model.decode(latent).shape == image.shape


def test_linear_attention_matches_its_definition():
    """Shen et al., arXiv 1812.01243, section 3.2 with one head: q (softmax over positions of k)^T v, position by position."""
    from ldmkit.autoencoder.layers import LinearAttention

    layer, x = LinearAttention(4).double(), torch.randn(2, 4, 3, 5, dtype=torch.float64)
    q, k, v = torch.nn.functional.conv2d(x, layer.to_qkv.weight).view(2, 3, 4, 15).unbind(1)
    expected = torch.zeros(2, 4, 15, dtype=torch.float64)
    for here in range(15):
        for there in range(15):
            weight = (q[:, :, here] * k.softmax(-1)[:, :, there]).sum(1, keepdim=True)
            expected[:, :, here] += weight * v[:, :, there]
    torch.testing.assert_close(layer(x), layer.to_out(expected.view(2, 4, 3, 5)))


def test_groups_of_the_norms():
    """32 for every released width; four channels or more in a group below that; what `groups` says, if it says something."""
    from ldmkit.autoencoder.layers import Norm

    assert [Norm(channels).num_groups for channels in (128, 256, 512)] == [32, 32, 32]
    assert [Norm(channels).num_groups for channels in (3, 8, 24, 32, 64)] == [1, 2, 4, 8, 16]
    assert [Norm(channels, 32).num_groups for channels in (32, 64)] == [32, 32]
    with pytest.raises(UsageError, match="groups is 32, which does not divide 24 channels"):
        Norm(24, 32)


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 32, "multipliers": (1, 1.5, 2), "blocks": (1, 2, 1)},
        {"channels": 8, "multipliers": (1, 1, 1.5), "middle_attention": "decoder"},
        {"channels": 8, "multipliers": (1, 1, 1.5), "middle_attention": "encoder", "image_channels": 64},
    ],
)
def test_widths_and_blocks_of_each_level(options):
    """MONAI's shapes (32, 48, 64) and (8, 8, 12), blocks a level, attention in the middle of one network alone."""
    model = make("kl", downsample=4, **{"blocks": 1, **options})
    widths = [round(options["channels"] * multiplier) for multiplier in options["multipliers"]]
    blocks = options.get("blocks", (1, 1, 1))
    assert [level.block[-1].conv2.out_channels for level in model.encoder.down] == widths
    assert [len(level.block) for level in model.encoder.down] == list(blocks)
    assert [len(level.block) for level in model.decoder.up] == [count + 1 for count in blocks]
    middle = options.get("middle_attention", False)
    for name in ("encoder", "decoder"):
        has = any(key.startswith(f"{name}.mid.attn_1") for key in model.state_dict())
        assert has == (middle == name)
    images = torch.rand(1, options.get("image_channels", 3), 16, 16)
    assert model.decode(model.encode(images)).shape == images.shape
    again = make(**json.loads(json.dumps(model.config)))
    assert again.config == model.config
    again.load_state_dict(model.state_dict())


def test_checkpointing_changes_no_number():
    torch.manual_seed(0)
    plain = make("kl", channels=8, blocks=1, middle_attention=True).double()
    lean = make("kl", channels=8, blocks=1, middle_attention=True, checkpoint=True).double()
    lean.load_state_dict(plain.state_dict())
    images = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    kept: dict[str, int] = {}
    found = {}
    for name, model in (("plain", plain), ("lean", lean)):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, to=sizes: to.append(t.nbytes) or t, lambda t: t):
            loss = model(images).images.square().mean()
        kept[name] = sum(sizes)
        found[name] = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    torch.testing.assert_close(found["lean"], found["plain"])
    assert kept["lean"] < kept["plain"] / 2


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 16])
def test_image_channels(channels):
    model = make("vq", image_channels=channels, downsample=2, channels=8, blocks=1, codebook=4, latent_channels=2)
    image = torch.rand(2, channels, 8, 8)
    assert model.decode(model.encode(image)).shape == image.shape


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"downsample": 3}, "downsample is 3"),
        ({"multipliers": (1, 2)}, "has 3 levels"),
        ({"image_channels": 65}, "1 to 64"),
        ({"image_channels": 0}, "1 to 64"),
        ({"attention": (7,)}, r"they are \[256, 128, 64\]"),
        ({"attention_type": "none", "middle_attention": True}, "contradicts"),
        ({"attention_type": "cross"}, "none, vanilla, linear"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"blocks": 0}, "blocks=0"),
        ({"latent_channel": 3}, "latent_channel"),
    ],
)
def test_impossible_options_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        make("kl", channels=8, **options)


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="allowed are vq, kl, identity"):
        make("vae")
    with pytest.raises(UsageError, match="did you mean vq-f4"):
        paper("vqf4")


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 4)])
def test_upsampling_is_nearest_neighbour_and_convolution(shape):
    from ldmkit.autoencoder.layers import Upsample

    torch.manual_seed(0)
    layer, x = Upsample(3).double(), torch.randn(2, 3, *shape, dtype=torch.float64, requires_grad=True)
    doubled = F.interpolate(x, scale_factor=2.0, mode="nearest")
    expected = F.conv2d(doubled, layer.conv.weight, layer.conv.bias, padding=1)
    torch.testing.assert_close(layer(x), expected)
    gradient = torch.randn_like(expected)
    inputs = [x, layer.conv.weight, layer.conv.bias]
    found, wanted = (torch.autograd.grad(y, inputs, gradient) for y in (layer(x), expected))
    torch.testing.assert_close(found, wanted)


def test_attention_never_forms_the_whole_matrix():
    from torch.profiler import profile

    from ldmkit.autoencoder.layers import Attention

    with torch.no_grad(), profile() as record:
        Attention(8)(torch.randn(1, 8, 6, 6))
    names = {event.key for event in record.key_averages()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names
    assert "aten::_scaled_dot_product_attention_math" not in names
