"""The core's own data sources, samplers, metrics and the stand-in conditioner, registered like anybody's. Loads no torch."""

from __future__ import annotations

from ldmkit.plugins.hookspecs import Register, hookimpl

DATA_SOURCES = ("photos", "digits", "scenes", "folder", "huggingface", "webdataset")
SAMPLERS = (
    "ddim",
    "ddpm",
    "plms",
    "dpm-solver",
    "dpmpp-2m",
    "dpmpp-2s",
    "dpmpp-sde",
    "euler",
    "euler-ancestral",
    "heun",
    "lms",
    "unipc",
    "deis",
)
METRICS = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "spectrum": "Spectrum",
    "conditioning-gain": "ConditioningGain",
    "fidelity": "Fidelity",
    "frechet": "Frechet",
    "judge": "Judge",
    "nearest": "Nearest",
    "reconstruction": "Reconstruction",
    "subsets": "Subsets",
    "variational-bound": "VariationalBound",
}


@hookimpl
def ldmkit_register_conditioners(register: Register) -> None:
    # Knows no modality: it hands on what somebody else encoded. Imported models whose modality has no plugin are made with it.
    register("given", "ldmkit.conditioning.precomputed:PrecomputedConditioner")


@hookimpl
def ldmkit_register_data_sources(register: Register) -> None:
    for name in DATA_SOURCES:
        register(name, f"ldmkit.data.{name}:{name.capitalize()}Source")


@hookimpl
def ldmkit_register_samplers(register: Register) -> None:
    for name in SAMPLERS:
        register(name, f"ldmkit.samplers:{name.replace('-', '_')}")


@hookimpl
def ldmkit_register_metrics(register: Register) -> None:
    for name, metric in METRICS.items():
        register(name, f"ldmkit.evaluation.metrics:{metric}")
