"""What a run's model starts from: trained models that the recipe names, and weights that no stage trains."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ldmkit.errors import CheckpointError
from ldmkit.initialise import initialise
from ldmkit.interop.autoencoder_folder import load_autoencoder
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.plugins import Registry
from ldmkit.recipe import Recipe
from ldmkit.training.checkpoint import Checkpoints
from ldmkit.training.ranks import Ranks


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
    for name, value in tensors.items():
        if name not in saved or saved[name].shape != value.shape:
            raise CheckpointError(f"{name} is not what this run was started with", where=str(found.path))
        value.data.copy_(saved[name])


def _copy(source: nn.Module, target: nn.Module, *, where: str) -> None:
    """The weights and buffers of `source`, which must have the same shapes."""
    mine, theirs = target.state_dict(), source.state_dict()
    wrong = [name for name in mine if name not in theirs or theirs[name].shape != mine[name].shape]
    if wrong or len(mine) != len(theirs):
        raise CheckpointError(
            f"its autoencoder is another one than the recipe's ({len(wrong) or 'some'} tensors differ"
            f"{f', {wrong[0]} first' if wrong else ''})",
            hint="leave out the autoencoder's other keys, or give those it was trained with",
            where=where,
        )
    target.load_state_dict(theirs)
