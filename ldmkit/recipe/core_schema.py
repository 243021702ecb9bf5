"""The options of the core's own components. Written by `python -m ldmkit.recipe.generate`: change the constructors."""

# ruff: noqa: E501
# fmt: off

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ldmkit.recipe.base import Section


class Jitter(Section):
    """How far colours go from the photograph's, as torchvision's `ColorJitter` counts it."""

    brightness: Annotated[Annotated[float, Field(ge=0.0, le=1.0)], Field(description='in [0, 1]; the factor is uniform in [1 - x, 1 + x].')] = 0.0
    contrast: Annotated[Annotated[float, Field(ge=0.0, le=1.0)], Field(description='in [0, 1]; the factor is uniform in [1 - x, 1 + x].')] = 0.0
    saturation: Annotated[Annotated[float, Field(ge=0.0, le=1.0)], Field(description='in [0, 1]; the factor is uniform in [1 - x, 1 + x].')] = 0.0
    hue: Annotated[Annotated[float, Field(ge=0.0, le=0.5)], Field(description='in [0, 0.5]; the turn of the colour circle is uniform in [-x, x], in whole turns: 0.5 makes any hue any other.')] = 0.0


class DataKeys(Section):
    """Samples of `source` cut to `size`."""

    size: Annotated[Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], Field(description='(h, w) in pixels, or one number for both.')]
    channels: Annotated[Literal[1, 3] | None, Field(description='1 or 3; default: what the source has.')] = None
    crop: Annotated[Literal['center', 'random'], Field(description='where the window lies: "center" or "random".')] = 'center'
    flip: Annotated[bool, Field(description='mirror half of the views. Not for captions that say left and right.')] = False
    views: Annotated[Annotated[int, Field(ge=1)] | None, Field(description='how many views each picture has; item i is view i % views of picture i // views, the same in every epoch, so that latents can be cached. None: a fresh view in every epoch.')] = 1
    zoom: Annotated[tuple[Annotated[float, Field(gt=0.0)], Annotated[float, Field(gt=0.0)]] | None, Field(description='(low, high), picture pixels per view pixel, log-uniform; None: the largest window that fits.')] = None
    portion: Annotated[tuple[Annotated[float, Field(gt=0.0, le=1.0)], Annotated[float, Field(gt=0.0, le=1.0)]] | None, Field(description="(low, high), the window's shorter side as a portion of the largest's, uniform; instead of `zoom`.")] = None
    resample: Annotated[Literal['bicubic', 'area'], Field(description='how a window is brought to its size: antialiased "bicubic", or "area", the mean over what a pixel covers.')] = 'bicubic'
    jitter: Annotated[Jitter | None, Field(description="the picture's colours, drawn for each view; fields that are aligned with it keep theirs.")] = None
    buckets: Annotated[Annotated[tuple[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], ...], Field(min_length=1)] | None, Field(description='sizes (h, w) to be cut to instead of `size`: each picture to the nearest in aspect ratio. None: all to `size`.')] = None


class ScheduleKeys(Section):
    """The schedule a recipe names; `options` are those of its constructor in `schedules`, the registered ones."""

    zero_snr: Annotated[bool, Field(description='rescale a table of betas to zero terminal SNR (Lin et al. 2023).')] = False
    shift: Annotated[Annotated[float, Field(gt=0.0)], Field(description='the resolution shift, applied last; 1 is none.')] = 1.0


class DiffusionKeys(Section):
    """The `diffusion` section of a recipe as a `Diffusion`."""

    prediction: Literal['eps', 'x0', 'v', 'flow'] = 'eps'
    elbo: Annotated[float, Field(ge=0.0)] = 0.0
    learn_logvar: bool = False
    logvar: float = 0.0
    offset_noise: Annotated[float, Field(ge=0.0)] = 0.0
    input_perturbation: Annotated[float, Field(ge=0.0)] = 0.0


class PerceptualOptions(Section):
    """LPIPS (Zhang et al. 2018) in a recipe's `autoencoder.loss.perceptual`."""

    net: Annotated[Literal['alex', 'vgg', 'squeeze', 'efficientnet-lite0'], Field(description='the backbone, `alex`, `vgg` or `squeeze`.')] = 'vgg'
    weights: Annotated[str, Field(description="where the backbone's come from: `imagenet`, a file, or `random`, which needs no download (see `Perceptual`).")] = 'imagenet'
    weight: Annotated[Annotated[float, Field(ge=0.0)], Field(description='relative to the pixel term.')] = 1.0


class AdversarialOptions(Section):
    """The patch discriminator (Isola et al. 2017), a recipe's `autoencoder.loss.adversarial`."""

    start: Annotated[Annotated[int, Field(ge=0)], Field(description='generator steps before which there is no game, for either side.')] = 0
    weight: Annotated[Annotated[float, Field(ge=0.0)], Field(description='multiplies the adaptive weight.')] = 0.5
    factor: Annotated[Annotated[float, Field(ge=0.0)], Field(description="multiplies both sides' terms.")] = 1.0
    layers: Annotated[Annotated[int, Field(ge=1, le=6)], Field(description='of the `PatchDiscriminator`.')] = 3
    channels: Annotated[Annotated[int, Field(ge=1)], Field(description='of the `PatchDiscriminator`.')] = 64
    norm: Annotated[Literal['batch', 'group', 'none'], Field(description='of the `PatchDiscriminator`.')] = 'batch'
    loss: Annotated[Literal['hinge', 'vanilla'], Field(description='`hinge` or `vanilla`.')] = 'hinge'
    r1: Annotated[Annotated[float, Field(ge=0.0)], Field(description='gamma of the gradient penalty on real images (Mescheder et al., arXiv 1801.04406, eq. 9); 0 is none.')] = 0.0
    lecam: Annotated[Annotated[float, Field(ge=0.0)], Field(description='weight of the LeCam regularizer (Tseng et al., arXiv 2104.03310, eq. 4); 0 is none.')] = 0.0
    lecam_decay: Annotated[Annotated[float, Field(ge=0.0, lt=1.0)], Field(description='of the running averages it anchors to.')] = 0.99


class EquivarianceOptions(Section):
    """The decoder of a scaled or turned latent gives the scaled or turned image (Kouzelis et al. 2025, arXiv 2502.09509)."""

    weight: Annotated[Annotated[float, Field(ge=0.0)], Field(description="of the term, relative to the reconstruction's.")] = 1.0
    smallest: Annotated[Annotated[float, Field(gt=0.0, le=1.0)], Field(description='sides are scaled by factors that are uniform from this to 1, each side by its own; 1 leaves sizes alone.')] = 0.25
    turns: Annotated[bool, Field(description='also turn by a random number of quarters.')] = True
    every: Annotated[Annotated[int, Field(ge=1)], Field(description='the term is added in one of so many steps, `weight` times as strong in it: it costs a second pass of the decoder.')] = 1


class AutoencoderLoss(Section):
    """The loss of an autoencoder and the discriminator it plays against."""

    pixel: Annotated[Literal['l1', 'l2'], Field(description='`l1` or `l2`.')] = 'l1'
    reduction: Annotated[Literal['mean', 'sum'], Field(description="`mean` or `sum`; matters beside a gradient clip, an optimizer's epsilon and the ceiling of the adaptive weight.")] = 'mean'
    perceptual: Annotated[PerceptualOptions | None, Field(description='options (`PerceptualOptions`), or None for none.')] = None
    adversarial: Annotated[AdversarialOptions | None, Field(description='options (`AdversarialOptions`), or None for none.')] = None
    equivariance: Annotated[EquivarianceOptions | None, Field(description='options (`EquivarianceOptions`), or None for none.')] = None
    kl: Annotated[Annotated[float, Field(ge=0.0)], Field(description='weight of the KL divergence, in nats an image.')] = 1e-06
    codebook: Annotated[Annotated[float, Field(ge=0.0)], Field(description="weight of the quantizer's terms.")] = 1.0
    learn_logvar: Annotated[bool, Field(description='make the log-variance a parameter of the generator (`generator_parameters`).')] = False
    logvar: Annotated[float, Field(description='its value, or where it starts.')] = 0.0


class RuntimeKeys(Section):
    """A `Runtime` of what a recipe's `runtime` section asks for."""

    device: Annotated[str, Field(description='`auto` takes cuda, mps or cpu, whichever is there first.')] = 'auto'
    precision: Annotated[Literal['auto', 'fp32', 'bf16', 'fp16'], Field(description='`auto` is bf16 on a CUDA device that has it (fp16 on an older one); on a CPU the diffusion stage measures bf16 against fp32 on its own steps, takes it where it is faster, and the run keeps the choice; all else is fp32.')] = 'auto'
    tf32: Annotated[bool, Field(description='matrix products of a CUDA device in TensorFloat-32; without it fp32 is fp32 there too.')] = False
    channels_last: Annotated[bool, Field(description='convolutions see their channels last in memory.')] = False
    compile: Annotated[bool, Field(description='the denoiser is compiled.')] = False
    checkpointing: Annotated[bool, Field(description="the denoiser's activations are computed again in the backward pass: less memory, about a third more time.")] = False
    deterministic: Annotated[bool, Field(description='a CUDA device gives the same bits in every run, for some of its speed; a CPU does so anyway.')] = False
    workers: Annotated[Annotated[int, Field(ge=0)] | Literal['auto'], Field(description='processes that read and prepare data; 0 is none, `auto` one for each core beside the first, at most 2.')] = 0
    worker_timeout: Annotated[Annotated[int, Field(ge=1)], Field(description='seconds without a batch after which a data worker counts as hung.')] = 300
    threads: Annotated[Annotated[int, Field(ge=1)] | Literal['auto'] | None, Field(description="of a CPU: `auto` measures on each stage's own steps how many are fastest, and the run keeps the number; a number is taken as it is, so that two runs have the same bits; null leaves what torch (OMP_NUM_THREADS) takes.")] = 'auto'


class GivenConditioner(Section):
    """What the UNet reads, handed over as it is: no network of its own."""

    tokens: Annotated[int, Field(description='width of cross-attention tokens, and the most of them; a value is (1 to length, tokens).')] = 0
    length: Annotated[int, Field(description='width of cross-attention tokens, and the most of them; a value is (1 to length, tokens).')] = 0
    vector: Annotated[int, Field(description='width of a vector; a value is (vector,).')] = 0
    concat: Annotated[int, Field(description='channels on the latent grid; a value is (concat, h, w), resized to the grid.')] = 0


class Variant(Section):
    """What some released models do differently; the defaults are the paper's."""

    scale_shift: Annotated[bool, Field(description='timestep and vector scale and shift a norm instead of being added.')] = False
    resample_blocks: Annotated[bool, Field(description='residual blocks halve and double the size, instead of a convolution.')] = False
    linear_projection: Annotated[bool, Field(description="the transformers' projections are linear layers instead of 1x1 convolutions (SD 2, SDXL).")] = False
    self_transformer: Annotated[bool, Field(description='without tokens, use transformer blocks whose second attention is self-attention too (what the released code does with no context), instead of plain attention blocks.')] = False
    plain_attention: Annotated[bool, Field(description='beside the transformers that read tokens, the plain attention of a UNet without tokens, before each of them. So a model that was trained without tokens can learn to read them from where it is.')] = False
    groups: Annotated[Annotated[int, Field(ge=1)] | None, Field(description='groups of every group norm, a divisor of every width; by default 32, or fewer where a level is narrower than 128 channels or no multiple of 32 (see ``ldmkit.denoiser.layers.usual_groups``). The released code has 32 at every width.')] = None
    classes: Annotated[Annotated[int, Field(ge=1)] | None, Field(description='rows of an embedding table inside the UNet, added to the time embedding (`labels` of ``forward``).')] = None
    vector: Annotated[Annotated[int, Field(ge=1)] | None, Field(description='width of the vector port, which two layers inside the UNet then map to the time embedding (SDXL); by default a vector is as wide as that and is added to it.')] = None
    only_cross_attention: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(description='down-sampling factors of the levels whose transformers attend to the tokens twice, and not to the pixels themselves (the x4 upscaler of SD 2). The middle is no level.')] = ()
    time: Annotated[dict[str, str | float] | None, Field(description='what of the timestep is embedded (see ``ldmkit.denoiser.embedding.embedded_time``); by default the timestep itself.')] = None
    checkpoint: Annotated[bool, Field(description='recompute activations in the backward pass: less memory, about a third more time.')] = False


class UnetDenoiser(Section):
    """A noisy latent and its timestep to the prediction; conditions come in by tokens, vector and concat."""

    channels: Annotated[Annotated[int, Field(ge=1)], Field(description='level i is ``channels * multipliers[i]`` wide, a whole number, and ``2 ** i`` times smaller than the input, halves rounded up.')] = 32
    multipliers: Annotated[Annotated[tuple[Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0.0)], ...], Field(min_length=1)], Field(description='level i is ``channels * multipliers[i]`` wide, a whole number, and ``2 ** i`` times smaller than the input, halves rounded up.')] = (1, 2, 4)
    blocks: Annotated[Annotated[int, Field(ge=1)] | Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)], Field(description='residual blocks a level on the way down (one more on the way up).')] = 2
    attention: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(description='the **down-sampling factors** of the levels with attention, not pixels. The middle always has it.')] = (2, 4)
    heads: Annotated[Annotated[int, Field(ge=1)] | Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] | None, Field(description='how many attention heads, or how wide each is (default: 32, or what divides the width). ``heads=1`` is what the released class, layout and text-256 models were trained with.')] = None
    head_width: Annotated[Annotated[int, Field(ge=1)] | Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] | None, Field(description='how many attention heads, or how wide each is (default: 32, or what divides the width). ``heads=1`` is what the released class, layout and text-256 models were trained with.')] = None
    transformer_depth: Annotated[Annotated[int, Field(ge=1)] | Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)], Field(description='transformer blocks in each attention.')] = 1
    dropout: Annotated[Annotated[float, Field(ge=0.0, le=1.0)], Field(description='probability, in residual blocks and transformers.')] = 0.0
    shortcut: Annotated[bool | Annotated[float, Field(gt=0.0)], Field(description='a linear way from the input, latent and concat, to the output (``ldmkit.denoiser.LinearShortcut``). No released model has it. A number is the factor on it, by which it is learned faster; true is 1.')] = False
    variant: Annotated[Variant | None, Field(description='what some released models do differently.')] = Field(default_factory=Variant)


class IdentityAutoencoder(Section):
    """The image is the latent; there is nothing to train."""

    image_channels: Annotated[Annotated[int, Field(ge=1, le=64)] | None, Field(description='1 to 16.')] = None


class KlAutoencoder(Section):
    """KL-regularised (arXiv 2112.10752, section 3.1): `encode` gives a sample of the posterior with a generator, else its mode."""

    image_channels: Annotated[Annotated[int, Field(ge=1, le=64)] | None, Field(description='1 to 64.')] = None
    downsample: Annotated[Literal[1, 2, 4, 8, 16, 32], Field(description='how many times smaller the latent grid is; a power of two from 1 to 32.')] = 4
    channels: Annotated[Annotated[int, Field(ge=1)], Field(description='width at full resolution; level i has `channels * multipliers[i]`, a whole number.')] = 128
    multipliers: Annotated[Annotated[tuple[Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0.0)], ...], Field(min_length=1)] | None, Field(description='one a level (log2(downsample) + 1 of them); None takes those of the paper.')] = None
    blocks: Annotated[Annotated[int, Field(ge=1)] | Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)], Field(description='residual blocks a level in the encoder, one number or one a level; the decoder has one more.')] = 2
    latent_channels: Annotated[Annotated[int, Field(ge=1)], Field(description='width of the latent.')] = 3
    attention: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(description='side lengths in pixels, counted at `resolution`, of the levels that attend. Where attention sits is decided here and not by the image at hand.')] = ()
    resolution: Annotated[Annotated[int, Field(ge=1)], Field(description='side length in pixels that `attention` refers to.')] = 256
    attention_type: Annotated[Literal['none', 'vanilla', 'linear'], Field(description='which attention `attention` and `middle_attention` put in; `none` goes with neither.')] = 'vanilla'
    middle_attention: Annotated[bool | Literal['encoder', 'decoder'], Field(description='attention between the two middle blocks, of both networks or of one of them. The released models have it, except vq-f4-noattn.')] = False
    dropout: Annotated[Annotated[float, Field(ge=0.0, lt=1.0)], Field(description='in the residual blocks, 0 to 1.')] = 0.0
    pad: Annotated[bool, Field(description='accept image sizes that are no multiple of `downsample`, by padding on the right and at the bottom.')] = False
    groups: Annotated[Annotated[int, Field(ge=1)] | None, Field(description="of every group norm, a divisor of every width; default 32, or fewer where a level is narrower than 128 channels. Released and diffusers' models of any width need 32.")] = None
    shortcut: Annotated[bool, Field(description='a linear map beside encoder and decoder (`Encoder`), for short training on few pictures. No released model has it.')] = False
    checkpoint: Annotated[bool, Field(description='recompute the activations of each level in the backward pass: less memory, about a third more time.')] = False


class VqAutoencoder(Section):
    """Vector-quantised (arXiv 2112.10752, section 3.1): `encode` gives the latent before quantisation, `decode` quantises."""

    codebook: Annotated[Annotated[int, Field(ge=1)], Field(description='number of codes.')] = 8192
    commitment: Annotated[Annotated[float, Field(ge=0.0)], Field(description='weight of the commitment term.')] = 0.25
    swapped: Annotated[bool, Field(description="the released models' weights, with `commitment` on the codebook term.")] = False
    ema: Annotated[Annotated[float, Field(ge=0.0, lt=1.0)] | None, Field(description='decay of a codebook kept by running averages; None learns it by gradient.')] = None
    revive: Annotated[Annotated[int, Field(ge=1)] | None, Field(description='training steps after which an unused code moves onto a latent; None is never.')] = None
    image_channels: Annotated[Annotated[int, Field(ge=1, le=64)] | None, Field(description='1 to 64.')] = None
    downsample: Annotated[Literal[1, 2, 4, 8, 16, 32], Field(description='how many times smaller the latent grid is; a power of two from 1 to 32.')] = 4
    channels: Annotated[Annotated[int, Field(ge=1)], Field(description='width at full resolution; level i has `channels * multipliers[i]`, a whole number.')] = 128
    multipliers: Annotated[Annotated[tuple[Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0.0)], ...], Field(min_length=1)] | None, Field(description='one a level (log2(downsample) + 1 of them); None takes those of the paper.')] = None
    blocks: Annotated[Annotated[int, Field(ge=1)] | Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)], Field(description='residual blocks a level in the encoder, one number or one a level; the decoder has one more.')] = 2
    latent_channels: Annotated[Annotated[int, Field(ge=1)], Field(description='width of the latent.')] = 3
    attention: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(description='side lengths in pixels, counted at `resolution`, of the levels that attend. Where attention sits is decided here and not by the image at hand.')] = ()
    resolution: Annotated[Annotated[int, Field(ge=1)], Field(description='side length in pixels that `attention` refers to.')] = 256
    attention_type: Annotated[Literal['none', 'vanilla', 'linear'], Field(description='which attention `attention` and `middle_attention` put in; `none` goes with neither.')] = 'vanilla'
    middle_attention: Annotated[bool | Literal['encoder', 'decoder'], Field(description='attention between the two middle blocks, of both networks or of one of them. The released models have it, except vq-f4-noattn.')] = False
    dropout: Annotated[Annotated[float, Field(ge=0.0, lt=1.0)], Field(description='in the residual blocks, 0 to 1.')] = 0.0
    pad: Annotated[bool, Field(description='accept image sizes that are no multiple of `downsample`, by padding on the right and at the bottom.')] = False
    groups: Annotated[Annotated[int, Field(ge=1)] | None, Field(description="of every group norm, a divisor of every width; default 32, or fewer where a level is narrower than 128 channels. Released and diffusers' models of any width need 32.")] = None
    shortcut: Annotated[bool, Field(description='a linear map beside encoder and decoder (`Encoder`), for short training on few pictures. No released model has it.')] = False
    checkpoint: Annotated[bool, Field(description='recompute the activations of each level in the backward pass: less memory, about a third more time.')] = False


class AlignmentLoss(Section):
    """A layer's features predict a frozen encoder's features of the clean image (REPA, arXiv 2410.06940)."""

    layer: Annotated[str, Field(description="of the denoiser; `ldmkit.Denoiser.layer` says which there are. The paper's is about a third of the way in, U-REPA's the middle.")]
    side: Annotated[Annotated[int, Field(ge=1)], Field(description='images are resized to so many pixels a side before the encoder sees them.')] = 128
    stride: Annotated[Literal[2, 4, 8, 16, 32], Field(description="of the encoder's map, in these pixels: its grid has side / stride cells a side.")] = 16
    hidden: Annotated[Annotated[int, Field(ge=1)], Field(description='channels of the projection.')] = 256


class ContrastLoss(Section):
    """Conditions must make a difference: minus the distance to the prediction under another row's condition."""

    slots: Annotated[dict[str, Annotated[float, Field(gt=0.0)]], Field(description="slot -> lambda, how much it counts beside the stage's loss; together below 1. The paper's is 0.05.")]


class PerceptualLoss(Section):
    """Distance between deep features of the decoded prediction of x_0 and of the decoded clean latents."""

    net: Annotated[Literal['alex', 'vgg', 'squeeze', 'efficientnet-lite0'], Field(description='backbone of the features: `efficientnet-lite0` comes installed with the extra `samples`; `vgg`, `alex` and `squeeze` give LPIPS.')] = 'efficientnet-lite0'
    weights: Annotated[str, Field(description="`imagenet`, `random`, or the path of a file with the backbone's weights.")] = 'imagenet'


class SelfAlignmentLoss(Section):
    """A layer's features predict those of a later layer of the averaged model, which sees the image with less noise."""

    layer: Annotated[str, Field(description='of the denoiser, whose features are trained.')]
    toward: Annotated[str | None, Field(description='the layer of the averaged denoiser that is predicted; default: `layer`.')] = None
    earlier: Annotated[Annotated[float, Field(gt=0.0, le=1.0)], Field(description='its timestep, as a share of the one that is trained on; 1 is the same.')] = 0.5
    hidden: Annotated[Annotated[int, Field(ge=1)], Field(description='channels of the projection.')] = 256


class AdamOptimizer(Section):
    """Adam (Kingma & Ba 2014), without weight decay; fused, where torch has it."""




class AdamwOptimizer(Section):
    """AdamW (Loshchilov & Hutter 2017); fused, where torch has it."""




class Adamw8bitOptimizer(Section):
    """AdamW whose moments take 8 bits a value (Dettmers et al. 2021), of bitsandbytes."""




class MuonOptimizer(Section):
    """Muon (Jordan 2024) on the weights of hidden linear and convolution layers, AdamW on all else."""

    momentum: Annotated[Annotated[float, Field(ge=0.0, lt=1.0)], Field(description='of the running mean of gradients.')] = 0.95
    nesterov: Annotated[bool, Field(description='look one step ahead.')] = True
    iterations: Annotated[Annotated[int, Field(ge=1, le=20)], Field(description="of the Newton-Schulz iteration, which makes the momentum's singular values about 1.")] = 5
    precision: Annotated[Literal['auto', 'bf16', 'fp32'], Field(description="of the iteration: `bf16` is the original's; `auto` is `fp32` on a CPU, where it is faster, else `bf16`.")] = 'auto'
    besides: Annotated[tuple[str, ...], Field(description="patterns of parameters' names that AdamW moves too: the first and last layers.")] = ('*input_blocks.0.*', '*.out.*', '*shortcut*', '*time_embed*', '*label_emb*', '*.stem.*', '*.head.*')


class CosineSchedule(Section):
    """alphas_cumprod = cos^2 of equal angles, betas at most 0.999 (Nichol and Dhariwal 2021, eq. 17)."""

    offset: Annotated[float, Field(ge=0.0)] = 0.008
    timesteps: Annotated[int, Field(ge=1)] = 1000


class EdmSchedule(Section):
    """Karras et al. 2022, eq. 5: sigma^(1/rho) in equal steps from `sigma_min` (t = 0) to `sigma_max` (t = T - 1)."""

    sigma_data: Annotated[float, Field(gt=0.0)] = 1.0
    sigma_min: Annotated[Annotated[float, Field(gt=0.0)] | None, Field(description="None is 0.004 and 160 times sigma_data, which is the paper's 0.002 and 80 for its sigma_data of 0.5.")] = None
    sigma_max: Annotated[Annotated[float, Field(gt=0.0)] | None, Field(description="None is 0.004 and 160 times sigma_data, which is the paper's 0.002 and 80 for its sigma_data of 0.5.")] = None
    rho: Annotated[float, Field(gt=0.0)] = 7.0
    timesteps: Annotated[int, Field(ge=1)] = 1000


class FlowSchedule(Section):
    """The rectified flow: sigma = (t + 1) / T, alpha = 1 - sigma (Liu et al. 2022; Lipman et al. 2022; Esser et al. 2024)."""

    timesteps: Annotated[int, Field(ge=1)] = 1000


class GivenSchedule(Section):
    """The betas themselves, T of them."""

    betas: Annotated[tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...], Field(min_length=2)]


class LinearSchedule(Section):
    """The released latent diffusion models' `linear`: equal steps in sqrt(beta) from `start` to `end`, both betas in (0, 1)."""

    start: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.0015
    end: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.0195
    timesteps: Annotated[int, Field(ge=1)] = 1000


class PlainLinearSchedule(Section):
    """Equal steps in beta (Ho et al. 2020); CompVis' `sqrt_linear`, diffusers' `linear`."""

    start: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.0001
    end: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.02
    timesteps: Annotated[int, Field(ge=1)] = 1000


class SqrtSchedule(Section):
    """beta = sqrt of equal steps from `start` to `end` (CompVis' `sqrt`)."""

    start: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.0001
    end: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.02
    timesteps: Annotated[int, Field(ge=1)] = 1000


class ApgGuidance(Section):
    """Adaptive projected guidance (`apg`)."""

    parallel: Annotated[float, Field(description='the share kept of what is parallel to the prediction.')] = 0.0
    threshold: Annotated[Annotated[float, Field(gt=0.0)] | None, Field(description='the greatest norm of the guiding difference.')] = None
    momentum: Annotated[float, Field(description='of its running sum, negative to push away from the past.')] = 0.0
    interval: tuple[Annotated[float, Field(ge=0.0, le=1.0)], Annotated[float, Field(ge=0.0, le=1.0)]] | None = None


class AutoguidanceGuidance(Section):
    """Away from a worse model under the same conditions (`autoguided`); nothing need have been dropped in training."""

    model: Annotated[str, Field(description='the worse one, of the same latent space and slots: a `LatentDiffusion`, or what `ldmkit.load` reads.')]
    weights: Annotated[Literal['ema', 'raw'], Field(description='which of its weights, `ema` or `raw`.')] = 'ema'
    interval: tuple[Annotated[float, Field(ge=0.0, le=1.0)], Annotated[float, Field(ge=0.0, le=1.0)]] | None = None


class PerpNegGuidance(Section):
    """Perpendicular negatives (`perp_neg`): away from `sample.negative`, but not from what it shares with the condition."""

    strength: Annotated[Annotated[float, Field(ge=0.0)] | Annotated[tuple[Annotated[float, Field(ge=0.0)], ...], Field(min_length=1)], Field(description='of the negatives, one number or one each.')] = 1.0
    interval: tuple[Annotated[float, Field(ge=0.0, le=1.0)], Annotated[float, Field(ge=0.0, le=1.0)]] | None = None


class PlainGuidance(Section):
    """Classifier-free guidance: the weighted sum of the branches (`guided`)."""

    rescale: Annotated[Annotated[float, Field(ge=0.0, le=1.0)], Field(description="how far the sample's contrast is brought back to the conditional prediction's.")] = 0.0
    interval: tuple[Annotated[float, Field(ge=0.0, le=1.0)], Annotated[float, Field(ge=0.0, le=1.0)]] | None = None


class PlusPlusGuidance(Section):
    """CFG++ (`plus_plus`): a guidance from 0 to 1, and a sampler whose step is DDIM's."""

    interval: tuple[Annotated[float, Field(ge=0.0, le=1.0)], Annotated[float, Field(ge=0.0, le=1.0)]] | None = None


class DigitsSource(Section):
    """1,797 digits of 8 x 8 pixels, 17 greys, one channel; every fifth of each class is held out (355 in all)."""




class FolderSource(Section):
    """Pictures below `path`, in any folder, of any mode; those that cannot be used are listed in `problems` and left out."""

    path: Annotated[str, Field(description='the folder. ``train/`` and ``validation/`` in it are what they say; else `validation` decides.')]
    split: Annotated[dict[str, str | list[str]] | None, Field(description='which folders in it are trained on and which held out: {train: [a, b], validation: c}.')] = None
    maps: Annotated[str | None, Field(description='a parallel folder of label maps: the map of ``a/b.jpg`` is ``a/b.png`` there. Field `map`. Or the name of a field of images that are label maps (`mask` for a column `mask_file_name`).')] = None
    map_classes: Annotated[int | None, Field(description='how many classes the maps have; default: counted. 255 means unlabelled.')] = None
    map_colors: Annotated[tuple[tuple[int, int, int], ...] | None, Field(description='for maps painted in colours, the [r, g, b] of each class.')] = None
    map_values: Annotated[tuple[int, ...] | None, Field(description='for maps painted in other numbers than 0, 1, 2 ..., the number of each class.')] = None
    map_names: Annotated[tuple[str, ...] | None, Field(description='the names of the classes; default: those of a file ``classes.json`` beside the maps.')] = None
    aligned: Annotated[tuple[str, ...] | None, Field(description='fields of images that are cropped, mirrored and resized with `image`; default: those of the same size as theirs.')] = None
    classes: Annotated[tuple[str, ...] | None, Field(description='the class names, in the order of their ids; default: all there are, in natural order (2 before 11).')] = None
    validation: Annotated[float, Field(description='the share held out, by a hash of the file name.')] = 0.1
    background: Annotated[tuple[int, int, int], Field(description='[r, g, b] that shows through transparent pixels.')] = (255, 255, 255)
    value_range: Annotated[tuple[float, float] | None, Field(description='[black, white] of pictures in floats or 32-bit integers, which are refused without it.')] = None
    max_pixels: Annotated[int, Field(description='larger pictures are left out before they are decoded.')] = 64000000
    smallest: Annotated[int, Field(description='pictures with a side shorter than this are left out.')] = 32
    encoding: Annotated[str, Field(description='of the metadata files.')] = 'utf-8'
    check: Annotated[bool, Field(description='decode every picture once at the start. Without it, a file cut short is found when its turn comes.')] = True
    checksums: Annotated[str | None, Field(description='a list as `sha256sum` writes it in `path`; a picture that is not what it says is left out when its turn comes.')] = None


class HuggingfaceSource(Section):
    """Rows of a `datasets` dataset with a column of pictures. Needs ``pip install "ldmkit[datasets]"``."""

    path: Annotated[str, Field(description='a folder that `save_to_disk` wrote, parquet, JSON, CSV or Arrow files (wildcards are fine), a folder of these or of pictures, or a name on the hub, ``owner/name`` or ``owner/name@revision``.')]
    config: Annotated[str | None, Field(description='the configuration, where a dataset has several.')] = None
    split: Annotated[str, Field(description='what is trained on.')] = 'train'
    validation: Annotated[float | str, Field(description='what is held out: another split, or a share of this one.')] = 0.1
    columns: Annotated[dict[str, str] | None, Field(description='field -> column; without it, the first column of pictures is `image`, and each other one a field of its name.')] = None
    classes: Annotated[dict[str, int | tuple[str, ...]] | None, Field(description='field -> how many classes it has, or their names; for maps, and labels that say nothing of their own.')] = None
    streaming: Annotated[bool, Field(description='read one row after the other, nothing kept on the disk. Latents cannot be cached then.')] = False
    block: Annotated[int, Field(description='rows of a stream that are mixed.')] = 1000
    shuffle_buffer: Annotated[int, Field(description="mix a stream by the library's own buffer of so many rows instead. An interrupted run then goes on in another order: the buffer is lost.")] = 0
    seed: Annotated[int, Field(description='of the order of a stream.')] = 0
    smallest: Annotated[int, Field(description='pictures with a side shorter than this are passed over.')] = 32


class PhotosSource(Section):
    """Nine photographs in colour, and six grey ones on request."""

    held_out: Annotated[tuple[str, ...], Field(description='the photographs that are kept for validation, whole.')] = ('chelsea', 'coffee')
    grey: Annotated[bool, Field(description='also those without colours, as images of three equal channels.')] = False


class ScenesSource(Section):
    """Scenes, deterministic in (seed, index); one sample serves every modality."""

    count: Annotated[int | None, Field(description='scenes to train on; None: endless.')] = None
    held_out: Annotated[int, Field(description='scenes held out, from another range of indices.')] = 1024
    shapes: Annotated[tuple[int, int], Field(description='the least and the most shapes in a scene, 1 to 4. The colours in one scene are all different.')] = (2, 3)
    kinds: Annotated[tuple[str, ...], Field(description='which there are; their order gives the class ids.')] = ('circle', 'square', 'triangle')
    colors: Annotated[tuple[str, ...], Field(description='which there are; their order gives the class ids.')] = ('red', 'yellow', 'green', 'blue', 'purple')
    grounds: Annotated[tuple[str, ...], Field(description='which there are; their order gives the class ids.')] = ('sand', 'slate', 'wood', 'snow')
    relations: Annotated[bool, Field(description='captions of two shapes say how they lie to each other; other captions name them from left to right.')] = True
    seed: Annotated[int, Field(description='another seed, other scenes.')] = 0


class WebdatasetSource(Section):
    """Samples in tar shards, as WebDataset writes them: ``0001.jpg`` and ``0001.txt``, one after the other, are one sample."""

    path: Annotated[str | tuple[str, ...], Field(description='one shard, a folder of them, a pattern with braces or wildcards (``train-{000..127}.tar``), or a list of these.')]
    validation: Annotated[float | str, Field(description='the share held out, by a hash of the key; or the path of other shards.')] = 0.1
    columns: Annotated[dict[str, str] | None, Field(description='field -> extension (``{map: seg.png}``), or a key of the JSON file (``{caption: json.title}``).')] = None
    classes: Annotated[dict[str, int | tuple[str, ...]] | None, Field(description='field -> how many classes it has, or their names: for maps, and for labels that need not be counted then.')] = None
    together: Annotated[int, Field(description='shards whose samples are mixed. 1 reads one after the other; as many as there are mixes everything.')] = 1
    smallest: Annotated[int, Field(description='pictures with a side shorter than this are passed over.')] = 32


class Trailing(Section):
    """T down in strides of T / n, rounded, less 1 (Lin et al. 2023, table 2): starts where noise is all."""

    type: Literal['trailing'] = 'trailing'
    whole_strides: bool = False


class Leading(Section):
    """Strides of T // n up from `offset` (Song et al. 2020; diffusers' `steps_offset`)."""

    type: Literal['leading'] = 'leading'
    offset: Annotated[int, Field(ge=0)] = 0
    drop_last: Annotated[bool, Field(description='of n + 1 points, in strides of T // (n + 1), the lowest is not evaluated (the DPM-Solver family in diffusers).')] = False
    whole_strides: Annotated[bool, Field(description='every step ends T // n below where it begins, wherever the next begins (DDIM and PNDM in diffusers): `ddim` and `plms` step so; every other sampler steps to where the next begins.')] = False


class Linspace(Section):
    """n even points from T - 1 to 0; of a discrete schedule whole ones, unless `fractional` (Euler, Heun, LMS in diffusers)."""

    type: Literal['linspace'] = 'linspace'
    fractional: bool = False
    drop_last: Annotated[bool, Field(description='see `Leading`.')] = False
    whole_strides: Annotated[bool, Field(description='see `Leading`.')] = False


class Quadratic(Section):
    """Trailing in sqrt(t): dense near the data, where the solvers of second order and above need it."""

    type: Literal['quadratic'] = 'quadratic'


class Karras(Section):
    """Even in (sigma / alpha)^(1 / rho) (Karras et al. 2022, eq. 5). See `_InRho` for the range."""

    sigma_min: Annotated[float, Field(gt=0)] | None = None
    sigma_max: Annotated[float, Field(gt=0)] | None = None
    within: Leading | Linspace | Trailing | None = None
    type: Literal['karras'] = 'karras'
    rho: Annotated[float, Field(gt=0)] = 7.0


class Exponential(Section):
    """Even in log(sigma / alpha)."""

    sigma_min: Annotated[float, Field(gt=0)] | None = None
    sigma_max: Annotated[float, Field(gt=0)] | None = None
    within: Leading | Linspace | Trailing | None = None
    type: Literal['exponential'] = 'exponential'


class Given(Section):
    """The falling `timesteps` themselves, or the noise levels `sigmas`: sigma / alpha, on a rectified flow sigma."""

    type: Literal['given'] = 'given'
    timesteps: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None


class CompVis(Section):
    """The released code's DDIM steps, range(0, T, T // n) + 1, ending on timestep 0's noise level."""

    type: Literal['compvis'] = 'compvis'


class CompVisQuadratic(Section):
    """The released code's `quad`: n points of t up to 0.8 T, even in sqrt(t), cut to whole numbers, + 1."""

    type: Literal['compvis-quadratic'] = 'compvis-quadratic'


class DdimSampler(Section):
    """Song et al. 2020, eq. 12: x_s = alpha_s x_0 + sqrt(sigma_s^2 - d^2) eps + d z, first order."""

    eta: Annotated[Annotated[float, Field(ge=0.0, le=1.0)], Field(description="share of the posterior's standard deviation that is drawn anew each step: 0 is deterministic, 1 is DDPM.")] = 0.0
    temperature: Annotated[Annotated[float, Field(ge=0.0)], Field(description='factor on the noise drawn.')] = 1.0
    clipped_eps: Annotated[bool, Field(description="where the denoiser's x_0 is clipped, whether eps is that of the clipped x_0, or stays the network's own (False: diffusers' `DDIMScheduler` where it clips).")] = True
    spacing: Annotated[Literal['trailing', 'leading', 'linspace', 'quadratic', 'karras', 'exponential', 'compvis', 'compvis-quadratic'] | Trailing | Leading | Linspace | Quadratic | Karras | Exponential | Given | CompVis | CompVisQuadratic, Field(description='see `make_grid`. `spacing="compvis"` is the released code\'s sampler, step for step.')] = 'trailing'
    clean: Annotated[bool, Field(description='see `make_grid`. `spacing="compvis"` is the released code\'s sampler, step for step.')] = True


class DdpmSampler(Section):
    """Ho et al. 2020, algorithm 2, on any sub-sequence of timesteps; with steps = T it is the original."""

    variance: Annotated[Annotated[float, Field(ge=0.0, le=1.0)], Field(description="0 takes the posterior's variance, 1 the forward process's beta, between mixes both (`v_posterior`).")] = 0.0
    temperature: Annotated[Annotated[float, Field(ge=0.0)], Field(description='factor on the noise drawn.')] = 1.0
    spacing: Annotated[Literal['trailing', 'leading', 'linspace', 'quadratic', 'karras', 'exponential', 'compvis', 'compvis-quadratic'] | Trailing | Leading | Linspace | Quadratic | Karras | Exponential | Given | CompVis | CompVisQuadratic, Field(description='see `make_grid`. No noise is added in a step that ends on the data.')] = 'trailing'
    clean: Annotated[bool, Field(description='see `make_grid`. No noise is added in a step that ends on the data.')] = True


class DeisSampler(Section):
    """x / alpha gains the integral of eps over rho = sigma / alpha, eps being a polynomial in log rho; one evaluation a step."""

    order: Annotated[Annotated[int, Field(ge=1, le=3)], Field(description='how many values of eps are remembered, 1 (DDIM) to 3.')] = 3
    lower_order_final: Annotated[bool, Field(description='the last steps are of lower order where there are fewer than 15.')] = True
    spacing: Annotated[Literal['trailing', 'leading', 'linspace', 'quadratic', 'karras', 'exponential', 'compvis', 'compvis-quadratic'] | Trailing | Leading | Linspace | Quadratic | Karras | Exponential | Given | CompVis | CompVisQuadratic, Field(description='see `make_grid`.')] = 'quadratic'
    clean: Annotated[bool, Field(description='see `make_grid`.')] = True


class DpmSolverSampler(Section):
    """Exponential integrator in lambda = log(alpha / sigma) of the noise prediction; one evaluation a step."""

    order: Annotated[Annotated[int, Field(ge=1, le=3)], Field(description='1 (DDIM), 2 or 3.')] = 2
    lower_order_final: Annotated[bool, Field(description='the last steps are of lower order where there are fewer than 15.')] = True
    spacing: Annotated[Literal['trailing', 'leading', 'linspace', 'quadratic', 'karras', 'exponential', 'compvis', 'compvis-quadratic'] | Trailing | Leading | Linspace | Quadratic | Karras | Exponential | Given | CompVis | CompVisQuadratic, Field(description='see `make_grid`.')] = 'quadratic'
    clean: Annotated[bool, Field(description='see `make_grid`.')] = True


class Dpmpp2mSampler(Section):
    """Lu et al. 2022b, algorithm 2: second order in lambda = log(alpha / sigma) on x_0; one evaluation a step."""

    lower_order_final: Annotated[bool, Field(description='the last steps are of lower order where there are fewer than 15.')] = True
    spacing: Annotated[Literal['trailing', 'leading', 'linspace', 'quadratic', 'karras', 'exponential', 'compvis', 'compvis-quadratic'] | Trailing | Leading | Linspace | Quadratic | Karras | Exponential | Given | CompVis | CompVisQuadratic, Field(description='see `make_grid`.')] = 'quadratic'
    clean: Annotated[bool, Field(description='see `make_grid`.')] = True


class Dpmpp2sSampler(Section):
    """Lu et al. 2022b, algorithm 1: each step goes by way of a point between, where x_0 is evaluated again."""

    paired: Annotated[bool, Field(description='see above.')] = False
    eta: Annotated[Annotated[float, Field(ge=0.0, le=1.0)], Field(description="share of the ancestral step's noise; not with `paired`.")] = 0.0
    lower_order_final: Annotated[bool, Field(description='the last two of an even number of paired steps are of first order; always so if they end on the data.')] = True
    spacing: Annotated[Literal['trailing', 'leading', 'linspace', 'quadratic', 'karras', 'exponential', 'compvis', 'compvis-quadratic'] | Trailing | Leading | Linspace | Quadratic | Karras | Exponential | Given | CompVis | CompVisQuadratic, Field(description='see `make_grid`.')] = 'quadratic'
    clean: Annotated[bool, Field(description='see `make_grid`.')] = True


class DpmppSdeSampler(Section):
    """SDE-DPM-Solver++(2M), midpoint form: `dpmpp_2m` with fresh noise in every step; one evaluation a step."""

    eta: Annotated[Annotated[float, Field(ge=0.0)], Field(description='strength of the noise; 0 is `dpmpp_2m`.')] = 1.0
    lower_order_final: Annotated[bool, Field(description='the last steps are of lower order where there are fewer than 15.')] = True
    spacing: Annotated[Literal['trailing', 'leading', 'linspace', 'quadratic', 'karras', 'exponential', 'compvis', 'compvis-quadratic'] | Trailing | Leading | Linspace | Quadratic | Karras | Exponential | Given | CompVis | CompVisQuadratic, Field(description='see `make_grid`.')] = 'quadratic'
    clean: Annotated[bool, Field(description='see `make_grid`.')] = True


class EulerSampler(Section):
    """First order in rho = sigma / alpha: without churn the same step as `ddim`'s."""

    s_churn: Annotated[Annotated[float, Field(ge=0.0)], Field(description='how much noise each step adds first, for which rho (None: without an upper bound), and a factor on it: see `Churn`.')] = 0.0
    s_tmin: Annotated[Annotated[float, Field(ge=0.0)], Field(description='how much noise each step adds first, for which rho (None: without an upper bound), and a factor on it: see `Churn`.')] = 0.0
    s_tmax: Annotated[Annotated[float, Field(ge=0.0)] | None, Field(description='how much noise each step adds first, for which rho (None: without an upper bound), and a factor on it: see `Churn`.')] = None
    s_noise: Annotated[Annotated[float, Field(ge=0.0)], Field(description='how much noise each step adds first, for which rho (None: without an upper bound), and a factor on it: see `Churn`.')] = 1.0
    spacing: Annotated[Literal['trailing', 'leading', 'linspace', 'quadratic', 'karras', 'exponential', 'compvis', 'compvis-quadratic'] | Trailing | Leading | Linspace | Quadratic | Karras | Exponential | Given | CompVis | CompVisQuadratic, Field(description='see `make_grid`.')] = 'trailing'
    clean: Annotated[bool, Field(description='see `make_grid`.')] = True


class EulerAncestralSampler(Section):
    """An Euler step in rho = sigma / alpha to below the next level, then noise up to it."""

    eta: Annotated[Annotated[float, Field(ge=0.0, le=1.0)], Field(description='share of the noise; 0 is `euler`.')] = 1.0
    s_noise: Annotated[Annotated[float, Field(ge=0.0)], Field(description='factor on the noise drawn.')] = 1.0
    spacing: Annotated[Literal['trailing', 'leading', 'linspace', 'quadratic', 'karras', 'exponential', 'compvis', 'compvis-quadratic'] | Trailing | Leading | Linspace | Quadratic | Karras | Exponential | Given | CompVis | CompVisQuadratic, Field(description='see `make_grid`.')] = 'trailing'
    clean: Annotated[bool, Field(description='see `make_grid`.')] = True


class HeunSampler(Section):
    """Second order: a step along the mean of the slopes at both its ends; n steps cost 2 n - 1 evaluations (2 n if not `clean`)."""

    s_churn: Annotated[Annotated[float, Field(ge=0.0)], Field(description='how much noise each step adds first, for which rho (None: without an upper bound), and a factor on it: see `Churn`.')] = 0.0
    s_tmin: Annotated[Annotated[float, Field(ge=0.0)], Field(description='how much noise each step adds first, for which rho (None: without an upper bound), and a factor on it: see `Churn`.')] = 0.0
    s_tmax: Annotated[Annotated[float, Field(ge=0.0)] | None, Field(description='how much noise each step adds first, for which rho (None: without an upper bound), and a factor on it: see `Churn`.')] = None
    s_noise: Annotated[Annotated[float, Field(ge=0.0)], Field(description='how much noise each step adds first, for which rho (None: without an upper bound), and a factor on it: see `Churn`.')] = 1.0
    spacing: Annotated[Literal['trailing', 'leading', 'linspace', 'quadratic', 'karras', 'exponential', 'compvis', 'compvis-quadratic'] | Trailing | Leading | Linspace | Quadratic | Karras | Exponential | Given | CompVis | CompVisQuadratic, Field(description='see `make_grid`.')] = 'quadratic'
    clean: Annotated[bool, Field(description='see `make_grid`.')] = True


class LcmSampler(Section):
    """Luo et al. 2023, algorithm 3: jump to x_0, noise it to the next level, again."""

    original_steps: Annotated[int, Field(description='of the sampler that was distilled; the timesteps are among its own.')] = 50
    timestep_scaling: Annotated[float, Field(description="factor on t in c_skip and c_out; 10 in the paper's code.")] = 10.0


class LmsSampler(Section):
    """Adams-Bashforth for uneven steps in rho = sigma / alpha (on a rectified flow, in sigma); one evaluation a step."""

    order: Annotated[Annotated[int, Field(ge=1, le=4)], Field(description='how many slopes are remembered, 1 to 4; the first steps have fewer.')] = 4
    spacing: Annotated[Literal['trailing', 'leading', 'linspace', 'quadratic', 'karras', 'exponential', 'compvis', 'compvis-quadratic'] | Trailing | Leading | Linspace | Quadratic | Karras | Exponential | Given | CompVis | CompVisQuadratic, Field(description='see `make_grid`.')] = 'quadratic'
    clean: Annotated[bool, Field(description='see `make_grid`.')] = True


class PlmsSampler(Section):
    """DDIM steps along eps extrapolated from the last four; n steps cost n + 1 evaluations."""

    runge_kutta: Annotated[bool, Field(description="the first three steps are pseudo Runge-Kutta, of four evaluations each (the paper's own start, eq. 13; diffusers' `skip_prk_steps=False`).")] = False
    extrapolate: Annotated[Literal['eps', 'v'], Field(description='what is extrapolated: eps, or v = alpha eps - sigma x_0, as diffusers does for `v_prediction`.')] = 'eps'
    spacing: Annotated[Literal['trailing', 'leading', 'linspace', 'quadratic', 'karras', 'exponential', 'compvis', 'compvis-quadratic'] | Trailing | Leading | Linspace | Quadratic | Karras | Exponential | Given | CompVis | CompVisQuadratic, Field(description='see `make_grid`. `spacing="compvis"` is the released code\'s sampler, step for step.')] = 'quadratic'
    clean: Annotated[bool, Field(description='see `make_grid`. `spacing="compvis"` is the released code\'s sampler, step for step.')] = True


class TcdSampler(Section):
    """Zheng et al. 2024, algorithm 4: each step goes below the next timestep, to (1 - eta) of it, and noise brings it up again."""

    eta: Annotated[Annotated[float, Field(ge=0.0, le=1.0)], Field(description="the paper's gamma, in [0, 1]: 0 is deterministic (DDIM), 1 jumps to timestep 0 and noises anew, as `lcm`.")] = 0.3
    original_steps: Annotated[int, Field(description='of the sampler that was distilled; the timesteps are among its own.')] = 50


class UnipcSampler(Section):
    """Zhao et al. 2023, algorithm 2, on x_0: each evaluation corrects the step that led to it, then predicts the next."""

    order: Annotated[Annotated[int, Field(ge=1, le=3)], Field(description="1 to 3 of the predictor (the corrector's is one more).")] = 2
    variant: Annotated[Literal['bh1', 'bh2'], Field(description="the paper's B(h): bh1 is h, bh2 is e^h - 1.")] = 'bh2'
    lower_order_final: Annotated[bool, Field(description='the last steps are of lower order, however many there are.')] = True
    spacing: Annotated[Literal['trailing', 'leading', 'linspace', 'quadratic', 'karras', 'exponential', 'compvis', 'compvis-quadratic'] | Trailing | Leading | Linspace | Quadratic | Karras | Exponential | Given | CompVis | CompVisQuadratic, Field(description='see `make_grid`.')] = 'quadratic'
    clean: Annotated[bool, Field(description='see `make_grid`.')] = True


class ConditioningGainMetric(Section):
    """For each slot, how much the held-out loss rises when its conditions are exchanged among the pictures."""

    draws: Annotated[int, Field(description="noises and timesteps a picture; the mean over them is the picture's loss.")] = 2


class FidMetric(Section):
    """The published FID: Inception's features of samples against held-out images or a reference."""

    features: str = 'inception'
    weights: str | None = None
    reference: str | None = None


class FidelityMetric(Section):
    """Each slot's own measure of obedience, beside real pictures, reconstructions and shuffled conditions."""




class FrechetMetric(Section):
    """Distance of the samples' features to those of held-out pictures, beside that of as many training pictures."""

    backbone: Annotated[str, Field(description='a timm model.')] = 'resnet10t'
    weights: Annotated[str, Field(description="``random`` (seeded; says whether distributions differ, not how people see it), ``pretrained`` (timm's, from its cache or the hub), or a file.")] = 'random'
    reference: Annotated[str | None, Field(description='as in `Distance`.')] = None


class InceptionScoreMetric(Section):
    """Inception score of the samples, beside that of held-out images."""

    weights: Annotated[str | None, Field(description='of Inception, as in `fid`.')] = None
    splits: Annotated[int, Field(description='parts that it is the mean over; as many as published: 10.')] = 10


class JudgeMetric(Section):
    """The source's own judge of every field a slot reads: a classifier, attributes read back by colour and shape."""

    count: Annotated[int, Field(description='samples to judge.')] = 512


class KidMetric(Section):
    """Kernel Inception distance: the unbiased MMD of features, which needs fewer images than FID."""

    features: Annotated[str, Field(description='as in `fid`.')] = 'inception'
    weights: Annotated[str | None, Field(description='as in `fid`.')] = None
    subsets: Annotated[int, Field(description='pairs of so many images that it is the mean over.')] = 100
    size: Annotated[int, Field(description='pairs of so many images that it is the mean over.')] = 1000


class LpipsMetric(Section):
    """LPIPS of the generated pictures against the truth, beside bicubic and the reconstruction."""

    net: Annotated[Literal['alex', 'vgg', 'squeeze', 'efficientnet-lite0'], Field(description='the backbone.')] = 'alex'
    weights: Annotated[str, Field(description="``imagenet`` (torchvision's, from its cache or the network), ``random`` (seeded; orders pictures by structure, and is no LPIPS), or the path of a file.")] = 'random'


class NearestMetric(Section):
    """Distance of the generated pictures to the nearest training picture, beside that of held-out pictures."""

    side: Annotated[int, Field(description='pictures are compared at this many pixels (area averaged), so that noise does not hide a copy.')] = 16
    pictures: Annotated[int, Field(description='the most training pictures to look through, drawn without selection.')] = 2048
    quantile: Annotated[float, Field(description='a sample is called near when it is nearer than this share of the held-out pictures are.')] = 0.01


class PrecisionRecallMetric(Section):
    """Precision, recall, density and coverage of the samples in a space of features."""

    features: Annotated[str, Field(description='as in `fid`.')] = 'inception'
    weights: Annotated[str | None, Field(description='as in `fid`.')] = None
    neighbours: Annotated[int, Field(description='k; 3 as published for precision and recall, 5 for density and coverage.')] = 3


class PsnrMetric(Section):
    """PSNR of the generated images against the truth, beside bicubic and the reconstruction."""




class RFidMetric(Section):
    """R-FID: Inception's features of held-out images after encoding and decoding, against the held-out images themselves."""

    features: str = 'inception'
    weights: str | None = None
    reference: str | None = None


class ReconstructionMetric(Section):
    """PSNR, SSIM and LPIPS of held-out images after encoding and decoding; of a codebook its perplexity and codes in use."""

    net: Annotated[Literal['alex', 'vgg', 'squeeze', 'efficientnet-lite0'], Field(description='of LPIPS; `weights` null leaves LPIPS out.')] = 'alex'
    weights: Annotated[str | None, Field(description='of LPIPS; `weights` null leaves LPIPS out.')] = 'random'


class SpectrumMetric(Section):
    """Distance of the generated pictures' radial power spectrum to that of real ones, beside bicubic's."""




class SsimMetric(Section):
    """SSIM of the generated images against the truth, beside bicubic and the reconstruction."""




class SubsetsMetric(Section):
    """Each condition's fidelity with no other condition given, beside all of them given, and each of the others dropped."""

    count: Annotated[int, Field(description='samples for each subset; with three slots there are seven.')] = 128


class VariationalBoundMetric(Section):
    """How many bits a dimension the model needs to tell held-out latents, given their conditions (`variational_bound`)."""

    steps: Annotated[int, Field(description='length of the chain, 1 to T, so many calls of the network a picture; a shorter chain bounds less tightly.')] = 100
    count: Annotated[int, Field(description='held-out pictures.')] = 64


class L2Distance(Section):
    """The squared difference."""




class L1Distance(Section):
    """The absolute difference."""




class HuberDistance(Section):
    """Half the squared difference below `delta`, `delta` (|difference| - `delta` / 2) above."""

    delta: Annotated[float, Field(gt=0.0)] = 1.0


class SimpleWeighting(Section):
    """1 on the output itself (Ho et al. 2020, eq. 14)."""




class SnrWeighting(Section):
    """SNR = alpha^2 / sigma^2 on the error of x_0: the plain loss of eps, whatever is predicted (Salimans and Ho 2022)."""




class MinSnrGammaWeighting(Section):
    """min(SNR, gamma) on the error of x_0 (Hang et al. 2023): min(1, gamma / SNR) for eps, min(SNR, gamma) / (SNR + 1) for v."""

    gamma: Annotated[float, Field(gt=0.0)] = 5.0


class P2Weighting(Section):
    """1 / (k + SNR)^gamma on the error of eps (Choi et al. 2022, eq. 8)."""

    k: Annotated[float, Field(gt=0.0)] = 1.0
    gamma: Annotated[float, Field(ge=0.0)] = 1.0


class EdmWeighting(Section):
    """(s^2 + d^2) / (s d)^2 on the error of x_0, s Karras' sigma, d the data's deviation (Karras et al. 2022, table 1)."""

    sigma_data: Annotated[float, Field(gt=0.0)] | None = None


class ElboWeighting(Section):
    """(SNR(t - 1) - SNR(t)) / 2 on the error of x_0: the variational bound's own (Kingma et al. 2021, eq. 13)."""




class UniformTimestepSampling(Section):
    """All timesteps alike (Ho et al. 2020)."""




class StratifiedTimestepSampling(Section):
    """Uniform, and evenly spread within every batch (cf. Kingma et al. 2021, appendix I.1)."""

    bits: Annotated[int, Field(ge=1, le=30)] = 10


class LogitNormalTimestepSampling(Section):
    """t / T = sigmoid of a normal number: most in the middle (Esser et al. 2024, eq. 19)."""

    mean: float = 0.0
    std: Annotated[float, Field(gt=0.0)] = 1.0


class LogNormalTimestepSampling(Section):
    """log of Karras' sigma is normal (Karras et al. 2022, table 1), clamped to the schedule's own range."""

    mean: float | None = None
    std: Annotated[float, Field(gt=0.0)] = 1.2

# Kind -> registered name -> its options.
COMPONENTS: dict[str, dict[str, type[Section]]] = {
    "conditioners": {
        "given": GivenConditioner,
    },
    "denoisers": {
        "unet": UnetDenoiser,
    },
    "autoencoders": {
        "identity": IdentityAutoencoder,
        "kl": KlAutoencoder,
        "vq": VqAutoencoder,
    },
    "losses": {
        "alignment": AlignmentLoss,
        "contrast": ContrastLoss,
        "perceptual": PerceptualLoss,
        "self-alignment": SelfAlignmentLoss,
    },
    "optimizers": {
        "adam": AdamOptimizer,
        "adamw": AdamwOptimizer,
        "adamw-8bit": Adamw8bitOptimizer,
        "muon": MuonOptimizer,
    },
    "schedules": {
        "cosine": CosineSchedule,
        "edm": EdmSchedule,
        "flow": FlowSchedule,
        "given": GivenSchedule,
        "linear": LinearSchedule,
        "plain-linear": PlainLinearSchedule,
        "sqrt": SqrtSchedule,
    },
    "guidance": {
        "apg": ApgGuidance,
        "autoguidance": AutoguidanceGuidance,
        "perp-neg": PerpNegGuidance,
        "plain": PlainGuidance,
        "plus-plus": PlusPlusGuidance,
    },
    "data_sources": {
        "digits": DigitsSource,
        "folder": FolderSource,
        "huggingface": HuggingfaceSource,
        "photos": PhotosSource,
        "scenes": ScenesSource,
        "webdataset": WebdatasetSource,
    },
    "samplers": {
        "ddim": DdimSampler,
        "ddpm": DdpmSampler,
        "deis": DeisSampler,
        "dpm-solver": DpmSolverSampler,
        "dpmpp-2m": Dpmpp2mSampler,
        "dpmpp-2s": Dpmpp2sSampler,
        "dpmpp-sde": DpmppSdeSampler,
        "euler": EulerSampler,
        "euler-ancestral": EulerAncestralSampler,
        "heun": HeunSampler,
        "lcm": LcmSampler,
        "lms": LmsSampler,
        "plms": PlmsSampler,
        "tcd": TcdSampler,
        "unipc": UnipcSampler,
    },
    "metrics": {
        "conditioning-gain": ConditioningGainMetric,
        "fid": FidMetric,
        "fidelity": FidelityMetric,
        "frechet": FrechetMetric,
        "inception-score": InceptionScoreMetric,
        "judge": JudgeMetric,
        "kid": KidMetric,
        "lpips": LpipsMetric,
        "nearest": NearestMetric,
        "precision-recall": PrecisionRecallMetric,
        "psnr": PsnrMetric,
        "r-fid": RFidMetric,
        "reconstruction": ReconstructionMetric,
        "spectrum": SpectrumMetric,
        "ssim": SsimMetric,
        "subsets": SubsetsMetric,
        "variational-bound": VariationalBoundMetric,
    },
    "distances": {
        "l2": L2Distance,
        "l1": L1Distance,
        "huber": HuberDistance,
    },
    "weightings": {
        "simple": SimpleWeighting,
        "snr": SnrWeighting,
        "min-snr-gamma": MinSnrGammaWeighting,
        "p2": P2Weighting,
        "edm": EdmWeighting,
        "elbo": ElboWeighting,
    },
    "timestep_samplings": {
        "uniform": UniformTimestepSampling,
        "stratified": StratifiedTimestepSampling,
        "logit-normal": LogitNormalTimestepSampling,
        "log-normal": LogNormalTimestepSampling,
    },
}
