"""Runs an exported pipeline with diffusers: `python verifying_child.py FOLDER REQUEST GIVEN ANSWER`. Knows nothing of ldmkit."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main(folder: str, request: dict[str, Any], given: str, answer: str) -> None:
    """Samples from the folder; writes the latents it decodes at the end, and its decoding of the latents it was given."""
    import torch
    from diffusers import DiffusionPipeline
    from safetensors.torch import load_file, save_file

    inputs = load_file(given)
    kind: Any = DiffusionPipeline
    pipeline = kind.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    autoencoder = pipeline.vae if hasattr(pipeline, "vae") else pipeline.vqvae
    decode, seen = autoencoder.decode, []

    def remember(latents: torch.Tensor, *args: Any, **options: Any) -> Any:
        seen.append(latents)
        return decode(latents, *args, **options)

    autoencoder.decode = remember
    call: dict[str, Any] = {"num_inference_steps": request["steps"], "eta": 0.0, "output_type": "np"}
    if "image" in inputs:
        call["image"] = inputs["image"]
    if "prompt" in request:
        call |= {"prompt": [request["prompt"]], "guidance_scale": request["guidance"]}
    with torch.no_grad():
        pipeline(**call, generator=torch.Generator().manual_seed(request["seed"]))
        quantises = hasattr(autoencoder, "quantize")
        images = decode(inputs["latents"], **({"force_not_quantize": True} if quantises else {})).sample
    out = {"latents": seen[0].float().contiguous(), "images": images.float().contiguous()}
    if quantises:
        out["codebook"] = autoencoder.quantize.embedding.weight.detach().clone()
    save_file(out, answer)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], sys.argv[4])
