"""`ldmkit doctor`: what this machine has, to paste into an issue."""

from __future__ import annotations

import locale
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import click

from ldmkit.cli.shared import echo_json, echo_table, json_option

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "pydantic", "pluggy", "safetensors", "lpips", "timm")
OPTIONAL = {
    "scikit-image": "the photos data source",
    "scikit-learn": "the digits data source",
    "transformers": "pretrained text encoders",
    "tokenizers": "tokenizers fitted on captions",
    "diffusers": "checks against diffusers",
    "accelerate": "accelerate launch, and runtime.trackers",
    "bitsandbytes": "the optimizer adamw-8bit",
    "torchmetrics": "oracles in tests",
}
# The backbones of LPIPS as torchvision stores them, and the names that recipes use.
WEIGHTS = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
VARIABLES = (
    "LDMKIT_PLUGINS",
    "LDMKIT_DISABLE_PLUGIN_AUTOLOAD",
    "HF_HUB_OFFLINE",
    "HF_HOME",
    "TORCH_HOME",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "PYTHONDONTWRITEBYTECODE",
)
SMALL_SHARED_MEMORY = 256  # MiB: data workers hand batches over there


@dataclass(frozen=True)
class Finding:
    """One line: `ok` False is something to fix, None something that may be missing."""

    what: str
    found: str
    ok: bool | None = True
    remedy: str = ""


@click.command(name="doctor")
@json_option
def command(as_json: bool) -> None:
    """Look at Python, torch, devices, packages, plugins, weights, disk and locale. Exits with 2 if something is wrong."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (_python, _packages, _torch, _plugins, _weights, _disk, _text)
    findings = [finding for check in checks for finding in check()]
    bad = [finding for finding in findings if finding.ok is False]
    if as_json:
        echo_json({"findings": [asdict(finding) for finding in findings], "healthy": not bad})
    else:
        signs = {True: "ok", False: "WRONG", None: "-"}
        echo_table(("", "what", "found"), [(signs[f.ok], f.what, f.found) for f in findings])
        for finding in findings:
            if finding.remedy:
                click.echo(f"\n{finding.what}: {finding.remedy}")
    if bad:
        raise click.exceptions.Exit(2)


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    new_enough = sys.version_info >= (3, 11)
    yield Finding("python", f"{version}, {sys.executable}", new_enough, "" if new_enough else "3.11 or newer is needed")
    yield Finding("system", f"{platform.platform()}, {os.cpu_count()} cores")
    yield Finding("ldmkit", f"{metadata.version('ldmkit')}, {Path(__file__).parent.parent}")
    given = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    yield Finding("variables", ", ".join(given) or "none that matter")


def _packages() -> Iterator[Finding]:
    for name in PACKAGES:
        found = _version(name)
        yield Finding(name, found or "missing", found is not None, "" if found else f"pip install {name}")
    for name, use in OPTIONAL.items():
        found = _version(name)
        yield Finding(name, found or f"missing; for {use}", True if found else None)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:
        yield Finding(
            "import torch", f"{type(error).__name__}: {error}", False, "Install torch again: https://pytorch.org"
        )
        return
    yield Finding("threads", str(torch.get_num_threads()))
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    devices = [*names, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]
    yield Finding("devices", ", ".join(devices))


def _plugins() -> Iterator[Finding]:
    from ldmkit import plugins
    from ldmkit.errors import LdmkitError

    try:
        registry = plugins.load()
    except LdmkitError as error:
        yield Finding("plugins", error.message, False, error.hint or "")
        return
    yield Finding("plugins", ", ".join(str(plugin.origin) for plugin in registry.plugins))
    for problem in registry.problems:
        yield Finding("plugin", str(problem), False, problem.remedy)


def _weights() -> Iterator[Finding]:
    home = Path(os.environ.get("TORCH_HOME", Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "torch"))
    folder = home / "hub" / "checkpoints"
    for net, file in WEIGHTS.items():
        there = (folder / file).is_file()
        where = f"{folder / file}" if there else f"no {file} in {folder}; `weights: random` or a path needs none"
        yield Finding(f"LPIPS {net}, imagenet", where, True if there else None)


def _disk() -> Iterator[Finding]:
    here = Path.cwd()
    try:
        with tempfile.TemporaryFile(dir=here):
            free = shutil.disk_usage(here).free / 2**30
            yield Finding("write here", f"{here}, {free:.1f} GiB free")
    except OSError as error:
        yield Finding("write here", f"{here}: {error.strerror or error}", False, "Run elsewhere, or give --out DIR")
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total / 2**20
        small = size < SMALL_SHARED_MEMORY
        remedy = "Small for several GPUs, whose NCCL uses it: start the container with --shm-size 1g" if small else ""
        yield Finding("/dev/shm", f"{size:.0f} MiB", None if small else True, remedy)


def _text() -> Iterator[Finding]:
    output = getattr(sys.stdout, "encoding", None)
    yield Finding(
        "locale", f"{locale.setlocale(locale.LC_CTYPE)}, files {locale.getpreferredencoding(False)}, output {output}"
    )
