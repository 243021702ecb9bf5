"""Two small checkpoints in the released models' format, and what the original implementation computed from them.

Random weights that are bfloat16 numbers, so that 7.6 MB hold them exactly. In `tests/data/compvis/NAME.zip`: the configuration;
the shapes of raw weights, in their order; the weights' bits, high and low bytes apart; what is to be added to the bits of the
UNet's to get those of its averages; the checkpoint's other tensors; and `io.safetensors`: inputs, and outputs of every stage.
"""

from __future__ import annotations

import atexit
import json
import lzma
import math
import shutil
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor

DATA = Path(__file__).parent / "data" / "compvis"
UNET = "model.diffusion_model."


@cache
def compvis() -> Path:
    """A directory with `class` and `superres`, each with `config.yaml`, `model.ckpt` and `io.safetensors`; unpacked once."""
    folder = Path(tempfile.mkdtemp(prefix="ldmkit-reference-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for packed in sorted(DATA.glob("*.zip")):
        place = folder / packed.stem
        place.mkdir()
        with zipfile.ZipFile(packed) as archive:
            (place / "config.yaml").write_bytes(archive.read("config.yaml"))
            (place / "io.safetensors").write_bytes(_unpacked(archive, "io.safetensors"))
            torch.save({"state_dict": _state(archive), "global_step": 1234, "epoch": 3}, place / "model.ckpt")
    return folder


def _state(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    shapes = json.loads(_unpacked(archive, "shapes.json"))
    bits, added = _bits(archive, "weights"), _bits(archive, "averages")
    weights: dict[str, Tensor] = {}
    averages: dict[str, Tensor] = {}
    start = seen = 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        own = bits[start : start + count]
        start += count
        weights[name] = _tensor(own, shape)
        if name.startswith(UNET):
            averages["model_ema." + name.removeprefix("model.").replace(".", "")] = _tensor(
                own + added[seen : seen + count], shape
            )
            seen += count
    assert (start, seen) == (len(bits), len(added))
    return {**weights, **averages, **load(_unpacked(archive, "rest.safetensors"))}


def _bits(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    high, low = (np.frombuffer(_unpacked(archive, f"{name}.{half}"), np.uint8) for half in ("high", "low"))
    return (high.astype(np.uint16) << 8) | low


def _tensor(bits: np.ndarray, shape: list[int]) -> Tensor:
    return torch.from_numpy(bits.view(np.int16).copy()).view(torch.bfloat16).float().reshape(shape)


def _unpacked(archive: zipfile.ZipFile, name: str) -> bytes:
    return lzma.decompress(archive.read(f"{name}.xz"))
