"""The residual block of the UNet."""

from __future__ import annotations

from torch import Tensor, nn

from ldmkit.denoiser.layers import Context, cut, group_norm, zeroed


class ResidualBlock(nn.Module):
    """Two convolutions around the embedding of timestep and vector (Dhariwal & Nichol 2021, section 3).

    `scale_shift` lets the embedding scale and shift the second norm (their "adaptive group normalization"); otherwise
    it is added. `resample` is a module without parameters (a pool, a nearest upsampling) applied to both branches,
    before the first convolution. `groups` is that of ``group_norm``. The second convolution starts at zero.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        *,
        dropout: float = 0.0,
        scale_shift: bool = False,
        resample: nn.Module | None = None,
        groups: int | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.resample = resample
        self.in_layers = nn.Sequential(
            group_norm(inputs, groups=groups), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * outputs if scale_shift else outputs))
        self.out_layers = nn.Sequential(
            group_norm(outputs, groups=groups),
            nn.SiLU(),
            nn.Dropout(dropout),
            zeroed(nn.Conv2d(outputs, outputs, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(b, inputs, h, w) -> (b, outputs, h, w), or the resampled size."""
        norm, activation, convolution = self.in_layers
        h = activation(norm(x))
        if self.resample is not None:
            h, x = (cut(self.resample(part), context.size) for part in (h, x))
        h = convolution(h)
        embedding = self.emb_layers(context.embedding)[:, :, None, None]
        norm, activation, dropout, convolution = self.out_layers
        if self.scale_shift:
            scale, shift = embedding.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + embedding)
        return self.skip_connection(x) + convolution(dropout(activation(h)))  # type: ignore[no-any-return]
