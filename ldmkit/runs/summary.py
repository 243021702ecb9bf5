"""The first lines of a run: what will be trained, on what, and where."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from ldmkit.data import Dataset
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.planning.per_gpu import held
from ldmkit.recipe import Recipe
from ldmkit.training.checkpointing.atomic_dir import write_json
from ldmkit.training.logging.console import Console
from ldmkit.training.parallel.ranks import Ranks
from ldmkit.training.runtime import Runtime, describe

COPIES = 4  # of the weights in a checkpoint: raw, averaged, and two moments


def announce(
    console: Console,
    recipe: Recipe,
    model: LatentDiffusion,
    data: tuple[Dataset, Dataset],
    runtime: Runtime,
    folder: Path,
    ranks: Ranks,
) -> None:
    """Prints the plan, what is a stand-in, and whether disk or memory are too small; ``plan.json`` keeps it for the report."""
    train, held_out = data
    console.table(
        [
            ("device", describe(runtime) + _processes(recipe, ranks)),
            (
                "data",
                f"{recipe.data.type}, {train.size[0]}x{train.size[1]}: {_amount(train)}; held out: {_held_out(train, held_out)}",
            ),
            ("autoencoder", f"{recipe.autoencoder.type}, {size(model.autoencoder)}, latents {_latents(model)}"),
            *([] if recipe.alone else _second(model)),
            ("stages", ", then ".join(_stages(recipe))),
        ]
    )
    for text in train.info.notes:
        console.note(f"  data: {text}")
    for text in [
        *_nothing_held_out(train, held_out),
        *_enlarged(train),
        *_idle(recipe),
        *_few(recipe, train),
        *_stand_ins(recipe),
        *_per_rank(recipe, ranks),
    ]:
        console.note(f"  note: {text}")
    _check_space(console, model, folder)
    _check_memory(console, recipe, model, runtime, ranks)
    parts = {"autoencoder": model.autoencoder, "denoiser": model.denoiser}
    parts |= {f"conditioner {name}": conditioner for name, conditioner in model.conditioners.items()}
    rows = [{"part": name, "parameters": sum(p.numel() for p in part.parameters())} for name, part in parts.items()]
    write_json(folder / "plan.json", rows)


def size(module: nn.Module) -> str:
    """``1.11 M parameters``."""
    count = sum(p.numel() for p in module.parameters())
    for unit, many in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= many:
            return f"{count / many:.3g} {unit} parameters"
    return f"{count} parameters"


def _amount(data: Dataset) -> str:
    pictures = data.info.count
    if pictures is None:
        return "endless"
    if data.views == 1:
        return f"{pictures} pictures"
    return f"{'fresh' if data.views is None else data.views} views of {pictures} pictures"


def _held_out(train: Dataset, held_out: Dataset) -> str:
    return _amount(held_out) if train.source.holds_out() else "none"


def _nothing_held_out(train: Dataset, held_out: Dataset) -> list[str]:
    if train.source.holds_out():
        few = held_out.info.count == 1
        text = (
            "one image alone is held out: what needs others to compare with (the conditioning gain) cannot be measured"
        )
        return [text] if few else []
    return ["no image is held out: the training images stand in, and no figure says anything of new ones"]


def _enlarged(data: Dataset) -> list[str]:
    """Images that are smaller than what is trained on: nothing is learned of the detail they have not."""
    sizes = data.source.sizes()
    if sizes is None or data.buckets:
        return []
    factors = [max(data.size[0] / height, data.size[1] / width) for height, width in sizes]
    if not (larger := [factor for factor in factors if factor > 1]):
        return []
    much = f", up to {max(larger):.1f} times" if max(larger) > min(larger) else f" {max(larger):.1f} times"
    return [
        f"{len(larger)} of {len(sizes)} images are smaller than {data.size[0]}x{data.size[1]} and are enlarged{much}: "
        "a smaller data.size, or data.smallest, leaves them out"
    ]


def _small_buckets(data: Dataset, batch: int) -> list[str]:
    """Buckets that cannot fill a batch: their few images are trained on more often than the others."""
    sizes = [(data.size_of(group[0]), len(group)) for group in data.groups()] if data.buckets else []
    return [
        f"the bucket {height}x{width} has {count} views for a batch of {batch}: they are seen {batch / count:.1f} times as often"
        for (height, width), count in sizes
        if count < batch
    ]


def _idle(recipe: Recipe) -> list[str]:
    """Settings that do nothing, or less than they seem."""
    found = []
    first = recipe.autoencoder.train
    loss = recipe.resolved()["autoencoder"].get("loss") or {}
    game = loss.get("adversarial") if first is not None else None
    if first is not None and game and game["start"] >= first.steps:
        found.append(
            f"autoencoder.loss.adversarial.start is {game['start']}, and the stage has {first.steps} steps: "
            "the discriminator never starts"
        )
    for name, stage in (("autoencoder.train", first), ("train", recipe.train)):
        if stage is not None and stage.steps and stage.warmup >= stage.steps:
            found.append(
                f"{name}.warmup is {stage.warmup}, and the stage has {stage.steps} steps: "
                "the learning rate never gets to its value"
            )
    crop = None if first is None else first.crop
    if crop is not None and crop > min(recipe.data.shape):
        found.append(
            f"autoencoder.train.crop is {crop}, and the images have {min(recipe.data.shape)} pixels: nothing is cropped"
        )
    return found


def _latents(model: LatentDiffusion) -> str:
    return "x".join(str(side) for side in model.latent_shape(model.size))


def _few(recipe: Recipe, data: Dataset) -> list[str]:
    stages = {"autoencoder.train": recipe.autoencoder.train, "train": None if recipe.alone else recipe.train}
    larger = [
        f"{name}.batch {s.batch}" for name, s in stages.items() if s is not None and s.batch > (data.count or s.batch)
    ]
    return (
        [f"{' and '.join(larger)}: more than the {data.count} samples, so a batch holds some of them twice"]
        if larger
        else []
    )


def _slots(model: LatentDiffusion) -> list[str]:
    return [f"{name} ({slot.type}, {slot.origin.get('distribution', 'here')})" for name, slot in model.slots.items()]


def _second(model: LatentDiffusion) -> list[tuple[str, str]]:
    return [
        ("conditioners", ", ".join(_slots(model)) or "none"),
        ("denoiser", f"{size(model.denoiser)} (and {size(model.conditioners)} of conditioners)"),
    ]


def _stages(recipe: Recipe) -> list[str]:
    own = recipe.autoencoder.train
    first = [] if own is None else [f"autoencoder {own.steps} steps of {own.batch}"]
    second = [] if recipe.alone else [f"diffusion {recipe.train.steps} steps of {recipe.train.batch}"]
    return [*first, *second, "evaluation"]


def _stand_ins(recipe: Recipe) -> list[str]:
    loss = recipe.resolved()["autoencoder"].get("loss") or {}
    perceptual = loss.get("perceptual") if recipe.autoencoder.train is not None else None
    if perceptual and perceptual["weights"] == "random":
        return ["LPIPS has random backbone weights here: its values do not compare with published ones"]
    return []


def _processes(recipe: Recipe, ranks: Ranks) -> str:
    how = "shards (fsdp)" if recipe.runtime.distributed == "fsdp" else "copies (ddp)"
    return f", {ranks.count} processes with {how}" if ranks.count > 1 else ""


def _per_rank(recipe: Recipe, ranks: Ranks) -> list[str]:
    """What depends on the number of processes."""
    loss = recipe.resolved()["autoencoder"].get("loss") or {}
    game = loss.get("adversarial") if recipe.autoencoder.train is not None else None
    if ranks.count > 1 and game and game["norm"] == "batch":
        return [
            "the discriminator's batch norm sees each process' pictures alone; `norm: group` does not depend on their number"
        ]
    return []


def _check_space(console: Console, model: LatentDiffusion, folder: Path) -> None:
    """Two checkpoints are there at a time."""
    needed = 2 * COPIES * sum(p.nbytes for p in model.parameters())
    free = shutil.disk_usage(folder).free
    if free < needed:
        console.note(f"warning: {free / 2**20:.0f} MiB are free, and two checkpoints take {needed / 2**20:.0f} MiB")


def _check_memory(console: Console, recipe: Recipe, model: LatentDiffusion, runtime: Runtime, ranks: Ranks) -> None:
    """What does not depend on the batch already decides much: a kernel that runs out of memory ends a process without a word."""
    shared = ranks.count if recipe.runtime.distributed == "fsdp" else 1
    needed, free = held(model.parameters(), recipe.train) // shared, _free(runtime.device)
    if free is not None and free < needed:
        console.note(
            f"warning: weights, gradients, moments and averages take {needed / 2**20:.0f} MiB of memory, and "
            f"{free / 2**20:.0f} MiB are free; a smaller denoiser, train.ema: null or train.optimizer: adamw-8bit take less, and "
            "pictures come on top"
        )


def _free(device: torch.device) -> int | None:
    """Bytes of memory that are free, where the system says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with suppress(OSError, ValueError, StopIteration), open("/proc/meminfo", encoding="ascii") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:"))
    return None
