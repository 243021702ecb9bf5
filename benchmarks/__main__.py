"""All speed benchmarks, and the page that shows them.

    python -m benchmarks                    sizes from the bundled recipes to 103 million parameters, an hour on one quiet core
    python -m benchmarks --quick            the two recipes' networks and what takes seconds
    python -m benchmarks --only forward training --rounds 9
    python -m benchmarks --only quality --run runs/class
    python -m benchmarks --device cuda      what of it a GPU computes; the figures go into the same files, under its name
    python -m benchmarks --page             writes the page from the figures that are there

Figures are merged into `docs/explanation/performance.json`: a part that is not run keeps those it has. Outputs are compared
before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks import memory, page, speed, start, vq_nearest

DATA = Path(__file__).parents[1] / "docs" / "explanation" / "performance.json"
# Network, and sizes other than its own.
FORWARD: list[tuple[str, dict[str, int]]] = [
    ("superres", {}),
    ("superres", {"batch": 1}),
    ("superres", {"batch": 64}),
    ("class", {}),
    ("class", {"batch": 1}),
    ("class", {"tokens": 1024, "batch": 4}),
    ("S", {}),
    ("S", {"batch": 1}),
    ("S", {"side": 16}),
    ("S", {"batch": 1, "side": 64}),
    ("S", {"batch": 1, "side": 128}),
    ("S", {"tokens": 77}),
    ("S", {"tokens": 1024, "batch": 2}),
    ("M", {}),
    ("M", {"batch": 1}),
    ("L", {}),
]
TRAINING: list[tuple[str, dict[str, int]]] = [
    ("superres", {}),
    ("class", {}),
    ("S", {}),
    ("S", {"batch": 1}),
    ("M", {}),
]
QUICK = 2  # of the networks' own sizes


def parts(options: argparse.Namespace) -> dict[str, Callable[[], Iterator[dict[str, Any]]]]:
    """Name -> rows."""
    device, rounds, quick = torch.device(options.device), options.rounds, options.quick

    def chosen(cases: list[tuple[str, dict[str, int]]]) -> list[tuple[str, dict[str, int]]]:
        if options.networks:
            return [case for case in cases if case[0] in options.networks]
        return [case for case in cases if not case[1]][:QUICK] if quick else cases

    def forward() -> Iterator[dict[str, Any]]:
        yield from (speed.forward(name, rounds, device, **sizes) for name, sizes in chosen(FORWARD))

    def training() -> Iterator[dict[str, Any]]:
        yield from (speed.training(name, rounds, device, **sizes) for name, sizes in chosen(TRAINING))

    def sampling() -> Iterator[dict[str, Any]]:
        for name in ("class",) if quick else ("class", "S"):
            yield speed.sampling(name, max(rounds // 2, 1), device, batch=4 if name == "class" else 1)

    def coding(way: str) -> Iterator[dict[str, Any]]:
        yield speed.autoencoder("small", way, rounds, device, size=64, batch=4)
        if not quick:
            yield speed.autoencoder("kl-f8", way, max(rounds // 2, 1), device, size=256)

    def memories() -> Iterator[dict[str, Any]]:
        for name, batch in (("class", 64),) if quick else (("class", 64), ("S", 8), ("M", 4)):
            sides = {side: memory.measured(name, side, options.device, batch) for side in memory.SIDES}
            yield {"network": name, "batch": batch, "bytes": sides}

    def quality() -> Iterator[dict[str, Any]]:
        if options.run:
            yield speed.quality(options.run, 4, device)

    def search() -> Iterator[dict[str, Any]]:
        for n, k, c in [(8192, 2048, 3)] if quick else [(8192, 2048, 3), (16384, 8192, 3), (16384, 16384, 4)]:
            yield {"vectors": n, "codes": k, "width": c, "seconds": _search(n, k, c, max(rounds // 2, 1))}

    def starting() -> Iterator[dict[str, Any]]:
        yield start.measure(2)

    return {
        "forward": forward,
        "training": training,
        "sampling": sampling,
        "quality": quality,
        "encode": lambda: coding("encode"),
        "decode": lambda: coding("decode"),
        "memory": memories,
        "search": search,
        "start": starting,
    }


def _search(n: int, k: int, c: int, rounds: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    vectors, codes = torch.randn(n, c, generator=generator), torch.randn(k, c, generator=generator)
    ways = vq_nearest.ways(vectors, codes)
    vq_nearest.compare(vectors, codes, ways)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(vq_nearest.cpu_time(way) / 1e3)
    return {name: statistics.median(own) for name, own in times.items()}


def machine(device: str) -> dict[str, str]:
    """What stands beside every figure."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    about = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    flags = set(about.get("flags", "").split())
    kinds = [name for name in ("avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    name = f"{about.get('model name', platform.processor())} ({', '.join(kinds) or 'no AVX-512'}), one thread"
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else name,
        "versions": ", ".join(f"{package} {version(package)}" for package in ("torch", "diffusers")),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small networks alone")
    parser.add_argument("--only", nargs="+", help="these parts")
    parser.add_argument("--networks", nargs="+", help="of forward and training these networks")
    parser.add_argument("--rounds", type=int, default=5, help="turns counted for each figure")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--run", help="a trained run, for `quality`")
    parser.add_argument("--data", type=Path, default=DATA, help="where the figures are kept; the page lies beside it")
    parser.add_argument("--page", action="store_true", help="run nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = parts(options)
    names = [] if options.page else options.only or list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no part is called {unknown[0]}; there are {', '.join(known)}")
    data: dict[str, Any] = json.loads(options.data.read_text("utf-8")) if options.data.is_file() else {}
    for name in names:
        own = data.setdefault(options.device, {})
        for row in known[name]():
            print(name, json.dumps(row), flush=True)
            own[name] = [one for one in own.get(name, []) if page.key(one) != page.key(row)] + [
                {**row, "machine": machine(options.device)}
            ]
            options.data.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    options.data.with_suffix(".md").write_text(page.page(data), "utf-8")


if __name__ == "__main__":
    main()
