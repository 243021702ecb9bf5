"""What a run's model starts from: trained models that the recipe names, and weights that no stage trains."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ldmkit.assembly.fine_tuning import initialise
from ldmkit.errors import CheckpointError
from ldmkit.interop.diffusers.autoencoder_folder import load_autoencoder
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.messages import tensor_differences
from ldmkit.plugins import Registry
from ldmkit.recipe import Recipe
from ldmkit.training.checkpointing.checkpoints import Checkpoints
from ldmkit.training.parallel.ranks import Ranks


def start_trained(
    model: LatentDiffusion, recipe: Recipe, registry: Registry, ranks: Ranks, note: Callable[[str], None]
) -> None:
    """The weights of the trained models that the recipe starts from; the same on every rank.

    Args:
        note: is told what was taken and what was not.

    Raises:
        CheckpointError: a trained autoencoder is another one than the recipe's.
    """
    ranks.decide(lambda: _read_trained(model, recipe, registry, note))
    ranks.alike(model.state_dict())


def _read_trained(model: LatentDiffusion, recipe: Recipe, registry: Registry, note: Callable[[str], None]) -> None:
    init, trained = recipe.init, recipe.autoencoder.from_
    elsewhere = trained is not None and (init is None or trained != init.from_)
    if init is not None:
        done = initialise(model, init.from_, init.weights, registry=registry, autoencoder=not elsewhere)
        for line in done.lines(init.from_):
            note(line)
    if trained is not None and elsewhere:
        _copy(load_autoencoder(trained), model.autoencoder, where=trained)


def keep_frozen(model: LatentDiffusion, checkpoints: Checkpoints) -> None:
    """Weights that no stage trains are kept once a run, so that it does not depend on where they came from.

    Raises:
        CheckpointError: what was kept has other names or shapes.
    """
    tensors = {name: p for name, p in model.conditioners.named_parameters() if not p.requires_grad}
    if not tensors:
        return
    if (found := checkpoints.newest()) is None:
        checkpoints.save(0, {"conditioners": tensors}, {})
        return
    saved = found.tensors("conditioners")
    if wrong := tensor_differences(tensors, saved):
        raise CheckpointError(f"this run was started with other frozen weights: {wrong}", where=str(found.path))
    for name, value in tensors.items():
        value.data.copy_(saved[name])


def _copy(source: nn.Module, target: nn.Module, *, where: str) -> None:
    """The weights and buffers of `source`, which must have the same shapes."""
    theirs = source.state_dict()
    if wrong := tensor_differences(target.state_dict(), theirs):
        raise CheckpointError(
            f"its autoencoder is another one than the recipe's: {wrong}",
            hint="leave out the autoencoder's other keys, or give those it was trained with",
            where=where,
        )
    target.load_state_dict(theirs)
