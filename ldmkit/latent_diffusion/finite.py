"""Numbers that are not finite: which part of the model gave them, at which step, and what to try."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ldmkit.errors import DivergedError
from ldmkit.latent_diffusion.arguments import precision
from ldmkit.samplers import Callback

HALF = (torch.float16, torch.bfloat16)


def check(values: Tensor, part: str, module: nn.Module) -> Tensor:
    """`values` (b, ...) as they are. Raises DivergedError, naming `part` ("decoder") and the rows, where one is not finite.

    Waits for the device.
    """
    good = torch.isfinite(values.flatten(1)).all(1)
    if not bool(good.all()):
        rows = (~good).nonzero().flatten().tolist()
        named = ", ".join(map(str, rows[:8])) + (" ..." if len(rows) > 8 else "")
        raise DivergedError(
            f"the {part} gave NaN or infinite values for image {named} (counted from 0) of {len(values)}",
            hint=remedy(module, "model.autoencoder"),
        )
    return values


def remedy(module: nn.Module, name: str) -> str:
    """What to try where this module gave what is not finite."""
    bad = [key for key, value in module.state_dict().items() if _spoilt(value)]
    if bad:
        return (
            f"its weights are not finite ({bad[0]}{f' and {len(bad) - 1} more' if len(bad) > 1 else ''}): "
            "load another checkpoint (`checkpoint=`), or weights='raw'"
        )
    dtype = precision(module)
    if dtype in HALF:
        largest = f"{torch.finfo(dtype).max:.3g}"
        other = "bfloat16 or float32" if dtype == torch.float16 else "float32"
        return f"it computes in {str(dtype)[6:]}, whose largest number is {largest}: try {other}, {name}.float()"
    return "its weights are finite: what went in was out of all proportion; try a lower guidance, or another sampler"


def _spoilt(value: Tensor) -> bool:
    return value.is_floating_point() and not value.is_meta and not bool(torch.isfinite(value).all())


class Steps:
    """A sampler's callback that counts the steps, and calls the one it is made of."""

    def __init__(self, inner: Callback | None) -> None:
        self.inner, self.done = inner, 0

    def __call__(self, done: int, total: int, noisy: Tensor, clean: Tensor) -> None:
        self.done = done
        if self.inner is not None:
            self.inner(done, total, noisy, clean)


@contextmanager
def explained(denoiser: nn.Module, steps: Steps, total: int) -> Iterator[None]:
    """Around a sampler: where the network's answer is not finite, says in which step that was and what to try."""
    try:
        yield
    except DivergedError as error:
        raise DivergedError(
            f"{error.message}, in step {steps.done + 1} of {total}", hint=remedy(denoiser, "model.denoiser")
        ) from error
