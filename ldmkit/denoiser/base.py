"""The contract of every denoiser, epsilon_theta: what the model, the engines, the planner and alignment losses rely on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ldmkit.errors import UsageError
from ldmkit.messages import did_you_mean


class Denoiser(nn.Module, ABC):
    """The network that predicts. `ldmkit.testing.check_denoiser` examines one against this contract.

    A constructor takes its own options, keyword-only and annotated, and two that the core fills in, wherever they are annotated
    so: `latent: LatentSpec` (channels of the latent, the autoencoder's factor, the training image's size) and `ports: Ports`
    (what the conditioners feed: `tokens`, the width of the tokens, `vector`, not 0 where there is one, `concat`, the channels
    beside the latent, and `length`, the most tokens; 0 = not this port).

    Attributes:
        reduction: sides of the latent are its multiples.
        vector_width: what the conditioners' vectors are projected to before they come in as `vector`.
        checkpointing: computes activations again in the backward pass; set by `runtime.checkpointing`, and may be ignored.
    """

    reduction: int = 1
    vector_width: int = 1
    checkpointing: bool = False

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        vector: Tensor | None = None,
        concat: Tensor | None = None,
    ) -> Tensor:
        """Predict (b, c, h, w), in the dtype of x, from noisy latents and what the conditioners give.

        Args:
            x: (b, c, h, w).
            t: (b,), timesteps in [0, T), whole or fractional.
            tokens, mask: (b, l, ports.tokens) and (b, l) bool, True = attend; no mask attends to all.
            vector: (b, vector_width).
            concat: (b, ports.concat, h, w).
        """

    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """Its repeated blocks in the order in which they run: what is sharded, compiled or cached one by one."""

    def layer(self, name: str) -> nn.Module:
        """The module whose output is the features of layer `name`: (b, c, h, w), or (b, n, c) with n = h w positions.

        Losses read them by name. By default the names are those of submodules. Raises UsageError for one that is not there.
        """
        try:
            return self.get_submodule(name)
        except AttributeError as error:
            names = [known for known, _ in self.named_modules() if known]
            raise UsageError(
                f"{type(self).__name__} has no layer '{name}'{did_you_mean(name, names)}",
                hint=f"its repeated blocks are {', '.join(self._block_names())}",
            ) from error

    def _block_names(self) -> list[Any]:
        own = {id(block) for block in self.blocks()}
        return [name for name, module in self.named_modules() if id(module) in own]
