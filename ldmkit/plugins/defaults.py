"""The core's own components, registered like anybody's. Loads no torch."""

from __future__ import annotations

from ldmkit.plugins.hookspecs import Register, hookimpl

DATA_SOURCES = {
    "photos": "photos:PhotosSource",
    "digits": "digits.source:DigitsSource",
    "scenes": "scenes.source:ScenesSource",
    "folder": "folder.source:FolderSource",
    "huggingface": "huggingface.source:HuggingfaceSource",
    "webdataset": "webdataset.source:WebdatasetSource",
}
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
    "lcm",
    "tcd",
)
DENOISERS = {"unet": "unet:UNet"}
AUTOENCODERS = {"vq": "vq:VQAutoencoder", "kl": "kl:KLAutoencoder", "identity": "identity:IdentityAutoencoder"}
LOSSES = {"perceptual": "perceptual:PerceptualTerm"}
OPTIMIZERS = {"adamw": "adamw", "adam": "adam", "adamw-8bit": "adamw_8bit"}
SCHEDULES = {
    "linear": "linear",
    "plain-linear": "plain_linear",
    "sqrt": "sqrt",
    "cosine": "cosine",
    "given": "given",
    "edm": "EDM",
    "flow": "Flow",
}
GUIDANCE = {
    "plain": "Plain",
    "apg": "APG",
    "plus-plus": "PlusPlus",
    "perp-neg": "PerpNeg",
    "autoguidance": "AutoGuidance",
}
METRICS = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "spectrum": "Spectrum",
    "conditioning-gain": "ConditioningGain",
    "fidelity": "Fidelity",
    "fid": "FID",
    "frechet": "Frechet",
    "inception-score": "InceptionScore",
    "kid": "KID",
    "precision-recall": "PrecisionRecall",
    "r-fid": "ReconstructionFID",
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
    for name, target in DATA_SOURCES.items():
        register(name, f"ldmkit.data.sources.{target}")


@hookimpl
def ldmkit_register_samplers(register: Register) -> None:
    for name in SAMPLERS:
        register(name, f"ldmkit.samplers:{name.replace('-', '_')}")


@hookimpl
def ldmkit_register_metrics(register: Register) -> None:
    for name, metric in METRICS.items():
        register(name, f"ldmkit.evaluation.metrics:{metric}")


@hookimpl
def ldmkit_register_denoisers(register: Register) -> None:
    for name, target in DENOISERS.items():
        register(name, f"ldmkit.denoiser.{target}")


@hookimpl
def ldmkit_register_autoencoders(register: Register) -> None:
    for name, target in AUTOENCODERS.items():
        register(name, f"ldmkit.autoencoder.{target}")


@hookimpl
def ldmkit_register_losses(register: Register) -> None:
    for name, target in LOSSES.items():
        register(name, f"ldmkit.losses.{target}")


@hookimpl
def ldmkit_register_optimizers(register: Register) -> None:
    for name, target in OPTIMIZERS.items():
        register(name, f"ldmkit.training.optimizers:{target}")


@hookimpl
def ldmkit_register_schedules(register: Register) -> None:
    for name, target in SCHEDULES.items():
        register(name, f"ldmkit.schedules:{target}")


@hookimpl
def ldmkit_register_guidance(register: Register) -> None:
    for name, target in GUIDANCE.items():
        register(name, f"ldmkit.guidance.methods:{target}")
