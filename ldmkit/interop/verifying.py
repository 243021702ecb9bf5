"""An exported folder against the model it came from: loaded with diffusers in another process, both from the same noise."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ldmkit.autoencoder import VQAutoencoder
from ldmkit.errors import CheckpointError, UsageError
from ldmkit.interop.diffusers.folders import new_folder, write_tensors
from ldmkit.interop.diffusers.save import write_pipeline
from ldmkit.latent_diffusion import LatentDiffusion

LIMIT = 1e-4  # of the standard deviation of what ldmkit computes
STEPS, SEED, PROMPT, SCALE = 4, 0, "a photograph", 2.0
SECONDS = 1800  # for the other process


@dataclass(frozen=True)
class Verification:
    """The largest differences, in standard deviations of ldmkit's own result."""

    pipeline: str
    latents: float  # after sampling
    images: float  # of decoding the same latents

    @property
    def largest(self) -> float:
        """The larger of the two."""
        return max(self.latents, self.images)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "limit": LIMIT}


def export_diffusers(
    model: LatentDiffusion, folder: str | Path, *, verify: bool = False
) -> tuple[str, Verification | None]:
    """`save_diffusers`; with `verify` the folder appears only where diffusers computes the same from it.

    Returns the pipeline's name and what was found.

    Raises:
        UsageError: no pipeline of diffusers computes what this model does, or diffusers is not installed.
        CheckpointError: the difference is above 1e-4.
    """
    with new_folder(folder) as path:
        name = write_pipeline(model, path)
        found = verify_pipeline(model, path, name) if verify else None
        if found is not None and not found.largest <= LIMIT:
            raise CheckpointError(
                f"diffusers computes other values from the exported model: {found.largest:.2g} standard deviations away, "
                f"and at most {LIMIT:g} are accepted; nothing was written"
            )
    return name, found


@torch.no_grad()
def verify_pipeline(model: LatentDiffusion, folder: Path, name: str) -> Verification:
    """Samples with both and compares. diffusers runs in another process.

    Raises:
        UsageError: diffusers is not installed.
        CheckpointError: diffusers cannot run the exported model, or reads other weights or shapes from it.
    """
    generator = torch.Generator().manual_seed(SEED)
    shape = (1, *model.latent_shape(model.size))
    noise = torch.randn(shape, generator=generator)
    request: dict[str, Any] = {"steps": STEPS, "seed": SEED, "guidance": 1.0}
    inputs: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    slot = next(iter(model.conditioners), None)
    if name == "LDMSuperResolutionPipeline" and slot is not None:
        inputs["image"] = torch.rand((1, 3, *shape[2:]), generator=generator) * 2 - 1
        values[slot] = inputs["image"]
    elif slot is not None:
        request["prompt"] = values[slot] = PROMPT
        if frozenset({slot}) in model.conditioners.dropout.trained:
            request["guidance"] = SCALE
    options: dict[str, Any] = {"sampler": "ddim", "spacing": "compvis", "eta": 0.0, "guidance": request["guidance"]}
    options |= {"guidance_options": "plain", "negative": {}}  # whatever the model was saved with
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # words of the prompt that the model never saw
        latents = model.sample(values, size=model.size, steps=STEPS, noise=noise, output="latent", **options)
    assert isinstance(latents, Tensor)
    inputs["latents"] = model.autoencoder.unscale(latents)
    theirs = _other_process(folder, request, inputs)
    first_stage = model.autoencoder
    # A latent between two codes may be rounded to either: decoding is compared without the codebook, which is stored as it is.
    quantised = isinstance(first_stage, VQAutoencoder)
    images = (
        first_stage.decode_continuous(latents)
        if isinstance(first_stage, VQAutoencoder)
        else first_stage.decode(latents)
    )
    if quantised and not torch.equal(theirs["codebook"], first_stage.state_dict()["quantize.embedding.weight"]):
        raise CheckpointError("diffusers reads another codebook from the exported model")
    return Verification(name, _difference(theirs["latents"], inputs["latents"]), _difference(theirs["images"], images))


def _difference(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape:
        raise CheckpointError(f"diffusers gives {tuple(found.shape)} where ldmkit gives {tuple(wanted.shape)}")
    return float((found - wanted).abs().max() / wanted.std())


def _other_process(folder: Path, request: dict[str, Any], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    with TemporaryDirectory() as temporary:
        given, answer = Path(temporary, "given.safetensors"), Path(temporary, "answer.safetensors")
        write_tensors(given, inputs)
        # -P: without the child's own folder on the path, where a package of ours is called diffusers too.
        child = Path(__file__).with_name("verifying_child.py")
        command = [sys.executable, "-P", str(child), str(folder), json.dumps(request), str(given), str(answer)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or ["no message"]
            if "No module named 'diffusers'" in lines[-1]:
                raise UsageError("--verify needs diffusers, which is not installed", hint="pip install diffusers")
            raise CheckpointError(f"diffusers cannot run the exported model: {lines[-1]}")
        return load_file(answer)
